/** KV events from the wire to placements: real captures and vectors, both forms of hashes, gaps, restarts, refusals. */
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import {
  BlockHasher,
  SagaArgumentError,
  SagaCapacityError,
  SagaError,
  SagaStateError,
  Scheduler,
  type HashAlgorithm,
  type SchedulerOptions,
  type Worker,
} from '../../src/index.js';
import { KvEventSource, chainSaltOf, kvBatchRank, type KvEventSourceOptions } from '../../src/vllm/kv-event-source.js';

const data = process.env['SAGA_VLLM_CAPTURES'] ?? fileURLToPath(new URL('../../../shared/vllm/', import.meta.url));
const present = existsSync(`${data}/vllm-vectors.json`);
if (!present) console.warn('The captured KV events (../shared/vllm) are not here: they are not compared.');

const fromHex = (hex: string): Uint8Array => new Uint8Array(Buffer.from(hex.replaceAll(/\s/g, ''), 'hex'));

/** Of vLLM's own scheduler: hashes of the tokens 10 to 21 in blocks of 4, `sha256_cbor`, seed 0. */
const firstStored = fromHex(`93cb41dac012e3ecdb30918ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657393
  cf0292db8f8fb2077acf46eccad6cc7ead11cf66170814a4e7102cb1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739c
  0a0b0c0d0e0f101112131415aa626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0
  aa65787472615f6b65797393c0c0c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e00`);
const allCleared = fromHex('93cb41dac012e473f9319181a474797065b0416c6c426c6f636b73436c656172656400');
const firstTokens = Uint32Array.from({ length: 12 }, (_, i) => 10 + i);

interface Setup {
  scheduler: Scheduler;
  worker: Worker;
  source: KvEventSource;
}

function setUp(options: KvEventSourceOptions = {}, scheduling: SchedulerOptions = {}): Setup {
  const scheduler = new Scheduler({
    blockTokens: 4,
    maxWorkers: 4,
    maxBlocks: 4096,
    policy: 'affinity',
    clock: () => 0,
    ...scheduling,
  });
  const worker = scheduler.addWorker({ blocks: 1000 });
  return { scheduler, worker, source: new KvEventSource(scheduler, worker, { maxBlocks: 4096, ...options }) };
}

/** Leading blocks in GPU memory that the scheduler would go by. */
function matched(scheduler: Scheduler, chain: BigUint64Array): number {
  const scheduled = scheduler.openWorkflow().submit({ promptTokens: chain.length * scheduler.blockTokens, chain });
  const receipt = scheduled.place();
  scheduled.cancel();
  return receipt.matchedBlocks.gpu;
}

function refusal(action: () => unknown): SagaError {
  try {
    action();
  } catch (error) {
    if (error instanceof SagaError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('KvEventSource', () => {
  it.each<HashAlgorithm>(['saga', 'sha256_cbor'])('tells the scheduler what a worker holds, by %s', (algorithm) => {
    const { scheduler, source } = setUp({ algorithm });
    const chain = new BlockHasher({ algorithm, blockTokens: 4 }).update(firstTokens);
    const report = source.apply(firstStored);
    expect(report).toMatchObject({
      dataParallelRank: 0,
      uncertain: undefined,
      schedulerBehind: false,
      events: 1,
      storedBlocks: 3,
      schedulerStored: 3,
    });
    expect(report.timestamp).toBeCloseTo(1_795_181_455.7, 0);
    expect(matched(scheduler, chain)).toBe(3);
    expect(source.usable(chain)).toBe(3);
    expect(source.copies(chain[0] as bigint)).toBe(1);
    source.apply(firstStored);
    expect(source.copies(chain[0] as bigint)).toBe(2);
    expect(source.stats()).toMatchObject({
      batches: 2,
      blocks: 3,
      copies: 6,
      groups: 1,
      storedBlocks: 6,
      schedulerStored: 3,
    });
    expect(source.apply(allCleared)).toMatchObject({ clearedEvents: 1 });
    expect(matched(scheduler, chain)).toBe(0);
    expect(source.verify() && scheduler.verify()).toBe(true);
  });

  it('forgets a publisher that began anew', () => {
    const { scheduler, source } = setUp();
    const chain = new BlockHasher({ blockTokens: 4 }).update(firstTokens);
    source.apply(firstStored);
    source.reset();
    expect(matched(scheduler, chain)).toBe(0);
    expect(source.stats()).toMatchObject({ blocks: 0, groups: 0 });
  });

  it('refuses what is no batch, and changes nothing', () => {
    const { source } = setUp({ maxBatchBytes: 1000 });
    for (const bad of [new Uint8Array(), firstStored.subarray(0, 100), Uint8Array.of(0x93, 1, 2, 3)]) {
      expect(refusal(() => source.apply(bad))).toBeInstanceOf(SagaArgumentError);
    }
    expect(refusal(() => source.apply(new Uint8Array(1001)))).toMatchObject({ code: 'SAGA_ERR_FULL' });
    expect(refusal(() => source.apply([1] as never))).toBeInstanceOf(SagaArgumentError);
    expect(refusal(() => source.usable([1n] as never))).toBeInstanceOf(SagaArgumentError);
    expect(refusal(() => source.copies(1n, { group: 32 }))).toBeInstanceOf(SagaArgumentError);
    expect(source.stats()).toMatchObject({ batches: 0, events: 0, blocks: 0 });
  });

  it('refuses options outside their range, and what is no worker', () => {
    const { scheduler, worker } = setUp();
    expect(refusal(() => new KvEventSource(scheduler, worker, { maxBlocks: 0 }))).toBeInstanceOf(SagaArgumentError);
    expect(refusal(() => new KvEventSource(scheduler, worker, { algorithm: 'md5' as never }))).toBeInstanceOf(
      SagaArgumentError,
    );
    expect(refusal(() => new KvEventSource(scheduler, {} as never))).toBeInstanceOf(SagaArgumentError);
    expect(refusal(() => new KvEventSource({} as never, worker))).toBeInstanceOf(SagaArgumentError);
  });

  it('refuses events of a worker that is gone, and of the past', () => {
    const { scheduler, worker, source } = setUp();
    source.apply(firstStored, { now: 50 });
    expect(refusal(() => source.apply(firstStored, { now: 49 }))).toMatchObject({ code: 'SAGA_ERR_TIME_REVERSED' });
    worker.remove({ now: 60 });
    expect(refusal(() => source.apply(firstStored, { now: 60 }))).toMatchObject({ code: 'SAGA_ERR_NOT_FOUND' });
    expect(refusal(() => source.reset({ now: 60 }))).toMatchObject({ code: 'SAGA_ERR_NOT_FOUND' });
    expect(source.stats()).toMatchObject({ batches: 1 });
    // Nor are they those of the one that has its id.
    for (let i = 1; i < 4; ++i) scheduler.addWorker({ blocks: 1, now: 60 });
    const next = scheduler.addWorker({ blocks: 1000, now: 60 });
    expect(next.id).toBe(worker.id);
    const before = scheduler.digest();
    for (const action of [
      () => source.apply(firstStored, { now: 70 }),
      () => source.apply(allCleared, { now: 70 }),
      () => source.reset({ now: 70 }),
      () => source.sync({ now: 70 }),
    ])
      expect(refusal(action)).toMatchObject({ code: 'SAGA_ERR_NOT_FOUND' });
    expect(scheduler.digest()).toBe(before);
    expect(source.stats()).toMatchObject({ batches: 1, blocks: 3 });
    using another = new KvEventSource(scheduler, next, { maxBlocks: 4096 });
    another.apply(firstStored, { now: 70 });
    expect(scheduler.stats().holderBlocks).toBe(3);
    source.close();
    source.close();
    expect(refusal(() => source.stats())).toBeInstanceOf(SagaStateError);
    const other = setUp();
    other.scheduler.close();
    expect(refusal(() => other.source.apply(firstStored))).toMatchObject({ code: 'SAGA_ERR_CLOSED' });
    other.source.close();
    void scheduler;
  });

  it('says what it cannot know', () => {
    const { source } = setUp();
    expect(source.uncertain).toBeUndefined();
    source.apply(fromHex('92009195ab426c6f636b53746f7265649101a0c0c0'));
    expect(source.uncertain).toBe('an event could not be understood');
    source.apply(allCleared);
    expect(source.uncertain).toBeUndefined();
    const other = setUp({ blockTokens: 8 });
    expect(other.source.apply(firstStored)).toMatchObject({
      groupEvents: 1,
      uncertain: 'a KV-cache group has another block size',
    });
  });

  it('catches up when the journal has room again, and the journal replays', () => {
    const { scheduler, source } = setUp({}, { journalBytes: 4096 });
    const chain = new BlockHasher({ blockTokens: 4 }).update(firstTokens);
    const pieces = [scheduler.readJournal()];
    let refused: unknown;
    for (let i = 0; i < 1000 && refused === undefined; ++i) {
      try {
        source.apply(firstStored);
        if (i % 2 === 1) source.apply(allCleared);
      } catch (error) {
        refused = error;
      }
    }
    expect(refused).toBeInstanceOf(SagaCapacityError);
    expect(refused).toMatchObject({ code: 'SAGA_ERR_JOURNAL_FULL' });
    pieces.push(scheduler.readJournal());
    source.sync();
    source.apply(firstStored);
    expect(source.stats().schedulerBehind).toBe(false);
    expect(source.usable(chain)).toBe(3);
    pieces.push(scheduler.readJournal());
    const replayed = Scheduler.replay(Buffer.concat(pieces));
    expect(replayed.digest).toBe(scheduler.digest());
  });

  it('names the rank of a batch', () => {
    expect(kvBatchRank(firstStored)).toBe(0);
    expect(kvBatchRank(fromHex('920090'))).toBeUndefined();
    expect(kvBatchRank(fromHex('93009007'))).toBe(7);
    expect(refusal(() => kvBatchRank(fromHex('930090')))).toBeInstanceOf(SagaArgumentError);
  });

  it('begins chains at the salt that clients can compute', () => {
    expect(chainSaltOf({})).toBe('');
    expect(chainSaltOf({ cacheSalt: 'tenant-a' })).toBe('8:tenant-a');
    expect(chainSaltOf({ loraName: 'x' })).toBe('0:x');
    expect(chainSaltOf({ cacheSalt: 'ä', loraName: 'x' })).toBe('2:äx');
    expect(refusal(() => chainSaltOf({ cacheSalt: 'a'.repeat(4097) }))).toBeInstanceOf(SagaArgumentError);
    const { source } = setUp();
    // SGLang: one block of the tokens 1 to 4 with the salt "ä".
    source.apply(
      fromHex(
        '9200 91 98 ab426c6f636b53746f726564 91 d3ff00000000000000 c0 94 01020304 04 c0 a3475055 81 aa63616368655f73616c74 a2c3a4',
      ),
    );
    const hasher = new BlockHasher({ blockTokens: 4, salt: chainSaltOf({ cacheSalt: 'ä' }) });
    expect(source.usable(hasher.update(Uint32Array.of(1, 2, 3, 4)))).toBe(1);
  });
});

interface Frame {
  label: string;
  sequence: number;
  payload: Uint8Array;
}

function framesOf(file: string): Frame[] {
  const frames: Frame[] = [];
  let head: RegExpExecArray | null = null;
  for (const line of readFileSync(`${data}/${file}`, 'utf8').split('\n')) {
    const hex = /^ {3}hex ([0-9a-f]+)$/.exec(line);
    if (hex && head)
      frames.push({ label: head[1] as string, sequence: Number(head[2]), payload: fromHex(hex[1] as string) });
    head = /^(.*) b'[^']*' (\d+) \[/.exec(line) ?? head;
  }
  return frames;
}

const capture = 'vllm-main-20260817-scheduler-capture.log';
const byteCapture = 'vllm-main-20260817-scheduler-capture-bytehash.log';
/** After each batch: stored, removed, distinct hashes, copies. */
const afterEach: readonly (readonly [number, number, number, number])[] = [
  [3, 0, 3, 3],
  [1, 0, 3, 4],
  [5, 1, 8, 8],
  [0, 1, 7, 7],
  [5, 4, 8, 8],
  [0, 1, 7, 7],
  [5, 4, 8, 8],
  [0, 1, 7, 7],
  [1, 0, 8, 8],
  [0, 1, 7, 7],
  [0, 2, 5, 5],
  [3, 0, 7, 8],
  [0, 1, 6, 7],
  [0, 0, 0, 0],
  [3, 0, 3, 3],
];

describe.skipIf(!present)('KvEventSource on captures', () => {
  it.each([
    [capture, 'sha256_cbor'],
    [byteCapture, 'sha256_cbor'],
    [capture, 'saga'],
    [byteCapture, 'saga'],
  ] as const)('counts %s by %s', (file, algorithm) => {
    const { source, scheduler } = setUp({ algorithm });
    const frames = framesOf(file);
    expect(frames.map(({ sequence }) => sequence)).toEqual(afterEach.map((_, i) => i));
    frames.forEach(({ payload }, i) => {
      const [storedBlocks, removedBlocks, blocks, copies] = afterEach[i] as (typeof afterEach)[number];
      expect(source.apply(payload), `batch ${i}`).toMatchObject({
        storedBlocks,
        removedBlocks,
        unknownRemovals: 0,
        unusableBlocks: 0,
        refusedEvents: 0,
        skippedFields: 0,
        uncertain: undefined,
      });
      expect(source.stats(), `after batch ${i}`).toMatchObject({ blocks, copies });
      expect(source.verify()).toBe(true);
    });
    // What is left is the salted prompt.
    const salted =
      algorithm === 'saga'
        ? new BlockHasher({ blockTokens: 4, salt: chainSaltOf({ cacheSalt: 'tenant-a' }) }).update(firstTokens)
        : new BlockHasher({ algorithm, blockTokens: 4 }).reset({ cacheSalt: 'tenant-a' }).update(firstTokens);
    expect(matched(scheduler, salted)).toBe(3);
    if (algorithm !== 'saga')
      expect([...salted]).toEqual([1938555118752468626n, 2047415219901680874n, 1413885991563984457n]);
  });

  it('keeps the block whose first copy goes while a second is live', () => {
    const { source } = setUp({ algorithm: 'sha256_cbor' });
    const copies = framesOf(capture)
      .slice(0, 4)
      .map(({ payload }) => {
        source.apply(payload);
        return source.copies(7356357401091969068n);
      });
    expect(copies).toEqual([1, 2, 1, 0]);
  });

  it('both forms of hashes give the same state', () => {
    const states = [capture, byteCapture].map((file) => {
      const { source, scheduler } = setUp({ algorithm: 'sha256_cbor' });
      for (const { payload } of framesOf(file)) source.apply(payload);
      return scheduler.digest();
    });
    expect(states[0]).toBe(states[1]);
  });

  it('comes to the same state by a replay after a gap, and after a restart of the engine', () => {
    const frames = framesOf(capture);
    const straight = setUp();
    for (const { payload } of frames.slice(0, 13)) straight.source.apply(payload);
    // Batch 4 is lost; its loss shows with the next one, and the publisher sends all that it has again.
    const gap = setUp();
    for (const { sequence, payload } of frames.slice(0, 8)) if (sequence !== 4) gap.source.apply(payload);
    gap.source.reset();
    for (const { payload } of frames.slice(0, 13)) gap.source.apply(payload);
    // The engine begins anew after batch 4.
    const restarted = setUp();
    for (const { payload } of frames.slice(0, 5)) restarted.source.apply(payload);
    restarted.source.reset();
    for (const { payload } of frames.slice(0, 13)) restarted.source.apply(payload);
    const expected = straight.source.stats();
    for (const { source, scheduler } of [gap, restarted]) {
      expect(source.stats()).toMatchObject({ blocks: expected.blocks, copies: expected.copies });
      expect(scheduler.stats().holderBlocks).toBe(straight.scheduler.stats().holderBlocks);
      expect(source.verify()).toBe(true);
    }
  });

  it('without its beginning, blocks behind unknown parents are not used', () => {
    const { source } = setUp();
    for (const { payload } of framesOf(capture).slice(8, 13)) source.apply(payload);
    const { blocks, namelessBlocks, unusableBlocks, unknownRemovals } = source.stats();
    expect(unusableBlocks).toBe(1);
    expect(unknownRemovals).toBeGreaterThan(0);
    expect(namelessBlocks).toBeLessThanOrEqual(blocks);
    expect(source.verify()).toBe(true);
  });

  it('reads the frames of a whole server, by names and directly', () => {
    for (const algorithm of ['saga', 'sha256_cbor'] as const) {
      const { source } = setUp({ algorithm }, { blockTokens: 16 });
      const tokens = Uint32Array.from({ length: 36 }, (_, i) => 10 + i);
      const plain = new BlockHasher({ algorithm }).update(tokens);
      const frames = framesOf('vllm-0.33.0-server-capture.log');
      expect(frames.length).toBe(5);
      frames.slice(0, 4).forEach(({ payload }) => source.apply(payload));
      expect(source.stats()).toMatchObject({ blocks: 2 + 2 + 2 + 5, skippedFields: 1, unusableBlocks: 0 });
      expect(source.usable(plain)).toBe(2);
      expect(source.apply((frames[4] as Frame).payload)).toMatchObject({ clearedEvents: 1, storedBlocks: 2 });
      expect(source.stats()).toMatchObject({ blocks: 2, copies: 2 });
      expect(source.usable(plain)).toBe(2);
      expect(source.uncertain).toBeUndefined();
    }
  });

  it('reads every generation of the format', () => {
    const vectors = JSON.parse(readFileSync(`${data}/vllm-vectors.json`, 'utf8')) as {
      events: Record<string, { payload_hex: string }>;
    };
    /** Events, stored blocks, removals of unknown ones, blocks at the end. */
    const expected: Record<string, readonly [number, number, number, number]> = {
      'v0.9.0_array': [3, 2, 1, 0],
      'v0.9.1_array': [2, 1, 1, 1],
      'v0.10.2_array': [2, 1, 1, 1],
      'v0.14_array': [2, 1, 1, 1],
      'v0.20_array': [2, 1, 1, 1],
      'v0.24plus_map': [3, 2, 1, 0],
      'v0.24plus_map_bytes': [1, 1, 0, 1],
      'v0.24plus_map_cpu_placeholder': [2, 1, 0, 0],
    };
    expect(Object.keys(vectors.events).sort()).toEqual(Object.keys(expected).sort());
    for (const [name, { payload_hex }] of Object.entries(vectors.events)) {
      const { source } = setUp({ algorithm: 'xxhash_cbor' });
      const [events, storedBlocks, unknownRemovals, blocks] = expected[name] as readonly [
        number,
        number,
        number,
        number,
      ];
      expect(source.apply(fromHex(payload_hex)), name).toMatchObject({
        events,
        storedBlocks,
        unknownRemovals,
        unknownEvents: 0,
        refusedEvents: 0,
        skippedFields: 0,
        uncertain: undefined,
      });
      expect(source.stats(), name).toMatchObject({ blocks });
    }
  });
});
