/** Words that cross the border as numbers: the place of a word in its list is its number there. */

export const placements = ['round-robin', 'affinity'] as const;
export const tiers = ['gpu', 'host', 'disk'] as const;
export const stopReasons = ['unknown', 'tool-use', 'end-turn'] as const;
export const toolClasses = ['none', 'code-execution', 'file-operation', 'web-api', 'database-query'] as const;
export const reasons = ['round-robin', 'longest-match', 'fewest-blocks', 'imbalance'] as const;

/** How workers are chosen: in turn, or by what they hold (see {@link SchedulerOptions.placement}). */
export type Placement = (typeof placements)[number];
/** Where a block lies on a worker, fastest first. */
export type Tier = (typeof tiers)[number];
/** Why an answer ended: the client now runs a tool, or a human (or nothing) comes next. */
export type StopReason = (typeof stopReasons)[number];
/** Tool classes of the SAGA paper. */
export type ToolClass = (typeof toolClasses)[number];
/**
 * Why a worker was chosen.
 *
 * - `round-robin`: its turn
 * - `longest-match`: it holds the longest leading part of the prompt
 * - `fewest-blocks`: nobody holds enough; it has the fewest blocks in use by running calls
 * - `imbalance`: open calls were too unequal; the emptier of two drawn workers
 */
export type PlacementReason = (typeof reasons)[number];
