/** Answers of workers as clients get them. */
import { request as httpRequest, type ServerResponse } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import type { Engine } from '../../src/emulated-worker/engine.js';
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
  type Json,
} from './helpers.js';

/** What differs from answer to answer. */
function plain(text: string): string {
  return text
    .replace(/(?:chatcmpl|cmpl|resp|msg|fc|call|chatcmpl-tool)[-_][\w-]+/g, 'ID')
    .replace(/"created(_at)?":\d+/g, '"created":0');
}

const conversation = [{ role: 'user', content: 'Say something.' }];
const bodies: Record<string, object> = {
  '/v1/chat/completions': { model: 'm', messages: conversation, max_tokens: 6 },
  '/v1/completions': { model: 'm', prompt: range(1, 100), max_tokens: 6 },
  '/v1/responses': { model: 'm', input: 'Say something.', max_output_tokens: 6 },
  '/v1/messages': { model: 'm', messages: conversation, max_tokens: 6 },
};

describe.each(Object.entries(bodies))('%s', (path, body) => {
  it('answers as the worker does, streamed or not', async () => {
    // Two of the same: the first answer of each is one without a cache.
    const [direct, behind] = [await emulated(), await emulated()];
    const { url } = await serve([behind]);
    for (const more of [{}, { stream: true }]) {
      const own = await post(direct.url, path, { ...body, ...more });
      const passed = await post(url, path, { ...body, ...more });
      expect(passed.status).toBe(200);
      expect(own.status).toBe(200);
      expect(plain(passed.text)).toBe(plain(own.text));
      expect(passed.headers.get('content-type')).toBe(own.headers.get('content-type'));
      expect(passed.headers.get('x-saga-call')).toMatch(/^m\.\d+$/);
      expect(passed.headers.get('endpoint-load-metrics')).toBeNull();
    }
  });

  it("passes the worker's own errors", async () => {
    const worker = await emulated();
    const serving = await serve([worker]);
    const wrong = { ...body, max_tokens: 'many', max_output_tokens: 'many' };
    const [own, passed] = [await post(worker.url, path, wrong), await post(serving.url, path, wrong)];
    expect(own.status).toBe(400);
    expect([passed.status, plain(passed.text)]).toEqual([own.status, plain(own.text)]);
    expect(leftovers(serving)).toEqual(nothingLeft);
  });
});

describe('usage in streams', () => {
  const usages = (text: string): Json[] =>
    [...text.matchAll(/^data: (\{.*\})$/gm)]
      .map(([, one]) => JSON.parse(one as string) as Json)
      .filter((one) => one.usage);

  it.each(['/v1/chat/completions', '/v1/completions'])(
    'is asked for, and taken out where the client did not: %s',
    async (path) => {
      const worker = await emulated();
      const { url, pool } = await serve([worker]);
      const silent = await post(url, path, { ...bodies[path], stream: true });
      expect(usages(silent.text)).toEqual([]);
      expect(silent.text).toMatch(/data: \[DONE\]\n\n$/);
      expect(pool.counters.outputTokens).toBe(6);
      const asked = await post(url, path, { ...bodies[path], stream: true, stream_options: { include_usage: true } });
      expect(usages(asked.text)).toMatchObject([{ choices: [], usage: { completion_tokens: 6 } }]);
      expect(pool.counters.outputTokens).toBe(12);
    },
  );

  it('keeps other options of the stream', async () => {
    const worker = await FakeWorker.start(events('data: {"choices":[]}\n\n'));
    const { url } = await serve([worker]);
    await post(url, '/v1/completions', {
      prompt: [1],
      stream: true,
      stream_options: { other: 5, include_usage: false },
    });
    expect(JSON.parse(worker.requests[0]?.body ?? '')).toMatchObject({
      stream_options: { other: 5, include_usage: true },
    });
  });
});

describe('a stream', () => {
  it('comes chunk by chunk: the first is there before the second was sent', async () => {
    let next: () => void = () => undefined;
    const worker = await FakeWorker.start(async (_request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      for (let i = 0; i < 3; ++i) {
        response.write(`data: {"i":${i},"choices":[{}]}\n\n`);
        await new Promise<void>((resolve) => (next = resolve));
      }
      response.end('data: [DONE]\n\n');
    });
    const { url } = await serve([worker]);
    const response = await fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"prompt":[1,2],"stream":true}',
    });
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    for (let i = 0; i < 3; ++i) {
      const { value } = await reader.read();
      expect(Buffer.from(value as Uint8Array).toString()).toBe(`data: {"i":${i},"choices":[{}]}\n\n`);
      next();
    }
    const { value } = await reader.read();
    expect(Buffer.from(value as Uint8Array).toString()).toBe('data: [DONE]\n\n');
    expect((await reader.read()).done).toBe(true);
  });
});

describe('headers', () => {
  it('of a worker pass but for those of its connection', async () => {
    const worker = await FakeWorker.start((request) => {
      request.socket.write(
        'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-odd: sm\u00f8rrebr\u00f8d\r\nx-fine: 1\r\n' +
          'connection: x-private\r\nx-private: 1\r\nkeep-alive: timeout=1\r\ncontent-length: 2\r\n\r\n{}',
      );
    });
    const { url } = await serve([worker]);
    const answer = await post(url, '/v1/completions', { prompt: [1] });
    expect([answer.status, answer.text]).toEqual([200, '{}']);
    expect(answer.headers.get('x-fine')).toBe('1');
    expect(answer.headers.get('x-private')).toBeNull();
    // As bytes, whatever they are.
    expect(Buffer.from(answer.headers.get('x-odd') ?? '', 'latin1').toString()).toBe('sm\u00f8rrebr\u00f8d');
  });

  it("tell the worker what helps, and never the client's key, cookies or address", async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const { url } = await serve([{ url: worker.url, apiKey: 'worker-key' }], { apiKeys: ['client-key'] });
    const { status } = await post(
      url,
      '/v1/completions',
      { model: 'm', prompt: [1] },
      {
        authorization: 'Bearer client-key',
        cookie: 'a=b',
        'x-forwarded-for': '10.0.0.1',
        'x-api-key': 'client-key',
        'x-request-id': 'mine-1',
        traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
      },
    );
    expect(status).toBe(200);
    const [seen] = worker.requests;
    expect(seen?.headers).toMatchObject({
      authorization: 'Bearer worker-key',
      'x-request-id': expect.stringMatching(/^mine-1-[0-9a-f]{12}$/) as string,
      'content-type': 'application/json',
      traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
    });
    expect(JSON.stringify(seen)).not.toContain('client-key');
    for (const name of ['cookie', 'x-forwarded-for', 'x-api-key']) expect(seen?.headers).not.toHaveProperty(name);
  });
});

describe('what a worker is sent', () => {
  it('is the body as it came where nothing is to be said', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const { url } = await serve([worker]);
    const body = '{ "model" : "m",\n "prompt":[1, 2],  "odd": 1e400, "z":"\\u00e9" }';
    await post(url, '/v1/completions', body);
    expect(worker.requests[0]?.body).toBe(body);
  });

  it('has the name of the model there, priority, the salt of the tenant and the session', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const { url } = await serve(
      [worker],
      { tenants: [{ name: 'acme', apiKeys: ['k1'], cacheSalt: 'acme-salt' }] },
      { upstreamName: 'inner', priority: true, aliases: { tuned: 'inner-lora', other: null } },
    );
    const sent = async (body: object, headers: Record<string, string> = {}): Promise<Json> => {
      const { status } = await post(url, '/v1/completions', body, { authorization: 'Bearer k1', ...headers });
      expect(status).toBe(200);
      return JSON.parse(worker.requests.at(-1)?.body ?? '') as Json;
    };
    const first = await sent({ model: 'm', prompt: [1, 2] }, { 'x-saga-session-id': 's-1' });
    expect(first).toMatchObject({ model: 'inner', cache_salt: 'acme-salt', session_id: 's-1', prompt: [1, 2] });
    expect(typeof first.priority).toBe('number');
    expect(await sent({ model: 'tuned', prompt: [1], cache_salt: 'own', priority: 7, session_id: 'b' })).toMatchObject({
      model: 'inner-lora',
      cache_salt: 'acme-salt\nown',
      session_id: 'b',
    });
    expect(await sent({ model: 'other', prompt: [1] })).toMatchObject({ model: 'inner' });
  });

  it('tells the connector which thread it is of', async () => {
    const worker = await emulated({ directivesPort: 0, eventsPort: 0 });
    const { url, pool } = await serve([worker]);
    await until('the connector is known', () => pool.workers.workers[0]?.features.connector !== undefined);
    const submit = vi.spyOn(worker.engines[0] as Engine, 'submit');
    const call = async (session: string): Promise<number | undefined> => {
      const body = { model: 'm', prompt: range(1, 64), max_tokens: 2, kv_transfer_params: { own: 1 } };
      expect((await post(url, '/v1/completions', body, { 'x-session-id': session })).status).toBe(200);
      return submit.mock.lastCall?.[0].thread;
    };
    const threads = [await call('a'), await call('a'), await call('b')];
    const [first = Number.NaN] = threads;
    expect(threads).toEqual([first, first, first + 1]);
    expect((await get(url, '/saga/workers')).json().workers[0]?.features.connector).toBe('leases');
  });
});

describe('models', () => {
  it('are listed by the names that clients use', async () => {
    const worker = await FakeWorker.start(json({}));
    const { url } = await serve([worker], {}, { aliases: { 'a/b': null } });
    expect((await get(url, '/v1/models')).json()).toMatchObject({ object: 'list', data: [{ id: 'm' }, { id: 'a/b' }] });
    expect((await get(url, '/v1/models/m')).json()).toMatchObject({ id: 'm', object: 'model' });
    expect((await get(url, '/v1/models/a%2Fb')).json()).toMatchObject({ id: 'a/b' });
    expect((await get(url, '/v1/models/none')).json()).toMatchObject({ error: { code: 'model_not_found' } });
  });

  it('each have their own workers', async () => {
    const [a, b] = [await FakeWorker.start(json({ from: 'a' })), await FakeWorker.start(json({ from: 'b' }))];
    const { url } = await serve([a], {
      models: [
        { name: 'm', servers: [{ url: a.url }] },
        { name: 'n', upstreamName: 'inner', servers: [{ url: b.url }] },
      ],
    });
    expect((await post(url, '/v1/completions', { model: 'm', prompt: [1] })).json()).toEqual({ from: 'a' });
    expect((await post(url, '/v1/completions', { model: 'n', prompt: [1] })).json()).toEqual({ from: 'b' });
    expect((await post(url, '/v1/completions', { prompt: [1] })).json()).toMatchObject({ error: { param: 'model' } });
  });
});

describe('other routes of a model', () => {
  it('go to one of its workers, and to another one where that fails', async () => {
    const dead = await FakeWorker.start((_request, response) => void response.destroy());
    const live = await FakeWorker.start(json({ data: [1] }));
    const serving = await serve([dead, live], {}, { upstreamName: 'inner' });
    const answer = await post(serving.url, '/v1/embeddings?x=1', { model: 'm', input: 'text' });
    expect([answer.status, answer.json()]).toEqual([200, { data: [1] }]);
    expect(live.requests).toMatchObject([{ path: '/v1/embeddings?x=1', method: 'POST' }]);
    expect(JSON.parse(live.requests[0]?.body ?? '')).toEqual({ model: 'inner', input: 'text' });
    expect(leftovers(serving)).toEqual(nothingLeft);
    live.script = (_request, response) => void response.destroy();
    const none = await post(serving.url, '/v1/embeddings', { model: 'm', input: 'text' });
    expect([none.status, none.json().error.code, none.headers.get('retry-after')]).toEqual([502, 'worker_lost', '1']);
  });

  it('are none that change one worker alone, or lead out of /v1', async () => {
    const worker = await FakeWorker.start(json({}));
    const { port } = await serve([worker]);
    for (const path of [
      '/v1/load_lora_adapter',
      '/v1/unload_lora_adapter',
      '/v1/../admin',
      '/v1/a/%2e%2e/b',
      '/v1//admin',
      '/v1/a%2Fb',
      '/v1/..%5cadmin',
      '/v2/x',
      '/tokenize',
    ]) {
      const status = await new Promise<number | undefined>((resolve, reject) => {
        httpRequest({ port, path, method: 'POST', headers: { 'content-type': 'application/json' } }, (response) => {
          response.resume();
          resolve(response.statusCode);
        })
          .on('error', reject)
          .end('{"model":"m"}');
      });
      expect([path, status]).toEqual([path, 404]);
    }
    expect(worker.requests).toEqual([]);
  });
});

describe('previous_response_id', () => {
  it('goes to the worker that holds it, again and again; to no other tenant', async () => {
    let count = 0;
    const script =
      (who: string) =>
      (_request: unknown, response: ServerResponse): void => {
        response.setHeader('content-type', 'application/json');
        response.end(JSON.stringify({ id: `resp_${who}_${++count}`, status: 'completed', output: [], from: who }));
      };
    const [a, b] = [await FakeWorker.start(script('a')), await FakeWorker.start(script('b'))];
    const { url } = await serve([a, b], {
      tenants: [
        { name: 'one', apiKeys: ['k1'] },
        { name: 'two', apiKeys: ['k2'] },
      ],
    });
    const one = { authorization: 'Bearer k1' };
    const first = (await post(url, '/v1/responses', { model: 'm', input: 'hi' }, one)).json();
    let { id } = first;
    for (let i = 0; i < 4; ++i) {
      const next = await post(url, '/v1/responses', { model: 'm', input: 'more', previous_response_id: id }, one);
      expect(next.status).toBe(200);
      expect(next.json().from).toBe(first.from);
      ({ id } = next.json());
    }
    const read = await get(url, `/v1/responses/${first.id}`, one);
    expect(read.json().from).toBe(first.from);
    expect((first.from === 'a' ? a : b).requests.at(-1)).toMatchObject({
      method: 'GET',
      path: `/v1/responses/${first.id}`,
    });
    const other = await post(
      url,
      '/v1/responses',
      { model: 'm', input: 'x', previous_response_id: id },
      { authorization: 'Bearer k2' },
    );
    expect([other.status, other.json().error.code]).toEqual([404, 'not_found']);
    expect((await get(url, `/v1/responses/${id}`, { authorization: 'Bearer k2' })).status).toBe(404);
  });

  it('is not known when nobody gave it', async () => {
    const worker = await FakeWorker.start(json({}));
    const { url } = await serve([worker]);
    const answer = await post(url, '/v1/responses', { model: 'm', input: 'x', previous_response_id: 'resp_none' });
    expect(answer.status).toBe(404);
    expect(answer.json().error).toMatchObject({ code: 'not_found', param: 'previous_response_id' });
    await delay(1);
    expect(worker.requests).toEqual([]);
  });
});
