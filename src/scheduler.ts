/**
 * The scheduler: workers, workflows and calls, and where each call goes.
 *
 * Everything is synchronous. A decision takes microseconds, so a promise would cost more than the decision; and since nothing
 * happens between two calls of yours, the order of events is the order of your calls. The same events with the same times and
 * seed give the same decisions, byte for byte.
 *
 * Time is a whole number of microseconds from an origin of your choice, given as `now` or taken from the scheduler's clock. It
 * must not run backwards.
 *
 * Costs on the hot path: submitting, placing and finishing a call makes two objects, the {@link Call} and its {@link Receipt};
 * the hashes of its prompt go through one array that is used again and again.
 */
export type { Call } from './scheduler/call.js';
export type { ReplayResult } from './scheduler/journal.js';
export type {
  CopyDirective,
  Directive,
  DropDirective,
  PriorityDirective,
  ReleaseDirective,
  RetainDirective,
} from './scheduler/directive.js';
export type { At, HashedPrompt, SchedulerOptions, StepSeconds, TokenIds } from './scheduler/options.js';
export type { Explanation, Price, Receipt, SagaExplanation } from './scheduler/receipt.js';
export { Scheduler } from './scheduler/scheduler.js';
export {
  jainIndex,
  type CalibrationReport,
  type Reliability,
  type ReliabilityBin,
  type SagaStats,
  type SchedulerStats,
  type TenantState,
} from './scheduler/statistics.js';
export type {
  CopyReason,
  PlacementReason,
  PromptKind,
  SchedulerPart,
  SchedulingPolicy,
  StopReason,
  Tier,
  ToolClass,
} from './scheduler/vocabulary.js';
export type { Worker, WorkerForecast, WorkerState } from './scheduler/worker.js';
export type { Workflow } from './scheduler/workflow.js';
