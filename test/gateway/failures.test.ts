/** Clients that go, clients that are slow, workers that die: nothing is lost and nothing is left. */
import { connect, type Socket } from 'node:net';
import type { ServerResponse } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import {
  FakeWorker,
  emulated,
  events,
  json,
  leftovers,
  nothingLeft,
  post,
  range,
  raw,
  serve,
  until,
  type Json,
  type Script,
  type Serving,
} from './helpers.js';

const chunk = 'data: {"choices":[{}]}\n\n';
const streamed = { model: 'm', prompt: range(1, 40), stream: true };

/** Begins a stream and never ends it. */
const endless: Script = (_request, response) => {
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  response.write(chunk);
};

/** The head, and nothing behind it. */
const headOnly: Script = (_request, response) => {
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  response.flushHeaders();
};

const silent: Script = () => undefined;

async function nothingIsLeft(serving: Serving): Promise<void> {
  await until('nothing is left', () => JSON.stringify(leftovers(serving)) === JSON.stringify(nothingLeft), 3000).catch(
    () => expect(leftovers(serving)).toEqual(nothingLeft),
  );
}

describe('a client that goes', () => {
  it.each<[string, Script, boolean]>([
    ['before the head', silent, false],
    ['before the first byte', headOnly, false],
    ['in mid stream', endless, true],
  ])('%s ends the request at its worker', async (_, script, answered) => {
    const worker = await FakeWorker.start(script);
    const serving = await serve([worker]);
    const gone = new AbortController();
    const answer = fetch(`${serving.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(streamed),
      signal: gone.signal,
    });
    if (answered) await answer;
    else answer.catch(() => undefined);
    await until('the worker has it', () => worker.requests.length === 1);
    expect(leftovers(serving)).toMatchObject({ openCalls: 1, sessionCalls: 1 });
    gone.abort();
    await until('it is aborted', () => worker.aborted === 1);
    await nothingIsLeft(serving);
    expect(serving.pool.counters).toMatchObject({ cancelled: 1, finished: 0, retried: 0 });
    expect(await serving.gateway.metrics.text()).toMatch(
      /saga:requests_total\{[^}]*endpoint="completions"[^}]*status="499"\} 1/,
    );
  });

  it('while it waits for a worker is forgotten', async () => {
    const worker = await FakeWorker.start(endless);
    const serving = await serve([worker]);
    serving.pool.workers.drain(worker.url);
    const gone = new AbortController();
    const answer = fetch(`${serving.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(streamed),
      signal: gone.signal,
    });
    answer.catch(() => undefined);
    await until('it waits', () => serving.pool.waitingCalls === 1);
    gone.abort();
    await nothingIsLeft(serving);
    expect(worker.requests).toEqual([]);
  });

  it('with its body half sent leaves nothing', async () => {
    const worker = await FakeWorker.start(json({}));
    const serving = await serve([worker]);
    const socket = connect(serving.port, '127.0.0.1');
    socket.write('POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n');
    socket.write(`content-length: 1000\r\n\r\n{"model":"m",`);
    await until('some of it is held', () => serving.gateway.heldBytes === 13);
    socket.destroy();
    await nothingIsLeft(serving);
  });
});

describe('a client that does not read', () => {
  it('stops its worker, and is dropped after chunk_seconds', async () => {
    let sent = 0;
    let blocked = 0;
    const block = `data: ${'x'.repeat(65_536)}\n\n`;
    const worker = await FakeWorker.start(async (_request, response: ServerResponse) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      while (!response.destroyed) {
        sent += block.length;
        if (!response.write(block)) {
          blocked += 1;
          await Promise.race([
            new Promise((resolve) => response.once('drain', resolve)),
            new Promise((resolve) => response.once('close', resolve)),
          ]);
        }
      }
    });
    const serving = await serve([worker], { chunkSeconds: 1 });
    const body = JSON.stringify(streamed);
    const socket = connect(serving.port, '127.0.0.1');
    socket.pause();
    socket.write(
      `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    await until('the worker is stopped', () => blocked > 0);
    await delay(300);
    const after = sent;
    await delay(300);
    // What the sockets of two connections hold, and not more as time goes on.
    expect(sent).toBe(after);
    expect(sent).toBeLessThan(64 * 2 ** 20);
    const before = performance.now();
    await until('the worker is let go', () => worker.aborted === 1, 5000);
    expect(performance.now() - before).toBeLessThan(3000);
    await nothingIsLeft(serving);
    socket.destroy();
  });

  it('and one that reads slowly gets all of it', async () => {
    const block = `data: ${'x'.repeat(100_000)}\n\n`;
    const worker = await FakeWorker.start(events(...Array.from({ length: 60 }, () => block)));
    const serving = await serve([worker], { chunkSeconds: 1 });
    const response = await fetch(`${serving.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(streamed),
    });
    let bytes = 0;
    for await (const part of response.body as unknown as AsyncIterable<Uint8Array>) {
      bytes += part.length;
      if (bytes % 7 === 0) await delay(10);
    }
    expect(bytes).toBe(60 * block.length);
    await nothingIsLeft(serving);
  });
});

describe('what takes too long', () => {
  it('in sending its body gets 408', async () => {
    const worker = await FakeWorker.start(json({}));
    const serving = await serve([worker], { bodySeconds: 0.2 });
    const answer = await raw(
      serving.port,
      'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"mod',
      3000,
    );
    expect(answer).toMatch(/^HTTP\/1\.1 408 /);
    expect(answer).toContain('"code":"request_timeout"');
    await nothingIsLeft(serving);
  });

  it.each<[string, Script]>([
    ['no head', silent],
    ['a head and nothing behind it', headOnly],
  ])('in beginning its answer gets 504: %s', async (_, script) => {
    const worker = await FakeWorker.start(script);
    const serving = await serve([worker], { firstByteSeconds: 0.2, chunkSeconds: 0.1, retries: 0 });
    const answer = await post(serving.url, '/v1/completions', streamed);
    expect([answer.status, answer.json().error]).toEqual([
      504,
      {
        message: 'no answer began within 0.2 seconds',
        type: 'timeout_error',
        param: null,
        code: 'deadline_exceeded',
      },
    ]);
    await until('the worker is let go', () => worker.aborted === 1);
    await nothingIsLeft(serving);
  });

  it('as a whole gets 504, or is broken off once it has begun', async () => {
    const worker = await FakeWorker.start(silent);
    const serving = await serve([worker], { deadlineSeconds: 0.2 });
    const answer = await post(serving.url, '/v1/messages', { model: 'm', messages: [], max_tokens: 1 });
    expect([answer.status, answer.json()]).toMatchObject([504, { type: 'error', error: { type: 'timeout_error' } }]);
    worker.script = endless;
    await expect(post(serving.url, '/v1/completions', streamed)).rejects.toThrow();
    worker.script = silent;
    expect((await post(serving.url, '/v1/embeddings', { model: 'm' })).status).toBe(504);
    await nothingIsLeft(serving);
  });

  it('between two chunks is broken off', async () => {
    const worker = await FakeWorker.start(endless);
    const serving = await serve([worker], { chunkSeconds: 0.2 });
    await expect(post(serving.url, '/v1/completions', streamed)).rejects.toThrow();
    await until('the worker is let go', () => worker.aborted === 1);
    await nothingIsLeft(serving);
  });

  it('in the queue gets 503', async () => {
    const worker = await FakeWorker.start(json({}));
    const serving = await serve([worker], { queueSeconds: 0.2 });
    serving.pool.workers.drain(worker.url);
    const answer = await post(serving.url, '/v1/completions', streamed);
    expect([answer.status, answer.json().error.code, answer.headers.get('retry-after')]).toEqual([
      503,
      'queue_timeout',
      '10',
    ]);
    await nothingIsLeft(serving);
  });
});

describe('a worker that dies before its first byte', () => {
  const reset: Script = (request) => void request.socket.resetAndDestroy();
  const closed: Script = (request) => void request.socket.destroy();
  const unavailable: Script = (_request, response) => {
    response.writeHead(503, { 'content-type': 'application/json' }).end('{"error":"busy"}');
  };
  const headThenGone: Script = (request, response) => {
    void headOnly(request, response, '');
    setTimeout(() => request.socket.destroy(), 20);
  };
  const noHttp: Script = (request) => void request.socket.end('SMTP ready\r\n');

  it.each<[string, Script]>([
    ['a reset connection', reset],
    ['a closed connection', closed],
    ['503', unavailable],
    ['a head and no more', headThenGone],
    ['no HTTP', noHttp],
  ])('is replaced, and the client sees one answer: %s', async (_, script) => {
    const [bad, good] = [await FakeWorker.start(script), await FakeWorker.start(events(chunk, 'data: [DONE]\n\n'))];
    const serving = await serve([bad, good]);
    for (let i = 0; i < 4; ++i) {
      const answer = await post(serving.url, '/v1/completions', { ...streamed, prompt: range(100 * i, 64) });
      expect([answer.status, answer.text]).toEqual([200, `${chunk}data: [DONE]\n\n`]);
    }
    expect(good.requests.length).toBe(4);
    expect(bad.requests.length).toBeGreaterThan(0);
    expect(serving.pool.counters).toMatchObject({ finished: 4, retried: bad.requests.length, cancelled: 0 });
    await nothingIsLeft(serving);
  });

  it('as a refused connection', async () => {
    const [bad, good] = [await FakeWorker.start(json({})), await FakeWorker.start(events(chunk))];
    const serving = await serve([bad, good]);
    await bad.close();
    for (let i = 0; i < 4; ++i)
      expect((await post(serving.url, '/v1/completions', { ...streamed, prompt: range(100 * i, 64) })).status).toBe(
        200,
      );
    expect(good.requests.length).toBe(4);
    await nothingIsLeft(serving);
  });

  it('and all others too: 502 with retry-after; when they are lost, 503', async () => {
    const workers = [await FakeWorker.start(reset), await FakeWorker.start(reset)];
    const serving = await serve(workers);
    const answer = await post(serving.url, '/v1/completions', streamed);
    expect([answer.status, answer.json().error.code, answer.headers.get('retry-after')]).toEqual([
      502,
      'worker_lost',
      '1',
    ]);
    // Each was tried.
    expect(workers.map(({ requests }) => requests.length > 0)).toEqual([true, true]);
    await nothingIsLeft(serving);
    for (const worker of workers) {
      worker.healthy = false;
      serving.pool.workers.workers.forEach((one) => one.unreachable(new Error('gone')));
    }
    await until('they are lost', () => serving.pool.workers.workers.length === 0);
    const later = await post(serving.url, '/v1/completions', streamed);
    expect([later.status, later.json().error.code, later.headers.get('retry-after')]).toEqual([503, 'no_worker', '5']);
    const ready = await fetch(`${serving.url}/readyz`);
    expect([ready.status, ((await ready.json()) as Json).ready]).toEqual([503, false]);
    await nothingIsLeft(serving);
  });

  it('gets calls again when it answers again', async () => {
    const [a, b] = [await FakeWorker.start(unavailable), await FakeWorker.start(unavailable)];
    const serving = await serve([a, b]);
    expect((await post(serving.url, '/v1/completions', streamed)).status).toBe(502);
    a.script = b.script = events(chunk);
    expect((await post(serving.url, '/v1/completions', streamed)).status).toBe(200);
    await delay(1100);
    const accepting = serving.pool.workers.workers.map(({ worker }) => worker.state().accepts);
    expect(accepting).toEqual([true, true]);
  });
});

describe('a worker that dies in mid stream', () => {
  it('breaks the connection; nothing else is lost, the next call goes elsewhere', async () => {
    const other: Script = events(chunk, 'data: [DONE]\n\n');
    const dying: Script = (request, response) => {
      void endless(request, response, '');
      setTimeout(() => request.socket.destroy(), 30);
    };
    const [a, b] = [await FakeWorker.start(dying), await FakeWorker.start(dying)];
    const serving = await serve([a, b]);
    await expect(post(serving.url, '/v1/completions', streamed)).rejects.toThrow();
    const [first, second] = a.requests.length === 1 ? [a, b] : [b, a];
    second.script = other;
    const next = await post(serving.url, '/v1/completions', streamed);
    expect([next.status, next.text]).toEqual([200, `${chunk}data: [DONE]\n\n`]);
    expect([first.requests.length, second.requests.length]).toEqual([1, 1]);
    expect(serving.pool.counters).toMatchObject({ finished: 1, cancelled: 1, retried: 0 });
    expect(await serving.gateway.metrics.text()).toContain('saga:errors_total{code="worker_lost"} 1');
    await nothingIsLeft(serving);
  });

  it('of many: each client is told, all calls end', async () => {
    const worker = await emulated({ timeScale: 1, script: () => ({ outputTokens: 500 }) });
    const serving = await serve([worker]);
    const calls = range(0, 20).map((i) =>
      post(serving.url, '/v1/completions', { ...streamed, max_tokens: 500, prompt: range(100 * i, 64) }).then(
        ({ status }) => status,
        () => 'broken',
      ),
    );
    await until('they run', () => serving.pool.scheduler.stats().openCalls === 20);
    await delay(200);
    await worker.close();
    const ends = await Promise.all(calls);
    expect(ends.every((end) => end === 'broken' || end === 502 || end === 503)).toBe(true);
    await nothingIsLeft(serving);
  });
});

describe('a worker that is removed', () => {
  it('while calls wait for it: they go to the others', async () => {
    const [a, b] = [await FakeWorker.start(json({ from: 'a' })), await FakeWorker.start(json({ from: 'b' }))];
    const serving = await serve([a, b], { queueSeconds: 5 });
    serving.pool.workers.drain(a.url);
    serving.pool.workers.drain(b.url);
    const calls = range(0, 5).map((i) => post(serving.url, '/v1/completions', { ...streamed, prompt: [i + 1] }));
    await until('they wait', () => serving.pool.waitingCalls === 5);
    serving.pool.workers.remove(a.url);
    await delay(30);
    serving.pool.workers.resume(b.url);
    expect((await Promise.all(calls)).map((answer) => answer.json().from)).toEqual(['b', 'b', 'b', 'b', 'b']);
    await nothingIsLeft(serving);
  });

  it('while an answer of it is under way: that is complete', async () => {
    let end: () => void = () => undefined;
    const a = await FakeWorker.start((_request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(chunk);
      end = () => response.end('data: [DONE]\n\n');
    });
    const b = await FakeWorker.start(json({}));
    const serving = await serve([a]);
    const answer = post(serving.url, '/v1/completions', streamed);
    await until('it runs', () => a.requests.length === 1);
    await serving.pool.workers.add({ url: b.url });
    serving.pool.workers.remove(a.url);
    await delay(30);
    end();
    expect((await answer).text).toBe(`${chunk}data: [DONE]\n\n`);
    // Not sent to the other one, though the scheduler would have it there.
    expect(b.requests).toEqual([]);
    await nothingIsLeft(serving);
  });
});

describe('a gateway that closes', () => {
  it('lets answers end, takes no new ones, breaks off what is left', async () => {
    let end: () => void = () => undefined;
    const worker = await FakeWorker.start((request, response) => {
      void endless(request, response, '');
      end = () => response.end();
    });
    const serving = await serve([worker]);
    const first = post(serving.url, '/v1/completions', streamed);
    await until('it runs', () => worker.requests.length === 1);
    const socket: Socket = connect(serving.port, '127.0.0.1');
    await new Promise((resolve) => socket.once('connect', resolve));
    socket.write('GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n');
    await new Promise((resolve) => socket.once('data', resolve));
    const closing = serving.gateway.close({ graceSeconds: 5 });
    await delay(30);
    end();
    expect((await first).text).toBe(chunk);
    await closing;
    expect(serving.gateway.heldBytes).toBe(0);
    socket.destroy();
  });

  it('breaks off what is left after the grace', async () => {
    const worker = await FakeWorker.start(endless);
    const serving = await serve([worker]);
    const call = post(serving.url, '/v1/completions', streamed).catch(() => 'broken');
    await until('it runs', () => worker.requests.length === 1);
    await serving.gateway.close({ graceSeconds: 0.05 });
    expect(await call).toBe('broken');
    await until('the worker is let go', () => worker.aborted === 1);
  });
});
