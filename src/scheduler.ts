/**
 * The scheduler: workers, workflows and calls, and where each call goes.
 *
 * Everything is synchronous. A decision takes microseconds, so a promise would cost more than the decision; and since nothing
 * happens between two calls of yours, the order of events is the order of your calls. The same events with the same times and
 * seed give the same decisions, byte for byte.
 *
 * Time is a number of microseconds from an origin of your choice, given as `now` or taken from the scheduler's clock. It must
 * not run backwards.
 */
import native from './native.cjs';
import { checkInteger, checkOneOf, describe } from './check.js';
import { SagaArgumentError, SagaCapacityError, SagaJournalError, SagaStateError, errorOfStatus } from './errors.js';
import { BlockHasher } from './hasher.js';

const placements = ['round-robin', 'affinity'] as const;
const tiers = ['gpu', 'host', 'disk'] as const;
const stopReasons = ['unknown', 'tool-use', 'end-turn'] as const;
const toolClasses = ['none', 'code-execution', 'file-operation', 'web-api', 'database-query'] as const;
const reasons = ['round-robin', 'longest-match', 'fewest-blocks', 'imbalance'] as const;

/** How workers are chosen: in turn, or by what they hold (see {@link SchedulerOptions.placement}). */
export type Placement = (typeof placements)[number];
/** Where a block lies on a worker, fastest first. */
export type Tier = (typeof tiers)[number];
/** Why an answer ended: the client now runs a tool, or a human (or nothing) comes next. */
export type StopReason = (typeof stopReasons)[number];
/** Tool classes of the SAGA paper. */
export type ToolClass = (typeof toolClasses)[number];
/**
 * Why a worker was chosen.
 *
 * - `round-robin`: its turn
 * - `longest-match`: it holds the longest leading part of the prompt
 * - `fewest-blocks`: nobody holds enough; it has the fewest blocks in use by running calls
 * - `imbalance`: open calls were too unequal; the emptier of two drawn workers
 */
export type PlacementReason = (typeof reasons)[number];

/** All bounds are fixed at construction; memory is allocated then. */
export interface SchedulerOptions {
  /** Most workers over the scheduler's life (ids are not reused), 1 to 1,024. Default 64. */
  maxWorkers?: number;
  /** Most workflows open at one time, 1 to 2^24. Default 4,096. */
  maxWorkflows?: number;
  /** Most calls open at one time, 1 to 2^24. Default 8,192. */
  maxCalls?: number;
  /** Most distinct blocks known over all workers, 1 to 2^29 - 1. Default 2^20. */
  maxBlocks?: number;
  /** Most blocks of the prompts of all open calls together. Default 2^21. */
  maxOpenBlocks?: number;
  /** Most blocks of one prompt, 1 to 2^24. Default 2^17. */
  maxChainBlocks?: number;
  /** Tokens of a KV block, as the workers use it, 1 to 4,096. Default 16. */
  blockTokens?: number;
  /**
   * - `affinity` (default): the worker with the longest match, at least {@link minimumMatchPercent} of the prompt; else the one
   *   with the fewest blocks in use by running calls. Where the most and the fewest open calls of two workers differ by more
   *   than {@link imbalanceCalls}, the emptier of two drawn by seed.
   * - `round-robin`
   */
  placement?: Placement;
  /** See {@link placement}. Default 10. */
  imbalanceCalls?: number;
  /** See {@link placement}. Default 10. */
  minimumMatchPercent?: number;
  /** Seed of all draws, 0 to 2^53 - 1. Default 0. */
  seed?: number;
  /** Bytes of the journal buffer, 0 (default: no journal) or at least 4,096. See {@link Scheduler.readJournal}. */
  journalBytes?: number;
  /** The time in microseconds where no `now` is given. Default: a monotonic clock that starts at 0 with the scheduler. */
  clock?: () => number;
}

/** `now`: microseconds; default the scheduler's clock. */
export interface At {
  now?: number;
}

/** What was known when a call was placed. Counts are blocks. */
export interface Receipt {
  readonly worker: Worker;
  readonly reason: PlacementReason;
  /** Full blocks of the prompt. */
  readonly promptBlocks: number;
  /** Leading blocks on that worker: in GPU memory; in GPU or host memory; in any tier. */
  readonly matchedBlocks: Readonly<Record<Tier, number>>;
  /** The longest leading match in GPU memory on any active worker, and the smallest worker id that has it. */
  readonly longestMatch: { readonly blocks: number; readonly worker: number | undefined };
  /** Open calls of that worker before this one. */
  readonly openCalls: number;
  /** Blocks in use there by running calls, before this one. */
  readonly blocksInUse: number;
  readonly activeWorkers: number;
  /** Microseconds. */
  readonly decidedAt: number;
}

/** Counters since construction, and present sizes. */
export interface SchedulerStats {
  workers: number;
  workflows: number;
  openCalls: number;
  waitingCalls: number;
  placedCalls: number;
  finishedCalls: number;
  cancelledCalls: number;
  /** Calls that lost their worker and were placed again. */
  replacedCalls: number;
  /** Blocks of all placed prompts, and how many of them the chosen worker held in GPU memory. */
  promptBlocks: number;
  matchedBlocks: number;
  /** (worker, tier, block) triples known. */
  holderBlocks: number;
  journalBytes: number;
}

export interface ReplayResult {
  /** Fingerprint of the rebuilt state; equals {@link Scheduler.digest} of the scheduler that wrote the journal. */
  digest: bigint;
  events: number;
  /** Recorded decisions that came out again, byte for byte. */
  decisions: number;
}

const decisionWords = 16;
const decisionCapacity = 256;
const twoTo32 = 2 ** 32;
const mostTokens = 2 ** 31;

export class Scheduler {
  readonly blockTokens: number;
  readonly maxWorkers: number;
  readonly maxChainBlocks: number;
  /** @internal */
  readonly native: native.Engine;
  readonly #decisions = new Uint32Array(decisionWords * decisionCapacity);
  readonly #depth: Uint32Array;
  readonly #stats = new Float64Array(12);
  /** @internal */
  readonly workerState = new Uint32Array(4);
  readonly #clock: () => number;
  readonly #workers: Worker[] = [];
  readonly #calls: (Call | undefined)[] = [];
  readonly #tenants = new Map<string, number>();
  readonly #hashers = new Map<string, BlockHasher>();
  #chain = new BigUint64Array(1024);
  #closed = false;

  constructor(options: SchedulerOptions = {}) {
    const seed = checkInteger('seed', options.seed ?? 0, 0, Number.MAX_SAFE_INTEGER);
    const journalBytes = checkInteger('journalBytes', options.journalBytes ?? 0, 0, 2 ** 40);
    if (journalBytes > 0 && journalBytes < 4096)
      throw new SagaArgumentError(`journalBytes must be 0 or at least 4,096, got ${journalBytes}`);
    if (options.clock !== undefined && typeof options.clock !== 'function') {
      throw new SagaArgumentError(`clock must be a function that returns microseconds, got ${describe(options.clock)}`);
    }
    this.maxWorkers = checkInteger('maxWorkers', options.maxWorkers ?? 64, 1, 1024);
    this.maxChainBlocks = checkInteger('maxChainBlocks', options.maxChainBlocks ?? 2 ** 17, 1, 2 ** 24);
    this.blockTokens = checkInteger('blockTokens', options.blockTokens ?? 16, 1, 4096);
    this.#depth = new Uint32Array(this.maxWorkers * tiers.length);
    const started = performance.now();
    this.#clock = options.clock ?? (() => Math.floor((performance.now() - started) * 1000));
    const engine = native.createEngine(
      Float64Array.of(
        this.maxWorkers,
        checkInteger('maxWorkflows', options.maxWorkflows ?? 4096, 1, 2 ** 24),
        checkInteger('maxCalls', options.maxCalls ?? 8192, 1, 2 ** 24),
        checkInteger('maxBlocks', options.maxBlocks ?? 2 ** 20, 1, 2 ** 29 - 1),
        checkInteger('maxOpenBlocks', options.maxOpenBlocks ?? 2 ** 21, 1, twoTo32),
        this.maxChainBlocks,
        this.blockTokens,
        checkOneOf('placement', options.placement ?? 'affinity', placements),
        checkInteger('imbalanceCalls', options.imbalanceCalls ?? 10, 0, twoTo32 - 1),
        checkInteger('minimumMatchPercent', options.minimumMatchPercent ?? 10, 0, 100),
        seed,
        journalBytes,
      ),
      this.#decisions,
      this.#depth,
      this.#stats,
      this.workerState,
    );
    if (typeof engine === 'number')
      throw errorOfStatus(-engine, `the scheduler could not be made: ${native.statusText(-engine)}`);
    this.native = engine;
  }

  /**
   * A worker joins. `blocks`: its KV room.
   *
   * @throws SagaCapacityError when `maxWorkers` have been added
   */
  addWorker(options: { blocks: number } & At): Worker {
    const blocks = checkInteger('blocks', options?.blocks, 1, twoTo32 - 1);
    const id = this.answer(
      this.native.addWorker(this.time(options.now), blocks),
      () => `maxWorkers (${this.maxWorkers}) workers have been added`,
    );
    const worker = new Worker(this, id);
    this.#workers[id] = worker;
    return worker;
  }

  /** The worker with an id, also one that was removed. */
  worker(id: number): Worker | undefined {
    return this.#workers[id];
  }

  /**
   * A workflow begins: one task of an agent, whose calls follow each other.
   *
   * @param options.tenant who it belongs to; default the empty name
   * @param options.salt isolates tenants from each other's KV pages: prompts with different salts share no block
   */
  openWorkflow(options: { tenant?: string; salt?: string } & At = {}): Workflow {
    const tenant = options.tenant ?? '';
    if (typeof tenant !== 'string') throw new SagaArgumentError(`tenant must be a string, got ${describe(tenant)}`);
    const salt = options.salt ?? '';
    if (typeof salt !== 'string') throw new SagaArgumentError(`salt must be a string, got ${describe(salt)}`);
    let tenantId = this.#tenants.get(tenant);
    if (tenantId === undefined) this.#tenants.set(tenant, (tenantId = this.#tenants.size));
    const id = this.answer(
      this.native.openWorkflow(this.time(options.now), tenantId),
      () => 'maxWorkflows workflows are open',
    );
    return new Workflow(this, id, tenant, salt);
  }

  /**
   * Places waiting calls in order of submission, all of them unless no worker is active.
   *
   * @returns the calls that were placed; each has its {@link Call.receipt}
   */
  decide(at: At = {}): Call[] {
    const now = this.time(at.now);
    const placed: Call[] = [];
    for (;;) {
      const count = this.native.decide(now);
      if (count < 0) {
        // What was placed before the journal ran full must reach the caller; the next call reports the condition.
        if (placed.length > 0) return placed;
        throw errorOfStatus(-count, `the calls could not be placed (${native.statusText(-count)})`);
      }
      if (count === 0) return placed;
      for (let i = 0; i < count; ++i) {
        const call = this.#calls[this.#decisions[i * decisionWords + 2] as number];
        if (call === undefined)
          throw new SagaStateError('SAGA_ERR_NOT_FOUND', 'a decision names a call that this scheduler does not know');
        call.receipt = this.#receipt(i);
        placed.push(call);
      }
    }
  }

  /**
   * Leading blocks of a chain that each worker holds, without placing anything.
   *
   * @param chain block hashes, see {@link hash}
   * @returns a view that is valid until the next call of `match` or `decide`: element `worker * 3 + tier`, tiers cumulative
   * (in GPU memory; in GPU or host memory; in any)
   */
  match(chain: BigUint64Array): Uint32Array {
    this.open();
    checkHashes('chain', chain);
    this.answer(this.native.match(chain, chain.length), () => 'chain');
    return this.#depth;
  }

  /**
   * The block hashes of a prompt: SAGA's own chain, one 64-bit hash per full block.
   *
   * @param tokens token ids of the whole prompt
   * @param salt of the workflow, see {@link openWorkflow}
   */
  hash(tokens: Uint32Array | readonly number[], salt = ''): BigUint64Array {
    return this.chainOf(tokens, salt).slice();
  }

  stats(): SchedulerStats {
    this.open();
    this.native.stats();
    const at = (i: number): number => this.#stats[i] as number;
    return {
      workers: at(0),
      workflows: at(1),
      openCalls: at(2),
      waitingCalls: at(3),
      placedCalls: at(4),
      finishedCalls: at(5),
      cancelledCalls: at(6),
      replacedCalls: at(7),
      promptBlocks: at(8),
      matchedBlocks: at(9),
      holderBlocks: at(10),
      journalBytes: at(11),
    };
  }

  /** Fingerprint of the whole state: equal for schedulers that have seen the same events. */
  digest(): bigint {
    this.open();
    return this.native.digest();
  }

  /** Recomputes every invariant of the state; `false` is a bug in SAGA. O(state). */
  verify(): boolean {
    this.open();
    return this.native.verify() === 1;
  }

  /**
   * The journal bytes written since the last call (at most `most`); append them to a file and {@link replay} rebuilds the state. While the
   * buffer is full, events fail with `SAGA_ERR_JOURNAL_FULL` and change nothing.
   */
  readJournal(most = 2 ** 20): Uint8Array {
    this.open();
    const bytes = new Uint8Array(checkInteger('most', most, 1, 2 ** 30));
    return bytes.slice(0, this.native.journalRead(bytes));
  }

  /**
   * Rebuilds the state from a whole journal and compares every decision with the one recorded.
   *
   * @throws SagaJournalError when the journal is damaged or a decision differs; the message says how far it was good
   */
  static replay(journal: Uint8Array): ReplayResult {
    if (!(journal instanceof Uint8Array))
      throw new SagaArgumentError(`journal must be a Uint8Array, got ${describe(journal)}`);
    const result = new Float64Array(4);
    const digest = native.replayJournal(journal, result);
    const [status = 0, events = 0, decisions = 0, goodBytes = 0] = result;
    if (status !== 0 || typeof digest === 'number') {
      const message = `${native.statusText(status)}; ${events} events and ${goodBytes} of ${journal.length} bytes are good`;
      const error = errorOfStatus(status, message);
      throw error instanceof SagaCapacityError ? error : new SagaJournalError(error.code, message);
    }
    return { digest, events, decisions };
  }

  /** Frees the native memory now. Every later call throws `SAGA_ERR_CLOSED`. */
  close(): void {
    if (!this.#closed) this.native.destroy();
    this.#closed = true;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal */
  open(): void {
    if (this.#closed) throw new SagaStateError('SAGA_ERR_CLOSED', 'the scheduler was closed');
  }

  /** @internal */
  time(now: number | undefined): number {
    this.open();
    return checkInteger('now', now ?? this.#clock(), 0, Number.MAX_SAFE_INTEGER);
  }

  /** @internal */
  answer(value: number, what: () => string): number {
    if (value >= 0) return value;
    throw errorOfStatus(-value, `${what()} (${native.statusText(-value)})`);
  }

  /** @internal The hashes of a prompt, valid until the next call. */
  chainOf(tokens: Uint32Array | readonly number[], salt: string): BigUint64Array {
    const ids = checkTokens(tokens);
    const blocks = Math.floor(ids.length / this.blockTokens);
    if (this.#chain.length < blocks) this.#chain = new BigUint64Array(2 * blocks);
    let hasher = this.#hashers.get(salt);
    if (hasher === undefined)
      this.#hashers.set(salt, (hasher = new BlockHasher({ blockTokens: this.blockTokens, salt })));
    return hasher.reset().update(ids, this.#chain).subarray(0, blocks);
  }

  /** @internal */
  remember(call: Call): void {
    this.#calls[call.id % twoTo32] = call;
  }

  /** @internal */
  forget(call: Call): void {
    const slot = call.id % twoTo32;
    if (this.#calls[slot] === call) this.#calls[slot] = undefined;
  }

  /** @internal The calls of a lost worker wait again. */
  forgetReceipts(worker: Worker): void {
    for (const call of this.#calls) {
      if (call?.receipt?.worker === worker) call.receipt = undefined;
    }
  }

  #receipt(i: number): Receipt {
    const word = (at: number): number => this.#decisions[i * decisionWords + at] as number;
    const longestWorker = word(10);
    return {
      worker: this.#workers[word(1)] as Worker,
      reason: reasons[word(4)] as PlacementReason,
      promptBlocks: word(5),
      matchedBlocks: { gpu: word(6), host: word(7), disk: word(8) },
      longestMatch: { blocks: word(9), worker: longestWorker === twoTo32 - 1 ? undefined : longestWorker },
      openCalls: word(11),
      blocksInUse: word(12),
      activeWorkers: word(13),
      decidedAt: word(14) + word(15) * twoTo32,
    };
  }
}

/** A worker as the scheduler sees it: what it holds, and how loaded it is. Made by {@link Scheduler.addWorker}. */
export class Worker {
  readonly id: number;
  readonly #scheduler: Scheduler;

  /** @internal */
  constructor(scheduler: Scheduler, id: number) {
    this.#scheduler = scheduler;
    this.id = id;
  }

  /**
   * Blocks became resident (a KV event of the worker). Counted per physical copy: a block stored twice stays until it is
   * removed twice.
   *
   * @param hashes in chain order
   * @param options.parent hash of the block before the first one, if known: a hint that makes later matches faster
   * @throws SagaCapacityError when `maxBlocks` are known; nothing was stored
   */
  stored(hashes: BigUint64Array, options: { tier?: Tier; parent?: bigint } & At = {}): void {
    checkHashes('hashes', hashes);
    const tier = checkOneOf('tier', options.tier ?? 'gpu', tiers);
    let given = hashes;
    if (options.parent !== undefined) {
      given = new BigUint64Array(hashes.length + 1);
      given[0] = options.parent;
      given.set(hashes, 1);
    }
    const scheduler = this.#scheduler;
    const hasParent = given === hashes ? 0 : 1;
    scheduler.answer(
      scheduler.native.blocksStored(scheduler.time(options.now), this.id, tier, given, hasParent),
      () => `worker ${this.id} cannot store ${hashes.length} blocks`,
    );
  }

  /** Blocks are gone. Hashes that the worker does not hold are ignored. */
  removed(hashes: BigUint64Array, options: { tier?: Tier } & At = {}): void {
    checkHashes('hashes', hashes);
    const tier = checkOneOf('tier', options.tier ?? 'gpu', tiers);
    const scheduler = this.#scheduler;
    scheduler.answer(
      scheduler.native.blocksRemoved(scheduler.time(options.now), this.id, tier, hashes),
      () => `worker ${this.id}`,
    );
  }

  /** Everything in every tier is gone. */
  cleared(at: At = {}): void {
    const scheduler = this.#scheduler;
    scheduler.answer(scheduler.native.blocksCleared(scheduler.time(at.now), this.id), () => `worker ${this.id}`);
  }

  /**
   * Blocks that running calls use, as the worker reports it. Until the next report the prompts of calls placed there are
   * added.
   */
  load(options: { blocksInUse: number } & At): void {
    const blocks = checkInteger('blocksInUse', options?.blocksInUse, 0, twoTo32 - 1);
    const scheduler = this.#scheduler;
    scheduler.answer(
      scheduler.native.workerLoad(scheduler.time(options.now), this.id, blocks),
      () => `worker ${this.id}`,
    );
  }

  /** The worker is lost or drained: what it held is forgotten, and its calls wait to be placed again. */
  remove(at: At = {}): void {
    const scheduler = this.#scheduler;
    scheduler.answer(scheduler.native.removeWorker(scheduler.time(at.now), this.id), () => `worker ${this.id}`);
    scheduler.forgetReceipts(this);
  }

  /** Present state. `blocksInUse` is as last reported, plus the prompts of open calls placed since. */
  state(): { blocks: number; openCalls: number; blocksInUse: number; active: boolean } {
    const scheduler = this.#scheduler;
    scheduler.open();
    scheduler.answer(scheduler.native.workerState(this.id), () => `worker ${this.id}`);
    const [blocks = 0, openCalls = 0, blocksInUse = 0, active = 0] = scheduler.workerState;
    return { blocks, openCalls, blocksInUse, active: active === 1 };
  }
}

/** One task of an agent: its calls follow each other, with tool runs between them. Made by {@link Scheduler.openWorkflow}. */
export class Workflow {
  readonly id: number;
  readonly tenant: string;
  readonly salt: string;
  readonly #scheduler: Scheduler;

  /** @internal */
  constructor(scheduler: Scheduler, id: number, tenant: string, salt: string) {
    this.#scheduler = scheduler;
    this.id = id;
    this.tenant = tenant;
    this.salt = salt;
  }

  /**
   * A call to the model, to be placed by the next {@link Scheduler.decide} (or {@link Call.place}).
   *
   * @param prompt token ids of the whole prompt, or its block hashes with its length in tokens
   * @throws SagaCapacityError when `maxCalls` are open, or their prompts exceed `maxOpenBlocks`
   */
  submit(prompt: Uint32Array | readonly number[] | { chain: BigUint64Array; promptTokens: number }, at: At = {}): Call {
    const scheduler = this.#scheduler;
    let chain: BigUint64Array;
    let promptTokens: number;
    if (Array.isArray(prompt) || ArrayBuffer.isView(prompt)) {
      chain = scheduler.chainOf(prompt as Uint32Array, this.salt);
      promptTokens = prompt.length;
      if (promptTokens === 0) throw new SagaArgumentError('a prompt must have at least one token');
    } else {
      const given = prompt as { chain: BigUint64Array; promptTokens: number };
      checkHashes('chain', given?.chain);
      promptTokens = checkInteger('promptTokens', given.promptTokens, 1, mostTokens);
      chain = given.chain;
      if (chain.length > promptTokens / scheduler.blockTokens) {
        throw new SagaArgumentError(
          `chain must have at most ${Math.floor(promptTokens / scheduler.blockTokens)} hashes for ${promptTokens} tokens, got ${chain.length}`,
        );
      }
    }
    if (chain.length > scheduler.maxChainBlocks) {
      throw new SagaArgumentError(
        `a prompt must have at most ${scheduler.maxChainBlocks} blocks (maxChainBlocks), got ${chain.length}`,
      );
    }
    const id = scheduler.answer(
      scheduler.native.submitCall(scheduler.time(at.now), this.id, promptTokens, chain, chain.length),
      () => `a call of workflow ${this.id}`,
    );
    const call = new Call(scheduler, this, id, promptTokens);
    scheduler.remember(call);
    return call;
  }

  /** The client runs a tool now. */
  toolStarted(options: { tool?: ToolClass } & At = {}): void {
    const tool = checkOneOf('tool', options.tool ?? 'none', toolClasses);
    const scheduler = this.#scheduler;
    scheduler.answer(
      scheduler.native.toolStarted(scheduler.time(options.now), this.id, tool),
      () => `workflow ${this.id}`,
    );
  }

  /** The tool has returned. */
  toolFinished(at: At = {}): void {
    const scheduler = this.#scheduler;
    scheduler.answer(scheduler.native.toolFinished(scheduler.time(at.now), this.id), () => `workflow ${this.id}`);
  }

  /** The task is done. None of its calls may be open. */
  close(at: At = {}): void {
    const scheduler = this.#scheduler;
    scheduler.answer(scheduler.native.closeWorkflow(scheduler.time(at.now), this.id), () => `workflow ${this.id}`);
  }
}

/** One call to the model. Made by {@link Workflow.submit}. */
export class Call {
  readonly id: number;
  readonly workflow: Workflow;
  readonly promptTokens: number;
  /** Where it goes and why; `undefined` while it waits. A call that lost its worker gets another receipt. */
  receipt: Receipt | undefined;
  readonly #scheduler: Scheduler;

  /** @internal */
  constructor(scheduler: Scheduler, workflow: Workflow, id: number, promptTokens: number) {
    this.#scheduler = scheduler;
    this.workflow = workflow;
    this.id = id;
    this.promptTokens = promptTokens;
  }

  /**
   * Places this call now, together with all that were submitted before it.
   *
   * @throws SagaStateError `SAGA_ERR_NO_WORKER` when no worker is active; the call keeps waiting
   */
  place(at: At = {}): Receipt {
    this.#scheduler.decide(at);
    if (this.receipt === undefined)
      throw new SagaStateError('SAGA_ERR_NO_WORKER', 'no worker is active: add one, the call keeps waiting');
    return this.receipt;
  }

  /** The worker sent the first token. */
  firstToken(at: At = {}): void {
    const scheduler = this.#scheduler;
    scheduler.answer(scheduler.native.firstToken(scheduler.time(at.now), this.id), () => `call ${this.id}`);
  }

  /** The client is gone: the call ends, whatever its state, and its id becomes invalid. */
  cancel(at: At = {}): void {
    const scheduler = this.#scheduler;
    scheduler.answer(scheduler.native.cancelCall(scheduler.time(at.now), this.id), () => `call ${this.id}`);
    scheduler.forget(this);
  }

  /** The answer is complete (or the call failed on the worker); the call's id becomes invalid. */
  finish(options: { stop?: StopReason; tool?: ToolClass; outputTokens?: number } & At = {}): void {
    const stop = checkOneOf('stop', options.stop ?? 'unknown', stopReasons);
    const tool = checkOneOf('tool', options.tool ?? 'none', toolClasses);
    const tokens = checkInteger('outputTokens', options.outputTokens ?? 0, 0, twoTo32 - 1);
    const scheduler = this.#scheduler;
    scheduler.answer(
      scheduler.native.finishCall(scheduler.time(options.now), this.id, stop, tool, tokens),
      () => `call ${this.id}`,
    );
    scheduler.forget(this);
  }
}

function checkHashes(name: string, value: unknown): void {
  if (!(value instanceof BigUint64Array))
    throw new SagaArgumentError(`${name} must be a BigUint64Array of block hashes, got ${describe(value)}`);
  if (value.length > 2 ** 24) throw new SagaArgumentError(`${name} must have at most 2^24 hashes, got ${value.length}`);
}

function checkTokens(tokens: unknown): Uint32Array {
  if (tokens instanceof Uint32Array) return tokens;
  if (!Array.isArray(tokens))
    throw new SagaArgumentError(`tokens must be a Uint32Array or an array of token ids, got ${describe(tokens)}`);
  for (const token of tokens) checkInteger('a token id', token, 0, twoTo32 - 1);
  return Uint32Array.from(tokens as number[]);
}
