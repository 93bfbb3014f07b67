/// <reference lib="esnext.disposable" preserve="true" />
/** The scheduler itself. See ../scheduler.ts. */
import native from '../native.cjs';
import { checkInteger, checkOneOf, checkOptions, checkText, describe } from '../check.js';
import { SagaArgumentError, SagaCapacityError, SagaStateError, errorOfStatus } from '../errors.js';
import { BlockHasher } from '../hasher.js';
import type { Call } from './call.js';
import { checkHashes, checkTokens, refused, twoTo32, type Writable } from './checks.js';
import { replayed, type ReplayResult } from './journal.js';
import type { At, SchedulerOptions, TokenIds } from './options.js';
import { receiptAt } from './receipt.js';
import type { SchedulerStats } from './statistics.js';
import { placements, tiers } from './vocabulary.js';
import { Worker } from './worker.js';
import { Workflow } from './workflow.js';

/** Tenant names are kept for the scheduler's life. */
const mostTenants = 2 ** 20;
const decisionWords = 16;
const mostDecisions = 256;
/** Bytes that a record of the journal takes besides its decisions, and for each of them. */
const decisionRecordBytes = { fixed: 25, each: 64 };
const mostTime = Number.MAX_SAFE_INTEGER;
/** Hashers kept, one for each salt; the oldest is forgotten and made anew when its salt comes back. */
const mostHashers = 1024;

/**
 * Decides where the calls of agent workflows go, by what the workers hold and how loaded they are.
 *
 * It is told what happens (workers and their KV events, workflows and their calls), and answers with a {@link Call.receipt} for each
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
        (call as Writable<Call>).receipt = receiptAt(this.#decisions, i * decisionWords, this.#workers);
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
}
