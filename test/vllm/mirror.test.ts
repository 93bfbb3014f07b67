/**
 * What the scheduler knows of a worker equals what the worker holds: after thousands of random requests, with batches that are lost,
 * engines that begin anew, replays that are too short, and a set that joins late.
 */
import { afterEach, describe, expect, it } from 'vitest';
import { EmulatedWorker } from '../../src/emulated-worker/index.js';
import { Scheduler } from '../../src/index.js';
import { WorkerSet, type EventHash } from '../../src/vllm/index.js';
import { complete, only, randomOf, serverOf, shortTimes, until } from './helpers.js';

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

const blocks = 257;

/** Prompts of a tree: shared beginnings, random ends. */
function promptOf(random: (below: number) => number): number[] {
  const tokens: number[] = [];
  for (let depth = 0; depth < 1 + random(6); ++depth) {
    const branch = random(3);
    for (let i = 0; i < 16 * (1 + random(2)); ++i) tokens.push(100 + depth * 50 + branch * 17 + (i % 11));
  }
  return [...tokens, ...Array.from({ length: random(30) }, () => random(5000))];
}

async function traffic(
  worker: EmulatedWorker,
  seed: number,
  count: number,
  disturb: (random: (below: number) => number, sent: number) => void,
): Promise<number[][]> {
  const random = randomOf(seed);
  const prompts: number[][] = [];
  let sent = 0;
  const client = async (): Promise<void> => {
    while (sent++ < count) {
      const prompt = promptOf(random);
      prompts.push(prompt);
      disturb(random, prompts.length);
      await complete(worker, prompt, random(4) === 0 ? { cache_salt: `tenant-${random(2)}` } : {}).catch(() => 0);
    }
  };
  await Promise.all(Array.from({ length: 8 }, client));
  return prompts;
}

async function start(hash: EventHash, options: { replay?: boolean; buffer?: number; late?: number } = {}) {
  const worker = await EmulatedWorker.start({
    eventsPort: 0,
    replayPort: options.replay === false ? null : 0,
    bufferBatches: options.buffer ?? 10_000,
    blocks,
    timeScale: Infinity,
    hashSeed: hash.algorithm === 'saga' ? 'another' : hash.seed,
  });
  closing.push(() => worker.close());
  if (options.late !== undefined) await traffic(worker, 99, options.late, () => {});
  const scheduler = new Scheduler({ maxWorkers: 16, policy: 'affinity' });
  closing.push(() => scheduler.close());
  const set = new WorkerSet(
    { scheduler, model: 'emulated', servers: [serverOf(worker)], hash, healthSeconds: 1, loadSeconds: 0 },
    shortTimes,
  );
  closing.push(() => set.close());
  await set.start();
  return { worker, scheduler, set };
}

/** All calls have ended; a last batch shows the gap before it. */
async function quiet(worker: EmulatedWorker): Promise<void> {
  const engine = worker.engines[0] as EmulatedWorker['engines'][number];
  await until('no call is open', () => engine.openCalls === 0);
  await complete(
    worker,
    Array.from({ length: 40 }, (_, i) => 7000 + i),
  );
}

/** Waits until the view equals the engine's own table: block by block, copies counted, and prompt by prompt. */
async function equal(
  worker: EmulatedWorker,
  set: WorkerSet,
  scheduler: Scheduler,
  prompts: readonly number[][],
  direct: boolean,
): Promise<void> {
  const engine = worker.engines[0] as EmulatedWorker['engines'][number];
  const source = set.sourceOf(only(set));
  if (source === undefined) throw new Error('no source');
  const cached = engine.cachedHashes();
  const copies = new Map<bigint, number>();
  for (const hash of cached) copies.set(hash, (copies.get(hash) ?? 0) + 1);
  let held = 0;
  const some = prompts.slice(-400).map((prompt) => {
    const tokens = Uint32Array.from(prompt);
    const own = engine.hashesOf(tokens, {});
    const expected = engine.resident(own).hashes.length;
    held += expected;
    return { expected, chain: direct ? own : scheduler.hash(tokens) };
  });
  expect(held).toBeGreaterThan(100);
  await until('the view equals the table', () => {
    const stats = source.stats();
    if (stats.copies !== cached.length || stats.blocks !== copies.size || only(set).degraded.length > 0) return false;
    if (direct && ![...copies].every(([hash, count]) => source.copies(hash) === count)) return false;
    return some.every(
      ({ chain, expected }) =>
        scheduler.match(chain)[3 * only(set).worker.id] === expected && source.usable(chain) === expected,
    );
  });
  expect([source.verify(), scheduler.verify()]).toEqual([true, true]);
}

const hashes: EventHash[] = [{ algorithm: 'saga' }, { algorithm: 'sha256_cbor', seed: '42' }];

describe.each(hashes)('with keys by $algorithm', (hash) => {
  const direct = hash.algorithm !== 'saga';

  it('equals the table after lost batches, and passes its probe', async () => {
    const { worker, scheduler, set } = await start(hash);
    const { condition, trust, degraded } = only(set);
    expect({ condition, trust, degraded }).toEqual({ condition: 'ready', trust: 1, degraded: [] });
    const prompts = await traffic(worker, 1, 1000, (random) => {
      if (random(40) === 0) worker.dropEvents(1 + random(5));
    });
    await quiet(worker);
    await equal(worker, set, scheduler, prompts, direct);
    const events = set.metrics().workers[0]?.events;
    expect(events?.gaps).toBeGreaterThan(10);
    expect(events).toMatchObject({ restarts: 0, resets: 0, malformed: 0, unknownRemovals: 0 });
  });

  it('equals the table after restarts, and one that joins late', async () => {
    const { worker, scheduler, set } = await start(hash, { late: 300 });
    const prompts = await traffic(worker, 2, 600, (random, sent) => {
      if (random(40) === 0) worker.dropEvents(1 + random(5));
      if (sent % 150 === 0 && sent < 600) worker.restart();
    });
    await quiet(worker);
    await equal(worker, set, scheduler, prompts, direct);
    const events = set.metrics().workers[0]?.events;
    // A batch of the engine before that was on its way while a replay showed the new one looks like one more.
    expect(events?.restarts).toBeGreaterThanOrEqual(3);
    expect(events?.restarts).toBeLessThanOrEqual(6);
    expect(set.metrics().servers[0]).toMatchObject({ joined: 1, lost: 0 });
  });
});

/** Without everything there was: what is known is held, but not all that is held is known. */
describe('a view that cannot be whole', () => {
  async function lowerBound(options: { replay?: boolean; buffer?: number; late?: number }) {
    const { worker, scheduler, set } = await start({ algorithm: 'sha256_cbor', seed: '7' }, options);
    const prompts = await traffic(worker, 3, 400, (random) => {
      if (random(60) === 0) worker.dropEvents(1 + random(5));
    });
    const engine = worker.engines[0] as EmulatedWorker['engines'][number];
    await until('no call is open', () => engine.openCalls === 0);
    // More batches than may still be lost.
    for (let n = 0; n < 8; ++n)
      await complete(
        worker,
        Array.from({ length: 40 }, (_, i) => 7000 + 100 * n + i),
      );
    await until('all was read', () => !only(set).degraded.some((reason) => reason.includes('asked for')));
    const source = set.sourceOf(only(set));
    const cached = new Set(engine.cachedHashes());
    const known = (): number => [...cached].filter((hash) => source?.copies(hash) !== 0).length;
    // The last batches may be on their way.
    await until('every block that is known is held', () => known() > 0 && source?.stats().blocks === known());
    for (const prompt of prompts.slice(-200)) {
      const own = engine.hashesOf(Uint32Array.from(prompt), {});
      expect(scheduler.match(own)[3 * only(set).worker.id]).toBeLessThanOrEqual(engine.resident(own).hashes.length);
    }
    return only(set);
  }

  it('without a replay endpoint', async () => {
    const worker = await lowerBound({ replay: false });
    expect(worker.degraded).toEqual(['events: some are missing, and there is no replay endpoint']);
    expect(worker.trust).toBe(0.9);
  });

  it('with replays that are too short', async () => {
    const worker = await lowerBound({ buffer: 8, late: 100 });
    await until('the replay has ended', () => worker.degraded[0] !== 'events: being read from the start');
    expect(worker.degraded).toEqual(['events: some are missing and cannot be had']);
    expect(worker.trust).toBe(0.9);
  });
});
