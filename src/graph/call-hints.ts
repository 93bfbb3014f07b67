/**
 * Hints of one call: what a client knows about a call when it sends it. They go before what the declared graph says about its
 * kind, and what a scheduler learns from what happens.
 */
import { describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';
import type { AgentGraph } from './agent-graph.js';
import { mostSeconds, mostTokens } from './agent-graph.js';
import { checkFields, checkName, checkNumber } from './fields.js';
import { classifyTool, toolClasses, type ToolClass, type ToolClassOverrides } from './tool-class.js';

/** What a client knows about a call; every field may be left out. */
export interface CallHints {
  /** The tool that the answer will call: a class, or a tool's name, which {@link classifyTool} maps to one. */
  readonly nextTool?: ToolClass | (string & {});
  /** Seconds from the answer to the next call of the task: how long the tool, or the human, will take. 0 to 10^9. */
  readonly expectedSeconds?: number;
  /** Whether the task ends with this call. */
  readonly finalStep?: boolean;
  /** The kind of step: the name of a step of the task's declared graph. */
  readonly stepKind?: string;
  /** Length of the answer in tokens, 0 to 2^31. */
  readonly expectedOutputTokens?: number;
}

/** Hints that were checked: the tool is a class. */
export interface CheckedCallHints extends CallHints {
  readonly nextTool?: ToolClass;
}

/** What {@link checkCallHints} checks against. */
export interface CallHintsContext {
  /** The declared graph of the task: then `stepKind` must be one of its steps. */
  graph?: AgentGraph | undefined;
  /** Classes of tools by name; they go before {@link classifyTool}'s words. */
  tools?: ToolClassOverrides | undefined;
}

const hintFields = ['nextTool', 'expectedSeconds', 'finalStep', 'stepKind', 'expectedOutputTokens'] as const;

/** Numbers of {@link packCallHints} in their order. */
export const callHintColumns: typeof hintFields = hintFields;

/**
 * Checks hints that came from outside.
 *
 * @returns a frozen copy with the class of the tool for its name
 * @throws SagaArgumentError that names the field: not known, of another type, out of range, no such step, or a final step with
 * a tool or a gap behind it
 */
export function checkCallHints(value: unknown, context: CallHintsContext = {}): CheckedCallHints {
  const { nextTool, expectedSeconds, finalStep, stepKind, expectedOutputTokens } = checkFields(
    '',
    value,
    hintFields,
    [],
  );
  const hints: { -readonly [Field in keyof CheckedCallHints]: CheckedCallHints[Field] } = {};
  if (nextTool !== undefined) hints.nextTool = classifyTool(checkName('nextTool', nextTool), context.tools);
  if (expectedSeconds !== undefined)
    hints.expectedSeconds = checkNumber('expectedSeconds', expectedSeconds, 0, mostSeconds);
  if (finalStep !== undefined) {
    if (typeof finalStep !== 'boolean')
      throw new SagaArgumentError(`finalStep must be true or false, got ${describe(finalStep)}`);
    hints.finalStep = finalStep;
  }
  if (stepKind !== undefined) {
    hints.stepKind = checkName('stepKind', stepKind);
    context.graph?.stepNumber(hints.stepKind, 'stepKind');
  }
  if (expectedOutputTokens !== undefined) {
    hints.expectedOutputTokens = checkNumber('expectedOutputTokens', expectedOutputTokens, 0, mostTokens);
  }
  if (hints.finalStep && hints.nextTool !== undefined && hints.nextTool !== 'none')
    throw new SagaArgumentError(`nextTool must be left out where finalStep is true, got ${describe(nextTool)}`);
  if (hints.finalStep && hints.expectedSeconds !== undefined && hints.expectedSeconds > 0)
    throw new SagaArgumentError(
      `expectedSeconds must be left out where finalStep is true, got ${hints.expectedSeconds}`,
    );
  return Object.freeze(hints);
}

/**
 * Hints as numbers for the border, one for each of {@link callHintColumns}: the class's number (-1: not told), seconds (NaN), 1
 * or 0 (-1), the step's number in the graph (-1), tokens (NaN).
 *
 * @param hints checked here: see {@link checkCallHints}
 * @param context its graph is needed where `stepKind` is told
 * @param out receives the five numbers. Default: a new array
 */
export function packCallHints(hints: CallHints, context: CallHintsContext = {}, out?: Float64Array): Float64Array {
  const checked = checkCallHints(hints, context);
  const packed = out ?? new Float64Array(hintFields.length);
  if (!(packed instanceof Float64Array) || packed.length < hintFields.length) {
    throw new SagaArgumentError(`out must be a Float64Array with room for ${hintFields.length} numbers`);
  }
  if (checked.stepKind !== undefined && !context.graph)
    throw new SagaArgumentError('stepKind names a step of a declared graph, and none is given');
  packed[0] = checked.nextTool === undefined ? -1 : toolClasses.indexOf(checked.nextTool);
  packed[1] = checked.expectedSeconds ?? Number.NaN;
  packed[2] = checked.finalStep === undefined ? -1 : Number(checked.finalStep);
  packed[3] = checked.stepKind === undefined ? -1 : (context.graph as AgentGraph).stepNumber(checked.stepKind);
  packed[4] = checked.expectedOutputTokens ?? Number.NaN;
  return packed;
}
