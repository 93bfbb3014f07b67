/** Directives on their way to an emulated worker and back, signed and not, and to one that answers as it is told. */
import { createHmac } from 'node:crypto';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Router } from 'zeromq';
import { EmulatedWorker, type EmulatedWorkerOptions } from '../../src/emulated-worker/index.js';
import { Scheduler, type Directive } from '../../src/index.js';
import { PageTable } from '../../src/page-table.js';
import { DirectiveChannel } from '../../src/vllm/directive-channel.js';
import { WorkerSet, type DirectiveOutcome, type ServerOptions, type VllmWorker } from '../../src/vllm/index.js';
import { noDirectiveMetrics } from '../../src/vllm/metrics.js';
import { complete, lines, only, serverOf, shortTimes, until } from './helpers.js';

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

const key = 'a key of 16 bytes and more';
const prompt = Array.from({ length: 100 }, (_, i) => 500 + i);

async function start(worker: EmulatedWorkerOptions = {}, server: Partial<ServerOptions> = {}) {
  const emulated = await EmulatedWorker.start({
    eventsPort: 0,
    directivesPort: 0,
    blocks: 201,
    timeScale: Infinity,
    ...worker,
  });
  closing.push(() => emulated.close());
  const scheduler = new Scheduler({ maxWorkers: 8 });
  closing.push(() => scheduler.close());
  const log = lines();
  const set = new WorkerSet(
    { scheduler, model: 'emulated', servers: [serverOf(emulated, server)], log, loadSeconds: 0.1, timeScale: 10 },
    shortTimes,
  );
  closing.push(() => set.close());
  await set.start();
  return { emulated, scheduler, set, log };
}

/** A directive of the scheduler, as far as the client looks at it, that keeps what is reported. */
function retainOf(worker: VllmWorker, callId: number, until: number): Directive & { reported: string[] } {
  const reported: string[] = [];
  const report = (what: string) => () => reported.push(what) > 0;
  return {
    type: 'retain',
    worker: worker.worker,
    callId,
    id: 1000 + callId,
    until,
    value: 700_000,
    reported,
    applied: report('applied'),
    refused: report('refused'),
    expired: report('expired'),
    revoked: report('revoked'),
  } as unknown as Directive & { reported: string[] };
}

const other = (type: string, worker: VllmWorker, callId: number, id: number): Directive =>
  ({ type, worker: worker.worker, callId, id }) as unknown as Directive;

describe.each([undefined, key])('with the key %s', (directiveKey) => {
  const keyed = directiveKey === undefined ? {} : { directiveKey };

  it('an idle engine is woken, evicts, and its events say so', async () => {
    const { emulated, scheduler, set } = await start(keyed, keyed);
    const worker = only(set);
    await complete(emulated, prompt);
    const chain = scheduler.hash(prompt);
    await until('its blocks are known', () => scheduler.match(chain)[0] === 6);
    const outcome = await set.directives.evict(worker, { tokenIds: prompt }, 'now');
    expect(outcome).toMatchObject({ status: 'applied', blocks: 6, missing: 0 });
    await until('they are gone', () => scheduler.match(chain)[0] === 0);
    const directives = set.metrics().workers[0]?.directives;
    expect(directives?.wakes).toBeGreaterThan(0);
    expect(directives).toMatchObject({ unsigned: 0, malformed: 0 });
    expect(worker.features.connector).toBe('leases');
  });

  it('a lease of a request holds, is released, and runs out', async () => {
    const { emulated, scheduler, set } = await start(keyed, keyed);
    const worker = only(set);
    await fetch(`${emulated.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-request-id': 'saga-7' },
      body: JSON.stringify({ model: 'emulated', prompt, max_tokens: 2 }),
    });
    const engine = emulated.engines[0] as EmulatedWorker['engines'][number];
    // 600 scheduler seconds are 60 s; a second is a tenth.
    const long = retainOf(worker, 7, scheduler.now() + 600e6);
    set.directives.carryOut(long);
    await until('it holds', () => long.reported.length === 1);
    expect([long.reported, engine.leasedBlocks]).toEqual([['applied'], 6]);
    set.directives.carryOut(other('release', worker, 7, 1007));
    await until('it is over', () => engine.leasedBlocks === 0);
    const short = retainOf(worker, 7, scheduler.now() + 3e6);
    set.directives.carryOut(short);
    await until('it holds', () => short.reported.length === 1);
    // An engine that sleeps lets nothing run out.
    await until('it has run out', () => {
      void complete(emulated, [1]);
      return short.reported.length === 2;
    });
    expect(short.reported).toEqual(['applied', 'expired']);
    expect(long.reported).toEqual(['applied']);
    const late = retainOf(worker, 7, scheduler.now() - 1);
    set.directives.carryOut(late);
    expect(late.reported).toEqual(['expired']);
    const unknown = retainOf(worker, 8, scheduler.now() + 600e6);
    set.directives.carryOut(unknown);
    await until('it is refused', () => unknown.reported.length === 1);
    expect(unknown.reported).toEqual(['refused']);
  });
});

it('times are seconds of the wall on their way, whatever the time scales of both ends', async () => {
  const { emulated, scheduler, set } = await start({ timeScale: 20, eviction: 'saga' });
  const worker = only(set);
  const engine = emulated.engines[0] as EmulatedWorker['engines'][number];
  const received = vi.spyOn(engine, 'told');
  const passedOn = vi.spyOn(PageTable.prototype, 'told');
  closing.push(() => passedOn.mockRestore());
  await fetch(`${emulated.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-request-id': 'saga-7' },
    body: JSON.stringify({
      model: 'emulated',
      prompt,
      max_tokens: 2,
      kv_transfer_params: {
        saga: {
          protocol_version: '0.1',
          message_id: 'c',
          actions: [{ action_id: '0', action_type: 'saga.call', action_version: '1.0', payload: { thread: 9 } }],
        },
      },
    }),
  });
  const lease = retainOf(worker, 7, scheduler.now() + 600e6);
  set.directives.carryOut(lease);
  await until('it holds', () => lease.reported.length === 1);
  const [held] = engine.leases.values();
  expect(held!.until - held!.from).toBeLessThanOrEqual(60_000);
  expect(held!.until - held!.from).toBeGreaterThan(58_000);
  await until('the connector is known', () => worker.features.connector === 'policy');
  // The set's scheduler runs ten times faster than the wall, the engine twenty times.
  set.directives.ended({ worker, thread: 9, stop: 'tool-use', tool: 'web-api', expectedSeconds: 30 });
  await until('it is told', () => passedOn.mock.calls.length > 0);
  expect(received.mock.calls[0]).toMatchObject([9, { declaredGapSeconds: 3 }]);
  expect(passedOn.mock.calls[0]).toMatchObject([9, { declaredGapSeconds: 60 }]);
  expect(set.directives.wallSeconds(30)).toBe(3);
});

describe('what does not come about', () => {
  it('a wrong key: nothing is carried out, and the key is in no log line', async () => {
    const { set, log } = await start({ directiveKey: key }, { directiveKey: 'another key of 16 bytes' });
    const worker = only(set);
    const report = await set.directives.status(worker);
    expect(report).toMatchObject({ status: 'expired', reason: 'no answer' });
    await until('it is said', () => worker.degraded.length > 0);
    expect(worker.degraded).toEqual(['directives: no answer (no answer)']);
    expect(worker.trust).toBe(1);
    expect(log.lines.join()).not.toMatch(/key of 16/);
  });

  it('without a channel: refused at once; copies are refused anywhere; priorities are counted', async () => {
    const { scheduler, set } = await start({ directivesPort: null });
    const worker = only(set);
    const lease = retainOf(worker, 1, scheduler.now() + 1e9);
    set.directives.carryOut(lease);
    const copy = { ...retainOf(worker, 1, 0), type: 'copy' } as unknown as Directive & { reported: string[] };
    set.directives.carryOut(copy);
    set.directives.carryOut(other('drop', worker, 1, 2));
    set.directives.carryOut(other('priority', worker, 1, 2));
    expect([lease.reported, copy.reported]).toEqual([['refused'], ['refused']]);
    expect(await set.directives.evict(worker, { thread: 1 }, 'now')).toEqual({
      status: 'refused',
      reason: 'unreachable',
    });
    expect(set.metrics().workers[0]?.directives).toMatchObject({ priorities: 1, sent: 0 });
  });

  it('an engine that begins anew revokes its leases', async () => {
    const { emulated, scheduler, set } = await start();
    await complete(emulated, prompt, { request_id: 'saga-3' });
    await fetch(`${emulated.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-request-id': 'saga-3' },
      body: JSON.stringify({ model: 'emulated', prompt, max_tokens: 2 }),
    });
    const lease = retainOf(only(set), 3, scheduler.now() + 600e6);
    set.directives.carryOut(lease);
    await until('it holds', () => lease.reported.length === 1);
    emulated.restart();
    await until('it is revoked', () => lease.reported.length === 2);
    expect(lease.reported).toEqual(['applied', 'revoked']);
  });

  it('a worker that is removed: what is open is reported', async () => {
    const { emulated, set } = await start();
    const worker = only(set);
    const outcome = set.directives.retain(worker, { tokenIds: prompt }, { claimId: 'c', ttlSeconds: 60 });
    set.remove(emulated.url);
    expect(await outcome).toMatchObject({ status: 'expired', reason: 'lost' });
    expect(await set.directives.release(worker, 'c')).toEqual({ status: 'refused', reason: 'unreachable' });
  });
});

describe('a channel', () => {
  /** A worker's end whose answers are told by the test. */
  async function channelTo(answerKey: string | undefined, channelKey: string | undefined) {
    const router = new Router({ linger: 0 });
    closing.push(() => router.close());
    await router.bind('tcp://127.0.0.1:*');
    const metrics = noDirectiveMetrics();
    let wakes = 0;
    const channel = new DirectiveChannel({
      endpoint: router.lastEndpoint as string,
      key: channelKey,
      metrics,
      wakeMs: 20,
      wake: () => {
        ++wakes;
        return Promise.resolve();
      },
    });
    closing.push(() => channel.close());
    const messages: { message_id: string; epoch?: number; actions: { action_id: string; action_type: string }[] }[] =
      [];
    let from: Buffer = Buffer.alloc(0);
    void (async () => {
      try {
        for await (const [identity, body] of router) {
          from = identity as Buffer;
          messages.push(JSON.parse((body as Buffer).toString()) as (typeof messages)[number]);
        }
      } catch {
        // closed
      }
    })();
    const answer = async (number: number, outcome: object, epoch = 1): Promise<void> => {
      const { message_id, actions } = messages[number] as (typeof messages)[number];
      const body = JSON.stringify({
        message_id,
        epoch,
        outcomes: [{ action_id: actions[0]?.action_id, ...outcome }],
      });
      const signature = createHmac('sha256', answerKey ?? '')
        .update(body)
        .digest();
      await router.send([from, body, ...(answerKey === undefined ? [] : [signature])]);
    };
    const raw = (body: string): Promise<void> => router.send([from, body]);
    return { channel, metrics, messages, answer, raw, woken: () => wakes };
  }

  it('answers without a right signature are thrown away and counted, malformed ones too', async () => {
    const forged = await channelTo('not the key at all', key);
    const outcomes: DirectiveOutcome[] = [];
    forged.channel.send('kv.evict', {}, 30, (outcome) => outcomes.push(outcome));
    await until('it was sent', () => forged.messages.length === 1);
    await forged.answer(0, { status: 'applied' });
    await forged.raw('{"message_id":"x","outcomes":[]}');
    await until('both were thrown away', () => forged.metrics.unsigned === 2);
    const plain = await channelTo(undefined, undefined);
    plain.channel.send('kv.evict', {}, 30, (outcome) => outcomes.push(outcome));
    await until('it was sent', () => plain.messages.length === 1);
    for (const body of [
      '',
      '[]',
      '{"message_id":1}',
      '{"message_id":"a","outcomes":[{"action_id":"b","status":"fine"}]}',
    ])
      await plain.raw(body);
    await until('all were thrown away', () => plain.metrics.malformed === 4);
    expect(outcomes).toEqual([]);
    await plain.answer(0, { status: 'refused', reason: 'memory' });
    await until('the right one came', () => outcomes.length === 1);
    expect(outcomes).toEqual([{ status: 'refused', reason: 'memory' }]);
  });

  it('wakes an engine whose answer is pending, and gives up what is never answered', async () => {
    const { channel, messages, answer, woken, metrics } = await channelTo(undefined, undefined);
    const outcomes: DirectiveOutcome[] = [];
    channel.send('kv.retain', { claim_id: 'a' }, 0.01, (outcome) => outcomes.push(outcome), 60);
    channel.send('kv.evict', {}, 0.01, (outcome) => outcomes.push(outcome));
    await until('both were sent', () => messages.length === 2);
    expect(new Set(messages.map((message) => message.message_id)).size).toBe(2);
    await answer(0, { status: 'pending' });
    await until('it was woken', () => woken() > 0);
    await answer(0, { status: 'applied', blocks: 5 });
    await until('it holds', () => outcomes.length === 1);
    await until('the other one is given up', () => outcomes.length === 2);
    expect(outcomes).toEqual([
      { status: 'applied', blocks: 5 },
      { status: 'expired', reason: 'no answer' },
    ]);
    // Of the epoch it was told of; another one ends the lease.
    channel.send('saga.ended', {}, 30, (outcome) => outcomes.push(outcome));
    await until('it was sent', () => messages.length === 3);
    expect(messages[2]?.epoch).toBe(1);
    await answer(2, { status: 'applied' }, 2);
    await until('both are over', () => outcomes.length === 4);
    expect(outcomes.slice(2)).toEqual([{ status: 'revoked', reason: 'reset' }, { status: 'applied' }]);
    expect(metrics).toMatchObject({ sent: 3, open: 0 });
    expect(metrics.outcomes).toEqual({ pending: 1, applied: 2, refused: 0, expired: 1, released: 0, revoked: 1 });
  });

  it('holds so many open actions, and refuses the next one', async () => {
    const { channel, metrics } = await channelTo(undefined, undefined);
    const outcomes: DirectiveOutcome[] = [];
    for (let n = 0; n < 4097; ++n) channel.send('kv.evict', {}, 30, (outcome) => outcomes.push(outcome));
    expect(outcomes).toEqual([{ status: 'refused', reason: 'queue' }]);
    channel.close();
    expect(outcomes.length).toBe(4097);
    expect(metrics.open).toBe(0);
  });
});
