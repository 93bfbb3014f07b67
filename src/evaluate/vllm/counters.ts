/** Counters of vLLM's /metrics that only grow: what a run added to them, over all servers. */

/** What the engines count; tokens are those of prompts. */
export interface EngineCounters {
  /** Prompt tokens that were looked up in the prefix cache. */
  queries: number;
  /** Of them, those that were there. */
  hits: number;
  promptTokens: number;
  generationTokens: number;
  preemptions: number;
  /** Wall seconds that calls waited in engines, and in which they ran there, summed over calls. */
  queueSeconds: number;
  inferenceSeconds: number;
}

const names: Readonly<Record<keyof EngineCounters, string>> = {
  queries: 'vllm:prefix_cache_queries',
  hits: 'vllm:prefix_cache_hits',
  promptTokens: 'vllm:prompt_tokens',
  generationTokens: 'vllm:generation_tokens',
  preemptions: 'vllm:num_preemptions',
  queueSeconds: 'vllm:request_queue_time_seconds_sum',
  inferenceSeconds: 'vllm:request_inference_time_seconds_sum',
};

/** Sums over all labels. A counter that is not there is an error: silently it would read as 0. */
export function readCounters(text: string): EngineCounters {
  const sums = new Map<string, number>();
  for (const line of text.split('\n')) {
    const found = /^(vllm:\w+?)(?:_total)?(?:\{[^}]*\})? (\S+)/.exec(line);
    if (found === null) continue;
    const [, name, value] = found as unknown as [string, string, string];
    sums.set(name, (sums.get(name) ?? 0) + Number(value));
  }
  const read = (counter: keyof EngineCounters): number => {
    const value = sums.get(names[counter]);
    if (value === undefined || Number.isNaN(value)) throw new Error(`/metrics has no counter ${names[counter]}`);
    return value;
  };
  return {
    queries: read('queries'),
    hits: read('hits'),
    promptTokens: read('promptTokens'),
    generationTokens: read('generationTokens'),
    preemptions: read('preemptions'),
    queueSeconds: read('queueSeconds'),
    inferenceSeconds: read('inferenceSeconds'),
  };
}

/** Sum of `after - before` over servers. */
export function addedCounters(before: readonly EngineCounters[], after: readonly EngineCounters[]): EngineCounters {
  const added = (counter: keyof EngineCounters): number =>
    after.reduce((sum, one, server) => sum + one[counter] - (before[server] as EngineCounters)[counter], 0);
  return {
    queries: added('queries'),
    hits: added('hits'),
    promptTokens: added('promptTokens'),
    generationTokens: added('generationTokens'),
    preemptions: added('preemptions'),
    queueSeconds: added('queueSeconds'),
    inferenceSeconds: added('inferenceSeconds'),
  };
}
