/// <reference lib="esnext.disposable" preserve="true" />
/**
 * The scheduler: workers, workflows and calls, and where each call goes.
 *
 * Everything is synchronous. A decision takes microseconds, so a promise would cost more than the decision; and since nothing
 * happens between two calls of yours, the order of events is the order of your calls. The same events with the same times and
 * seed give the same decisions, byte for byte.
 *
 * Time is a whole number of microseconds from an origin of your choice, given as `now` or taken from the scheduler's clock. It
 * must not run backwards.
 *
 * Costs on the hot path: submitting, placing and finishing a call makes two objects, the {@link Call} and its {@link Receipt};
 * the hashes of its prompt go through one array that is used again and again.
 */
import native from './native.cjs';
import { checkInteger, checkOneOf, checkOptions, checkText, describe } from './check.js';
import {
  SagaArgumentError,
  SagaCapacityError,
  SagaJournalError,
  SagaStateError,
  errorOfStatus,
  type SagaError,
} from './errors.js';
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
  /**
   * Most blocks of the prompts of all open calls together, the blocks of each call rounded up to whole 256. 1 to 2^32, default
   * 2^21.
   */
  maxOpenBlocks?: number;
  /** Most blocks of one prompt, 1 to 2^24. Default 2^17. */
  maxChainBlocks?: number;
  /** Tokens of a KV block, as the workers use it, 1 to 4,096. Default 16. */
  blockTokens?: number;
  /**
   * How workers are chosen.
   *
   * - `affinity` (default), after Ray Serve's PrefixCacheAffinityRouter: the worker with the longest match, at least
   *   {@link minimumMatchPercent} of the prompt; else the one with the fewest blocks in use by running calls. Ties go to the
   *   fewest open calls, then the smallest id. Where the most and the fewest open calls of two workers differ by more than
   *   {@link imbalanceCalls}, the emptier of two drawn by seed.
   * - `round-robin`: one after the other, whatever they hold
   */
  placement?: Placement;
  /** `affinity` only: the difference in open calls above which load decides, 0 to 2^32 - 1. Default 10. */
  imbalanceCalls?: number;
  /** `affinity` only: the smallest match that decides, in per cent of the prompt's blocks, 0 to 100. Default 10. */
  minimumMatchPercent?: number;
  /** Seed of all draws, 0 to 2^53 - 1. Default 0. */
  seed?: number;
  /**
   * Bytes of the journal buffer: 0 (default: no journal), or 4,096 to 2^40. An event larger than the buffer is refused
   * (`SAGA_ERR_FULL`): a call or a report of n blocks takes 8 n bytes and some. See {@link Scheduler.readJournal}.
   */
  journalBytes?: number;
  /**
   * The time in microseconds where no `now` is given; fractions are cut off. It must not run backwards. Default: a monotonic
   * clock that starts at 0 with the scheduler.
   */
  clock?: () => number;
}

/** When something happens. */
export interface At {
  /** Microseconds, a whole number, not before any earlier event. Default: the scheduler's clock. */
  now?: number;
}

/** Token ids: integers from 0 to 2^32 - 1. A typed array is taken as it is; a plain array is checked and copied. */
export type TokenIds = Uint32Array | readonly number[];

/** A prompt whose blocks were hashed already, by SAGA or by somebody else. */
export interface HashedPrompt {
  /** Hashes of its leading full blocks, the first block first: at most `promptTokens / blockTokens`. */
  chain: BigUint64Array;
  /** Length of the whole prompt, 1 to 2^31. */
  promptTokens: number;
}

/** What was known when a call was placed. Counts are blocks. */
export interface Receipt {
  /** Where the call goes. */
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
  /** Workers there were to choose from. */
  readonly activeWorkers: number;
  /** Microseconds. */
  readonly decidedAt: number;
}

/** A worker's present state. */
export interface WorkerState {
  /** Its KV room in blocks, as given to {@link Scheduler.addWorker}. */
  blocks: number;
  /** Calls placed there that have not ended. */
  openCalls: number;
  /** Blocks in use by running calls, as last reported, plus the prompts of open calls placed since. */
  blocksInUse: number;
  /** `false` once it was removed. */
  active: boolean;
}

/** Present sizes, and counters since construction. */
export interface SchedulerStats {
  /** Active workers. */
  workers: number;
  /** Open workflows. */
  workflows: number;
  /** Calls that are waiting, placed or running. */
  openCalls: number;
  /** Those of them that wait to be placed. */
  waitingCalls: number;
  /** Placements so far; a call that is placed again counts again. */
  placedCalls: number;
  finishedCalls: number;
  cancelledCalls: number;
  /** Calls that lost their worker and went back to waiting. */
  replacedCalls: number;
  /** Full blocks of the prompts of all placements. */
  promptBlocks: number;
  /** How many of them the chosen worker held in GPU memory. */
  matchedBlocks: number;
  /** (worker, tier, block) triples known. */
  holderBlocks: number;
  /** Bytes of the journal so far, read or not. */
  journalBytes: number;
}

/** What a journal gave. */
export interface ReplayResult {
  /** Fingerprint of the rebuilt state; equals {@link Scheduler.digest} of the scheduler that wrote the journal. */
  digest: bigint;
  /** Events applied. */
  events: number;
  /** Recorded decisions that came out again, byte for byte. */
  decisions: number;
}

/** Tenant names are kept for the scheduler's life. */
const mostTenants = 2 ** 20;
const decisionWords = 16;
const mostDecisions = 256;
/** Bytes that a record of the journal takes besides its decisions, and for each of them. */
const decisionRecordBytes = { fixed: 25, each: 64 };
const twoTo32 = 2 ** 32;
const twoTo64 = 2n ** 64n;
const mostTokens = 2 ** 31;
const mostTime = Number.MAX_SAFE_INTEGER;
const mostHashes = 2 ** 24;
/** Hashers kept, one for each salt; the oldest is forgotten and made anew when its salt comes back. */
const mostHashers = 1024;

type Writable<T> = { -readonly [Key in keyof T]: T[Key] };

/**
 * Decides where the calls of agent workflows go, by what the workers hold and how loaded they are.
 *
 * It is told what happens (workers and their KV events, workflows and their calls), and answers with a {@link Receipt} for each
 * call. It moves nothing itself. All bounds are fixed at construction and memory is allocated then, some 20 MB with the
 * defaults. The garbage collector frees it some time after the last use; {@link close} does so at once.
 *
 * Every method throws `SagaArgumentError` for an argument outside its range, and `SagaStateError`: `SAGA_ERR_NOT_FOUND` for a
 * worker, workflow or call that has ended, `SAGA_ERR_TIME_REVERSED` for a `now` before an earlier event, `SAGA_ERR_CLOSED` after
 * {@link close}; with a journal `SagaCapacityError` `SAGA_ERR_JOURNAL_FULL` until it is read. A method that throws has changed
 * nothing.
 *
 * @example
 * ```ts
 * const scheduler = new Scheduler({ maxWorkers: 8 });
 * scheduler.addWorker({ blocks: 28_000 });
 * const call = scheduler.openWorkflow().submit(tokenIds);
 * const { worker, reason, matchedBlocks } = call.place();
 * call.finish({ stop: 'tool-use', tool: 'code-execution', outputTokens: 300 });
 * ```
 */
export class Scheduler {
  /** Tokens of a KV block. */
  readonly blockTokens: number;
  /** Most workers over its life. */
  readonly maxWorkers: number;
  /** Most blocks of one prompt. */
  readonly maxChainBlocks: number;
  /** @internal */
  readonly native: native.Engine;
  readonly #decisions = new Uint32Array(decisionWords * mostDecisions);
  /** Decisions that one call of the native side makes at most. */
  readonly #decisionRoom: number;
  readonly #depth: Uint32Array;
  readonly #stats = new Float64Array(12);
  /** @internal */
  readonly workerState = new Uint32Array(4);
  readonly #clock: () => number;
  readonly #journalBytes: number;
  readonly #workers: Worker[] = [];
  readonly #calls: (Call | undefined)[] = [];
  readonly #tenants = new Map<string, number>();
  readonly #hashers = new Map<string, BlockHasher>();
  #chain = new BigUint64Array(1024);
  #closed = false;

  /**
   * @throws SagaArgumentError for an option outside its range
   * @throws SagaCapacityError `SAGA_ERR_OUT_OF_MEMORY`
   */
  constructor(options: SchedulerOptions = {}) {
    checkOptions(options);
    const seed = checkInteger('seed', options.seed ?? 0, 0, Number.MAX_SAFE_INTEGER);
    const journalBytes = checkInteger('journalBytes', options.journalBytes ?? 0, 0, 2 ** 40);
    if (journalBytes > 0 && journalBytes < 4096)
      throw new SagaArgumentError(`journalBytes must be 0 or at least 4096, got ${journalBytes}`);
    if (options.clock !== undefined && typeof options.clock !== 'function') {
      throw new SagaArgumentError(`clock must be a function that returns microseconds, got ${describe(options.clock)}`);
    }
    this.#journalBytes = journalBytes;
    // With a journal one record holds the decisions of one call.
    const recorded = Math.floor((journalBytes - decisionRecordBytes.fixed) / decisionRecordBytes.each);
    this.#decisionRoom = journalBytes === 0 ? mostDecisions : Math.min(mostDecisions, recorded);
    this.maxWorkers = checkInteger('maxWorkers', options.maxWorkers ?? 64, 1, 1024);
    this.maxChainBlocks = checkInteger('maxChainBlocks', options.maxChainBlocks ?? 2 ** 17, 1, 2 ** 24);
    this.blockTokens = checkInteger('blockTokens', options.blockTokens ?? 16, 1, 4096);
    this.#depth = new Uint32Array(this.maxWorkers * tiers.length);
    const started = performance.now();
    this.#clock = options.clock ?? (() => (performance.now() - started) * 1000);
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
   * A worker joins.
   *
   * @param options.blocks its KV room in blocks, 1 to 2^32 - 1
   * @throws SagaCapacityError when `maxWorkers` have been added, removed ones included
   */
  addWorker(options: { blocks: number } & At): Worker {
    const now = this.time(options);
    const blocks = checkInteger('blocks', options.blocks, 1, twoTo32 - 1);
    const id = this.native.addWorker(now, blocks);
    if (id < 0) throw refused(id, `a worker cannot be added: maxWorkers is ${this.maxWorkers}`);
    const worker = new Worker(this, id);
    this.#workers[id] = worker;
    return worker;
  }

  /** The worker with an id, also one that was removed. Ids count from 0 in the order of {@link addWorker}. */
  worker(id: number): Worker | undefined {
    this.open();
    return this.#workers[id];
  }

  /**
   * A workflow begins: one task of an agent, whose calls follow each other.
   *
   * @param options.tenant who it belongs to; default the empty name
   * @param options.salt isolates tenants from each other's KV pages: prompts with different salts share no block. Default empty
   * @throws SagaCapacityError when `maxWorkflows` are open, or 2^20 tenant names have been seen
   */
  openWorkflow(options: { tenant?: string; salt?: string } & At = {}): Workflow {
    const now = this.time(options);
    const tenant = checkText('tenant', options.tenant ?? '');
    const salt = checkText('salt', options.salt ?? '');
    // Tenants are numbered in the order in which they first appear.
    const tenantId = this.#tenants.get(tenant) ?? this.#tenants.size;
    if (tenantId >= mostTenants) {
      throw new SagaCapacityError('SAGA_ERR_FULL', `a scheduler knows at most ${mostTenants} tenant names`);
    }
    const id = this.native.openWorkflow(now, tenantId);
    if (id < 0) throw refused(id, 'a workflow cannot be opened');
    this.#tenants.set(tenant, tenantId);
    return new Workflow(this, id, tenant, salt);
  }

  /**
   * Places the calls that wait, in order of submission: all of them, unless no worker is active.
   *
   * @returns the calls that were placed; each has its {@link Call.receipt}. Where the journal runs full on the way, those placed
   * until then; the next call of `decide` throws.
   */
  decide(at: At = {}): Call[] {
    const placed: Call[] = [];
    this.place(this.time(at), placed);
    return placed;
  }

  /**
   * Leading blocks of a chain that each worker holds, without placing anything.
   *
   * @param chain block hashes, at most 2^24, see {@link hash}
   * @returns a view that is valid until the next call of `match`: element `worker * 3 + tier` for all `maxWorkers`, tiers
   * cumulative (in GPU memory; in GPU or host memory; in any)
   */
  match(chain: BigUint64Array): Uint32Array {
    this.open();
    checkHashes('chain', chain);
    const longest = this.native.match(chain, chain.length);
    if (longest < 0) throw refused(longest, 'the chain cannot be matched');
    return this.#depth;
  }

  /**
   * The block hashes of a prompt: SAGA's own chain, one 64-bit hash per full block.
   *
   * @param tokens token ids of the whole prompt, at most 2^24 blocks
   * @param salt of the workflow, see {@link openWorkflow}. Default empty
   */
  hash(tokens: TokenIds, salt = ''): BigUint64Array {
    this.open();
    return this.#hasher(salt).update(checkTokens(tokens));
  }

  /** Present sizes, and counters since construction. */
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
   * The journal bytes written since the last call; append them to a file, and {@link replay} rebuilds the state from it. While an
   * event does not fit into the rest of the buffer it fails with `SAGA_ERR_JOURNAL_FULL` and changes nothing.
   *
   * @param most bytes wanted at most, 1 to 2^30. Default 2^20
   * @returns a new array; empty where nothing is left, or there is no journal
   */
  readJournal(most = 2 ** 20): Uint8Array {
    this.open();
    const bytes = new Uint8Array(Math.min(checkInteger('most', most, 1, 2 ** 30), this.#journalBytes));
    return bytes.slice(0, this.native.journalRead(bytes));
  }

  /**
   * Rebuilds the state from a whole journal and compares every decision with the one recorded.
   *
   * @throws SagaJournalError `SAGA_ERR_JOURNAL_CORRUPT`, `SAGA_ERR_JOURNAL_MISMATCH` (a decision differs) or
   * `SAGA_ERR_VERSION_MISMATCH`; the message says how far the journal is good
   */
  static replay(journal: Uint8Array): ReplayResult {
    if (!(journal instanceof Uint8Array))
      throw new SagaArgumentError(`journal must be a Uint8Array, got ${describe(journal)}`);
    const result = new Float64Array(4);
    return replayed(native.replayJournal(journal, result), result);
  }

  /**
   * {@link replay} of a file, which may be larger than a `Uint8Array`.
   *
   * @throws SagaArgumentError when it cannot be read
   */
  static replayFile(path: string): ReplayResult {
    checkText('path', path);
    const result = new Float64Array(4);
    const digest = native.replayJournalFile(path, result);
    if (digest === -2 && result[0] === 0) throw new SagaArgumentError(`path must name a readable file, got ${path}`);
    return replayed(digest, result);
  }

  /** Frees the native memory now. Whatever is called later, here or on a worker, workflow or call, throws `SAGA_ERR_CLOSED`. */
  close(): void {
    if (!this.#closed) this.native.destroy();
    this.#closed = true;
  }

  /** {@link close}, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal */
  open(): void {
    if (this.#closed) throw new SagaStateError('SAGA_ERR_CLOSED', 'the scheduler was closed');
  }

  /** @internal The time of an event; refuses what is no options object, and a closed scheduler. */
  time(at: At): number {
    this.open();
    checkOptions(at);
    if (at.now !== undefined) return checkInteger('now', at.now, 0, mostTime);
    const now: unknown = this.#clock();
    return checkInteger('the time of the clock', typeof now === 'number' ? Math.floor(now) : now, 0, mostTime);
  }

  /** @internal Places what waits; the calls go to `placed`, if given. Returns their number. */
  place(now: number, placed?: Call[]): number {
    let total = 0;
    for (;;) {
      const count = this.native.decide(now);
      if (count < 0) {
        // What was placed before the journal ran full must reach the caller; the next call reports the condition.
        if (total > 0) return total;
        throw refused(count, 'the waiting calls cannot be placed');
      }
      for (let i = 0; i < count; ++i) {
        const call = this.#calls[this.#decisions[i * decisionWords + 2] as number] as Call;
        (call as Writable<Call>).receipt = this.#receipt(i);
        placed?.push(call);
      }
      total += count;
      if (count < this.#decisionRoom) return total;
    }
  }

  /** @internal Hashes a prompt into {@link chain}. Returns the number of its blocks. */
  hashPrompt(tokens: TokenIds, salt: string): number {
    const ids = checkTokens(tokens);
    const blocks = Math.floor(ids.length / this.blockTokens);
    this.checkPromptBlocks(blocks);
    if (this.#chain.length < blocks) this.#chain = new BigUint64Array(2 * blocks);
    return this.#hasher(salt).hashInto(ids, this.#chain);
  }

  /** @internal The hashes of the prompt hashed last; the rest of the array is meaningless. */
  get chain(): BigUint64Array {
    return this.#chain;
  }

  /** @internal */
  checkPromptBlocks(blocks: number): void {
    if (blocks > this.maxChainBlocks) {
      throw new SagaArgumentError(
        `a prompt must have at most ${this.maxChainBlocks} blocks of ${this.blockTokens} tokens (maxChainBlocks), got ${blocks}`,
      );
    }
  }

  /** @internal Whether a call is open. */
  knows(call: Call): boolean {
    return this.#calls[call.id % twoTo32] === call;
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
      if (call?.receipt?.worker === worker) (call as Writable<Call>).receipt = undefined;
    }
  }

  /** The hasher of a salt, at the root of its chain. */
  #hasher(salt: string): BlockHasher {
    const known = this.#hashers.get(salt);
    if (known !== undefined) return known.reset();
    const made = new BlockHasher({ blockTokens: this.blockTokens, salt });
    if (this.#hashers.size === mostHashers) {
      for (const oldest of this.#hashers.keys()) {
        this.#hashers.delete(oldest);
        break;
      }
    }
    this.#hashers.set(salt, made);
    return made;
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
  /** Small integers in the order of {@link Scheduler.addWorker}, from 0; never used again. */
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
   * @param hashes in chain order, at most 2^24
   * @param options.tier where. Default `gpu`
   * @param options.parent hash of the block before the first one, if known: a hint that makes later matches faster
   * @throws SagaCapacityError when `maxBlocks` are known; nothing was stored
   */
  stored(hashes: BigUint64Array, options: { tier?: Tier; parent?: bigint } & At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    checkHashes('hashes', hashes);
    const tier = checkOneOf('tier', options.tier ?? 'gpu', tiers);
    let given = hashes;
    if (options.parent !== undefined) {
      const parent = checkHash('parent', options.parent);
      if (hashes.length > 0) {
        given = new BigUint64Array(hashes.length + 1);
        given[0] = parent;
        given.set(hashes, 1);
      }
    }
    const status = scheduler.native.blocksStored(now, this.id, tier, given, given === hashes ? 0 : 1);
    if (status < 0) throw refused(status, `worker ${this.id} cannot store ${hashes.length} blocks`);
  }

  /**
   * Blocks are gone (a KV event of the worker). Hashes that it does not hold are ignored.
   *
   * @param hashes in any order, at most 2^24
   * @param options.tier where. Default `gpu`
   */
  removed(hashes: BigUint64Array, options: { tier?: Tier } & At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    checkHashes('hashes', hashes);
    const tier = checkOneOf('tier', options.tier ?? 'gpu', tiers);
    const status = scheduler.native.blocksRemoved(now, this.id, tier, hashes);
    if (status < 0) throw refused(status, `worker ${this.id} cannot remove ${hashes.length} blocks`);
  }

  /** Everything in every tier is gone. */
  cleared(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.blocksCleared(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `worker ${this.id} cannot be cleared`);
  }

  /**
   * The worker reports how many blocks its running calls use. Until the next report the prompts of calls placed there are added.
   *
   * @param options.blocksInUse 0 to 2^32 - 1
   */
  load(options: { blocksInUse: number } & At): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    const blocks = checkInteger('blocksInUse', options.blocksInUse, 0, twoTo32 - 1);
    const status = scheduler.native.workerLoad(now, this.id, blocks);
    if (status < 0) throw refused(status, `worker ${this.id} cannot report its load`);
  }

  /**
   * The worker is lost or drained: what it held is forgotten, and its calls wait to be placed again, before all that were
   * submitted after them. Their {@link Call.receipt} is `undefined` until then.
   */
  remove(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.removeWorker(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `worker ${this.id} cannot be removed`);
    scheduler.forgetReceipts(this);
  }

  /** Its present state; also of a worker that was removed. */
  state(): WorkerState {
    const scheduler = this.#scheduler;
    scheduler.open();
    const status = scheduler.native.workerState(this.id);
    if (status < 0) throw refused(status, `worker ${this.id} has no state`);
    const [blocks = 0, openCalls = 0, blocksInUse = 0, active = 0] = scheduler.workerState;
    return { blocks, openCalls, blocksInUse, active: active === 1 };
  }
}

/** One task of an agent: its calls follow each other, with tool runs between them. Made by {@link Scheduler.openWorkflow}. */
export class Workflow {
  /** Unique among all workflows of the scheduler. */
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
   * @param prompt token ids of the whole prompt, at least one, or its block hashes with its length in tokens; at most
   * `maxChainBlocks` blocks
   * @throws SagaCapacityError when `maxCalls` are open, or their prompts exceed `maxOpenBlocks`
   */
  submit(prompt: TokenIds | HashedPrompt, at: At = {}): Call {
    const scheduler = this.#scheduler;
    const now = scheduler.time(at);
    let chain: BigUint64Array;
    let blocks: number;
    let promptTokens: number;
    if (Array.isArray(prompt) || ArrayBuffer.isView(prompt)) {
      const tokens = prompt as TokenIds;
      blocks = scheduler.hashPrompt(tokens, this.salt);
      promptTokens = tokens.length;
      chain = scheduler.chain;
      if (promptTokens === 0) throw new SagaArgumentError('a prompt must have at least one token, got none');
    } else {
      if (typeof prompt !== 'object' || prompt === null) {
        throw new SagaArgumentError(`prompt must be token ids or { chain, promptTokens }, got ${describe(prompt)}`);
      }
      const hashed = prompt as HashedPrompt;
      chain = checkHashes('chain', hashed.chain);
      blocks = chain.length;
      promptTokens = checkInteger('promptTokens', hashed.promptTokens, 1, mostTokens);
      const most = Math.floor(promptTokens / scheduler.blockTokens);
      scheduler.checkPromptBlocks(most);
      if (blocks > most)
        throw new SagaArgumentError(`chain must have at most ${most} hashes for ${promptTokens} tokens, got ${blocks}`);
    }
    const id = scheduler.native.submitCall(now, this.id, promptTokens, chain, blocks);
    if (id < 0) throw refused(id, `workflow ${this.id} cannot submit a call of ${blocks} blocks`);
    const call = new Call(scheduler, this, id, promptTokens);
    scheduler.remember(call);
    return call;
  }

  /**
   * The client runs a tool now.
   *
   * @param options.tool Default `none`: not known
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` while one runs already
   */
  toolStarted(options: { tool?: ToolClass } & At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    const tool = checkOneOf('tool', options.tool ?? 'none', toolClasses);
    const status = scheduler.native.toolStarted(now, this.id, tool);
    if (status < 0) throw refused(status, `workflow ${this.id} cannot start a tool`);
  }

  /**
   * The tool has returned.
   *
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` if none was started
   */
  toolFinished(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.toolFinished(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `workflow ${this.id} cannot finish a tool`);
  }

  /**
   * The task is done.
   *
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` while one of its calls is open
   */
  close(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.closeWorkflow(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `workflow ${this.id} cannot be closed`);
  }
}

/** One call to the model: it waits, is placed, runs, and ends by {@link finish} or {@link cancel}. Made by {@link Workflow.submit}. */
export class Call {
  /** Unique among all calls of the scheduler. */
  readonly id: number;
  readonly workflow: Workflow;
  readonly promptTokens: number;
  /**
   * Where it goes and why; `undefined` while it waits. A call that loses its worker waits again and gets another one. It stays
   * when the call has ended.
   */
  readonly receipt: Receipt | undefined = undefined;
  readonly #scheduler: Scheduler;

  /** @internal */
  constructor(scheduler: Scheduler, workflow: Workflow, id: number, promptTokens: number) {
    this.#scheduler = scheduler;
    this.workflow = workflow;
    this.id = id;
    this.promptTokens = promptTokens;
  }

  /**
   * Places this call now, together with all others that wait. Does nothing where it has its receipt already.
   *
   * @throws SagaStateError `SAGA_ERR_NO_WORKER` when no worker is active; the call keeps waiting
   * @throws SagaCapacityError `SAGA_ERR_JOURNAL_FULL`; calls before it may have been placed
   */
  place(at: At = {}): Receipt {
    const scheduler = this.#scheduler;
    const now = scheduler.time(at);
    if (!scheduler.knows(this)) throw new SagaStateError('SAGA_ERR_NOT_FOUND', `call ${this.id} has ended`);
    // More than once only where the journal ran full before it was this call's turn: the second time throws.
    while (this.receipt === undefined) {
      if (scheduler.place(now) === 0)
        throw new SagaStateError('SAGA_ERR_NO_WORKER', 'no worker is active: add one, the call keeps waiting');
    }
    return this.receipt;
  }

  /**
   * The worker sent the first token.
   *
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` unless the call is placed and has had none
   */
  firstToken(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.firstToken(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `call ${this.id} cannot have its first token`);
  }

  /** The client is gone: the call ends, whatever its state. */
  cancel(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.cancelCall(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `call ${this.id} cannot be cancelled`);
    scheduler.forget(this);
  }

  /**
   * The answer is complete, or the call failed on the worker: it ends.
   *
   * @param options.stop why the answer ended. Default `unknown`
   * @param options.tool the tool that it asks for. Default `none`
   * @param options.outputTokens length of the answer, 0 to 2^32 - 1. Default 0
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` while it waits; {@link cancel} ends that
   */
  finish(options: { stop?: StopReason; tool?: ToolClass; outputTokens?: number } & At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    const stop = checkOneOf('stop', options.stop ?? 'unknown', stopReasons);
    const tool = checkOneOf('tool', options.tool ?? 'none', toolClasses);
    const tokens = checkInteger('outputTokens', options.outputTokens ?? 0, 0, twoTo32 - 1);
    const status = scheduler.native.finishCall(now, this.id, stop, tool, tokens);
    if (status < 0) throw refused(status, `call ${this.id} cannot be finished`);
    scheduler.forget(this);
  }
}

/** The error for a negative answer of the native side: what was wanted, and why not. */
function refused(answer: number, what: string): SagaError {
  return errorOfStatus(-answer, `${what} (${native.statusText(-answer)})`);
}

function checkHashes(name: string, value: unknown): BigUint64Array {
  if (!(value instanceof BigUint64Array))
    throw new SagaArgumentError(`${name} must be a BigUint64Array of block hashes, got ${describe(value)}`);
  if (value.length > mostHashes)
    throw new SagaArgumentError(`${name} must have at most ${mostHashes} hashes, got ${value.length}`);
  return value;
}

function checkHash(name: string, value: unknown): bigint {
  if (typeof value !== 'bigint' || value < 0n || value >= twoTo64)
    throw new SagaArgumentError(`${name} must be a bigint from 0n to 2n ** 64n - 1n, got ${describe(value)}`);
  return value;
}

function checkTokens(tokens: unknown): Uint32Array {
  if (tokens instanceof Uint32Array) return tokens;
  if (!Array.isArray(tokens))
    throw new SagaArgumentError(`tokens must be a Uint32Array or an array of token ids, got ${describe(tokens)}`);
  const ids = new Uint32Array(tokens.length);
  for (let i = 0; i < ids.length; ++i) ids[i] = checkInteger('a token id', tokens[i], 0, twoTo32 - 1);
  return ids;
}

/** The outcome of a replay, or its error. `result`: status, events, decisions, good bytes. */
function replayed(digest: bigint | number, result: Float64Array): ReplayResult {
  const [status = 0, events = 0, decisions = 0, goodBytes = 0] = result;
  if (status === 0 && typeof digest !== 'number') return { digest, events, decisions };
  const message = `${native.statusText(status)}; ${events} events and the first ${goodBytes} bytes are good`;
  const error = errorOfStatus(status, message);
  throw error instanceof SagaCapacityError ? error : new SagaJournalError(error.code, message);
}
