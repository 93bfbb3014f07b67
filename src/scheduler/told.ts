/**
 * What a client tells of a call beyond what every call has, as the numbers in which it crosses the border: one array of the
 * scheduler, written before `submitCallWith` and `finishCallWith` read it.
 */
import type { AgentGraph } from '../graph/agent-graph.js';
import { packCallHints, type CallHints } from '../graph/call-hints.js';

/** Number of a worker, a step, a prompt kind or a placement that is not told. */
export const notTold = 2 ** 32 - 1;

/** Places in the array. */
export const toldColumn = {
  agent: 0,
  promptKind: 1,
  nextTool: 2,
  finalStep: 3,
  gap: 4,
  step: 5,
  outputTokens: 6,
  placement: 7,
} as const;
export const toldColumns = 8;

const packed = new Float64Array(5);

/** Nothing is told. */
export function tellNothing(told: Float64Array): void {
  told[toldColumn.agent] = 0;
  told[toldColumn.promptKind] = notTold;
  told[toldColumn.nextTool] = 0;
  told[toldColumn.finalStep] = 0;
  told[toldColumn.gap] = Number.POSITIVE_INFINITY;
  told[toldColumn.step] = notTold;
  told[toldColumn.outputTokens] = 0;
  told[toldColumn.placement] = notTold;
}

/**
 * Tells hints, after {@link tellNothing}.
 *
 * @throws SagaArgumentError for hints that are wrong, or name a step where the workflow declares no graph
 */
export function tellHints(told: Float64Array, hints: CallHints, graph: AgentGraph | undefined): void {
  packCallHints(hints, { graph }, packed);
  const [tool = -1, seconds = NaN, final = -1, step = -1, tokens = NaN] = packed;
  told[toldColumn.nextTool] = Math.max(0, tool);
  told[toldColumn.finalStep] = final + 1;
  if (!Number.isNaN(seconds)) told[toldColumn.gap] = Math.round(seconds * 1e6);
  if (step >= 0) told[toldColumn.step] = step;
  // 0 tells nothing there; an answer that is expected to be empty is one of a token.
  if (!Number.isNaN(tokens)) told[toldColumn.outputTokens] = Math.max(1, Math.round(tokens));
}
