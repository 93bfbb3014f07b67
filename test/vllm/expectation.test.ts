/** Predictions whose blocks go while the call waits: no drift, and counted by themselves. */
import { afterEach, describe, expect, it } from 'vitest';
import { EmulatedWorker } from '../../src/emulated-worker/index.js';
import { Scheduler } from '../../src/index.js';
import { Drift } from '../../src/vllm/drift.js';
import { Expectations } from '../../src/vllm/expectation.js';
import { WorkerSet } from '../../src/vllm/index.js';
import { complete, only, randomOf, serverOf, shortTimes, until } from './helpers.js';

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

const chainOf = (count: number, first = 1): BigUint64Array =>
  BigUint64Array.from({ length: count }, (_, i) => BigInt(first + i));

describe('expectations', () => {
  /** A worker that holds what the test says. */
  function worker() {
    const held = new Set<bigint>();
    let asked = 0;
    const expectations = new Expectations((block) => {
      ++asked;
      return held.has(block);
    });
    return { held, expectations, asked: () => asked };
  }

  it('shrink to the leading blocks that were there all the time', () => {
    const { held, expectations, asked } = worker();
    const chain = chainOf(1000);
    for (const block of chain) held.add(block);
    const one = expectations.add(chain, 900);
    expectations.removed();
    expect([one.held, one.evicted, asked()]).toEqual([900, 0, 1]);
    for (let block = 501; block <= 1000; ++block) held.delete(BigInt(block));
    expectations.removed();
    expect([one.held, one.evicted]).toEqual([500, 400]);
    expect(asked()).toBeLessThan(20);
    // Stored again by the call itself: they were not there when it began.
    for (const block of chain) held.add(block);
    expectations.removed();
    expect(one.evicted).toBe(400);
    held.clear();
    expectations.removed();
    expect([one.held, one.evicted]).toEqual([0, 900]);
  });

  it('end two batches after the first token, with their call, or with what is known', () => {
    const { held, expectations } = worker();
    const chain = chainOf(4);
    const made = [1, 2, 3].map(() => expectations.add(chain, 4));
    for (const block of chain) held.add(block);
    made[0]?.started();
    made[0]?.started();
    made[1]?.end();
    expectations.removed();
    expect(expectations.size).toBe(2);
    held.delete(4n);
    expectations.removed();
    expect(expectations.size).toBe(1);
    held.clear();
    expectations.removed();
    expect(made.map(({ evicted }) => evicted)).toEqual([1, 0, 4]);
    expectations.reset();
    expect(made.map(({ isVoid }) => isVoid)).toEqual([false, false, true]);
    expect(expectations.size).toBe(0);
  });

  it('are at most 1,024; what comes beyond them says nothing', () => {
    const { expectations } = worker();
    const made = Array.from({ length: 1025 }, () => expectations.add(chainOf(1), 1));
    expect(made.filter(({ isVoid }) => isVoid).length).toBe(1);
    expect([expectations.size, made[1024]?.isVoid]).toEqual([1024, true]);
    made[0]?.end();
    expect(expectations.add(chainOf(1), 1).isVoid).toBe(false);
  });

  it('agree with a model that looks at every block, while chains go from their ends', () => {
    const random = randomOf(7);
    for (let round = 0; round < 50; ++round) {
      const { held, expectations } = worker();
      const chain = chainOf(1 + random(300));
      let last = chain.length;
      for (const block of chain) held.add(block);
      const blocks = 1 + random(chain.length);
      const one = expectations.add(chain, blocks);
      let least = blocks;
      for (let step = 0; step < 20; ++step) {
        if (random(2) === 0) while (last > 0 && random(4) > 0) held.delete(chain[--last] as bigint);
        else while (last < chain.length && random(4) > 0) held.add(chain[last++] as bigint);
        least = Math.min(least, last);
        expectations.removed();
        expect([one.held, one.evicted]).toEqual([least, blocks - least]);
      }
    }
  });
});

it('drift leaves out what was evicted, and counts that', () => {
  const drift = new Drift(16);
  for (let n = 0; n < 40; ++n) drift.observe(1600, 400, 1200);
  expect([drift.drift, drift.warning, drift.evictedTokens]).toEqual([0, false, 48_000]);
  // More was evicted than is missing: somebody stored it again before the call began.
  drift.observe(1600, 1600, 1600);
  expect([drift.drift, drift.surprise, drift.evictedTokens]).toEqual([0, 0, 48_000]);
  // Half of what is missing was evicted, the other half was never there.
  drift.observe(1600, 0, 800);
  expect(drift.drift).toBeCloseTo(0.05 * 0.5, 12);
  expect(drift.evictedTokens).toBe(48_800);
  expect(drift.observe(1600, 0, Number.NaN)).toBe(false);
});

it('an engine that evicts while calls wait is trusted as before, with all of its evictions counted', async () => {
  const emulated = await EmulatedWorker.start({ eventsPort: 0, blocks: 21, timeScale: Infinity });
  closing.push(() => emulated.close());
  const scheduler = new Scheduler({ maxWorkers: 2, policy: 'affinity' });
  closing.push(() => scheduler.close());
  const set = new WorkerSet({ scheduler, model: 'emulated', servers: [serverOf(emulated)], probe: false }, shortTimes);
  closing.push(() => set.close());
  await set.start();
  const worker = only(set);
  const prompt = (first: number): number[] => Array.from({ length: 160 }, (_, i) => first + i);
  const chain = scheduler.hash(prompt(1000)).slice();
  const cachedOf = async (): Promise<number> => {
    const response = await fetch(`${emulated.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model: 'emulated', prompt: prompt(1000), max_tokens: 1 }),
    });
    const { usage } = (await response.json()) as { usage: { prompt_tokens_details: { cached_tokens: number } } };
    return usage.prompt_tokens_details.cached_tokens;
  };
  let evicted = 0;
  for (let round = 0; round < 24; ++round) {
    await cachedOf();
    await until('its blocks are known', () => scheduler.match(chain)[0] === 10);
    const expectation = worker.expect(chain, 9);
    // While it waits others need room for 15 of 20 blocks.
    await complete(
      emulated,
      Array.from({ length: 240 }, (_, i) => 10_000 + 1000 * round + i),
      { max_tokens: 1 },
    );
    await until('the events are there', () => (scheduler.match(chain)[0] as number) < 9);
    const left = scheduler.match(chain)[0] as number;
    expect(expectation?.held).toBe(left);
    const reported = await cachedOf();
    expect(reported).toBe(16 * left);
    evicted += 144 - reported;
    worker.observe(144, reported, expectation);
    expectation?.end();
  }
  expect(worker).toMatchObject({ trust: 1, degraded: [] });
  expect(set.metrics().workers[0]).toMatchObject({ drift: 0, observations: 24, evictedWhileWaiting: evicted });
  expect(evicted).toBe(24 * 4 * 16);
  // What is missing without an eviction is drift as ever.
  for (let n = 0; n < 24; ++n) {
    const expectation = worker.expect(chain, 9);
    worker.observe(144, 0, expectation);
    expectation?.end();
  }
  expect(worker.degraded).toEqual(['drift: cached tokens are fewer than predicted: often']);
});
