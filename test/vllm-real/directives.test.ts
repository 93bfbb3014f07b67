/**
 * Directives do to a real engine's pool what they say, sent by the DirectiveClient to the connector saga_vllm: what is retained stays
 * where stock vLLM evicts it, what is to go goes, and leases never stop the engine.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { BlockHasher, Scheduler } from '../../src/index.js';
import { WorkerSet, type DirectiveOutcome, type DirectiveTarget, type VllmWorker } from '../../src/vllm/index.js';
import { complete, dumpPool, randomOf, randomTokens, resetPrefixCache, until } from './client.js';
import { Recorder, type KvEvent } from './events.js';
import { hashSeeds, poolBlocks, serverIn, type RealServer } from './servers.js';

const blockTokens = 16;
const folder = inject('vllmServers');
const random = randomOf(5);
let plain: RealServer;
let server: RealServer;
let scheduler: Scheduler | undefined;
let set: WorkerSet;
let worker: VllmWorker;
let recorder: Recorder;

beforeAll(async () => {
  plain = await serverIn(folder, 'plain');
  server = await serverIn(folder, 'policy');
  recorder = new Recorder(server.events);
  scheduler = new Scheduler({ maxWorkers: 4, policy: 'affinity' });
  set = new WorkerSet({
    scheduler,
    model: server.model,
    servers: [
      {
        url: server.url,
        events: server.events,
        replay: server.replay,
        ...(server.directives === undefined ? {} : { directives: server.directives }),
      },
    ],
    hash: { algorithm: 'sha256_cbor', seed: hashSeeds.policy, taggedKeys: true },
  });
  await set.start();
  [worker] = set.workers as [VllmWorker];
});

afterAll(async () => {
  await set?.close();
  scheduler?.close();
  recorder?.close();
});

beforeEach(async () => {
  expect(await resetPrefixCache(server)).toBe(true);
  expect(await resetPrefixCache(plain)).toBe(true);
});

const chain = (blocks: number): number[] => randomTokens(random, blocks * blockTokens + 1);

const hashesOf = (tokens: readonly number[], cacheSalt?: string): bigint[] => [
  ...new BlockHasher({ algorithm: 'sha256_cbor', blockTokens, hashSeed: hashSeeds.policy, taggedKeys: true })
    .reset(cacheSalt === undefined ? {} : { cacheSalt })
    .update(Uint32Array.from(tokens)),
];

async function send(to: RealServer, tokens: readonly number[], more: Record<string, unknown> = {}): Promise<number> {
  const { status, cachedTokens } = await complete(to, tokens, more);
  expect(status).toBe(200);
  return cachedTokens;
}

/** So many blocks that nobody asked for before. */
async function press(to: RealServer, blocks: number): Promise<void> {
  for (let left = blocks; left > 0; left -= 30) await send(to, chain(Math.min(30, left)));
}

/** Blocks that the engine told to have gone since `from`, in order. */
function removedSince(from: number): bigint[] {
  return recorder.events
    .slice(from)
    .filter((event): event is KvEvent & { type: 'removed' } => event.type === 'removed')
    .flatMap(({ hashes }) => hashes);
}

/** What was done so far is in the recorder: the engine publishes with its steps. */
async function published(): Promise<void> {
  const last = chain(1);
  await send(server, last);
  const [hash] = hashesOf(last) as [bigint];
  await until('events come', () => recorder.blocks.has(hash));
}

const status = async () => (await set.directives.status(worker)).fields;

describe('the connector', () => {
  it('decides what goes, and says so', async () => {
    expect(await set.directives.status(worker)).toMatchObject({
      strength: 'policy',
      vllmVersion: '0.33.0',
      blockSize: blockTokens,
    });
    expect(worker).toMatchObject({ condition: 'ready', trust: 1, degraded: [] });
    expect(worker.features).toMatchObject({ version: '0.33.0', connector: 'policy', promptTokensDetails: true });
  });

  it('keeps a retained chain under pressure that evicts it without SAGA', async () => {
    const kept = chain(20);
    await send(server, kept);
    await send(plain, kept);
    let ended: DirectiveOutcome | undefined;
    const held = await set.directives.retain(
      worker,
      { tokenIds: kept },
      { claimId: 'kept', ttlSeconds: 600, value: 1, onEnd: (outcome) => (ended = outcome) },
    );
    expect(held).toEqual({ status: 'applied', blocks: 20, missing: 0 });
    expect(await status()).toMatchObject({ leases: 1, leased_blocks: 20 });
    const from = recorder.events.length;
    await press(server, 3 * poolBlocks);
    await press(plain, 3 * poolBlocks);
    const gone = new Set(removedSince(from));
    expect(gone.size).toBeGreaterThan(2 * poolBlocks);
    expect(hashesOf(kept).filter((hash) => gone.has(hash))).toEqual([]);
    expect(await send(plain, kept)).toBe(0);
    expect(await send(server, kept)).toBe(20 * blockTokens);
    expect(await set.directives.release(worker, 'kept')).toMatchObject({ status: 'released' });
    await until('the lease is told to be over', () => ended !== undefined);
    expect(ended).toMatchObject({ status: 'released' });
    expect(await status()).toMatchObject({ leases: 0, leased_blocks: 0 });
  });

  const targets: [string, (tokens: number[], requestId: string) => DirectiveTarget, string | undefined][] = [
    ['token ids', (tokenIds) => ({ tokenIds }), undefined],
    ['token ids with a salt', (tokenIds) => ({ tokenIds, cacheSalt: 'tenant-a' }), 'tenant-a'],
    [
      'hashes',
      (tokens) => ({ hashes: hashesOf(tokens).map((hash) => hash.toString(16).padStart(16, '0')) }),
      undefined,
    ],
    ['the id of a request', (_, requestId) => ({ requestId }), undefined],
  ];
  it.each(targets)('evicts now, by %s', async (_, targetOf, salt) => {
    const tokens = chain(12);
    const more = { max_tokens: 1, ...(salt === undefined ? {} : { cache_salt: salt }) };
    const requestId = `evicted-${random(1e9)}`;
    await complete(server, tokens, more, { headers: { 'x-request-id': requestId } });
    await published();
    const from = recorder.events.length;
    expect(await set.directives.evict(worker, targetOf(tokens, requestId), 'now')).toEqual({
      status: 'applied',
      blocks: 12,
      missing: 0,
    });
    await published();
    expect(removedSince(from).sort()).toEqual(hashesOf(tokens, salt).sort());
    expect(await send(server, tokens, more)).toBe(0);
  });

  it('makes the next victims of what is to go first, and serves it until then', async () => {
    const first = chain(12);
    // Full of blocks that can be evicted: whatever is allocated now evicts.
    await press(server, 2 * poolBlocks);
    await send(server, first);
    await published();
    expect(await set.directives.evict(worker, { tokenIds: first }, 'first')).toEqual({
      status: 'applied',
      blocks: 12,
      missing: 0,
    });
    // An engine that sleeps is woken by a request, which takes the first of them.
    expect(await send(server, first)).toBeGreaterThanOrEqual(11 * blockTokens);
    expect(await set.directives.evict(worker, { tokenIds: first }, 'first')).toMatchObject({ status: 'applied' });
    await published();
    const from = recorder.events.length;
    await send(server, chain(8));
    await published();
    const victims = removedSince(from);
    const marked = hashesOf(first);
    expect(victims.length).toBeGreaterThanOrEqual(8);
    expect(victims.slice(0, 8).filter((hash) => !marked.includes(hash))).toEqual([]);
  });

  it('refuses what it cannot do, with the reason', async () => {
    expect(await set.directives.evict(worker, { tokenIds: chain(3) }, 'now')).toMatchObject({
      status: 'refused',
      reason: 'not_resident',
    });
    expect(await set.directives.release(worker, 'nobody')).toMatchObject({ status: 'refused', reason: 'not_resident' });
    const large = chain(Math.ceil(0.3 * poolBlocks) + 20);
    await send(server, large);
    expect(
      await set.directives.retain(worker, { tokenIds: large }, { claimId: 'large', ttlSeconds: 60, value: 1 }),
    ).toMatchObject({ status: 'refused', reason: 'budget' });
  });

  it('a synthetic request brings a chain in, for a later prompt to find', async () => {
    const tokens = chain(16);
    await complete(server, tokens.slice(0, -1), { max_tokens: 1, session_id: 'prefetch' });
    expect(await send(server, tokens)).toBe(16 * blockTokens);
  });

  it('forgets leases when the cache is reset, and says so', async () => {
    const tokens = chain(5);
    await send(server, tokens);
    let ended: DirectiveOutcome | undefined;
    await set.directives.retain(
      worker,
      { tokenIds: tokens },
      { claimId: 'reset', ttlSeconds: 600, onEnd: (outcome) => (ended = outcome) },
    );
    expect(await resetPrefixCache(server)).toBe(true);
    await send(server, chain(2));
    await until('the lease is told to be over', () => ended !== undefined);
    expect(ended).toMatchObject({ status: 'revoked', reason: 'reset' });
  });

  it('lets a lease run out', async () => {
    const tokens = chain(5);
    await send(server, tokens);
    let ended: DirectiveOutcome | undefined;
    await set.directives.retain(
      worker,
      { tokenIds: tokens },
      { claimId: 'short', ttlSeconds: 0.5, onEnd: (outcome) => (ended = outcome) },
    );
    await delay(700);
    await send(server, chain(2));
    await until('the lease is told to be over', () => ended !== undefined);
    expect(ended).toMatchObject({ status: 'expired' });
  });

  it('never stops the engine, with leases up to their budget and requests that need all of the pool', async () => {
    const kept: number[][] = [];
    const ends: DirectiveOutcome[] = [];
    for (;;) {
      const tokens = chain(14);
      await send(server, tokens);
      const outcome = await set.directives.retain(
        worker,
        { tokenIds: tokens },
        { claimId: `budget-${kept.length}`, ttlSeconds: 600, value: 1, onEnd: (end) => ends.push(end) },
      );
      if (outcome.status !== 'applied' || ends.length > 0) break;
      kept.push(tokens);
    }
    const budget = Math.floor(0.3 * poolBlocks);
    const { leased_blocks: leased } = await status();
    expect(leased).toBeLessThanOrEqual(budget);
    expect(leased).toBeGreaterThan(budget - 2 * 14);
    // All of the pool but for what leases hold is in use, and preempted: they stay.
    const crowd = await Promise.all(
      Array.from({ length: 12 }, () => complete(server, chain(100), { max_tokens: 60, ignore_eos: true })),
    );
    expect(crowd.map(({ status: code }) => code)).toEqual(crowd.map(() => 200));
    // One request that needs what they hold: they go.
    const before = ends.length;
    expect(await send(server, chain(740))).toBe(0);
    await until('leases are revoked', () => ends.length > before);
    expect(ends.slice(before).every(({ status: end, reason }) => end === 'revoked' && reason === 'memory')).toBe(true);
    const { total } = await dumpPool(server);
    expect(total).toBeLessThanOrEqual(poolBlocks - 1);
    expect(await status()).toMatchObject({ strength: 'policy', counters: { errors: 0 } });
  });
});
