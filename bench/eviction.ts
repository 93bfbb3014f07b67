/**
 * What one eviction decision costs: a cache replay of a generated workload in which every policy sees the same requests, with
 * the clock around each cut. Nanoseconds are per evicted page; LRU stands in the same run as the yardstick.
 */
import native from '../dist/esm/native.cjs';
import type { Measurement } from './measure.js';

const policies = ['lru', 'lru-prefix', 'wa-lru', 'ttl', 'belady'] as const;
const tasks = 200;
const callsPerTask = 40;

/** Chains that grow by 8 blocks of 64 tokens a call behind a shared prompt of 64, tasks interleaved at random gaps. */
function workload(): { workload: native.Workload; call: Uint32Array; start: Float64Array; end: Float64Array } {
  const calls = tasks * callsPerTask;
  let state = 12_345;
  const draw = (): number => (state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0) / 2 ** 32;
  const columns: native.Columns = {
    blockTokens: 64,
    taskTenant: new Uint32Array(tasks),
    taskFirstCall: Uint32Array.from({ length: tasks + 1 }, (_, i) => i * callsPerTask),
    taskExpected: new Float64Array(tasks),
    callThread: Uint32Array.from({ length: calls }, (_, i) => Math.floor(i / callsPerTask)),
    promptTokens: new Uint32Array(calls),
    outputTokens: new Uint32Array(calls).fill(200),
    promptKind: new Uint8Array(calls).fill(1),
    stopReason: new Uint8Array(calls).fill(1),
    toolClass: new Uint8Array(calls).fill(1),
    callFirstPredecessor: new Uint32Array(calls + 1),
    predecessorCall: new Uint32Array(0),
    predecessorGap: new Float64Array(0),
    callFirstRun: Uint32Array.from({ length: calls + 1 }, (_, i) => 2 * i),
    runFirstId: new Float64Array(2 * calls),
    runLength: new Uint32Array(2 * calls),
  };
  const events: { call: number; start: number }[] = [];
  for (let call = 0, time = 0; call < calls; ++call) {
    const step = call % callsPerTask;
    if (step === 0) time = draw() * 3600e6;
    time += 5e6 + 60e6 * draw() ** 4;
    const privateBlocks = 64 + 8 * step;
    columns.runLength.set([64, privateBlocks], 2 * call);
    columns.runFirstId.set([0, 1000 + Math.floor(call / callsPerTask) * 1000], 2 * call);
    columns.promptTokens[call] = (64 + privateBlocks) * 64;
    events.push({ call, start: Math.floor(time) });
  }
  events.sort((a, b) => a.start - b.start || a.call - b.call);
  const made = native.createWorkload(columns);
  if (typeof made === 'number') throw new Error(native.statusText(-made));
  return {
    workload: made,
    call: Uint32Array.from(events, (event) => event.call),
    start: Float64Array.from(events, (event) => event.start),
    end: Float64Array.from(events, (event) => event.start + 4e6),
  };
}

export async function evictionDecisions(): Promise<Measurement[]> {
  const { workload: made, call, start, end } = workload();
  const replay = native.createCacheReplay(made, 512, call, start, end);
  if (typeof replay === 'number') throw new Error(native.statusText(-replay));
  const capacity = Math.floor(native.cacheReplayDistinctPages(replay) * 0.1);
  const rounds = 7;
  const samples = policies.map(() => [] as number[]);
  // Alternating order, so that no policy always runs on a cold or a warm machine.
  for (let round = 0; round < rounds; ++round) {
    for (let i = 0; i < policies.length; ++i) {
      const policy = round % 2 === 0 ? i : policies.length - 1 - i;
      const result = new Float64Array(9);
      const status = await native.runCacheReplay(
        replay,
        Float64Array.of(policy, 1, capacity, 1e15, 0, 1),
        result,
        new BigUint64Array(1),
      );
      if (status < 0) throw new Error(native.statusText(-status));
      samples[policy]?.push((result[6] ?? NaN) / (result[3] ?? NaN));
    }
  }
  return policies.map((name, policy) => {
    const sorted = (samples[policy] ?? []).sort((a, b) => a - b);
    const median = sorted[Math.floor(rounds / 2)] ?? NaN;
    const spread = ((sorted[rounds - 1] ?? NaN) - (sorted[0] ?? NaN)) / 2 / median;
    return {
      group: 'eviction',
      name: `${name}, ${capacity} pages`,
      unit: 'evicted page',
      nanoseconds: median,
      marginPercent: spread * 100,
    };
  });
}
