/** What the adapters count: plain numbers, of which a gateway makes its /metrics. Counters never go down. */
import type { ServerCondition, WorkerCondition } from './vllm-worker.js';

/** Outcomes of directives, see docs/directives.md. */
export const directiveStatuses = ['pending', 'applied', 'refused', 'expired', 'released', 'revoked'] as const;
export type DirectiveStatus = (typeof directiveStatuses)[number];

/** Of one publisher and rank. */
export interface EventMetrics {
  /** Messages that came live. */
  frames: number;
  /** Their payloads. */
  bytes: number;
  /** Batches that were applied, live or replayed. */
  applied: number;
  /** Blocks whose removal was told, but that were not known. */
  unknownRemovals: number;
  /** Skipped: had been applied. */
  duplicates: number;
  /** Sequence numbers left out. */
  gaps: number;
  /** The engine began anew. */
  restarts: number;
  /** What was known of the worker was forgotten, whatever for. */
  resets: number;
  /** Messages that are none, or whose payload is not a batch. */
  malformed: number;
  /** Live messages thrown away: no room to keep them during a replay, or cooling down after one that failed. */
  dropped: number;
  /** Replays asked for. */
  replays: number;
  replayedFrames: number;
  /** Replays that ended without all that was asked for. */
  replayFailures: number;
  /** Connections made to the publisher. */
  connections: number;
}

export interface DirectiveMetrics {
  /** Actions sent. */
  sent: number;
  /** Answers by what they say; what was never sent, or never answered, counts as `refused` and `expired`. */
  outcomes: Record<DirectiveStatus, number>;
  /** Actions whose last answer has not come. */
  open: number;
  /** Answers that were thrown away: without a right signature, or malformed. */
  unsigned: number;
  malformed: number;
  /** Requests sent to wake an idle engine. */
  wakes: number;
  /** Decided priorities, which have no effect once a call was sent. */
  priorities: number;
  /** Requests that bring blocks ahead of a return: sent, under way, answered, taken back as their call came first. */
  prefetches: number;
  prefetchesOpen: number;
  prefetchesApplied: number;
  prefetchesWithdrawn: number;
}

export interface WorkerMetrics {
  url: string;
  rank: number;
  /** Its id in the scheduler. */
  worker: number;
  condition: WorkerCondition;
  trust: number;
  /** Share of predicted tokens that were not cached, moving average. */
  drift: number;
  /** Share of cached tokens that were not predicted, moving average. */
  surprise: number;
  /** Predicted tokens that events took away while their call waited at the worker: no drift. */
  evictedWhileWaiting: number;
  /** Answers that drift and surprise are of. */
  observations: number;
  blocks: number;
  blocksInUse: number;
  runningCalls: number;
  waitingCalls: number;
  events: EventMetrics;
  directives: DirectiveMetrics;
}

export interface ServerMetrics {
  url: string;
  condition: ServerCondition;
  healthChecks: number;
  healthFailures: number;
  /** Times its workers joined the scheduler, and were lost. */
  joined: number;
  lost: number;
}

export interface WorkerSetMetrics {
  workers: WorkerMetrics[];
  servers: ServerMetrics[];
  /** Answers of the discovery, and failures. */
  discoveries: number;
  discoveryFailures: number;
}

export function noEventMetrics(): EventMetrics {
  return {
    frames: 0,
    bytes: 0,
    applied: 0,
    unknownRemovals: 0,
    duplicates: 0,
    gaps: 0,
    restarts: 0,
    resets: 0,
    malformed: 0,
    dropped: 0,
    replays: 0,
    replayedFrames: 0,
    replayFailures: 0,
    connections: 0,
  };
}

export function noDirectiveMetrics(): DirectiveMetrics {
  return {
    sent: 0,
    outcomes: { pending: 0, applied: 0, refused: 0, expired: 0, released: 0, revoked: 0 },
    open: 0,
    unsigned: 0,
    malformed: 0,
    wakes: 0,
    priorities: 0,
    prefetches: 0,
    prefetchesOpen: 0,
    prefetchesApplied: 0,
    prefetchesWithdrawn: 0,
  };
}
