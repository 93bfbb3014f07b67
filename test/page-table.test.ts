/** Page tables: literals, refusals, and random operations against a model of which blocks are used. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  BlockHasher,
  PageTable,
  SagaArgumentError,
  SagaCapacityError,
  SagaError,
  SagaStateError,
  type PageTableOptions,
} from '../src/index.js';

const gpu = 0;
const host = 1;
const disk = 2;

const hashesOf = (...hashes: number[]): BigUint64Array => BigUint64Array.from(hashes, BigInt);
const ids = (...sequences: number[]): Uint32Array => Uint32Array.from(sequences);

function smallTable(gpuBlocks: number, hostBlocks = 0, options: Partial<PageTableOptions> = {}): PageTable {
  return new PageTable({
    blockTokens: 4,
    blocks: { gpu: gpuBlocks, host: hostBlocks },
    maxSequences: 4,
    maxBlocksPerSequence: 8,
    maxPlans: 2,
    eventCapacity: 64,
    ...options,
  });
}

/** A sequence of so many tokens whose first blocks have these hashes. */
function filled(table: PageTable, tokens: number, ...hashes: number[]): number {
  const { sequence } = table.open(hashesOf(), tokens);
  expect(table.allocateSlots(sequence, tokens)).toBeUndefined();
  table.cacheFullBlocks(sequence, hashesOf(...hashes));
  return sequence;
}

const rowOf = (table: PageTable, sequence: number): number[] => [...table.exportBlockTables(ids(sequence))];

/** The error that `action` throws; the table must be as before. */
function refusal(table: PageTable, action: () => unknown): SagaError {
  const before = table.digest();
  let caught: unknown;
  try {
    action();
  } catch (error) {
    caught = error;
  }
  expect(table.digest()).toBe(before);
  if (!(caught instanceof SagaError)) throw new Error(`expected a SagaError, got ${String(caught)}`);
  return caught;
}

describe('PageTable', () => {
  it('hits 8 of 12 tokens when a prompt of three blocks of 4 is repeated', () => {
    const table = smallTable(10);
    const prompt = Uint32Array.from({ length: 12 }, (_, i) => 100 + i);
    const hashes = new BlockHasher({ algorithm: 'sha256_cbor', blockTokens: 4 }).update(prompt);
    expect(hashes.length).toBe(3);
    expect(table.open(hashes, 12)).toEqual({
      sequence: 0,
      tokens: 0,
      tokensInTier: { gpu: 0, host: 0, disk: 0 },
    });
    expect(table.allocateSlots(0, 12)).toBeUndefined();
    table.cacheFullBlocks(0, hashes);
    expect(rowOf(table, 0)).toEqual([0, 1, 2]);

    // The last token must be computed: its block is never a hit, and its second copy is a fourth block.
    expect(table.match(hashes, 12).tokens).toBe(8);
    expect(table.match(hashes, 13).tokens).toBe(12);
    expect(table.open(hashes, 12)).toEqual({
      sequence: 1,
      tokens: 8,
      tokensInTier: { gpu: 8, host: 0, disk: 0 },
    });
    table.allocateSlots(1, 4);
    table.cacheFullBlocks(1, hashes.subarray(2));
    expect(rowOf(table, 1)).toEqual([0, 1, 3]);
    expect(table.sequence(1)).toEqual({ tokens: 12, blocks: 3, cachedBlocks: 3, resident: true, busy: false });

    const [first, second, third] = hashes as unknown as [bigint, bigint, bigint];
    expect(table.drainEvents()).toEqual({
      hashes: BigUint64Array.of(first, second, third, third),
      blocks: ids(0, 1, 2, 3),
      tiers: Uint8Array.of(gpu, gpu, gpu, gpu),
      kinds: Uint8Array.of(0, 0, 0, 0),
    });
    expect(table.cachedHashes('gpu')).toEqual(BigUint64Array.of(first, second, third, third));

    table.free(0);
    table.free(1);
    const stats = table.stats();
    expect(stats).toEqual({
      tiers: {
        gpu: {
          blocks: 10,
          freeBlocks: 10,
          cachedBlocks: 4,
          cachedHashes: 3,
          allocatedTotal: 4,
          evictedTotal: 0,
          memoryBytes: stats.tiers.gpu.memoryBytes,
        },
        host: { ...emptyTier, memoryBytes: stats.tiers.host.memoryBytes },
        disk: { ...emptyTier, memoryBytes: stats.tiers.disk.memoryBytes },
      },
      openSequences: 0,
      pendingPlans: 0,
      openedTotal: 2,
      promptTokensTotal: 24,
      hitTokensTotal: { gpu: 8, host: 0, disk: 0 },
      copiesOnWriteTotal: 0,
      copiedIntoTierTotal: { gpu: 0, host: 0, disk: 0 },
      outOfBlocksTotal: 0,
      eventsLostTotal: 0,
      memoryBytes: stats.memoryBytes,
    });
    expect(stats.tiers.gpu.memoryBytes).toBeGreaterThan(10 * 32);
    expect(stats.memoryBytes).toBeGreaterThan(stats.tiers.gpu.memoryBytes);
    expect(table.verify()).toBe(true);
  });

  it('copies a shared block when a fork writes into it', () => {
    const table = smallTable(6);
    expect(filled(table, 6, 1)).toBe(0);
    expect(table.fork(0)).toBe(1);
    expect(rowOf(table, 1)).toEqual([0, 1]);
    expect(table.stats().tiers.gpu.freeBlocks).toBe(4);

    expect(table.allocateSlots(1, 1)).toEqual(ids(gpu, 1, gpu, 2));
    expect(rowOf(table, 0)).toEqual([0, 1]);
    expect(rowOf(table, 1)).toEqual([0, 2]);
    expect(table.allocateSlots(0, 2)).toBeUndefined(); // alone with its block now
    expect(table.stats().copiesOnWriteTotal).toBe(1);

    const third = table.fork(0);
    expect(table.allocateSlots(third, 1)).toBeUndefined(); // a block boundary: nothing shared is written to
    expect(rowOf(table, third)).toEqual([0, 1, 3]);
    expect(table.verify()).toBe(true);
  });

  it('swaps a sequence out and in', () => {
    const table = smallTable(6, 6);
    filled(table, 10, 1, 2);
    const out = table.planSwapOut(0, 'host');
    expect(out.copies).toEqual(ids(gpu, 0, host, 0, gpu, 1, host, 1, gpu, 2, host, 2));
    expect(table.sequence(0)).toMatchObject({ resident: true, busy: true });
    expect(rowOf(table, 0)).toEqual([0, 1, 2]); // may be read until the copies are done
    table.commit(out.plan);
    expect(table.sequence(0)).toMatchObject({ resident: false, busy: false });

    // Two blocks still lie above and are shared: only the one without a hash is copied.
    const back = table.planSwapIn(0);
    expect(back.copies).toEqual(ids(host, 2, gpu, 2));
    table.abort(back.plan);
    expect(table.sequence(0).resident).toBe(false);
    const again = table.planSwapIn(0);
    expect(again.copies).toEqual(ids(host, 2, gpu, 3)); // block 2 was given back and is now the last to be taken
    table.commit(again.plan);
    expect(rowOf(table, 0)).toEqual([0, 1, 3]);
    expect(table.stats().copiedIntoTierTotal).toEqual({ gpu: 1, host: 3, disk: 0 });
    expect(out.copies[0]).toBe(gpu); // a plan's copies are the caller's own
    expect(table.verify()).toBe(true);
  });

  it('demotes, prefetches and tells hits apart by tier', () => {
    const table = smallTable(8, 4, { blocks: { gpu: 8, host: 4, disk: 4 } });
    filled(table, 12, 1, 2, 3);
    const down = table.planCopy('gpu', hashesOf(1, 99, 2), 'host');
    expect(down.copies).toEqual(ids(gpu, 0, host, 0, gpu, 1, host, 1));
    table.commit(down.plan);
    const disked = table.planCopy('gpu', hashesOf(3), 'disk');
    expect(disked.copies).toEqual(ids(gpu, 2, disk, 0));
    table.commit(disked.plan);
    expect(table.planCopy('gpu', hashesOf(3), 'disk').copies).toEqual(ids()); // there already
    expect(table.evict('gpu', hashesOf(2, 3, 77))).toBe(2);
    expect(table.evict('gpu', hashesOf(2))).toBe(0);

    const prompt = hashesOf(1, 2, 3);
    expect(table.match(prompt, 13).tokens).toBe(4);
    expect(table.match(prompt, 13, 'host').tokens).toBe(8);
    expect(table.open(prompt, 13, 'disk')).toEqual({
      sequence: 1,
      tokens: 12,
      tokensInTier: { gpu: 4, host: 4, disk: 4 },
    });
    expect(table.sequence(1).resident).toBe(false);
    table.truncate(1, 4); // gives the slower hits up
    expect(table.sequence(1)).toMatchObject({ tokens: 4, resident: true });
    expect(table.verify()).toBe(true);
  });

  it('exports block tables and slot mappings', () => {
    const table = smallTable(8);
    filled(table, 6); // blocks 0, 1
    filled(table, 4); // block 2
    table.allocateSlots(0, 3); // block 3
    const empty = table.open(hashesOf(), 1).sequence;
    expect(table.exportBlockTables(ids(1, 0, empty))).toEqual(Int32Array.of(2, -1, -1, 0, 1, 3, -1, -1, -1));
    const out = new Int32Array(9).fill(99);
    const rows = table.exportBlockTables(ids(1, 0), { width: 4, padding: 0, out });
    expect(rows).toEqual(Int32Array.of(2, 0, 0, 0, 0, 1, 3, 0));
    expect(rows.buffer).toBe(out.buffer);
    expect(out[8]).toBe(99);
    expect(table.exportBlockTables(ids())).toEqual(new Int32Array(0));

    const ranges = ids(0, 2, 7, empty, 0, 0, 1, 1, 2);
    const slots = [2n, 3n, 4n, 5n, 6n, 7n, 12n, 9n, 10n];
    expect(table.exportSlotMapping(ranges)).toEqual(BigInt64Array.from(slots));
    const room = new BigInt64Array(10).fill(99n);
    expect(table.exportSlotMapping(ranges, room)).toEqual(BigInt64Array.from(slots));
    expect([...room]).toEqual([...slots, 99n]);
    expect(table.exportSlotMapping(ids())).toEqual(new BigInt64Array(0));
  });

  it('lets a policy name victims, and forgets a tier when nothing is in use', () => {
    const table = smallTable(4);
    filled(table, 12, 1, 2, 3);
    expect(table.evictFirst('gpu', hashesOf(1))).toBe(0); // in use
    expect(table.resetPrefixCache('gpu')).toBe(false);
    table.free(0);
    expect(table.evictFirst('gpu', hashesOf(2, 9, 1))).toBe(2);
    table.allocateSlots(table.open(hashesOf(), 8).sequence, 8);
    expect(rowOf(table, 0)).toEqual([1, 0]); // in the order named
    table.free(0);
    table.drainEvents();
    expect(table.resetPrefixCache('gpu')).toBe(true);
    expect(table.drainEvents()).toEqual({
      hashes: hashesOf(0),
      blocks: ids(2 ** 32 - 1),
      tiers: Uint8Array.of(gpu),
      kinds: Uint8Array.of(2),
    });
    expect(table.cachedHashes('gpu')).toEqual(hashesOf());
  });

  it('hands events out in parts and counts those it had no room for', () => {
    const table = smallTable(8, 0, { eventCapacity: 3 });
    filled(table, 16, 1, 2, 3, 4);
    expect(table.drainEvents(2).hashes).toEqual(hashesOf(1, 2));
    const rest = table.drainEvents();
    expect(rest.hashes).toEqual(hashesOf(3));
    expect(table.drainEvents().hashes.length).toBe(0);
    expect(rest.blocks).toEqual(ids(2)); // the caller's own
    expect(table.stats().eventsLostTotal).toBe(1);
    const silent = smallTable(8, 0, { eventCapacity: 0 });
    filled(silent, 4, 1);
    expect(silent.drainEvents().hashes.length).toBe(0);
    expect(silent.stats().eventsLostTotal).toBe(0);
  });

  it('takes blocks that never got a hash first, if told to', () => {
    const next = (uncachedFirst: boolean): number[] => {
      const table = smallTable(4, 0, { uncachedFirst });
      table.free(filled(table, 8, 1)); // block 0 cached, block 1 not
      return rowOf(table, filled(table, 8));
    };
    expect(next(false)).toEqual([2, 3]);
    expect(next(true)).toEqual([1, 2]);
  });
});

const emptyTier = {
  blocks: 0,
  freeBlocks: 0,
  cachedBlocks: 0,
  cachedHashes: 0,
  allocatedTotal: 0,
  evictedTotal: 0,
  memoryBytes: 0,
};

describe('PageTable refuses, and is as it was', () => {
  it('when blocks, sequences, tables or plans run out', () => {
    const table = smallTable(3, 2);
    filled(table, 8, 1);
    const short = refusal(table, () => table.allocateSlots(0, 5));
    expect(short).toBeInstanceOf(SagaCapacityError);
    expect(short.code).toBe('SAGA_ERR_OUT_OF_BLOCKS');
    expect(refusal(table, () => table.planSwapOut(0, 'disk')).code).toBe('SAGA_ERR_OUT_OF_BLOCKS');
    expect(table.stats().outOfBlocksTotal).toBe(2);
    const long = refusal(table, () => table.allocateSlots(0, 25));
    expect(long).toBeInstanceOf(SagaCapacityError);
    expect(long.code).toBe('SAGA_ERR_FULL');

    for (let i = 0; i < 3; ++i) table.fork(0);
    expect(refusal(table, () => table.fork(0)).code).toBe('SAGA_ERR_FULL');
    expect(refusal(table, () => table.open(hashesOf(), 1)).code).toBe('SAGA_ERR_FULL');
    table.planCopy('gpu', hashesOf(1), 'host');
    table.planCopy('gpu', hashesOf(1), 'host');
    expect(refusal(table, () => table.planCopy('gpu', hashesOf(1), 'host')).code).toBe('SAGA_ERR_FULL');
    expect(table.verify()).toBe(true);
  });

  it('while a plan is pending, and until a sequence is resident', () => {
    const table = smallTable(4, 4);
    filled(table, 8, 1);
    const { plan } = table.planSwapOut(0, 'host');
    for (const change of [
      () => table.allocateSlots(0, 1),
      () => table.cacheFullBlocks(0, hashesOf(2)),
      () => table.fork(0),
      () => table.truncate(0, 1),
      () => table.free(0),
      () => table.planSwapOut(0, 'disk'),
      () => table.planSwapIn(0),
    ]) {
      const busy = refusal(table, change);
      expect(busy).toBeInstanceOf(SagaStateError);
      expect(busy.code).toBe('SAGA_ERR_BUSY');
    }
    table.commit(plan);
    for (const use of [
      () => table.allocateSlots(0, 1),
      () => table.exportBlockTables(ids(0)),
      () => table.exportSlotMapping(ids(0, 0, 1)),
    ]) {
      const away = refusal(table, use);
      expect(away).toBeInstanceOf(SagaStateError);
      expect(away.code).toBe('SAGA_ERR_NOT_RESIDENT');
    }
  });

  it('sequences and plans that are not there', () => {
    const table = smallTable(4, 4);
    table.free(filled(table, 4));
    for (const use of [
      () => table.allocateSlots(0, 1),
      () => table.cacheFullBlocks(0, hashesOf()),
      () => table.fork(7),
      () => table.truncate(0, 0),
      () => table.free(0),
      () => table.sequence(2 ** 32 - 1),
      () => table.exportBlockTables(ids(0)),
      () => table.exportBlockTables(ids(0), { width: 1 }),
      () => table.exportSlotMapping(ids(0, 0, 0)),
      () => table.planSwapOut(0, 'host'),
      () => table.planSwapIn(0),
      () => table.commit(0),
      () => table.abort(5),
    ]) {
      const error = refusal(table, use);
      expect(error).toBeInstanceOf(SagaStateError);
      expect(error.code).toBe('SAGA_ERR_NOT_FOUND');
    }
  });

  it('arguments outside their range', () => {
    const table = smallTable(6, 6);
    filled(table, 7, 1);
    const wrong = (value: unknown): never => value as never;
    for (const use of [
      () => table.open(hashesOf(1, 2), 7), // 7 tokens: one full block
      () => table.open(hashesOf(), 0),
      () => table.open(wrong([1n]), 8),
      () => table.open(wrong(new BigInt64Array(1)), 8),
      () => table.open(hashesOf(), 8, wrong('tape')),
      () => table.match(hashesOf(1, 2), 7),
      () => table.match(hashesOf(), 1.5),
      () => table.match(hashesOf(), 8, wrong(0)),
      () => table.allocateSlots(0, -1),
      () => table.allocateSlots(-1, 1),
      () => table.allocateSlots(wrong('0'), 1),
      () => table.cacheFullBlocks(0, hashesOf(2)), // the second block is not full
      () => table.cacheFullBlocks(0, wrong(undefined)),
      () => table.truncate(0, 8),
      () => table.fork(0.5),
      () => table.exportBlockTables(wrong([0])),
      () => table.exportBlockTables(ids(0), { width: 1 }), // two blocks long
      () => table.exportBlockTables(ids(0), { padding: 2 ** 31 }),
      () => table.exportBlockTables(ids(0), { out: new Int32Array(1) }),
      () => table.exportBlockTables(ids(0), { out: wrong(new Uint32Array(2)) }),
      () => table.exportSlotMapping(wrong([0, 0, 1])),
      () => table.exportSlotMapping(ids(0, 0)),
      () => table.exportSlotMapping(ids(0, 4, 4)), // behind the end
      () => table.exportSlotMapping(ids(0, 0, 2 ** 32 - 1)),
      () => table.exportSlotMapping(ids(0, 0, 7), new BigInt64Array(6)),
      () => table.planSwapOut(0, wrong('gpu')),
      () => table.planCopy('gpu', hashesOf(1), 'gpu'),
      () => table.planCopy('gpu', hashesOf(1, 2, 1), 'host'), // each once
      () => table.planCopy('gpu', hashesOf(1, 2, 3, 4, 5, 6, 7, 8, 9), 'host'),
      () => table.commit(NaN),
      () => table.evict(wrong('ram'), hashesOf(1)),
      () => table.evictFirst('gpu', wrong([1])),
      () => table.resetPrefixCache(wrong(undefined)),
      () => table.cachedHashes(wrong('')),
      () => table.drainEvents(0),
    ]) {
      expect(refusal(table, use), String(use)).toBeInstanceOf(SagaArgumentError);
    }
  });

  it('a hash that disagrees with the one a fork gave the same block', () => {
    const table = smallTable(6);
    filled(table, 8);
    table.fork(0);
    table.cacheFullBlocks(0, hashesOf(1, 2));
    expect(refusal(table, () => table.cacheFullBlocks(1, hashesOf(1, 3)))).toBeInstanceOf(SagaArgumentError);
    table.cacheFullBlocks(1, hashesOf(1, 2));
    expect(table.stats().tiers.gpu.cachedBlocks).toBe(2);
  });

  it('options outside their range', () => {
    const make = (options: Record<string, unknown>) => () => new PageTable({ blocks: { gpu: 4 }, ...options });
    expect(make({})).not.toThrow();
    for (const options of [
      { blocks: undefined },
      { blocks: 4 },
      { blocks: {} },
      { blocks: { gpu: 0 } },
      { blocks: { gpu: 2 ** 26 + 1 } },
      { blocks: { gpu: 4, host: -1 } },
      { blocks: { gpu: 4, disk: 0.5 } },
      { blockTokens: 0 },
      { blockTokens: 4097 },
      { maxSequences: 0 },
      { maxSequences: 2 ** 20 + 1 },
      { maxBlocksPerSequence: 0 },
      { maxBlocksPerSequence: 2 ** 20 + 1 },
      { maxPlans: 0 },
      { maxPlans: 2 ** 16 + 1 },
      { eventCapacity: -1 },
      { eventCapacity: 2 ** 26 + 1 },
      { uncachedFirst: 1 },
      { maxBlocksPerSequence: 2 ** 20, maxSequences: 1025 },
      { maxBlocksPerSequence: 2 ** 20, maxSequences: 1, maxPlans: 65 },
      { maxBlocksPerSequence: 2 ** 20, maxSequences: 1, maxPlans: 1, blockTokens: 4096 },
    ]) {
      expect(make(options), JSON.stringify(options)).toThrow(SagaArgumentError);
    }
    expect(() => new PageTable(undefined as unknown as PageTableOptions)).toThrow(SagaArgumentError);
  });

  it('every use after close', () => {
    const table = smallTable(4, 4);
    filled(table, 4, 1);
    table.close();
    table.close();
    for (const use of [
      () => table.match(hashesOf(), 1),
      () => table.open(hashesOf(), 1),
      () => table.allocateSlots(0, 1),
      () => table.cacheFullBlocks(0, hashesOf()),
      () => table.fork(0),
      () => table.truncate(0, 0),
      () => table.free(0),
      () => table.sequence(0),
      () => table.exportBlockTables(ids(0)),
      () => table.exportSlotMapping(ids()),
      () => table.planSwapOut(0, 'host'),
      () => table.planSwapIn(0),
      () => table.planCopy('gpu', hashesOf(1), 'host'),
      () => table.commit(0),
      () => table.abort(0),
      () => table.evict('gpu', hashesOf(1)),
      () => table.evictFirst('gpu', hashesOf(1)),
      () => table.resetPrefixCache('gpu'),
      () => table.cachedHashes('gpu'),
      () => table.drainEvents(),
      () => table.stats(),
      () => table.verify(),
      () => table.digest(),
    ]) {
      expect(use, String(use)).toThrow(SagaStateError);
      expect(use, String(use)).toThrow(expect.objectContaining({ code: 'SAGA_ERR_CLOSED' }));
    }
  });
});

const blockTokens = 3;
const capacity = [8, 5] as const; // blocks in GPU and host memory
const maxSequences = 5;
const maxBlocks = 5;
const maxPlans = 2;

type Operation =
  | { kind: 'open'; text: number; length: number }
  | { kind: 'allocate'; sequence: number; tokens: number }
  | { kind: 'cache'; sequence: number; blocks: number }
  | { kind: 'fork' | 'free' | 'swapOut' | 'swapIn'; sequence: number }
  | { kind: 'truncate'; sequence: number; quarters: number }
  | { kind: 'copy'; down: boolean; text: number }
  | { kind: 'finish'; plan: number; commit: boolean }
  | { kind: 'evict' | 'evictFirst'; text: number; tier: number }
  | { kind: 'reset'; tier: number };

const sequence = fc.nat({ max: maxSequences });
const text = fc.nat({ max: 2 });
const tier = fc.nat({ max: 1 });
const one = <T extends string>(...kinds: T[]): fc.Arbitrary<T> => fc.constantFrom(...kinds);
const operation: fc.Arbitrary<Operation> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: one('open'), text, length: fc.integer({ min: 1, max: 18 }) }) },
  { weight: 6, arbitrary: fc.record({ kind: one('allocate'), sequence, tokens: fc.nat({ max: 8 }) }) },
  { weight: 4, arbitrary: fc.record({ kind: one('cache'), sequence, blocks: fc.nat({ max: 4 }) }) },
  { weight: 6, arbitrary: fc.record({ kind: one('fork', 'free', 'swapOut', 'swapOut', 'swapIn'), sequence }) },
  { weight: 1, arbitrary: fc.record({ kind: one('truncate'), sequence, quarters: fc.nat({ max: 4 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: one('copy'), down: fc.boolean(), text }) },
  { weight: 4, arbitrary: fc.record({ kind: one('finish'), plan: fc.nat({ max: maxPlans }), commit: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ kind: one('evict', 'evictFirst'), text, tier }) },
  { weight: 1, arbitrary: fc.record({ kind: one('reset'), tier }) },
);

/** Block `i` of text `t` always has this hash: what a sequence of a text computes is the text. */
const hashOf = (t: number, i: number): bigint => BigInt(100 * t + i + 1);
const chainOf = (t: number, from: number, to: number): BigUint64Array =>
  BigUint64Array.from({ length: Math.max(0, to - from) }, (_, i) => hashOf(t, from + i));
const blocksFor = (tokens: number): number => Math.ceil(tokens / blockTokens);

/** One of the ids that there are; for `never` an id that is never given out. */
function pick(there: ReadonlyMap<number, unknown>, i: number, never: number): number {
  const open = [...there.keys()];
  return i === never ? never : (open[i % open.length] ?? never);
}

/** A block of a tier as one number. */
const place = (tierOf: number, block: number): number => 1000 * tierOf + block;
const tierOfPlace = (at: number): number => Math.floor(at / 1000);

interface ModelSequence {
  text: number;
  tokens: number;
  cached: number;
  places: number[];
  busy: boolean;
}

interface ModelPlan {
  sequence: ModelSequence | undefined;
  moves: { position: number; target: number }[];
  /** What it keeps from being given out, beside what its sequence has. */
  held: number[];
}

/**
 * What a server can work out for itself: which blocks each sequence and each plan holds, from answers and copies, and which block
 * answers to which hash, from the events. Every answer is predicted but the numbers of newly taken blocks, which only must not be
 * used by anyone.
 */
class Model {
  readonly table = new PageTable({
    blockTokens,
    blocks: { gpu: capacity[0], host: capacity[1] },
    maxSequences,
    maxBlocksPerSequence: maxBlocks,
    maxPlans,
    eventCapacity: 1000,
  });
  readonly sequences = new Map<number, ModelSequence>();
  readonly plans = new Map<number, ModelPlan>();
  /** By tier: hash to its blocks, the one cached first in front. */
  readonly cached = [new Map<bigint, number[]>(), new Map<bigint, number[]>()] as const;
  readonly outcomes = new Map<string, number>();

  references(): Map<number, number> {
    const count = new Map<number, number>();
    const refer = (at: number): unknown => count.set(at, (count.get(at) ?? 0) + 1);
    for (const { places } of this.sequences.values()) places.forEach(refer);
    for (const { held } of this.plans.values()) held.forEach(refer);
    return count;
  }

  used(t: number): number {
    return [...this.references().keys()].filter((at) => tierOfPlace(at) === t).length;
  }

  unused(t: 0 | 1): number {
    return capacity[t] - this.used(t);
  }

  find(hash: bigint, t: 0 | 1): number | undefined {
    const block = this.cached[t].get(hash)?.[0];
    return block === undefined ? undefined : place(t, block);
  }

  hashAt(at: number): bigint | undefined {
    const t = tierOfPlace(at) as 0 | 1;
    for (const [hash, blocks] of this.cached[t]) if (blocks.includes(at - place(t, 0))) return hash;
    return undefined;
  }

  readEvents(): void {
    const events = this.table.drainEvents();
    events.hashes.forEach((hash, i) => {
      const hashes = this.cached[events.tiers[i] as 0 | 1];
      const block = events.blocks[i] as number;
      const copies = hashes.get(hash) ?? [];
      if (events.kinds[i] === 2) hashes.clear();
      else if (events.kinds[i] === 0) hashes.set(hash, [...copies, block]);
      else if (copies.length === 1 && copies[0] === block) hashes.delete(hash);
      else {
        expect(copies).toContain(block);
        hashes.set(
          hash,
          copies.filter((copy) => copy !== block),
        );
      }
    });
  }

  /** Runs `action`, which must succeed if `code` is `undefined`, else fail with the code and change nothing. */
  expectOutcome<T>(code: string | undefined, action: () => T): T | undefined {
    this.outcomes.set(code ?? 'ok', (this.outcomes.get(code ?? 'ok') ?? 0) + 1);
    if (code === undefined) return action();
    expect(refusal(this.table, action).code).toBe(code);
    return undefined;
  }

  run(o: Operation): void {
    const { table } = this;
    switch (o.kind) {
      case 'open': {
        const places: number[] = [];
        const inTier = [0, 0];
        for (let i = 0; i < Math.min(blocksFor(o.length) - 1, maxBlocks); ++i) {
          const found = this.find(hashOf(o.text, i), gpu) ?? this.find(hashOf(o.text, i), host);
          if (found === undefined) break;
          places.push(found);
          inTier[tierOfPlace(found)] = (inTier[tierOfPlace(found)] as number) + blockTokens;
        }
        const hit = {
          tokens: places.length * blockTokens,
          tokensInTier: { gpu: inTier[0], host: inTier[1], disk: 0 },
        };
        const hashes = chainOf(o.text, 0, Math.floor(o.length / blockTokens));
        expect(table.match(hashes, o.length, 'host')).toEqual(hit);
        const full = this.sequences.size === maxSequences ? 'SAGA_ERR_FULL' : undefined;
        const opened = this.expectOutcome(full, () => table.open(hashes, o.length, 'host'));
        if (opened === undefined) return;
        expect(opened).toEqual({ sequence: opened.sequence, ...hit });
        expect(this.sequences.has(opened.sequence)).toBe(false);
        this.sequences.set(opened.sequence, {
          text: o.text,
          tokens: hit.tokens,
          cached: places.length,
          places,
          busy: false,
        });
        return;
      }
      case 'finish': {
        const id = pick(this.plans, o.plan, maxPlans);
        const plan = this.plans.get(id);
        const code = plan === undefined ? 'SAGA_ERR_NOT_FOUND' : undefined;
        this.expectOutcome(code, () => (o.commit ? table.commit(id) : table.abort(id)));
        if (plan === undefined) return;
        this.plans.delete(id);
        if (plan.sequence === undefined) return;
        plan.sequence.busy = false;
        for (const { position, target } of o.commit ? plan.moves : []) plan.sequence.places[position] = target;
        return;
      }
      case 'copy': {
        const [from, to] = o.down ? ([gpu, host] as const) : ([host, gpu] as const);
        const hashes = chainOf(o.text, 0, maxBlocks);
        const sources = [...hashes].flatMap((hash) => this.find(hash, from) ?? []);
        this.plan(undefined, sources, to, sources, () =>
          table.planCopy(o.down ? 'gpu' : 'host', hashes, o.down ? 'host' : 'gpu'),
        );
        return;
      }
      case 'evict':
      case 'evictFirst': {
        const hashes = chainOf(o.text, 0, 6);
        const references = this.references();
        const found = [...hashes].flatMap((hash) => this.find(hash, o.tier as 0 | 1) ?? []);
        const name = o.tier === gpu ? 'gpu' : 'host';
        if (o.kind === 'evict') expect(table.evict(name, hashes)).toBe(found.length);
        else expect(table.evictFirst(name, hashes)).toBe(found.filter((at) => !references.has(at)).length);
        return;
      }
      case 'reset':
        expect(table.resetPrefixCache(o.tier === gpu ? 'gpu' : 'host')).toBe(this.used(o.tier) === 0);
        return;
      default: {
        const id = pick(this.sequences, o.sequence, maxSequences);
        this.runOnSequence({ ...o, sequence: id }, this.sequences.get(id));
      }
    }
  }

  runOnSequence(o: Extract<Operation, { sequence: number }>, s: ModelSequence | undefined): void {
    const { table } = this;
    const missing = s === undefined ? 'SAGA_ERR_NOT_FOUND' : s.busy ? 'SAGA_ERR_BUSY' : undefined;
    switch (o.kind) {
      case 'allocate': {
        const tokens = (s?.tokens ?? 0) + o.tokens;
        const last = s?.places.at(-1);
        const references = this.references();
        const copies =
          s !== undefined &&
          o.tokens > 0 &&
          s.tokens % blockTokens !== 0 &&
          (references.get(last as number) as number) > 1;
        const added = blocksFor(tokens) - (s?.places.length ?? 0) + (copies ? 1 : 0);
        const code =
          missing ??
          (s?.places.some((at) => tierOfPlace(at) !== gpu)
            ? 'SAGA_ERR_NOT_RESIDENT'
            : blocksFor(tokens) > maxBlocks
              ? 'SAGA_ERR_FULL'
              : added > this.unused(gpu)
                ? 'SAGA_ERR_OUT_OF_BLOCKS'
                : undefined);
        const copy = this.expectOutcome(code, () => table.allocateSlots(o.sequence, o.tokens));
        if (code !== undefined || s === undefined) return;
        const row = rowOf(table, o.sequence);
        const kept = copies ? s.places.slice(0, -1) : s.places;
        expect(row.slice(0, kept.length)).toEqual(kept);
        expect(row.length).toBe(blocksFor(tokens));
        for (const block of row.slice(kept.length)) expect(references.has(block)).toBe(false);
        expect(copy).toEqual(copies ? ids(gpu, last as number, gpu, row[kept.length] as number) : undefined);
        const first = BigInt((row[Math.floor(s.tokens / blockTokens)] ?? 0) * blockTokens + (s.tokens % blockTokens));
        const slots = table.exportSlotMapping(ids(o.sequence, s.tokens, o.tokens));
        expect(slots.length).toBe(o.tokens);
        if (o.tokens > 0) expect(slots[0]).toBe(first);
        s.places = row;
        s.tokens = tokens;
        return;
      }
      case 'cache': {
        const most = s === undefined ? 0 : Math.floor(s.tokens / blockTokens) - s.cached;
        const code = missing ?? (o.blocks > most ? 'SAGA_ERR_INVALID_ARGUMENT' : undefined);
        const from = s?.cached ?? 0;
        const hashes = chainOf(s?.text ?? 0, from, from + o.blocks);
        this.expectOutcome(code, () => table.cacheFullBlocks(o.sequence, hashes));
        if (code === undefined && s !== undefined) s.cached += o.blocks;
        return;
      }
      case 'fork': {
        const code = missing ?? (this.sequences.size === maxSequences ? 'SAGA_ERR_FULL' : undefined);
        const child = this.expectOutcome(code, () => table.fork(o.sequence));
        if (child === undefined || s === undefined) return;
        expect(this.sequences.has(child)).toBe(false);
        this.sequences.set(child, { ...s, places: [...s.places] });
        return;
      }
      case 'free':
        this.expectOutcome(missing, () => table.free(o.sequence));
        if (missing === undefined) this.sequences.delete(o.sequence);
        return;
      case 'truncate': {
        const tokens = Math.floor(((s?.tokens ?? 0) * o.quarters) / 4);
        this.expectOutcome(missing, () => table.truncate(o.sequence, tokens));
        if (missing !== undefined || s === undefined) return;
        s.tokens = tokens;
        s.places = s.places.slice(0, blocksFor(tokens));
        s.cached = Math.min(s.cached, Math.floor(tokens / blockTokens));
        return;
      }
      case 'swapOut':
      case 'swapIn': {
        const act = (): { plan: number; copies: Uint32Array } =>
          o.kind === 'swapOut' ? table.planSwapOut(o.sequence, 'host') : table.planSwapIn(o.sequence);
        if (missing !== undefined || s === undefined) {
          this.expectOutcome(missing, act);
          return;
        }
        const from = o.kind === 'swapOut' ? gpu : host;
        const sources = s.places.filter((at) => tierOfPlace(at) === from);
        this.plan(s, sources, from === gpu ? host : gpu, [], act);
      }
    }
  }

  plan(
    s: ModelSequence | undefined,
    sources: number[],
    to: 0 | 1,
    held: number[],
    act: () => { plan: number; copies: Uint32Array },
  ): void {
    const references = this.references();
    const shared = sources.map((at) => {
      const hash = this.hashAt(at);
      return hash === undefined ? undefined : this.find(hash, to);
    });
    const taken = shared.filter((at) => at === undefined || !references.has(at)).length;
    const code =
      this.plans.size === maxPlans ? 'SAGA_ERR_FULL' : taken > this.unused(to) ? 'SAGA_ERR_OUT_OF_BLOCKS' : undefined;
    const planned = this.expectOutcome(code, act);
    if (planned === undefined) return;
    let next = 0;
    const targets = sources.map((source, i) => {
      if (shared[i] !== undefined) return shared[i];
      const [sourceTier, sourceBlock, targetTier, target = -1] = planned.copies.subarray(next, (next += 4));
      expect([sourceTier, sourceBlock, targetTier]).toEqual([
        tierOfPlace(source),
        source - place(tierOfPlace(source), 0),
        to,
      ]);
      expect(references.has(place(to, target))).toBe(false);
      return place(to, target);
    });
    expect(planned.copies.length).toBe(next);
    expect(this.plans.has(planned.plan)).toBe(false);
    const moves = targets.map((target, i) => ({ position: s?.places.indexOf(sources[i] as number) ?? 0, target }));
    this.plans.set(planned.plan, { sequence: s, moves, held: [...targets, ...held] });
    if (s !== undefined) s.busy = true;
  }

  check(): void {
    this.readEvents();
    expect(this.table.verify()).toBe(true);
    const stats = this.table.stats();
    expect(stats.openSequences).toBe(this.sequences.size);
    expect(stats.pendingPlans).toBe(this.plans.size);
    for (const t of [gpu, host] as const) {
      const pool = stats.tiers[t === gpu ? 'gpu' : 'host'];
      expect(pool.blocks - pool.freeBlocks).toBe(this.used(t));
      expect(pool.cachedHashes).toBe(this.cached[t].size);
      const byBlock = [...this.cached[t]].flatMap(([hash, blocks]) => blocks.map((block) => ({ hash, block })));
      byBlock.sort((a, b) => a.block - b.block);
      expect([...this.table.cachedHashes(t === gpu ? 'gpu' : 'host')]).toEqual(byBlock.map(({ hash }) => hash));
    }
    for (const [id, s] of this.sequences) {
      const resident = s.places.every((at) => tierOfPlace(at) === gpu);
      expect(this.table.sequence(id)).toEqual({
        tokens: s.tokens,
        blocks: s.places.length,
        cachedBlocks: s.cached,
        resident,
        busy: s.busy,
      });
      if (resident) expect(rowOf(this.table, id)).toEqual(s.places);
    }
  }
}

describe('PageTable under random operations', () => {
  it('uses the blocks that a model says, and is sound after each', () => {
    const outcomes = new Map<string, number>();
    fc.assert(
      fc.property(fc.array(operation, { minLength: 40, maxLength: 80 }), (operations) => {
        const model = new Model();
        for (const o of operations) {
          model.run(o);
          model.check();
        }
        for (const [code, count] of model.outcomes) outcomes.set(code, (outcomes.get(code) ?? 0) + count);
        model.table.close();
      }),
      { numRuns: 150, seed: 7 },
    );
    // The runs went where they were meant to go.
    for (const code of [
      'ok',
      'SAGA_ERR_FULL',
      'SAGA_ERR_OUT_OF_BLOCKS',
      'SAGA_ERR_BUSY',
      'SAGA_ERR_NOT_RESIDENT',
      'SAGA_ERR_NOT_FOUND',
      'SAGA_ERR_INVALID_ARGUMENT',
    ]) {
      expect(outcomes.get(code) ?? 0, code).toBeGreaterThan(20);
    }
  });
});
