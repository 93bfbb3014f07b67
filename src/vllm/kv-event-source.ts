/// <reference lib="esnext.disposable" preserve="true" />
/**
 * KV events of inference engines (vLLM, SGLang, llm-d-inference-sim): what a worker's cache holds, told to the scheduler.
 */
import native from '../native.cjs';
import { checkInteger, checkOneOf, checkOptions, checkText, describe } from '../check.js';
import { SagaArgumentError, SagaStateError, errorOfStatus } from '../errors.js';
import type { HashAlgorithm } from '../hasher.js';
import { checkHash, checkHashes, refused } from '../scheduler/checks.js';
import type { At } from '../scheduler/options.js';
import { Scheduler } from '../scheduler/scheduler.js';
import { tiers, type Tier } from '../scheduler/vocabulary.js';
import { Worker } from '../scheduler/worker.js';

/** All bounds are fixed at construction; memory is allocated then. */
export interface KvEventSourceOptions {
  /**
   * How the scheduler's chains are hashed. `sha256_cbor` and `xxhash_cbor`: as the engine's own
   * `--prefix-caching-hash-algo`, with a fixed `PYTHONHASHSEED`. `saga`, the default: blocks are named anew from the tokens in the
   * events, whatever the engine's hash and seed are; the salt of a chain is that of {@link chainSaltOf}.
   */
  algorithm?: HashAlgorithm;
  /** Tokens of a block, 1 to 4,096. Default: those of the scheduler. */
  blockTokens?: number;
  /** Most distinct blocks known at one time, 1 to 2^28. Default 2^18. */
  maxBlocks?: number;
  /** Longest payload, 64 to 2^30. Default 2^26. */
  maxBatchBytes?: number;
}

/** What was done: by one batch, or since construction. Blocks count once for each time that an event names them. */
export interface KvEventCounts {
  events: number;
  storedEvents: number;
  removedEvents: number;
  clearedEvents: number;
  /** Skipped: of another kind. */
  unknownEvents: number;
  /** Skipped: of these kinds, but not as they should be. */
  refusedEvents: number;
  /** Skipped: of memory that is not the publisher's. */
  remoteEvents: number;
  /** Skipped: of blocks that are not full yet. */
  partialEvents: number;
  /** Skipped: of groups with another block size, or beyond the limit. */
  groupEvents: number;
  /** Copies that came. */
  storedBlocks: number;
  /** Copies that went, not counting cleared ones. */
  removedBlocks: number;
  /** Removals of copies that were not known. */
  unknownRemovals: number;
  /** Stored ones whose key cannot be known: behind an unknown parent, or announced without tokens. */
  unusableBlocks: number;
  /** Copies not counted, for want of room. */
  droppedBlocks: number;
  /** Blocks that the scheduler was told to have come. */
  schedulerStored: number;
  /** Blocks that the scheduler was told to have gone. */
  schedulerRemoved: number;
  /** Keys of maps and elements of arrays that are not known. */
  skippedFields: number;
}

/** What {@link KvEventSource.apply} did. */
export interface KvEventReport extends KvEventCounts {
  /** As the batch says. */
  dataParallelRank: number | undefined;
  /** As the batch says: seconds since 1970. */
  timestamp: number;
  /** Why the scheduler may differ from the worker, or `undefined`. */
  uncertain: string | undefined;
  /** The scheduler refused something, as its journal is full: it is told with the next batch, or by {@link KvEventSource.sync}. */
  schedulerBehind: boolean;
}

/** Present sizes, and totals since construction. */
export interface KvEventStats extends KvEventCounts {
  /** KV-cache groups that were named. */
  groups: number;
  /** Longest window of any group, in blocks; 0: no group keeps a window. */
  windowBlocks: number;
  schedulerBehind: boolean;
  batches: number;
  /** Distinct blocks with at least one copy. */
  blocks: number;
  /** Of all groups and tiers. */
  copies: number;
  /** Of `blocks`, those that cannot be used. */
  namelessBlocks: number;
  memoryBytes: number;
}

const countNames = [
  'events',
  'storedEvents',
  'removedEvents',
  'clearedEvents',
  'unknownEvents',
  'refusedEvents',
  'remoteEvents',
  'partialEvents',
  'groupEvents',
  'storedBlocks',
  'removedBlocks',
  'unknownRemovals',
  'unusableBlocks',
  'droppedBlocks',
  'schedulerStored',
  'schedulerRemoved',
  'skippedFields',
] as const satisfies readonly (keyof KvEventCounts)[];

/** Numbers that the native side answers with at most: those before the counts, and the counts. */
const fixedResults = 9;
const algorithms = ['saga', 'sha256_cbor', 'xxhash_cbor'] as const satisfies readonly HashAlgorithm[];
const mostSaltBytes = 4096;
const noDepth = 2 ** 32 - 1;
/** The answer of the native side for a worker that was removed. */
const notFound = -2;

/**
 * The salt of SAGA's own chain for requests with this cache salt and LoRA adapter, as {@link KvEventSource} uses it: for
 * `new BlockHasher({ salt })` and the `salt` of a prompt. Different pairs give different salts; empty where both are empty.
 *
 * Engines that know adapters by number alone (vLLM before 0.14) stand for it: the number in decimal is the name.
 */
export function chainSaltOf(keys: { cacheSalt?: string; loraName?: string }): string {
  checkOptions(keys);
  const cacheSalt = checkText('cacheSalt', keys.cacheSalt ?? '', mostSaltBytes);
  const loraName = checkText('loraName', keys.loraName ?? '', mostSaltBytes);
  return cacheSalt === '' && loraName === '' ? '' : `${Buffer.byteLength(cacheSalt)}:${cacheSalt}${loraName}`;
}

/**
 * The data-parallel rank that a batch of KV events names, without applying it: for publishers that share a socket.
 *
 * @returns `undefined` where it names none
 * @throws SagaArgumentError for what is not a batch
 */
export function kvBatchRank(payload: Uint8Array): number | undefined {
  const rank = native.kvBatchRank(checkPayload(payload));
  if (rank === noDepth) return undefined;
  if (rank < 0) throw refused(rank, `${payload.length} bytes are not a batch of KV events`);
  return rank;
}

/**
 * Takes the KV events of one publisher and data-parallel rank, in order, and keeps a worker of a scheduler in line with them.
 *
 * It counts the copies of every block per KV-cache group and tier: engines announce a block once for each copy. It decodes in the
 * native core, with no object per event or block. Read are the formats of vLLM since 0.9, SGLang and llm-d-inference-sim.
 *
 * Every method throws `SagaArgumentError` for an argument outside its range and `SagaStateError`: `SAGA_ERR_CLOSED` after
 * {@link close} of it or of the scheduler, `SAGA_ERR_NOT_FOUND` once the worker was removed (also where another one has its id, which
 * is never told anything of this one), `SAGA_ERR_TIME_REVERSED`; with a journal
 * `SagaCapacityError` `SAGA_ERR_JOURNAL_FULL` until it is read. A method that throws has changed nothing, unless it says so.
 *
 * @example
 * ```ts
 * const source = new KvEventSource(scheduler, worker);
 * subscriber.onMessage = (topic, sequence, payload) => source.apply(payload);
 * ```
 */
export class KvEventSource {
  readonly algorithm: HashAlgorithm;
  readonly blockTokens: number;
  readonly worker: Worker;
  readonly #scheduler: Scheduler;
  readonly #native: native.KvSource;
  readonly #results = new Float64Array(fixedResults + countNames.length);
  #closed = false;

  /** @throws SagaArgumentError for an option outside its range */
  constructor(scheduler: Scheduler, worker: Worker, options: KvEventSourceOptions = {}) {
    if (!(scheduler instanceof Scheduler))
      throw new SagaArgumentError(`scheduler must be a Scheduler, got ${describe(scheduler)}`);
    if (!(worker instanceof Worker)) throw new SagaArgumentError(`worker must be a Worker, got ${describe(worker)}`);
    checkOptions(options);
    scheduler.open();
    const algorithm = checkOneOf('algorithm', options.algorithm ?? 'saga', algorithms);
    this.algorithm = algorithms[algorithm] as HashAlgorithm;
    this.blockTokens = checkInteger('blockTokens', options.blockTokens ?? scheduler.blockTokens, 1, 4096);
    this.worker = worker;
    this.#scheduler = scheduler;
    const made = scheduler.native.createKvSource(
      worker.id,
      algorithm,
      this.blockTokens,
      checkInteger('maxBlocks', options.maxBlocks ?? 2 ** 18, 1, 2 ** 28),
      checkInteger('maxBatchBytes', options.maxBatchBytes ?? 2 ** 26, 64, 2 ** 30),
      this.#results,
    );
    if (typeof made === 'number')
      throw errorOfStatus(-made, `the source could not be made: ${native.statusText(-made)}`);
    this.#native = made;
  }

  /**
   * Applies one batch, the last frame of a message: the whole of it, or nothing.
   *
   * @throws SagaArgumentError for what is not a batch, or cut off: ask the publisher for it again
   * @throws SagaCapacityError `SAGA_ERR_FULL` for more than `maxBatchBytes`
   */
  apply(payload: Uint8Array, at: At = {}): KvEventReport {
    this.#open();
    const now = this.#scheduler.time(at);
    checkPayload(payload);
    const status = this.worker.gone ? notFound : this.#native.apply(now, payload);
    if (status < 0) throw refused(status, `a batch of ${payload.length} bytes cannot be applied`);
    const [rank = 0, timestamp = 0, , engineStatus = 0] = this.#results;
    return {
      dataParallelRank: rank < 0 ? undefined : rank,
      timestamp,
      uncertain: this.uncertain,
      schedulerBehind: engineStatus !== 0,
      ...this.#counts(4),
    };
  }

  /** The publisher began anew, or events are lost: all is forgotten, here and of the worker. Then feed what comes. */
  reset(at: At = {}): void {
    this.#open();
    const now = this.#scheduler.time(at);
    const status = this.worker.gone ? notFound : this.#native.reset(now);
    if (status < 0) throw refused(status, `worker ${this.worker.id} cannot be reset`);
  }

  /** Tells the scheduler what it refused. @throws SagaCapacityError if it still refuses some of it */
  sync(at: At = {}): void {
    this.#open();
    const now = this.#scheduler.time(at);
    const status = this.worker.gone ? notFound : this.#native.sync(now);
    if (status < 0) throw refused(status, `worker ${this.worker.id} is not up to date`);
  }

  /**
   * Leading blocks of `chain` that the worker could use, from `tier` and faster ones. Groups with a sliding window keep the last
   * blocks of a prefix alone; this is the longest prefix that all groups can serve. 0 while a group is not understood.
   */
  usable(chain: BigUint64Array, options: { tier?: Tier } = {}): number {
    this.#open();
    checkHashes('chain', chain);
    checkOptions(options);
    const blocks = this.#native.usable(checkOneOf('tier', options.tier ?? 'gpu', tiers), chain, noDepth);
    if (blocks < 0) throw refused(blocks, 'the chain cannot be looked up');
    return blocks;
  }

  /** Copies of a block that a KV-cache group holds in a tier. */
  copies(hash: bigint, options: { group?: number; tier?: Tier } = {}): number {
    this.#open();
    checkOptions(options);
    const group = checkInteger('group', options.group ?? 0, 0, 31);
    const tier = checkOneOf('tier', options.tier ?? 'gpu', tiers);
    return this.#native.holds(group, tier, BigUint64Array.of(checkHash('hash', hash)));
  }

  /** Why the scheduler may differ from the worker: sentences, or `undefined` while it is exact. */
  get uncertain(): string | undefined {
    this.#open();
    const bits = this.#native.uncertain();
    if (bits === 0) return undefined;
    const reasons: string[] = [];
    for (let bit = 1; bit <= bits; bit *= 2) if (bits & bit) reasons.push(native.kvUncertainText(bit));
    return reasons.join('; ');
  }

  stats(): KvEventStats {
    this.#open();
    this.#native.stats();
    const [, groups = 0, windowBlocks = 0, behind = 0, batches = 0, blocks = 0, copies = 0, nameless = 0, bytes = 0] =
      this.#results;
    return {
      groups,
      windowBlocks,
      schedulerBehind: behind === 1,
      batches,
      blocks,
      copies,
      namelessBlocks: nameless,
      memoryBytes: bytes,
      ...this.#counts(fixedResults),
    };
  }

  /** Recomputes every invariant, and says whether they hold. */
  verify(): boolean {
    this.#open();
    return this.#native.verify() === 1;
  }

  /** Frees the native memory now. What the scheduler knows of the worker stays. */
  close(): void {
    if (!this.#closed) this.#native.destroy();
    this.#closed = true;
  }

  /** {@link close}, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #open(): void {
    if (this.#closed) throw new SagaStateError('SAGA_ERR_CLOSED', 'the source was closed');
    this.#scheduler.open();
  }

  #counts(from: number): KvEventCounts {
    const results = this.#results;
    const read = (at: number): number => results[from + at] as number;
    // Spelled out, in the order of `countNames`: a batch is reported with every step of an engine.
    return {
      events: read(0),
      storedEvents: read(1),
      removedEvents: read(2),
      clearedEvents: read(3),
      unknownEvents: read(4),
      refusedEvents: read(5),
      remoteEvents: read(6),
      partialEvents: read(7),
      groupEvents: read(8),
      storedBlocks: read(9),
      removedBlocks: read(10),
      unknownRemovals: read(11),
      unusableBlocks: read(12),
      droppedBlocks: read(13),
      schedulerStored: read(14),
      schedulerRemoved: read(15),
      skippedFields: read(16),
    };
  }
}

function checkPayload(payload: unknown): Uint8Array {
  if (!(payload instanceof Uint8Array))
    throw new SagaArgumentError(`payload must be a Uint8Array, got ${describe(payload)}`);
  return payload;
}
