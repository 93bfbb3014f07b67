/**
 * Traces, workloads and simulations from code: what `saga simulate` does, for your own trace and your own questions.
 *
 * A **workload** is what is played: tasks of agents, their calls, the blocks of each prompt and the gaps between them. It is read
 * from a trace ({@link readTrace}) or drawn ({@link generateAgentSessions}, {@link generateTasks}), and is a set of typed arrays
 * ({@link WorkloadColumns}). A **simulation** plays it under one or more policies and gives a **report**: plain data, the same
 * object that `saga simulate --json` prints. {@link simulateCache} asks how much of the prompts one shared cache would have held,
 * against the offline optimum; {@link simulateCluster} plays workers in time and asks how long tasks take.
 * {@link tableOf} and {@link chartOf} turn a report into a table and an SVG chart.
 *
 * To play your own trace, write it as request lines, one JSON object a line:
 *
 * | field | meaning |
 * |---|---|
 * | `sid`, `aid` | session (one task), and agent in it: `main`, or the name of a sub-agent |
 * | `k`, `t` | number of the call within its agent, from 0, and its start in seconds from the start of the session |
 * | `in`, `out` | tokens of the prompt and of the answer |
 * | `llm_s` | duration of the call in seconds; where no line has it, only the model `atomic` can be simulated |
 * | `gap_s`, `gap_kind` | seconds between the answer before and this call, and what it brings: `start`, `tool` or `user` |
 * | `stop` | why the answer ended: `tool_use`, `end_turn`; may be left out |
 * | `h` | the prompt's blocks of 64 tokens as runs `[first id, length]`; the same id stands for the same tokens behind the same prefix |
 *
 * Nothing is random but by a seed: the same input gives the same report, byte for byte. Simulations run on threads of Node's
 * pool, two at a time, so the event loop stays free. Whatever cannot be used is a `SagaError` with the code `SAGA_ERR_OPTION` or
 * one of `SAGA_ERR_TRACE_..`, and a sentence that says what was expected.
 *
 * @example
 * ```ts
 * import { generateAgentSessions, readTrace, simulateCache, tableOf } from 'saga-scheduler/simulate';
 *
 * const file = process.argv[2]; // a trace, if there is one
 * const workload = file ? (await readTrace(file)).workload() : generateAgentSessions({ sessions: 40 }).arrange();
 * const report = await simulateCache(workload, { policies: ['lru', 'belady'], cacheShares: [1, 5], live: 8 });
 * console.log(tableOf(report));
 * const [lru] = report.results;
 * console.log(`LRU misses ${lru?.beladyRatio.toFixed(2)} times as many pages as the optimum`);
 * ```
 *
 * @packageDocumentation
 */
export { SagaError, type SagaErrorCode } from '../errors.js';
export {
  callCount,
  noGraph,
  promptKindNumber,
  stopReasonNumber,
  taskCount,
  toolClassNumber,
  type CacheSchedule,
  type NativeColumns,
  type WorkloadColumns,
} from '../workload/columns.js';
export {
  readTrace,
  type MalformedInput,
  type ReadTraceOptions,
  type Trace,
  type TraceFormat,
} from '../workload/trace.js';
export { type ArrangeOptions, type RequestLog } from '../workload/request-log.js';
export { generateAgentSessions, type AgentWorkloadOptions } from '../workload/agent-workload.js';
export {
  generateTasks,
  paperToolLatencies,
  paperWorkloads,
  type Gamma,
  type GenerateTasksOptions,
  type Range,
  type TaskClass,
  type ToolLatency,
} from '../workload/paper-workloads.js';
export { summarize, workloadStatistics, type Summary, type WorkloadStatistics } from '../workload/statistics.js';
export { scheduleOf, type ScheduleOptions } from '../workload/schedule.js';
export { cacheHints, withHints, type CacheHints } from '../workload/hints.js';
export { AgentGraph } from '../graph/agent-graph.js';
export { type ClusterRunResult, type Distribution, type LeaseCounts } from './backend.js';
export {
  cacheModels,
  cachePolicies,
  clusterHints,
  clusterPolicies,
  hardwareNames,
  policyParts,
  type CacheModel,
  type CachePolicy,
  type ClusterHints,
  type ClusterPolicy,
  type Hardware,
  type PolicyPart,
} from './options.js';
export {
  type CacheReport,
  type CacheResultRow,
  type ClusterReport,
  type ClusterResultRow,
  type ProgressListener,
} from './run.js';
export { chartOf } from './plot.js';
export { tableOf } from './table.js';

import { SagaError } from '../errors.js';
import type { WorkloadColumns } from '../workload/columns.js';
import type { CacheHints } from '../workload/hints.js';
import { nativeBackend } from './native-backend.js';
import {
  optionError,
  parseSimulateOptions,
  type CacheModel,
  type CacheOptions,
  type CachePolicy,
  type ClusterHints,
  type ClusterOptions,
  type ClusterPolicy,
  type Hardware,
  type Mode,
  type PolicyPart,
} from './options.js';
import {
  simulateCache as runCache,
  simulateCluster as runCluster,
  type CacheReport,
  type ClusterReport,
  type ProgressListener,
} from './run.js';

/** What both kinds of simulation take. Names are those of the command line in camel case. */
export interface SimulationOptions {
  /** Tokens of a page; a multiple or a divisor of the workload's `blockTokens`. Default 512 for a cache, 16 for a cluster. */
  pageTokens?: number;
  /** Hears how the simulation gets on. Default: nobody. */
  progress?: ProgressListener;
}

/** Options of {@link simulateCache}. */
export interface CacheSimulationOptions extends SimulationOptions {
  /** Default: all of {@link cachePolicies}. The optimum runs in any case, for the ratios. */
  policies?: readonly CachePolicy[];
  /**
   * Whether a call is an instant (`atomic`) or keeps its pages while it runs (`pinned`). Default `pinned`, which needs a workload
   * with call durations.
   */
  model?: CacheModel;
  /** Cache sizes in tokens, each at least one page. */
  cacheTokens?: readonly number[];
  /** Cache sizes in per cent of the distinct pages of the workload, above 0, at most 100. Default 0.25, 0.5, 1, 2, 5. */
  cacheShares?: readonly number[];
  /** Sessions live at one time. Default 32. Not for a workload with arrival times, which is played at them. */
  live?: number;
  /** Longest gap between calls that is kept, in seconds. Default 1,800. */
  gapCap?: number;
  /** Only the first so many per cent of the requests, from an empty cache. Default: all. */
  first?: number;
  /** What clients tell with their answers. Default `none`. `end+tool-noisy` draws from `seed`. */
  hints?: CacheHints;
  /** Of whatever is drawn. Default 42. */
  seed?: number;
  /**
   * Measure the time in the policy, of `lru` in any case; runs are then one at a time, and the report is another each time.
   * Default `false`.
   */
  timing?: boolean;
}

/** Options of {@link simulateCluster}. Exactly one of `load`, `rate`, `live` and `pressure` says how tasks arrive. */
export interface ClusterSimulationOptions extends SimulationOptions {
  /** Default: all of {@link clusterPolicies}. */
  policies?: readonly ClusterPolicy[];
  /** Workers of the cluster, 1 to 1,024. Default 16. */
  workers?: number;
  /** GPU and tensor parallelism of each worker. Default `a100-tp4`. */
  hardware?: Hardware;
  /** Open loop: multiples of the rate at which `affinity` takes 3 times the ideal time, which is searched for first. */
  load?: readonly number[];
  /** Open loop: tasks a second. */
  rate?: number;
  /** Closed loop: so many tasks live. */
  live?: number;
  /** Closed loop: as many tasks live as fill the KV room of the cluster so many times with their contexts. */
  pressure?: number;
  /** Policies whose saturation rate is searched for besides. Default: none. */
  saturation?: readonly ClusterPolicy[];
  /** Of arrivals and of whatever else is drawn. Default 42. */
  seed?: number;
  /** KV room of a worker in tokens. Default 448,000 (tp4) or 1,327,000 (tp8): a 70B model in bf16 on 80 GB GPUs. */
  kvTokens?: number;
  /** Calls in one step of a worker. Default 256. */
  maxSequences?: number;
  /** Tokens in one step of a worker, at least `maxSequences`. Default 2,048. */
  stepTokens?: number;
  /** Room for pages in the host memory of a worker, in tokens. Default 0: no host tier. */
  hostTierTokens?: number;
  /** Bandwidth of each link in GB/s. Default 25. */
  linkGigabytes?: number;
  /**
   * What clients tell, every policy alike: nothing, or the declared graph of a task when it arrives and that a task is over.
   * Default: `graph` where the workload declares graphs, else `none`.
   */
  hints?: ClusterHints;
  /** Parts taken out of those policies that have them (`saga-paper` and `saga`). Default: none. */
  without?: readonly PolicyPart[];
  /**
   * File for the engine's journal of events; with one load and one policy only, of those that run through the engine
   * (`round-robin`, `affinity`, `wa-lru`, `ttl`). Default: none.
   */
  journal?: string;
}

/**
 * Replays a workload against one shared cache of each size, under each policy.
 *
 * @returns the report: one row for each size and policy, sizes in the order given
 * @throws SagaError `SAGA_ERR_OPTION` for an option that cannot be used, or not with this workload
 */
export async function simulateCache(
  workload: WorkloadColumns,
  options: CacheSimulationOptions = {},
): Promise<CacheReport> {
  return inOptionNames(() =>
    runCache(workload, parse('cache', options) as CacheOptions, nativeBackend, options.progress ?? silent),
  );
}

/**
 * Plays a workload on a cluster of workers (continuous batching, chunked prefill, preemption, queueing) at each load, under each
 * policy. Every task runs to completion.
 *
 * @returns the report: one row for each load and policy, loads in the order given
 * @throws SagaError `SAGA_ERR_OPTION` for an option that cannot be used, or not with this workload
 */
export async function simulateCluster(
  workload: WorkloadColumns,
  options: ClusterSimulationOptions,
): Promise<ClusterReport> {
  return inOptionNames(() =>
    runCluster(workload, parse('cluster', options) as ClusterOptions, nativeBackend, options.progress ?? silent),
  );
}

const silent: ProgressListener = { begin: () => undefined, advance: () => undefined, end: () => undefined };

/** Options of the command line that say what is played; here the workload is given. */
const inputNames = ['mode', 'trace', 'workload', 'tasks', 'orderSalt', 'onBadLine'];

/** The command line's own checks and defaults, so that there is one rule for both. */
function parse(mode: Mode, options: CacheSimulationOptions | ClusterSimulationOptions): CacheOptions | ClusterOptions {
  if (typeof options !== 'object' || options === null) throw optionError('expected options to be an object');
  const { progress: _progress, ...given } = options;
  const raw: Record<string, string | boolean> = {};
  for (const [name, value] of Object.entries(given) as [string, unknown][]) {
    if (value === undefined) continue;
    if (inputNames.includes(name)) throw optionError(`expected no ${name}: the workload is given`);
    raw[name] = typeof value === 'boolean' ? value : (Array.isArray(value) ? value : [value]).map(textOf).join(',');
  }
  // The name of a workload is demanded, and then taken out again.
  return { ...parseSimulateOptions({ ...raw, mode, workload: 'agent' }), workload: undefined };
}

/** A number without exponent, which the command line does not take. */
function textOf(value: unknown): string {
  if (typeof value !== 'number' || !/e/.test(String(value))) return String(value);
  return value.toFixed(20).replace(/\.?0+$/, '');
}

/** Complaints that name an option as the command line does name it as it is called here. */
async function inOptionNames<T>(action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (!(error instanceof SagaError) || error.code !== 'SAGA_ERR_OPTION') throw error;
    const message = error.message.replace(/--([a-z]+(?:-[a-z]+)*)/g, (_, name: string) =>
      name.replace(/-([a-z])/g, (_dash, letter: string) => letter.toUpperCase()),
    );
    throw new SagaError('SAGA_ERR_OPTION', message, { cause: error });
  }
}
