import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SagaArgumentError } from '../../src/errors.js';
import { AgentGraph, type AgentGraphJSON } from '../../src/graph/agent-graph.js';
import { paperWorkloads, type TaskClass } from '../../src/workload/paper-workloads.js';
import { validGraphs } from './arbitraries.js';

/** The class of tasks that most examples are about: plan once, then write and run code until it is done. */
const coding = AgentGraph.define({
  name: 'coding',
  firstPromptTokens: 3000,
  expectedSeconds: 200,
  steps: {
    plan: { outputTokens: 500, next: 'run' },
    run: {
      tool: 'code-execution',
      outputTokens: 200,
      observationTokens: 100,
      gapSeconds: 2,
      next: { run: 0.75, answer: 0.2 },
    },
    answer: { outputTokens: 400 },
  },
});

/** What the JSON document must be refused with. */
function refusal(change: (document: Record<string, unknown>) => unknown): string {
  const document = JSON.parse(JSON.stringify(coding)) as Record<string, unknown>;
  const changed = change(document) ?? document;
  try {
    AgentGraph.fromJSON(changed);
  } catch (error) {
    expect(error).toBeInstanceOf(SagaArgumentError);
    expect((error as SagaArgumentError).code).toBe('SAGA_ERR_INVALID_ARGUMENT');
    return (error as Error).message;
  }
  return 'accepted';
}

const stepsOf = (document: Record<string, unknown>): Record<string, unknown>[] =>
  document['steps'] as Record<string, unknown>[];
const edgesOf = (document: Record<string, unknown>): Record<string, unknown>[] =>
  document['edges'] as Record<string, unknown>[];

describe('a graph', () => {
  it('holds what was declared, with defaults of the tool class', () => {
    const graph = AgentGraph.fromJSON({
      steps: [{ name: 'a', tool: 'web-api' }, { name: 'b' }],
      edges: [{ from: 'a', to: 'b', probability: 0.25 }],
    });
    expect(graph.steps).toEqual([
      { name: 'a', tool: 'web-api', outputTokens: 250, observationTokens: 300, gapSeconds: 1.42 },
      { name: 'b', tool: 'none', outputTokens: 250, observationTokens: 0, gapSeconds: 0 },
    ]);
    expect(graph.edges).toEqual([{ from: 'a', to: 'b', probability: 0.25 }]);
    expect([graph.endProbability('a'), graph.endProbability('b')]).toEqual([0.75, 1]);
    expect([graph.startProbability('a'), graph.startProbability('b')]).toEqual([1, 0]);
    expect([graph.name, graph.firstPromptTokens, graph.declaredCalls, graph.expectedSeconds]).toEqual([
      undefined,
      undefined,
      undefined,
      undefined,
    ]);
  });

  it('cannot be changed', () => {
    'use strict';
    for (const change of [
      () => ((coding as { name?: string }).name = 'other'),
      () => ((coding.steps as unknown[])[0] = {}),
      () => ((coding.steps[0] as { tool: string }).tool = 'web-api'),
      () => ((coding.edges[0] as { probability: number }).probability = 0),
      () => (coding.edges as unknown[]).push({}),
      () => ((coding.expectedRemaining('plan') as { calls: number }).calls = 0),
    ]) {
      expect(change).toThrow(TypeError);
    }
    coding.toColumns().steps.fill(7);
    expect(coding.toColumns().steps[1]).toBe(500);
  });

  it('does not share its parts with the value that it came from', () => {
    const document = { steps: [{ name: 'a', outputTokens: 5 }], edges: [] };
    const graph = AgentGraph.fromJSON(document);
    (document.steps[0] as { outputTokens: number }).outputTokens = 6;
    expect(graph.steps[0]?.outputTokens).toBe(5);
  });

  it('is the same when it was written to JSON and read again', () => {
    fc.assert(
      fc.property(validGraphs, (document) => {
        const graph = AgentGraph.fromJSON(document);
        const again = AgentGraph.fromJSON(JSON.parse(JSON.stringify(graph)));
        expect(again.toJSON()).toEqual(graph.toJSON());
        expect(again.toColumns()).toEqual(graph.toColumns());
      }),
    );
  });

  it('takes names that JavaScript has a use for', () => {
    const document = JSON.parse(
      '{"steps":[{"name":"__proto__"},{"name":"constructor"}],"start":{"__proto__":0.5,"constructor":0.5}}',
    ) as unknown;
    const graph = AgentGraph.fromJSON(document);
    expect(graph.startProbability('__proto__')).toBe(0.5);
    expect(JSON.stringify(graph.toJSON().start)).toBe('{"__proto__":0.5,"constructor":0.5}');
    expect(() => graph.stepNumber('toString')).toThrow('step must be a step of the graph, got "toString"');
  });

  it('is written for the border as numbers', () => {
    expect(coding.toColumns()).toEqual({
      steps: Float64Array.of(0, 500, 0, 0, 1, 200, 100, 2, 0, 400, 0, 0),
      edges: Float64Array.of(0, 1, 1, 1, 1, 0.75, 1, 2, 0.2),
      start: Float64Array.of(1, 0, 0),
      totals: Float64Array.of(3000, coding.impliedCalls(), 200),
    });
    const sorted = AgentGraph.fromJSON({
      steps: [{ name: 'a' }, { name: 'b' }],
      edges: [
        { from: 'b', to: 'b', probability: 0.1 },
        { from: 'a', to: 'b', probability: 0.2 },
        { from: 'b', to: 'a', probability: 0.3 },
      ],
      start: { b: 1 },
    }).toColumns();
    expect(sorted.edges).toEqual(Float64Array.of(0, 1, 0.2, 1, 0, 0.3, 1, 1, 0.1));
    expect(sorted.start).toEqual(Float64Array.of(0, 1));
  });
});

describe('what is to come', () => {
  it('is the sum over the chain', () => {
    // From run: another run with 3/4, so 4 in all and 3 still to come; each leaves for the answer with 1/5 of 4.
    expect(coding.impliedCalls()).toBeCloseTo(1 + 4 + 0.8, 12);
    expect(coding.expectedCalls()).toBe(coding.impliedCalls());
    const plan = coding.expectedRemaining('plan');
    expect(plan.calls).toBeCloseTo(4.8, 12);
    expect(plan.outputTokens).toBeCloseTo(4 * 200 + 0.8 * 400, 9);
    const run = coding.expectedRemaining('run');
    expect(run.calls).toBeCloseTo(3.8, 12);
    expect(run.outputTokens).toBeCloseTo(3 * 200 + 0.8 * 400, 9);
    // A run that ends the task (1/20) is followed by no tool.
    expect(run.observationTokens).toBeCloseTo(4 * 0.95 * 100, 9);
    expect(run.gapSeconds).toBeCloseTo(4 * 0.95 * 2, 12);
    expect(coding.expectedRemaining('answer')).toEqual({
      calls: 0,
      outputTokens: 0,
      observationTokens: 0,
      gapSeconds: 0,
    });
  });

  it('counts calls as declared where that is said', () => {
    const graph = AgentGraph.fromJSON({ ...coding.toJSON(), expectedCalls: 9 });
    expect([graph.expectedCalls(), graph.impliedCalls()]).toEqual([9, coding.impliedCalls()]);
    expect(graph.toColumns().totals[1]).toBe(9);
    expect(graph.toJSON().expectedCalls).toBe(9);
  });

  it('agrees with walking the chain step by step', () => {
    fc.assert(
      fc.property(validGraphs, (document) => {
        const graph = AgentGraph.fromJSON(document);
        const walked = walk(graph);
        expect(graph.impliedCalls() / walked.calls).toBeCloseTo(1, 6);
        graph.steps.forEach((step) => {
          const from = walk(graph, step.name);
          const remaining = graph.expectedRemaining(step.name);
          expect(remaining.calls).toBeCloseTo(from.calls - 1, 6);
          expect(remaining.outputTokens).toBeCloseTo(from.outputTokens - step.outputTokens, 3);
          expect(remaining.observationTokens).toBeCloseTo(from.observationTokens, 3);
          expect(remaining.gapSeconds).toBeCloseTo(from.gapSeconds, 3);
        });
      }),
      { numRuns: 50 },
    );
  });

  it('is solved for the largest graph, also where the end is far', () => {
    const steps = Array.from({ length: 256 }, (_, at) => ({ name: `s${at}` }));
    const chain = AgentGraph.fromJSON({
      steps,
      edges: steps.slice(1).map(({ name }, at) => ({ from: `s${at}`, to: name, probability: 1 })),
    });
    expect(chain.expectedCalls()).toBe(256);
    const all = AgentGraph.fromJSON({
      steps,
      edges: steps.flatMap(({ name: from }) =>
        steps.map(({ name: to }) => ({ from, to, probability: (1 - 1e-6) / 256 })),
      ),
    });
    expect(all.expectedCalls() / 1e6).toBeCloseTo(1, 6);
  });

  it('describes the paper’s task classes by their means', () => {
    const { steps, toolMix, outputTokens } = (paperWorkloads['swe-bench'] as readonly [TaskClass])[0];
    const calls = steps.shape * steps.scale;
    const tools = ['code-execution', 'file-operation', 'web-api', 'database-query'] as const;
    const mix = Object.fromEntries(tools.map((tool, at) => [tool, toolMix[at] as number]));
    const next = Object.fromEntries(tools.map((tool) => [tool, (mix[tool] as number) * (1 - 1 / calls)]));
    const step = { outputTokens: (outputTokens.low + outputTokens.high) / 2, next };
    const graph = AgentGraph.define({
      steps: Object.fromEntries(tools.map((tool) => [tool as string, { ...step, tool }])),
      start: mix,
    });
    expect(graph.expectedCalls()).toBeCloseTo(37, 9);
    expect(graph.expectedRemaining('web-api').outputTokens).toBeCloseTo(36 * 300, 6);
  });
});

describe('a document that is wrong is refused with the path and what was expected', () => {
  it.each<[string, (document: Record<string, unknown>) => unknown]>([
    ['the value must be an object, got Array', () => []],
    ['the value must be an object, got "{}"', () => '{}'],
    ['steps is missing', () => ({})],
    ['steps must be an array, got Object', (d) => void (d['steps'] = {})],
    ['steps must have 1 to 256 entries, got 0', () => ({ steps: [] })],
    [
      'steps must have 1 to 256 entries, got 257',
      () => ({ steps: Array.from({ length: 257 }, (_, i) => ({ name: `${i}` })) }),
    ],
    ['steps[1] must be an object, got null', (d) => void ((d['steps'] as unknown[])[1] = null)],
    ['steps[1].name is missing', (d) => delete stepsOf(d)[1]?.['name'] && d],
    ['steps[0].name must have 1 to 200 characters, got 0', () => ({ steps: [{ name: '' }] })],
    ['steps[0].name must have 1 to 200 characters, got 201', () => ({ steps: [{ name: 'x'.repeat(201) }] })],
    [
      'steps[2].name must be unique, got "plan", the name of steps[0]',
      (d) => void Object.assign(stepsOf(d)[2] ?? {}, { name: 'plan' }),
    ],
    [
      'steps[1].tool must be one of none, code-execution, file-operation, web-api, database-query, got "bash"',
      (d) => void Object.assign(stepsOf(d)[1] ?? {}, { tool: 'bash' }),
    ],
    [
      'steps[1].outputTokens must be a number from 0 to 2147483648, got -1',
      (d) => void Object.assign(stepsOf(d)[1] ?? {}, { outputTokens: -1 }),
    ],
    [
      'steps[1].gapSeconds must be a number from 0 to 1000000000, got "2 s"',
      (d) => void Object.assign(stepsOf(d)[1] ?? {}, { gapSeconds: '2 s' }),
    ],
    [
      'steps[1].observationTokens must be a number from 0 to 2147483648, got NaN',
      (d) => void Object.assign(stepsOf(d)[1] ?? {}, { observationTokens: NaN }),
    ],
    [
      'steps[1].seconds is not known; expected name, tool, outputTokens, observationTokens, gapSeconds',
      (d) => void Object.assign(stepsOf(d)[1] ?? {}, { seconds: 2 }),
    ],
    [
      'edges[0].from must be a step of the graph, got "paln"',
      (d) => void Object.assign(edgesOf(d)[0] ?? {}, { from: 'paln' }),
    ],
    [
      'edges[0].to must be a step of the graph, got "__end__"',
      (d) => void Object.assign(edgesOf(d)[0] ?? {}, { to: '__end__' }),
    ],
    [
      'edges[2].probability must be a number from 0 to 1, got 1.5',
      (d) => void Object.assign(edgesOf(d)[2] ?? {}, { probability: 1.5 }),
    ],
    ['edges[0].probability is missing', (d) => delete edgesOf(d)[0]?.['probability'] && d],
    ['edges must be an array, got null', (d) => void (d['edges'] = null)],
    [
      'edges[2] must join two steps that no other edge joins, as edges[1] does already',
      (d) => void Object.assign(edgesOf(d)[2] ?? {}, { to: 'run' }),
    ],
    [
      'edges from "run" must have probabilities that sum to at most 1, got 1.25',
      (d) => void Object.assign(edgesOf(d)[2] ?? {}, { probability: 0.5 }),
    ],
    [
      'edges must leave a way to the end: from "plan", "run" a task never ends',
      (d) => {
        Object.assign(edgesOf(d)[1] ?? {}, { probability: 1 });
        Object.assign(edgesOf(d)[2] ?? {}, { probability: 0 });
      },
    ],
    [
      'start["say \\"a\\""] must be a step of the graph, got "say \\"a\\""',
      (d) => void (d['start'] = { 'say "a"': 1 }),
    ],
    ['start.run must be a number from 0 to 1, got "1"', (d) => void (d['start'] = { run: '1' })],
    ['start must sum to 1, got 0.5', (d) => void (d['start'] = { run: 0.5 })],
    ['firstPromptTokens must be a number from 1 to 2147483648, got 0', (d) => void (d['firstPromptTokens'] = 0)],
    ['expectedCalls must be a number from 1 to 1000000000, got Infinity', (d) => void (d['expectedCalls'] = Infinity)],
    ['expectedSeconds must be a number from 0 to 1000000000, got null', (d) => void (d['expectedSeconds'] = null)],
    ['name must be a string, got 5', (d) => void (d['name'] = 5)],
  ])('%s', (message, change) => {
    expect(refusal(change)).toBe(message);
  });

  it('and one that is right is not', () => {
    expect(refusal((document) => document)).toBe('accepted');
    expect(refusal((document) => void (document['$schema'] = './agent-graph.schema.json'))).toBe('accepted');
    expect(refusal((document) => void Object.assign(edgesOf(document)[2] ?? {}, { probability: 0.25 }))).toContain(
      'accepted',
    );
  });

  it('as long as rounding alone keeps a sum from 1', () => {
    const third = 1 / 3;
    const edges = ['a', 'b', 'c'].map((to) => ({ from: 'a', to, probability: third }));
    const steps = [{ name: 'a' }, { name: 'b' }, { name: 'c' }];
    expect(AgentGraph.fromJSON({ steps, edges }).endProbability('a')).toBe(0);
    const tenths = Array.from({ length: 10 }, (_, at) => [`t${at}`, 0.1]);
    const many = { steps: tenths.map(([name]) => ({ name })), start: Object.fromEntries(tenths) as object };
    expect(AgentGraph.fromJSON(many).expectedCalls()).toBeCloseTo(1, 12);
  });
});

describe('define', () => {
  it('writes the same graph as JSON does', () => {
    const document: AgentGraphJSON = {
      name: 'coding',
      firstPromptTokens: 3000,
      expectedSeconds: 200,
      steps: [
        { name: 'plan', outputTokens: 500 },
        { name: 'run', tool: 'code-execution', outputTokens: 200, observationTokens: 100, gapSeconds: 2 },
        { name: 'answer', outputTokens: 400 },
      ],
      edges: [
        { from: 'plan', to: 'run', probability: 1 },
        { from: 'run', to: 'run', probability: 0.75 },
        { from: 'run', to: 'answer', probability: 0.2 },
      ],
    };
    expect(AgentGraph.fromJSON(document).toJSON()).toEqual(coding.toJSON());
  });

  it('starts where it is told', () => {
    const graph = AgentGraph.define({ steps: { a: {}, b: {} }, start: 'b' });
    expect([graph.startProbability('a'), graph.startProbability('b')]).toEqual([0, 1]);
  });

  it.each<[string, unknown]>([
    ['the value must be an object, got undefined', undefined],
    ['steps must be an object, got Array', { steps: [] }],
    ['steps must have 1 to 256 entries, got 0', { steps: {} }],
    ['steps.a must be an object, got 5', { steps: { a: 5 } }],
    [
      'steps.a.tool must be one of none, code-execution, file-operation, web-api, database-query, got "bash"',
      { steps: { a: { tool: 'bash' } } },
    ],
    ['steps["a b"].gapSeconds must be a number from 0 to 1000000000, got -1', { steps: { 'a b': { gapSeconds: -1 } } }],
    ['steps.a.next must be a step of the graph, got "c"', { steps: { a: { next: 'c' } } }],
    ['steps.a.next.c must be a step of the graph, got "c"', { steps: { a: { next: { c: 1 } } } }],
    ['steps.a.next.a must be a number from 0 to 1, got 2', { steps: { a: { next: { a: 2 } } } }],
    ["steps.a.name is not known; the step's key is its name", { steps: { a: { name: 'b' } } }],
    [
      'steps.a.then is not known; expected tool, outputTokens, observationTokens, gapSeconds',
      { steps: { a: { then: 'b' } } },
    ],
    ['steps["7"] must not be a whole number: give it a name with a letter', { steps: { 7: {} } }],
    ['edges is not known; expected next in each step', { steps: { a: {} }, edges: [] }],
    ['start must be a step of the graph, got "b"', { steps: { a: {} }, start: 'b' }],
  ])('%s', (message, definition) => {
    expect(() => AgentGraph.define(definition as never)).toThrow(new SagaArgumentError(message));
  });

  it('knows the names of the steps as types', () => {
    // @ts-expect-error no such step
    expect(() => AgentGraph.define({ steps: { a: { next: 'b' } } })).toThrow(SagaArgumentError);
    // @ts-expect-error no such step
    expect(() => AgentGraph.define({ steps: { a: {} }, start: { c: 1 } })).toThrow(SagaArgumentError);
    // @ts-expect-error no such class
    expect(() => AgentGraph.define({ steps: { a: { tool: 'bash' } } })).toThrow(SagaArgumentError);
  });
});

/** Sums over the first steps of the chain, until less than 10^-12 of it is left. */
function walk(
  graph: AgentGraph,
  from?: string,
): Record<'calls' | 'outputTokens' | 'observationTokens' | 'gapSeconds', number> {
  const sums = { calls: 0, outputTokens: 0, observationTokens: 0, gapSeconds: 0 };
  let now = new Map(
    graph.steps.map(({ name }) => [name, from === undefined ? graph.startProbability(name) : Number(name === from)]),
  );
  for (let left = 1; left > 1e-12;) {
    const next = new Map<string, number>();
    for (const step of graph.steps) {
      const share = now.get(step.name) ?? 0;
      sums.calls += share;
      sums.outputTokens += share * step.outputTokens;
      for (const edge of graph.edges.filter((one) => one.from === step.name)) {
        next.set(edge.to, (next.get(edge.to) ?? 0) + share * edge.probability);
        sums.observationTokens += share * edge.probability * step.observationTokens;
        sums.gapSeconds += share * edge.probability * step.gapSeconds;
      }
    }
    now = next;
    left = [...next.values()].reduce((sum, share) => sum + share, 0);
  }
  return sums;
}
