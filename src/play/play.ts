/**
 * Plays a workload against a server that speaks OpenAI's completions API: a gateway, vLLM, an emulated worker.
 *
 * A task is what an agent's client does: it sends a call, waits for the whole answer, waits for the tool (the gap), sends the next one, whose
 * prompt is longer. A call with several predecessors waits for the last of them. Prompts are token ids ({@link WorkloadContent}), so
 * nobody tokenises; who the call belongs to stands in the headers that SAGA knows.
 *
 * With a `timeScale` of s a second of the workload takes 1/s seconds: gaps and arrivals are divided by it, and every time in the result is
 * multiplied by it. The workers have to be as much faster. What the machine itself takes (HTTP, scheduling, this client) is multiplied
 * with the rest; `lateness` says how late calls were sent, which is the part that is seen from here.
 *
 * An error of a call ends its task, which is then counted as failed: nothing is tried twice.
 *
 * Costs: about 0.2 ms of CPU a call of 10,000 tokens, more for streams (every event is looked at). Prompts exist while they are sent.
 */
import { setMaxListeners } from 'node:events';
import { Agent, type Dispatcher } from 'undici';
import { checkInteger, checkOptions, checkText, describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';
import { callCount, stopReasonNumber, taskCount, toolClassNumber, type WorkloadColumns } from '../workload/columns.js';
import { toolClasses } from '../graph/tool-class.js';
import { poissonArrivals } from './arrivals.js';
import { CompletionReader } from './completion-reader.js';
import { WorkloadContent, type TokenRange } from './content.js';

/** When tasks begin; times in seconds of the workload. */
export type Arrivals =
  /** Open loop, at random. The pattern is the simulator's for the same seed. */
  | { readonly tasksPerSecond: number }
  /** Closed loop: so many tasks live at one time. */
  | { readonly live: number }
  /** Each task at its time. */
  | { readonly seconds: ArrayLike<number> };

/** What clients say about their calls in headers, besides the prompt. */
export interface PlayHeaders {
  /** `X-SAGA-Session-ID` (and the parent's for agents of a task with several). Default true. */
  session?: boolean;
  /**
   * `X-SAGA-Next-Tool`: which tool the answer calls. Answers to prompts of token ids are text, so this stands for what a chat's answer would
   * show. Default true.
   */
  tool?: boolean;
  /** `X-SAGA-Session-Final` with the last call of an agent. Default true. */
  final?: boolean;
}

export interface PlayOptions {
  /** For example `http://127.0.0.1:8080`; `/v1/completions` is added. */
  url: string;
  model: string;
  tasks: WorkloadColumns;
  /** Seconds are so many times shorter. Default 1. */
  timeScale?: number;
  arrivals: Arrivals;
  /** Of arrivals. Default 42. */
  seed?: number;
  /** Of the tokens that prompts are made of: another seed gives the same tasks with words that no worker has seen. Default: `seed`. */
  contentSeed?: number;
  apiKey?: string;
  /** Whether answers are streamed: then there are times to first tokens, and more work for everybody. Default true. */
  stream?: boolean;
  /**
   * Whether each request says what is to be answered (`vllm_xargs.saga_script`, for emulated workers and servers with a made-up model):
   * the words that the next prompt has there. Otherwise the next prompt does not have what the worker answered, and it is computed again.
   * Default true.
   */
  script?: boolean;
  headers?: PlayHeaders;
  /** Token ids that prompts are made of. Default 256 to 32,000. */
  tokenRange?: TokenRange;
  /** Begins the names of sessions. Default `play`. */
  sessionPrefix?: string;
  /** Called after every change, at most once a turn of the event loop for each: draw less often than that. */
  onProgress?: (progress: PlayProgress) => void;
  /** Breaks off: calls are cancelled, and the promise is rejected with the signal's reason. */
  signal?: AbortSignal;
}

export interface PlayProgress {
  /** Of the workload, since the beginning. */
  seconds: number;
  tasks: number;
  arrivedTasks: number;
  completedTasks: number;
  failedTasks: number;
  callsSent: number;
  callsEnded: number;
  /** Of ended calls. */
  promptTokens: number;
  cachedTokens: number;
  recomputedTokens: number;
  outputTokens: number;
}

/** A call; times in seconds of the workload since the beginning. */
export interface PlayedCall {
  task: number;
  /** In the workload's columns. */
  call: number;
  /** When its gap was over; it was sent {@link lateSeconds} later. */
  dueAt: number;
  lateSeconds: number;
  /** First byte of the answer, of a stream. */
  firstByteAt: number | undefined;
  endedAt: number;
  promptTokens: number;
  outputTokens: number;
  /** As the worker reports; undefined where it does not. */
  cachedTokens: number | undefined;
  /**
   * Tokens at the front of the prompt that a worker had computed for the call that this one continues, and that were not cached: they were computed
   * again. Whole blocks of the workload; with `script` those of the answer count, too.
   */
  recomputedTokens: number;
  /** Of the answer; 0 where there was none. */
  status: number;
  /** What went wrong. */
  error: string | undefined;
  /** `X-SAGA-Call`, to ask a gateway why. */
  name: string | undefined;
}

/** A task; times in seconds of the workload. */
export interface PlayedTask {
  arrivedAt: number;
  /** From its arrival to its last answer; NaN where it failed. */
  completionSeconds: number;
  /** The same without the gaps on its critical path, as the simulator defines them. */
  withoutGapsSeconds: number;
  /** Why it failed. */
  error: string | undefined;
}

export interface Distribution {
  mean: number;
  p50: number;
  p95: number;
  p99: number;
  max: number;
}

export interface PlayResult {
  tasks: PlayedTask[];
  /** In the order in which they ended. */
  calls: PlayedCall[];
  /** From the beginning to the last answer, in seconds of the workload. */
  seconds: number;
  completedTasks: number;
  failedTasks: number;
  /** Over tasks that were completed, nearest rank. */
  completion: Distribution;
  withoutGaps: Distribution;
  /** Over calls that were answered. */
  latency: Distribution;
  /** Of streams. */
  firstByte: Distribution;
  promptTokens: number;
  /** Of them, those that workers report as cached. */
  cachedTokens: number;
  /** Of prompts: computed although a worker had computed them before; see {@link PlayedCall}. */
  recomputedTokens: number;
  outputTokens: number;
  /** Seconds of the workload between the moment when a call should have been sent and when it was. */
  lateness: Distribution;
}

/**
 * Plays every task to its end.
 *
 * @throws SagaArgumentError for options that cannot be; the signal's reason
 */
export async function playTasks(options: PlayOptions): Promise<PlayResult> {
  const player = new Player(options);
  try {
    return await player.run();
  } finally {
    await player.close();
  }
}

/** Nearest rank; all NaN of nothing. */
export function distributionOf(values: readonly number[]): Distribution {
  if (values.length === 0) return { mean: NaN, p50: NaN, p95: NaN, p99: NaN, max: NaN };
  const sorted = Float64Array.from(values).sort();
  const rank = (share: number): number => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] as number;
  return {
    mean: values.reduce((sum, value) => sum + value, 0) / values.length,
    p50: rank(0.5),
    p95: rank(0.95),
    p99: rank(0.99),
    max: rank(1),
  };
}

/** Of one call while the workload is played. */
interface Waiting {
  predecessorsLeft: number;
  /** Latest answer and gap, in milliseconds of this machine. */
  readyAt: number;
  /** Whose that was. */
  critical: number;
  /** Seconds of gaps on the way here. */
  gaps: number;
}

const mostTimeoutMs = 2 ** 31 - 1;
const comma = Buffer.from(',');
const closing = Buffer.from(']}');

class Player {
  readonly #columns: WorkloadColumns;
  readonly #content: WorkloadContent;
  readonly #options: PlayOptions;
  readonly #agent: Agent;
  readonly #origin: string;
  readonly #path: string;
  readonly #scale: number;
  readonly #stream: boolean;
  readonly #script: boolean;
  readonly #names: Required<PlayHeaders>;
  readonly #prefix: string;
  readonly #successors: Successors;
  readonly #waiting: Waiting[];
  readonly #callsLeft: Uint32Array;
  /** Per call 1: the last of its thread. */
  readonly #last: Uint8Array;
  readonly #threads: Uint32Array;
  readonly #tasks: PlayedTask[] = [];
  readonly #calls: PlayedCall[] = [];
  readonly #timers = new Set<NodeJS.Timeout>();
  /** The prompts of calls that others continue, as JSON: most of the next one. */
  readonly #texts = new Map<number, Buffer>();
  readonly #progress: PlayProgress;
  readonly #stop = new AbortController();
  #begun = 0;
  #nextTask = 0;
  #done: () => void = () => undefined;
  #failed: (error: unknown) => void = () => undefined;

  constructor(options: PlayOptions) {
    checkOptions(options);
    checkText('model', options.model, 1024);
    this.#options = options;
    this.#columns = options.tasks;
    this.#scale = options.timeScale ?? 1;
    if (!(this.#scale > 0 && Number.isFinite(this.#scale)))
      throw new SagaArgumentError(`timeScale must be a number above 0, got ${describe(this.#scale)}`);
    const seed = checkInteger('seed', options.seed ?? 42, 0, Number.MAX_SAFE_INTEGER);
    const { low, high } = options.tokenRange ?? { low: 256, high: 32_000 };
    checkInteger('tokenRange.low', low, 0, 2 ** 31);
    checkInteger('tokenRange.high', high, low + 2, 2 ** 31);
    const contentSeed = checkInteger('contentSeed', options.contentSeed ?? seed, 0, Number.MAX_SAFE_INTEGER);
    this.#content = new WorkloadContent(this.#columns, contentSeed, { low, high });
    const url = new URL(options.url);
    // Every call listens.
    setMaxListeners(0, this.#stop.signal);
    this.#origin = url.origin;
    this.#path = `${url.pathname.replace(/\/$/, '')}/v1/completions`;
    this.#stream = options.stream ?? true;
    this.#script = options.script ?? true;
    this.#names = { session: true, tool: true, final: true, ...options.headers };
    this.#prefix = options.sessionPrefix ?? 'play';
    // A call may wait long for its worker, and for its first byte.
    this.#agent = new Agent({ headersTimeout: 0, bodyTimeout: 0, connect: { timeout: 30_000 } });
    this.#successors = new Successors(this.#columns);
    const { callFirstPredecessor, taskFirstCall, callThread } = this.#columns;
    this.#waiting = Array.from({ length: callCount(this.#columns) }, (_, call) => ({
      predecessorsLeft: (callFirstPredecessor[call + 1] as number) - (callFirstPredecessor[call] as number),
      readyAt: 0,
      critical: -1,
      gaps: 0,
    }));
    const tasks = taskCount(this.#columns);
    this.#callsLeft = Uint32Array.from(
      { length: tasks },
      (_, task) => (taskFirstCall[task + 1] as number) - (taskFirstCall[task] as number),
    );
    this.#last = new Uint8Array(this.#waiting.length);
    this.#threads = new Uint32Array(tasks);
    for (let task = 0; task < tasks; ++task) {
      const latest = new Map<number, number>();
      for (let call = taskFirstCall[task] as number; call < (taskFirstCall[task + 1] as number); ++call)
        latest.set(callThread[call] as number, call);
      for (const call of latest.values()) this.#last[call] = 1;
      this.#threads[task] = latest.size;
    }
    this.#progress = noProgress(tasks);
  }

  async close(): Promise<void> {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    await this.#agent.destroy();
  }

  async run(): Promise<PlayResult> {
    const { signal, arrivals, seed } = this.#options;
    signal?.throwIfAborted();
    const tasks = taskCount(this.#columns);
    const ended = new Promise<void>((resolve, reject) => {
      this.#done = resolve;
      this.#failed = reject;
    });
    const onAbort = (): void => {
      this.#stop.abort(signal?.reason);
      this.#failed(signal?.reason);
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      this.#begun = performance.now();
      if ('live' in arrivals) {
        checkInteger('arrivals.live', arrivals.live, 1, 2 ** 20);
        this.#nextTask = Math.min(arrivals.live, tasks);
        for (let task = 0; task < this.#nextTask; ++task) this.#arrive(task, 0);
      } else {
        const seconds =
          'seconds' in arrivals ? arrivals.seconds : poissonArrivals(tasks, arrivals.tasksPerSecond, seed ?? 42);
        if (seconds.length < tasks)
          throw new SagaArgumentError(`arrivals.seconds must have ${tasks} numbers, got ${seconds.length}`);
        this.#nextTask = tasks;
        for (let task = 0; task < tasks; ++task) this.#arrive(task, ((seconds[task] as number) * 1000) / this.#scale);
      }
      await ended;
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
    return this.#result();
  }

  /** Milliseconds since the beginning. */
  #now(): number {
    return performance.now() - this.#begun;
  }

  #seconds(milliseconds: number): number {
    return (milliseconds * this.#scale) / 1000;
  }

  #at(due: number, action: () => void): void {
    const wait = due - this.#now();
    if (wait <= 0) {
      action();
      return;
    }
    const timer = setTimeout(
      () => {
        this.#timers.delete(timer);
        this.#at(due, action);
      },
      // Whole milliseconds are all that a timer knows, and it is never early.
      Math.min(Math.max(1, Math.floor(wait)), mostTimeoutMs),
    );
    this.#timers.add(timer);
  }

  #arrive(task: number, due: number): void {
    this.#tasks[task] = {
      arrivedAt: this.#seconds(due),
      completionSeconds: NaN,
      withoutGapsSeconds: NaN,
      error: undefined,
    };
    this.#at(due, () => {
      this.#progress.arrivedTasks += 1;
      const { taskFirstCall } = this.#columns;
      for (let call = taskFirstCall[task] as number; call < (taskFirstCall[task + 1] as number); ++call)
        if ((this.#waiting[call] as Waiting).predecessorsLeft === 0) void this.#call(task, call, due);
    });
  }

  async #call(task: number, call: number, due: number): Promise<void> {
    const played: PlayedCall = {
      task,
      call,
      dueAt: this.#seconds(due),
      lateSeconds: 0,
      firstByteAt: undefined,
      endedAt: 0,
      promptTokens: this.#columns.promptTokens[call] as number,
      outputTokens: 0,
      cachedTokens: undefined,
      recomputedTokens: 0,
      status: 0,
      error: undefined,
      name: undefined,
    };
    this.#progress.callsSent += 1;
    try {
      await this.#exchange(played, due);
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      played.error = error instanceof Error ? error.message : String(error);
    }
    const now = this.#now();
    played.endedAt = this.#seconds(now);
    this.#calls.push(played);
    this.#ended(played, now);
  }

  async #exchange(played: PlayedCall, due: number): Promise<void> {
    const body = this.#body(played.call);
    played.lateSeconds = this.#seconds(Math.max(0, this.#now() - due));
    const response: Dispatcher.ResponseData = await this.#agent.request({
      origin: this.#origin,
      path: this.#path,
      method: 'POST',
      headers: this.#headers(played.task, played.call),
      body,
      signal: this.#stop.signal,
    });
    played.status = response.statusCode;
    const name = response.headers['x-saga-call'];
    if (typeof name === 'string') played.name = name;
    const reader = new CompletionReader(this.#stream && response.statusCode === 200);
    for await (const chunk of response.body as AsyncIterable<Buffer>) {
      if (this.#stream) played.firstByteAt ??= this.#seconds(this.#now());
      reader.push(chunk);
    }
    const answer = reader.end();
    played.error = response.statusCode === 200 ? answer.error : (answer.error ?? `status ${response.statusCode}`);
    played.promptTokens = answer.promptTokens ?? played.promptTokens;
    played.outputTokens = answer.outputTokens ?? 0;
    played.cachedTokens = answer.cachedTokens;
    if (answer.cachedTokens !== undefined)
      played.recomputedTokens = Math.max(0, this.#computedBefore(played.call) - answer.cachedTokens);
    const wanted = this.#columns.outputTokens[played.call] as number;
    if (played.error === undefined && answer.outputTokens !== undefined && answer.outputTokens !== wanted)
      played.error = `${answer.outputTokens} tokens were answered where ${wanted} were asked for`;
  }

  /** Leading tokens of the prompt, in whole blocks, that were computed for the call before. */
  #computedBefore(call: number): number {
    const before = this.#content.previous(call);
    if (before === undefined) return 0;
    const { promptTokens, outputTokens, blockTokens } = this.#columns;
    // Nobody computes the last token of an answer, and the last one of a prompt is computed in any case.
    const known = (promptTokens[before] as number) + (this.#script ? (outputTokens[before] as number) - 1 : 0);
    const usable = Math.min(known, (promptTokens[call] as number) - 1);
    return usable - (usable % blockTokens);
  }

  #body(call: number): Buffer {
    const head = {
      model: this.#options.model,
      max_tokens: this.#columns.outputTokens[call],
      ignore_eos: true,
      temperature: 0,
      ...(this.#stream ? { stream: true, stream_options: { include_usage: true } } : {}),
      // As text: not every release takes lists there.
      ...(this.#script ? { vllm_xargs: { saga_script: this.#content.answer(call).join(',') } } : {}),
    };
    const before = this.#content.previous(call);
    const known = before === undefined ? undefined : this.#texts.get(before);
    const from = known === undefined ? 0 : (this.#columns.promptTokens[before as number] as number);
    const text = Buffer.from(this.#content.prompt(call, from).join(','), 'latin1');
    const prompt = known === undefined ? text : Buffer.concat([known, comma, text]);
    if (before !== undefined) this.#texts.delete(before);
    if (this.#content.continued(call)) this.#texts.set(call, prompt);
    return Buffer.concat([Buffer.from(`${JSON.stringify(head).slice(0, -1)},"prompt":[`), prompt, closing]);
  }

  #headers(task: number, call: number): Record<string, string> {
    const headers: Record<string, string> = { 'content-type': 'application/json' };
    const { apiKey } = this.#options;
    if (apiKey !== undefined) headers['authorization'] = `Bearer ${apiKey}`;
    const { callThread, callMain, toolClass, stopReason } = this.#columns;
    if (this.#names.session) {
      const session = `${this.#prefix}-${task}`;
      if ((this.#threads[task] as number) > 1 && callMain[call] === 0) {
        headers['x-saga-session-id'] = `${session}-${callThread[call] as number}`;
        headers['x-saga-parent-session-id'] = session;
      } else headers['x-saga-session-id'] = session;
    }
    const last = this.#last[call] === 1;
    if (this.#names.final && last) headers['x-saga-session-final'] = 'true';
    if (this.#names.tool && !last && stopReason[call] === stopReasonNumber.toolUse) {
      // A trace says that a tool was called, and not which.
      const tool = toolClass[call] as number;
      headers['x-saga-next-tool'] = tool === toolClassNumber.none ? 'tool' : (toolClasses[tool] as string);
    }
    return headers;
  }

  #ended(played: PlayedCall, now: number): void {
    const progress = this.#progress;
    progress.callsEnded += 1;
    const task = this.#tasks[played.task] as PlayedTask;
    if (played.error === undefined) {
      progress.promptTokens += played.promptTokens;
      progress.cachedTokens += played.cachedTokens ?? 0;
      progress.recomputedTokens += played.recomputedTokens;
      progress.outputTokens += played.outputTokens;
      const own = this.#waiting[played.call] as Waiting;
      for (const { call: next, gap } of this.#successors.of(played.call)) {
        const waiting = this.#waiting[next] as Waiting;
        const ready = now + gap / (1000 * this.#scale);
        if (waiting.critical < 0 || ready > waiting.readyAt) {
          waiting.readyAt = ready;
          waiting.critical = played.call;
          waiting.gaps = own.gaps + gap / 1e6;
        }
        if (--waiting.predecessorsLeft > 0) continue;
        this.#at(waiting.readyAt, () => {
          if (task.error === undefined) void this.#call(played.task, next, waiting.readyAt);
        });
      }
      const left = ((this.#callsLeft[played.task] as number) -= 1);
      if (left === 0) {
        task.completionSeconds = played.endedAt - task.arrivedAt;
        task.withoutGapsSeconds = task.completionSeconds - own.gaps;
        progress.completedTasks += 1;
        this.#taskEnded(now);
      }
    } else if (task.error === undefined) {
      task.error = played.error;
      progress.failedTasks += 1;
      this.#taskEnded(now);
    }
    progress.seconds = this.#seconds(now);
    try {
      this.#options.onProgress?.(progress);
    } catch (error) {
      this.#failed(error);
    }
  }

  #taskEnded(now: number): void {
    const { tasks, completedTasks, failedTasks } = this.#progress;
    if (this.#nextTask < tasks) this.#arrive(this.#nextTask++, now);
    if (completedTasks + failedTasks === tasks) this.#done();
  }

  #result(): PlayResult {
    const calls = this.#calls;
    const tasks = this.#tasks;
    const answered = calls.filter(({ error }) => error === undefined);
    const completed = tasks.filter(({ error }) => error === undefined);
    const sum = (of: (call: PlayedCall) => number): number => answered.reduce((total, call) => total + of(call), 0);
    return {
      tasks,
      calls,
      seconds: calls.reduce((latest, { endedAt }) => Math.max(latest, endedAt), 0),
      completedTasks: completed.length,
      failedTasks: tasks.length - completed.length,
      completion: distributionOf(completed.map(({ completionSeconds }) => completionSeconds)),
      withoutGaps: distributionOf(completed.map(({ withoutGapsSeconds }) => withoutGapsSeconds)),
      latency: distributionOf(answered.map(({ dueAt, endedAt }) => endedAt - dueAt)),
      firstByte: distributionOf(
        answered.flatMap(({ dueAt, firstByteAt }) => (firstByteAt === undefined ? [] : [firstByteAt - dueAt])),
      ),
      promptTokens: sum(({ promptTokens }) => promptTokens),
      cachedTokens: sum(({ cachedTokens }) => cachedTokens ?? 0),
      recomputedTokens: sum(({ recomputedTokens }) => recomputedTokens),
      outputTokens: sum(({ outputTokens }) => outputTokens),
      lateness: distributionOf(calls.map(({ lateSeconds }) => lateSeconds)),
    };
  }
}

/** Which calls wait for a call, and how long after its answer; microseconds of the workload. */
class Successors {
  readonly #first: Uint32Array;
  readonly #call: Uint32Array;
  readonly #gap: Float64Array;

  constructor({ promptTokens, callFirstPredecessor, predecessorCall, predecessorGap }: WorkloadColumns) {
    const calls = promptTokens.length;
    this.#first = new Uint32Array(calls + 1);
    for (const call of predecessorCall) this.#first[call + 1] = (this.#first[call + 1] as number) + 1;
    for (let call = 0; call < calls; ++call)
      this.#first[call + 1] = (this.#first[call + 1] as number) + (this.#first[call] as number);
    const at = this.#first.slice();
    this.#call = new Uint32Array(predecessorCall.length);
    this.#gap = new Float64Array(predecessorCall.length);
    for (let call = 0; call < calls; ++call)
      for (let i = callFirstPredecessor[call] as number; i < (callFirstPredecessor[call + 1] as number); ++i) {
        const before = predecessorCall[i] as number;
        const place = (at[before] as number)++;
        this.#call[place] = call;
        this.#gap[place] = predecessorGap[i] as number;
      }
  }

  *of(call: number): Generator<{ call: number; gap: number }> {
    for (let i = this.#first[call] as number; i < (this.#first[call + 1] as number); ++i)
      yield { call: this.#call[i] as number, gap: this.#gap[i] as number };
  }
}

/** Of a workload that has not begun. */
export function noProgress(tasks: number): PlayProgress {
  return {
    seconds: 0,
    tasks,
    arrivedTasks: 0,
    completedTasks: 0,
    failedTasks: 0,
    callsSent: 0,
    callsEnded: 0,
    promptTokens: 0,
    cachedTokens: 0,
    recomputedTokens: 0,
    outputTokens: 0,
  };
}
