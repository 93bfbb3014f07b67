/** `/metrics` under vLLM's names, in Prometheus' text format. */
import type { Engine } from './engine.js';

interface Metric {
  readonly name: string;
  readonly kind: 'gauge' | 'counter';
  readonly help: string;
  /** Label, value pairs of one engine. */
  readonly values: (engine: Engine) => readonly (readonly [string, number])[];
}

const one =
  (value: (engine: Engine) => number): Metric['values'] =>
  (engine) => [['', value(engine)]];

/** Share of blocks that calls or leases use, as vLLM counts it. */
export function cacheUsage(engine: Engine): number {
  return 1 - engine.freeBlocks / engine.usableBlocks;
}

const metrics: readonly Metric[] = [
  {
    name: 'vllm:num_requests_running',
    kind: 'gauge',
    help: 'Number of requests in model execution batches.',
    values: one((engine) => engine.runningCalls),
  },
  {
    name: 'vllm:num_requests_waiting',
    kind: 'gauge',
    help: 'Number of requests waiting to be processed.',
    values: one((engine) => engine.waitingCalls),
  },
  {
    name: 'vllm:num_requests_waiting_by_reason',
    kind: 'gauge',
    help: 'Number of requests waiting to be processed, by reason.',
    values: (engine) => [
      [',reason="capacity"', engine.waitingCalls],
      [',reason="deferred"', 0],
    ],
  },
  {
    name: 'vllm:kv_cache_usage_perc',
    kind: 'gauge',
    help: 'KV-cache usage. 1 means 100 percent usage.',
    values: one(cacheUsage),
  },
  {
    name: 'vllm:prefix_cache_queries',
    kind: 'counter',
    help: 'Prefix cache queries, in terms of number of queried tokens.',
    values: one((engine) => engine.counters.queriedTokens),
  },
  {
    name: 'vllm:prefix_cache_hits',
    kind: 'counter',
    help: 'Prefix cache hits, in terms of number of cached tokens.',
    values: one((engine) => engine.counters.cachedTokens),
  },
  {
    name: 'vllm:num_preemptions',
    kind: 'counter',
    help: 'Cumulative number of preemption from the engine.',
    values: one((engine) => engine.counters.preemptions),
  },
  {
    name: 'vllm:prompt_tokens',
    kind: 'counter',
    help: 'Number of prefill tokens processed.',
    values: one((engine) => engine.counters.promptTokens),
  },
  {
    name: 'vllm:prompt_tokens_cached',
    kind: 'counter',
    help: 'Number of cached prompt tokens (local + external).',
    values: one((engine) => engine.counters.cachedTokens),
  },
  {
    name: 'vllm:generation_tokens',
    kind: 'counter',
    help: 'Number of generation tokens processed.',
    values: one((engine) => engine.counters.generationTokens),
  },
  {
    name: 'vllm:request_success',
    kind: 'counter',
    help: 'Count of successfully processed requests.',
    values: (engine) =>
      (['stop', 'length', 'abort'] as const).map((reason) => [
        `,finished_reason="${reason}"`,
        engine.counters.finished[reason],
      ]),
  },
  {
    name: 'saga_emulated:gpu_busy_seconds',
    kind: 'counter',
    help: 'Modelled time of all steps.',
    values: one((engine) => engine.counters.busySeconds),
  },
  {
    name: 'saga_emulated:step_late_seconds',
    kind: 'counter',
    help: 'Time by which steps ended later than modelled, of the machine.',
    values: one((engine) => engine.counters.lateSeconds),
  },
  {
    name: 'saga_emulated:steps',
    kind: 'counter',
    help: 'Steps.',
    values: one((engine) => engine.counters.steps),
  },
];

function quoted(text: string): string {
  return text.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n');
}

/** The document. */
export function metricsText(engines: readonly Engine[], model: string): string {
  const name = quoted(model);
  let text = '';
  for (const { name: metric, kind, help, values } of metrics) {
    const suffix = kind === 'counter' ? '_total' : '';
    text += `# HELP ${metric}${suffix} ${help}\n# TYPE ${metric}${suffix} ${kind}\n`;
    engines.forEach((engine, rank) => {
      for (const [labels, value] of values(engine))
        text += `${metric}${suffix}{engine="${rank}",model_name="${name}"${labels}} ${value}\n`;
    });
  }
  text +=
    '# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n# TYPE vllm:cache_config_info gauge\n';
  engines.forEach(({ options }, rank) => {
    const caching = options.prefixCaching ? 'True' : 'False';
    text += `vllm:cache_config_info{block_size="${options.blockTokens}",cache_dtype="auto",enable_prefix_caching="${caching}",engine="${rank}",gpu_memory_utilization="0.9",num_gpu_blocks="${options.blocks}",num_gpu_blocks_override="${options.blocks}",prefix_caching_hash_algo="${options.hashAlgorithm}"} 1.0\n`;
  });
  return text;
}
