/**
 * SAGA: a workflow-atomic scheduler for LLM inference.
 *
 * @packageDocumentation
 */
import native from './native.cjs';

export * from './errors.js';
export { BlockHasher, type BlockHasherOptions, type HashAlgorithm, type RequestKeys } from './hasher.js';
export {
  PageTable,
  type BlockEvents,
  type BlockPoolStats,
  type OpenedSequence,
  type PageTableOptions,
  type PageTableStats,
  type Plan,
  type PrefixHit,
  type SequenceState,
} from './page-table.js';
export {
  Scheduler,
  type At,
  type Call,
  type Placement,
  type PlacementReason,
  type Receipt,
  type ReplayResult,
  type SchedulerOptions,
  type SchedulerStats,
  type StopReason,
  type Tier,
  type ToolClass,
  type Worker,
  type Workflow,
} from './scheduler.js';

/** Version of the package. */
export const version: string = native.version;
