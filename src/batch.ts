/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Batch formation: which calls make up the next step of an inference server that lets SAGA own its KV pages.
 *
 * Everything is synchronous. A batch is written to typed arrays that are made once; no JavaScript object is made per call or
 * per step. Ids of calls are small integers, so a server keeps what it knows of a call in an array by its id.
 */
import native from './native.cjs';
import { checkInteger, checkOneOf, describe } from './check.js';
import { SagaArgumentError, SagaStateError, errorOfStatus } from './errors.js';
import { PageTable, checkThread, outcomeNumbers, type CallOutcome } from './page-table.js';
import type { At, Tier } from './scheduler.js';
import { promptKinds, type PromptKind } from './scheduler/vocabulary.js';

const orders = ['fcfs', 'priority', 'bfs', 'dfs', 'hybrid', 'saga'] as const;
const preemptions = ['recompute', 'swap'] as const;
const tiers = ['gpu', 'host', 'disk'] as const satisfies readonly Tier[];
const states = ['waiting', 'running', 'swapped'] as const;

/**
 * Which waiting call goes first, and which running call is preempted first:
 *
 * - `fcfs`: who came first; a preempted call returns to the front. Preempted: who was admitted last. vLLM's rule
 * - `priority`: the smallest priority number. Preempted: the largest, newest of equals. vLLM's rule
 * - `bfs`: the oldest entry (the next call of a workflow enters behind the others). Preempted: the newest
 * - `dfs`: the newest entry (stays with the workflow that came last). Preempted: the oldest
 * - `hybrid`: the highest urgency. Preempted: the lowest, newest of equals
 * - `saga`: the fewest tokens to prefill per urgency, so what is resident goes first. Preempted: the lowest urgency, then the
 *   fewest computed tokens
 */
export type BatchOrder = (typeof orders)[number];

/** What becomes of the blocks of a preempted call: given back, or copied to the host tier and back. */
export type PreemptionMode = (typeof preemptions)[number];

/** All bounds are fixed at construction; memory is allocated then. */
export interface BatchFormerOptions {
  /** Most calls at one time, waiting and running, 1 to 2^20. Default 1,024. Times `maxBlocksPerSequence` at most 2^28. */
  maxCalls?: number;
  /** Most calls running at one time, at most the sequences of the page table. Default: the smaller of 256 and those. */
  maxSequences?: number;
  /** Most tokens of a step, 1 to 2^24. Default 2,048. */
  tokenBudget?: number;
  /** Most tokens of one call in a step. Default 0: what the budget leaves. */
  maxPrefillChunk?: number;
  /** Most block copies of a step, at most 2^24. Default 0: nothing is swapped, and only prefixes on the GPU are hit. */
  maxCopies?: number;
  /** Default `saga`. */
  order?: BatchOrder;
  /** Default `recompute`. `swap` needs a host tier and {@link maxCopies}; what finds no room there is recomputed. */
  preemption?: PreemptionMode;
  /** Prefixes in slower tiers are not looked at; those below the GPU are copied up. Default `gpu`. */
  slowestHit?: Tier;
  /**
   * Whether a call waits, and lets others pass, while a running call computes a prefix that both share; so it is computed once.
   * Default `true`.
   */
  sessionAffinity?: boolean;
  /**
   * Whether a block is hit only after the step that computes it is complete. Default `false`: at once, which is right where
   * attention writes the keys and values of a step before it reads them.
   */
  hitAfterCompletion?: boolean;
  /**
   * `dfs`, `hybrid`, `saga`: a call that has waited so many microseconds goes before all that have not. Default 10,000,000;
   * `Infinity`: never.
   */
  starvationLimit?: number;
  /** Arrays of your own instead of new ones, e.g. over pinned memory: those that you name. */
  arrays?: Partial<BatchArrays>;
  /** The time in microseconds where no `now` is given. Default: a monotonic clock that starts at 0 with the former. */
  clock?: () => number;
}

/** What is submitted. */
export interface BatchCall {
  /** At least 1. */
  promptTokens: number;
  /** At least 1; with the last of them the call ends. */
  maxNewTokens: number;
  /** Hashes of the prompt's leading full blocks, at most `promptTokens / blockTokens`. Default: none, and nothing is hit. */
  hashes?: BigUint64Array;
  /** A number of your choice from 0 to 2^53 - 1. Default 0. */
  workflow?: number;
  /** A 32-bit integer; smaller goes first under `priority`. Default 0. */
  priority?: number;
  /** Larger goes first under `hybrid` and `saga`; at least 0, under `saga` above 0. Default 1. */
  urgency?: number;
  /** For a page table with `eviction: 'saga'`: the agent that calls, an integer from 0. Default: inferred from the hashes. */
  thread?: number;
  /** For a page table with `eviction: 'saga'`: what the prompt brings. Default `start`. */
  promptKind?: PromptKind;
}

/**
 * Where a batch is written. Element `i` of the arrays of a call belongs to call `i` of the batch. Their memory is written by
 * native code: never transfer their buffers to another thread (share them instead).
 */
export interface BatchArrays {
  /** Ids. `maxSequences` long, as the next four. */
  readonly calls: Uint32Array;
  /** Row in {@link blockTables}: the sequence in the page table, the same while the call runs. */
  readonly rows: Uint32Array;
  /** Position of the first token to compute. */
  readonly firstTokens: Uint32Array;
  /** Tokens to compute. */
  readonly tokenCounts: Uint32Array;
  /** Computed tokens after the step. */
  readonly sequenceLengths: Int32Array;
  /** First token of each call in the step; behind the last, their number. `maxSequences + 1` long. */
  readonly queryStarts: Int32Array;
  /** For each token of the step: `block * blockTokens + place in the block`. `tokenBudget` long. */
  readonly slotMapping: BigInt64Array;
  /**
   * `maxBlocksPerSequence` wide, a row for each sequence of the page table. A step writes only blocks that are new to a call;
   * {@link updates} says which.
   */
  readonly blockTables: Int32Array;
  /** Three words each: row, first block, number of blocks that were written. `3 * maxSequences` long. */
  readonly updates: Uint32Array;
  /**
   * Four words each: source tier and block, target tier and block (0 = GPU, 1 = host, 2 = disk). To be executed in this order,
   * before the step is computed. `4 * maxCopies` long.
   */
  readonly copies: Uint32Array;
  /** Ids of calls. `maxSequences` long. */
  readonly preempted: Uint32Array;
  /** You write, before {@link BatchFormer.complete}: tokens generated by each call of the batch. */
  readonly sampled: Uint32Array;
  /** You write: not 0 where a call ends. Is 0 everywhere after {@link BatchFormer.complete}. */
  readonly finished: Uint8Array;
}

/** Sizes of a batch. One object, whose values are those of the last {@link BatchFormer.form}. */
export interface Batch {
  readonly calls: number;
  /** The first of the calls: one token behind a computed context. The others prefill. */
  readonly decodeCalls: number;
  readonly tokens: number;
  /** The last of the calls began, or began again, with this step. */
  readonly admitted: number;
  readonly updates: number;
  readonly copies: number;
  readonly preempted: number;
}

export interface CallStatus {
  /** `swapped`: preempted, with its blocks in the host tier. */
  state: (typeof states)[number];
  /** Prompt and generated. */
  knownTokens: number;
  /** Kept in blocks; 0 while waiting. */
  computedTokens: number;
  /** Leading full blocks whose hash was given; {@link BatchFormer.addHashes} continues behind them. */
  hashes: number;
  /** Tokens of the prompt that were cached when the call was first admitted. */
  hitTokens: number;
  preemptions: number;
}

/** Present sizes, and totals since construction. */
export interface BatchFormerStats {
  /** Swapped ones too. */
  waitingCalls: number;
  swappedCalls: number;
  runningCalls: number;
  /** Whether a batch was formed and not completed. */
  inFlight: boolean;
  submittedTotal: number;
  finishedTotal: number;
  cancelledTotal: number;
  /** With at least one call. */
  stepsTotal: number;
  decodeTokensTotal: number;
  prefillTokensTotal: number;
  /** Of calls admitted, each once. */
  promptTokensTotal: number;
  /** Of these, not computed at the first admission. */
  hitTokensTotal: number;
  preemptedTotal: number;
  /** Of these, by swap. */
  swappedOutTotal: number;
  /** Computed tokens given up by preemption; some may be hit again. */
  recomputedTokensTotal: number;
  /** Times that a step held a call back for the prefix of another. */
  heldTotal: number;
  /** Without the page table. */
  memoryBytes: number;
}

const mostNumber = Number.MAX_SAFE_INTEGER;
const twoTo32 = 2 ** 32;
const statCount = 17;
const batchWords = 7;
const callWords = 6;

/**
 * Forms the batches of a server over one {@link PageTable}, whose sequences it owns until it is closed: the table's own methods
 * that open or change one throw `SAGA_ERR_WRONG_STATE` meanwhile.
 *
 * A step takes running calls first (decoding ones, then chunks of unfinished prompts), then waiting calls in the order chosen,
 * while token budget, seats and blocks last. Where blocks run out, the running call that is last in the order is preempted.
 *
 * Every method throws `SagaArgumentError` for an argument outside its range, and `SagaStateError`: `SAGA_ERR_NOT_FOUND` for a
 * call that is not open, `SAGA_ERR_TIME_REVERSED`, `SAGA_ERR_CLOSED` after {@link close}. A method that throws has changed
 * nothing.
 *
 * @example
 * ```ts
 * const table = new PageTable({ blocks: { gpu: 1000 } });
 * const former = new BatchFormer(table, { tokenBudget: 512 });
 * former.submit({ promptTokens: prompt.length, maxNewTokens: 2, hashes: hasher.reset().update(prompt) });
 * for (let batch = former.form(); batch.calls > 0; batch = former.form()) {
 *   const { calls, firstTokens, tokenCounts, sampled } = former.arrays;
 *   for (let i = 0; i < batch.calls; i++) {
 *     // ... compute tokens firstTokens[i] to firstTokens[i] + tokenCounts[i] of calls[i] ...
 *     const { knownTokens } = former.call(calls[i]!);
 *     sampled[i] = firstTokens[i]! + tokenCounts[i]! === knownTokens ? 1 : 0; // nothing before the prompt is computed
 *   }
 *   former.complete();
 * }
 * ```
 */
export class BatchFormer {
  readonly maxCalls: number;
  readonly maxSequences: number;
  readonly tokenBudget: number;
  readonly maxCopies: number;
  readonly order: BatchOrder;
  /** The page table that it works on. */
  readonly table: PageTable;
  readonly arrays: BatchArrays;
  readonly #native: native.BatchFormer;
  readonly #words = new Uint32Array(batchWords + callWords);
  readonly #stats = new Float64Array(statCount);
  readonly #batch: Batch;
  readonly #clock: () => number;
  readonly #noHashes = new BigUint64Array(0);
  #inFlight = 0;
  #closed = false;

  /**
   * @throws SagaArgumentError for an option outside its range
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` when the table has a former, `SAGA_ERR_CLOSED` when it was closed
   */
  constructor(table: PageTable, options: BatchFormerOptions = {}) {
    if (!(table instanceof PageTable)) throw new SagaArgumentError(`table must be a PageTable, got ${describe(table)}`);
    if (typeof options !== 'object' || options === null)
      throw new SagaArgumentError(`options must be an object, got ${describe(options)}`);
    const free = table.maxSequences - table.stats().openSequences;
    const width = table.maxBlocksPerSequence;
    this.table = table;
    this.maxCalls = checkInteger('maxCalls', options.maxCalls ?? 1024, 1, 2 ** 20);
    checkInteger('maxCalls * maxBlocksPerSequence', this.maxCalls * width, 1, 2 ** 28);
    this.maxSequences = checkInteger('maxSequences', options.maxSequences ?? Math.min(256, free), 1, free);
    this.tokenBudget = checkInteger('tokenBudget', options.tokenBudget ?? 2048, 1, 2 ** 24);
    this.maxCopies = checkInteger('maxCopies', options.maxCopies ?? 0, 0, 2 ** 24);
    this.order = options.order ?? 'saga';
    const order = checkOneOf('order', this.order, orders);
    const preemption = checkOneOf('preemption', options.preemption ?? 'recompute', preemptions);
    const slowestHit = checkOneOf('slowestHit', options.slowestHit ?? 'gpu', tiers);
    if (preemption === 1 && (this.maxCopies === 0 || table.stats().tiers.host.blocks === 0))
      throw new SagaArgumentError('preemption swap needs maxCopies and a page table with a host tier');
    if (slowestHit > 0 && this.maxCopies === 0)
      throw new SagaArgumentError(`slowestHit ${options.slowestHit} needs maxCopies`);
    const limit = options.starvationLimit ?? 10_000_000;
    const clock = options.clock;
    if (clock !== undefined && typeof clock !== 'function')
      throw new SagaArgumentError(`clock must be a function, got ${describe(clock)}`);
    const started = performance.now();
    this.#clock = clock ?? (() => (performance.now() - started) * 1000);
    const values = Float64Array.of(
      this.maxCalls,
      this.maxSequences,
      this.tokenBudget,
      checkInteger('maxPrefillChunk', options.maxPrefillChunk ?? 0, 0, this.tokenBudget),
      this.maxCopies,
      order,
      preemption,
      slowestHit,
      checkBoolean('sessionAffinity', options.sessionAffinity ?? true),
      checkBoolean('hitAfterCompletion', options.hitAfterCompletion ?? false),
      limit === Infinity ? -1 : checkInteger('starvationLimit', limit, 0, mostNumber),
      width,
    );
    const own: Partial<BatchArrays> = options.arrays ?? {};
    const calls = this.maxSequences;
    this.arrays = {
      calls: arrayOf('calls', Uint32Array, own.calls, calls),
      rows: arrayOf('rows', Uint32Array, own.rows, calls),
      firstTokens: arrayOf('firstTokens', Uint32Array, own.firstTokens, calls),
      tokenCounts: arrayOf('tokenCounts', Uint32Array, own.tokenCounts, calls),
      sequenceLengths: arrayOf('sequenceLengths', Int32Array, own.sequenceLengths, calls),
      queryStarts: arrayOf('queryStarts', Int32Array, own.queryStarts, calls + 1),
      slotMapping: arrayOf('slotMapping', BigInt64Array, own.slotMapping, this.tokenBudget),
      blockTables: arrayOf('blockTables', Int32Array, own.blockTables, table.maxSequences * width),
      updates: arrayOf('updates', Uint32Array, own.updates, 3 * calls),
      copies: arrayOf('copies', Uint32Array, own.copies, 4 * this.maxCopies),
      preempted: arrayOf('preempted', Uint32Array, own.preempted, calls),
      sampled: arrayOf('sampled', Uint32Array, own.sampled, calls),
      finished: arrayOf('finished', Uint8Array, own.finished, calls),
    };
    const made = table.createBatchFormer(values, [
      this.#words,
      this.#stats,
      ...(Object.values(this.arrays) as ArrayBufferView[]),
    ]);
    if (typeof made === 'number')
      throw errorOfStatus(-made, `the batch former could not be made: ${native.statusText(-made)}`);
    this.#native = made;
    this.#batch = viewOf(this.#words);
  }

  /**
   * A new waiting call.
   *
   * @returns its id, until it ends. The id freed last is given out next
   * @throws SagaArgumentError also where so many tokens could never run: the page table has too few blocks, or its sequences
   * are too short
   * @throws SagaCapacityError `SAGA_ERR_FULL` when `maxCalls` are here
   */
  submit(call: BatchCall, at: At = {}): number {
    this.#open();
    if (typeof call !== 'object' || call === null)
      throw new SagaArgumentError(
        `call must be an object such as { promptTokens: 8, maxNewTokens: 4 }, got ${describe(call)}`,
      );
    const prompt = checkInteger('promptTokens', call.promptTokens, 1, twoTo32 - 2);
    const hashes = call.hashes ?? this.#noHashes;
    checkHashes(hashes);
    const most = Math.floor(prompt / this.table.blockTokens);
    if (hashes.length > most)
      throw new SagaArgumentError(`hashes must be at most ${most} for ${prompt} tokens, got ${hashes.length}`);
    return this.#answer(
      this.#native.submit(
        this.#time(at),
        prompt,
        checkInteger('maxNewTokens', call.maxNewTokens, 1, twoTo32 - 2),
        checkInteger('priority', call.priority ?? 0, -(2 ** 31), 2 ** 31 - 1),
        checkInteger('workflow', call.workflow ?? 0, 0, mostNumber),
        this.#checkUrgency(call.urgency ?? 1),
        hashes,
        call.thread === undefined ? -1 : checkThread(call.thread),
        checkOneOf('promptKind', call.promptKind ?? 'start', promptKinds),
      ),
      () => `a call of ${prompt} prompt tokens and ${call.maxNewTokens} new ones`,
    );
  }

  /**
   * Hashes of the next full blocks of a call's prompt and answer, behind those given: so its answer can be hit by the next call
   * of its workflow. A block that is computed already is cached with the next one that is filled, or when the call ends.
   */
  addHashes(call: number, hashes: BigUint64Array): void {
    this.#open();
    checkHashes(hashes);
    this.#answer(this.#native.addHashes(checkId(call), hashes), () => `${hashes.length} more hashes for call ${call}`);
  }

  setPriority(call: number, priority: number): void {
    this.#open();
    const value = checkInteger('priority', priority, -(2 ** 31), 2 ** 31 - 1);
    this.#answer(this.#native.setPriority(checkId(call), value), () => `call ${call}`);
  }

  /**
   * The urgency of all calls of a workflow that are here now. O(maxCalls).
   *
   * @returns how many these are
   */
  setUrgency(workflow: number, urgency: number): number {
    this.#open();
    const id = checkInteger('workflow', workflow, 0, mostNumber);
    return this.#answer(this.#native.setUrgency(id, this.#checkUrgency(urgency)), () => `workflow ${workflow}`);
  }

  /**
   * For a page table with `eviction: 'saga'`: what is known so far of how the call ends. The last word before its end counts; what
   * turns out afterwards is for {@link PageTable.told}. Where `outputTokens` is 0 or not told, the former fills it in.
   */
  setOutcome(call: number, outcome: CallOutcome): void {
    this.#open();
    this.#answer(this.#native.setOutcome(checkId(call), ...outcomeNumbers(outcome)), () => `call ${call}`);
  }

  /** Ends a call; what it has computed stays cached. While a batch is in flight a running call ends with {@link complete}. */
  cancel(call: number): void {
    this.#open();
    this.#answer(this.#native.cancel(checkId(call)), () => `call ${call}`);
  }

  /**
   * Cancels all calls of a workflow.
   *
   * @returns how many there were
   */
  cancelWorkflow(workflow: number): number {
    this.#open();
    const id = checkInteger('workflow', workflow, 0, mostNumber);
    return this.#answer(this.#native.cancelWorkflow(id), () => `workflow ${workflow}`);
  }

  /** State and size of a call. */
  call(call: number): CallStatus {
    this.#open();
    this.#answer(this.#native.callStatus(checkId(call)), () => `call ${call}`);
    const [state = 0, knownTokens = 0, computedTokens = 0, hashes = 0, hitTokens = 0, preemptions = 0] =
      this.#words.subarray(batchWords);
    const name = states[state] as CallStatus['state'];
    return { state: name, knownTokens, computedTokens, hashes, hitTokens, preemptions };
  }

  /**
   * The next batch, written to {@link arrays}; without calls where nothing can run, and then there is nothing to complete (there
   * may be copies and preempted calls all the same).
   *
   * @returns its sizes: always the same object
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` when a batch is in flight
   */
  form(at: At = {}): Batch {
    this.#open();
    this.#inFlight = this.#answer(this.#native.form(this.#time(at)), () => 'the last batch must be completed first');
    return this.#batch;
  }

  /**
   * The batch was computed. What became of its calls is in `arrays.sampled` and `arrays.finished`. sampled: tokens generated; 0
   * exactly where known tokens are still to be computed (a call that ends may have sampled none); at most what `maxNewTokens`
   * leaves.
   *
   * @returns how many calls ended
   * @throws SagaArgumentError where `sampled` breaks these rules
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` when no batch is in flight
   */
  complete(): number {
    this.#open();
    const calls = this.#inFlight;
    const ended = this.#answer(
      this.#native.complete(calls),
      () => 'sampled must be 0 where a prompt is unfinished, else 1 or more and within maxNewTokens',
    );
    this.#inFlight = 0;
    this.arrays.finished.fill(0, 0, calls);
    return ended;
  }

  stats(): BatchFormerStats {
    this.#open();
    this.#answer(this.#native.stats(), () => 'stats');
    let next = 0;
    const read = (): number => this.#stats[next++] as number;
    return {
      waitingCalls: read(),
      swappedCalls: read(),
      runningCalls: read(),
      inFlight: read() === 1,
      submittedTotal: read(),
      finishedTotal: read(),
      cancelledTotal: read(),
      stepsTotal: read(),
      decodeTokensTotal: read(),
      prefillTokensTotal: read(),
      promptTokensTotal: read(),
      hitTokensTotal: read(),
      preemptedTotal: read(),
      swappedOutTotal: read(),
      recomputedTokensTotal: read(),
      heldTotal: read(),
      memoryBytes: read(),
    };
  }

  /** Recomputes every invariant of the former and its page table; `false` is a bug in SAGA. */
  verify(): boolean {
    this.#open();
    return this.#answer(this.#native.verify(), () => 'verify') === 1;
  }

  /** Fingerprint of the whole state, with the page table's (without statistics): equal where the same has happened. */
  digest(): bigint {
    this.#open();
    const digest = this.#native.digest();
    if (typeof digest === 'number') throw errorOfStatus(-digest, native.statusText(-digest));
    return digest;
  }

  /** Ends all calls and gives the page table back. Every later call throws `SAGA_ERR_CLOSED`. */
  close(): void {
    if (!this.#closed) this.#native.destroy();
    this.#closed = true;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #open(): void {
    if (this.#closed) throw new SagaStateError('SAGA_ERR_CLOSED', 'the batch former was closed');
  }

  #time(at: At): number {
    if (typeof at !== 'object' || at === null)
      throw new SagaArgumentError(`options must be an object, got ${describe(at)}`);
    if (at.now !== undefined) return checkInteger('now', at.now, 0, mostNumber);
    const now: unknown = this.#clock();
    return checkInteger('the time of the clock', typeof now === 'number' ? Math.floor(now) : now, 0, mostNumber);
  }

  #answer(value: number, what: () => string): number {
    if (value >= 0) return value;
    throw errorOfStatus(-value, `${what()} (${native.statusText(-value)})`);
  }

  #checkUrgency(urgency: unknown): number {
    const least = this.order === 'saga' ? 'above 0' : 'at least 0';
    if (
      typeof urgency !== 'number' ||
      !Number.isFinite(urgency) ||
      urgency < 0 ||
      (urgency === 0 && this.order === 'saga')
    )
      throw new SagaArgumentError(`urgency must be a number ${least}, got ${describe(urgency)}`);
    return urgency;
  }
}

/** The sizes of a batch, read from the words when they are asked for. */
function viewOf(words: Uint32Array): Batch {
  const at = (i: number): PropertyDescriptor => ({ enumerable: true, get: () => words[i] });
  return Object.freeze(
    Object.defineProperties({} as Batch, {
      calls: at(0),
      decodeCalls: at(1),
      tokens: at(2),
      admitted: at(3),
      updates: at(4),
      copies: at(5),
      preempted: at(6),
    }),
  );
}

function arrayOf<T extends ArrayBufferView & { readonly length: number }>(
  name: string,
  kind: new (length: number) => T,
  given: T | undefined,
  length: number,
): T {
  if (given === undefined) return new kind(length);
  if (!(given instanceof kind) || given.length < length)
    throw new SagaArgumentError(`arrays.${name} must be a ${kind.name} of at least ${length}, got ${describe(given)}`);
  return given;
}

function checkBoolean(name: string, value: unknown): number {
  if (typeof value !== 'boolean') throw new SagaArgumentError(`${name} must be a boolean, got ${describe(value)}`);
  return value ? 1 : 0;
}

function checkId(call: unknown): number {
  return checkInteger('call', call, 0, twoTo32 - 1);
}

function checkHashes(hashes: unknown): void {
  if (!(hashes instanceof BigUint64Array))
    throw new SagaArgumentError(`hashes must be a BigUint64Array of block hashes, got ${describe(hashes)}`);
}
