/** A worker as the scheduler sees it. */
import { checkInteger, checkOneOf } from '../check.js';
import { checkNumber } from '../graph/fields.js';
import { checkHash, checkHashes, refused, twoTo32 } from './checks.js';
import { notTold } from './told.js';
import type { At } from './options.js';
import type { Scheduler } from './scheduler.js';
import { tiers, type Tier } from './vocabulary.js';

/** Longest prompt in blocks that an engine may be made for. */
const mostWindow = 2 ** 24;

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
  /** How far what it reports to hold is believed, 0 to 1. */
  trust: number;
  /** `false` while it is drained. */
  accepts: boolean;
  /** Blocks of the window of a model with sliding-window attention; 0: none. */
  windowBlocks: number;
}

/** What the policy `saga` reckons with on a worker. */
export interface WorkerForecast {
  /** Calls that are there or granted to it. */
  openCalls: number;
  /** Time that calls took here over the time that was predicted, learned: 1/4 to 4. */
  costFactor: number;
  /** Tokens of the working sets of the agents there, each weighted by how likely it is back within half a minute. */
  residentTokens: number;
  /** Tokens of running calls. */
  runningTokens: number;
  /** Blocks held by leases. */
  leasedBlocks: number;
}

/**
 * A worker as the scheduler sees it: what it holds, and how loaded it is. Made by {@link Scheduler.addWorker}.
 *
 * Once it was removed it stays so: another worker may get its {@link id}, but this object has nothing to do with that one. But for
 * {@link state}, its methods throw `SAGA_ERR_NOT_FOUND` then.
 */
export class Worker {
  /**
   * 0 to `maxWorkers` - 1. Each new worker has one that nobody had, in order from 0, while there are such; then the one whose worker
   * was removed longest ago. So workers of one id are never there at one time, and two `Worker`s are one worker where they are one
   * object.
   */
  readonly id: number;
  /** @internal How many workers the scheduler was given, with it. */
  readonly number: number;
  readonly #scheduler: Scheduler;
  /** The native side's id of it; of nobody once it was removed. */
  #native: number;
  /** Its state when it was removed. */
  #last: WorkerState | undefined;

  /** @internal */
  constructor(scheduler: Scheduler, id: number, number: number) {
    this.#scheduler = scheduler;
    this.id = id;
    this.number = number;
    this.#native = id;
  }

  /** @internal */
  get gone(): boolean {
    return this.#last !== undefined;
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
    const status = scheduler.native.blocksStored(now, this.#native, tier, given, given === hashes ? 0 : 1);
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
    const status = scheduler.native.blocksRemoved(now, this.#native, tier, hashes);
    if (status < 0) throw refused(status, `worker ${this.id} cannot remove ${hashes.length} blocks`);
  }

  /** Everything in every tier is gone. */
  cleared(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.blocksCleared(scheduler.time(at), this.#native);
    if (status < 0) throw refused(status, `worker ${this.id} cannot be cleared`);
  }

  /**
   * The worker reports how many blocks its running calls use. Until the next report the prompts of calls placed there are added.
   *
   * @param options.blocksInUse 0 to 2^32 - 1
   * @param options.waitingCalls calls in the worker's own queue, 0 to 2^32 - 2. Default: not told
   * @param options.freeBlocks blocks that hold nothing at all, 0 to 2^32 - 2. Default: not told
   */
  load(options: { blocksInUse: number; waitingCalls?: number; freeBlocks?: number } & At): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    const blocks = checkInteger('blocksInUse', options.blocksInUse, 0, twoTo32 - 1);
    const { waitingCalls, freeBlocks } = options;
    const waiting = waitingCalls === undefined ? notTold : checkInteger('waitingCalls', waitingCalls, 0, notTold - 1);
    const free = freeBlocks === undefined ? notTold : checkInteger('freeBlocks', freeBlocks, 0, notTold - 1);
    const status =
      waiting === notTold && free === notTold
        ? scheduler.native.workerLoad(now, this.#native, blocks)
        : scheduler.native.workerLoadWith(now, this.#native, blocks, waiting, free);
    if (status < 0) throw refused(status, `worker ${this.id} cannot report its load`);
  }

  /**
   * How far what the worker reports to hold is believed: a match of n blocks there counts as n times `trust` wherever a worker
   * is chosen. Receipts keep the match as reported.
   *
   * @param trust 0 to 1, kept in thousandths. Default 1
   */
  trust(trust: number, at: At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(at);
    const perMille = Math.round(checkNumber('trust', trust, 0, 1) * 1000);
    const status = scheduler.native.workerTrust(now, this.#native, perMille);
    if (status < 0) throw refused(status, `worker ${this.id} cannot be trusted`);
  }

  /**
   * The worker takes no more calls, and nothing is copied to it. Its calls go on, and what it holds may be copied away. While
   * all workers are drained, calls wait. Once {@link WorkerState.openCalls} is 0 nothing is lost with {@link Worker.remove}.
   */
  drain(at: At = {}): void {
    this.#accept(0, at);
  }

  /** It takes calls again. */
  resume(at: At = {}): void {
    this.#accept(1, at);
  }

  #accept(accepts: 0 | 1, at: At): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.workerAccepts(scheduler.time(at), this.#native, accepts);
    if (status < 0) throw refused(status, `worker ${this.id} cannot be ${accepts === 0 ? 'drained' : 'resumed'}`);
  }

  /**
   * For models with sliding-window attention: leading blocks in GPU memory count as a match up to the longest prefix whose last
   * `blocks` blocks (all of them, where it is shorter) the worker's window groups hold.
   *
   * @param blocks 0 to 2^24; for a window of t tokens (t - 1) / blockTokens, rounded up. Default 0: the model has no windows
   */
  window(blocks: number, at: At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(at);
    const status = scheduler.native.workerWindow(now, this.#native, checkInteger('blocks', blocks, 0, mostWindow));
    if (status < 0) throw refused(status, `worker ${this.id} cannot have a window`);
  }

  /**
   * The window groups hold these blocks (a KV event of the worker). Counted per copy: with several groups, tell a block when all
   * of them hold it and when the first loses it. {@link Worker.cleared} forgets them too.
   *
   * @param hashes at most 2^24
   * @throws SagaCapacityError when `maxBlocks` are known; nothing was stored
   */
  windowStored(hashes: BigUint64Array, at: At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(at);
    const status = scheduler.native.windowStored(now, this.#native, checkHashes('hashes', hashes));
    if (status < 0) throw refused(status, `worker ${this.id} cannot store ${hashes.length} window blocks`);
  }

  /**
   * The window groups no longer hold these blocks (a KV event of the worker). Hashes that they do not hold are ignored.
   *
   * @param hashes at most 2^24
   */
  windowRemoved(hashes: BigUint64Array, at: At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(at);
    const status = scheduler.native.windowRemoved(now, this.#native, checkHashes('hashes', hashes));
    if (status < 0) throw refused(status, `worker ${this.id} cannot remove ${hashes.length} window blocks`);
  }

  /**
   * The worker is lost, or has been drained: what it held is forgotten, and its calls wait to be placed again, before all that were
   * submitted after them. Their {@link Call.receipt} is `undefined` until then.
   */
  remove(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.removeWorker(scheduler.time(at), this.#native);
    if (status < 0) throw refused(status, `worker ${this.id} cannot be removed`);
    this.#last = this.state();
    this.#native = notTold;
    scheduler.forgetReceipts(this);
  }

  /** Its present state; of a worker that was removed, its last one. */
  state(): WorkerState {
    const scheduler = this.#scheduler;
    scheduler.open();
    if (this.#last !== undefined) return { ...this.#last };
    const status = scheduler.native.workerState(this.#native);
    if (status < 0) throw refused(status, `worker ${this.id} has no state`);
    const [blocks = 0, openCalls = 0, blocksInUse = 0, active = 0, perMille = 0, accepts = 0, windowBlocks = 0] =
      scheduler.workerState;
    return {
      blocks,
      openCalls,
      blocksInUse,
      active: active === 1,
      trust: perMille / 1000,
      accepts: accepts === 1,
      windowBlocks,
    };
  }

  /**
   * What `saga` reckons with here.
   *
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` with another policy
   */
  forecast(): WorkerForecast {
    const scheduler = this.#scheduler;
    scheduler.open();
    const status = scheduler.native.workerForecast(this.#native);
    if (status < 0) throw refused(status, `worker ${this.id} has no forecast`);
    const [openCalls = 0, costFactor = 1, residentTokens = 0, runningTokens = 0, leasedBlocks = 0] = scheduler.results;
    return { openCalls, costFactor, residentTokens, runningTokens, leasedBlocks };
  }
}
