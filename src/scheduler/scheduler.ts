/// <reference lib="esnext.disposable" preserve="true" />
/** The scheduler itself. See ../scheduler.ts. */
import native from '../native.cjs';
import { checkInteger, checkOneOf, checkOptions, checkText, describe } from '../check.js';
import { SagaArgumentError, SagaCapacityError, SagaStateError, errorOfStatus, type SagaError } from '../errors.js';
import type { AgentGraph } from '../graph/agent-graph.js';
import { checkFields, checkNumber } from '../graph/fields.js';
import { BlockHasher } from '../hasher.js';
import type { Call } from './call.js';
import { checkHashes, checkTokens, refused, twoTo32, type Writable } from './checks.js';
import { DirectiveQueue, decisionWords, isPlacement, type Directive } from './directive.js';
import { replayed, type ReplayResult } from './journal.js';
import type { At, SchedulerOptions, StepSeconds, TokenIds } from './options.js';
import { explainPrice, explainReceipt, receiptAt, type Explanation } from './receipt.js';
import {
  calibrationReport,
  sagaStats,
  tenantState,
  type CalibrationReport,
  type SchedulerStats,
  type TenantState,
} from './statistics.js';
import { notTold, toldColumns } from './told.js';
import { parts, policies, tiers, type SchedulingPolicy } from './vocabulary.js';
import { Worker } from './worker.js';
import { Workflow } from './workflow.js';

/** Tenant names are kept for the scheduler's life. Of `saga` it is `maxTenants`. */
const mostTenants = 2 ** 20;
/** Kinds of agents that are told apart; those that come later count as unknown. */
const mostAgentKinds = 63;
/** Numbers that the native side answers with at most. */
const mostResults = 72;
const mostDecisions = 256;
/** Bytes that a record of the journal takes besides its decisions, and for each of them. */
const decisionRecordBytes = { fixed: 25, each: 64 };
const mostTime = Number.MAX_SAFE_INTEGER;
/** Hashers kept, one for each salt; the oldest is forgotten and made anew when its salt comes back. */
const mostHashers = 1024;

const defaultPolicy: SchedulingPolicy = 'saga';

const optionNames: readonly (keyof SchedulerOptions)[] = [
  'maxWorkers',
  'maxWorkflows',
  'maxCalls',
  'maxBlocks',
  'maxOpenBlocks',
  'maxChainBlocks',
  'blockTokens',
  'policy',
  'imbalanceCalls',
  'minimumMatchPercent',
  'seed',
  'journalBytes',
  'clock',
  'maxThreads',
  'maxTenants',
  'maxGraphs',
  'maxLeases',
  'maxDirectives',
  'maxReceipts',
  'without',
  'directiveSeconds',
  'kvBytesPerToken',
  'linkBytesPerSecond',
  'stepSeconds',
];

const stepDefaults: Readonly<Required<StepSeconds>> = {
  base: 28.6e-3,
  perCall: 0.3e-3,
  perContextToken: 7.8e-8,
  perPrefillToken: 0.178e-3,
  perPrefillPair: 4.7e-9,
};

/** In the order of the C interface. */
function stepSeconds(given: StepSeconds): number[] {
  checkFields('stepSeconds', given, Object.keys(stepDefaults), []);
  return Object.entries({ ...stepDefaults, ...given }).map(([name, seconds]) =>
    checkNumber(`stepSeconds.${name}`, seconds, Number.MIN_VALUE, 1000),
  );
}

function partBits(without: unknown): number {
  if (!Array.isArray(without))
    throw new SagaArgumentError(`without must be an array of parts, got ${describe(without)}`);
  return without.reduce<number>((bits, part) => bits | (1 << checkOneOf('without', part, parts)), 0);
}

/**
 * Decides where the calls of agent workflows go, by what the workers hold and how loaded they are.
 *
 * It is told what happens (workers and their KV events, workflows and their calls), and answers with a {@link Call.receipt} for each
 * call. It moves nothing itself. All bounds are fixed at construction and memory is allocated then, some 35 MB with the
 * defaults (20 MB without the policy `saga`). The garbage collector frees it some time after the last use; {@link close} does so
 * at once.
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
  /** Most workers at one time. */
  readonly maxWorkers: number;
  /** Most blocks of one prompt. */
  readonly maxChainBlocks: number;
  /** How calls are scheduled. */
  readonly policy: SchedulingPolicy;
  /** @internal */
  readonly native: native.Engine;
  readonly #decisions = new Uint32Array(decisionWords * mostDecisions);
  /** Decisions that one call of the native side makes at most. */
  readonly #decisionRoom: number;
  readonly #depth: Uint32Array;
  /** @internal What the native side answers with, where it is several numbers. */
  readonly results = new Float64Array(mostResults);
  /** @internal */
  readonly workerState = new Uint32Array(7);
  /** @internal See told.ts. */
  readonly told = new Float64Array(toldColumns);
  readonly #clock: () => number;
  readonly #journalBytes: number;
  /** By id, the newest that has it. */
  readonly #workers: Worker[] = [];
  #workersAdded = 0;
  /** By slot, the lower half of an id. With `saga` calls stay here when they have ended. */
  readonly #calls: (Call | undefined)[] = [];
  /** Tenants and kinds of agents are numbered in the order in which they first appear, kinds from 1. */
  readonly #tenants = new Map<string, number>();
  readonly #maxTenants: number;
  readonly #agentKinds = new Map<string, number>();
  readonly #graphs = new WeakMap<AgentGraph, number>();
  readonly #directives: DirectiveQueue;
  readonly #hashers = new Map<string, BlockHasher>();
  #chain = new BigUint64Array(1024);
  #closed = false;

  /**
   * @throws SagaArgumentError for an option outside its range
   * @throws SagaCapacityError `SAGA_ERR_OUT_OF_MEMORY`
   */
  constructor(options: SchedulerOptions = {}) {
    checkOptions(options);
    checkFields('', options, optionNames, []);
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
    this.policy = policies[checkOneOf('policy', options.policy ?? defaultPolicy, policies)] as SchedulingPolicy;
    const maxWorkflows = checkInteger('maxWorkflows', options.maxWorkflows ?? 4096, 1, 2 ** 24);
    const maxTenants = checkInteger('maxTenants', options.maxTenants ?? 64, 1, 2 ** 16);
    const maxDirectives = checkInteger('maxDirectives', options.maxDirectives ?? 4096, 1, 2 ** 20);
    this.#maxTenants = this.policy === 'saga' ? maxTenants : mostTenants;
    this.#directives = new DirectiveQueue(this.policy === 'saga' ? maxDirectives : 0);
    const engine = native.createEngine(
      Float64Array.of(
        this.maxWorkers,
        maxWorkflows,
        checkInteger('maxCalls', options.maxCalls ?? 8192, 1, 2 ** 24),
        checkInteger('maxBlocks', options.maxBlocks ?? 2 ** 20, 1, 2 ** 29 - 1),
        checkInteger('maxOpenBlocks', options.maxOpenBlocks ?? 2 ** 21, 1, twoTo32),
        this.maxChainBlocks,
        this.blockTokens,
        policies.indexOf(this.policy),
        checkInteger('imbalanceCalls', options.imbalanceCalls ?? 10, 0, twoTo32 - 1),
        checkInteger('minimumMatchPercent', options.minimumMatchPercent ?? 10, 0, 100),
        seed,
        journalBytes,
        checkInteger('maxThreads', options.maxThreads ?? Math.min(2 * maxWorkflows, 2 ** 24), 1, 2 ** 24),
        maxTenants,
        checkInteger('maxGraphs', options.maxGraphs ?? 64, 0, 4096),
        checkInteger('maxLeases', options.maxLeases ?? 4096, 0, 2 ** 20),
        maxDirectives,
        checkInteger('maxReceipts', options.maxReceipts ?? 4096, 0, 2 ** 24),
        partBits(options.without ?? []),
        checkInteger('directiveSeconds', options.directiveSeconds ?? 60, 1, 86_400),
        checkInteger('kvBytesPerToken', options.kvBytesPerToken ?? 327_680, 1, 2 ** 30),
        checkInteger('linkBytesPerSecond', options.linkBytesPerSecond ?? 25e9, 1, 1e13),
        ...stepSeconds(options.stepSeconds ?? {}),
      ),
      this.#decisions,
      this.#depth,
      this.results,
      this.workerState,
      this.told,
    );
    if (typeof engine === 'number')
      throw errorOfStatus(-engine, `the scheduler could not be made: ${native.statusText(-engine)}`);
    this.native = engine;
  }

  /**
   * A worker joins.
   *
   * @param options.blocks its KV room in blocks, 1 to 2^32 - 1
   * @throws SagaCapacityError when there are `maxWorkers`, not counting removed ones
   */
  addWorker(options: { blocks: number } & At): Worker {
    const now = this.time(options);
    const blocks = checkInteger('blocks', options.blocks, 1, twoTo32 - 1);
    const id = this.native.addWorker(now, blocks);
    if (id < 0) throw refused(id, `a worker cannot be added: maxWorkers is ${this.maxWorkers}`);
    const worker = new Worker(this, id, ++this.#workersAdded);
    this.#workers[id] = worker;
    return worker;
  }

  /**
   * The newest worker with an id, also one that was removed. Ids count from 0 in the order of {@link addWorker} up to `maxWorkers` - 1;
   * then those of removed workers are used again, see {@link Worker.id}.
   */
  worker(id: number): Worker | undefined {
    this.open();
    return this.#workers[id];
  }

  /**
   * A workflow begins: one task of an agent, whose calls follow each other.
   *
   * @param options.tenant who it belongs to; default the empty name
   * @param options.salt isolates tenants from each other's KV pages: prompts with different salts share no block. Default empty
   * @param options.graph what is declared about tasks like this one; it is declared to the scheduler ({@link declare}) where it was
   * not before. Default: nothing
   * @param options.agentKind what `saga` learns is kept apart for each kind of agent (its name or role, not its instance) and tenant.
   * The first 63 names are told apart, later ones count as not told. Default: not told
   * @throws SagaCapacityError when `maxWorkflows` are open, or `maxTenants` (with other policies than `saga` 2^20) tenant names
   * have been seen
   */
  openWorkflow(
    options: { tenant?: string; salt?: string; graph?: AgentGraph; agentKind?: string } & At = {},
  ): Workflow {
    const now = this.time(options);
    const tenant = checkText('tenant', options.tenant ?? '');
    const salt = checkText('salt', options.salt ?? '');
    const { graph, agentKind } = options;
    if (agentKind !== undefined) checkText('agentKind', agentKind);
    const tenantId = this.#tenantNumber(tenant);
    const kind = agentKind === undefined ? 0 : (this.#agentKinds.get(agentKind) ?? this.#agentKinds.size + 1);
    const graphId = graph === undefined ? notTold : this.#graphNumber(graph, now);
    const id = this.native.openWorkflow(now, tenantId, graphId, kind > mostAgentKinds ? 0 : kind);
    if (id < 0) throw refused(id, 'a workflow cannot be opened');
    this.#tenants.set(tenant, tenantId);
    if (agentKind !== undefined && kind <= mostAgentKinds) this.#agentKinds.set(agentKind, kind);
    return new Workflow(this, id, tenant, salt, graph);
  }

  /**
   * Declares a graph ahead of the first workflow that has it, for example when a service starts. Again, or another graph that is
   * equal: nothing happens.
   *
   * @throws SagaCapacityError when `maxGraphs` are declared
   */
  declare(graph: AgentGraph, at: At = {}): void {
    this.#graphNumber(graph, this.time(at));
  }

  /**
   * What a tenant has, and its weight if one is given. A tenant is known from its first workflow or weight on.
   *
   * @param options.weight of its fair share, 1/1,024 to 1,024; takes effect at once. Default: as it is, 1 at first
   * @returns its state, see {@link tenants}
   * @throws SagaCapacityError when `maxTenants` are known
   * @throws SagaStateError `SAGA_ERR_NOT_FOUND` for one that is not known where no weight is given, `SAGA_ERR_WRONG_STATE` with
   * another policy than `saga`
   */
  tenant(name: string, options: { weight?: number } & At = {}): TenantState {
    const now = this.time(options);
    checkText('name', name);
    this.#checkSaga('tenants');
    const id = this.#tenantNumber(name);
    if (options.weight !== undefined) {
      const weight = checkNumber('weight', options.weight, 1 / 1024, 1024);
      const status = this.native.setTenant(now, id, weight);
      if (status < 0) throw refused(status, `tenant ${describe(name)} cannot have weight ${weight}`);
      this.#tenants.set(name, id);
    }
    if (!this.#tenants.has(name))
      throw new SagaStateError('SAGA_ERR_NOT_FOUND', `no tenant ${describe(name)} is known`);
    return this.#tenantState(name, id);
  }

  /**
   * What each tenant has, in the order in which they first appeared.
   *
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` with another policy than `saga`
   */
  tenants(): TenantState[] {
    this.open();
    this.#checkSaga('tenants');
    return [...this.#tenants].map(([name, id]) => this.#tenantState(name, id));
  }

  /**
   * Places the calls that wait. With `round-robin` and `affinity`: all of them, in order of submission, unless no worker is active.
   * With `saga` a call may be held back until there is room or its blocks have come; and what was to be done by now is done first.
   * Call it after whatever happens, and at {@link nextWake}; then {@link directives}.
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
   * What `saga` decided that is done between calls: copies, leases and their ends, what may be dropped, priorities. In order, each
   * once; they come with {@link decide} and {@link Call.place}. Always empty with the other policies.
   *
   * @example
   * ```ts
   * for (const directive of scheduler.directives()) {
   *   if (directive.type === 'copy') startCopy(directive).then(() => directive.applied());
   * }
   * ```
   */
  directives(): Directive[] {
    this.open();
    return this.#directives.take(this);
  }

  /** The time of the clock, in whole microseconds. */
  now(): number {
    return this.time({});
  }

  /**
   * When `saga` wants {@link decide} to be called, if nothing happens before, in microseconds; `undefined`: not before something
   * happens. Always `undefined` with the other policies.
   */
  get nextWake(): number | undefined {
    this.open();
    const time = this.native.nextWake();
    return time === Number.POSITIVE_INFINITY ? undefined : time;
  }

  /**
   * Why a call went where it did, newest placement first: the receipt in words, and by `saga` with the price of the alternatives. Also
   * of a call that waits for its blocks, or was granted a worker and not read by {@link decide} yet.
   *
   * @returns `undefined` where it is not granted a worker yet, `maxReceipts` have come since, or it has lost its worker and another
   * one has that one's id
   */
  explain(call: Call): Explanation | undefined {
    this.open();
    if (this.policy !== 'saga') return call.receipt && explainReceipt(call, call.receipt);
    const status = this.native.receipt(call.id);
    return status < 0 ? undefined : explainPrice(call, this.results, (id, added) => this.#workerThen(id, added, call));
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
    const at = (i: number): number => this.results[i] as number;
    const stats = {
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
    if (this.policy !== 'saga') return { ...stats, saga: undefined };
    this.native.schedulerStats();
    return { ...stats, saga: sagaStats(this.results, this.#directives.lost) };
  }

  /**
   * How good the predictions of `saga` were.
   *
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` with another policy
   */
  calibration(): CalibrationReport {
    this.open();
    this.#checkSaga('predictions');
    this.native.calibration();
    return calibrationReport(this.results);
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

  /** @internal Places what waits; the calls go to `placed`, if given. Returns the number of decisions, directives included. */
  place(now: number, placed?: Call[]): number {
    const words = this.#decisions;
    let total = 0;
    for (;;) {
      const count = this.native.decide(now);
      if (count < 0) {
        // What was placed before the journal ran full must reach the caller; the next call reports the condition.
        if (total > 0) return total;
        throw refused(count, 'the waiting calls cannot be placed');
      }
      for (let i = 0; i < count; ++i) {
        const from = i * decisionWords;
        if (isPlacement(words[from] as number)) {
          const call = this.#calls[words[from + 2] as number] as Call;
          (call as Writable<Call>).receipt = receiptAt(words, from, this.#workers);
          placed?.push(call);
        } else {
          const about = this.#callOf(words[from + 2] as number, words[from + 3] as number);
          this.#directives.push(words, from, about, this.#workers);
        }
      }
      total += count;
      if (count < this.#decisionRoom) break;
    }
    return total;
  }

  /** @internal The error for a call that is not placed though everything was decided. */
  whyWaiting(call: Call): SagaError {
    this.native.stats();
    if (this.results[0] === 0)
      return new SagaStateError('SAGA_ERR_NO_WORKER', 'no worker is active: add one, the call keeps waiting');
    const wake = this.nextWake;
    const when = wake === undefined ? 'after the next event' : `at ${wake} or after the next event`;
    return new SagaStateError(
      'SAGA_ERR_HELD',
      `call ${call.id} is held back until there is room or its blocks are there: decide again ${when}`,
    );
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
    return !call.ended && this.#calls[call.id % twoTo32] === call;
  }

  /** @internal */
  remember(call: Call): void {
    this.#calls[call.id % twoTo32] = call;
  }

  /** @internal */
  forget(call: Call): void {
    const slot = call.id % twoTo32;
    if (this.#calls[slot] !== call) return;
    call.ended = true;
    // Directives may still be about it, until its slot is given to another call.
    if (this.policy !== 'saga') this.#calls[slot] = undefined;
  }

  /** Who had an id when so many workers had been added (modulo 2^32); `undefined`: who is gone, and another has it now. */
  #workerThen(id: number, added: number, call: Call): Worker | undefined {
    const newest = this.#workers[id];
    if (newest !== undefined && (added - newest.number) >>> 0 < 2 ** 31) return newest;
    // Where the call ran, its own receipt still says.
    return call.receipt?.worker.id === id ? call.receipt.worker : undefined;
  }

  /** By the two words of its id. */
  #callOf(slot: number, high: number): Call | undefined {
    const id = high * twoTo32 + slot;
    const call = this.#calls[slot];
    return call?.id === id ? call : undefined;
  }

  /** A tenant's number, also of one that is not known yet. */
  #tenantNumber(name: string): number {
    const id = this.#tenants.get(name) ?? this.#tenants.size;
    if (id < this.#maxTenants) return id;
    throw new SagaCapacityError('SAGA_ERR_FULL', `a scheduler knows at most ${this.#maxTenants} tenant names`);
  }

  #tenantState(name: string, id: number): TenantState {
    const status = this.native.tenantState(id);
    if (status < 0) throw refused(status, `tenant ${describe(name)} has no state`);
    return tenantState(name, this.results);
  }

  #graphNumber(graph: AgentGraph, now: number): number {
    if (typeof graph !== 'object' || typeof (graph as AgentGraph | null)?.toColumns !== 'function')
      throw new SagaArgumentError(`graph must be an AgentGraph, got ${describe(graph)}`);
    const known = this.#graphs.get(graph);
    if (known !== undefined) return known;
    const { steps, edges, totals } = graph.toColumns();
    const id = this.native.declareGraph(now, steps, edges, totals);
    if (id < 0) throw refused(id, 'the graph cannot be declared');
    this.#graphs.set(graph, id);
    return id;
  }

  #checkSaga(what: string): void {
    if (this.policy !== 'saga')
      throw new SagaStateError('SAGA_ERR_WRONG_STATE', `the policy ${this.policy} knows no ${what}; saga does`);
  }

  /** @internal The calls of a lost worker wait again. */
  forgetReceipts(worker: Worker): void {
    for (const call of this.#calls) {
      if (call?.receipt?.worker === worker && !call.ended) (call as Writable<Call>).receipt = undefined;
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
