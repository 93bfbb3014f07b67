/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Page tables: the KV blocks of one worker as its server sees them, for a server that lets SAGA own the block numbers. The
 * server owns the memory behind them and moves the bytes.
 *
 * Everything is synchronous and costs O(blocks concerned); no JavaScript object is made per block. Numbers of blocks and
 * sequences are small integers; block hashes are 64-bit and come from {@link BlockHasher} or from vLLM.
 */
import native from './native.cjs';
import { checkInteger, checkOneOf, describe } from './check.js';
import { SagaArgumentError, SagaStateError, errorOfStatus } from './errors.js';
import {
  promptKinds,
  stopReasons,
  toolClasses,
  type PromptKind,
  type StopReason,
  type Tier,
  type ToolClass,
} from './scheduler/vocabulary.js';

const evictions = ['lru', 'saga'] as const;
const tiers = ['gpu', 'host', 'disk'] as const satisfies readonly Tier[];

/** All bounds are fixed at construction; memory is allocated then. */
export interface PageTableOptions {
  /** Tokens of a block, 1 to 4,096. Default 16. */
  blockTokens?: number;
  /**
   * Blocks of each tier, at most 2^26: GPU memory (at least 1), host memory and disk (default 0: there is no such tier). Some
   * 64 to 96 bytes of memory each.
   */
  blocks: { gpu: number; host?: number; disk?: number };
  /** Most sequences open at one time, 1 to 2^20. Default 256. */
  maxSequences?: number;
  /**
   * Longest block table, and the most blocks of one plan, 1 to 2^20. Default 8,192. Its product with {@link maxSequences} is
   * at most 2^30, with {@link maxPlans} at most 2^26, and with {@link blockTokens} at most 2^32 - 2.
   */
  maxBlocksPerSequence?: number;
  /** Most plans pending at one time, 1 to 2^16. Default 8. */
  maxPlans?: number;
  /** Events kept until {@link PageTable.drainEvents}, at most 2^26. Default 0: none. As many as there are blocks is plenty. */
  eventCapacity?: number;
  /** Whether a block that is freed without a hash is the next to be taken, rather than the last. Default `false`. */
  uncachedFirst?: boolean;
  /**
   * Which cached blocks of GPU memory are taken first. `lru` (default): least recently used first, as vLLM does. `saga`: those
   * with the fewest expected hits for each second that they would be kept, by what the table has learned of how long threads
   * are away; see {@link SequenceCall} and {@link SequenceOutcome} for what it learns from.
   */
  eviction?: 'lru' | 'saga';
  /** With `saga`: pages remembered that are gone, so that their threads are known again. At most 2^27; default twice the blocks. */
  ghosts?: number;
  /** With `saga` and host memory: copy what is evicted where that pays. Default: it is dropped. */
  demotion?: DemotionOptions;
  /** With `saga`: the time in microseconds, never running backwards. Default: `performance.now()`. */
  clock?: () => number;
}

/**
 * A block that `allocateSlots` evicts is copied to host memory where the chance that it is used again within `horizonSeconds`,
 * times the time to compute it again, exceeds `price` times the time to bring it back.
 */
export interface DemotionOptions {
  /** Microseconds to compute a token at the beginning of a prompt. */
  recomputeMicroseconds: number;
  /** A token at this position takes twice as long, for attention grows. Default 60,000. */
  recomputeDoubleTokens?: number;
  /** Microseconds to bring a token back from host memory. */
  transferMicroseconds: number;
  /** Default 1. Above 1 where the link is busy. */
  price?: number;
  /** Default 600. */
  horizonSeconds?: number;
}

/** What is known of the call that a sequence is opened for. */
export interface SequenceCall {
  /** The agent that calls; its calls follow each other. An integer from 0. Default: the table infers it from the prompt. */
  thread?: number;
  /** What the prompt brings. Default `start`. */
  promptKind?: PromptKind;
}

/** How a call ended; all of it may be unknown. */
export interface CallOutcome {
  stopReason?: StopReason;
  /** The tool that the answer calls. */
  tool?: ToolClass;
  /** The client says that its thread will not call again. It is believed as far as it has been right. */
  sessionEnd?: boolean;
  /** The client says that its tool takes so many seconds. So is this. */
  declaredGapSeconds?: number;
  /** Of the answer. */
  outputTokens?: number;
}

/** How the call of a sequence ended. */
export interface SequenceOutcome extends CallOutcome {
  /** It was preempted: the next call of its thread is the same one, which goes on. */
  preempted?: boolean;
}

/** Of the policy `saga`; all zero under `lru`. Totals since construction. */
export interface EvictionStats {
  freeBlocks: number;
  /** In blocks, distinct. */
  pages: number;
  /** Pages without a block that stand in before others. */
  hollow: number;
  /** Pages that are remembered and gone. */
  ghosts: number;
  /** Threads and superseded prompts that are known. */
  heads: number;
  takenTotal: number;
  takenWithoutHashTotal: number;
  /** Blocks whose page another block held, too. */
  takenCopiesTotal: number;
  /** Pages that went by the policy. */
  evictedTotal: number;
  /** Of these, never used again since they were written. */
  bypassedTotal: number;
  /** Threads and superseded prompts forgotten for want of room. */
  forgottenTotal: number;
  /** Full blocks of prompts that could hit, and those that did not. */
  requestedPagesTotal: number;
  missedPagesTotal: number;
  memoryBytes: number;
  /** Blocks copied to host memory. */
  demotedTotal: number;
  /** Blocks that were there already. */
  demotedSharedTotal: number;
  /** Blocks that were not worth it. */
  demotionDroppedTotal: number;
  /** Blocks for which there was no room there, or no room to report. */
  demotionRefusedTotal: number;
}

/** Misses on the recent calls, but for the first quarter of them, and those of Belady's optimum on the same calls. */
export interface Regret {
  calls: number;
  missedPages: number;
  optimumMissedPages: number;
}

/** Leading tokens of a prompt that need no computing, in whole blocks. */
export interface PrefixHit {
  /** In all. */
  readonly tokens: number;
  /** By the tier that their block lies in. */
  readonly tokensInTier: Readonly<Record<Tier, number>>;
}

/** A new sequence, and what it found in the cache. */
export interface OpenedSequence extends PrefixHit {
  /** Its id, until {@link PageTable.free}. The id freed last is given out next. */
  readonly sequence: number;
}

/** A pending plan; see {@link PageTable.planSwapOut}. */
export interface Plan {
  /** Its id, for {@link PageTable.commit} or {@link PageTable.abort}. */
  readonly plan: number;
  /**
   * The copies to execute, in this order. Four words a copy: source tier, source block, target tier, target block; tiers are
   * 0 = GPU, 1 = host, 2 = disk. May be empty (the targets hold the hashes already); the plan is to be committed all the same.
   */
  readonly copies: Uint32Array;
}

export interface SequenceState {
  tokens: number;
  /** `tokens / blockTokens`, rounded up. */
  blocks: number;
  /** Leading blocks whose hash was given; {@link PageTable.cacheFullBlocks} continues behind them. */
  cachedBlocks: number;
  /** Whether all blocks are in GPU memory. */
  resident: boolean;
  /** Whether a plan of the sequence is pending. */
  busy: boolean;
}

/** What became findable by its hash and what ceased to be, oldest first: element `i` of each array is event `i`. */
export interface BlockEvents {
  /** 0 for "cleared". */
  readonly hashes: BigUint64Array;
  /** Block numbers; 2^32 - 1 for "cleared". */
  readonly blocks: Uint32Array;
  /** 0 = GPU, 1 = host, 2 = disk. */
  readonly tiers: Uint8Array;
  /**
   * 0 = stored: the block now answers to the hash; 1 = removed: it no longer does; 2 = cleared: nothing in the tier is cached
   * any more. Counted per block: two blocks with one hash give two "stored" and, one by one, two "removed".
   */
  readonly kinds: Uint8Array;
}

/** Blocks of one tier; totals since construction. */
export interface BlockPoolStats {
  blocks: number;
  /** Cached or not. */
  freeBlocks: number;
  /** In use or free, every copy counted. */
  cachedBlocks: number;
  /** Distinct. */
  cachedHashes: number;
  allocatedTotal: number;
  /** Hashes lost because their block was taken. */
  evictedTotal: number;
  memoryBytes: number;
}

/** Present sizes, and totals since construction. */
export interface PageTableStats {
  tiers: Record<Tier, BlockPoolStats>;
  openSequences: number;
  pendingPlans: number;
  /** Not counting forks. */
  openedTotal: number;
  promptTokensTotal: number;
  /** Prompt tokens that needed no computing, by the tier they were found in. */
  hitTokensTotal: Record<Tier, number>;
  copiesOnWriteTotal: number;
  /** Blocks, by committed plans. */
  copiedIntoTierTotal: Record<Tier, number>;
  /** Refusals. */
  outOfBlocksTotal: number;
  /** Dropped because {@link PageTableOptions.eventCapacity} events were waiting. */
  eventsLostTotal: number;
  /** Of the whole table. */
  memoryBytes: number;
}

const twoTo32 = 2 ** 32;
const statCount = 35;
const evictionStatCount = 18;
/** `SAGA_ERR_NOT_FOUND`. */
const notFound = 2;
const copyWords = 4;
const rangeWords = 3;

/**
 * Sequences of tokens, each with a block table, over a pool of blocks in each tier.
 *
 * A sequence is opened with the hashes of its prompt and starts with the longest cached prefix; {@link allocateSlots} gives it
 * room, {@link cacheFullBlocks} lets others find what it has computed, {@link fork} makes a second one over the same blocks,
 * {@link free} ends it. Blocks that nobody uses stay cached until they are taken, least recently used first, the end of a
 * prefix before its beginning.
 *
 * Copies, of copy-on-write and of plans, are to be executed in the order reported, before anything is written into a block that
 * was given out later.
 *
 * While a `BatchFormer` works on the table, what opens or changes a sequence throws `SAGA_ERR_WRONG_STATE`.
 *
 * Every method throws `SagaArgumentError` for an argument outside its range, and `SagaStateError` `SAGA_ERR_NOT_FOUND` for a
 * sequence or plan that is not open, `SAGA_ERR_CLOSED` after {@link close}. A method that throws has changed nothing.
 *
 * @example
 * ```ts
 * const table = new PageTable({ blocks: { gpu: 1000 } });
 * const hashes = hasher.reset().update(prompt);
 * const { sequence, tokens } = table.open(hashes, prompt.length); // `tokens` of them need no computing
 * table.allocateSlots(sequence, prompt.length - tokens);
 * const blockTables = table.exportBlockTables(Uint32Array.of(sequence));
 * const slots = table.exportSlotMapping(Uint32Array.of(sequence, tokens, prompt.length - tokens));
 * // ... compute ...
 * table.cacheFullBlocks(sequence, hashes.subarray(tokens / table.blockTokens));
 * table.free(sequence);
 * ```
 */
export class PageTable {
  readonly blockTokens: number;
  readonly maxSequences: number;
  readonly maxBlocksPerSequence: number;
  readonly maxPlans: number;
  readonly eventCapacity: number;
  readonly #native: native.PageTable;
  readonly #words = new Uint32Array(8);
  readonly #stats = new Float64Array(statCount);
  #copies = new Uint32Array(64 * copyWords);
  #events = newEvents(0);
  readonly #clock: () => number;
  #closed = false;

  /** @throws SagaArgumentError for an option outside its range */
  constructor(options: PageTableOptions) {
    const blocks = options?.blocks;
    if (typeof blocks !== 'object' || blocks === null)
      throw new SagaArgumentError(`blocks must be an object such as { gpu: 1000 }, got ${describe(blocks)}`);
    this.blockTokens = checkInteger('blockTokens', options.blockTokens ?? 16, 1, 4096);
    this.maxSequences = checkInteger('maxSequences', options.maxSequences ?? 256, 1, 2 ** 20);
    this.maxBlocksPerSequence = checkInteger('maxBlocksPerSequence', options.maxBlocksPerSequence ?? 8192, 1, 2 ** 20);
    this.maxPlans = checkInteger('maxPlans', options.maxPlans ?? 8, 1, 2 ** 16);
    this.eventCapacity = checkInteger('eventCapacity', options.eventCapacity ?? 0, 0, 2 ** 26);
    const uncachedFirst = options.uncachedFirst ?? false;
    if (typeof uncachedFirst !== 'boolean')
      throw new SagaArgumentError(`uncachedFirst must be a boolean, got ${describe(uncachedFirst)}`);
    const saga = checkOneOf('eviction', options.eviction ?? 'lru', evictions) === 1;
    const ghosts = options.ghosts === undefined ? -1 : checkInteger('ghosts', options.ghosts, 0, 2 ** 27);
    const started = performance.now();
    this.#clock = saga ? (options.clock ?? (() => (performance.now() - started) * 1000)) : () => 0;
    const { demotion } = options;
    const longest = this.maxBlocksPerSequence;
    checkInteger('maxBlocksPerSequence * maxSequences', longest * this.maxSequences, 1, 2 ** 30);
    checkInteger('maxBlocksPerSequence * maxPlans', longest * this.maxPlans, 1, 2 ** 26);
    checkInteger('maxBlocksPerSequence * blockTokens', longest * this.blockTokens, 1, twoTo32 - 2);
    const table = native.createPageTable(
      Float64Array.of(
        this.blockTokens,
        checkInteger('blocks.gpu', blocks.gpu, 1, 2 ** 26),
        checkInteger('blocks.host', blocks.host ?? 0, 0, 2 ** 26),
        checkInteger('blocks.disk', blocks.disk ?? 0, 0, 2 ** 26),
        this.maxSequences,
        this.maxBlocksPerSequence,
        this.maxPlans,
        this.eventCapacity,
        uncachedFirst ? 1 : 0,
        saga ? 1 : 0,
        ghosts,
        demotion === undefined ? 0 : 1,
        checkPositive('demotion.recomputeMicroseconds', demotion?.recomputeMicroseconds ?? 1) * 1000,
        checkPositive('demotion.recomputeDoubleTokens', demotion?.recomputeDoubleTokens ?? 60_000),
        checkPositive('demotion.transferMicroseconds', demotion?.transferMicroseconds ?? 1) * 1000,
        checkPositive('demotion.price', demotion?.price ?? 1),
        checkPositive('demotion.horizonSeconds', demotion?.horizonSeconds ?? 600) * 1e6,
      ),
      this.#words,
      this.#stats,
    );
    if (typeof table === 'number')
      throw errorOfStatus(-table, `the page table could not be made: ${native.statusText(-table)}`);
    this.#native = table;
  }

  /**
   * The prefix that {@link open} would hit now; changes nothing.
   *
   * @param hashes of the prompt's leading full blocks, at most `promptTokens / blockTokens`
   * @param promptTokens tokens of the whole prompt, at least 1. The block of the last one is never a hit: a model must compute
   * at least one token. So an exact repeat of 12 tokens in blocks of 4 hits 8
   * @param slowest slower tiers are not looked at. Default `gpu`
   */
  match(hashes: BigUint64Array, promptTokens: number, slowest: Tier = 'gpu'): PrefixHit {
    this.#checkPrompt(hashes, promptTokens);
    const tier = checkOneOf('slowest', slowest, tiers);
    this.#answer(this.#native.match(hashes, promptTokens, tier), () => 'match');
    return this.#hit();
  }

  /**
   * A new sequence that holds the matched prefix and has as many tokens; parameters as of {@link match}. It takes no free
   * blocks but those that hit. With hits in slower tiers it is not resident: {@link planSwapIn} moves them, {@link truncate}
   * gives them up.
   *
   * @param call with {@link PageTableOptions.eviction} `saga`: what the policy learns from
   * @throws SagaCapacityError `SAGA_ERR_FULL` when `maxSequences` are open
   */
  open(hashes: BigUint64Array, promptTokens: number, slowest: Tier = 'gpu', call: SequenceCall = {}): OpenedSequence {
    this.#checkPrompt(hashes, promptTokens);
    const tier = checkOneOf('slowest', slowest, tiers);
    const thread = call.thread === undefined ? -1 : checkThread(call.thread);
    const kind = checkOneOf('promptKind', call.promptKind ?? 'start', promptKinds);
    const sequence = this.#answer(
      this.#native.open(hashes, promptTokens, tier, thread, kind, this.#clock()),
      () => `maxSequences (${this.maxSequences}) are open`,
    );
    return { sequence, ...this.#hit() };
  }

  /**
   * Room for more tokens behind the present ones: all blocks that takes, or none.
   *
   * @param newTokens 0 or more
   * @returns where the last block was shared with another sequence and therefore replaced (copy-on-write): the copy to execute,
   * four words as in {@link Plan.copies}; else `undefined`
   * @throws SagaCapacityError `SAGA_ERR_OUT_OF_BLOCKS` when too few GPU blocks are free; `SAGA_ERR_FULL` when the sequence would
   * exceed `maxBlocksPerSequence`
   * @throws SagaStateError `SAGA_ERR_NOT_RESIDENT`, `SAGA_ERR_BUSY`
   */
  allocateSlots(sequence: number, newTokens: number): Uint32Array | undefined {
    this.#open();
    const id = checkId('sequence', sequence);
    const tokens = checkInteger('newTokens', newTokens, 0, twoTo32 - 1);
    const copied = this.#answer(
      this.#native.allocateSlots(id, tokens),
      () => `${newTokens} tokens more for sequence ${sequence}`,
    );
    return copied === 1 ? this.#words.slice(0, copyWords) : undefined;
  }

  /**
   * The next blocks of the sequence, after those that {@link SequenceState.cachedBlocks} counts, are full and computed: from
   * now on other prompts find them by these hashes.
   *
   * @param hashes one a block. A block that a fork has cached already must be given the same hash
   * @throws SagaArgumentError when there are not so many full blocks, or a block has another hash
   * @throws SagaStateError `SAGA_ERR_BUSY`
   */
  cacheFullBlocks(sequence: number, hashes: BigUint64Array): void {
    this.#open();
    checkHashes(hashes);
    this.#answer(
      this.#native.cacheFullBlocks(checkId('sequence', sequence), hashes),
      () => `sequence ${sequence} has not ${hashes.length} more full blocks to be cached by these hashes`,
    );
  }

  /**
   * A second sequence over the same blocks and tokens, at no cost in blocks. The first to write into a shared block gets a copy
   * ({@link allocateSlots}).
   *
   * @returns its id
   * @throws SagaCapacityError `SAGA_ERR_FULL` when `maxSequences` are open
   * @throws SagaStateError `SAGA_ERR_BUSY`
   */
  fork(parent: number): number {
    this.#open();
    return this.#answer(this.#native.fork(checkId('parent', parent)), () => `a fork of sequence ${parent}`);
  }

  /**
   * Keeps the first `tokens` tokens, at most as many as there are, and gives the other blocks back.
   *
   * @throws SagaStateError `SAGA_ERR_BUSY`
   */
  truncate(sequence: number, tokens: number): void {
    this.#open();
    const id = checkId('sequence', sequence);
    this.#answer(
      this.#native.truncate(id, checkInteger('tokens', tokens, 0, twoTo32 - 1)),
      () => `sequence ${sequence} cannot keep ${tokens} tokens`,
    );
  }

  /**
   * Ends a sequence and gives its blocks back; cached ones can be hit until they are taken.
   *
   * @param outcome with {@link PageTableOptions.eviction} `saga`: what the policy learns from
   * @throws SagaStateError `SAGA_ERR_BUSY`
   */
  free(sequence: number, outcome: SequenceOutcome = {}): void {
    this.#open();
    const id = checkId('sequence', sequence);
    const preempted = outcome.preempted === true ? 1 : 0;
    const answer = this.#native.free(id, ...outcomeNumbers(outcome), preempted, this.#clock());
    this.#answer(answer, () => `sequence ${sequence}`);
  }

  /**
   * With {@link PageTableOptions.eviction} `saga`: how the newest call of a thread ended, where that turned out after it did; it
   * replaces what was told then. Also while a {@link BatchFormer} owns the sequences.
   *
   * @returns `false` where the thread is not known, or is not in a gap between two calls: then nothing was changed
   */
  told(thread: number, outcome: CallOutcome): boolean {
    this.#open();
    const answer = this.#native.told(checkThread(thread), ...outcomeNumbers(outcome), this.#clock());
    return answer !== -notFound && this.#answer(answer, () => `thread ${thread}`) === 0;
  }

  /** With {@link PageTableOptions.eviction} `saga`: the thread will not call again. One that is not known is nothing. */
  threadLeft(thread: number): void {
    this.#open();
    this.#answer(this.#native.threadLeft(checkThread(thread), this.#clock()), () => `thread ${thread}`);
  }

  /**
   * The copies to host memory that {@link allocateSlots} has decided on since the last call (see {@link DemotionOptions}), four
   * words each as in {@link Plan.copies}: to be executed, in this order, before all copies that are reported later and before
   * anything is written into a block that was given out since. At most `maxBlocksPerSequence` wait; further ones are not made.
   */
  drainDemotions(): Uint32Array {
    this.#open();
    const room = this.#room(this.maxBlocksPerSequence);
    const count = this.#answer(this.#native.drainDemotions(room), () => 'drainDemotions');
    return room.slice(0, count * copyWords);
  }

  /** Size and state of a sequence. */
  sequence(sequence: number): SequenceState {
    this.#open();
    this.#answer(this.#native.sequenceState(checkId('sequence', sequence)), () => `sequence ${sequence}`);
    const [tokens = 0, blocks = 0, cachedBlocks = 0, resident = 0, busy = 0] = this.#words;
    return { tokens, blocks, cachedBlocks, resident: resident === 1, busy: busy === 1 };
  }

  /**
   * Block tables for one batch, in the layout of paged attention kernels.
   *
   * @param sequences ids, one a row
   * @param options.width columns. Default: the longest of these sequences
   * @param options.padding behind the last block of a row. Default -1
   * @param options.out receives the tables; must have room for `sequences.length * width`. Default: a new array
   * @returns row-major GPU block numbers, `sequences.length` rows of `width`: `out`, cut to that
   * @throws SagaArgumentError when a sequence is longer than `width`
   * @throws SagaStateError `SAGA_ERR_NOT_RESIDENT`
   */
  exportBlockTables(
    sequences: Uint32Array,
    options: { width?: number; padding?: number; out?: Int32Array } = {},
  ): Int32Array {
    this.#open();
    if (!(sequences instanceof Uint32Array))
      throw new SagaArgumentError(`sequences must be a Uint32Array, got ${describe(sequences)}`);
    const width = checkInteger('width', options.width ?? this.#longest(sequences), 0, 2 ** 20);
    const padding = checkInteger('padding', options.padding ?? -1, -(2 ** 31), 2 ** 31 - 1);
    const size = sequences.length * width;
    if (size > 2 ** 30) throw new SagaArgumentError(`block tables have at most 2^30 entries, got ${size}`);
    const out = options.out ?? new Int32Array(size);
    if (!(out instanceof Int32Array) || out.length < size)
      throw new SagaArgumentError(`out must be an Int32Array with room for ${size} blocks`);
    this.#answer(
      this.#native.exportBlockTables(sequences, width, padding, out),
      () => `block tables of ${sequences.length} sequences, ${width} wide`,
    );
    return out.length === size ? out : out.subarray(0, size);
  }

  /**
   * Where the keys and values of tokens go: `block * blockTokens + place in the block`.
   *
   * @param ranges three words each: sequence, first token, number of tokens
   * @param out receives one slot a token; must have room for all. Default: a new array
   * @returns the slots of all ranges in order, without gaps: `out`, cut to their number
   * @throws SagaArgumentError when a range lies behind the end of its sequence
   * @throws SagaStateError `SAGA_ERR_NOT_RESIDENT`
   */
  exportSlotMapping(ranges: Uint32Array, out?: BigInt64Array): BigInt64Array {
    this.#open();
    if (!(ranges instanceof Uint32Array))
      throw new SagaArgumentError(`ranges must be a Uint32Array, got ${describe(ranges)}`);
    if (ranges.length % rangeWords !== 0)
      throw new SagaArgumentError(`ranges must have three words each, got ${ranges.length} words`);
    let tokens = 0;
    for (let i = 2; i < ranges.length; i += rangeWords) tokens += ranges[i] as number;
    if (tokens > 2 ** 28) throw new SagaArgumentError(`ranges have at most 2^28 tokens, got ${tokens}`);
    const slots = out ?? new BigInt64Array(tokens);
    if (!(slots instanceof BigInt64Array) || slots.length < tokens)
      throw new SagaArgumentError(`out must be a BigInt64Array with room for ${tokens} slots`);
    this.#answer(this.#native.exportSlotMapping(ranges, slots), () => `slots of ${ranges.length / rangeWords} ranges`);
    return slots.length === tokens ? slots : slots.subarray(0, tokens);
  }

  /**
   * Plans to move all blocks of a sequence that lie above `target` down to it, shared ones too (other sequences keep theirs).
   * Target blocks are reserved now. Execute the copies, then {@link commit}; or {@link abort}. Until then the sequence may be
   * exported, not changed.
   *
   * @throws SagaCapacityError `SAGA_ERR_OUT_OF_BLOCKS` when the target has too few free blocks; `SAGA_ERR_FULL` when `maxPlans`
   * are pending
   * @throws SagaStateError `SAGA_ERR_BUSY`
   */
  planSwapOut(sequence: number, target: 'host' | 'disk'): Plan {
    this.#open();
    const id = checkId('sequence', sequence);
    const tier = 1 + checkOneOf('target', target, ['host', 'disk']);
    const copies = this.#room(this.#blocksOf(id));
    return this.#plan(this.#native.planSwapOut(id, tier, copies), () => `a swap of sequence ${sequence} to ${target}`);
  }

  /** Plans to move all blocks of a sequence that lie below the GPU into GPU memory; else as {@link planSwapOut}. */
  planSwapIn(sequence: number): Plan {
    this.#open();
    const id = checkId('sequence', sequence);
    const copies = this.#room(this.#blocksOf(id));
    return this.#plan(this.#native.planSwapIn(id, copies), () => `a swap of sequence ${sequence} to the GPU`);
  }

  /**
   * Plans to copy cached blocks from one tier to another, whether or not a sequence uses them: to demote what will not be needed
   * soon, to prefetch what will. Hashes that `source` does not hold are passed over.
   *
   * @param hashes at most `maxBlocksPerSequence`, each once, in prefix order: it decides what is evicted first
   * @throws SagaCapacityError as {@link planSwapOut}
   */
  planCopy(source: Tier, hashes: BigUint64Array, target: Tier): Plan {
    this.#open();
    const from = checkOneOf('source', source, tiers);
    const to = checkOneOf('target', target, tiers);
    if (from === to) throw new SagaArgumentError(`source and target must differ, got ${source} twice`);
    checkHashes(hashes);
    if (hashes.length > this.maxBlocksPerSequence) {
      throw new SagaArgumentError(
        `hashes must be at most ${this.maxBlocksPerSequence} (maxBlocksPerSequence), got ${hashes.length}`,
      );
    }
    return this.#plan(
      this.#native.planCopy(from, hashes, to, this.#room(hashes.length)),
      () => `a copy of ${hashes.length} blocks, each named once, from ${source} to ${target}`,
    );
  }

  /**
   * The copies of a plan are done, or certain to be done before anything that is ordered later (as on one stream): the targets
   * take the place of the sources.
   */
  commit(plan: number): void {
    this.#open();
    this.#answer(this.#native.commit(checkId('plan', plan)), () => `plan ${plan}`);
  }

  /** Gives the targets of a plan back. Hashes that went to make room for them stay gone. */
  abort(plan: number): void {
    this.#open();
    this.#answer(this.#native.abort(checkId('plan', plan)), () => `plan ${plan}`);
  }

  /**
   * Drops hashes from the cache of a tier: for each, the block that a lookup finds no longer answers to it (one copy; give it
   * twice for two). Blocks in use stay in use.
   *
   * @returns how many were found
   */
  evict(tier: Tier, hashes: BigUint64Array): number {
    this.#open();
    const at = checkOneOf('tier', tier, tiers);
    checkHashes(hashes);
    return this.#answer(this.#native.evict(at, hashes), () => 'evict');
  }

  /**
   * Names the next victims in a tier: those of these blocks that are free are taken next, in the order given.
   *
   * @returns how many were found free
   */
  evictFirst(tier: Tier, hashes: BigUint64Array): number {
    this.#open();
    const at = checkOneOf('tier', tier, tiers);
    checkHashes(hashes);
    return this.#answer(this.#native.evictFirst(at, hashes), () => 'evictFirst');
  }

  /** Forgets all hashes of a tier; `false`, with nothing changed, while any of its blocks is in use. */
  resetPrefixCache(tier: Tier): boolean {
    this.#open();
    const at = checkOneOf('tier', tier, tiers);
    return this.#answer(this.#native.resetPrefixCache(at), () => 'resetPrefixCache') === 1;
  }

  /**
   * The hash of every cached block of a tier in order of block number (two blocks may have the same): for a reader that lost
   * events. O(blocks of the tier).
   */
  cachedHashes(tier: Tier): BigUint64Array {
    const at = checkOneOf('tier', tier, tiers);
    const hashes = new BigUint64Array(this.stats().tiers[tier].cachedBlocks);
    this.#answer(this.#native.cachedHashes(at, hashes), () => 'cachedHashes');
    return hashes;
  }

  /**
   * What became findable by its hash and what ceased to be since the last call, oldest first. While `eventCapacity` events wait
   * new ones are dropped and counted in {@link PageTableStats.eventsLostTotal}.
   *
   * @param most events to return at most, at least 1. Default: all that wait
   */
  drainEvents(most: number = Math.max(1, this.eventCapacity)): BlockEvents {
    this.#open();
    const capacity = Math.min(checkInteger('most', most, 1, twoTo32 - 1), this.eventCapacity);
    if (this.#events.hashes.length < capacity) this.#events = newEvents(capacity);
    const events = this.#events;
    const count = this.#answer(
      this.#native.drainEvents(events.hashes.subarray(0, capacity), events.blocks, events.tiers, events.kinds),
      () => 'drainEvents',
    );
    return {
      hashes: events.hashes.slice(0, count),
      blocks: events.blocks.slice(0, count),
      tiers: events.tiers.slice(0, count),
      kinds: events.kinds.slice(0, count),
    };
  }

  /** @internal For `BatchFormer`: the arguments are those of the native function. */
  createBatchFormer(options: Float64Array, arrays: readonly ArrayBufferView[]): native.BatchFormer | number {
    this.#open();
    return this.#native.createBatchFormer(options, arrays);
  }

  stats(): PageTableStats {
    this.#open();
    this.#answer(this.#native.stats(), () => 'stats');
    let next = 0;
    const read = (): number => this.#stats[next++] as number;
    const byTier = <T>(one: () => T): Record<Tier, T> => ({ gpu: one(), host: one(), disk: one() });
    return {
      tiers: byTier(() => ({
        blocks: read(),
        freeBlocks: read(),
        cachedBlocks: read(),
        cachedHashes: read(),
        allocatedTotal: read(),
        evictedTotal: read(),
        memoryBytes: read(),
      })),
      openSequences: read(),
      pendingPlans: read(),
      openedTotal: read(),
      promptTokensTotal: read(),
      hitTokensTotal: byTier(read),
      copiesOnWriteTotal: read(),
      copiedIntoTierTotal: byTier(read),
      outOfBlocksTotal: read(),
      eventsLostTotal: read(),
      memoryBytes: read(),
    };
  }

  /** What became of evicted blocks under {@link PageTableOptions.eviction} `saga`. */
  evictionStats(): EvictionStats {
    this.#open();
    const values = new Float64Array(evictionStatCount);
    this.#answer(this.#native.evictionStats(values), () => 'evictionStats');
    let next = 0;
    const read = (): number => values[next++] as number;
    return {
      freeBlocks: read(),
      pages: read(),
      hollow: read(),
      ghosts: read(),
      heads: read(),
      takenTotal: read(),
      takenWithoutHashTotal: read(),
      takenCopiesTotal: read(),
      evictedTotal: read(),
      bypassedTotal: read(),
      forgottenTotal: read(),
      requestedPagesTotal: read(),
      missedPagesTotal: read(),
      memoryBytes: read(),
      demotedTotal: read(),
      demotedSharedTotal: read(),
      demotionDroppedTotal: read(),
      demotionRefusedTotal: read(),
    };
  }

  /**
   * How far {@link PageTableOptions.eviction} `saga` is from the optimum on the calls of the recent window: it replays them, some
   * 50 ns for each block of their prompts. For reports, not for every step.
   */
  regret(): Regret {
    this.#open();
    const values = new Float64Array(3);
    this.#answer(this.#native.regret(values), () => 'regret');
    const [calls = 0, missedPages = 0, optimumMissedPages = 0] = values;
    return { calls, missedPages, optimumMissedPages };
  }

  /** Recomputes every invariant of the state; `false` is a bug in SAGA. O(blocks + entries in use). */
  verify(): boolean {
    this.#open();
    return this.#answer(this.#native.verify(), () => 'verify') === 1;
  }

  /** Fingerprint of the whole state (without statistics and events): equal for tables that have seen the same operations. */
  digest(): bigint {
    this.#open();
    const digest = this.#native.digest();
    if (typeof digest === 'number') throw errorOfStatus(-digest, native.statusText(-digest));
    return digest;
  }

  /** Frees the native memory now. Every later call throws `SAGA_ERR_CLOSED`. */
  close(): void {
    if (!this.#closed) this.#native.destroy();
    this.#closed = true;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #open(): void {
    if (this.#closed) throw new SagaStateError('SAGA_ERR_CLOSED', 'the page table was closed');
  }

  #answer(value: number, what: () => string): number {
    if (value >= 0) return value;
    throw errorOfStatus(-value, `${what()} (${native.statusText(-value)})`);
  }

  #checkPrompt(hashes: BigUint64Array, promptTokens: number): void {
    this.#open();
    checkHashes(hashes);
    const most = Math.floor(checkInteger('promptTokens', promptTokens, 1, twoTo32 - 1) / this.blockTokens);
    if (hashes.length > most) {
      throw new SagaArgumentError(`hashes must be at most ${most} for ${promptTokens} tokens, got ${hashes.length}`);
    }
  }

  #hit(): PrefixHit {
    const [tokens = 0, gpu = 0, host = 0, disk = 0] = this.#words;
    return { tokens, tokensInTier: { gpu, host, disk } };
  }

  #blocksOf(sequence: number): number {
    this.#answer(this.#native.sequenceState(sequence), () => `sequence ${sequence}`);
    return this.#words[1] as number;
  }

  #longest(sequences: Uint32Array): number {
    let longest = 0;
    for (const sequence of sequences) longest = Math.max(longest, this.#blocksOf(sequence));
    return longest;
  }

  /** Working memory for the copies of a plan. */
  #room(copies: number): Uint32Array {
    if (this.#copies.length < copies * copyWords) this.#copies = new Uint32Array(2 * copies * copyWords);
    return this.#copies;
  }

  #plan(answer: number, what: () => string): Plan {
    const plan = this.#answer(answer, what);
    return { plan, copies: this.#copies.slice(0, (this.#words[0] as number) * copyWords) };
  }
}

/** Working memory for the events of one call. */
function newEvents(capacity: number): BlockEvents {
  return {
    hashes: new BigUint64Array(capacity),
    blocks: new Uint32Array(capacity),
    tiers: new Uint8Array(capacity),
    kinds: new Uint8Array(capacity),
  };
}

function checkId(name: string, id: unknown): number {
  return checkInteger(name, id, 0, twoTo32 - 1);
}

/** @internal Of an outcome: stop reason, tool class, end of the session, tokens, declared gap in microseconds. */
export function outcomeNumbers(outcome: CallOutcome): [number, number, number, number, number] {
  if (typeof outcome !== 'object' || outcome === null)
    throw new SagaArgumentError(`outcome must be an object, got ${describe(outcome)}`);
  const gap = outcome.declaredGapSeconds;
  return [
    checkOneOf('stopReason', outcome.stopReason ?? 'unknown', stopReasons),
    checkOneOf('tool', outcome.tool ?? 'none', toolClasses),
    outcome.sessionEnd === true ? 1 : 0,
    checkInteger('outputTokens', outcome.outputTokens ?? 0, 0, twoTo32 - 1),
    gap === undefined ? -1 : Math.min(checkPositive('declaredGapSeconds', gap, 0) * 1e6, Number.MAX_SAFE_INTEGER),
  ];
}

/** @internal */
export function checkThread(thread: unknown): number {
  return checkInteger('thread', thread, 0, Number.MAX_SAFE_INTEGER);
}

/** A finite number above `least`, or equal to it where that is given. */
function checkPositive(name: string, value: unknown, least?: number): number {
  if (typeof value === 'number' && Number.isFinite(value) && (least === undefined ? value > 0 : value >= least))
    return value;
  throw new SagaArgumentError(
    `${name} must be a number ${least === undefined ? 'above 0' : `from ${least}`}, got ${describe(value)}`,
  );
}

function checkHashes(hashes: unknown): void {
  if (!(hashes instanceof BigUint64Array))
    throw new SagaArgumentError(`hashes must be a BigUint64Array of block hashes, got ${describe(hashes)}`);
}
