/** The sockets of a publisher, against one that misbehaves on demand; and vLLM's own frames, through them into a scheduler. */
import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { Scheduler } from '../../src/index.js';
import { EventSubscriber, type SubscriberOptions } from '../../src/vllm/event-subscriber.js';
import { KvEventSource } from '../../src/vllm/index.js';
import { noEventMetrics } from '../../src/vllm/metrics.js';
import { FakePublisher } from './fake-publisher.js';
import { freePort, until } from './helpers.js';

interface Capture {
  topic: string;
  payloads: string[];
}
const captures = JSON.parse(readFileSync(new URL('data/captures.json', import.meta.url), 'utf8')) as Record<
  'scheduler' | 'schedulerBytes' | 'server',
  Capture
>;

const closing: (() => unknown)[] = [];
afterEach(() => {
  for (const close of closing.splice(0).reverse()) close();
});

const limits = { idleMs: 100, attempts: 3, coolMs: 150, spacingMs: 1, settleMs: 60_000, auditMs: 60_000 };

/** A subscriber that keeps what was applied since the last reset. */
async function subscribe(publisher: FakePublisher, more: Partial<SubscriberOptions> = {}) {
  const seen = { known: [] as string[], metrics: noEventMetrics() };
  const subscriber = new EventSubscriber({
    events: more.events ?? publisher.events,
    bind: false,
    replay: publisher.replay,
    topic: '',
    metrics: seen.metrics,
    apply: (payload) => {
      seen.known.push(Buffer.from(payload).toString());
      return true;
    },
    reset: () => (seen.known = []),
    onChange: () => {},
    limits,
    ...more,
  });
  closing.push(() => subscriber.close());
  await subscriber.start();
  return { ...seen, seen, subscriber };
}

async function publisherOf(setUp: (publisher: FakePublisher) => void = () => {}): Promise<FakePublisher> {
  const publisher = new FakePublisher();
  closing.push(() => publisher.close());
  setUp(publisher);
  return publisher.listen();
}

const batches = (from: number, to: number): string[] => Array.from({ length: to - from + 1 }, (_, i) => `b${from + i}`);

describe.each([false, true])('replays of vLLM up to 0.25: %s', (old) => {
  it('a late joiner reads what was published, and a lost batch comes again', async () => {
    const publisher = await publisherOf((one) => (one.old = old));
    for (const text of batches(0, 4)) await publisher.publish(Buffer.from(text), true);
    const { seen, subscriber } = await subscribe(publisher);
    await until('the start', () => subscriber.sequence.inSequence && seen.known.length === 5);
    await publisher.publish(Buffer.from('b5'), true);
    await publisher.publish(Buffer.from('b6'));
    await until('the gap is filled', () => seen.known.length === 7);
    expect(seen.known).toEqual(batches(0, 6));
    expect(seen.metrics).toMatchObject({ gaps: 1, resets: 0, malformed: 0 });
    expect(publisher.asked[0]).toBe(0);
    expect(publisher.asked.slice(1).every((from) => from === 4)).toBe(true);
  });
});

describe('replays that go wrong', () => {
  it('three attempts without an answer, a pause, and all from the start', async () => {
    const publisher = await publisherOf((one) => (one.silent = true));
    for (const text of batches(0, 2)) await publisher.publish(Buffer.from(text), true);
    const { seen, subscriber } = await subscribe(publisher);
    await until('the replay failed', () => subscriber.sequence.state === 'cooling');
    expect(publisher.asked).toEqual([0, 0, 0]);
    await publisher.publish(Buffer.from('b3'));
    await until('it is thrown away', () => seen.metrics.dropped === 1);
    publisher.silent = false;
    await until('the next replay', () => seen.known.length === 4);
    expect(seen.known).toEqual(batches(0, 3));
    expect(seen.metrics).toMatchObject({ replayFailures: 1, resets: 1 });
  });

  it('one that breaks off goes on where it was', async () => {
    const publisher = await publisherOf((one) => (one.cut = 4));
    for (const text of batches(0, 8)) await publisher.publish(Buffer.from(text), true);
    const { seen } = await subscribe(publisher);
    await until('all is there', () => seen.known.length === 9);
    expect(seen.known).toEqual(batches(0, 8));
    expect(publisher.asked.slice(0, 3)).toEqual([0, 3, 6]);
    expect(seen.metrics.resets).toBe(0);
  });

  it('a hole is asked for once more, and believed then', async () => {
    const publisher = await publisherOf((one) => (one.hole = 5));
    for (const text of batches(0, 8)) await publisher.publish(Buffer.from(text), true);
    const { seen, subscriber } = await subscribe(publisher);
    await until('the rest is there', () => subscriber.sequence.inSequence && seen.known.length === 3);
    expect(seen.known).toEqual(batches(6, 8));
    expect(publisher.asked.slice(0, 2)).toEqual([0, 4]);
    expect(subscriber.sequence).toMatchObject({ partial: true, resets: 1 });
  });

  it('an engine that began anew unseen, and has published more than the one before', async () => {
    const publisher = await publisherOf();
    const { seen, subscriber } = await subscribe(publisher);
    await until('it is live', () => subscriber.sequence.state === 'live' && subscriber.connected);
    for (const text of batches(0, 3)) await publisher.publish(Buffer.from(text));
    await until('they came', () => seen.known.length === 4);
    publisher.restart();
    for (let n = 0; n < 9; ++n) await publisher.publish(Buffer.from(`new${n}`), n < 8);
    await until('all of the new one', () => seen.known.length === 9);
    expect(seen.known).toEqual(Array.from({ length: 9 }, (_, n) => `new${n}`));
    expect(seen.metrics).toMatchObject({ restarts: 1, resets: 1 });
  });
});

describe('what is published', () => {
  it('malformed messages are counted and asked for again; other topics do not come', async () => {
    const publisher = await publisherOf();
    const { seen, subscriber } = await subscribe(publisher, { topic: 'k' });
    await until('it is live', () => subscriber.sequence.state === 'live' && subscriber.connected);
    await publisher.publish(Buffer.from('b0'));
    await publisher.raw(['kv', 'short', 'b1']);
    await publisher.raw(['kv', Buffer.alloc(8, 0x7f), 'beyond 2^53']);
    await publisher.raw(['kv']);
    await publisher.raw(['other', Buffer.alloc(8), 'not ours']);
    await publisher.publish(Buffer.from('b1'));
    await until('the next batch', () => seen.known.length === 2);
    expect(seen.known).toEqual(['b0', 'b1']);
    expect(seen.metrics).toMatchObject({ malformed: 3, frames: 5 });
  });

  it('comes also to a subscriber that listens', async () => {
    const publisher = new FakePublisher();
    closing.push(() => publisher.close());
    const events = `tcp://127.0.0.1:${await freePort()}`;
    await publisher.dial(events);
    const { seen, subscriber } = await subscribe(publisher, { events, bind: true });
    await until('it is live', () => subscriber.sequence.state === 'live' && subscriber.connected);
    await publisher.publish(Buffer.from('b0'), true);
    await publisher.publish(Buffer.from('b1'));
    await until('both are there', () => seen.known.length === 2);
    expect(seen.known).toEqual(batches(0, 1));
  });

  it('comes from several publishers to one socket, told apart by topic', async () => {
    const events = `tcp://127.0.0.1:${await freePort()}`;
    const publishers = await Promise.all(
      ['pod-a@', 'pod-b@'].map(async (topic) => {
        const publisher = new FakePublisher(topic);
        closing.push(() => publisher.close());
        return publisher.dial(events);
      }),
    );
    const both = await Promise.all(
      publishers.map((publisher) => subscribe(publisher, { events, bind: true, topic: publisher.topic })),
    );
    await until('both are live', () =>
      both.every(({ subscriber }) => subscriber.sequence.inSequence && subscriber.connected),
    );
    for (const [i, publisher] of publishers.entries())
      for (let n = 0; n < 3; ++n) await publisher.publish(Buffer.from(`${i}/${n}`), n === 1);
    await until('all is there', () => both.every(({ seen }) => seen.known.length === 3));
    expect(both.map(({ seen }) => seen.known)).toEqual([
      ['0/0', '0/1', '0/2'],
      ['1/0', '1/1', '1/2'],
    ]);
    // One goes, the other one goes on.
    both[0]?.subscriber.close();
    await publishers[1]?.publish(Buffer.from('1/3'));
    await until('it came', () => both[1]?.seen.known.length === 4);
    expect(both[0]?.seen.known.length).toBe(3);
  });

  it('a batch missed at the very end is found by looking', async () => {
    const publisher = await publisherOf();
    const { seen, subscriber } = await subscribe(publisher, { limits: { ...limits, settleMs: 50, auditMs: 100 } });
    await until('it is live', () => subscriber.sequence.state === 'live' && subscriber.connected);
    await publisher.publish(Buffer.from('b0'));
    await publisher.publish(Buffer.from('b1'), true);
    await until('the lost one is there', () => seen.known.length === 2);
    expect(seen.metrics.gaps).toBe(0);
  });
});

describe('frames of vLLM', () => {
  /** Feeds a capture; every third batch is lost on the way. */
  async function feed(capture: Capture, blockTokens: number) {
    const publisher = new FakePublisher(capture.topic);
    closing.push(() => publisher.close());
    await publisher.listen();
    const scheduler = new Scheduler({ maxWorkers: 2, policy: 'affinity', blockTokens });
    closing.push(() => scheduler.close());
    const worker = scheduler.addWorker({ blocks: 2000 });
    const source = new KvEventSource(scheduler, worker, { algorithm: 'sha256_cbor', blockTokens });
    closing.push(() => source.close());
    const { subscriber } = await subscribe(publisher, {
      topic: capture.topic,
      apply: (payload) => source.apply(payload).refusedEvents === 0,
      reset: () => source.reset(),
    });
    await until('it is live', () => subscriber.sequence.state === 'live' && subscriber.connected);
    for (const [i, hex] of capture.payloads.entries()) await publisher.publish(Buffer.from(hex, 'hex'), i % 3 === 1);
    await until('all is applied', () => subscriber.sequence.next === capture.payloads.length);
    return { source, scheduler, subscriber };
  }

  it.each(['scheduler', 'schedulerBytes'] as const)('%s: the state after the last batch', async (name) => {
    const { source, subscriber } = await feed(captures[name], 4);
    expect(captures[name].payloads.length).toBe(15);
    const last = [1938555118752468626n, 2047415219901680874n, 1413885991563984457n];
    expect(source.stats()).toMatchObject({ blocks: 3, copies: 3, unknownRemovals: 0 });
    expect(source.usable(BigUint64Array.from(last))).toBe(3);
    expect(subscriber.sequence).toMatchObject({ resets: 0, restarts: 0 });
    expect(subscriber.sequence.gaps).toBeGreaterThan(0);
  });

  it('server 0.33.0: the cleared prompt is there again, the salted one is gone', async () => {
    const { source, scheduler } = await feed(captures.server, 16);
    const cold = BigUint64Array.of(3636722646677031407n, 542944968986592526n);
    const salted = BigUint64Array.of(16014397371320633522n, 14626754679705080051n);
    expect([source.usable(cold), source.usable(salted)]).toEqual([2, 0]);
    expect([...scheduler.match(cold).subarray(0, 3)]).toEqual([2, 2, 2]);
  });
});
