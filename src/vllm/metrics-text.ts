/**
 * What is read of a server's /metrics (Prometheus text format) and of the header `endpoint-load-metrics`: a few names of vLLM, by
 * data-parallel rank. Everything else is skipped; malformed lines, too.
 */

/** Of one rank, as far as it is told. */
export interface RankMetrics {
  /** `vllm:cache_config_info`, all labels. */
  cache: Readonly<Record<string, string>> | undefined;
  running: number | undefined;
  waiting: number | undefined;
  /** 0 to 1: blocks in use by requests and leases. */
  usage: number | undefined;
}

const gauges: Readonly<Record<string, 'running' | 'waiting' | 'usage'>> = {
  'vllm:num_requests_running': 'running',
  'vllm:num_requests_waiting': 'waiting',
  'vllm:kv_cache_usage_perc': 'usage',
  // Before vLLM 0.10.
  'vllm:gpu_cache_usage_perc': 'usage',
};
const mostRanks = 256;

/** By rank: the label `engine`; without one it is 0. */
export function readMetrics(text: string): Map<number, RankMetrics> {
  const ranks = new Map<number, RankMetrics>();
  for (let from = 0; from < text.length;) {
    let end = text.indexOf('\n', from);
    if (end < 0) end = text.length;
    if (text.startsWith('vllm:', from)) readLine(text.slice(from, end), ranks);
    from = end + 1;
  }
  return ranks;
}

function readLine(line: string, ranks: Map<number, RankMetrics>): void {
  const name = /^[\w:]+/.exec(line)?.[0] ?? '';
  const gauge = Object.hasOwn(gauges, name) ? gauges[name] : undefined;
  if (gauge === undefined && name !== 'vllm:cache_config_info') return;
  const labels: Record<string, string> = {};
  let at = name.length;
  if (line[at] === '{') {
    // name="value" pairs; in values \\, \" and \n are escaped.
    const pair = /[{,]\s*(?:([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"|(?=}))/y;
    for (pair.lastIndex = at; ;) {
      const found = pair.exec(line);
      if (!found) break;
      at = pair.lastIndex;
      if (found[1] !== undefined) labels[found[1]] = unescaped(found[2] as string);
    }
    if (line[at] !== '}') return;
    ++at;
  }
  const value = numberOf(line.slice(at).trim().split(/\s+/)[0] ?? '');
  const rank = Number(labels.engine ?? 0);
  if (value === undefined || !Number.isInteger(rank) || rank < 0 || rank >= mostRanks) return;
  const known = ranks.get(rank) ?? { cache: undefined, running: undefined, waiting: undefined, usage: undefined };
  ranks.set(rank, gauge === undefined ? { ...known, cache: labels } : { ...known, [gauge]: value });
}

function unescaped(text: string): string {
  return text.replace(/\\(.)/g, (_, letter: string) => (letter === 'n' ? '\n' : letter));
}

function numberOf(text: string): number | undefined {
  const value = text === '' ? NaN : Number(text);
  return Number.isFinite(value) && value >= 0 ? value : undefined;
}

/**
 * The header `endpoint-load-metrics`: `TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0`, or
 * `JSON {"named_metrics": {...}}`.
 */
export function readLoadHeader(text: string): Pick<RankMetrics, 'waiting' | 'usage'> {
  const metric = (name: string): number | undefined => {
    const [, digits = ''] = new RegExp(`\\b${name}"?\\s*[=:]\\s*([0-9.eE+-]{1,32})`).exec(text.slice(0, 4096)) ?? [];
    return numberOf(digits);
  };
  return { waiting: metric('num_requests_waiting'), usage: metric('kv_cache_usage_perc') };
}
