import { describe, expect, it } from 'vitest';
import { SagaArgumentError } from '../../src/errors.js';
import { AgentGraph } from '../../src/graph/agent-graph.js';
import { callHintColumns, checkCallHints, packCallHints, type CallHints } from '../../src/graph/call-hints.js';

const graph = AgentGraph.define({ steps: { plan: { next: 'act' }, act: {} } });

describe('hints of a call', () => {
  it('are copied, frozen, with the class of the tool', () => {
    const given = { nextTool: 'run_tests', expectedSeconds: 3, stepKind: 'act', expectedOutputTokens: 120 };
    const hints = checkCallHints(given, { graph });
    expect(hints).toEqual({ ...given, nextTool: 'code-execution' });
    expect(Object.isFrozen(hints)).toBe(true);
    given.expectedSeconds = 4;
    expect(hints.expectedSeconds).toBe(3);
    expect(checkCallHints({})).toEqual({});
    expect(checkCallHints({ nextTool: undefined, finalStep: false })).toEqual({ finalStep: false });
    expect(checkCallHints({ nextTool: 'deploy' }, { tools: { deploy: 'web-api' } })).toEqual({ nextTool: 'web-api' });
    expect(checkCallHints({ finalStep: true, nextTool: 'none', expectedSeconds: 0 })).toEqual({
      finalStep: true,
      nextTool: 'none',
      expectedSeconds: 0,
    });
  });

  it.each<[string, unknown]>([
    ['the value must be an object, got null', null],
    ['the value must be an object, got "bash"', 'bash'],
    ['tool is not known; expected nextTool, expectedSeconds, finalStep, stepKind, expectedOutputTokens', { tool: 'x' }],
    ['nextTool must be a string, got 1', { nextTool: 1 }],
    ['nextTool must have 1 to 200 characters, got 0', { nextTool: '' }],
    ['expectedSeconds must be a number from 0 to 1000000000, got -1', { expectedSeconds: -1 }],
    ['expectedSeconds must be a number from 0 to 1000000000, got null', { expectedSeconds: null }],
    ['finalStep must be true or false, got 1', { finalStep: 1 }],
    ['stepKind must be a string, got 0', { stepKind: 0 }],
    ['stepKind must be a step of the graph, got "go"', { stepKind: 'go' }],
    ['expectedOutputTokens must be a number from 0 to 2147483648, got NaN', { expectedOutputTokens: NaN }],
    ['nextTool must be left out where finalStep is true, got "bash"', { finalStep: true, nextTool: 'bash' }],
    ['expectedSeconds must be left out where finalStep is true, got 2', { finalStep: true, expectedSeconds: 2 }],
  ])('are refused: %s', (message, value) => {
    expect(() => checkCallHints(value, { graph })).toThrow(new SagaArgumentError(message));
  });

  it('are packed into numbers', () => {
    expect(callHintColumns).toEqual(['nextTool', 'expectedSeconds', 'finalStep', 'stepKind', 'expectedOutputTokens']);
    const all: CallHints = { nextTool: 'web_search', expectedSeconds: 1.5, stepKind: 'act', expectedOutputTokens: 80 };
    expect(packCallHints(all, { graph })).toEqual(Float64Array.of(3, 1.5, -1, 1, 80));
    expect(packCallHints({})).toEqual(Float64Array.of(-1, NaN, -1, -1, NaN));
    expect(packCallHints({ finalStep: true, expectedOutputTokens: 0 })).toEqual(Float64Array.of(-1, NaN, 1, -1, 0));
    expect(packCallHints({ finalStep: false, nextTool: 'none' })).toEqual(Float64Array.of(0, NaN, 0, -1, NaN));
    const out = new Float64Array(6).fill(9);
    expect(packCallHints({}, {}, out)).toBe(out);
    expect([...out]).toEqual([-1, NaN, -1, -1, NaN, 9]);
  });

  it('are not packed where they say nothing that can be said', () => {
    expect(() => packCallHints({ stepKind: 'act' })).toThrow(
      'stepKind names a step of a declared graph, and none is given',
    );
    expect(() => packCallHints({}, {}, new Float64Array(4))).toThrow(
      'out must be a Float64Array with room for 5 numbers',
    );
  });
});
