/** What nobody should send: each a clear error, and the server lives on. */
import { connect } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  FakeWorker,
  emulated,
  get,
  json,
  leftovers,
  nothingLeft,
  post,
  range,
  raw,
  serve,
  until,
  type Answer,
  type Serving,
} from './helpers.js';

let worker: FakeWorker;
let serving: Serving;

beforeEach(async () => {
  worker = await FakeWorker.start(json({ choices: [], fine: true }));
  serving = await serve([worker], { maxBodyBytes: 100_000, maxHeldBytes: 2 ** 20 });
});

afterEach(async () => {
  // Whatever was sent: nothing is left of it, and the next one is served.
  await until('nothing is left', () => JSON.stringify(leftovers(serving)) === JSON.stringify(nothingLeft));
  const next = await post(serving.url, '/v1/completions', { model: 'm', prompt: [1, 2, 3] });
  expect([next.status, next.json().fine]).toEqual([200, true]);
  expect(serving.log.lines.filter((line) => line.includes('failed within'))).toEqual([]);
});

function expectError(answer: Answer, status: number, code: string, message: RegExp, param: string | null = null): void {
  expect([answer.status, answer.json()]).toMatchObject([status, { error: { code, param } }]);
  expect(answer.json().error.message).toMatch(message);
  expect(typeof answer.json().error.type).toBe('string');
  expect(answer.headers.get('content-type')).toBe('application/json');
}

describe('bodies', () => {
  it.each<[string, string | Uint8Array, string, RegExp]>([
    ['that end too early', '{"model":"m"', 'malformed_json', /^malformed JSON at byte 12: expected/],
    ['with a comma too many', '{"model":"m",}', 'malformed_json', /at byte 13/],
    ['that are empty', '', 'malformed_json', /at byte 0/],
    ['of two values', '{}{}', 'malformed_json', /at byte 2/],
    ['that are an array', '[{"model":"m"}]', 'malformed_json', /must be a JSON object, got an array/],
    ['that are a text', '"m"', 'malformed_json', /must be a JSON object, got a string/],
    ['that are null', 'null', 'malformed_json', /must be a JSON object, got null/],
    ['that name a member twice', '{"model":"m","prompt":[1],"model":"n"}', 'malformed_json', /at byte 27/],
    ['that name a member twice, escaped', '{"model":"m","mod\\u0065l":"n"}', 'malformed_json', /at byte/],
    ['with a byte that is no UTF-8', Buffer.from('{"model":"m\xff"}', 'latin1'), 'malformed_json', /at byte 11/],
    [
      'with a half of a surrogate in bytes',
      Buffer.from([...Buffer.from('{"a":"'), 0xed, 0xa0, 0x80, 0x22, 0x7d]),
      'malformed_json',
      /at byte 6/,
    ],
    ['with a control character', '{"model":"m\u0001"}', 'malformed_json', /at byte 11/],
    ['with a byte order mark', '\ufeff{"model":"m"}', 'malformed_json', /at byte 0/],
    ['nested too deep', `{"model":"m","a":${'['.repeat(2000)}${']'.repeat(2000)}}`, 'malformed_json', /levels|deep/],
    [
      'with too many members',
      `{${range(0, 5000)
        .map((i) => `"a${i}":1`)
        .join(',')}}`,
      'invalid_request',
      /members/,
    ],
  ])('%s', async (_, body, code, message) => {
    expectError(await post(serving.url, '/v1/chat/completions', body), 400, code, message);
    const anthropic = await post(serving.url, '/v1/messages', body);
    expect([anthropic.status, anthropic.json()]).toMatchObject([
      400,
      { type: 'error', error: { type: 'invalid_request_error', code } },
    ]);
    expect(worker.requests).toEqual([]);
  });

  it('that are too large, as their length says', async () => {
    const answer = await post(serving.url, '/v1/completions', { prompt: 'x'.repeat(200_000) });
    expectError(answer, 413, 'body_too_large', /at most 100000 bytes/);
    // The answer comes though its client is still sending.
    for (let i = 0; i < 5; ++i)
      expect((await post(serving.url, '/v1/messages', { prompt: 'x'.repeat(8_000_000) })).json()).toMatchObject({
        type: 'error',
        error: { type: 'request_too_large' },
      });
  });

  it('that are too large, in chunks', async () => {
    const parts = new ReadableStream<Uint8Array>({
      pull(controller) {
        controller.enqueue(Buffer.alloc(50_000, 'x'));
        if ((this as { count?: number }).count === 40) controller.close();
        (this as { count?: number }).count = ((this as { count?: number }).count ?? 0) + 1;
      },
    });
    const response = await fetch(`${serving.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: parts,
      duplex: 'half',
    });
    expect([response.status, ((await response.json()) as { error: { code: string } }).error.code]).toEqual([
      413,
      'body_too_large',
    ]);
  });

  it('of more bytes in all than may be held', async () => {
    const sockets = range(0, 12).map(() => {
      const socket = connect(serving.port, '127.0.0.1');
      let text = '';
      socket.on('data', (data: Buffer) => (text += data.toString())).on('error', () => undefined);
      socket.write(
        'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n',
      );
      socket.write('x'.repeat(99_000));
      return { socket, text: () => text };
    });
    await until('two are refused', () => sockets.filter(({ text }) => text().includes('"queue_full"')).length === 2);
    expect(sockets.filter(({ text }) => text().startsWith('HTTP/1.1 429')).length).toBe(2);
    expect(sockets.some(({ text }) => /retry-after: 1\r\n/.test(text()))).toBe(true);
    expect(serving.gateway.heldBytes).toBeLessThanOrEqual(2 ** 20);
    for (const { socket } of sockets) socket.destroy();
  });

  it.each<[string, Record<string, string>]>([
    ['of text/plain', { 'content-type': 'text/plain' }],
    ['of a form', { 'content-type': 'application/x-www-form-urlencoded' }],
    ['of a type that only begins so', { 'content-type': 'application/jsonp' }],
    ['compressed', { 'content-type': 'application/json', 'content-encoding': 'gzip' }],
  ])('%s', async (_, headers) => {
    const answer = await post(serving.url, '/v1/completions', '{"model":"m"}', headers);
    expectError(answer, 415, 'unsupported_media_type', /must/);
  });

  it('of the usual types', async () => {
    for (const type of ['application/json; charset=utf-8', 'Application/JSON', 'application/vnd.x+json'])
      expect((await post(serving.url, '/v1/completions', '{"prompt":[1]}', { 'content-type': type })).status).toBe(200);
  });
});

describe('members', () => {
  it.each<[string, object, number, string, RegExp, string | null]>([
    ['an unknown model', { model: 'gpt-9', prompt: [1] }, 404, 'model_not_found', /"gpt-9"/, 'model'],
    ['a model that is a number', { model: 5 }, 400, 'invalid_request', /model must be a string, got a number/, 'model'],
    ['a model with a long name', { model: 'x'.repeat(9000) }, 400, 'invalid_request', /at most 1024/, 'model'],
    [
      'stream as a text',
      { prompt: [1], stream: 'yes' },
      400,
      'invalid_request',
      /stream must be true or false/,
      'stream',
    ],
    ['n as a text', { prompt: [1], n: '3' }, 400, 'invalid_request', /n must be an integer from 1 to 128/, 'n'],
    ['n as a fraction', { prompt: [1], n: 1.5 }, 400, 'invalid_request', /n must be/, 'n'],
    ['n of 0', { prompt: [1], n: 0 }, 400, 'invalid_request', /n must be/, 'n'],
    [
      'stream_options as a list',
      { prompt: [1], stream: true, stream_options: [] },
      400,
      'invalid_request',
      /must be an object/,
      'stream_options',
    ],
    [
      'cache_salt as a number',
      { prompt: [1], cache_salt: 4 },
      400,
      'invalid_request',
      /must be a string/,
      'cache_salt',
    ],
    ['a token id below 0', { prompt: [1, -1] }, 400, 'invalid_request', /at byte/, 'prompt'],
    ['a token id of 2^32', { prompt: [1, 4294967296] }, 400, 'invalid_request', /at byte/, 'prompt'],
    ['a token id that is no integer', { prompt: [1, 2.5] }, 400, 'invalid_request', /at byte/, 'prompt'],
    [
      'a prompt that is too long',
      { prompt: range(0, 5001) },
      400,
      'prompt_too_long',
      /5001 tokens; the most is 5000/,
      null,
    ],
  ])('%s', async (_, body, status, code, message, param) => {
    const small = await serve([worker], {}, { maxPromptTokens: 5000 });
    expectError(await post(small.url, '/v1/completions', body), status, code, message, param);
    expect(worker.requests).toEqual([]);
    expect(leftovers(small)).toEqual(nothingLeft);
  });

  it('that only the worker understands are its to refuse', async () => {
    const real = await emulated();
    const own = await serve([real]);
    for (const prompt of [[], '', [1, 'a'], [[1, 2], [3]], null, 7, { a: 1 }, [{}]]) {
      const body = { model: 'm', prompt, max_tokens: 1 };
      const [direct, passed] = [
        await post(real.url, '/v1/completions', body),
        await post(own.url, '/v1/completions', body),
      ];
      expect([JSON.stringify(prompt), passed.status]).toEqual([JSON.stringify(prompt), direct.status]);
      if (direct.status !== 200) expect(passed.text).toBe(direct.text);
    }
    for (const messages of [[], [5], [{ role: 'nobody' }], [{ content: 3 }]]) {
      const body = { model: 'm', messages, max_tokens: 1 };
      const [direct, passed] = [
        await post(real.url, '/v1/chat/completions', body),
        await post(own.url, '/v1/chat/completions', body),
      ];
      expect([JSON.stringify(messages), passed.status]).toEqual([JSON.stringify(messages), direct.status]);
    }
    const none = await post(own.url, '/v1/chat/completions', { model: 'm', messages: 'hello' });
    expectError(none, 400, 'invalid_request', /messages is needed/, 'messages');
    expect(leftovers(own)).toEqual(nothingLeft);
  });
});

describe('methods and paths', () => {
  it.each<[string, string, number, string]>([
    ['GET', '/v1/chat/completions', 405, 'method_not_allowed'],
    ['DELETE', '/v1/completions', 405, 'method_not_allowed'],
    ['POST', '/metrics', 405, 'method_not_allowed'],
    ['PATCH', '/healthz', 405, 'method_not_allowed'],
    ['GET', '/saga/select', 405, 'method_not_allowed'],
    ['GET', '/', 404, 'unknown_route'],
    ['GET', '/v1', 404, 'unknown_route'],
    ['GET', '/v1/files', 404, 'unknown_route'],
    ['POST', '/saga/none', 404, 'unknown_route'],
    ['GET', '/__proto__', 404, 'unknown_route'],
    ['GET', '/constructor', 404, 'unknown_route'],
    ['GET', '/saga/explain/none', 404, 'not_found'],
    ['GET', '/saga/explain/%E0%A4%A', 404, 'not_found'],
    ['GET', `/${'a'.repeat(12_000)}`, 404, 'unknown_route'],
  ])('%s %s', async (method, path, status, code) => {
    const response = await fetch(serving.url + path, { method });
    expect([response.status, (await response.json()) as object]).toMatchObject([status, { error: { code } }]);
  });

  it('HEAD is GET without a body', async () => {
    const response = await fetch(`${serving.url}/v1/models`, { method: 'HEAD' });
    expect([response.status, await response.text()]).toEqual([200, '']);
    expect((await fetch(`${serving.url}/v1/completions`, { method: 'HEAD' })).status).toBe(405);
  });

  it('a path of another form is none of ours', async () => {
    for (const target of ['http://evil/v1/models', '//v1/models', '*', '/../v1/models', '/v1/models/../../metrics']) {
      const method = target === '*' ? 'OPTIONS' : 'GET';
      expect(await raw(serving.port, `${method} ${target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`)).toMatch(
        /^HTTP\/1\.1 404 /,
      );
    }
  });
});

describe('headers', () => {
  it('that are too large get 431', async () => {
    const answer = await raw(serving.port, `GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: ${'a'.repeat(40_000)}\r\n\r\n`);
    expect(answer).toMatch(/^HTTP\/1\.1 431 [\s\S]*"code":"invalid_request"/);
  });

  it('by the thousands are served or refused', async () => {
    const few = range(0, 800)
      .map((i) => `a${i}: b\r\n`)
      .join('');
    expect(await raw(serving.port, `GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n${few}\r\n`)).toMatch(
      /^HTTP\/1\.1 200 /,
    );
    const many = range(0, 9000)
      .map((i) => `a${i}: b\r\n`)
      .join('');
    expect(await raw(serving.port, `GET /healthz HTTP/1.1\r\nhost: x\r\n${many}\r\n`)).toMatch(/^HTTP\/1\.1 431 /);
  });

  it.each(['a b', 'a\u00ff', '"><script>', 'x'.repeat(500), '{}', 'a,b\tc'])(
    'x-request-id of %j is not repeated',
    async (id) => {
      const body = '{"prompt":[1]}';
      const answer = await raw(
        serving.port,
        Buffer.from(
          `POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: ${id}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
          'latin1',
        ),
      );
      expect(answer).toMatch(/^HTTP\/1\.1 200 /);
      expect(answer).toMatch(/\r\nx-request-id: [0-9a-f-]{36}\r\n/);
      expect(worker.requests[0]?.headers['x-request-id']).toMatch(/^[0-9a-f-]{36}$/);
    },
  );

  it('that break lines are refused by the parser', async () => {
    for (const header of ['x-request-id: a\rset-cookie: b', 'x-a: b\0c', 'x-request-id : a', ' x: folded', 'x y: z']) {
      const answer = await raw(serving.port, `GET /healthz HTTP/1.1\r\nhost: x\r\n${header}\r\n\r\n`);
      expect([header, /^HTTP\/1\.1 400 /.test(answer)]).toEqual([header, true]);
      expect(answer).not.toContain('set-cookie');
    }
  });

  it('of sessions may hold anything', async () => {
    for (const id of ['\u00ff\u00fe', 'x'.repeat(8000), '../..', '%00', '{"a":1}', '"'])
      expect((await post(serving.url, '/v1/completions', { prompt: [1] }, { 'x-saga-session-id': id })).status).toBe(
        200,
      );
    expect(serving.pool.sessions.size).toBe(6);
  });
});

describe('connections', () => {
  const request = (body: string, more = ''): string =>
    `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${more}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;

  it('of HTTP/1.0 are answered and closed', async () => {
    const answer = await raw(serving.port, 'GET /v1/models HTTP/1.0\r\n\r\n', 5000);
    expect(answer).toMatch(/^HTTP\/1\.1 200 [\s\S]*connection: close[\s\S]*"id":"m"/i);
  });

  it('with several requests at once get the answers in order', async () => {
    const answer = await raw(
      serving.port,
      'GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n' +
        request('{"model":"none"}') +
        request('{"prompt":[1]}') +
        'GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n',
      2000,
    );
    expect([...answer.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status)).toEqual(['200', '404', '200', '200']);
  });

  it.each([
    [
      'both lengths',
      'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n',
    ],
    ['two lengths', 'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde'],
    ['a length that is no number', 'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: +4\r\n\r\nabcd'],
    ['another encoding', 'POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\nabcd'],
    [
      'chunked, but not last',
      'POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\nabcd',
    ],
    [
      'a chunk size that is none',
      'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n',
    ],
    ['no HTTP', 'HELO example\r\n\r\n'],
    ['TLS', Buffer.from([0x16, 0x03, 0x01, 0x02, 0, 1, 0, 1, 0xfc, 3, 3])],
    ['a method that is none', 'MAKE /v1/models HTTP/1.1\r\nhost: x\r\n\r\n'],
    ['no host', 'GET /v1/models HTTP/1.1\r\n\r\n'],
  ])('with %s are refused', async (_, bytes) => {
    const answer = await raw(serving.port, bytes);
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect([...answer.matchAll(/HTTP\/1\.1 /g)].length).toBe(1);
    expect(worker.requests).toEqual([]);
  });

  it('whose next request is no HTTP keep the answer that is on its way', async () => {
    worker.script = (_request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write('data: {"choices":[{}]}\n\n');
    };
    const socket = connect(serving.port, '127.0.0.1');
    let text = '';
    socket.on('data', (data: Buffer) => (text += data.toString())).on('error', () => undefined);
    socket.write(request('{"prompt":[1],"stream":true}'));
    await until('it streams', () => text.includes('data:'));
    socket.write('garbage\r\n\r\n');
    await until('it is closed', () => socket.destroyed);
    expect(text).not.toContain('400 Bad Request');
    await until('the worker is let go', () => worker.aborted === 1);
    worker.script = json({ choices: [], fine: true });
  });

  it('that ask first are told to send when the key is right', async () => {
    const closed = await serve([worker], { apiKeys: ['k'] });
    const head =
      'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 14\r\n';
    const refused = await raw(closed.port, `${head}\r\n`);
    expect(refused).toMatch(/^HTTP\/1\.1 401 /);
    const told = await raw(closed.port, `${head}authorization: Bearer k\r\n\r\n`);
    expect(told).toBe('HTTP/1.1 100 Continue\r\n\r\n');
    const whole = await raw(closed.port, `${head}authorization: Bearer k\r\n\r\n{"prompt":[1]}`);
    expect(whole).toMatch(/^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 /);
    expect((await get(closed.url, '/healthz')).status).toBe(200);
  });
});
