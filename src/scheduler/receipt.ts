/** What was known when a call was placed. */
import { twoTo32 } from './checks.js';
import { reasons, type PlacementReason, type Tier } from './vocabulary.js';
import type { Worker } from './worker.js';

/** What was known when a call was placed. Counts are blocks. */
export interface Receipt {
  /** Where the call goes. */
  readonly worker: Worker;
  readonly reason: PlacementReason;
  /** Full blocks of the prompt. */
  readonly promptBlocks: number;
  /** Leading blocks on that worker: in GPU memory; in GPU or host memory; in any tier. */
  readonly matchedBlocks: Readonly<Record<Tier, number>>;
  /** The longest leading match in GPU memory on any active worker, and the smallest worker id that has it. */
  readonly longestMatch: { readonly blocks: number; readonly worker: number | undefined };
  /** Open calls of that worker before this one. */
  readonly openCalls: number;
  /** Blocks in use there by running calls, before this one. */
  readonly blocksInUse: number;
  /** Workers there were to choose from. */
  readonly activeWorkers: number;
  /** Microseconds. */
  readonly decidedAt: number;
}

/** The receipt of a decision whose words begin at `from`. */
export function receiptAt(words: Uint32Array, from: number, workers: readonly Worker[]): Receipt {
  const word = (at: number): number => words[from + at] as number;
  const longestWorker = word(10);
  return {
    worker: workers[word(1)] as Worker,
    reason: reasons[word(4)] as PlacementReason,
    promptBlocks: word(5),
    matchedBlocks: { gpu: word(6), host: word(7), disk: word(8) },
    longestMatch: { blocks: word(9), worker: longestWorker === twoTo32 - 1 ? undefined : longestWorker },
    openCalls: word(11),
    blocksInUse: word(12),
    activeWorkers: word(13),
    decidedAt: word(14) + word(15) * twoTo32,
  };
}
