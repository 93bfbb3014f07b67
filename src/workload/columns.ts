/**
 * A workload: the tasks that a simulation plays, as columns of typed arrays.
 *
 * A **task** is one agent workflow (a session of a trace). It is made of **calls** to the model; a call starts when all of its
 * predecessors have answered and its gap after each (tool run, human) has passed. A **thread** is one agent of one task. The
 * prompt of a call is a sequence of **blocks** of `blockTokens` tokens, given as runs of consecutive ids; an id names content.
 *
 * The first group of columns mirrors `native/core/sim/workload.hpp` and crosses the border as it is; the second stays on this
 * side: it feeds the schedule of cache mode and the reports. Nothing holds an object per call or per block.
 *
 * Costs: about 110 bytes a call, 12 a run, 12 a predecessor.
 */
import { SagaError } from '../errors.js';
import type { AgentGraph } from '../graph/agent-graph.js';

/** What the prompt of a call brings that the one before did not have. Values are part of the C ABI. */
export const promptKindNumber = { start: 0, tool: 1, user: 2 } as const;

/** Why an answer ended. Values are part of the C ABI. */
export const stopReasonNumber = { unknown: 0, toolUse: 1, endTurn: 2 } as const;

/** Tool classes of the SAGA paper. Values are part of the C ABI. */
export const toolClassNumber = {
  none: 0,
  codeExecution: 1,
  fileOperation: 2,
  webApi: 3,
  databaseQuery: 4,
} as const;

/** The columns that cross to the native side. Times are whole microseconds; times and ids stay below 2^53. */
export interface NativeColumns {
  /** Tokens of one block id: 16, 64 or 512 in practice. */
  readonly blockTokens: number;
  /** Per task: dense tenant number. */
  readonly taskTenant: Uint32Array;
  /** Per task: expected completion time in microseconds, the base of the paper's deadline; 0 where there is none. */
  readonly taskExpected: Float64Array;
  /** `[tasks + 1]`: the calls of task t are `[first[t], first[t + 1])`. */
  readonly taskFirstCall: Uint32Array;
  /** Per call: thread, dense over the whole workload. */
  readonly callThread: Uint32Array;
  /** Per call: tokens of the prompt, at least 1. */
  readonly promptTokens: Uint32Array;
  /** Per call: tokens of the answer, at least 1. */
  readonly outputTokens: Uint32Array;
  /** Per call: a value of {@link promptKindNumber}. */
  readonly promptKind: Uint8Array;
  /** Per call: a value of {@link stopReasonNumber}. */
  readonly stopReason: Uint8Array;
  /** Per call: a value of {@link toolClassNumber}, the tool that the answer calls. */
  readonly toolClass: Uint8Array;
  /** `[calls + 1]`: the predecessors of call c are `[first[c], first[c + 1])`. None: the call starts with its task. */
  readonly callFirstPredecessor: Uint32Array;
  /** Absolute call number: same task, smaller than the call itself. */
  readonly predecessorCall: Uint32Array;
  /** Microseconds between that answer and the call. */
  readonly predecessorGap: Float64Array;
  /** `[calls + 1]`: the blocks of the prompt of call c are the runs `[first[c], first[c + 1])`. */
  readonly callFirstRun: Uint32Array;
  /** A run is the ids first, first + 1, ... */
  readonly runFirstId: Float64Array;
  /** Ids of a run, at least 1. */
  readonly runLength: Uint32Array;
}

/** In {@link WorkloadColumns.taskGraph}: nothing is declared for the task. */
export const noGraph = 0xffff_ffff;

/** A whole workload. Immutable once built; made by the trace readers and the generators. */
export interface WorkloadColumns extends NativeColumns {
  /**
   * Declared graphs of classes of tasks: what a client says before a task runs. Means over the class, never what one task will
   * do. Empty where nothing is declared.
   */
  readonly graphs: readonly AgentGraph[];
  /** Per task: index into `graphs`, {@link noGraph} where nothing is declared. */
  readonly taskGraph: Uint32Array;
  /** Per tenant: weight of its fair share, above 0. */
  readonly tenantWeight: Float64Array;
  /** Per task: its name (session id of a trace). Empty where the trace has none. */
  readonly taskNames: readonly string[];
  /** Names of the task classes; a trace has one, `session` or `request`. */
  readonly classNames: readonly string[];
  /** Per task: index into `classNames`. */
  readonly taskClass: Uint8Array;
  /** Per task: weight of its tenant. */
  readonly taskWeight: Float64Array;
  /** Per task: recorded arrival in microseconds. Only in traces with arrival times, which are played at them in cache mode. */
  readonly taskArrival: Float64Array | undefined;
  /** Per call: recorded duration in seconds. Undefined where the input has no durations at all; NaN where one is missing. */
  readonly callSeconds: Float64Array | undefined;
  /** Per call: recorded start in seconds from the start of the session. */
  readonly callTime: Float64Array;
  /** Per call: recorded gap before the call in seconds, not capped. */
  readonly callGapSeconds: Float64Array;
  /** Per call: number within its agent, from 0. */
  readonly callNumber: Uint32Array;
  /** Per call: 1 for the main agent of a session, 0 for a sub-agent. */
  readonly callMain: Uint8Array;
}

/** When one shared cache sees the calls of a workload (cache mode), in order of start. */
export interface CacheSchedule {
  /** Call numbers of the workload. */
  readonly call: Uint32Array;
  /** Start in microseconds, rising. */
  readonly start: Float64Array;
  /** End in microseconds; equals the start where the input has no durations. */
  readonly end: Float64Array;
  /** What clients tell with the answer: 1 for the last call of its thread, 0 else. Undefined: they never tell. */
  readonly sessionEnd?: Uint8Array;
  /** Likewise: how long the coming tool takes, in microseconds; NaN where they do not tell. Undefined: they never tell. */
  readonly declaredGap?: Float64Array;
}

/** Number of tasks. */
export function taskCount(columns: Pick<NativeColumns, 'taskTenant'>): number {
  return columns.taskTenant.length;
}

/** Number of calls. */
export function callCount(columns: Pick<NativeColumns, 'promptTokens'>): number {
  return columns.promptTokens.length;
}

/** Number of threads. */
export function threadCount(columns: Pick<NativeColumns, 'callThread'>): number {
  let highest = -1;
  for (const thread of columns.callThread) if (thread > highest) highest = thread;
  return highest + 1;
}

type ArrayOf<T> = T extends Float64ArrayConstructor
  ? Float64Array
  : T extends Uint32ArrayConstructor
    ? Uint32Array
    : Uint8Array;
type Constructor = Float64ArrayConstructor | Uint32ArrayConstructor | Uint8ArrayConstructor;

/** A typed array that grows by doubling: appending costs O(1) amortised and no object. */
export class GrowableColumn<T extends Constructor> {
  private array: ArrayOf<T>;
  private used = 0;

  constructor(private readonly type: T) {
    this.array = new type(1024) as ArrayOf<T>;
  }

  get length(): number {
    return this.used;
  }

  push(value: number): void {
    if (this.used === this.array.length) {
      const larger = new this.type(this.array.length * 2) as ArrayOf<T>;
      larger.set(this.array);
      this.array = larger;
    }
    this.array[this.used++] = value;
  }

  /** Value at an index below `length`. */
  at(index: number): number {
    return this.array[index] as number;
  }

  /** Overwrites the newest value; there must be one. */
  replaceLast(value: number): void {
    this.array[this.used - 1] = value;
  }

  /** A copy of exactly `length` values. */
  finish(): ArrayOf<T> {
    return this.array.slice(0, this.used) as ArrayOf<T>;
  }
}

/** One call, as handed to {@link WorkloadBuilder.addCall}; the builder keeps no reference to it, so that it can be reused. */
export interface CallFields {
  thread: number;
  promptTokens: number;
  outputTokens: number;
  promptKind: number;
  stopReason: number;
  toolClass: number;
  /** Recorded duration in seconds; NaN where there is none. */
  seconds: number;
  /** Recorded start in seconds from the start of the session. */
  time: number;
  /** Recorded gap before the call in seconds. */
  gapSeconds: number;
  /** Number within its agent, from 0. */
  number: number;
  main: boolean;
}

/** One task, as handed to {@link WorkloadBuilder.beginTask}. */
export interface TaskFields {
  name: string;
  tenant: number;
  taskClass: number;
  /** Expected completion time in seconds; 0 where there is none. */
  expectedSeconds: number;
  /** Of its tenant, above 0; the first task of a tenant counts. */
  weight: number;
  /** Arrival in microseconds; NaN where there is none. */
  arrival: number;
  /** Index of its declared graph. Default: none. */
  graph?: number;
}

/**
 * Builds columns task by task: `beginTask`, then for each call `addCall` and its `addPredecessor` and `addRun`, at last
 * `finish`. Keeps nothing but the columns.
 */
export class WorkloadBuilder {
  private readonly taskTenant = new GrowableColumn(Uint32Array);
  private readonly taskFirstCall = new GrowableColumn(Uint32Array);
  private readonly taskClass = new GrowableColumn(Uint8Array);
  private readonly taskExpected = new GrowableColumn(Float64Array);
  private readonly taskWeight = new GrowableColumn(Float64Array);
  private readonly taskArrival = new GrowableColumn(Float64Array);
  private readonly taskGraph = new GrowableColumn(Uint32Array);
  private readonly tenantWeight: number[] = [];
  private readonly taskNames: string[] = [];
  private readonly callThread = new GrowableColumn(Uint32Array);
  private readonly promptTokens = new GrowableColumn(Uint32Array);
  private readonly outputTokens = new GrowableColumn(Uint32Array);
  private readonly promptKind = new GrowableColumn(Uint8Array);
  private readonly stopReason = new GrowableColumn(Uint8Array);
  private readonly toolClass = new GrowableColumn(Uint8Array);
  private readonly callFirstPredecessor = new GrowableColumn(Uint32Array);
  private readonly predecessorCall = new GrowableColumn(Uint32Array);
  private readonly predecessorGap = new GrowableColumn(Float64Array);
  private readonly callFirstRun = new GrowableColumn(Uint32Array);
  private readonly runFirstId = new GrowableColumn(Float64Array);
  private readonly runLength = new GrowableColumn(Uint32Array);
  private readonly callSeconds = new GrowableColumn(Float64Array);
  private readonly callTime = new GrowableColumn(Float64Array);
  private readonly callGapSeconds = new GrowableColumn(Float64Array);
  private readonly callNumber = new GrowableColumn(Uint32Array);
  private readonly callMain = new GrowableColumn(Uint8Array);
  private anySeconds = false;
  private anyArrival = false;

  constructor(
    private readonly blockTokens: number,
    private readonly classNames: readonly string[],
    private readonly graphs: readonly AgentGraph[] = [],
  ) {}

  /** Calls so far: the number that the next call gets. */
  get calls(): number {
    return this.callThread.length;
  }

  beginTask(task: TaskFields): void {
    this.taskFirstCall.push(this.calls);
    this.taskNames.push(task.name);
    this.taskTenant.push(task.tenant);
    this.taskClass.push(task.taskClass);
    this.taskExpected.push(Math.round(task.expectedSeconds * 1e6));
    this.taskWeight.push(task.weight);
    this.taskArrival.push(task.arrival);
    this.taskGraph.push(task.graph ?? noGraph);
    while (this.tenantWeight.length <= task.tenant) this.tenantWeight.push(Number.NaN); // not seen yet
    if (Number.isNaN(this.tenantWeight[task.tenant])) this.tenantWeight[task.tenant] = task.weight;
    if (!Number.isNaN(task.arrival)) this.anyArrival = true;
  }

  /** Adds a call to the current task and returns its number. */
  addCall(call: CallFields): number {
    const number = this.calls;
    this.callFirstPredecessor.push(this.predecessorCall.length);
    this.callFirstRun.push(this.runLength.length);
    this.callThread.push(call.thread);
    this.promptTokens.push(call.promptTokens);
    this.outputTokens.push(call.outputTokens);
    this.promptKind.push(call.promptKind);
    this.stopReason.push(call.stopReason);
    this.toolClass.push(call.toolClass);
    this.callSeconds.push(call.seconds);
    this.callTime.push(call.time);
    this.callGapSeconds.push(call.gapSeconds);
    this.callNumber.push(call.number);
    this.callMain.push(call.main ? 1 : 0);
    if (!Number.isNaN(call.seconds)) this.anySeconds = true;
    return number;
  }

  /** A predecessor of the newest call; the gap is in seconds. */
  addPredecessor(call: number, gapSeconds: number): void {
    this.predecessorCall.push(call);
    this.predecessorGap.push(Math.round(gapSeconds * 1e6));
  }

  /** Blocks of the newest call: ids `firstId` to `firstId + length - 1`, behind those already added. */
  addRun(firstId: number, length: number): void {
    const last = this.runLength.length - 1;
    const fresh = last < this.callFirstRun.at(this.calls - 1);
    if (!fresh && this.runFirstId.at(last) + this.runLength.at(last) === firstId) {
      this.runLength.replaceLast(this.runLength.at(last) + length);
      return;
    }
    this.runFirstId.push(firstId);
    this.runLength.push(length);
  }

  /** The finished workload. Fails with `SAGA_ERR_TRACE_EMPTY` when there is no call. */
  finish(): WorkloadColumns {
    if (this.calls === 0)
      throw new SagaError('SAGA_ERR_TRACE_EMPTY', 'expected at least one request in the workload, found none');
    this.taskFirstCall.push(this.calls);
    this.callFirstPredecessor.push(this.predecessorCall.length);
    this.callFirstRun.push(this.runLength.length);
    return {
      blockTokens: this.blockTokens,
      taskTenant: this.taskTenant.finish(),
      taskExpected: this.taskExpected.finish(),
      taskFirstCall: this.taskFirstCall.finish(),
      callThread: this.callThread.finish(),
      promptTokens: this.promptTokens.finish(),
      outputTokens: this.outputTokens.finish(),
      promptKind: this.promptKind.finish(),
      stopReason: this.stopReason.finish(),
      toolClass: this.toolClass.finish(),
      callFirstPredecessor: this.callFirstPredecessor.finish(),
      predecessorCall: this.predecessorCall.finish(),
      predecessorGap: this.predecessorGap.finish(),
      callFirstRun: this.callFirstRun.finish(),
      runFirstId: this.runFirstId.finish(),
      runLength: this.runLength.finish(),
      graphs: this.graphs,
      taskGraph: this.taskGraph.finish(),
      tenantWeight: Float64Array.from(this.tenantWeight, (weight) => (Number.isNaN(weight) ? 1 : weight)),
      taskNames: this.taskNames,
      classNames: this.classNames,
      taskClass: this.taskClass.finish(),
      taskWeight: this.taskWeight.finish(),
      taskArrival: this.anyArrival ? this.taskArrival.finish() : undefined,
      callSeconds: this.anySeconds ? this.callSeconds.finish() : undefined,
      callTime: this.callTime.finish(),
      callGapSeconds: this.callGapSeconds.finish(),
      callNumber: this.callNumber.finish(),
      callMain: this.callMain.finish(),
    };
  }
}

/** The first tasks of a workload, as views into its columns: nothing is copied but the offsets. */
export function firstTasks(columns: WorkloadColumns, tasks: number): WorkloadColumns {
  if (tasks >= taskCount(columns)) return columns;
  const calls = columns.taskFirstCall[tasks] as number;
  const predecessors = columns.callFirstPredecessor[calls] as number;
  const runs = columns.callFirstRun[calls] as number;
  return {
    blockTokens: columns.blockTokens,
    taskTenant: columns.taskTenant.subarray(0, tasks),
    taskExpected: columns.taskExpected.subarray(0, tasks),
    taskFirstCall: columns.taskFirstCall.subarray(0, tasks + 1),
    callThread: columns.callThread.subarray(0, calls),
    promptTokens: columns.promptTokens.subarray(0, calls),
    outputTokens: columns.outputTokens.subarray(0, calls),
    promptKind: columns.promptKind.subarray(0, calls),
    stopReason: columns.stopReason.subarray(0, calls),
    toolClass: columns.toolClass.subarray(0, calls),
    callFirstPredecessor: columns.callFirstPredecessor.subarray(0, calls + 1),
    predecessorCall: columns.predecessorCall.subarray(0, predecessors),
    predecessorGap: columns.predecessorGap.subarray(0, predecessors),
    callFirstRun: columns.callFirstRun.subarray(0, calls + 1),
    runFirstId: columns.runFirstId.subarray(0, runs),
    runLength: columns.runLength.subarray(0, runs),
    graphs: columns.graphs,
    taskGraph: columns.taskGraph.subarray(0, tasks),
    tenantWeight: columns.tenantWeight,
    taskNames: columns.taskNames.slice(0, tasks),
    classNames: columns.classNames,
    taskClass: columns.taskClass.subarray(0, tasks),
    taskWeight: columns.taskWeight.subarray(0, tasks),
    taskArrival: columns.taskArrival?.subarray(0, tasks),
    callSeconds: columns.callSeconds?.subarray(0, calls),
    callTime: columns.callTime.subarray(0, calls),
    callGapSeconds: columns.callGapSeconds.subarray(0, calls),
    callNumber: columns.callNumber.subarray(0, calls),
    callMain: columns.callMain.subarray(0, calls),
  };
}

/**
 * A workload of the tasks for which `keep` says so, in the same order, each with its first `mostCalls` calls; threads are numbered
 * anew. The workload itself where all are kept as they are, undefined where none is.
 */
export function selectTasks(
  columns: WorkloadColumns,
  keep: (task: number) => boolean,
  mostCalls = Infinity,
): WorkloadColumns | undefined {
  const kept: number[] = [];
  for (let task = 0; task < taskCount(columns); ++task) if (keep(task)) kept.push(task);
  if (kept.length === taskCount(columns) && mostCalls === Infinity) return columns;
  if (kept.length === 0) return undefined;
  const builder = new WorkloadBuilder(columns.blockTokens, columns.classNames, columns.graphs);
  const threads = new Map<number, number>();
  for (const task of kept) {
    builder.beginTask({
      name: columns.taskNames[task] as string,
      tenant: columns.taskTenant[task] as number,
      taskClass: columns.taskClass[task] as number,
      expectedSeconds: (columns.taskExpected[task] as number) / 1e6,
      weight: columns.taskWeight[task] as number,
      arrival: columns.taskArrival?.[task] ?? Number.NaN,
      graph: columns.taskGraph[task] as number,
    });
    const first = columns.taskFirstCall[task] as number;
    const shift = builder.calls - first;
    const end = Math.min(columns.taskFirstCall[task + 1] as number, first + mostCalls);
    for (let call = first; call < end; ++call) {
      const thread = columns.callThread[call] as number;
      if (!threads.has(thread)) threads.set(thread, threads.size);
      builder.addCall({
        thread: threads.get(thread) as number,
        promptTokens: columns.promptTokens[call] as number,
        outputTokens: columns.outputTokens[call] as number,
        promptKind: columns.promptKind[call] as number,
        stopReason: columns.stopReason[call] as number,
        toolClass: columns.toolClass[call] as number,
        seconds: columns.callSeconds?.[call] ?? Number.NaN,
        time: columns.callTime[call] as number,
        gapSeconds: columns.callGapSeconds[call] as number,
        number: columns.callNumber[call] as number,
        main: columns.callMain[call] === 1,
      });
      const lastPredecessor = columns.callFirstPredecessor[call + 1] as number;
      for (let at = columns.callFirstPredecessor[call] as number; at < lastPredecessor; ++at) {
        builder.addPredecessor(
          (columns.predecessorCall[at] as number) + shift,
          (columns.predecessorGap[at] as number) / 1e6,
        );
      }
      const lastRun = columns.callFirstRun[call + 1] as number;
      for (let run = columns.callFirstRun[call] as number; run < lastRun; ++run) {
        builder.addRun(columns.runFirstId[run] as number, columns.runLength[run] as number);
      }
    }
  }
  return builder.finish();
}
