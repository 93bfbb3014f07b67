/** Words that cross the border as numbers: the place of a word in its list is its number there. */

export const policies = ['round-robin', 'affinity', 'saga'] as const;
export const tiers = ['gpu', 'host', 'disk'] as const;
export const stopReasons = ['unknown', 'tool-use', 'end-turn'] as const;
export const toolClasses = ['none', 'code-execution', 'file-operation', 'web-api', 'database-query'] as const;
export const promptKinds = ['start', 'tool', 'user'] as const;
export const reasons = [
  'round-robin',
  'longest-match',
  'fewest-blocks',
  'imbalance',
  'new',
  'holder',
  'recompute',
  'pull',
] as const;
export const copyReasons = ['pull', 'migrate', 'prefetch', 'reload'] as const;
export const outcomes = ['applied', 'refused', 'expired', 'revoked'] as const;
/** The number of each is a bit. */
export const parts = [
  'prediction',
  'eviction',
  'affinity',
  'stealing',
  'prefetch',
  'admission',
  'fairness',
  'ttl',
] as const;

/** How calls are scheduled (see {@link SchedulerOptions.policy}). */
export type SchedulingPolicy = (typeof policies)[number];
/** Where a block lies on a worker, fastest first. */
export type Tier = (typeof tiers)[number];
/** Why an answer ended: the client now runs a tool, or a human (or nothing) comes next. */
export type StopReason = (typeof stopReasons)[number];
/** Tool classes of the SAGA paper. */
export type ToolClass = (typeof toolClasses)[number];
/** What a prompt brings that the one before did not have: it is the first one, a tool's result, or a human's words. */
export type PromptKind = (typeof promptKinds)[number];
/**
 * Why a worker was chosen.
 *
 * By `round-robin`:
 * - `round-robin`: its turn
 *
 * By `affinity`:
 * - `longest-match`: it holds the longest leading part of the prompt
 * - `fewest-blocks`: nobody holds enough; it has the fewest blocks in use by running calls
 * - `imbalance`: open calls were too unequal; the emptier of two drawn workers
 *
 * By `saga`, where the cheapest alternative was:
 * - `new`: no worker holds anything worth going to
 * - `holder`: where its blocks are
 * - `recompute`: another worker, computing its prompt again
 * - `pull`: another worker, after its blocks were copied there
 */
export type PlacementReason = (typeof reasons)[number];
/**
 * Why blocks are copied.
 *
 * - `pull`: a call waits for them; it is placed when they should have arrived
 * - `migrate`: the agent is in a gap, and will go on at the other worker
 * - `prefetch`: from the worker's host memory, before the agent comes back
 * - `reload`: from the worker's host memory, for a call that waits
 */
export type CopyReason = (typeof copyReasons)[number];
/** A part of the policy `saga` that can be switched off. */
export type SchedulerPart = (typeof parts)[number];
