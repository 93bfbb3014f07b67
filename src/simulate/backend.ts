/**
 * What the simulations need of the native side (`native-backend.ts`); tests put a fake in its place.
 */
import type { CacheSchedule, WorkloadColumns } from '../workload/columns.js';
import type { CacheModel, CachePolicy, ClusterHints, ClusterPolicy, Hardware } from './options.js';

/** Called while a run is under way with how much of it is done, from 0 to 1. */
export type OnProgress = (done: number) => void;

/** Runs of one workload and schedule against caches of any size. */
export interface CacheReplay {
  /** Distinct pages of all prompts of the workload, whether the schedule reaches them or not. */
  readonly distinctPages: number;
  /** Runs one policy. Several may run at once. */
  run(options: CacheRunOptions, onProgress?: OnProgress): Promise<CacheRunResult>;
}

/** One run of cache mode. */
export interface CacheRunOptions {
  policy: CachePolicy;
  model: CacheModel;
  /** Size of the cache in pages, at least 1. */
  capacityPages: number;
  /** Only so many requests of the schedule, at least 1. */
  requestLimit: number;
  /** Measure the time of decisions. */
  timing: boolean;
}

/** Counts of one run of cache mode. */
export interface CacheRunResult {
  requests: number;
  requestedPages: number;
  /** Requested pages behind the leading run of resident ones. */
  missedPages: number;
  evictedPages: number;
  /** Weighted tokens: a token at position p counts 1 + p / 60,000. */
  missedCost: number;
  /** Time of all evictions, what the cache does for them included; 0 without `timing`. */
  evictionNanoseconds: number;
  /**
   * Time of everything that is done with the cache: every notification and decision of the policy, and the cache's own work, which
   * is the same for each policy; 0 without `timing`.
   */
  policyNanoseconds: number;
}

/** Runs of one workload on clusters of one kind. */
export interface ClusterSimulation {
  /** Runs one policy at one load. Several may run at once. */
  run(options: ClusterRunOptions, onProgress?: OnProgress): Promise<ClusterRunResult>;
  /** The rate in tasks a second at which a policy's mean completion time is 3 times the mean ideal, to 2 %. */
  saturation(options: SaturationOptions, onRun?: (runs: number) => void): Promise<number>;
}

/** The cluster: what all runs of a {@link ClusterSimulation} share. */
export interface ClusterHardware {
  workers: number;
  hardware: Hardware;
  pageTokens: number;
  /** KV room of a worker in tokens. */
  kvTokens: number;
  maxSequences: number;
  /** Token budget of a step. */
  stepTokens: number;
  /** 0: no host tier. */
  hostTierTokens: number;
  linkBytesPerSecond: number;
  /** A token of the workload stands for so many, and a step for as many steps (native/core/sim/step_time.hpp). Default 1. */
  tokenGrain?: number;
  /** Calls are admitted where the whole prompt finds room, not its first chunk: as in newer releases of vLLM. Default false. */
  wholePrompts?: boolean;
}

/** Which policy, with which seed, and what it is told. */
export interface SaturationOptions {
  policy: ClusterPolicy;
  seed: number;
  /** Default: `graph` where the workload declares graphs, else `none`. */
  hints?: ClusterHints;
  /** Parts taken out (names of `policyParts`), of those that the policy has. Default: none. */
  without?: readonly string[];
  /** Parameters of the policy by name, see `policyParameters` in `options.ts`; finite. Default: the policy's own. */
  parameters?: Readonly<Record<string, number>>;
}

/** One run of cluster mode. Exactly one of `rate` (tasks a second, open loop) and `live` (tasks, closed loop) is above 0. */
export interface ClusterRunOptions extends SaturationOptions {
  rate: number;
  live: number;
  /** A file to write the engine's journal of events to. Default: none. */
  journal?: string;
  /** Whether the result holds the completion time of each task. Default: no. */
  taskSeconds?: boolean;
}

/** What became of the leases that a policy asked for. */
export interface LeaseCounts {
  granted: number;
  refused: number;
  expired: number;
  released: number;
  revoked: number;
}

/** A distribution over tasks in seconds; percentiles by nearest rank. */
export interface Distribution {
  mean: number;
  p50: number;
  p95: number;
  p99: number;
}

/** Results of one run of cluster mode; the fields are defined with {@link ClusterResultRow}. */
export interface ClusterRunResult {
  tasksCompleted: number;
  taskCompletionSeconds: Distribution;
  taskCompletionSecondsWithoutGaps: Distribution;
  idealSeconds: number;
  prefixHitRate: number;
  /** Pages of the KV room of one worker. */
  capacityPages: number;
  requestedPages: number;
  missedPages: number;
  evictedPages: number;
  beladyRatio: number;
  costRatio: number;
  regeneratedTokens: number;
  memoryUtilization: number;
  sloAttainment: number;
  sloAttainmentPaper: number;
  throughputTokensPerSecond: number;
  outputTokens: number;
  preemptions: number;
  /** Tokens of preempted calls that are lost. */
  preemptedTokens: number;
  /** Prompt tokens computed, those computed again after a preemption included. */
  prefilledTokens: number;
  /** Prompt tokens loaded from host memory. */
  loadedTokens: number;
  /** Pages copied between workers. */
  copiedPages: number;
  /** Calls that the policy did not place when they were sent, but later. */
  heldCalls: number;
  /** Paused or waiting sessions that the policy moved to another worker. */
  steals: number;
  leases: LeaseCounts;
  /** Digest of the scheduling engine's state after the run, 16 hexadecimal digits; null where the policy does not run through it. */
  stateDigest: string | null;
  /** Bytes of the journal; 0 without one. */
  journalBytes: number;
  /** Per task of the workload its completion time in seconds; only if it was asked for. */
  taskSeconds?: Float64Array;
}

/** The native side. */
export interface SimulationBackend {
  openCache(workload: WorkloadColumns, pageTokens: number, schedule: CacheSchedule): CacheReplay;
  /** Begins to play every task alone, for its ideal completion time; the first run waits for that. */
  openCluster(workload: WorkloadColumns, cluster: ClusterHardware): ClusterSimulation;
}
