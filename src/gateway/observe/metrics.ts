/**
 * What Prometheus is told. Names are vLLM's where the meaning is, with `saga:` for `vllm:`; `model_name` is the model as clients call it, `engine`
 * the scheduler's id of a worker.
 *
 * Counters are kept where things happen, as plain numbers, and copied when somebody asks: a call costs three histograms.
 */
import { Counter, Gauge, Registry } from 'prom-client';
import type { WorkerMetrics } from '../../vllm/index.js';
import type { CallRecord } from '../call.js';
import type { ModelPool } from '../model-pool.js';
import { Durations } from './durations.js';

const secondsBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];

type Read<T> = (of: T) => number;

/** Of a model. */
const poolCounters: readonly [name: string, help: string, read: Read<ModelPool>][] = [
  ['requests_submitted', 'Calls that came', ({ counters }) => counters.submitted],
  ['requests_placed', 'Times that a call got a worker', ({ counters }) => counters.placed],
  ['request_success', 'Calls whose answer was complete', ({ counters }) => counters.finished],
  ['requests_cancelled', 'Calls that ended otherwise', ({ counters }) => counters.cancelled],
  [
    'requests_retried',
    'Times that another worker was tried, before the first byte',
    ({ counters }) => counters.retried,
  ],
  ['requests_refused', 'Calls refused because the queue was full', ({ counters }) => counters.queueFull],
  ['queue_timeouts', 'Calls that waited too long', ({ counters }) => counters.queueTimeouts],
  ['requests_named', 'Calls whose client names the workflow', ({ counters }) => counters.namedCalls],
  ['prompt_tokens', 'Tokens of prompts', ({ counters }) => counters.promptTokens],
  ['prompt_tokens_tokenized', 'Tokens that were made of text', ({ counters }) => counters.tokenizedTokens],
  ['prompt_blocks_hashed', 'Blocks whose hash was computed', ({ counters }) => counters.hashedBlocks],
  [
    'prompt_token_mismatches',
    'Prompts of which the worker counts other tokens',
    ({ counters }) => counters.promptTokenMismatches,
  ],
  [
    'prompts_remade',
    'Prompts that go on from a known one and were made into tokens anew all the same',
    ({ counters }) => counters.promptsRemade,
  ],
  ['generation_tokens', 'Tokens of answers, as workers report', ({ counters }) => counters.outputTokens],
  ['prefix_cache_hits', 'Prompt tokens that workers had, as they report', ({ counters }) => counters.cachedTokens],
  ['prefix_cache_hits_predicted', 'The same as predicted', ({ counters }) => counters.predictedTokens],
  ['steals', 'Agents moved in a gap', ({ scheduler }) => scheduler.stats().saga?.steals ?? 0],
  [
    'moves_with_blocks',
    'Agents moved with their blocks on their return',
    ({ scheduler }) => scheduler.stats().saga?.pulls ?? 0,
  ],
  ['moves_without_blocks', 'Agents that went elsewhere', ({ scheduler }) => scheduler.stats().saga?.recomputes ?? 0],
  ['thrash', 'Moves soon after the move before', ({ scheduler }) => scheduler.stats().saga?.thrash ?? 0],
  ['stale_events', 'Answers of an earlier placement', ({ scheduler }) => scheduler.stats().saga?.stale ?? 0],
];

const poolGauges: readonly [name: string, help: string, read: Read<ModelPool>][] = [
  ['num_requests_waiting', 'Calls without a worker', (pool) => pool.waitingCalls],
  ['num_requests_running', 'Calls at workers', (pool) => pool.scheduler.stats().openCalls - pool.waitingCalls],
  ['num_workflows', 'Workflows that are open', (pool) => pool.sessions.size],
  ['num_blocks_known', 'Blocks known over all workers', (pool) => pool.scheduler.stats().holderBlocks],
  ['workers_ready', 'Workers that take calls', readyWorkers],
];

/** Of a worker. */
const workerGauges: readonly [name: string, help: string, read: Read<WorkerMetrics>][] = [
  ['worker_ready', '1: takes calls', ({ condition }) => (condition === 'ready' ? 1 : 0)],
  ['worker_trust', 'How far its pages are believed, 0 to 1', ({ trust }) => trust],
  ['worker_drift', 'Share of predicted tokens that were not cached', ({ drift }) => drift],
  ['worker_surprise', 'Share of cached tokens that were not predicted', ({ surprise }) => surprise],
  ['worker_blocks', 'KV blocks', ({ blocks }) => blocks],
  ['worker_blocks_in_use', 'Blocks of running calls', ({ blocksInUse }) => blocksInUse],
  ['worker_requests_running', 'Calls that run, as it reports', ({ runningCalls }) => runningCalls],
  ['worker_requests_waiting', 'Calls in its queue, as it reports', ({ waitingCalls }) => waitingCalls],
  ['worker_directives_open', 'Directives without their last answer', ({ directives }) => directives.open],
];

const workerCounters: readonly [name: string, help: string, read: Read<WorkerMetrics>][] = [
  ['kv_event_frames', 'KV event messages', ({ events }) => events.frames],
  ['kv_event_bytes', 'Bytes of KV events', ({ events }) => events.bytes],
  ['kv_event_gaps', 'Sequence numbers left out', ({ events }) => events.gaps],
  ['kv_event_replays', 'Replays asked for', ({ events }) => events.replays],
  ['kv_event_replay_failures', 'Replays that were not complete', ({ events }) => events.replayFailures],
  ['kv_event_resets', 'Times that all known of the worker was forgotten', ({ events }) => events.resets],
  ['kv_event_restarts', 'Times that the engine began anew', ({ events }) => events.restarts],
  ['kv_event_malformed', 'Messages that could not be read', ({ events }) => events.malformed],
  ['kv_event_dropped', 'Messages for which there was no room', ({ events }) => events.dropped],
  ['kv_event_unknown_removals', 'Removals of blocks that were not known', ({ events }) => events.unknownRemovals],
  [
    'prefix_tokens_evicted_while_waiting',
    'Predicted cached tokens that were evicted while their call waited at the worker',
    ({ evictedWhileWaiting }) => evictedWhileWaiting,
  ],
  ['prefetches', 'Requests that bring blocks ahead of a return', ({ directives }) => directives.prefetches],
  ['prefetches_applied', 'Those that were answered', ({ directives }) => directives.prefetchesApplied],
  [
    'prefetches_withdrawn',
    'Those taken back, as the call came first or the workflow ended',
    ({ directives }) => directives.prefetchesWithdrawn,
  ],
  ['directives_sent', 'Directives sent', ({ directives }) => directives.sent],
  ['directive_wakes', 'Requests sent to wake an idle engine', ({ directives }) => directives.wakes],
  ['directive_answers_unsigned', 'Answers without a right signature', ({ directives }) => directives.unsigned],
];

function readyWorkers({ workers }: ModelPool): number {
  return workers.workers.filter(({ condition }) => condition === 'ready').length;
}

/** The registry of one gateway. */
export class GatewayMetrics {
  readonly #registry = new Registry();
  readonly #timeToFirstToken = new Durations(
    'saga:time_to_first_token_seconds',
    'From a request to the first byte of its answer',
    ['model_name', 'endpoint'],
    secondsBuckets,
  );
  readonly #latency = new Durations(
    'saga:e2e_request_latency_seconds',
    'From a request to the last byte of its answer',
    ['model_name', 'endpoint'],
    secondsBuckets,
  );
  readonly #queueTime = new Durations(
    'saga:request_queue_time_seconds',
    'From a request to its worker',
    ['model_name'],
    secondsBuckets,
  );
  /** By model, endpoint, tenant and status. */
  readonly #answers = new Map<string, { labels: Record<string, string>; count: number }>();
  readonly #errors: Counter<'code'>;
  readonly #passed: Counter<'endpoint'>;

  constructor(pools: readonly ModelPool[]) {
    const registers = [this.#registry];
    this.#counter(
      'requests',
      'Calls that ended, by status; 499: the client went first',
      ['model_name', 'endpoint', 'tenant', 'status'],
      () => [...this.#answers.values()].map((answers) => [answers.labels, answers] as const),
      ({ count }) => count,
    );
    this.#errors = new Counter({
      name: 'saga:errors_total',
      help: 'Requests that the gateway refused or gave up',
      labelNames: ['code'],
      registers,
    });
    this.#passed = new Counter({
      name: 'saga:unscheduled_requests_total',
      help: 'Requests passed on to the one worker that can answer them',
      labelNames: ['endpoint'],
      registers,
    });
    const models = pools.map((pool) => [{ model_name: pool.name }, pool] as const);
    for (const [name, help, read] of poolCounters) this.#counter(name, help, ['model_name'], () => models, read);
    for (const [name, help, read] of poolGauges) this.#gauge(name, help, ['model_name'], () => models, read);
    const workers = (): (readonly [Record<string, string | number>, WorkerMetrics])[] =>
      pools.flatMap((pool) =>
        pool.workers
          .metrics()
          .workers.map(
            (worker) =>
              [{ model_name: pool.name, engine: worker.worker, url: worker.url, rank: worker.rank }, worker] as const,
          ),
      );
    const labels = ['model_name', 'engine', 'url', 'rank'];
    for (const [name, help, read] of workerCounters) this.#counter(name, help, labels, workers, read);
    for (const [name, help, read] of workerGauges) this.#gauge(name, help, labels, workers, read);
    this.#gauge(
      'worker_connector',
      'What its connector can do: 1 at the label that is so',
      [...labels, 'strength'],
      () =>
        pools.flatMap((pool) =>
          pool.workers.workers.flatMap(({ worker, server, rank, features }) =>
            ['policy', 'leases', 'none', 'unknown'].map(
              (strength) =>
                [
                  { model_name: pool.name, engine: worker.id, url: server.url, rank, strength },
                  (features.connector ?? 'unknown') === strength ? 1 : 0,
                ] as const,
            ),
          ),
        ),
      (value) => value,
    );
    this.#counter(
      'directive_outcomes',
      'Answers to directives',
      [...labels, 'status'],
      () =>
        workers().flatMap(([given, { directives }]) =>
          Object.entries(directives.outcomes).map(([status, count]) => [{ ...given, status }, count] as const),
        ),
      (count) => count,
    );
    this.#counter(
      'lineage_calls',
      'Calls by what they are to those before',
      ['model_name', 'kind'],
      () =>
        pools.flatMap(({ name, counters }) =>
          Object.entries(counters.lineage).map(([kind, count]) => [{ model_name: name, kind }, count] as const),
        ),
      (count) => count,
    );
    this.#counter(
      'prompts',
      'Prompts by who made tokens of them',
      ['model_name', 'source'],
      () =>
        pools.flatMap(({ name, counters }) =>
          Object.entries(counters.promptsBySource).map(
            ([source, count]) => [{ model_name: name, source }, count] as const,
          ),
        ),
      (count) => count,
    );
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** A call has ended. */
  ended(record: CallRecord): void {
    const { model: model_name, endpoint, tenant, status } = record;
    const key = `${status} ${endpoint} ${tenant}\n${model_name}`;
    const known = this.#answers.get(key);
    if (known === undefined)
      this.#answers.set(key, { labels: { model_name, endpoint, tenant, status: String(status) }, count: 1 });
    else known.count += 1;
    if (record.placedAfter !== undefined) this.#queueTime.observe(record.placedAfter / 1000, model_name);
    if (record.firstByteAfter !== undefined)
      this.#timeToFirstToken.observe(record.firstByteAfter / 1000, model_name, endpoint);
    this.#latency.observe(record.endedAfter / 1000, model_name, endpoint);
  }

  /** A request ended in an error of the gateway. */
  failed(code: string): void {
    this.#errors.inc({ code });
  }

  /** A request that is not scheduled was passed on. */
  passed(endpoint: string): void {
    this.#passed.inc({ endpoint });
  }

  async text(): Promise<string> {
    const durations = [this.#timeToFirstToken, this.#latency, this.#queueTime].map((each) => each.text());
    return `${await this.#registry.metrics()}\n${durations.join('')}`;
  }

  #counter<T>(
    name: string,
    help: string,
    labelNames: string[],
    all: () => readonly (readonly [Record<string, string | number>, T])[],
    read: Read<T>,
  ): void {
    new Counter({
      name: `saga:${name}_total`,
      help,
      labelNames,
      registers: [this.#registry],
      collect() {
        this.reset();
        for (const [labels, of] of all()) this.inc(labels, read(of));
      },
    });
  }

  #gauge<T>(
    name: string,
    help: string,
    labelNames: string[],
    all: () => readonly (readonly [Record<string, string | number>, T])[],
    read: Read<T>,
  ): void {
    new Gauge({
      name: `saga:${name}`,
      help,
      labelNames,
      registers: [this.#registry],
      collect() {
        this.reset();
        for (const [labels, of] of all()) this.set(labels, read(of));
      },
    });
  }
}
