/**
 * What clients of a recorded workload could tell a cache beyond their requests: with the last answer of a thread that it was
 * the last, and with an answer that calls a tool how long the tool will take.
 *
 * | level | told |
 * |---|---|
 * | `none` | nothing |
 * | `end` | with the last answer of a thread (main agent or sub-agent): "this was the last call" |
 * | `end+tool` | and the exact duration of the coming gap, if the next call of the thread brings a tool's result; a gap that a human ends is not declared |
 * | `end+tool-noisy` | the same durations, each times exp(0.5 N(0, 1)), seeded: right within a factor 1.65 two times in three |
 */
import { SagaError } from '../errors.js';
import { callCount, promptKindNumber, threadCount, type CacheSchedule, type WorkloadColumns } from './columns.js';
import { Random } from './random.js';

/** Levels of information, each more than the one before but for its noise. */
export const cacheHints = ['none', 'end', 'end+tool', 'end+tool-noisy'] as const;
/** One of {@link cacheHints}. */
export type CacheHints = (typeof cacheHints)[number];

/** Standard deviation of the logarithm of a noisy duration. */
export const hintNoise = 0.5;

/** Longest declared duration: what the border takes. */
const longestGap = 2 ** 53 - 1;

/**
 * A schedule with the hints of a level. The noise of a call depends on the seed and the call alone. Costs O(calls).
 *
 * @param seed of the noise, 0 to 2^53 - 1
 * @throws SagaError `SAGA_ERR_OPTION` for a workload of single requests with arrival times, which has no threads
 */
export function withHints(
  workload: WorkloadColumns,
  schedule: CacheSchedule,
  hints: CacheHints,
  seed = 42,
): CacheSchedule {
  const { call, start, end } = schedule;
  if (hints === 'none') return { call, start, end };
  if (workload.taskArrival !== undefined) {
    throw new SagaError(
      'SAGA_ERR_OPTION',
      `expected --hints none with a trace of single requests, not ${hints}: it has no sessions that could end`,
    );
  }
  const none = callCount(workload);
  const next = new Uint32Array(threadCount(workload)).fill(none); // by thread: place of its next call
  const sessionEnd = new Uint8Array(call.length);
  const declaredGap = new Float64Array(call.length).fill(Number.NaN);
  const noise = new Random(seed);
  for (let at = call.length - 1; at >= 0; --at) {
    const number = call[at] as number;
    const thread = workload.callThread[number] as number;
    const after = next[thread] as number;
    if (after === none) {
      sessionEnd[at] = 1;
    } else if (workload.promptKind[call[after] as number] === promptKindNumber.tool) {
      const exact = Math.max(0, (start[after] as number) - (end[at] as number));
      const factor = hints === 'end+tool-noisy' ? noise.fork(number).logNormal(0, hintNoise) : 1;
      declaredGap[at] = Math.min(longestGap, Math.round(exact * factor));
    }
    next[thread] = at;
  }
  return { call, start, end, sessionEnd, ...(hints === 'end' ? {} : { declaredGap }) };
}
