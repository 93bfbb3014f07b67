/** Batch formation: literals, refusals, and random servers against a model of what a step may hold. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  BatchFormer,
  PageTable,
  SagaArgumentError,
  SagaCapacityError,
  SagaError,
  SagaStateError,
  type Batch,
  type BatchFormerOptions,
  type BatchOrder,
  type PageTableOptions,
} from '../src/index.js';

const hashesOf = (...hashes: number[]): BigUint64Array => BigUint64Array.from(hashes, BigInt);

function smallTable(gpu = 32, host = 0, options: Partial<PageTableOptions> = {}): PageTable {
  return new PageTable({
    blockTokens: 4,
    blocks: { gpu, host },
    maxSequences: 8,
    maxBlocksPerSequence: 16,
    ...options,
  });
}

function smallFormer(table: PageTable, options: Partial<BatchFormerOptions> = {}): BatchFormer {
  return new BatchFormer(table, {
    maxCalls: 16,
    maxSequences: 4,
    tokenBudget: 16,
    order: 'fcfs',
    sessionAffinity: false,
    clock: () => 0,
    ...options,
  });
}

/** "call:first+count" of each call of the batch, "|" between decoding and prefilling ones. */
function textOf(former: BatchFormer, calls: number, decodeCalls: number): string {
  let text = '';
  for (let i = 0; i < calls; i++) {
    if (i > 0) text += i === decodeCalls ? ' | ' : ' ';
    text += `${former.arrays.calls[i]}:${former.arrays.firstTokens[i]}+${former.arrays.tokenCounts[i]}`;
  }
  return text;
}

/** One token for each call whose known tokens are computed. */
function sample(former: BatchFormer, calls: number): void {
  const { calls: ids, firstTokens, tokenCounts, sampled } = former.arrays;
  for (let i = 0; i < calls; i++) {
    const end = (firstTokens[i] as number) + (tokenCounts[i] as number);
    sampled[i] = end === former.call(ids[i] as number).knownTokens ? 1 : 0;
  }
}

function step(former: BatchFormer): string {
  const batch = former.form();
  const text = textOf(former, batch.calls, batch.decodeCalls);
  if (batch.calls === 0) return text;
  sample(former, batch.calls);
  former.complete();
  return text;
}

/** Forms a batch, whose rows and slots are those of the page table. */
function expectOutputsOfTheTable(former: BatchFormer): Batch {
  const { table, arrays } = former;
  const batch = former.form();
  const rows = arrays.rows.subarray(0, batch.calls);
  const width = table.maxBlocksPerSequence;
  const tables = table.exportBlockTables(rows, { width });
  const ranges: number[] = [];
  rows.forEach((row, i) => {
    const blocks = table.sequence(row).blocks;
    expect([...arrays.blockTables.subarray(row * width, row * width + blocks)]).toEqual([
      ...tables.subarray(i * width, i * width + blocks),
    ]);
    ranges.push(row, arrays.firstTokens[i] as number, arrays.tokenCounts[i] as number);
    expect(arrays.sequenceLengths[i]).toBe((ranges.at(-1) as number) + (ranges.at(-2) as number));
  });
  const slots = table.exportSlotMapping(Uint32Array.from(ranges));
  expect([...arrays.slotMapping.subarray(0, batch.tokens)]).toEqual([...slots]);
  let tokens = 0;
  for (let i = 0; i < batch.calls; i++) {
    expect(arrays.queryStarts[i]).toBe(tokens);
    tokens += arrays.tokenCounts[i] as number;
  }
  expect(arrays.queryStarts[batch.calls]).toBe(tokens);
  expect(batch.tokens).toBe(tokens);
  return batch;
}

/** The error that `action` throws; the former must be as before. */
function refusal(former: BatchFormer, action: () => unknown): SagaError {
  const before = former.digest();
  let caught: unknown;
  try {
    action();
  } catch (error) {
    caught = error;
  }
  expect(former.digest()).toBe(before);
  if (!(caught instanceof SagaError)) throw new Error(`expected a SagaError, got ${String(caught)}`);
  return caught;
}

describe('BatchFormer', () => {
  it('computes prompts in chunks behind decoding calls', () => {
    const former = smallFormer(smallTable(), { tokenBudget: 8 });
    expect(former.submit({ promptTokens: 6, maxNewTokens: 8 })).toBe(0);
    expect(former.submit({ promptTokens: 11, maxNewTokens: 8 })).toBe(1);
    expect(former.submit({ promptTokens: 2, maxNewTokens: 8 })).toBe(2);
    expect(step(former)).toBe('0:0+6 1:0+2');
    expect(step(former)).toBe('0:6+1 | 1:2+7');
    expect(step(former)).toBe('0:7+1 | 1:9+2 2:0+2');
    const batch = former.form();
    expect({ ...batch }).toEqual({
      calls: 3,
      decodeCalls: 3,
      tokens: 3,
      admitted: 0,
      updates: 1,
      copies: 0,
      preempted: 0,
    });
    expect([...former.arrays.updates.subarray(0, 3)]).toEqual([0, 2, 1]);
    expect(former.call(1)).toEqual({
      state: 'running',
      knownTokens: 12,
      computedTokens: 11,
      hashes: 0,
      hitTokens: 0,
      preemptions: 0,
    });
    former.arrays.sampled.fill(1);
    former.arrays.finished[1] = 1;
    expect(former.complete()).toBe(1);
    expect(former.arrays.finished[1]).toBe(0);
    expect(() => former.call(1)).toThrow(SagaStateError);
    expect(former.form()).toBe(batch);
  });

  it.each(['lru', 'saga'] as const)('tells the policy %s of its table about threads', (eviction) => {
    /** `told`: what thread 2 says before its end, or after it. */
    const cached = (told: 'before' | 'after' | 'left' | 'nothing'): number[] => {
      let now = 0;
      const clock = (): number => now;
      const table = smallTable(6, 0, { eviction, clock });
      const former = smallFormer(table, { clock });
      for (const thread of [1, 2, 3]) {
        now += 1e6;
        const hashes = hashesOf(10 * thread, 10 * thread + 1, 10 * thread + 2);
        const call = former.submit({ promptTokens: 12, maxNewTokens: 1, hashes, thread, promptKind: 'tool' });
        if (thread === 2 && told === 'before') former.setOutcome(call, { sessionEnd: true });
        step(former);
        if (thread === 2 && told === 'after') expect(table.told(2, { sessionEnd: true })).toBe(eviction === 'saga');
        if (thread === 2 && told === 'left') table.threadLeft(2);
      }
      expect(former.verify()).toBe(true);
      return [...table.cachedHashes('gpu')].map(Number).sort((a, b) => a - b);
    };
    const oldestGoes = [20, 21, 22, 30, 31, 32];
    expect(cached('nothing')).toEqual(oldestGoes);
    for (const told of ['before', 'after', 'left'] as const)
      expect(cached(told), told).toEqual(eviction === 'lru' ? oldestGoes : [10, 11, 12, 30, 31, 32]);
  });

  it('refuses threads and outcomes that are out of range', () => {
    const former = smallFormer(smallTable(8, 0, { eviction: 'saga' }));
    const call = former.submit({ promptTokens: 4, maxNewTokens: 1 });
    const submit = (more: object) => () => former.submit({ promptTokens: 4, maxNewTokens: 1, ...more });
    for (const wrong of [
      submit({ thread: -1 }),
      submit({ thread: 0.5 }),
      submit({ promptKind: 'other' }),
      () => former.setOutcome(call, { stopReason: 'other' as 'unknown' }),
      () => former.setOutcome(call, { declaredGapSeconds: -1 }),
    ])
      expect(refusal(former, wrong)).toBeInstanceOf(SagaArgumentError);
    expect(refusal(former, () => former.setOutcome(7, {})).code).toBe('SAGA_ERR_NOT_FOUND');
    const before = former.digest();
    former.setOutcome(call, { stopReason: 'tool-use', tool: 'web-api', outputTokens: 3, declaredGapSeconds: 2.5 });
    expect(former.digest()).not.toBe(before);
  });

  it('hits the prefix of a call of the same step, and later the answer', () => {
    const table = smallTable();
    const former = smallFormer(table, { tokenBudget: 64 });
    former.submit({ promptTokens: 9, maxNewTokens: 6, hashes: hashesOf(1, 2) });
    former.submit({ promptTokens: 10, maxNewTokens: 6, hashes: hashesOf(1, 2) });
    expect(step(former)).toBe('0:0+9 1:8+2');
    for (let i = 0; i < 3; i++) step(former);
    former.addHashes(0, hashesOf(3));
    expect(former.call(0).hashes).toBe(3);
    former.cancel(0);
    expect(table.match(hashesOf(1, 2, 3), 13).tokens).toBe(12);
    expect(former.stats()).toMatchObject({
      hitTokensTotal: 8,
      promptTokensTotal: 19,
      cancelledTotal: 1,
      stepsTotal: 4,
    });
  });

  it('lets a call wait for a prefix that is being computed, with session affinity', () => {
    const former = smallFormer(smallTable(), { sessionAffinity: true, hitAfterCompletion: true, tokenBudget: 64 });
    former.submit({ promptTokens: 13, maxNewTokens: 9, hashes: hashesOf(1, 2, 3) });
    former.submit({ promptTokens: 14, maxNewTokens: 9, hashes: hashesOf(1, 2, 9) });
    former.submit({ promptTokens: 5, maxNewTokens: 9 });
    expect(step(former)).toBe('0:0+13 2:0+5');
    expect(step(former)).toBe('0:13+1 2:5+1 | 1:8+6');
    expect(former.stats().heldTotal).toBe(1);
  });

  it('swaps to the host tier and back', () => {
    const table = smallTable(5, 8);
    const former = smallFormer(table, { preemption: 'swap', maxCopies: 8, tokenBudget: 32 });
    former.submit({ promptTokens: 8, maxNewTokens: 8 });
    former.submit({ promptTokens: 7, maxNewTokens: 8 });
    step(former);
    step(former);
    const batch = former.form();
    expect([batch.calls, batch.preempted, batch.copies, former.arrays.preempted[0]]).toEqual([1, 1, 2, 1]);
    expect([...former.arrays.copies.subarray(0, 8)]).toEqual([0, 2, 1, 0, 0, 3, 1, 1]);
    expect(former.call(1)).toMatchObject({ state: 'swapped', computedTokens: 8, preemptions: 1 });
    former.arrays.sampled[0] = 1;
    former.arrays.finished[0] = 1;
    former.complete();
    expect(step(former)).toBe('1:8+1');
    expect([...former.arrays.copies.subarray(0, 4)]).toEqual([1, 0, 0, 3]); // given back last, taken first
    expect(former.verify()).toBe(true);
  });

  it.each<[BatchOrder, string]>([
    ['fcfs', 'abcd'],
    ['priority', 'dbac'],
    ['bfs', 'abcd'],
    ['dfs', 'dcba'],
    ['hybrid', 'acbd'],
    ['saga', 'abcd'],
  ])('orders waiting calls: %s', (order, expected) => {
    const former = smallFormer(smallTable(64), { order, maxSequences: 1, tokenBudget: 64, starvationLimit: Infinity });
    former.submit({ promptTokens: 9, maxNewTokens: 1, hashes: hashesOf(1, 2) });
    step(former);
    const name: Record<number, string> = {};
    const submit = (
      letter: string,
      promptTokens: number,
      priority: number,
      urgency: number,
      hashes: number[],
    ): void => {
      name[former.submit({ promptTokens, maxNewTokens: 1, priority, urgency, hashes: hashesOf(...hashes) })] = letter;
    };
    submit('a', 12, 2, 4, [5, 6, 7]);
    submit('b', 13, 1, 1, [1, 2, 3]);
    submit('c', 20, 2, 4, []);
    submit('d', 8, 0, 1, []);
    let text = '';
    for (let i = 0; i < 4; i++) {
      former.form();
      text += name[former.arrays.calls[0] as number];
      sample(former, 1);
      former.complete();
    }
    expect(text).toBe(expected);
  });

  it('takes what has waited too long first, and follows urgencies and priorities that change', () => {
    const former = smallFormer(smallTable(), { order: 'dfs', maxSequences: 1, starvationLimit: 100 });
    for (let i = 0; i < 3; i++) former.submit({ promptTokens: 4, maxNewTokens: 1 }, { now: 10 * i });
    former.form({ now: 100 });
    expect(former.arrays.calls[0]).toBe(0);
    former.arrays.sampled[0] = 1;
    former.complete();
    former.form({ now: 101 });
    expect(former.arrays.calls[0]).toBe(2);

    const hybrid = smallFormer(smallTable(), { order: 'hybrid', maxSequences: 1 });
    for (let i = 0; i < 3; i++) hybrid.submit({ promptTokens: 4, maxNewTokens: 1, workflow: i });
    expect(hybrid.setUrgency(2, 7)).toBe(1);
    expect(hybrid.setUrgency(3, 7)).toBe(0);
    expect(step(hybrid)).toBe('2:0+4');
    expect(hybrid.cancelWorkflow(0)).toBe(1);
    expect(step(hybrid)).toBe('1:0+4');

    const priority = smallFormer(smallTable(), { order: 'priority', maxSequences: 1 });
    for (let i = 0; i < 3; i++) priority.submit({ promptTokens: 4, maxNewTokens: 1 });
    priority.setPriority(1, -1);
    expect(step(priority)).toBe('1:0+4');
  });

  it('writes to arrays of the caller', () => {
    const slotMapping = new BigInt64Array(20);
    const table = smallTable();
    const former = smallFormer(table, { arrays: { slotMapping } });
    expect(former.arrays.slotMapping).toBe(slotMapping);
    former.submit({ promptTokens: 3, maxNewTokens: 1 });
    former.form();
    expect([...slotMapping.subarray(0, 4)]).toEqual([0n, 1n, 2n, 0n]);
    expect(() => smallFormer(smallTable(), { arrays: { calls: new Uint32Array(3) } })).toThrow(/arrays\.calls/);
    expect(() => smallFormer(smallTable(), { arrays: { calls: new Int32Array(8) as never } })).toThrow(
      SagaArgumentError,
    );
  });

  it('owns the sequences of its table, and gives them back', () => {
    const table = smallTable();
    const former = smallFormer(table);
    expect(() => new BatchFormer(table)).toThrow(expect.objectContaining({ code: 'SAGA_ERR_WRONG_STATE' }));
    former.submit({ promptTokens: 4, maxNewTokens: 4 });
    step(former);
    for (const forbidden of [
      () => table.open(hashesOf(), 4),
      () => table.allocateSlots(0, 1),
      () => table.cacheFullBlocks(0, hashesOf()),
      () => table.fork(0),
      () => table.truncate(0, 0),
      () => table.free(0),
      () => table.planSwapOut(0, 'host'),
      () => table.planSwapIn(0),
    ]) {
      expect(refusal(former, forbidden).code).toBe('SAGA_ERR_WRONG_STATE');
    }
    expect(table.stats().openSequences).toBe(1);
    former.close();
    former.close();
    expect(table.stats().openSequences).toBe(0);
    expect(table.open(hashesOf(), 4).sequence).toBe(0);
    expect(() => former.form()).toThrow(expect.objectContaining({ code: 'SAGA_ERR_CLOSED' }));
  });

  it('goes on when the table is closed first', () => {
    const table = smallTable();
    const former = smallFormer(table);
    former.submit({ promptTokens: 4, maxNewTokens: 4 });
    table.close();
    expect(step(former)).toBe('0:0+4');
    expect(former.verify()).toBe(true);
    former.close();
  });

  it.each<[string, Partial<BatchFormerOptions>]>([
    ['maxCalls', { maxCalls: 0 }],
    ['maxCalls', { maxCalls: 2 ** 20 + 1 }],
    ['maxSequences', { maxSequences: 9 }],
    ['tokenBudget', { tokenBudget: 0 }],
    ['maxPrefillChunk', { maxPrefillChunk: 17 }],
    ['maxCopies', { maxCopies: -1 }],
    ['order', { order: 'lifo' as never }],
    ['preemption', { preemption: 'kill' as never }],
    ['host tier', { preemption: 'swap', maxCopies: 4 }],
    ['slowestHit', { slowestHit: 'tape' as never }],
    ['needs maxCopies', { slowestHit: 'host' }],
    ['sessionAffinity', { sessionAffinity: 1 as never }],
    ['hitAfterCompletion', { hitAfterCompletion: 'no' as never }],
    ['starvationLimit', { starvationLimit: -1 }],
    ['clock', { clock: 5 as never }],
  ])('refuses a wrong %s', (word, options) => {
    const table = smallTable();
    expect(() => smallFormer(table, options)).toThrow(SagaArgumentError);
    expect(() => smallFormer(table, options)).toThrow(word);
    smallFormer(table).close();
  });

  it('refuses what is not a table, and wrong calls, without changing anything', () => {
    expect(() => new BatchFormer({} as never)).toThrow('table must be a PageTable');
    const former = smallFormer(smallTable(6), { maxCalls: 2 });
    const good = { promptTokens: 8, maxNewTokens: 4 };
    for (const wrong of [
      () => former.submit(null as never),
      () => former.submit({ ...good, promptTokens: 0 }),
      () => former.submit({ ...good, maxNewTokens: 0 }),
      () => former.submit({ ...good, maxNewTokens: 18 }),
      () => former.submit({ ...good, hashes: hashesOf(1, 2, 3) }),
      () => former.submit({ ...good, hashes: [1n] as never }),
      () => former.submit({ ...good, priority: 2 ** 31 }),
      () => former.submit({ ...good, workflow: -1 }),
      () => former.submit({ ...good, urgency: -1 }),
      () => former.submit({ ...good, urgency: NaN }),
      () => former.submit(good, { now: 0.5 }),
      () => former.submit(good, 5 as never),
      () => former.setUrgency(0, -1),
      () => former.addHashes(-1, hashesOf()),
      () => former.addHashes(0, [] as never),
    ]) {
      expect(refusal(former, wrong)).toBeInstanceOf(SagaArgumentError);
    }
    for (const missing of [
      () => former.cancel(0),
      () => former.call(0),
      () => former.setPriority(0, 1),
      () => former.addHashes(0, hashesOf()),
    ]) {
      expect(refusal(former, missing).code).toBe('SAGA_ERR_NOT_FOUND');
    }
    former.submit(good, { now: 5 });
    former.submit(good, { now: 5 });
    expect(refusal(former, () => former.submit(good, { now: 5 }))).toBeInstanceOf(SagaCapacityError);
    expect(refusal(former, () => former.submit(good, { now: 4 })).code).toBe('SAGA_ERR_TIME_REVERSED');
    expect(refusal(former, () => former.form({ now: 4 })).code).toBe('SAGA_ERR_TIME_REVERSED');
    expect(refusal(former, () => former.complete()).code).toBe('SAGA_ERR_WRONG_STATE');
    expect(refusal(former, () => former.addHashes(0, hashesOf(1, 2, 3, 4))).code).toBe('SAGA_ERR_INVALID_ARGUMENT');
    former.form({ now: 5 });
    expect(refusal(former, () => former.form({ now: 5 })).code).toBe('SAGA_ERR_WRONG_STATE');
    former.arrays.sampled.fill(0);
    expect(refusal(former, () => former.complete())).toBeInstanceOf(SagaArgumentError);
    former.arrays.sampled.fill(5);
    expect(refusal(former, () => former.complete())).toBeInstanceOf(SagaArgumentError);
    former.arrays.sampled.fill(1);
    expect(former.complete()).toBe(0);
    const saga = smallFormer(smallTable(), { order: 'saga' });
    expect(refusal(saga, () => saga.submit({ ...good, urgency: 0 }))).toBeInstanceOf(SagaArgumentError);
  });
});

/** What is known of a call from outside. */
interface Known {
  prompt: number;
  limit: number;
  known: number;
  computed: number;
}

describe('random servers', () => {
  const submission = fc.record({
    kind: fc.constant('submit' as const),
    prompt: fc.integer({ min: 1, max: 18 }),
    output: fc.integer({ min: 1, max: 26 }),
    family: fc.integer({ min: 0, max: 2 }),
    shared: fc.integer({ min: 0, max: 7 }),
    urgency: fc.integer({ min: 1, max: 3 }),
  });
  const cancellation = fc.record({ kind: fc.constant('cancel' as const), call: fc.nat(15), inFlight: fc.boolean() });
  const steps = fc.record({ kind: fc.constant('step' as const), ends: fc.nat(255) });
  const options = fc.record({
    order: fc.constantFrom<BatchOrder>('fcfs', 'priority', 'bfs', 'dfs', 'hybrid', 'saga'),
    preemption: fc.constantFrom('recompute' as const, 'swap' as const),
    tokenBudget: fc.integer({ min: 1, max: 24 }),
    maxPrefillChunk: fc.constantFrom(0, 1),
    maxSequences: fc.integer({ min: 1, max: 6 }),
    sessionAffinity: fc.boolean(),
    hitAfterCompletion: fc.boolean(),
    slowestHit: fc.constantFrom('gpu' as const, 'host' as const),
  });

  it('compute every token of every call once and in order, within all bounds, and finish', () => {
    let preemptions = 0;
    fc.assert(
      fc.property(
        options,
        fc.array(fc.oneof({ weight: 4, arbitrary: steps }, { weight: 3, arbitrary: submission }, cancellation), {
          maxLength: 60,
        }),
        (chosen, actions) => {
          const table = smallTable(11, 10);
          const former = smallFormer(table, { ...chosen, maxCopies: 12 });
          const calls = new Map<number, Known>();
          let cancelled = 0;
          const oneStep = (ends: number): void => {
            const waiting = former.stats().waitingCalls;
            const running = new Map<number, Known>(calls);
            const batch = former.form();
            const { arrays } = former;
            preemptions += batch.preempted;
            expect(batch.tokens).toBeLessThanOrEqual(chosen.tokenBudget);
            expect(batch.calls).toBeLessThanOrEqual(chosen.maxSequences);
            expect(batch.admitted).toBeLessThanOrEqual(waiting + batch.preempted);
            for (let i = 0; i < batch.preempted; i++) expect(running.has(arrays.preempted[i] as number)).toBe(true);
            // Whoever was preempted or admitted begins where its cached or swapped blocks end.
            const preempted = new Set(arrays.preempted.subarray(0, batch.preempted));
            for (const id of preempted) (calls.get(id) as Known).computed = -1;
            for (let i = 0; i < batch.calls; i++) {
              const call = calls.get(arrays.calls[i] as number) as Known;
              const first = arrays.firstTokens[i] as number;
              const count = arrays.tokenCounts[i] as number;
              if (i >= batch.calls - batch.admitted) call.computed = first;
              expect(first).toBe(call.computed);
              expect(count).toBeGreaterThan(0);
              expect(first + count).toBeLessThanOrEqual(call.known);
              if (i < batch.decodeCalls) expect([count, first + 1]).toEqual([1, call.known]);
              call.computed += count;
              const whole = call.computed === call.known;
              arrays.sampled[i] = whole ? 1 : 0;
              arrays.finished[i] = (ends >> (i % 8)) & 1 && ends % 3 === 0 ? 1 : 0;
              call.known += arrays.sampled[i] as number;
            }
            if (batch.calls === 0) return;
            const ended: number[] = [];
            for (let i = 0; i < batch.calls; i++) {
              const id = arrays.calls[i] as number;
              const call = calls.get(id) as Known;
              if (arrays.finished[i] !== 0 || call.known === call.limit) ended.push(id);
            }
            expect(former.complete()).toBe(ended.length);
            for (const id of ended) calls.delete(id);
          };
          for (const action of actions) {
            if (action.kind === 'submit') {
              if (calls.size === 16) continue;
              const blocks = Math.floor(action.prompt / 4);
              const hashes = Array.from({ length: blocks }, (_, i) =>
                i < action.shared ? 100 * action.family + i : 1000 * (calls.size + 1) + i + 100_000 * action.prompt,
              );
              const id = former.submit({
                promptTokens: action.prompt,
                maxNewTokens: action.output,
                hashes: hashesOf(...hashes),
                urgency: action.urgency,
                priority: action.family,
              });
              expect(calls.has(id)).toBe(false);
              calls.set(id, {
                prompt: action.prompt,
                limit: action.prompt + action.output,
                known: action.prompt,
                computed: -1,
              });
            } else if (action.kind === 'cancel') {
              if (!calls.delete(action.call)) continue;
              former.cancel(action.call);
              ++cancelled;
            } else {
              oneStep(action.ends);
            }
            expect(former.verify()).toBe(true);
          }
          // Everybody who is here comes to an end: no order starves anybody once nobody new comes.
          for (let i = 0; calls.size > 0; i++) {
            expect(i).toBeLessThan(2000);
            oneStep(1);
          }
          const stats = former.stats();
          expect([stats.runningCalls, stats.waitingCalls, stats.cancelledTotal]).toEqual([0, 0, cancelled]);
          expect(stats.finishedTotal + cancelled).toBe(stats.submittedTotal);
          expect(table.stats().openSequences).toBe(0);
          expect(table.stats().tiers.gpu.freeBlocks).toBe(11);
          expectOutputsOfTheTable(former);
          former.close();
          table.close();
        },
      ),
      { numRuns: 150 },
    );
    expect(preemptions).toBeGreaterThan(0);
  });

  it('write the rows and slots that the page table has', () => {
    fc.assert(
      fc.property(options, fc.array(submission, { minLength: 1, maxLength: 12 }), (chosen, submissions) => {
        const former = smallFormer(smallTable(11, 10), { ...chosen, maxCopies: 12 });
        for (const { prompt, output, shared, family } of submissions) {
          const hashes = Array.from({ length: Math.floor(prompt / 4) }, (_, i) => (i < shared ? 100 * family + i : 0));
          former.submit({
            promptTokens: prompt,
            maxNewTokens: output,
            hashes: hashesOf(...hashes.filter((hash, i) => hash !== 0 || (i === 0 && shared > 0))),
          });
        }
        for (let i = 0; i < 40; i++) {
          const batch = expectOutputsOfTheTable(former);
          if (batch.calls === 0) break;
          sample(former, batch.calls);
          former.complete();
        }
      }),
      { numRuns: 60 },
    );
  });
});
