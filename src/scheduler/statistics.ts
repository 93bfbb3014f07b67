/** Sizes and counters. */

/** Present sizes, and counters since construction. */
export interface SchedulerStats {
  /** Active workers. */
  workers: number;
  /** Open workflows. */
  workflows: number;
  /** Calls that are waiting, placed or running. */
  openCalls: number;
  /** Those of them that wait to be placed. */
  waitingCalls: number;
  /** Placements so far; a call that is placed again counts again. */
  placedCalls: number;
  finishedCalls: number;
  cancelledCalls: number;
  /** Calls that lost their worker and went back to waiting. */
  replacedCalls: number;
  /** Full blocks of the prompts of all placements. */
  promptBlocks: number;
  /** How many of them the chosen worker held in GPU memory. */
  matchedBlocks: number;
  /** (worker, tier, block) triples known. */
  holderBlocks: number;
  /** Bytes of the journal so far, read or not. */
  journalBytes: number;
}
