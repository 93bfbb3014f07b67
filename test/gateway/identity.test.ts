/** Which workflow, agent and line a call is taken for, and what is learned from answers. */
import { describe, expect, it } from 'vitest';
import type { Session } from '../../src/gateway/model-pool.js';
import {
  FakeWorker,
  emulated,
  events,
  get,
  json,
  leftovers,
  nothingLeft,
  post,
  range,
  serve,
  until,
  type Script,
  type Serving,
} from './helpers.js';

const sessionsOf = ({ pool }: Serving): Session[] => [...pool.sessions.values()];

async function call(
  { url }: Serving,
  prompt: readonly number[],
  headers: Record<string, string> = {},
  more: object = {},
): Promise<void> {
  const answer = await post(url, '/v1/completions', { model: 'm', prompt, ...more }, headers);
  expect(answer.status).toBe(200);
}

describe('calls of one workflow', () => {
  it.each<[string, Record<string, string>, Record<string, string>]>([
    ['SAGA', { 'x-saga-session-id': 'a' }, { 'x-saga-session-id': 'b' }],
    ['Claude Code', { 'x-claude-code-session-id': 'a' }, { 'x-claude-code-session-id': 'b' }],
    ['Codex', { 'session-id': 'a', 'thread-id': 'a' }, { 'session-id': 'b', 'thread-id': 'b' }],
    ['Dynamo', { 'x-dynamo-session-id': 'a' }, { 'x-dynamo-session-id': 'b' }],
    ['OpenCode', { 'x-session-id': 'a' }, { 'x-session-id': 'b' }],
  ])('are told by the headers of %s', async (_, first, second) => {
    const serving = await serve([await FakeWorker.start(json({ choices: [] }))]);
    // Prompts that have nothing to do with each other.
    await call(serving, range(1, 64), first);
    await call(serving, range(1000, 64), first);
    await call(serving, range(2000, 64), second);
    expect(sessionsOf(serving).map(({ name, calls }) => [name, calls])).toEqual([
      ['a', 2],
      ['b', 1],
    ]);
    expect(serving.pool.counters.namedCalls).toBe(3);
  });

  it('are told by what the body names', async () => {
    const serving = await serve([await FakeWorker.start(json({ choices: [] }))]);
    await call(serving, [1], {}, { session_id: 's' });
    await call(serving, [2], {}, { session_id: 's' });
    await call(serving, [3], {}, { prompt_cache_key: 'p' });
    await call(serving, [4], {}, { session_id: 5 });
    expect(sessionsOf(serving).map(({ name, calls }) => [name, calls])).toEqual([
      ['s', 2],
      ['p', 1],
      [undefined, 1],
    ]);
  });

  it('are told by their prompts where nobody names them', async () => {
    const serving = await serve([await FakeWorker.start(json({ choices: [] }))]);
    await call(serving, range(1, 64));
    await call(serving, range(1, 128));
    await call(serving, range(1, 200));
    await call(serving, range(5000, 64));
    expect(sessionsOf(serving).map(({ calls }) => calls)).toEqual([3, 1]);
    expect(serving.pool.counters.lineage).toMatchObject({ new: 2, continued: 2 });
  });

  it('are those of sub-agents too, each with a thread of its own', async () => {
    const serving = await serve([await FakeWorker.start(json({ choices: [] }))]);
    await call(serving, range(1, 64), { 'x-saga-session-id': 'main' });
    await call(serving, range(300, 64), { 'x-saga-session-id': 'sub', 'x-saga-parent-session-id': 'main' });
    await call(serving, range(300, 96), { 'x-saga-session-id': 'sub', 'x-saga-parent-session-id': 'main' });
    const [session, ...others] = sessionsOf(serving);
    expect(others).toEqual([]);
    expect([session?.name, session?.calls, session?.threads.size]).toEqual(['main', 3, 2]);
    const [listed] = (await get(serving.url, '/saga/workflows')).json().workflows;
    expect(listed).toMatchObject({ name: 'main', calls: 3, agents: 2, openCalls: 0, tenant: 'default', model: 'm' });
  });

  it('end with the one that is final', async () => {
    const serving = await serve([await FakeWorker.start(json({ choices: [] }))]);
    await call(serving, range(1, 64), { 'x-saga-session-id': 'a' });
    const { workflow } = sessionsOf(serving)[0] as Session;
    await call(serving, range(1, 96), {
      'x-saga-session-id': 'sub',
      'x-saga-parent-session-id': 'a',
      'x-saga-session-final': 'true',
    });
    // Of a sub-agent: the workflow goes on.
    expect(sessionsOf(serving).length).toBe(1);
    await call(serving, range(1, 128), { 'x-saga-session-id': 'a', 'x-saga-session-final': 'true' });
    expect(sessionsOf(serving)).toEqual([]);
    expect(serving.pool.scheduler.stats().workflows).toBe(0);
    // The name begins anew.
    await call(serving, range(1, 64), { 'x-saga-session-id': 'a' });
    expect(sessionsOf(serving)[0]?.workflow).not.toBe(workflow);
  });

  it('that is final closes its workflow when the last of those beside it has ended', async () => {
    let end: () => void = () => undefined;
    const worker = await FakeWorker.start((_request, response, body) => {
      const answer = (): void => void response.end('{"choices":[]}');
      if (body.includes('slow')) end = answer;
      else answer();
    });
    const serving = await serve([worker]);
    const slow = call(serving, range(1, 64), { 'x-saga-session-id': 'a' }, { user: 'slow' });
    await until('it runs', () => worker.requests.length === 1);
    await call(serving, range(500, 64), { 'x-saga-session-id': 'a', 'x-saga-session-final': '1' });
    expect(sessionsOf(serving).map(({ closing, openCalls }) => [closing, openCalls])).toEqual([[true, 1]]);
    end();
    await slow;
    expect(sessionsOf(serving)).toEqual([]);
    expect(leftovers(serving)).toEqual(nothingLeft);
  });
});

describe('tool calls', () => {
  const chat: Script = events(
    'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"bash","arguments":""}}]}}]}\n\n',
    'data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}\n\n',
    'data: [DONE]\n\n',
  );
  const responses: Script = events(
    'event: response.output_item.added\ndata: {"type":"response.output_item.added","item":{"type":"function_call","name":"bash"}}\n\n',
    'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r","status":"completed"}}\n\n',
  );
  const messages: Script = events(
    'event: content_block_start\ndata: {"type":"content_block_start","content_block":{"type":"tool_use","name":"bash"}}\n\n',
    'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use"}}\n\n',
  );

  it.each<[string, object, Script]>([
    ['/v1/chat/completions', { messages: [], stream: true }, chat],
    ['/v1/responses', { input: 'x', stream: true }, responses],
    ['/v1/messages', { messages: [], max_tokens: 1, stream: true }, messages],
    [
      '/v1/chat/completions',
      { messages: [] },
      json({ choices: [{ message: { tool_calls: [{ function: { name: 'bash' } }] }, finish_reason: 'tool_calls' }] }),
    ],
    [
      '/v1/responses',
      { input: 'x' },
      json({ id: 'r', status: 'completed', output: [{ type: 'function_call', name: 'bash' }] }),
    ],
    [
      '/v1/messages',
      { messages: [], max_tokens: 1 },
      json({ content: [{ type: 'tool_use', name: 'bash' }], stop_reason: 'tool_use' }),
    ],
  ])('in answers of %s (%j) are read: a tool runs until the next call', async (path, body, script) => {
    const worker = await FakeWorker.start(script);
    const serving = await serve([worker]);
    const headers = { 'x-saga-session-id': 's' };
    expect((await post(serving.url, path, { model: 'm', ...body }, headers)).status).toBe(200);
    const [session] = sessionsOf(serving);
    expect(session?.tools.size).toBe(1);
    expect((await get(serving.url, '/saga/workflows')).json().workflows).toMatchObject([{ toolRuns: true }]);
    worker.script = json({
      choices: [{ text: 'done', finish_reason: 'stop' }],
      status: 'completed',
      stop_reason: 'end_turn',
    });
    await call(serving, [1, 2], headers);
    expect(session?.tools.size).toBe(0);
  });

  it('of an emulated worker make directives that its connector carries out', async () => {
    const worker = await emulated({
      eventsPort: 0,
      directivesPort: 0,
      script: () => ({ toolCalls: [{ name: 'web_search', arguments: { q: 'x' } }] }),
    });
    const serving = await serve([worker]);
    await until('the connector is known', () => serving.pool.workers.workers[0]?.features.connector === 'leases');
    const tools = [{ type: 'function', function: { name: 'web_search' } }];
    const messages = [{ role: 'user', content: 'Search for something, it does not matter what. '.repeat(8) }];
    const answer = await post(
      serving.url,
      '/v1/chat/completions',
      { model: 'm', messages, tools },
      { 'x-saga-session-id': 's' },
    );
    expect(answer.json().choices[0]?.finish_reason).toBe('tool_calls');
    const directives = (): number => serving.pool.workers.metrics().workers[0]?.directives.outcomes.applied ?? 0;
    await until('it was told, and has done it', () => directives() > 0);
  });
});

describe('hints', () => {
  it('of headers and of Dynamo reach the scheduler; nonsense does not harm', async () => {
    const serving = await serve([await FakeWorker.start(json({ choices: [] }))]);
    const seen: unknown[] = [];
    const submit = serving.pool.submit.bind(serving.pool);
    serving.pool.submit = (request) => {
      seen.push(request.named.hints);
      return submit(request);
    };
    await call(serving, [1], { 'x-saga-next-tool': 'bash', 'x-saga-expected-seconds': '2.5' });
    await call(serving, [1], { 'x-saga-expected-output-tokens': '300' });
    await call(serving, [1], {}, { nvext: { agent_hints: { osl: 77.5 } } });
    await call(serving, [1], { 'x-saga-expected-seconds': '-1', 'x-saga-expected-output-tokens': 'NaN' });
    for (const nvext of [5, [], {}, { agent_hints: null }, { agent_hints: 3 }, { agent_hints: { osl: 'x' } }])
      await call(serving, [1], {}, { nvext });
    expect(seen.slice(0, 4)).toEqual([
      { nextTool: 'bash', expectedSeconds: 2.5 },
      { expectedOutputTokens: 300 },
      { expectedOutputTokens: 77 },
      undefined,
    ]);
    expect(seen.slice(4)).toEqual([undefined, undefined, undefined, undefined, undefined, undefined]);
  });
});
