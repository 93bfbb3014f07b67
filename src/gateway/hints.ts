/**
 * Decisions about a call that ride on its request, where the worker's connector says that it reads them (docs/directives.md):
 *
 *   the line that it takes the place of, on the same worker    its own blocks are the next victims, on arrival
 *   nothing follows                                            so are its own blocks, when it has ended; the policy is told that the session has
 *   leases keep what will be used soon                         its blocks stay from its end on, until the scheduler has decided
 *
 * A lease has the name by which the scheduler's own decision about the same call comes over the channel a moment later: that one takes its
 * place. Nothing here costs anything where the worker does not read hints.
 */
import type { RequestDirectives } from '../vllm/index.js';
import type { ModelPool, Placed } from './model-pool.js';

/** An action of an envelope. */
export interface HintAction {
  action_id: string;
  action_type: string;
  action_version: '1.0';
  payload: Record<string, unknown>;
}

/** Seconds of the wall in which the scheduler's decision has come. */
const bridgeSeconds = 5;
/** Longest lease for a gap that a client declares. */
const longestSeconds = 300;
/** Of a workflow whose leases the scheduler has not valued yet. */
const unknownValue = 0.5;

/** What rides on the request of a call, in order; empty: nothing. */
export function hintActions(pool: ModelPool, placed: Placed, takes: RequestDirectives): HintAction[] {
  const actions: HintAction[] = [];
  const add = (type: string, payload: Record<string, unknown>): void => {
    // 0 is the call itself, where both are in one envelope.
    actions.push({ action_id: String(actions.length + 1), action_type: type, action_version: '1.0', payload });
  };
  const { superseded, worker, session, request } = placed;
  const { requestId, named } = request;
  const { types } = takes;
  if (superseded?.worker === worker && types.has('kv.evict')) {
    const target = { request_id: superseded.requestId, from_block: superseded.commonBlocks };
    add('kv.evict', { target, mode: 'first' });
  }
  if (requestId === undefined) return actions;
  if (named.final) {
    if (worker.features.connector === 'policy' && types.has('saga.ended'))
      add('saga.ended', { thread: placed.thread, session_end: true, at: 'end' });
    // What began like other workflows is theirs, too. Where none was known it may be the first of many: nothing is said then.
    else if (worker.features.connector === 'leases' && types.has('kv.evict') && session.sharedBlocks > 0)
      add('kv.evict', {
        target: { request_id: requestId, from_block: session.sharedBlocks },
        mode: 'first',
        at: 'end',
      });
  } else if (pool.leases && types.has('kv.retain')) {
    const { directives } = pool.workers;
    const seconds = named.hints?.expectedSeconds;
    const declared = seconds === undefined ? 0 : Math.min(directives.wallSeconds(seconds), longestSeconds);
    session.bridges ??= new Map();
    session.bridges.set(placed.thread, { callId: placed.call.id, worker });
    add('kv.retain', {
      claim_id: directives.claimOf(placed.call.id),
      target: { request_id: requestId },
      ttl_seconds: bridgeSeconds + declared,
      value: session.leaseValue ?? unknownValue,
      at: 'end',
    });
  }
  return actions;
}
