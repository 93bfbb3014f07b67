/**
 * Declared graphs and hints: what a client says about a class of tasks before one runs, and about a call when it is sent.
 *
 * {@link AgentGraph} is written in code ({@link AgentGraph.define}), read from JSON ({@link AgentGraph.fromJSON}; the schema is
 * `saga-scheduler/schema/agent-graph.schema.json`) or from a LangGraph.js graph ({@link fromLangGraph}). {@link CallHints} go with single
 * calls. Nothing native is loaded. See docs/graphs.md.
 *
 * @packageDocumentation
 */
export { SagaArgumentError, SagaError, type SagaErrorCode } from '../errors.js';
export {
  AgentGraph,
  type AgentEdge,
  type AgentGraphColumns,
  type AgentGraphJSON,
  type AgentStep,
  type AgentStepJSON,
  type GraphDefinition,
  type Remaining,
  type StepDefinition,
} from './agent-graph.js';
export {
  callHintColumns,
  checkCallHints,
  packCallHints,
  type CallHints,
  type CallHintsContext,
  type CheckedCallHints,
} from './call-hints.js';
export {
  fromLangGraph,
  fromLangGraphAsync,
  type LangGraphEstimate,
  type LangGraphLike,
  type LangGraphNodeKind,
  type LangGraphOptions,
} from './langgraph.js';
export {
  classifyTool,
  defaultsOf,
  toolClasses,
  type StepDefaults,
  type ToolClass,
  type ToolClassOverrides,
} from './tool-class.js';
