/** Sizes and counters, how good predictions were, and what tenants got. The numbers come in the order of the C interface's structs. */

import { checkNumber } from '../graph/fields.js';

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
  /** Of the policy `saga`; `undefined` with the others. */
  saga: SagaStats | undefined;
}

/** What `saga` did so far, but for the first three. */
export interface SagaStats {
  /** Calls in the fair queue, now. */
  queuedCalls: number;
  /** Agents known, now: each counts once, and once more for each call of it that overlaps another. */
  threads: number;
  /** Graphs declared, now. */
  graphs: number;
  /** Calls that were granted a worker. */
  grants: number;
  /** Calls that waited in the fair queue first. */
  queued: number;
  /** Calls that waited for their blocks after that. */
  held: number;
  /** Agents that were moved in a gap. */
  steals: number;
  /** Agents that were moved, with their blocks, when they came back. */
  pulls: number;
  /** Agents that went elsewhere without their blocks. */
  recomputes: number;
  /** Moves that came soon after the move before. */
  thrash: number;
  /** Loads from host memory ahead of a return, and those that were not needed in the end. */
  prefetches: { started: number; cancelled: number };
  /** Running calls that were asked to give way. */
  preemptions: number;
  /** Refused: by the executor, or because `maxDirectives` were under way. */
  copies: { decided: number; applied: number; refused: number; expired: number };
  leases: { granted: number; refused: number; expired: number; released: number; revoked: number };
  /** Lost: because `maxDirectives` had not been decided. */
  drops: { decided: number; lost: number };
  /** Directives that nobody read in time: {@link Scheduler.directives} was not called while `maxDirectives` came after them. */
  unreadDirectives: number;
  /** Answers of an earlier placement of their call, refused. */
  stale: number;
}

/** `numbers`: as `native.Engine.schedulerStats` writes them. */
export function sagaStats(numbers: Float64Array, unreadDirectives: number): SagaStats {
  const at = (i: number): number => numbers[i] as number;
  return {
    queuedCalls: at(0),
    threads: at(23),
    graphs: at(24),
    grants: at(1),
    queued: at(2),
    held: at(3),
    steals: at(4),
    pulls: at(5),
    recomputes: at(6),
    thrash: at(7),
    prefetches: { started: at(8), cancelled: at(9) },
    preemptions: at(10),
    copies: { decided: at(11), applied: at(12), refused: at(13), expired: at(14) },
    leases: { granted: at(15), refused: at(16), expired: at(17), released: at(18), revoked: at(19) },
    drops: { decided: at(20), lost: at(21) },
    unreadDirectives,
    stale: at(22),
  };
}

/** How good a kind of prediction was. */
export interface Reliability {
  /** Mean squared error of the probability: 0 is perfect; always saying the mean rate r gives r (1 - r). 0 where nothing is known. */
  brier: number;
  /** Ten bins by predicted probability, each a tenth wide. Where predictions are good `happened / predictions` is `predicted`. */
  bins: ReliabilityBin[];
}

/** Predictions of about the same probability. */
export interface ReliabilityBin {
  predictions: number;
  happened: number;
  /** Mean of the predicted probabilities; `NaN` where there are none. */
  predicted: number;
}

/** How good the predictions of reuse were, once it was known what came. */
export interface CalibrationReport {
  /** A next call comes at all. */
  nextCall: Reliability;
  /** It comes within the next minute. */
  withinHorizon: Reliability;
  /** Gaps whose quantiles were predicted, and how many were not longer than them. */
  gaps: { count: number; withinP50: number; withinP90: number; withinP95: number };
}

const reliabilityBins = 10;

/** `numbers`: as `native.Engine.calibration` writes them. */
export function calibrationReport(numbers: Float64Array): CalibrationReport {
  const at = (i: number): number => numbers[i] as number;
  const reliability = (brier: number, from: number): Reliability => ({
    brier,
    bins: Array.from({ length: reliabilityBins }, (_, bin) => {
      const [predictions = 0, happened = 0, sum = 0] = numbers.subarray(from + 3 * bin);
      return { predictions, happened, predicted: sum / predictions };
    }),
  });
  return {
    nextCall: reliability(at(0), 6),
    withinHorizon: reliability(at(1), 6 + 3 * reliabilityBins),
    gaps: { count: at(2), withinP50: at(3), withinP90: at(4), withinP95: at(5) },
  };
}

/** A tenant's part of the cluster. */
export interface TenantState {
  name: string;
  /** Of its fair share; counted in 1/1,024. */
  weight: number;
  /** Its calls in the fair queue. */
  waiting: number;
  /** GPU-seconds that it got so far, the memory that its calls took counted in. */
  served: number;
  /** GPU-seconds that it is behind its fair share; negative: ahead. 0 while it wants nothing. */
  lag: number;
  /** GPU-seconds still to be used up before it is charged again. */
  credit: number;
  /** Its part of the urgency of all that waits, 0 to 1. */
  share: number;
}

/** `numbers`: as `native.Engine.tenantState` writes them. */
export function tenantState(name: string, numbers: Float64Array): TenantState {
  const at = (i: number): number => numbers[i] as number;
  return {
    name,
    waiting: at(0),
    weight: at(1),
    served: at(2) / 1e6,
    lag: at(3) / 1e6,
    credit: at(4) / 1e6,
    share: at(5),
  };
}

/**
 * Jain's index of how equal shares are: 1 where all are equal, 1 / n where one has everything. 1 for no shares, or only zeros.
 *
 * @param shares at least 0 each; for tenants of unequal weight what each got over its weight
 * @example
 * ```ts
 * jainIndex(scheduler.tenants().map(({ served, weight }) => served / weight));
 * ```
 */
export function jainIndex(shares: readonly number[]): number {
  for (const share of shares) checkNumber('a share', share, 0, Number.MAX_VALUE);
  const most = Math.max(0, ...shares);
  if (most === 0) return 1;
  // Over the largest first: squares of what is left neither overflow nor vanish.
  let [sum, squares] = [0, 0];
  for (const share of shares) {
    sum += share / most;
    squares += (share / most) ** 2;
  }
  return sum ** 2 / (shares.length * squares);
}
