import { describe, expect, it } from 'vitest';
import { SagaError } from '../../src/errors.js';
import type { CacheSchedule, WorkloadColumns } from '../../src/workload/columns.js';
import { cacheHints, withHints } from '../../src/workload/hints.js';
import { closedLoop } from '../../src/workload/schedule.js';
import { generateAgentSessions } from '../../src/workload/agent-workload.js';
import { readTrace } from '../../src/workload/trace.js';
import { fileOf, requestLine } from './helpers.js';

/** One session: a main agent of four calls (a tool, a human, a tool) and a sub-agent of two. */
async function session(): Promise<{ workload: WorkloadColumns; schedule: CacheSchedule }> {
  const path = fileOf(
    'hints.jsonl',
    [
      requestLine({ sid: 's', k: 0, t: 0, gap_kind: 'start' }),
      requestLine({ sid: 's', aid: 'x', k: 0, t: 3, gap_s: 0, gap_kind: 'start' }),
      requestLine({ sid: 's', aid: 'x', k: 1, t: 9, gap_s: 1.5 }),
      requestLine({ sid: 's', k: 1, t: 20, gap_s: 18 }),
      requestLine({ sid: 's', k: 2, t: 100, gap_s: 78, gap_kind: 'user' }),
      requestLine({ sid: 's', k: 3, t: 103, gap_s: 0.25 }),
    ].join('\n'),
  );
  const workload = (await readTrace(path)).workload();
  return { workload, schedule: closedLoop(workload, { live: 1 }) };
}

describe('hints of a cache', () => {
  it('tell the last call of each thread, and how long tools take, but nothing that a human ends', async () => {
    const { workload, schedule } = await session();
    // Calls of 2 s. Main: 0, 20 (after 18 s), 100, 102.25. Sub-agent: 3 and 9 s after the start of the first.
    expect([...schedule.start]).toEqual([0, 3e6, 9e6, 20e6, 100e6, 102.25e6]);
    expect(withHints(workload, schedule, 'none')).toEqual(schedule);
    const end = withHints(workload, schedule, 'end');
    expect([...(end.sessionEnd ?? [])]).toEqual([0, 0, 1, 0, 0, 1]);
    expect(end.declaredGap).toBeUndefined();
    const tool = withHints(workload, schedule, 'end+tool');
    expect(tool.sessionEnd).toEqual(end.sessionEnd);
    const none = Number.NaN;
    expect([...(tool.declaredGap ?? [])]).toEqual([18e6, 4e6, none, none, 0.25e6, none]);
    expect([...tool.start]).toEqual([...schedule.start]);
  });

  it('are noisy by a factor e^(0.5 N(0, 1)) that the seed and the call alone decide', () => {
    const workload = generateAgentSessions({ sessions: 60 }).arrange();
    const schedule = closedLoop(workload, { live: 8 });
    const exact = withHints(workload, schedule, 'end+tool').declaredGap ?? new Float64Array();
    const noisy = withHints(workload, schedule, 'end+tool-noisy', 7);
    expect(withHints(workload, schedule, 'end+tool-noisy', 7)).toEqual(noisy);
    expect(withHints(workload, schedule, 'end+tool-noisy', 8).declaredGap).not.toEqual(noisy.declaredGap);
    const logs: number[] = [];
    noisy.declaredGap?.forEach((gap, at) => {
      expect(Number.isNaN(gap)).toBe(Number.isNaN(exact[at]));
      // Long enough that rounding to microseconds does not count.
      if ((exact[at] ?? 0) > 1e5) logs.push(Math.log(gap / (exact[at] ?? 1)));
    });
    expect(logs.length).toBeGreaterThan(1000);
    const mean = logs.reduce((sum, one) => sum + one, 0) / logs.length;
    const deviation = Math.sqrt(logs.reduce((sum, one) => sum + (one - mean) ** 2, 0) / logs.length);
    expect(Math.abs(mean)).toBeLessThan(0.05);
    expect(Math.abs(deviation - 0.5)).toBeLessThan(0.04);
    // The same call, the same factor, whatever the order in which calls are seen.
    const other = withHints(workload, closedLoop(workload, { live: 1 }), 'end+tool-noisy', 7);
    const factorOf = (told: CacheSchedule, at: number): number => {
      const place = told.call.indexOf(schedule.call[at] ?? -1);
      const plain = withHints(workload, told, 'end+tool').declaredGap?.[place] ?? Number.NaN;
      return (told.declaredGap?.[place] ?? Number.NaN) / plain;
    };
    const long = exact.findIndex((gap) => gap > 1e7);
    expect(factorOf(other, long)).toBeCloseTo(factorOf(noisy, long), 5);
  });

  it('are not for single requests', async () => {
    const line = '{"timestamp":0,"input_length":512,"output_length":1,"hash_ids":[3]}';
    const workload = (await readTrace(fileOf('single.jsonl', line))).workload();
    const schedule: CacheSchedule = { call: Uint32Array.of(0), start: Float64Array.of(0), end: Float64Array.of(0) };
    expect(withHints(workload, schedule, 'none')).toEqual(schedule);
    for (const hints of cacheHints.slice(1)) expect(() => withHints(workload, schedule, hints)).toThrow(SagaError);
  });
});
