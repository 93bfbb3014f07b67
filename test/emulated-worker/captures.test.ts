/** The emulated engine against frames that real vLLM published for the same requests. */
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { encodeBatch } from '../../src/emulated-worker/event-publisher.js';
import { Bench, range, short } from './helpers.js';

const folder = process.env.SAGA_VLLM_CAPTURES ?? new URL('../../../shared/vllm/', import.meta.url).pathname;

interface Frame {
  label: string;
  sequence: number;
  payload: string;
}

/** The batches of a capture; undefined where the file is not there. */
function capture(name: string): Frame[] | undefined {
  const path = `${folder}/${name}`;
  if (!existsSync(path)) return undefined;
  const lines = readFileSync(path, 'utf8').split('\n');
  return lines.flatMap((line, at) => {
    const found = /^(.*) b'[^']*' (\d+) \[/.exec(line);
    const hex = /^ {3}hex ([0-9a-f]+)$/.exec(lines[at + 1] ?? '');
    return found && hex ? [{ label: found[1]!, sequence: Number(found[2]), payload: hex[1]! }] : [];
  });
}

/** A payload without its time: the nine bytes behind the array's head. */
function timeless(hex: string): string {
  return hex.slice(0, 2) + hex.slice(20);
}

/** Requests of the capture of the scheduler: see the table in the captures' README. */
function schedulerScenario(wholeHashes: boolean): { bench: Bench; cached: number[] } {
  const bench = new Bench({ wholeHashes });
  const { engine } = bench;
  const prompt = range(10, 12);
  const cached: number[] = [];
  cached.push(bench.run(prompt).cachedTokens, bench.run(prompt).cachedTokens);
  const pinned = engine.resident(engine.hashesOf(prompt.subarray(0, 8), {})).hashes;
  expect(pinned.length).toBe(2);
  const lease = engine.retain(pinned, 8, { value: 1, now: 0, until: 1e9, onEnd: () => undefined });
  if (lease === 'budget') throw new Error('no lease');
  for (const first of [100, 120, 140]) bench.run(range(first, 20));
  cached.push(bench.run(prompt).cachedTokens);
  engine.release(lease);
  expect(engine.evict(pinned, 'now')).toBe(2);
  expect(bench.step()).toBe(false);
  cached.push(bench.run(prompt).cachedTokens);
  expect(engine.resetPrefixCache()).toBe(true);
  expect(bench.step()).toBe(false);
  cached.push(bench.run(prompt, { cacheSalt: 'tenant-a' }).cachedTokens);
  expect(engine.verify()).toBe(true);
  return { bench, cached };
}

describe('the scheduler of vLLM, 8 usable blocks of 4 tokens', () => {
  it('hits and publishes the same', () => {
    const { bench, cached } = schedulerScenario(false);
    expect(cached).toEqual([0, 8, 8, 0, 0]);
    expect(bench.batches.map(short)).toEqual([
      '+185451944313227130,5110682701061336337,7356357401091969068^root',
      '+7356357401091969068^5110682701061336337',
      '-7356357401091969068 +9393526030206322031,3674898810425443572,7413919842396377344,16893335080673815775,9165320459441645436^root',
      '-7356357401091969068',
      '-9165320459441645436 -16893335080673815775 -7413919842396377344 -3674898810425443572 +12841182201331546041,9726437785729522,11993407027008296918,6504182034043646714,12992610321747896775^root',
      '-9393526030206322031',
      '-12992610321747896775 -6504182034043646714 -11993407027008296918 -9726437785729522 +6156927281880679997,1044173363863877472,10962599007265139843,6290469965916334928,10369823130054464490^root',
      '-12841182201331546041',
      '+7356357401091969068^5110682701061336337',
      '-10369823130054464490',
      '-185451944313227130 -5110682701061336337',
      '+185451944313227130,5110682701061336337,7356357401091969068^root',
      '-6290469965916334928',
      '0',
      '+1938555118752468626,2047415219901680874,1413885991563984457^root',
    ]);
  });

  for (const [wholeHashes, name] of [
    [false, 'vllm-main-20260817-scheduler-capture.log'],
    [true, 'vllm-main-20260817-scheduler-capture-bytehash.log'],
  ] as const) {
    const frames = capture(name);
    it.skipIf(frames === undefined)(`publishes the same bytes as ${name} (skipped where it is absent)`, () => {
      const { bench } = schedulerScenario(wholeHashes);
      const payloads = bench.batches.map((events) =>
        timeless(encodeBatch(0.5, events, { blockTokens: 4, rank: 0 }).toString('hex')),
      );
      expect(frames!.map((frame) => frame.sequence)).toEqual(payloads.map((_, sequence) => sequence));
      expect(payloads).toEqual(frames!.map((frame) => timeless(frame.payload)));
    });
  }
});

describe('hashes with tagged keys', () => {
  it('are those of vLLM 0.33.0 for a salt', () => {
    const { engine } = new Bench({ blockTokens: 16, taggedKeys: true });
    expect([...engine.hashesOf(range(10, 36), { cacheSalt: 'tenant-a' })]).toEqual([
      16014397371320633522n,
      14626754679705080051n,
    ]);
    // Without keys there is nothing to tag.
    const bare = new Bench({ blockTokens: 16 }).engine;
    expect(engine.hashesOf(range(10, 36), {})).toEqual(bare.hashesOf(range(10, 36), {}));
    expect(engine.hashesOf(range(10, 36), {})).not.toEqual(bare.hashesOf(range(10, 36), { cacheSalt: 'tenant-a' }));
  });
});
