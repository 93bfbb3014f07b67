/** What a client must not be able to do, and what the gateway must hold to in numbers. */
import { setTimeout as delay } from 'node:timers/promises';
import { connect } from 'node:net';
import { describe, expect, it } from 'vitest';
import { Command } from 'commander';
import { registerServe } from '../../src/cli/serve.js';
import { Tenants } from '../../src/gateway/identity.js';
import { flagOf, gatewaySettings, isPlain, quickSettings } from '../../src/gateway/settings.js';
import { RecentShare } from '../../src/gateway/observe/recent.js';
import { Line, Lines } from '../../src/gateway/tokens/lines.js';
import { PromptChain } from '../../src/prompt-chain.js';
import {
  FakeWorker,
  emulated,
  events,
  get,
  json,
  leftovers,
  nothingLeft,
  post,
  raw,
  serve,
  until,
  type Json,
  type Script,
} from './helpers.js';

describe('lines of conversations', () => {
  const chainOf = (tokens: number): PromptChain => {
    const chain = new PromptChain();
    chain.update(new Uint32Array(tokens).fill(7));
    return chain;
  };

  it('are bounded by the memory that they really take', () => {
    const most = { bytes: 2 ** 20, lines: 1000 };
    const lines = new Lines(most);
    for (let i = 0; i < 200; ++i) {
      const line = new Line(chainOf(16));
      lines.mark(line, `k${i}`, 16);
      lines.resized(line);
      expect(lines.size * line.chain.stats().memoryBytes).toBeLessThanOrEqual(most.bytes);
    }
    // A prompt of 16 tokens has a fixed cost far above its 80 bytes.
    expect(lines.size).toBeLessThan(60);
    expect(lines.size).toBeGreaterThan(10);
    expect(lines.find('k199')).toBeDefined();
    expect(lines.find('k0')).toBeUndefined();
    lines.close();
    expect([lines.size, lines.bytes]).toEqual([0, 0]);
  });

  it('are bounded in number', () => {
    const lines = new Lines({ bytes: 2 ** 30, lines: 5 });
    for (let i = 0; i < 20; ++i) {
      const line = new Line(chainOf(1));
      lines.mark(line, `k${i}`, 1);
      lines.resized(line);
    }
    expect(lines.size).toBe(5);
    lines.close();
  });
});

describe('a connection', () => {
  it('whose headers do not arrive is dropped', async () => {
    const worker = await FakeWorker.start(json({}));
    const { port } = await serve([worker], { headerSeconds: 0.2, apiKeys: ['k'] });
    const begun = performance.now();
    const answer = await raw(port, 'POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-slow: ', 3000);
    expect(answer).toMatch(/^HTTP\/1\.1 408 /);
    expect(performance.now() - begun).toBeLessThan(2500);
  });

  it('beyond max_connections is dropped', async () => {
    const worker = await FakeWorker.start(json({}));
    const { port } = await serve([worker], { maxConnections: 2 });
    const closed: number[] = [];
    const sockets = [0, 1, 2, 3].map((i) => {
      const socket = connect(port, '127.0.0.1');
      socket.on('error', () => undefined).on('close', () => closed.push(i));
      socket.resume();
      return socket;
    });
    await delay(300);
    expect(closed).toHaveLength(2);
    for (const socket of sockets) socket.destroy();
  });
});

describe('a path', () => {
  it.each([
    '/v1/chat/%63ompletions',
    '/v1/%63ompletions',
    '/v1/chat%2Fcompletions',
    '/v1/x/../completions',
    '/v1//completions',
    '/v1/./completions',
    '/v1/completions/',
    '/v1/completions\\x',
    '/v1/embeddings/%2e%2e/completions',
    '/v1/responses/../completions',
    '/v1/responses/x/%63ancel',
    '/%761/completions',
    '/saga/%77orkers',
  ])('%s that can be read in two ways is none', async (path) => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const { port } = await serve([worker]);
    const head =
      'HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 14\r\nconnection: close\r\n\r\n';
    const answer = await raw(port, `POST ${path} ${head}{"prompt":[1]}`);
    expect(answer).toMatch(/^HTTP\/1\.1 404 /);
    expect(answer).toContain('"code":"unknown_route"');
    expect(worker.requests).toEqual([]);
  });
});

describe('what steers an engine', () => {
  const orders = {
    kv_transfer_params: { saga: { actions: [] }, do_remote_prefill: true, own: 1 },
    kv_hints: [{ x: 1 }],
    vllm_xargs: { saga: 'x', kv_hints: 'y', kv_transfer_params: 'z', own: 2 },
    priority: -5,
  };
  const routes = ['/v1/chat/completions', '/v1/completions', '/v1/responses', '/v1/messages', '/v1/embeddings'];
  const bodyOf = (path: string): object => ({
    model: 'm',
    ...(path.endsWith('chat/completions') || path.endsWith('messages')
      ? { messages: [{ role: 'user', content: 'a' }], max_tokens: 1 }
      : path.endsWith('/completions')
        ? { prompt: [1, 2] }
        : { input: 'a' }),
    ...orders,
  });
  const headers = { 'x-vllm-priority': '-9' };

  it('is left out of what clients send, on every route', async () => {
    const worker = await FakeWorker.start(json({ id: 'r1', choices: [], output: [] }));
    const { url } = await serve([worker]);
    for (const path of routes) expect((await post(url, path, bodyOf(path), headers)).status).toBe(200);
    expect((await post(url, '/v1/responses', { ...bodyOf('/v1/responses'), previous_response_id: 'r1' })).status).toBe(
      200,
    );
    expect((await post(url, '/v1/responses/r1/cancel', orders)).status).toBe(200);
    expect((await post(url, '/v1/responses/r1/cancel', '')).status).toBe(200);
    expect(worker.requests).toHaveLength(routes.length + 3);
    for (const { path, body, headers: sent } of worker.requests) {
      const got = JSON.parse(body || '{}') as Json;
      expect([path, got.kv_transfer_params, got.kv_hints, got.priority]).toEqual([
        path,
        undefined,
        undefined,
        undefined,
      ]);
      if (body !== '') expect(got.vllm_xargs).toEqual({ own: 2 });
      expect(sent['x-vllm-priority']).toBeUndefined();
    }
  });

  it('passes where clients are trusted, but for orders to the connector', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const { url } = await serve([worker], { trustClientParameters: true });
    for (const path of routes) expect((await post(url, path, bodyOf(path), headers)).status).toBe(200);
    for (const { body, headers: sent } of worker.requests) {
      const got = JSON.parse(body) as Json;
      expect(got.kv_transfer_params).toEqual({ do_remote_prefill: true, own: 1 });
      expect(got.vllm_xargs).toEqual({ kv_transfer_params: 'z', own: 2 });
      expect([got.kv_hints, got.priority, sent['x-vllm-priority']]).toEqual([undefined, -5, '-9']);
    }
  });

  it('is said of calls to /v1/messages too', async () => {
    const worker = await FakeWorker.start(json({ content: [] }));
    const { url, pool } = await serve([worker]);
    const known = pool.workers.workers[0];
    if (known !== undefined) known.features_ = { ...known.features_, connector: 'policy' };
    await post(url, '/v1/messages', bodyOf('/v1/messages'), { 'x-session-id': 's' });
    const sent = JSON.parse(worker.requests[0]?.body ?? '') as Json;
    expect(sent.session_id).toBe('s');
    expect(sent.kv_transfer_params.own).toBeUndefined();
    expect(sent.kv_transfer_params.saga.actions).toMatchObject([{ action_type: 'saga.call' }]);
  });

  it('cannot be aimed at the request of another client by its id', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const { url } = await serve([worker]);
    const answers = [1, 2].map(() => post(url, '/v1/completions', { prompt: [1] }, { 'x-request-id': 'same' }));
    for (const answer of answers) expect((await answer).headers.get('x-request-id')).toBe('same');
    const ids = worker.requests.map(({ headers: sent }) => sent['x-request-id']);
    expect(new Set(ids).size).toBe(2);
    for (const id of ids) expect(id).toMatch(/^same-[0-9a-f]{12}$/);
  });
});

describe('threads', () => {
  it('are unique over models, and the same for an agent beyond the bound', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const serving = await serve([worker], {
      models: [
        { name: 'm', servers: [{ url: worker.url }] },
        { name: 'inner', servers: [{ url: worker.url }] },
      ],
    });
    const call = async (model: string, session: string, agent: string): Promise<void> => {
      const headers = { 'x-claude-code-session-id': session, 'x-claude-code-agent-id': agent };
      expect((await post(serving.url, '/v1/completions', { model, prompt: [1] }, headers)).status).toBe(200);
    };
    const submitted: number[] = [];
    for (const pool of serving.gateway.pools.values()) {
      const { directives } = pool.workers;
      const ended = directives.ended.bind(directives);
      directives.ended = (end) => {
        submitted.push(end.thread);
        ended(end);
      };
    }
    await call('m', 'a', 'x');
    await call('inner', 'a', 'x');
    await call('m', 'b', 'x');
    await call('m', 'a', 'x');
    const [first, second, third, fourth] = submitted;
    expect(new Set([first, second, third]).size).toBe(3);
    expect(fourth).toBe(first);
    const session = [...serving.pool.sessions.values()].find(({ name }) => name === 'a');
    for (let i = 0; session !== undefined && session.threads.size < 1024; ++i) session.threads.set(`filler ${i}`, i);
    await call('m', 'a', 'late');
    await call('m', 'a', 'later');
    await call('m', 'a', 'late');
    const [late, later, again] = submitted.slice(4);
    expect(again).toBe(late);
    expect(later).not.toBe(late);
    expect(Number.isSafeInteger(late)).toBe(true);
  });
});

describe('tools', () => {
  const uses = (name: string): Script =>
    json({
      choices: [{ finish_reason: 'tool_calls', message: { tool_calls: [{ function: { name } }] } }],
      usage: { prompt_tokens: 1, completion_tokens: 1 },
    });

  it('of several agents run until the agent that started each calls again', async () => {
    const worker = await FakeWorker.start(uses('bash'));
    const { url, pool } = await serve([worker]);
    const call = async (agent: string): Promise<void> => {
      const headers = { 'x-claude-code-session-id': 's', 'x-claude-code-agent-id': agent };
      const body = { model: 'm', messages: [{ role: 'user', content: agent }] };
      expect((await post(url, '/v1/chat/completions', body, headers)).status).toBe(200);
    };
    await call('x');
    await call('y');
    const [session] = pool.sessions.values();
    expect([...(session?.tools ?? [])]).toEqual(['agent x', 'agent y']);
    worker.script = json({ choices: [{ finish_reason: 'stop', message: {} }] });
    await call('y');
    expect([...(session?.tools ?? [])]).toEqual(['agent x']);
    await call('x');
    expect(session?.tools.size).toBe(0);
    await call('x');
    expect(pool.counters).toMatchObject({ finished: 5, cancelled: 0 });
  });
});

describe('a worker that is lost', () => {
  it('gives its calls without a first byte to another one at once, and keeps those in mid stream', async () => {
    const held = await FakeWorker.start((_request, response, body) => {
      if (!body.includes('"stream":true')) return;
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write('data: {"choices":[{}]}\n\n');
      setTimeout(() => response.end('data: [DONE]\n\n'), 1500);
    });
    const serving = await serve([held]);
    const streaming = post(serving.url, '/v1/completions', { prompt: [1], stream: true });
    const waiting = post(serving.url, '/v1/completions', { prompt: [2] });
    await until('both are there', () => held.requests.length === 2);
    const other = await FakeWorker.start(json({ choices: [], other: true }));
    await serving.pool.workers.add({ url: other.url });
    serving.pool.workers.remove(held.url);
    const answer = await waiting;
    expect([answer.status, answer.json().other]).toEqual([200, true]);
    expect((await streaming).text).toContain('[DONE]');
    await until('nothing is left', () => JSON.stringify(leftovers(serving)) === JSON.stringify(nothingLeft), 3000);
  });

  it('or late with its first byte is replaced while there are retries', async () => {
    const late = await FakeWorker.start(() => undefined);
    const good = await FakeWorker.start(events('data: {"choices":[{}]}\n\n', 'data: [DONE]\n\n'));
    const serving = await serve([late, good], { firstByteSeconds: 0.3 });
    const answers = await Promise.all(
      [1, 2, 3, 4].map((i) => post(serving.url, '/v1/completions', { prompt: [i], stream: true })),
    );
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 200]);
    expect(late.requests.length).toBeGreaterThan(0);
    expect(serving.pool.counters.retried).toBeGreaterThan(0);
  });
});

describe('tenants', () => {
  it('that a header names have salts of their own, which others cannot know', () => {
    const config = { trustTenantHeader: true };
    const saltOf = (name: string, more: object = {}): string | undefined =>
      new Tenants({ ...config, ...more }).of({ 'x-saga-tenant': name }).cacheSalt;
    expect(saltOf('a', { tenantSecret: 's' })).toMatch(/^[\w-]{43}$/);
    expect(saltOf('a', { tenantSecret: 's' })).toBe(saltOf('a', { tenantSecret: 's' }));
    const salts = [saltOf('a', { tenantSecret: 's' }), saltOf('b', { tenantSecret: 's' }), saltOf('a'), saltOf('a')];
    expect(new Set(salts).size).toBe(4);
    expect(saltOf('a', { saltTenants: false })).toBeUndefined();
  });

  it('have their salt on routes that are passed on too', async () => {
    const worker = await FakeWorker.start(json({ data: [] }));
    const { url } = await serve([worker], { tenants: [{ name: 't', apiKeys: ['k'], cacheSalt: 'salt' }] });
    await post(url, '/v1/embeddings', { model: 'm', input: 'a', cache_salt: 'own' }, { 'x-api-key': 'k' });
    expect(JSON.parse(worker.requests[0]?.body ?? '')).toMatchObject({ cache_salt: 'salt\nown', input: 'a' });
  });

  it('see themselves; everything is for operators', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const tenants = [{ name: 't', apiKeys: ['k'] }];
    const first = await serve([worker], { apiKeys: ['op'], tenants });
    const second = await serve([worker], { apiKeys: ['op'], adminKeys: ['admin'], tenants, trustTenantHeader: true });
    const statuses = async (url: string, headers: Record<string, string>): Promise<number[]> =>
      await Promise.all(
        ['/metrics', '/saga/workers', '/saga/workflows?all=true', '/saga/workflows', '/v1/models'].map(
          async (path) => (await get(url, path, headers)).status,
        ),
      );
    expect(await statuses(first.url, { 'x-api-key': 'op' })).toEqual([200, 200, 200, 200, 200]);
    expect(await statuses(first.url, { 'x-api-key': 'k' })).toEqual([403, 403, 403, 200, 200]);
    expect(await statuses(second.url, { 'x-api-key': 'op' })).toEqual([403, 403, 403, 200, 200]);
    expect(await statuses(second.url, { 'x-api-key': 'admin' })).toEqual([200, 200, 200, 200, 200]);
    // Behind a proxy with an operator's key stands somebody else.
    expect(await statuses(second.url, { 'x-api-key': 'admin', 'x-saga-tenant': 'x' })).toEqual([
      403, 403, 403, 200, 200,
    ]);
    await post(first.url, '/v1/completions', { prompt: [1] }, { 'x-api-key': 'k' });
    const of = async (path: string): Promise<unknown[]> =>
      (await get(first.url, path, { 'x-api-key': 'op' })).json().workflows;
    expect([(await of('/saga/workflows')).length, (await of('/saga/workflows?all=true')).length]).toEqual([0, 1]);
  });

  it('have a quarter of all reservations at most', async () => {
    const worker = await emulated();
    const { url } = await serve([worker], { maxCalls: 8, trustTenantHeader: true });
    const reserve = async (tenant: string): Promise<Json> =>
      (await post(url, '/saga/select_and_reserve', { token_ids: [1, 2, 3] }, { 'x-saga-tenant': tenant })).json();
    const [first] = [await reserve('a'), await reserve('a')];
    expect((await reserve('a')).error.code).toBe('queue_full');
    expect((await reserve('b')).reservation).toBeDefined();
    await post(url, '/saga/release', { reservation: first.reservation }, { 'x-saga-tenant': 'a' });
    expect((await reserve('a')).reservation).toBeDefined();
  });
});

describe('flags', () => {
  const commandOf = (): Command => {
    const program = new Command();
    registerServe(program);
    return program.commands.find((command) => command.name() === 'serve') as Command;
  };

  it('are there for every setting that is no list or group', () => {
    const flags = commandOf().options.map(({ long }) => long);
    for (const setting of [...gatewaySettings.filter(isPlain), ...quickSettings])
      expect(flags).toContain(flagOf(setting.name));
    expect(flags).toContain('--max-prompt-tokens');
    expect(flags).toContain('--api-key');
    expect(new Set(flags).size).toBe(flags.length);
  });
});

describe('tokens by workers', () => {
  it('are asked of one after the other, and of a second one where the first cannot say', async () => {
    const asked: string[] = [];
    const serverOf = async (name: string, answer: unknown): Promise<FakeWorker> => {
      const worker = await FakeWorker.start(json({ choices: [] }));
      const [serveAs] = worker.server.listeners('request') as ((...args: unknown[]) => void)[];
      worker.server.removeAllListeners('request');
      worker.server.on('request', (request, response) => {
        if (request.url !== '/tokenize') serveAs?.(request, response);
        else if (request.method === 'GET') response.writeHead(405).end();
        else {
          asked.push(name);
          request.resume();
          response.writeHead(answer === undefined ? 500 : 200).end(JSON.stringify(answer ?? {}));
        }
      });
      return worker;
    };
    const serving = await serve([await serverOf('a', { tokens: [1, 2, 3] }), await serverOf('b', undefined)]);
    for (let i = 0; i < 4; ++i) {
      const body = { model: 'm', messages: [{ role: 'user', content: 'hello' }] };
      expect((await post(serving.url, '/v1/chat/completions', body)).status).toBe(200);
    }
    expect(asked).toEqual(['a', 'b', 'a', 'a', 'b', 'a']);
    expect(serving.pool.counters.promptsBySource).toMatchObject({ worker: 4, unknown: 0 });
    // Placeholders of pictures are no tokens by which blocks could be told.
    const content = [{ type: 'image_url', image_url: { url: 'data:' } }];
    await post(serving.url, '/v1/chat/completions', { model: 'm', messages: [{ role: 'user', content }] });
    expect(serving.pool.counters.promptsBySource).toMatchObject({ worker: 4, unknown: 1 });
    expect(asked).toHaveLength(6);
  });

  it('that are not known count for five minutes', () => {
    let now = 0;
    const share = new RecentShare(() => now);
    for (let i = 0; i < 200; ++i) share.add(i === 0);
    expect(share.now()).toEqual({ count: 1, share: 0.005 });
    now += 4 * 60_000;
    share.add(true);
    expect(share.now()).toEqual({ count: 2, share: 2 / 201 });
    now += 60_000;
    expect(share.now()).toEqual({ count: 1, share: 1 });
    now += 10 * 60_000;
    expect(share.now()).toEqual({ count: 0, share: 0 });
  });
});

describe('a route', () => {
  it('that no worker has is refused in words', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const { url, pool } = await serve([worker]);
    const known = pool.workers.workers[0];
    if (known !== undefined)
      known.features_ = { ...known.features_, routes: { ...known.features_.routes, messages: false } };
    const answer = await post(url, '/v1/messages', { model: 'm', messages: [], max_tokens: 1 });
    expect([answer.status, answer.json().error.code]).toEqual([501, 'unsupported_route']);
    expect((await post(url, '/v1/completions', { prompt: [1] })).status).toBe(200);
  });

  it('that some workers have not is asked of the others', async () => {
    const without = await FakeWorker.start(json({ content: [] }));
    const having = await FakeWorker.start(json({ content: [] }));
    const serving = await serve([without, having]);
    const known = serving.pool.workers.workers.find(({ server }) => server.url === without.url);
    if (known !== undefined)
      known.features_ = { ...known.features_, routes: { ...known.features_.routes, messages: false } };
    const call = (): Promise<{ status: number }> =>
      post(serving.url, '/v1/messages', { model: 'm', messages: [], max_tokens: 1 });
    const answers = [await call(), ...(await Promise.all(Array.from({ length: 7 }, call)))];
    expect(answers.map(({ status }) => status)).toEqual(Array<number>(8).fill(200));
    expect([without.requests.length, having.requests.length]).toEqual([0, 8]);
    expect(known?.condition).toBe('ready');
    expect(leftovers(serving)).toEqual(nothingLeft);
  });
});
