import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import type { CacheSchedule, WorkloadColumns } from '../../src/workload/columns.js';
import { closedLoop, scheduleOf } from '../../src/workload/schedule.js';
import { readTrace } from '../../src/workload/trace.js';
import { fileOf, requestLine } from './helpers.js';

/** `session/number start-end` in seconds, in order. */
function shown(workload: WorkloadColumns, schedule: CacheSchedule): string[] {
  return Array.from(schedule.call, (call, at) => {
    const task = workload.taskFirstCall.findLastIndex(
      (first, index) => index < workload.taskNames.length && first <= call,
    );
    const name = `${workload.taskNames[task]}${workload.callMain[call] === 1 ? '' : '*'}${workload.callNumber[call]}`;
    return `${name} ${(schedule.start[at] ?? 0) / 1e6}-${(schedule.end[at] ?? 0) / 1e6}`;
  });
}

describe('the closed loop', () => {
  // In the order of their SHA-256: c (2e7d..), b (3e23..), a (ca97..).
  const lines = [
    requestLine({ sid: 'c', llm_s: 3 }),
    requestLine({ sid: 'c', k: 1, t: 4, gap_s: 1, llm_s: 2 }),
    requestLine({ sid: 'b', llm_s: 10 }),
    requestLine({ sid: 'b', aid: 'sub', k: 0, t: 12, gap_s: 0, llm_s: 1 }),
    requestLine({ sid: 'b', k: 1, t: 20, gap_s: 2500, llm_s: null }),
    requestLine({ sid: 'a', llm_s: 0.5 }),
  ];

  it('plays sessions back to back in slots that start 7 s apart and rest 5 s', async () => {
    const workload = (await readTrace(fileOf('loop.jsonl', lines.join('\n')))).workload();
    // Slot 0: c at 0-3, 4-6, rest to 11, then a. Slot 1: b at 7-17, the sub-agent 12 s after it, the last after the capped gap.
    expect(shown(workload, closedLoop(workload, { live: 2 }))).toEqual([
      'c0 0-3',
      'c1 4-6',
      'b0 7-17',
      'a0 11-11.5',
      'b*0 19-20',
      'b1 1817-1823',
    ]);
    // One slot: b begins 5 s after c ended, a 5 s after b; the gap cap is 60 s.
    expect(shown(workload, closedLoop(workload, { live: 1, gapCapSeconds: 60 }))).toEqual([
      'c0 0-3',
      'c1 4-6',
      'b0 11-21',
      'b*0 23-24',
      'b1 81-87',
      'a0 92-92.5',
    ]);
    // Slot 0 is free again at 11 s, before slot 2 starts at 14 s.
    expect(shown(workload, closedLoop(workload, { live: 100 }))[3]).toBe('a0 11-11.5');
  });

  it('orders calls that start together by session and number', async () => {
    const twins = [requestLine({ sid: 'y', k: 0, llm_s: 0 }), requestLine({ sid: 'y', k: 1, t: 1, llm_s: 0 })];
    const workload = (await readTrace(fileOf('twins.jsonl', twins.reverse().join('\n')))).workload();
    expect(shown(workload, closedLoop(workload))).toEqual(['y0 0-0', 'y1 0-0']);
  });

  it('refuses a number of live sessions that is none', async () => {
    const workload = (await readTrace(fileOf('single.jsonl', lines.join('\n')))).workload();
    for (const live of [0, -1, 1.5, Number.NaN]) expect(() => closedLoop(workload, { live })).toThrow(/live sessions/);
  });
});

describe('a trace with arrival times', () => {
  it('is played at them, simultaneous requests in the order of the trace', async () => {
    const path = fileOf(
      'arrivals.jsonl',
      [3000, 0, 3000]
        .map((timestamp, id) => JSON.stringify({ timestamp, input_length: 600, output_length: 1, hash_ids: [id, 9] }))
        .join('\n'),
    );
    const schedule = scheduleOf((await readTrace(path)).workload());
    expect([...schedule.call]).toEqual([1, 0, 2]);
    expect([...schedule.start]).toEqual([0, 3_000_000, 3_000_000]);
    expect([...schedule.end]).toEqual([...schedule.start]);
  });
});

const traces = fileURLToPath(new URL('../../../shared/traces/', import.meta.url));
const present = existsSync(traces);
if (!present) console.warn('The recorded traces (../shared/traces) are not here: their schedules are not compared.');

describe.skipIf(!present)('the recorded traces', () => {
  it('merge exactly as the reference implementation merges them', async () => {
    const trace = await readTrace(`${traces}claude-code-v6/requests.jsonl`);
    expect([trace.requests, trace.copies, trace.malformed]).toEqual([26_444, 327, 0]);
    const workload = trace.workload();
    expect(workload.taskNames.length).toBe(445);
    const taskOfCall = new Uint32Array(26_444);
    workload.taskNames.forEach((_, task) => {
      taskOfCall.fill(task, workload.taskFirstCall[task], workload.taskFirstCall[task + 1]);
    });
    // SHA-256 over "session main|agen number start end prompt" of every request, made with the reference.
    const digests: Record<number, string> = {
      32: '351bd7ecfff479f50ec29b6a2d31c4bcd9427cebb2644efc32a8d09e98fd712e',
      128: '8fe920c35eafaa2ae1ca3a5fd027d95888c331245a5effb76b1228415f3d81c9',
    };
    for (const [live, lastStart] of [[32, 92_629], [128, 59_974]] as const) {
      const schedule = closedLoop(workload, { live });
      expect(Math.floor((schedule.start[26_443] ?? 0) / 1e6)).toBe(lastStart);
      const hash = createHash('sha256');
      schedule.call.forEach((call, at) => {
        const name = workload.taskNames[taskOfCall[call] ?? 0];
        const agent = workload.callMain[call] === 1 ? 'main' : 'agen';
        hash.update(`${name} ${agent} ${workload.callNumber[call]} ${schedule.start[at]} ${schedule.end[at]} ${workload.promptTokens[call]}\n`);
      });
      expect(hash.digest('hex')).toBe(digests[live]);
    }
  }); // prettier-ignore

  it('are read from Mooncake too', async () => {
    const trace = await readTrace(`${traces}mooncake-conversation/requests.jsonl`);
    const schedule = scheduleOf(trace.workload());
    expect([trace.format, trace.requests, schedule.start[5718]]).toEqual(['mooncake', 5719, 1_797_000_000]);
  });
});
