/**
 * SAGA: a workflow-atomic scheduler for LLM inference.
 *
 * `Scheduler` decides where the calls of agent workflows go, `BlockHasher` names the blocks of their prompts, `PromptChain` does
 * so for a conversation that grows, `PageTable` keeps the KV blocks of a worker, `BatchFormer` forms its batches, `Lineage` tells
 * which workflow a call belongs to. What reads traces and simulates caches and clusters is `saga-scheduler/simulate`.
 *
 * @packageDocumentation
 */
export {
  SagaArgumentError,
  SagaCapacityError,
  SagaError,
  SagaJournalError,
  SagaNativeError,
  SagaStateError,
  type SagaErrorCode,
} from './errors.js';
export {
  BatchFormer,
  type Batch,
  type BatchArrays,
  type BatchCall,
  type BatchFormerOptions,
  type BatchFormerStats,
  type BatchOrder,
  type CallStatus,
  type PreemptionMode,
} from './batch.js';
export { BlockHasher, type BlockHasherOptions, type HashAlgorithm, type RequestKeys } from './hasher.js';
export {
  Lineage,
  workflowIdOf,
  type Identity,
  type LineageKind,
  type LineageOptions,
  type LineageStats,
  type RequestHeaders,
  type WorkflowId,
} from './lineage.js';
export {
  PageTable,
  type BlockEvents,
  type BlockPoolStats,
  type CallOutcome,
  type DemotionOptions,
  type EvictionStats,
  type OpenedSequence,
  type PageTableOptions,
  type PageTableStats,
  type Plan,
  type PrefixHit,
  type Regret,
  type SequenceCall,
  type SequenceOutcome,
  type SequenceState,
} from './page-table.js';
export { PromptChain, type PromptChainOptions, type PromptChainStats, type PromptChange } from './prompt-chain.js';
export {
  Scheduler,
  jainIndex,
  type At,
  type CalibrationReport,
  type Call,
  type CopyDirective,
  type CopyReason,
  type Directive,
  type DropDirective,
  type Explanation,
  type HashedPrompt,
  type PlacementReason,
  type Price,
  type PriorityDirective,
  type PromptKind,
  type Receipt,
  type ReleaseDirective,
  type Reliability,
  type ReliabilityBin,
  type ReplayResult,
  type RetainDirective,
  type SagaExplanation,
  type SagaStats,
  type SchedulerOptions,
  type SchedulerPart,
  type SchedulerStats,
  type SchedulingPolicy,
  type StepSeconds,
  type StopReason,
  type TenantState,
  type Tier,
  type TokenIds,
  type ToolClass,
  type Worker,
  type WorkerForecast,
  type WorkerState,
  type Workflow,
} from './scheduler.js';

import native from './native.cjs';

/** Version of the package. */
export const version: string = native.version;
