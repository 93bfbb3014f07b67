/** Blocks ahead of a return, by a request: what is sent, how many, how it ends and who is told. */
import { createServer, type IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { afterEach, describe, expect, it } from 'vitest';
import { EmulatedWorker } from '../../src/emulated-worker/index.js';
import { Scheduler, type Directive } from '../../src/index.js';
import { WorkerSet, type PrefetchPrompt, type VllmWorker, type WorkerSetOptions } from '../../src/vllm/index.js';
import { only, serverOf, shortTimes, until } from './helpers.js';

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

const tokens = Uint32Array.from({ length: 100 }, (_, i) => 500 + i);

/** A copy that the scheduler decided on, as far as the client looks at it, that keeps what is reported. */
function copyOf(worker: VllmWorker, callId: number, until: number, reason = 'prefetch') {
  const reported: string[] = [];
  const report = (what: string) => () => reported.push(what) > 0;
  return {
    type: 'copy',
    worker: worker.worker,
    source: worker.worker,
    callId,
    id: 1000 + callId,
    until,
    reason,
    reported,
    applied: report('applied'),
    refused: report('refused'),
    expired: report('expired'),
  } as unknown as Directive & { reported: string[] };
}

function setOf(options: Partial<WorkerSetOptions> & { prompts?: Record<number, PrefetchPrompt> }) {
  const { prompts = {}, ...rest } = options;
  const scheduler = new Scheduler({ maxWorkers: 8 });
  closing.push(() => scheduler.close());
  const set = new WorkerSet(
    { scheduler, model: 'emulated', probe: false, promptOf: ({ id }) => prompts[id], ...rest },
    shortTimes,
  );
  closing.push(() => set.close());
  return { scheduler, set };
}

/** A server whose completions are answered when the test says so. */
async function slowServer(priority = true) {
  const requests: { headers: IncomingHttpHeaders; body: Record<string, unknown>; answer: (status: number) => void }[] =
    [];
  let aborted = 0;
  const server = createServer((request, response) => {
    const path = request.url ?? '';
    if (path === '/metrics')
      response.end('vllm:cache_config_info{block_size="16",num_gpu_blocks="50",engine="0"} 1.0\n');
    else if (path === '/v1/models') response.end('{"data":[{"id":"emulated"}]}');
    else if (path === '/version') response.end('{"version":"0.33.0"}');
    else if (path === '/health') response.end();
    else if (request.method !== 'POST') response.writeHead(404).end();
    else
      void text(request).then((given) => {
        const body = JSON.parse(given) as Record<string, unknown>;
        const answer = (status: number): void => void response.writeHead(status).end('{}');
        const isProbe = String(body['cache_salt']).startsWith('saga-probe');
        if (isProbe) answer(body['priority'] === undefined || priority ? 200 : 400);
        else requests.push({ headers: request.headers, body, answer });
        response.on('close', () => {
          if (!response.writableFinished) ++aborted;
        });
      });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closing.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, requests, aborted: () => aborted };
}

const far = Number.MAX_SAFE_INTEGER;

describe('on an emulated worker', () => {
  it('the blocks are there, the scheduler is told, and nothing counts as a call', async () => {
    const emulated = await EmulatedWorker.start({
      eventsPort: 0,
      directivesPort: 0,
      timeScale: Infinity,
      eviction: 'saga',
    });
    closing.push(() => emulated.close());
    const prompts = { 7: { tokens, cacheSalt: 'tenant' } };
    const { scheduler, set } = setOf({ servers: [serverOf(emulated)], prompts });
    await set.start();
    const worker = only(set);
    await until('the connector is known', () => worker.features.requestDirectives !== undefined);
    const [engine] = emulated.engines;
    const threads: (number | undefined)[] = [];
    const submit = engine!.submit.bind(engine);
    engine!.submit = (request) => {
      threads.push(request.thread);
      return submit(request);
    };
    const copy = copyOf(worker, 7, far);
    set.directives.carryOut(copy);
    expect(copy.reported).toEqual([]);
    await until('it is there', () => copy.reported.length > 0);
    expect(copy.reported).toEqual(['applied']);
    const chain = scheduler.hash(tokens, '6:tenant').slice();
    await until('its blocks are known', () => scheduler.match(chain)[0] === 6);
    const found = engine!.find(({ request }) => request.requestId?.includes('saga-prefetch-') === true);
    expect(found).toMatchObject({ promptTokens: 100, generated: 1, state: 'ended' });
    // Its thread is nobody's, and has ended with it.
    expect(threads[0]).toBeGreaterThanOrEqual(2 ** 51);
    expect(threads[0]).toBeLessThan(2 ** 52);
    expect(found?.request.sessionId).toBeUndefined();
    expect(scheduler.stats()).toMatchObject({ openCalls: 0, placedCalls: 0 });
    expect(set.metrics().workers[0]).toMatchObject({
      observations: 0,
      directives: { prefetches: 1, prefetchesOpen: 0, prefetchesApplied: 1, prefetchesWithdrawn: 0 },
    });
    expect(engine!.verify()).toBe(true);
  });
});

describe('what is sent', () => {
  it('the prompt for one token, behind everything, with its salt and adapter, marked', async () => {
    const server = await slowServer();
    const prompts = { 1: { tokens: [5, 6, 7], cacheSalt: 's', loraName: 'l' }, 2: { tokens: [8] } };
    const { set } = setOf({ servers: [{ url: server.url, apiKey: 'k' }], prompts, probe: true });
    await set.start();
    const worker = only(set);
    set.directives.carryOut(copyOf(worker, 1, far));
    await until('it came', () => server.requests.length === 1);
    expect(server.requests[0]?.body).toEqual({
      model: 'l',
      prompt: [5, 6, 7],
      max_tokens: 1,
      temperature: 0,
      cache_salt: 's',
      priority: 32_767,
    });
    expect(server.requests[0]?.headers).toMatchObject({
      authorization: 'Bearer k',
      'x-request-id': expect.stringMatching(/^saga-prefetch-[0-9a-f]{12}-0$/) as string,
    });
    worker.features_ = {
      ...worker.features,
      connector: 'policy',
      requestDirectives: { member: 'kv_hints', types: new Set(['saga.call', 'saga.ended']) },
    };
    set.directives.carryOut(copyOf(worker, 2, far));
    await until('it came', () => server.requests.length === 2);
    const { kv_transfer_params: params, ...rest } = server.requests[1]?.body as {
      kv_transfer_params: { saga: { message_id: string; actions: { payload: { thread: number } }[] } };
    };
    expect(rest).toEqual({ model: 'emulated', prompt: [8], max_tokens: 1, temperature: 0, priority: 32_767 });
    const thread = params.saga.actions[0]?.payload.thread;
    expect(params.saga).toEqual({
      protocol_version: '0.1',
      message_id: server.requests[1]?.headers['x-request-id'],
      actions: [
        { action_id: '0', action_type: 'saga.call', action_version: '1.0', payload: { thread, prompt_kind: 'start' } },
        {
          action_id: '1',
          action_type: 'saga.ended',
          action_version: '1.0',
          payload: { thread, session_end: true, at: 'end' },
        },
      ],
    });
  });

  it.each([
    [true, false],
    [false, true],
  ])('no priority where it is refused or not known: probed %s, taken %s', async (probe, priority) => {
    const server = await slowServer(priority);
    const { set } = setOf({ servers: [{ url: server.url }], prompts: { 1: { tokens } }, probe });
    await set.start();
    set.directives.carryOut(copyOf(only(set), 1, far));
    await until('it came', () => server.requests.length === 1);
    expect(server.requests[0]?.body).not.toHaveProperty('priority');
  });
});

describe('how it ends', () => {
  async function started(options: Partial<WorkerSetOptions> = {}) {
    const server = await slowServer();
    const prompts = Object.fromEntries(Array.from({ length: 6 }, (_, i) => [i, { tokens }]));
    const made = setOf({ servers: [{ url: server.url }], prompts, ...options });
    await made.set.start();
    const worker = only(made.set);
    const start = (callId: number, until = far, reason = 'prefetch') => {
      const copy = copyOf(worker, callId, until, reason);
      made.set.directives.carryOut(copy);
      return copy.reported;
    };
    const counts = () => made.set.metrics().workers[0]?.directives;
    return { ...made, server, start, counts };
  }

  it('taken back when the call comes first, before that is submitted', async () => {
    const { set, server, start, counts } = await started();
    const reported = start(1);
    await until('it came', () => server.requests.length === 1);
    set.directives.withdraw({ id: 2 });
    expect(reported).toEqual([]);
    set.directives.withdraw({ id: 1 });
    expect(reported).toEqual(['expired']);
    await until('its request was aborted', () => server.aborted() === 1);
    set.directives.withdraw({ id: 1 });
    expect(reported).toEqual(['expired']);
    expect(counts()).toMatchObject({ prefetches: 1, prefetchesOpen: 0, prefetchesApplied: 0, prefetchesWithdrawn: 1 });
  });

  it('two at one time on a worker, or as many as are set; none where it is switched off', async () => {
    const { server, start, counts } = await started();
    const all = [0, 1, 2, 3].map((id) => start(id));
    await until('two came', () => server.requests.length === 2);
    expect(all).toEqual([[], [], ['refused'], ['refused']]);
    expect(counts()).toMatchObject({ prefetches: 2, prefetchesOpen: 2 });
    server.requests[0]?.answer(200);
    await until('one is done', () => all[0]?.length === 1);
    expect([all[0], start(3)]).toEqual([['applied'], []]);
    // The same one is not brought twice.
    expect(start(3)).toEqual(['refused']);
    const three = await started({ prefetchRequests: 3 });
    expect([0, 1, 2, 3].map((id) => three.start(id))).toEqual([[], [], [], ['refused']]);
    const none = await started({ prefetchRequests: 0 });
    expect(none.start(1)).toEqual(['refused']);
    expect(none.server.requests).toEqual([]);
  });

  it('refused by the server, at the deadline, or with its worker', async () => {
    const { scheduler, set, server, start, counts } = await started({ timeScale: 10 });
    const refused = start(1);
    await until('it came', () => server.requests.length === 1);
    server.requests[0]?.answer(503);
    await until('it is told', () => refused.length === 1);
    // A second of the scheduler is a tenth of one.
    const before = performance.now();
    const late = start(2, scheduler.now() + 1e6);
    await until('it is told', () => late.length === 1);
    expect(performance.now() - before).toBeGreaterThan(90);
    expect(start(3, scheduler.now() - 1)).toEqual(['expired']);
    const lost = start(4);
    await until('it came', () => server.requests.length === 3);
    set.remove(server.url);
    await until('it is told', () => lost.length === 1);
    expect([refused, late, lost]).toEqual([['refused'], ['expired'], ['refused']]);
    expect(counts()).toBeUndefined();
  });

  it('moves in a gap are made so, too; who waits brings its blocks itself; what is not known cannot be brought', async () => {
    const { server, start } = await started();
    const migrated = start(1, far, 'migrate');
    await until('it came', () => server.requests.length === 1);
    server.requests[0]?.answer(200);
    await until('it is told', () => migrated.length === 1);
    expect(migrated).toEqual(['applied']);
    expect([start(1, far, 'pull'), start(1, far, 'reload'), start(77)]).toEqual([
      ['refused'],
      ['refused'],
      ['refused'],
    ]);
    expect(server.requests.length).toBe(1);
  });

  it('with the set, all of them', async () => {
    const { set, server, start } = await started();
    const reported = start(1);
    await until('it came', () => server.requests.length === 1);
    await set.close();
    expect(reported).toEqual(['expired']);
  });
});
