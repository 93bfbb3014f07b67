/** The engine under random requests: its events, counted, are what its cache holds. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { EngineCall, EngineRequest } from '../../src/emulated-worker/engine.js';
import { Bench, range } from './helpers.js';

/** Copies of each hash by the events so far. */
function counts(bench: Bench): Map<string, number> {
  const copies = new Map<string, number>();
  for (const event of bench.batches.flat()) {
    if (event.type === 'AllBlocksCleared') copies.clear();
    else if (event.type === 'BlockRemoved') {
      const left = (copies.get(String(event.hash)) ?? 0) - 1;
      expect(left).toBeGreaterThanOrEqual(0);
      if (left === 0) copies.delete(String(event.hash));
      else copies.set(String(event.hash), left);
    } else {
      expect(event.tokens.length).toBe(event.hashes.length * bench.engine.options.blockTokens);
      for (const hash of event.hashes) copies.set(String(hash), (copies.get(String(hash)) ?? 0) + 1);
    }
  }
  return copies;
}

function held(bench: Bench): Map<string, number> {
  const copies = new Map<string, number>();
  for (const hash of bench.engine.cachedHashes()) copies.set(String(hash), (copies.get(String(hash)) ?? 0) + 1);
  return copies;
}

const action = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('submit' as const),
      // Prompts of few families, so that they share prefixes.
      family: fc.integer({ min: 0, max: 2 }),
      length: fc.integer({ min: 1, max: 40 }),
      answer: fc.integer({ min: 1, max: 12 }),
      salt: fc.option(fc.constantFrom('a', 'b'), { nil: undefined }),
      priority: fc.integer({ min: -2, max: 2 }),
    }),
  },
  { weight: 12, arbitrary: fc.record({ do: fc.constant('step' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('abort' as const), which: fc.nat(), inStep: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('reset' as const) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constantFrom('retain' as const, 'evict' as const, 'first' as const),
      family: fc.integer({ min: 0, max: 2 }),
      length: fc.integer({ min: 4, max: 40 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('release' as const), which: fc.nat() }) },
);

describe('random requests', () => {
  const run = (eviction: 'lru' | 'saga', priorityScheduling: boolean): void => {
    fc.assert(
      fc.property(fc.array(action, { maxLength: 120 }), fc.integer({ min: 8, max: 64 }), (actions, tokenBudget) => {
        const bench = new Bench({
          blocks: 21,
          maxModelTokens: 60,
          tokenBudget,
          maxSequences: 4,
          eviction,
          priorityScheduling,
        });
        const { engine } = bench;
        const calls: EngineCall[] = [];
        let tokens = 0;
        for (const one of actions) {
          bench.now += 10;
          switch (one.do) {
            case 'submit':
              calls.push(
                bench.submit(range(100 * one.family, one.length), {
                  answer: range(7, one.answer),
                  cacheSalt: one.salt,
                  priority: priorityScheduling ? one.priority : 0,
                  ...(eviction === 'saga' ? { thread: one.family, promptKind: 'tool' } : {}),
                  onToken: () => tokens++,
                }),
              );
              break;
            case 'step':
              bench.step();
              break;
            case 'abort': {
              const call = calls[one.which % Math.max(1, calls.length)];
              if (call === undefined) break;
              if (one.inStep && engine.beginStep(bench.now) !== undefined) {
                engine.abort(call);
                engine.endStep();
              } else engine.abort(call);
              expect(call.state).toBe('ended');
              break;
            }
            case 'reset':
              engine.resetPrefixCache();
              break;
            case 'release': {
              const lease = [...engine.leases.values()][one.which % Math.max(1, engine.leases.size)];
              if (lease !== undefined) engine.release(lease);
              engine.told(one.which % 3, { sessionEnd: one.which % 2 === 0, declaredGapSeconds: one.which % 7 });
              break;
            }
            default: {
              const chain = engine.hashesOf(range(100 * one.family, one.length), {});
              const { hashes } = engine.resident(chain);
              if (hashes.length === 0) break;
              if (one.do === 'retain')
                engine.retain(hashes, 10, {
                  value: 0.5,
                  now: bench.now,
                  until: bench.now + 300,
                  onEnd: () => undefined,
                });
              else engine.evict(hashes, one.do === 'evict' ? 'now' : 'first');
            }
          }
          if (!engine.inStep) expect(engine.verify()).toBe(true);
        }
        for (let steps = 0; engine.openCalls > 0; steps++) {
          expect(steps).toBeLessThan(10_000);
          bench.step();
        }
        bench.step();
        expect(engine.verify()).toBe(true);
        expect(counts(bench)).toEqual(held(bench));
        for (const lease of [...engine.leases.values()]) engine.release(lease);
        expect(engine.freeBlocks).toBe(20);
        expect(engine.runningCalls + engine.waitingCalls).toBe(0);
        const whole = calls.filter((call) => !call.aborted);
        for (const call of whole) expect(call.promptTokens + call.generated).toBe(call.tokens.length);
        expect(tokens).toBeGreaterThanOrEqual(whole.reduce((sum, call) => sum + call.generated, 0));
        const { counters } = engine;
        expect(counters.finished.stop + counters.finished.abort).toBe(calls.length);
        engine.close();
      }),
      { numRuns: 150, seed: 20261121 },
    );
  };
  it('first come, first served', () => run('lru', false));
  it('by priority', () => run('lru', true));
  it("with SAGA's eviction", () => run('saga', false));
});

describe('a step', () => {
  it('takes the modelled time', () => {
    const bench = new Bench({
      blocks: 100,
      maxModelTokens: 200,
      tokenBudget: 50,
      stepSeconds: { base: 1, perCall: 0.1, perContextToken: 0.001, perPrefillToken: 0.01, perPrefillPair: 0.0001 },
    });
    const { engine } = bench;
    bench.submit(range(1, 60), { answer: range(7, 3) });
    const times: number[] = [];
    for (;;) {
      const seconds = engine.beginStep((bench.now += 10));
      if (seconds === undefined) break;
      times.push(seconds);
      engine.endStep();
    }
    // 50 tokens of the prompt, 10 behind them, then the first and the second token decode.
    expect(times.map((seconds) => seconds.toFixed(6))).toEqual([
      (1 + 0.5 + 0.0001 * 50 * 25).toFixed(6),
      (1 + 0.1 + 0.0001 * 10 * 55).toFixed(6),
      (1 + 0.1 + 0.061).toFixed(6),
      (1 + 0.1 + 0.062).toFixed(6),
    ]);
    expect(engine.counters.steps).toBe(4);
    expect(engine.counters.busySeconds).toBeCloseTo(times.reduce((sum, seconds) => sum + seconds));
  });
});

describe('leases', () => {
  it('end at their deadline, or when memory is short, least valuable first', () => {
    const bench = new Bench({ blocks: 11, maxModelTokens: 40 });
    const { engine } = bench;
    const ended: string[] = [];
    const lease = (first: number, value: number, until: number): void => {
      bench.run(range(first, 9), { answer: range(7, 1) });
      const { hashes } = engine.resident(engine.hashesOf(range(first, 8), {}));
      expect(hashes.length).toBe(2);
      const onEnd = (why: string): void => void ended.push(`${first} ${why}`);
      expect(engine.retain(hashes, 6, { value, now: bench.now, until, onEnd })).not.toBe('budget');
    };
    lease(100, 0.9, 1e6);
    lease(200, 0.1, 1e6);
    lease(300, 1, bench.now + 50);
    expect(engine.leasedBlocks).toBe(6);
    // No room in the budget.
    bench.run(range(400, 5), { answer: range(7, 1) });
    const { hashes } = engine.resident(engine.hashesOf(range(400, 4), {}));
    const refused = engine.retain(hashes, 6, { value: 1, now: 0, until: 1e6, onEnd: () => undefined });
    expect(refused).toBe('budget');
    bench.now += 100;
    bench.step();
    expect(ended).toEqual(['300 expired']);
    // 10 blocks, 4 leased: a prompt of 7 blocks fits when one lease goes.
    const call = bench.run(range(500, 27), { answer: range(7, 1) });
    expect(ended).toEqual(['300 expired', '200 memory']);
    expect(call.state).toBe('ended');
    expect(engine.leasedBlocks).toBe(2);
    expect(bench.run(range(100, 9), { answer: range(7, 1) }).cachedTokens).toBe(8);
    expect(engine.resetPrefixCache()).toBe(true);
    expect(ended.at(-1)).toBe('100 reset');
    expect(engine.verify()).toBe(true);
  });
});

describe('eviction by the policy saga', () => {
  /** Prompts of three blocks, one a thread, in a cache of six; returns the threads whose blocks are still there. */
  const kept = (
    eviction: 'lru' | 'saga',
    during: (bench: Bench, thread: number) => void,
    about: (thread: number) => Partial<EngineRequest> = () => ({}),
  ): number[] => {
    const bench = new Bench({ blocks: 7, eviction, maxModelTokens: 24 });
    for (const thread of [1, 2, 3]) {
      bench.now += 1000;
      bench.run(range(100 * thread, 12), { answer: Uint32Array.of(7), thread, promptKind: 'tool', ...about(thread) });
      during(bench, thread);
    }
    expect(bench.engine.verify()).toBe(true);
    return [1, 2, 3].filter((thread) => {
      const chain = bench.engine.hashesOf(range(100 * thread, 12), {});
      return bench.engine.resident(chain).missing === 0;
    });
  };
  const nothing = (): void => undefined;

  it('takes the blocks of a thread that is gone first', () => {
    const gone = (bench: Bench, thread: number): void => {
      if (thread === 2) bench.engine.told(2, { stopReason: 'end-turn', sessionEnd: true });
    };
    expect(kept('saga', gone)).toEqual([1, 3]);
    expect(kept('lru', gone)).toEqual([2, 3]);
    expect(kept('saga', nothing)).toEqual([2, 3]);
  });

  it('keeps a thread whose tool takes a moment before one whose tool takes an hour', () => {
    const about = (thread: number): Partial<EngineRequest> => ({
      outcome: { declaredGapSeconds: thread === 1 ? 5 : 3600 },
    });
    expect(kept('saga', nothing, about)).toEqual([1, 3]);
    expect(kept('lru', nothing, about)).toEqual([2, 3]);
    // What is told afterwards replaces it.
    const corrected = (bench: Bench, thread: number): void => {
      const told = { stopReason: 'tool-use', declaredGapSeconds: thread === 1 ? 3600 : 5 } as const;
      expect(bench.engine.told(thread, told)).toBe(true);
    };
    expect(kept('saga', corrected, about)).toEqual([2, 3]);
  });

  it('knows calls that run, those that ended, and no others', () => {
    const bench = new Bench({ eviction: 'saga' });
    const call = bench.submit(range(1, 6), { answer: range(7, 3), thread: 5 });
    expect(bench.engine.told(5, { sessionEnd: true })).toBe(true);
    expect(bench.engine.told(6, { sessionEnd: true })).toBe(false);
    while (call.state !== 'ended') bench.step();
    expect(bench.engine.told(5, { stopReason: 'tool-use' })).toBe(true);
    const lru = new Bench();
    lru.submit(range(1, 6), { thread: 5 });
    expect(lru.engine.told(5, {})).toBe(false);
  });
});
