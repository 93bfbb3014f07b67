/** Graphs of the real LangGraph.js, and drawings as other versions of it and LangGraph for Python give them. */
import { tool } from '@langchain/core/tools';
import { FakeStreamingChatModel } from '@langchain/core/utils/testing';
import { Annotation, Command, END, MessagesAnnotation, Send, START, StateGraph } from '@langchain/langgraph';
import { createReactAgent, ToolNode } from '@langchain/langgraph/prebuilt';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SagaArgumentError } from '../../src/errors.js';
import type { AgentGraph } from '../../src/graph/agent-graph.js';
import { fromLangGraph, fromLangGraphAsync, type LangGraphOptions } from '../../src/graph/langgraph.js';

class Model extends FakeStreamingChatModel {
  override bindTools(): this {
    return this;
  }
}
const llm = new Model({});
const toolNamed = (name: string) =>
  tool(() => 'done', { name, description: name, schema: { type: 'object', properties: {} } });
const reactAgent = (...tools: string[]): object => createReactAgent({ llm, tools: tools.map(toolNamed) });

const State = Annotation.Root({ notes: Annotation<string[]>({ reducer: (a, b) => a.concat(b), default: () => [] }) });
const work = (): object => ({ notes: ['done'] });

/** Steps by name as [tool, start, end], and edges as `from -> to`. */
function shapeOf(graph: AgentGraph): { steps: Record<string, unknown[]>; edges: Record<string, number> } {
  const rounded = (share: number): number => Math.round(share * 1e9) / 1e9;
  return {
    steps: Object.fromEntries(
      graph.steps.map(({ name, tool }) => [
        name,
        [tool, rounded(graph.startProbability(name)), rounded(graph.endProbability(name))],
      ]),
    ),
    edges: Object.fromEntries(
      graph.edges.map(({ from, to, probability }) => [`${from} -> ${to}`, rounded(probability)]),
    ),
  };
}

describe('a ReAct agent of LangGraph.js', () => {
  it('is one step that calls its tool and comes back or ends', () => {
    const graph = fromLangGraph(reactAgent('web_search', 'fetch_url'), { name: 'search', firstPromptTokens: 900 });
    expect(shapeOf(graph)).toEqual({
      steps: { agent: ['web-api', 1, 0.5] },
      edges: { 'agent -> agent': 0.5 },
    });
    expect(graph.steps[0]).toEqual({
      name: 'agent',
      tool: 'web-api',
      outputTokens: 250,
      observationTokens: 300,
      gapSeconds: 1.42,
    });
    expect([graph.name, graph.firstPromptTokens, graph.expectedCalls()]).toEqual(['search', 900, 2]);
  });

  it('takes probabilities and estimates that are told', () => {
    const graph = fromLangGraph(reactAgent('web_search'), {
      probabilities: { agent: { tools: 0.9 } },
      estimates: { agent: { outputTokens: 120 }, tools: { observationTokens: 800 }, web_search: { gapSeconds: 3 } },
    });
    expect(graph.steps).toEqual([
      { name: 'agent', tool: 'web-api', outputTokens: 120, observationTokens: 800, gapSeconds: 3 },
    ]);
    expect(graph.expectedCalls()).toBeCloseTo(10, 9);
    const same = fromLangGraph(reactAgent('web_search'), { probabilities: { agent: { __end__: 0.1 } } });
    expect(same.expectedCalls()).toBeCloseTo(10, 9);
  });

  it('takes the mean over tools of one class', () => {
    const estimates = { web_search: { gapSeconds: 3 }, fetch_url: { gapSeconds: 1, observationTokens: 500 } };
    const [step] = fromLangGraph(reactAgent('web_search', 'fetch_url'), { estimates }).steps;
    expect(step).toMatchObject({ gapSeconds: 2, observationTokens: 400 });
  });

  it('is one step a class where its tools are of several', () => {
    const graph = fromLangGraph(reactAgent('web_search', 'read_file', 'write_file'), {
      probabilities: { agent: { tools: 0.75 } },
    });
    expect(shapeOf(graph)).toEqual({
      steps: {
        'agent (file-operation)': ['file-operation', 0.666666667, 0.25],
        'agent (web-api)': ['web-api', 0.333333333, 0.25],
      },
      edges: {
        'agent (file-operation) -> agent (file-operation)': 0.5,
        'agent (file-operation) -> agent (web-api)': 0.25,
        'agent (web-api) -> agent (file-operation)': 0.5,
        'agent (web-api) -> agent (web-api)': 0.25,
      },
    });
    // Splitting does not change how many calls there are.
    expect(graph.expectedCalls()).toBeCloseTo(4, 9);
  });

  it('has the classes that are told, for a tool or for the node', () => {
    const agent = reactAgent('multiply', 'web_search');
    expect(fromLangGraph(agent).steps.map((step) => [step.tool, step.observationTokens, step.gapSeconds])).toEqual([
      ['none', 300, 0.6],
      ['web-api', 300, 1.42],
    ]);
    const toolsOf = (tools: LangGraphOptions['tools']): string[] =>
      fromLangGraph(agent, tools ? { tools } : {}).steps.map((step) => `${step.name}: ${step.tool}`);
    expect(toolsOf({ multiply: 'web-api' })).toEqual(['agent: web-api']);
    expect(toolsOf({ tools: 'database-query' })).toEqual(['agent: database-query']);
  });

  it('is passed through its hooks, and ends with the step that gives structure', () => {
    const agent = createReactAgent({
      llm,
      tools: [toolNamed('bash')],
      preModelHook: (state) => state,
      postModelHook: (state) => state,
      responseFormat: { type: 'object', properties: {} },
    });
    // Of the three ways on from the hook behind the model, one leads back to the model without a tool.
    expect(shapeOf(fromLangGraph(agent))).toEqual({
      steps: {
        'agent (none)': ['none', 0.666666667, 0],
        'agent (code-execution)': ['code-execution', 0.333333333, 0],
        generate_structured_response: ['none', 0, 1],
      },
      edges: {
        'agent (none) -> agent (none)': 0.333333333,
        'agent (none) -> agent (code-execution)': 0.166666667,
        'agent (none) -> generate_structured_response': 0.5,
        'agent (code-execution) -> agent (none)': 0.666666667,
        'agent (code-execution) -> agent (code-execution)': 0.333333333,
      },
    });
    const told = fromLangGraph(agent, {
      probabilities: { post_model_hook: { pre_model_hook: 0, tools: 0.8, generate_structured_response: 0.2 } },
    });
    expect(told.expectedCalls()).toBeCloseTo(5 + 1, 9);
  });

  it('is the same written by hand, with or without a list of targets', () => {
    const tools = new ToolNode([toolNamed('run_sql')]);
    const build = (...targets: [] | [('tools' | typeof END)[]]): object =>
      new StateGraph(MessagesAnnotation)
        .addNode('agent', () => ({ messages: [] }))
        .addNode('tools', tools)
        .addEdge(START, 'agent')
        .addEdge('tools', 'agent')
        .addConditionalEdges('agent', () => END, ...targets)
        .compile();
    const expected = { steps: { agent: ['database-query', 1, 0.5] }, edges: { 'agent -> agent': 0.5 } };
    expect(shapeOf(fromLangGraph(build()))).toEqual(expected);
    expect(shapeOf(fromLangGraph(build(['tools', END])))).toEqual(expected);
  });
});

describe('other graphs of LangGraph.js', () => {
  const branching = new StateGraph(State)
    .addNode('triage', work)
    .addNode('refund', work)
    .addNode('repair', work)
    .addNode('review', work)
    .addEdge(START, 'triage')
    .addConditionalEdges('triage', () => 'refund', { money: 'refund', goods: 'repair', both: 'repair', spam: END })
    .addEdge('refund', 'review')
    .addEdge('repair', 'review')
    .addConditionalEdges('review', () => END, ['triage', END])
    .compile();

  it('share evenly among the targets of a branch, whatever the labels', () => {
    expect(shapeOf(fromLangGraph(branching))).toEqual({
      steps: {
        triage: ['none', 1, 0.333333333],
        refund: ['none', 0, 0],
        repair: ['none', 0, 0],
        review: ['none', 0, 0.5],
      },
      edges: {
        'triage -> refund': 0.333333333,
        'triage -> repair': 0.333333333,
        'refund -> review': 1,
        'repair -> review': 1,
        'review -> triage': 0.5,
      },
    });
    const told = fromLangGraph(branching, { probabilities: { triage: { refund: 0.7, __end__: 0 } } });
    expect(shapeOf(told).edges).toMatchObject({ 'triage -> refund': 0.7, 'triage -> repair': 0.3 });
    expect(told.endProbability('triage')).toBe(0);
  });

  it('may start with a branch', () => {
    const graph = new StateGraph(State)
      .addNode('short', work)
      .addNode('long', work)
      .addConditionalEdges(START, () => 'short', ['short', 'long', END])
      .addEdge('long', 'short')
      .addEdge('short', END)
      .compile();
    expect(shapeOf(fromLangGraph(graph))).toEqual({
      steps: { short: ['none', 0.5, 1], long: ['none', 0.5, 0] },
      edges: { 'long -> short': 1 },
    });
  });

  it('have nodes in a row that run side by side and meet', () => {
    const graph = new StateGraph(State)
      .addNode('plan', work)
      .addNode('left', work)
      .addNode('middle', work)
      .addNode('right', work)
      .addNode('join', work)
      .addEdge(START, 'plan')
      .addEdge('plan', 'left')
      .addEdge('plan', 'middle')
      .addEdge('plan', 'right')
      .addEdge(['left', 'middle', 'right'], 'join')
      .addEdge('join', END)
      .compile();
    expect(shapeOf(fromLangGraph(graph)).edges).toEqual({
      'plan -> left': 1,
      'left -> middle': 1,
      'middle -> right': 1,
      'right -> join': 1,
    });
    expect(fromLangGraph(graph).expectedCalls()).toBe(5);
  });

  it('take branches of several nodes that run side by side as alternatives', () => {
    const graph = new StateGraph(State)
      .addNode('plan', work)
      .addNode('left', work)
      .addNode('deeper', work)
      .addNode('right', work)
      .addEdge(START, 'plan')
      .addEdge('plan', 'left')
      .addEdge('plan', 'right')
      .addEdge('left', 'deeper')
      .addEdge('deeper', END)
      .addEdge('right', END)
      .compile();
    expect(shapeOf(fromLangGraph(graph)).edges).toEqual({
      'plan -> left': 0.5,
      'plan -> right': 0.5,
      'left -> deeper': 1,
    });
    expect(fromLangGraph(graph, { expectedCalls: 4 }).expectedCalls()).toBe(4);
  });

  it('map and reduce: the number of copies is told as a loop', () => {
    const graph = new StateGraph(State)
      .addNode('plan', work)
      .addNode('work', work)
      .addNode('reduce', work)
      .addEdge(START, 'plan')
      .addConditionalEdges('plan', () => [new Send('work', {}), new Send('work', {})], ['work'])
      .addEdge('work', 'reduce')
      .addEdge('reduce', END)
      .compile();
    expect(shapeOf(fromLangGraph(graph)).edges).toEqual({ 'plan -> work': 1, 'work -> reduce': 1 });
    const five = fromLangGraph(graph, { probabilities: { work: { work: 0.8 } } });
    expect(shapeOf(five).edges).toEqual({ 'plan -> work': 1, 'work -> work': 0.8, 'work -> reduce': 0.2 });
    expect(five.expectedCalls()).toBeCloseTo(1 + 5 + 1, 9);
  });

  it('go where their commands go', () => {
    const graph = new StateGraph(State)
      .addNode('writer', () => new Command({ goto: 'critic' }), { ends: ['critic', END] })
      .addNode('critic', () => new Command({ goto: 'writer' }), { ends: ['writer'] })
      .addEdge(START, 'writer')
      .compile();
    expect(shapeOf(fromLangGraph(graph))).toEqual({
      steps: { writer: ['none', 1, 0.5], critic: ['none', 0, 0] },
      edges: { 'writer -> critic': 0.5, 'critic -> writer': 1 },
    });
  });

  it('may have work before the first call, which adds nothing', () => {
    const graph = new StateGraph(State)
      .addNode('retrieve', work)
      .addNode('rewrite', work)
      .addNode('answer', work)
      .addEdge(START, 'retrieve')
      .addConditionalEdges('retrieve', () => 'answer', ['answer', 'rewrite'])
      .addEdge('rewrite', 'retrieve')
      .addEdge('answer', END)
      .compile();
    const graded = fromLangGraph(graph, {
      tools: { retrieve: 'database-query' },
      probabilities: { retrieve: { answer: 0.8 } },
      estimates: { retrieve: { observationTokens: 2000 } },
    });
    expect(shapeOf(graded)).toEqual({
      steps: { rewrite: ['database-query', 0.2, 0], answer: ['none', 0.8, 1] },
      edges: { 'rewrite -> rewrite': 0.2, 'rewrite -> answer': 0.8 },
    });
    expect(graded.steps[0]?.observationTokens).toBe(2000);
  });

  it('add up tools in a row', () => {
    const graph = new StateGraph(State)
      .addNode('agent', work)
      .addNode('fetch', work)
      .addNode('index', work)
      .addEdge(START, 'agent')
      .addConditionalEdges('agent', () => END, ['fetch', END])
      .addEdge('fetch', 'index')
      .addEdge('index', 'agent')
      .compile();
    const [step] = fromLangGraph(graph, {
      tools: { fetch: 'web-api', index: 'database-query' },
      estimates: { fetch: { gapSeconds: 2, observationTokens: 10 }, index: { gapSeconds: 0.5, observationTokens: 5 } },
    }).steps;
    expect(step).toMatchObject({ tool: 'web-api', gapSeconds: 2.5, observationTokens: 15 });
  });
});

describe('subgraphs', () => {
  const nested = (): object =>
    new StateGraph(MessagesAnnotation)
      .addNode('first', reactAgent('bash') as never)
      .addNode('second', reactAgent('web_search') as never)
      .addNode('last', () => ({ messages: [] }))
      .addEdge(START, 'first')
      .addEdge('first', 'second')
      .addConditionalEdges('second', () => 'last', ['last', 'first'])
      .addEdge('last', END)
      .compile();

  it('are opened', () => {
    const graph = fromLangGraph(nested(), { probabilities: { 'first:agent': { 'first:__end__': 0.1 } } });
    // An agent with a tool that may also go on without one is two steps.
    expect(graph.steps.map((step) => step.name)).toEqual([
      'first:agent (none)',
      'first:agent (code-execution)',
      'second:agent (none)',
      'second:agent (web-api)',
      'last',
    ]);
    // Ten calls of the first agent, two of the second, in the mean two times, and the last.
    expect(graph.expectedCalls()).toBeCloseTo(2 * (10 + 2) + 1, 9);
  });

  it('end where their last node leads nowhere, and the task goes on', () => {
    const inner = new StateGraph(State)
      .addNode('a', () => new Command({ goto: 'b' }), { ends: ['b'] })
      .addNode('b', work)
      .addEdge(START, 'a')
      .compile();
    const graph = new StateGraph(State)
      .addNode('inner', inner)
      .addNode('after', work)
      .addEdge(START, 'inner')
      .addEdge('inner', 'after')
      .addEdge('after', END)
      .compile();
    expect(shapeOf(fromLangGraph(graph)).edges).toEqual({ 'inner:a -> inner:b': 1, 'inner:b -> after': 1 });
  });

  it('are opened as deep as they lie', () => {
    const wrap = (name: string, inner: object): object =>
      new StateGraph(MessagesAnnotation)
        .addNode(name, inner as never)
        .addEdge(START, name as never)
        .addEdge(name as never, END)
        .compile();
    const graph = fromLangGraph(wrap('outer', wrap('inner', reactAgent('bash'))));
    expect(shapeOf(graph)).toEqual({
      steps: { 'outer:inner:agent': ['code-execution', 1, 0.5] },
      edges: { 'outer:inner:agent -> outer:inner:agent': 0.5 },
    });
    const drawn = (wrap('outer', reactAgent('bash')) as { getGraph(config: object): object }).getGraph({ xray: true });
    expect(shapeOf(fromLangGraph(drawn)).steps).toEqual({ 'outer:agent': ['code-execution', 1, 0.5] });
  });
});

describe('drawings', () => {
  const python = {
    nodes: [
      {
        id: '__start__',
        type: 'runnable',
        data: { id: ['langgraph', '_runnable', 'RunnableCallable'], name: '__start__' },
      },
      { id: 'model', type: 'runnable', data: { id: ['langgraph', '_runnable', 'RunnableCallable'], name: 'model' } },
      { id: 'work', type: 'runnable', data: { id: ['langgraph', 'prebuilt', 'tool_node', 'ToolNode'], name: 'work' } },
      { id: '__end__' },
    ],
    edges: [
      { source: '__start__', target: 'model' },
      { source: 'model', target: 'work', conditional: true },
      { source: 'model', target: '__end__', conditional: true },
      { source: 'work', target: 'model' },
    ],
  };

  it('do as JSON of LangGraph for Python and of servers', () => {
    const graph = fromLangGraph(python, { tools: { work: 'code-execution' } });
    expect(shapeOf(graph)).toEqual({ steps: { model: ['code-execution', 1, 0.5] }, edges: { 'model -> model': 0.5 } });
    const agent = reactAgent('bash') as { getGraph(): { toJSON(): object } };
    expect(fromLangGraph(agent.getGraph().toJSON()).toJSON()).toEqual(fromLangGraph(agent).toJSON());
  });

  it('may come later', async () => {
    const later = { getGraphAsync: () => Promise.resolve(python) };
    expect((await fromLangGraphAsync(later)).steps.map((step) => step.name)).toEqual(['model']);
    expect((await fromLangGraphAsync(reactAgent('bash'))).toJSON()).toEqual(fromLangGraph(reactAgent('bash')).toJSON());
    expect((await fromLangGraphAsync(python)).steps.length).toBe(1);
    const failing = { getGraph: () => Promise.reject(new Error('later')) };
    expect(() => fromLangGraph(failing)).toThrow('the graph draws itself asynchronously: use fromLangGraphAsync');
  });

  it('of agents of the package langchain lie in their graph, with hooks around the model', () => {
    const edges = [
      ['__start__', 'log.before_agent'],
      ['log.before_agent', 'log.before_model'],
      ['log.before_model', 'model_request'],
      ['model_request', 'log.after_model'],
      ['tools', 'log.before_model'],
    ].map(([source, target]) => ({ source, target, conditional: false }));
    const ways = ['tools', '__end__'].map((target) => ({ source: 'log.after_model', target, conditional: true }));
    const ids = ['__start__', 'log.before_agent', 'log.before_model', 'log.after_model', 'model_request', '__end__'];
    const nodes = Object.fromEntries(ids.map((id) => [id, { id, name: id, data: {} }]));
    const drawing = {
      nodes: { ...nodes, tools: { id: 'tools', name: 'tools', data: {}, metadata: { __tools: ['bash'] } } },
      edges: [...edges, ...ways],
    };
    expect(shapeOf(fromLangGraph({ graph: { getGraph: () => drawing } }))).toEqual({
      steps: { model_request: ['code-execution', 1, 0.5] },
      edges: { 'model_request -> model_request': 0.5 },
    });
  });
});

describe('what cannot be imported is refused', () => {
  const agent = reactAgent('bash');
  const loop = new StateGraph(State)
    .addNode('a', work)
    .addNode('b', work)
    .addEdge(START, 'a')
    .addEdge('a', 'b')
    .addConditionalEdges('b', () => 'a', ['a'])
    .compile();

  it.each<[string, unknown, unknown?]>([
    ['the graph must be an object, got undefined', undefined],
    ['the graph must be a compiled LangGraph.js graph (getGraph) or its drawing (nodes and edges), got Object', {}],
    ['the graph must be compiled: call compile()', new StateGraph(State).addNode('a', work).addEdge(START, 'a')],
    ['the drawing must be an object, got 5', { getGraph: () => 5 }],
    ['nodes must be an object, got 5', { nodes: 5, edges: [] }],
    ['nodes["a"] must be an object, got null', { nodes: { a: null }, edges: [] }],
    ['nodes["a"].id must be unique, got "a"', { nodes: [{ id: 'a' }, { id: 'a' }], edges: [] }],
    ['nodes[null].id must be a string that is not empty, got null', { nodes: [{ id: null }], edges: [] }],
    ['edges must be an array, got Object', { nodes: {}, edges: {} }],
    [
      'edges[0].target must be a node of the drawing, got "b"',
      { nodes: [{ id: 'a' }], edges: [{ source: 'a', target: 'b' }] },
    ],
    ['the drawing must have a node __start__', { nodes: [{ id: 'a' }], edges: [] }],
    [
      'the drawing must have a node that is a model call, got none',
      { nodes: [{ id: '__start__' }, { id: 'tools' }], edges: [{ source: '__start__', target: 'tools' }] },
    ],
    [
      'edges must leave a way to the end: from "a", "b" a task never ends; tell the probability of __end__ in probabilities',
      loop,
    ],
    [
      'the drawing must not have a cycle without a model call, got a -> b -> a',
      loop,
      { kinds: { a: 'tool', b: 'pass' } },
    ],
    ['options must be an object, got null', agent, null],
    [
      'options.tool is not known; expected tools, kinds, probabilities, estimates, name, firstPromptTokens, expectedCalls, expectedSeconds',
      agent,
      { tool: {} },
    ],
    [
      'tools.shell must name a tool or a node of the graph; its nodes are __start__, tools, agent, __end__',
      agent,
      { tools: { shell: 'code-execution' } },
    ],
    [
      'tools.bash must be one of none, code-execution, file-operation, web-api, database-query, got "shell"',
      agent,
      { tools: { bash: 'shell' } },
    ],
    [
      'kinds.agents must name a node of the graph; its nodes are __start__, tools, agent, __end__',
      agent,
      { kinds: { agents: 'call' } },
    ],
    ['kinds.agent must be one of call, tool, pass, got "llm"', agent, { kinds: { agent: 'llm' } }],
    [
      'probabilities.agent.end must name a node of the graph; its nodes are __start__, tools, agent, __end__',
      agent,
      { probabilities: { agent: { end: 0.1 } } },
    ],
    [
      'probabilities.agent.tools must be a number from 0 to 1, got 2',
      agent,
      { probabilities: { agent: { tools: 2 } } },
    ],
    [
      'probabilities.agent must sum to at most 1, got 1.5',
      agent,
      { probabilities: { agent: { tools: 1, __end__: 0.5 } } },
    ],
    [
      'probabilities.tools must sum to 1, got 0.5: no other edge leaves the node',
      agent,
      { probabilities: { tools: { agent: 0.5 } } },
    ],
    [
      'estimates.bash.seconds is not known; expected outputTokens, observationTokens, gapSeconds',
      agent,
      { estimates: { bash: { seconds: 1 } } },
    ],
    [
      'estimates.bash.gapSeconds must be a number from 0 to 1000000000, got -1',
      agent,
      { estimates: { bash: { gapSeconds: -1 } } },
    ],
    ['firstPromptTokens must be a number from 1 to 2147483648, got 0', agent, { firstPromptTokens: 0 }],
  ])('%s', (message, graph, options) => {
    expect(() => fromLangGraph(graph as object, options as LangGraphOptions)).toThrow(new SagaArgumentError(message));
  });

  it('but a loop is taken once its end is told', () => {
    const graph = fromLangGraph(loop, { probabilities: { b: { __end__: 0.25 } } });
    expect(graph.expectedCalls()).toBeCloseTo(8, 9);
  });
});

describe('random drawings', () => {
  interface Node {
    kind: 'call' | 'tool' | 'pass';
    tools: string[];
    weights: number[];
    outputTokens: number;
  }
  const nodes = fc.integer({ min: 1, max: 7 }).chain((count) =>
    fc.array(
      fc.record({
        kind: fc.constantFrom<Node['kind'][]>('call', 'call', 'tool', 'pass'),
        tools: fc.subarray(['bash', 'read_file', 'web_search', 'run_sql', 'think'], { minLength: 1 }),
        weights: fc.array(fc.nat(4), { minLength: count, maxLength: count }),
        outputTokens: fc.nat(1000),
      }),
      { minLength: count, maxLength: count },
    ),
  );

  /** Probabilities of what follows a node; a fifth of the visits end. Without a call between, only later nodes follow. */
  function nextOf(nodes: readonly Node[], from: number): Record<string, number> {
    const weights = (nodes[from] as Node).weights.map((weight, to) =>
      nodes[from]?.kind === 'call' || nodes[to]?.kind === 'call' || to > from ? weight : 0,
    );
    const sum = weights.reduce((a, b) => a + b, 0);
    const shares = weights.flatMap((weight, to) => (weight > 0 ? [[`n${to}`, (0.8 * weight) / sum] as const] : []));
    return { ...Object.fromEntries(shares), __end__: sum > 0 ? 0.2 : 1 };
  }

  it('have as many calls and tokens as a walk over their nodes', () => {
    fc.assert(
      fc.property(nodes, (drawn) => {
        const next = drawn.map((_, from) => nextOf(drawn, from));
        const drawing = {
          nodes: [
            { id: '__start__' },
            ...drawn.map(({ kind, tools }, at) => ({
              id: `n${at}`,
              metadata: kind === 'tool' ? { __tools: tools } : {},
            })),
            { id: '__end__' },
          ],
          edges: [
            { source: '__start__', target: 'n0' },
            ...next.flatMap((targets, at) =>
              Object.keys(targets).map((target) => ({ source: `n${at}`, target, conditional: true })),
            ),
          ],
        };
        const options = {
          kinds: Object.fromEntries(drawn.map(({ kind }, at) => [`n${at}`, kind])),
          probabilities: Object.fromEntries(next.map((targets, at) => [`n${at}`, targets])),
          estimates: Object.fromEntries(drawn.map(({ outputTokens }, at) => [`n${at}`, { outputTokens }])),
        };

        let [calls, outputTokens, started] = [0, 0, 0];
        // Tasks by where they are, apart from those that came to no call yet.
        let now = drawn.map((_, at) => ({ began: 0, waiting: at === 0 ? 1 : 0 }));
        for (let step = 0; step < 200; ++step) {
          const then = drawn.map(() => ({ began: 0, waiting: 0 }));
          now.forEach(({ began, waiting }, at) => {
            const call = drawn[at]?.kind === 'call';
            if (call) {
              calls += began + waiting;
              outputTokens += (began + waiting) * (drawn[at]?.outputTokens ?? 0);
              started += waiting;
            }
            drawn.forEach((_, to) => {
              const share = next[at]?.[`n${to}`] ?? 0;
              const arrived = then[to] as { began: number; waiting: number };
              arrived.began += (call ? began + waiting : began) * share;
              arrived.waiting += (call ? 0 : waiting) * share;
            });
          });
          now = then;
        }
        fc.pre(started > 0);

        const graph = fromLangGraph(drawing, options);
        expect(graph.impliedCalls()).toBeCloseTo(calls / started, 9);
        const tokens = graph.steps.reduce((sum, step) => {
          const all = step.outputTokens + graph.expectedRemaining(step.name).outputTokens;
          return sum + graph.startProbability(step.name) * all;
        }, 0);
        expect(tokens).toBeCloseTo(outputTokens / started, 6);
      }),
      { numRuns: 200 },
    );
  });
});
