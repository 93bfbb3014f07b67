/** Decisions that ride on requests, blocks brought ahead of a return, nothing pulled, and selections that leave nothing behind. */
import { describe, expect, it } from 'vitest';
import type { Directive, SchedulerPart } from '../../src/index.js';
import type { ModelPool } from '../../src/gateway/model-pool.js';
import type { RequestDirectives, VllmWorker } from '../../src/vllm/index.js';
import { FakeWorker, emulated, events, json, leftovers, nothingLeft, post, range, serve, until } from './helpers.js';

interface Sent {
  kv_hints?: { protocol_version: string; message_id: string; actions: object[] };
  kv_transfer_params?: { saga: { message_id: string; actions: { action_type: string; payload: object }[] } };
  prompt: number[];
  max_tokens: number;
}

const sentTo = (worker: FakeWorker): Sent[] => worker.requests.map(({ body }) => JSON.parse(body) as Sent);
const everything = ['saga.call', 'saga.ended', 'kv.retain', 'kv.release', 'kv.evict'];
const answer = json({ choices: [{ text: 'x', finish_reason: 'stop' }], usage: { completion_tokens: 1 } });

/** As its connector would say. */
function reads(
  worker: VllmWorker,
  connector: 'policy' | 'leases',
  member: RequestDirectives['member'] | undefined = 'kv_hints',
  types: readonly string[] = everything,
): void {
  worker.features_ = { ...worker.features, connector, requestDirectives: { member, types: new Set(types) } };
}

function firstOf(pool: ModelPool): VllmWorker {
  return pool.workers.workers[0] as VllmWorker;
}

function carriedOut(pool: ModelPool): Directive[] {
  const seen: Directive[] = [];
  const carryOut = pool.workers.directives.carryOut.bind(pool.workers.directives);
  pool.workers.directives.carryOut = (directive) => {
    seen.push(directive);
    carryOut(directive);
  };
  return seen;
}

describe('a call', () => {
  const headers = { 'x-saga-session-id': 's' };
  const complete = (url: string, prompt: readonly number[], more: Record<string, string> = {}) =>
    post(url, '/v1/completions', { model: 'm', prompt, max_tokens: 1 }, { ...headers, ...more });

  it('has nothing to ride on it where the worker does not say that it reads hints, or they are switched off', async () => {
    const worker = await FakeWorker.start(answer);
    const serving = await serve([worker], {}, { without: ['eviction'] });
    await complete(serving.url, range(1, 64));
    firstOf(serving.pool).features_ = { ...firstOf(serving.pool).features, connector: 'leases' };
    await complete(serving.url, range(1, 80), { 'x-saga-session-final': 'true' });
    const off = await serve([worker], {}, { without: ['eviction'], kvHints: false });
    reads(firstOf(off.pool), 'leases');
    await complete(off.url, range(1, 64));
    const sent = sentTo(worker);
    expect(sent.map((body) => body.kv_hints)).toEqual([undefined, undefined, undefined]);
    expect(sent.map((body) => body.kv_transfer_params?.saga.actions.map((one) => one.action_type))).toEqual([
      undefined,
      ['saga.call'],
      ['saga.call'],
    ]);
  });

  it('keeps what it leaves until the scheduler has decided, in an envelope of kv_hints', async () => {
    const worker = await FakeWorker.start(answer);
    const { url, pool } = await serve([worker], { timeScale: 2 }, { without: ['eviction'] });
    reads(firstOf(pool), 'leases');
    const first = await complete(url, range(1, 64), { 'x-saga-expected-seconds': '40' });
    const [body] = sentTo(worker);
    const id = Number(first.headers.get('x-saga-call')?.split('.').at(-1));
    expect(body?.kv_hints).toEqual({
      protocol_version: '0.1',
      message_id: `${body?.kv_transfer_params?.saga.message_id}-hints`,
      actions: [
        {
          action_id: '1',
          action_type: 'kv.retain',
          action_version: '1.0',
          payload: {
            claim_id: pool.workers.directives.claimOf(id),
            target: { request_id: worker.requests[0]?.headers['x-request-id'] },
            // 40 s of the scheduler are 20 of the wall; 5 until its decision has come.
            ttl_seconds: 25,
            value: 0.5,
            at: 'end',
          },
        },
      ],
    });
    expect(body?.kv_transfer_params?.saga.actions.map(({ action_type }) => action_type)).toEqual(['saga.call']);
    // The value is the scheduler's last one for the workflow.
    const session = [...pool.sessions.values()][0];
    if (session !== undefined) session.leaseValue = 0.25;
    await complete(url, range(1, 80));
    expect(sentTo(worker)[1]?.kv_hints?.actions).toMatchObject([{ payload: { ttl_seconds: 5, value: 0.25 } }]);
    // Under a policy of the engine's own there are no leases.
    const policy = await serve([worker]);
    reads(firstOf(policy.pool), 'policy');
    await complete(policy.url, range(1, 64));
    expect(sentTo(worker)[2]).not.toHaveProperty('kv_hints');
  });

  it("ends the lease of the one before it, unless that is the scheduler's by now", async () => {
    const worker = await FakeWorker.start(answer);
    const { url, pool } = await serve([worker], {}, { without: ['eviction'] });
    reads(firstOf(pool), 'leases');
    const { directives } = pool.workers;
    const released: string[] = [];
    directives.release = (_, claim) => {
      released.push(claim);
      return Promise.resolve({ status: 'released' });
    };
    const idOf = async (prompt: readonly number[], more = {}): Promise<number> =>
      Number((await complete(url, prompt, more)).headers.get('x-saga-call')?.split('.').at(-1));
    const first = await idOf(range(1, 64));
    expect(released).toEqual([]);
    const second = await idOf(range(1, 80));
    expect(released).toEqual([directives.claimOf(first)]);
    // As if the scheduler had decided on it.
    const [session] = pool.sessions.values();
    const bridges = session?.bridges;
    expect([...(bridges?.values() ?? [])].map(({ callId }) => callId)).toEqual([second]);
    const decided = pool.scheduler.directives.bind(pool.scheduler);
    pool.scheduler.directives = () => [
      { type: 'retain', callId: second, value: 250_000 } as unknown as Directive,
      ...decided(),
    ];
    directives.carryOut = () => undefined;
    pool.pump();
    pool.scheduler.directives = decided;
    expect([session?.leaseValue, bridges?.size]).toEqual([0.25, 0]);
    const third = await idOf(range(1, 96));
    expect(released.length).toBe(1);
    const last = await idOf(range(1, 112), { 'x-saga-session-final': 'true' });
    expect(last).not.toBe(third);
    expect(released).toEqual([first, third].map((id) => directives.claimOf(id)));
    expect(pool.sessions.size).toBe(0);
  });

  it('rides in the other member where that is the one that is read', async () => {
    const worker = await FakeWorker.start(answer);
    const { url, pool } = await serve([worker], {}, { without: ['eviction'] });
    reads(firstOf(pool), 'leases', 'kv_transfer_params');
    await complete(url, range(1, 64));
    const [body] = sentTo(worker);
    expect(body).not.toHaveProperty('kv_hints');
    expect(body?.kv_transfer_params?.saga.actions).toMatchObject([
      { action_id: '0', action_type: 'saga.call' },
      { action_id: '1', action_type: 'kv.retain', payload: { at: 'end' } },
    ]);
  });

  it('that is the last one lets its own blocks go, and tells a policy that the session ends', async () => {
    const worker = await FakeWorker.start(answer);
    const { url, pool } = await serve([worker], {}, { without: ['eviction'] });
    reads(firstOf(pool), 'leases');
    const final = { 'x-saga-session-final': 'true' };
    // Nothing is known of others that begin so.
    await complete(url, range(1, 64), final);
    expect(sentTo(worker)[0]).not.toHaveProperty('kv_hints');
    // Two blocks are those of another one that goes on.
    await complete(url, range(1, 64), { 'x-saga-session-id': 'open' });
    await complete(url, [...range(1, 32), ...range(900, 32)], { ...final, 'x-saga-session-id': 'other' });
    expect(sentTo(worker)[2]?.kv_hints?.actions).toEqual([
      {
        action_id: '1',
        action_type: 'kv.evict',
        action_version: '1.0',
        payload: {
          target: { request_id: worker.requests[2]?.headers['x-request-id'], from_block: 2 },
          mode: 'first',
          at: 'end',
        },
      },
    ]);
    reads(firstOf(pool), 'policy', 'kv_hints', ['saga.call', 'saga.ended']);
    await complete(url, range(1, 64), { ...final, 'x-saga-session-id': 'third' });
    const third = sentTo(worker)[3];
    const { thread } = third?.kv_transfer_params?.saga.actions[0]?.payload as { thread: number };
    expect(third?.kv_hints?.actions).toEqual([
      {
        action_id: '1',
        action_type: 'saga.ended',
        action_version: '1.0',
        payload: { thread, session_end: true, at: 'end' },
      },
    ]);
  });

  it('that takes the place of a line evicts what only that had: on the request there, over the channel elsewhere', async () => {
    const worker = await FakeWorker.start(answer);
    const { url, pool } = await serve([worker]);
    reads(firstOf(pool), 'policy');
    const evicted: unknown[] = [];
    pool.workers.directives.evict = (...given) => {
      evicted.push(given.slice(1));
      return Promise.resolve({ status: 'applied' });
    };
    await complete(url, range(1, 160));
    await complete(url, [...range(1, 160), ...range(500, 160)]);
    const left = worker.requests[1]?.headers['x-request-id'];
    // Back to the first prompt, and on from there in another way.
    await complete(url, [...range(1, 160), ...range(700, 160)]);
    expect(sentTo(worker).map(({ kv_hints: hints }) => hints?.actions)).toEqual([
      undefined,
      undefined,
      [
        {
          action_id: '1',
          action_type: 'kv.evict',
          action_version: '1.0',
          payload: { target: { request_id: left, from_block: 10 }, mode: 'first' },
        },
      ],
    ]);
    expect(evicted).toEqual([]);
    // Whose requests may not order it, by the channel.
    reads(firstOf(pool), 'policy', 'kv_hints', ['saga.call', 'saga.ended']);
    const again = worker.requests[2]?.headers['x-request-id'];
    await complete(url, [...range(1, 160), ...range(900, 160)]);
    expect(sentTo(worker)[3]).not.toHaveProperty('kv_hints');
    expect(evicted).toEqual([[{ requestId: again, fromBlock: 10 }, 'first']]);
  });

  it('and its hints reach an engine, whose lease the scheduler then takes over by the same name', async () => {
    const worker = await emulated({ eventsPort: 0, directivesPort: 0, eviction: 'lru', blocks: 400 });
    const serving = await serve([worker], {}, { without: ['eviction'] });
    const { pool, url } = serving;
    await until('the connector is known', () => firstOf(pool).features.requestDirectives?.member === 'kv_hints');
    const [engine] = worker.engines;
    // What the scheduler itself decides comes when the test says so.
    pool.workers.directives.carryOut = () => undefined;
    const first = await complete(url, range(1, 640));
    await until('it holds', () => engine!.leasedBlocks > 0);
    expect([engine!.leasedBlocks, engine!.leases.size]).toEqual([40, 1]);
    const taken = (): number => engine!.leases.values().next().value?.value ?? 0;
    expect(taken()).toBe(0.5);
    // Over the channel, for the same call: the lease is replaced, not doubled.
    const call = pool.call(Number(first.headers.get('x-saga-call')?.split('.').at(-1)));
    expect(call?.ended).toBe(true);
    const claim = pool.workers.directives.claimOf(call?.id as number);
    const held = pool.workers.directives.retain(
      firstOf(pool),
      { tokenIds: range(1, 640) },
      { claimId: claim, ttlSeconds: 60, value: 0.9 },
    );
    await post(worker.url, '/v1/completions', { model: 'm', prompt: [1], max_tokens: 1 });
    expect(await held).toMatchObject({ status: 'applied', blocks: 40 });
    expect([engine!.leasedBlocks, engine!.leases.size, taken()]).toEqual([40, 1, 0.9]);
    expect(engine!.verify()).toBe(true);
  });
});

describe('blocks ahead of a return', () => {
  const headers = { 'x-saga-session-id': 's', 'x-saga-expected-seconds': '2', 'x-saga-next-tool': 'fetch' };

  /** One call of 2,400 tokens of which the worker then has most in host memory, and a return that is expected in two seconds. */
  async function paused(model: object = {}) {
    const worker = await FakeWorker.start(
      events('data: {"choices":[{"text":"x","finish_reason":null}]}\n\n', 'data: [DONE]\n\n'),
    );
    const serving = await serve([{ url: worker.url, blocks: 220 }], {}, model);
    const { pool, url } = serving;
    const prompt = range(1, 2400);
    const chain = pool.scheduler.hash(prompt).slice();
    const directives = carriedOut(pool);
    const call = (tokens: readonly number[]) =>
      post(url, '/v1/completions', { model: 'm', prompt: tokens, max_tokens: 1, stream: true }, headers);
    const { worker: of } = firstOf(pool);
    of.trust(1);
    of.stored(BigUint64Array.of(1n), { tier: 'host' }); // it has such a tier
    await call(prompt);
    of.stored(chain.subarray(0, 60));
    of.stored(chain, { tier: 'host' });
    const copies = () => directives.filter(({ type }) => type === 'copy');
    return { ...serving, worker, prompt, call, copies };
  }

  it('come by a request with its prompt, once it is due', async () => {
    const { worker, prompt, copies, pool } = await paused();
    await until('it came', () => worker.requests.length === 2);
    expect(copies()).toMatchObject([{ type: 'copy', reason: 'prefetch', blocks: 150 }]);
    const sent = sentTo(worker)[1];
    expect(sent).toMatchObject({ model: 'm', max_tokens: 1 });
    expect(sent?.prompt).toEqual(prompt);
    expect(worker.requests[1]?.headers['x-request-id']).toMatch(/^saga-prefetch-/);
    const counts = () => pool.workers.metrics().workers[0]?.directives;
    await until('it is done', () => counts()?.prefetchesApplied === 1);
    // No call of anybody.
    expect(pool.counters).toMatchObject({ submitted: 1, finished: 1 });
    expect([...pool.sessions.values()].map(({ calls }) => calls)).toEqual([1]);
  });

  it('are taken back when the workflow is back first', async () => {
    const { worker, call, prompt, pool } = await paused();
    let held: (() => void) | undefined;
    const { script } = worker;
    worker.script = (request, response, body) => {
      if (String(request.headers['x-request-id']).startsWith('saga-prefetch')) held = () => response.end('{}');
      else return script(request, response, body);
    };
    await until('it is under way', () => held !== undefined);
    const back = await call([...prompt, ...range(5000, 100)]);
    expect(back.status).toBe(200);
    await until('its request was aborted', () => worker.aborted === 1);
    expect(pool.workers.metrics().workers[0]?.directives).toMatchObject({
      prefetches: 1,
      prefetchesOpen: 0,
      prefetchesApplied: 0,
      prefetchesWithdrawn: 1,
    });
  });

  it('are not asked for where that is switched off', async () => {
    const { worker, copies, pool } = await paused({ prefetchRequests: 0 });
    await new Promise((resolve) => setTimeout(resolve, 2500));
    expect([copies(), worker.requests.length]).toEqual([[], 1]);
    expect(pool.scheduler.verify()).toBe(true);
  });
});

describe('from another worker', () => {
  it.each<[SchedulerPart[]]>([[[]], [['prefetch']]])(
    'nothing is pulled or moved, whatever is configured: without %j',
    async (without) => {
      const workers = [await FakeWorker.start(answer), await FakeWorker.start(answer)];
      const { url, pool } = await serve(workers, {}, { without });
      for (const { worker } of pool.workers.workers) worker.trust(1);
      const directives = carriedOut(pool);
      const prompt = range(1, 6400);
      const call = async (name: string, expectedSeconds?: number) => {
        const hints = expectedSeconds === undefined ? {} : { 'x-saga-expected-seconds': String(expectedSeconds) };
        const body = { model: 'm', prompt, max_tokens: 1 };
        const headers = { 'x-saga-session-id': name, 'x-saga-next-tool': 'fetch', ...hints };
        const { headers: answered } = await post(url, '/v1/completions', body, headers);
        return pool.call(Number(answered.get('x-saga-call')?.split('.').at(-1)));
      };
      const holder = (await call('a', 20))?.receipt?.worker;
      holder?.stored(pool.scheduler.hash(prompt));
      // A scheduler that may move agents copies the 400 blocks away from a worker that drains, or pulls them for the next call.
      holder?.drain();
      pool.pump();
      const next = await call('a');
      expect(next?.receipt).toMatchObject({ reason: 'recompute', longestMatch: { blocks: 400 } });
      expect(directives.filter(({ type }) => type === 'copy')).toEqual([]);
      expect(pool.scheduler.stats().saga).toMatchObject({ steals: 0, pulls: 0 });
    },
  );
});

describe('/saga/select', () => {
  it('leaves no workflow, no line, no count, and nothing that is learned behind', async () => {
    const serving = await serve([await FakeWorker.start(answer), await FakeWorker.start(answer)]);
    const { url, pool } = serving;
    const headers = { 'x-saga-session-id': 's', 'x-saga-next-tool': 'bash' };
    const body = { model: 'm', prompt: range(1, 320), max_tokens: 1 };
    await post(url, '/v1/completions', body, headers);
    const session = [...pool.sessions.values()][0];
    session?.tools.add('agent x');
    const state = (): unknown => ({
      sessions: [...pool.sessions.values()].map(({ calls, lastCallAt, tools }) => ({
        calls,
        lastCallAt,
        tools: [...tools],
      })),
      workflows: pool.scheduler.stats().workflows,
      calibration: pool.scheduler.calibration(),
      tenants: pool.scheduler.tenants(),
    });
    const before = state();
    const { hashedBlocks: _before, ...countersBefore } = structuredClone(pool.counters);
    for (const ids of [range(1, 400), range(9000, 40)]) {
      const selected = await post(url, '/saga/select', { model: 'm', token_ids: ids }, headers);
      expect(selected.status).toBe(200);
      expect(selected.json()).toMatchObject({ worker: { id: expect.any(Number) as number } });
      for (const name of ['workflow', 'lineage', 'reservation']) expect(selected.json()).not.toHaveProperty(name);
    }
    const { hashedBlocks: _after, ...counters } = pool.counters;
    expect(counters).toEqual(countersBefore);
    expect(state()).toEqual(before);
    expect(leftovers(serving)).toEqual(nothingLeft);
    // The line goes on as if nobody had asked.
    const next = await post(url, '/saga/select_and_reserve', { model: 'm', token_ids: range(1, 340) }, headers);
    expect(next.json()).toMatchObject({ lineage: 'continued', workflow: session?.workflow.id });
    expect(pool.scheduler.verify()).toBe(true);
  });
});
