/**
 * The order and the times at which one shared cache sees the calls of a workload (cache mode).
 *
 * Sessions of a trace have no clock in common, so a load is made from them by a closed loop: N slots are live and play
 * sessions back to back in task order. Slot i starts at 7 i seconds and rests 5 s between sessions. A main-agent call starts
 * its gap (capped) after the **end** of the one before; a call takes its recorded duration, 6 s where that is missing; a
 * sub-agent call keeps its recorded distance from the main-agent call before it. Nothing is random. All sums are made in
 * seconds as doubles and in one order, so that the schedule is the same on every machine.
 *
 * A trace with arrival times is played at them instead.
 */
import { SagaError } from '../errors.js';
import { callCount, taskCount, type CacheSchedule, type WorkloadColumns } from './columns.js';
import { compareText } from './request-log.js';

/** Seconds between the first starts of two slots. */
export const startEverySeconds = 7;
/** Seconds a slot rests between two sessions. */
export const restSeconds = 5;
/** Duration of a call without a recorded one, in seconds. */
export const defaultCallSeconds = 6;

/** How a cache sees the calls of a workload. */
export interface ScheduleOptions {
  /** Sessions live at once. Default 32. Not for traces with arrival times. */
  live?: number;
  /** Longest gap kept, in seconds. Default 1,800. */
  gapCapSeconds?: number;
}

/** The schedule of a workload: at its arrival times where it has them, else by the closed loop. */
export function scheduleOf(workload: WorkloadColumns, options: ScheduleOptions = {}): CacheSchedule {
  if (workload.taskArrival !== undefined) return arrivalSchedule(workload, workload.taskArrival);
  return closedLoop(workload, options);
}

/** Merges sessions by the closed loop described above. Costs O(calls log calls). */
export function closedLoop(workload: WorkloadColumns, options: ScheduleOptions = {}): CacheSchedule {
  const live = options.live ?? 32;
  const gapCap = options.gapCapSeconds ?? 1800;
  if (!Number.isInteger(live) || live < 1) {
    throw new SagaError('SAGA_ERR_OPTION', `expected a whole number of live sessions, at least 1, not ${live}`);
  }
  const calls = callCount(workload);
  const start = new Float64Array(calls);
  const end = new Float64Array(calls);
  const taskOfCall = new Uint32Array(calls);
  const slots = new SlotQueue(Math.min(live, taskCount(workload)));
  for (let task = 0; task < taskCount(workload); ++task) {
    const slot = slots.earliest();
    const sessionStart = slots.time(slot);
    let sessionEnd = sessionStart;
    let mainRecorded = 0;
    let mainStart = 0;
    let mainEnd = Number.NaN; // no main-agent call yet
    const last = workload.taskFirstCall[task + 1] as number;
    for (let call = workload.taskFirstCall[task] as number; call < last; ++call) {
      taskOfCall[call] = task;
      const recorded = workload.callTime[call] as number;
      const known = workload.callSeconds?.[call] ?? Number.NaN;
      const seconds = Number.isNaN(known) ? defaultCallSeconds : known;
      let begin: number;
      if (workload.callMain[call] === 1 || Number.isNaN(mainEnd)) {
        begin = Number.isNaN(mainEnd)
          ? sessionStart
          : mainEnd + Math.min(workload.callGapSeconds[call] as number, gapCap);
        mainRecorded = recorded;
        mainStart = begin;
        mainEnd = begin + seconds;
      } else {
        begin = mainStart + Math.max(0, recorded - mainRecorded);
      }
      start[call] = begin;
      end[call] = begin + seconds;
      sessionEnd = Math.max(sessionEnd, begin + seconds);
    }
    slots.move(slot, sessionEnd + restSeconds);
  }

  const rank = ranksOf(workload.taskNames);
  const order = new Uint32Array(calls).map((_, call) => call);
  order.sort(
    (a, b) =>
      (start[a] as number) - (start[b] as number) ||
      (rank[taskOfCall[a] as number] as number) - (rank[taskOfCall[b] as number] as number) ||
      (workload.callNumber[a] as number) - (workload.callNumber[b] as number) ||
      a - b,
  );
  return {
    call: order,
    start: Float64Array.from(order, (call) => Math.round((start[call] as number) * 1e6)),
    end: Float64Array.from(order, (call) => Math.round((end[call] as number) * 1e6)),
  };
}

/** Every call at the arrival of its task, in order of arrival; simultaneous ones in the order of the trace. */
function arrivalSchedule(workload: WorkloadColumns, arrival: Float64Array): CacheSchedule {
  const calls = callCount(workload);
  const start = new Float64Array(calls);
  for (let task = 0; task < taskCount(workload); ++task) {
    start.fill(arrival[task] as number, workload.taskFirstCall[task], workload.taskFirstCall[task + 1]);
  }
  const order = new Uint32Array(calls).map((_, call) => call);
  order.sort((a, b) => (start[a] as number) - (start[b] as number) || a - b);
  const sorted = Float64Array.from(order, (call) => start[call] as number);
  return { call: order, start: sorted, end: sorted.slice() };
}

/** Place of each name in the order of code points; equal names share a place. */
function ranksOf(names: readonly string[]): Uint32Array {
  const order = names.map((_, index) => index).sort((a, b) => compareText(names[a] as string, names[b] as string));
  const ranks = new Uint32Array(names.length);
  order.forEach((name, place) => {
    const before = place > 0 ? (order[place - 1] as number) : name;
    ranks[name] = names[before] === names[name] && place > 0 ? (ranks[before] as number) : place;
  });
  return ranks;
}

/** Slots by the time at which they are free, the lowest number first among equals: a binary heap over two arrays. */
class SlotQueue {
  private readonly times: Float64Array;
  private readonly heap: Uint32Array;

  constructor(count: number) {
    this.times = new Float64Array(count).map((_, slot) => startEverySeconds * slot);
    this.heap = new Uint32Array(count).map((_, slot) => slot); // rising times: a heap already
  }

  /** The slot that is free first; it stays in place until it is moved. */
  earliest(): number {
    return this.heap[0] as number;
  }

  time(slot: number): number {
    return this.times[slot] as number;
  }

  /** Gives the earliest slot a later time. */
  move(slot: number, time: number): void {
    this.times[slot] = time;
    let place = 0;
    for (;;) {
      let smallest = place;
      for (const child of [2 * place + 1, 2 * place + 2]) {
        if (child < this.heap.length && this.before(this.heap[child] as number, this.heap[smallest] as number))
          smallest = child;
      }
      if (smallest === place) return;
      const other = this.heap[smallest] as number;
      this.heap[smallest] = this.heap[place] as number;
      this.heap[place] = other;
      place = smallest;
    }
  }

  private before(left: number, right: number): boolean {
    const difference = this.time(left) - this.time(right);
    return difference < 0 || (difference === 0 && left < right);
  }
}
