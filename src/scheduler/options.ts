/** What a scheduler is made with, and what its methods are given. */
import type { SchedulerPart, SchedulingPolicy } from './vocabulary.js';

/** All bounds are fixed at construction; memory is allocated then. */
export interface SchedulerOptions {
  /** Most workers at one time, 1 to 1,024. Default 64. */
  maxWorkers?: number;
  /** Most workflows open at one time, 1 to 2^24. Default 4,096. */
  maxWorkflows?: number;
  /** Most calls open at one time, 1 to 2^24. Default 8,192. */
  maxCalls?: number;
  /** Most distinct blocks known over all workers, 1 to 2^29 - 1. Default 2^20. */
  maxBlocks?: number;
  /**
   * Most blocks of the prompts of all open calls together, the blocks of each call rounded up to whole 256. 1 to 2^32, default
   * 2^21.
   */
  maxOpenBlocks?: number;
  /** Most blocks of one prompt, 1 to 2^24. Default 2^17. */
  maxChainBlocks?: number;
  /** Tokens of a KV block, as the workers use it, 1 to 4,096. Default 16. */
  blockTokens?: number;
  /**
   * How calls are scheduled.
   *
   * - `saga` (default): the worker where a call delays itself and others least, by the terms of a price
   *   ({@link Scheduler.explain}). Where no worker has room the call waits in a queue that shares fairly between tenants; between
   *   calls it directs what workers copy, keep and drop ({@link Scheduler.directives}). See docs/scheduling.md
   * - `affinity`, after Ray Serve's PrefixCacheAffinityRouter: the worker with the longest match, at least
   *   {@link minimumMatchPercent} of the prompt; else the one with the fewest blocks in use by running calls. Ties go to the
   *   fewest open calls, then the smallest id. Where the most and the fewest open calls of two workers differ by more than
   *   {@link imbalanceCalls}, the emptier of two drawn by seed.
   * - `round-robin`: one after the other, whatever they hold
   */
  policy?: SchedulingPolicy;
  /** `affinity` only: the difference in open calls above which load decides, 0 to 2^32 - 1. Default 10. */
  imbalanceCalls?: number;
  /** `affinity` only: the smallest match that decides, in per cent of the prompt's blocks, 0 to 100. Default 10. */
  minimumMatchPercent?: number;
  /** Seed of all draws, 0 to 2^53 - 1. Default 0. */
  seed?: number;
  /**
   * Bytes of the journal buffer: 0 (default: no journal), or 4,096 to 2^40. An event larger than the buffer is refused
   * (`SAGA_ERR_FULL`): a call or a report of n blocks takes 8 n bytes and some. See {@link Scheduler.readJournal}.
   */
  journalBytes?: number;
  /**
   * The time in microseconds where no `now` is given; fractions are cut off. It must not run backwards. Default: a monotonic
   * clock that starts at 0 with the scheduler.
   */
  clock?: () => number;

  // The rest is for `saga` alone.

  /**
   * Most agents of all open workflows, with one more for each call of an agent that overlaps another one of it. 1 to 2^24,
   * default twice `maxWorkflows`.
   */
  maxThreads?: number;
  /** Most tenants over the scheduler's life, 1 to 65,536. Default 64. */
  maxTenants?: number;
  /** Most declared graphs, 0 to 4,096. Default 64. */
  maxGraphs?: number;
  /** Most leases that hold at one time, 0 to 2^20; beyond it nothing more is retained. Default 4,096. */
  maxLeases?: number;
  /** Most copies under way, drops not yet decided, and directives not yet read; 1 to 2^20. Default 4,096. */
  maxDirectives?: number;
  /** The newest receipts that {@link Scheduler.explain} knows, 0 to 2^24. Default 4,096. */
  maxReceipts?: number;
  /**
   * Parts that are switched off, to see what each is worth, or because the workers cannot do it. Without `eviction` the workers
   * evict by an order of their own, and leases keep what will be used soon. For workers that cannot copy blocks:
   * `['stealing', 'prefetch']`. Default: none.
   */
  without?: readonly SchedulerPart[];
  /** Seconds after which a copy without an outcome counts as expired, a whole number from 1 to 86,400. Default 60. */
  directiveSeconds?: number;
  /** Bytes of KV cache of one token, 1 to 2^30. Default 327,680 (a model of 70B parameters in bf16). */
  kvBytesPerToken?: number;
  /** Bytes a second between two workers, 1 to 10^13. Default 25 * 10^9. */
  linkBytesPerSecond?: number;
  /** What a step of continuous batching takes on a worker, in seconds. A factor for each worker is learned on top of it. */
  stepSeconds?: StepSeconds;
}

/** Seconds of a step: each above 0, at most 1,000. Defaults: a model of 70B parameters on four A100. */
export interface StepSeconds {
  /** A step with nothing in it. Default 0.0286. */
  base?: number;
  /** For each decoding call. Default 0.0003. */
  perCall?: number;
  /** For each token of context of each decoding call. Default 7.8e-8. */
  perContextToken?: number;
  /** For each new token of a prompt. Default 0.000178. */
  perPrefillToken?: number;
  /** For each new token of a prompt and each token before it. Default 4.7e-9. */
  perPrefillPair?: number;
}

/** When something happens. */
export interface At {
  /** Microseconds, a whole number, not before any earlier event. Default: the scheduler's clock. */
  now?: number;
}

/** Token ids: integers from 0 to 2^32 - 1. A typed array is taken as it is; a plain array is checked and copied. */
export type TokenIds = Uint32Array | readonly number[];

/** A prompt whose blocks were hashed already, by SAGA or by somebody else. */
export interface HashedPrompt {
  /** Hashes of its leading full blocks, the first block first: at most `promptTokens / blockTokens`. */
  chain: BigUint64Array;
  /** Length of the whole prompt, 1 to 2^31. */
  promptTokens: number;
}
