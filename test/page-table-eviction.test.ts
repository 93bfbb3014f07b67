/** Page tables whose eviction is the policy `saga`: what clients tell reaches it, and what it decides comes back. */
import { describe, expect, it } from 'vitest';
import {
  PageTable,
  SagaArgumentError,
  type PageTableOptions,
  type SequenceCall,
  type SequenceOutcome,
} from '../src/index.js';

const hashesOf = (...hashes: number[]): BigUint64Array => BigUint64Array.from(hashes, BigInt);

/** A table of blocks of 4 tokens with a clock that the test moves. */
function sagaTable(gpu: number, options: Partial<PageTableOptions> = {}) {
  const time = { seconds: 0 };
  const table = new PageTable({
    blockTokens: 4,
    blocks: { gpu, host: 8 },
    maxSequences: 4,
    maxBlocksPerSequence: 8,
    eviction: 'saga',
    clock: () => time.seconds * 1e6,
    ...options,
  });
  /** One call with this prompt of whole blocks, a second long; returns the tokens that hit. */
  const call = (hashes: number[], about: SequenceCall, outcome: SequenceOutcome = {}): number => {
    const tokens = hashes.length * 4 + 1;
    const { sequence, tokens: hit } = table.open(hashesOf(...hashes), tokens, 'gpu', about);
    table.allocateSlots(sequence, tokens - 1 - hit);
    table.cacheFullBlocks(sequence, hashesOf(...hashes.slice(hit / 4)));
    time.seconds += 1;
    table.free(sequence, outcome);
    time.seconds += 1;
    expect(table.verify()).toBe(true);
    return hit;
  };
  const cached = (): number[] => [...table.cachedHashes('gpu')].map(Number).sort((a, b) => a - b);
  return { table, call, cached, time };
}

describe('PageTable with eviction: saga', () => {
  it('takes the blocks of a session that has ended before those of an older one', () => {
    const { table, call, cached } = sagaTable(6);
    call([10, 11, 12], { thread: 1, promptKind: 'start' });
    call([20, 21, 22], { thread: 2 }, { stopReason: 'end-turn', sessionEnd: true, outputTokens: 50 });
    call([30, 31, 32], { thread: 3 });
    expect(cached()).toEqual([10, 11, 12, 30, 31, 32]);
    expect(table.evictionStats()).toMatchObject({
      freeBlocks: 6,
      pages: 6,
      heads: 3,
      evictedTotal: 3,
      bypassedTotal: 3,
      requestedPagesTotal: 9,
      missedPagesTotal: 9,
      demotedTotal: 0,
    });
  });

  it('takes the older ones first under lru, whatever it is told', () => {
    const { table, call, cached } = sagaTable(6, { eviction: 'lru' });
    call([10, 11, 12], { thread: 1 });
    call([20, 21, 22], { thread: 2 }, { sessionEnd: true });
    call([30, 31, 32], { thread: 3 });
    expect(cached()).toEqual([20, 21, 22, 30, 31, 32]);
    expect(Object.values(table.evictionStats()).every((value) => value === 0)).toBe(true);
    expect(table.regret()).toEqual({ calls: 0, missedPages: 0, optimumMissedPages: 0 });
  });

  it('keeps the blocks of a call that was preempted', () => {
    const { table, call, cached } = sagaTable(6);
    call([10, 11, 12], { thread: 1 }, { preempted: true });
    call([20, 21, 22], { thread: 2 }, { declaredGapSeconds: 5, tool: 'web-api', stopReason: 'tool-use' });
    call([30, 31, 32], { thread: 3 });
    expect(cached()).toEqual([10, 11, 12, 30, 31, 32]);
    expect(call([10, 11, 12], { thread: 1 })).toBe(12);
    table.threadLeft(1);
    call([40, 41, 42], { thread: 4 });
    expect(cached()).toEqual([30, 31, 32, 40, 41, 42]);
  });

  it('takes what it is told after the end of a call', () => {
    const { table, call, cached } = sagaTable(6);
    call([10, 11, 12], { thread: 1 });
    call([20, 21, 22], { thread: 2 });
    expect(table.told(2, { sessionEnd: true })).toBe(true);
    expect(table.told(3, { sessionEnd: true })).toBe(false);
    call([30, 31, 32], { thread: 3 });
    expect(cached()).toEqual([10, 11, 12, 30, 31, 32]);
    const { sequence } = table.open(hashesOf(10), 5, 'gpu', { thread: 1 });
    expect(table.told(1, { sessionEnd: true })).toBe(false); // it is calling
    table.free(sequence, { declaredGapSeconds: 1e300 });
    expect(table.told(1, { stopReason: 'tool-use', declaredGapSeconds: 5 })).toBe(true);
    expect(sagaTable(6, { eviction: 'lru' }).table.told(1, { sessionEnd: true })).toBe(false);
  });

  it('copies to host memory what is worth it', () => {
    const { table, call } = sagaTable(4, {
      demotion: { recomputeMicroseconds: 100, recomputeDoubleTokens: 4, transferMicroseconds: 0.001 },
    });
    call([10, 11, 12, 13], { thread: 1 });
    call([20, 21], { thread: 2 }, { sessionEnd: true });
    expect([...table.drainDemotions()]).toEqual([0, 3, 1, 0, 0, 2, 1, 1]);
    expect([...table.drainDemotions()]).toEqual([]);
    expect(table.match(hashesOf(10, 11, 12, 13), 17, 'host').tokens).toBe(16);
    call([30, 31], { thread: 3 });
    expect(table.evictionStats()).toMatchObject({ demotedTotal: 2, demotionDroppedTotal: 2 });
  });

  it('measures how far it is from the optimum', () => {
    const { table, call } = sagaTable(4);
    for (let round = 0; round < 4; round++) {
      call([10, 11], { thread: 1 });
      call([20 + 2 * round, 21 + 2 * round], { thread: 100 + round }, { sessionEnd: true });
    }
    // Of eight calls the last six count: thread 1 hits, and the others never could.
    expect(table.regret()).toEqual({ calls: 6, missedPages: 6, optimumMissedPages: 6 });
  });

  it('refuses what is out of range', () => {
    const { table } = sagaTable(4);
    const { sequence } = table.open(hashesOf(), 4);
    const digest = table.digest();
    for (const wrong of [
      () => table.open(hashesOf(), 4, 'gpu', { thread: -1 }),
      () => table.open(hashesOf(), 4, 'gpu', { promptKind: 'other' as 'tool' }),
      () => table.free(sequence, { declaredGapSeconds: Number.NaN }),
      () => table.free(sequence, { tool: 'hammer' as 'none' }),
      () => table.free(sequence, { outputTokens: 1.5 }),
      () => table.threadLeft(0.5),
      () => table.told(-1, {}),
      () => table.told(1, { tool: 'hammer' as 'none' }),
      () => table.told(1, null as never),
      () => sagaTable(4, { eviction: 'random' as 'lru' }),
      () => sagaTable(4, { ghosts: -2 }),
      () => sagaTable(4, { demotion: { recomputeMicroseconds: 0, transferMicroseconds: 1 } }),
    ]) {
      expect(wrong).toThrow(SagaArgumentError);
    }
    expect(table.digest()).toBe(digest);
  });
});
