/** What a scheduler is made with, and what its methods are given. */
import type { Placement } from './vocabulary.js';

/** All bounds are fixed at construction; memory is allocated then. */
export interface SchedulerOptions {
  /** Most workers over the scheduler's life (ids are not reused), 1 to 1,024. Default 64. */
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
   * How workers are chosen.
   *
   * - `affinity` (default), after Ray Serve's PrefixCacheAffinityRouter: the worker with the longest match, at least
   *   {@link minimumMatchPercent} of the prompt; else the one with the fewest blocks in use by running calls. Ties go to the
   *   fewest open calls, then the smallest id. Where the most and the fewest open calls of two workers differ by more than
   *   {@link imbalanceCalls}, the emptier of two drawn by seed.
   * - `round-robin`: one after the other, whatever they hold
   */
  placement?: Placement;
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
