/**
 * One engine: vLLM's scheduler and prefix cache over a {@link PageTable} and a {@link BatchFormer}, with a model that takes time
 * and computes nothing. It has no clock and no sockets; who drives it calls {@link Engine.beginStep} and {@link Engine.endStep}.
 *
 * A step: directives are carried out, leases end, the batch is formed; at its end each call whose known tokens are computed gets
 * the next token of its answer, and the step's events go out as one batch. Costs: O(calls of the step), and O(blocks) where
 * blocks are stored or removed.
 *
 * vLLM's block 0 is the null block that nobody uses: of `blocks` one less can be filled.
 */
import { createHash } from 'node:crypto';
import { BatchFormer, type Batch } from '../batch.js';
import { BlockHasher, type RequestKeys } from '../hasher.js';
import { PageTable, type BlockEvents, type CallOutcome } from '../page-table.js';
import type { PromptKind, StepSeconds } from '../scheduler.js';

/** Events of a step, as vLLM puts them into one batch. */
export type EngineEvent = StoredEvent | RemovedEvent | { readonly type: 'AllBlocksCleared' };

export interface StoredEvent {
  readonly type: 'BlockStored';
  readonly hashes: BlockName[];
  readonly parent: BlockName | undefined;
  readonly tokens: Uint32Array;
  /** Of each block. */
  readonly extraKeys: (readonly string[] | undefined)[];
  readonly loraName: string | undefined;
  readonly sessionId: string | undefined;
}

export interface RemovedEvent {
  readonly type: 'BlockRemoved';
  readonly hash: BlockName;
}

/** Low 64 bits of a block hash, or all of it. */
export type BlockName = bigint | Uint8Array;

export interface EngineOptions {
  /** As vLLM's `num_gpu_blocks`: one of them is never used. */
  blocks: number;
  blockTokens: number;
  maxModelTokens: number;
  maxSequences: number;
  tokenBudget: number;
  maxCalls: number;
  maxLeases: number;
  hashAlgorithm: 'sha256_cbor' | 'xxhash_cbor';
  hashSeed: string;
  /** Salts and adapters are hashed with their names, as by vLLM 0.33. */
  taggedKeys: boolean;
  /** Events carry whole hashes instead of their low 64 bits. */
  wholeHashes: boolean;
  priorityScheduling: boolean;
  prefixCaching: boolean;
  eviction: 'lru' | 'saga';
  stepSeconds: Required<StepSeconds>;
  /** Modelled seconds a second of the driver's clock, in which the eviction policy `saga` learns; `Infinity` counts as 1. */
  timeScale: number;
}

/** What is submitted. */
export interface EngineRequest {
  prompt: Uint32Array;
  /** What the model will say; at least one token. The call ends with the last of them. */
  answer: Uint32Array;
  priority?: number;
  cacheSalt?: string | undefined;
  loraName?: string | undefined;
  sessionId?: string | undefined;
  /** What ends the answer, for the counters. Default `stop`. */
  finish?: 'stop' | 'length';
  /** For directives. */
  requestId?: string | undefined;
  thread?: number | undefined;
  /** For the eviction policy `saga`, as `outcome`: what is known beforehand of how the call ends. */
  promptKind?: PromptKind | undefined;
  outcome?: CallOutcome | undefined;
  /** Called at the end of a step that brought a token: `call.generated` has grown. */
  onToken: (call: EngineCall) => void;
  /** The engine was restarted, or closed: no more tokens will come. */
  onLost?: (call: EngineCall) => void;
  /** It has ended, by its last token or otherwise, and its blocks are free. */
  onEnd?: () => void;
}

/** A call of an engine. */
export interface EngineCall {
  readonly request: EngineRequest;
  /** Prompt and answer. */
  readonly tokens: Uint32Array;
  readonly promptTokens: number;
  /** Tokens of the answer that are there. */
  generated: number;
  /** Tokens of the prompt that were cached when it was admitted first. */
  cachedTokens: number;
  state: 'waiting' | 'running' | 'ended';
  /** Of full blocks so far. */
  hashes: BigUint64Array;
  hashCount: number;
  digests: Uint8Array[] | undefined;
  /** @internal */
  id: number;
  /** @internal */
  hasher: BlockHasher;
  /** @internal */
  computed: number;
  /** @internal */
  admitted: boolean;
  /** @internal */
  order: number;
  /** @internal */
  aborted: boolean;
}

export interface EngineCounters {
  steps: number;
  /** Modelled. */
  busySeconds: number;
  /** By which steps ended later than modelled, all together, in seconds of this machine; its driver counts. */
  lateSeconds: number;
  promptTokens: number;
  /** Of the prompts, computed or not. */
  cachedTokens: number;
  queriedTokens: number;
  generationTokens: number;
  preemptions: number;
  finished: { stop: number; length: number; abort: number };
}

/** Hashes of blocks, from the root of a chain. */
export interface Lease {
  readonly id: number;
  readonly hashes: BigUint64Array;
  readonly plan: number;
  readonly value: number;
  /** Milliseconds of the driver's clock. */
  readonly from: number;
  readonly until: number;
  /** Called once, when it ends other than by {@link Engine.release}. */
  readonly onEnd: (why: 'expired' | 'memory' | 'reset') => void;
}

const noHashes = new BigUint64Array(0);
/** Events of a step that can wait; more than a step can make. */
const spareEvents = 4096;

export class Engine {
  readonly options: EngineOptions;
  readonly counters: EngineCounters = {
    steps: 0,
    busySeconds: 0,
    lateSeconds: 0,
    promptTokens: 0,
    cachedTokens: 0,
    queriedTokens: 0,
    generationTokens: 0,
    preemptions: 0,
    finished: { stop: 0, length: 0, abort: 0 },
  };
  /** Receives the events of each step that had any. */
  onEvents: (events: EngineEvent[]) => void = () => undefined;
  /** Called at the beginning of each step, before the batch is formed: the moment at which directives are carried out. */
  onStep: (now: number) => void = () => undefined;
  /** Called when there is work where there was none. */
  onWork: () => void = () => undefined;

  #table!: PageTable;
  #former!: BatchFormer;
  #calls: (EngineCall | undefined)[] = [];
  readonly #open = new Set<EngineCall>();
  #hashers: BlockHasher[] = [];
  #batch: Batch | undefined;
  #events: EngineEvent[] = [];
  #aborted: EngineCall[] = [];
  /** Copies of each cached block with its whole hash, where that is wanted. */
  readonly #digests = new Map<bigint, { digest: Uint8Array; copies: number }>();
  readonly #leases = new Map<number, Lease>();
  /** How many leases each leased block has. */
  readonly #leased = new Map<bigint, number>();
  #recent: EngineCall[] = [];
  #nextLease = 0;
  #nextOrder = 0;
  #time = 0;
  #closed = false;

  constructor(options: EngineOptions) {
    this.options = options;
    this.#make();
  }

  #make(): void {
    const { options } = this;
    const longest = Math.ceil(options.maxModelTokens / options.blockTokens) + 1;
    this.#table = new PageTable({
      blockTokens: options.blockTokens,
      // What a lease holds is held by a pending copy to host memory, which is never executed.
      blocks: { gpu: options.blocks - 1, host: options.blocks },
      maxSequences: options.maxSequences,
      maxBlocksPerSequence: longest,
      maxPlans: options.maxLeases,
      eventCapacity: 3 * options.blocks + spareEvents,
      uncachedFirst: true,
      eviction: options.eviction,
      clock: () => this.#time,
    });
    this.#former = new BatchFormer(this.#table, {
      maxCalls: options.maxCalls,
      maxSequences: options.maxSequences,
      tokenBudget: options.tokenBudget,
      order: options.priorityScheduling ? 'priority' : 'fcfs',
      sessionAffinity: false,
      clock: () => this.#time,
    });
    this.#calls = new Array<EngineCall | undefined>(options.maxCalls);
  }

  /** Blocks that can be filled. */
  get usableBlocks(): number {
    return this.options.blocks - 1;
  }

  get freeBlocks(): number {
    return this.#table.stats().tiers.gpu.freeBlocks;
  }

  get runningCalls(): number {
    return this.#former.stats().runningCalls;
  }

  get waitingCalls(): number {
    return this.#former.stats().waitingCalls;
  }

  get openCalls(): number {
    return this.#open.size;
  }

  /** Calls that are waiting or running. */
  calls(): IterableIterator<EngineCall> {
    return this.#open.values();
  }

  /** A call of this id that is here or has just ended. */
  find(matches: (call: EngineCall) => boolean): EngineCall | undefined {
    let found: EngineCall | undefined;
    for (const call of this.#recent) if (matches(call)) found = call;
    for (const call of this.#open) if (matches(call)) found = call;
    return found;
  }

  get leases(): ReadonlyMap<number, Lease> {
    return this.#leases;
  }

  /** Distinct blocks that leases hold. */
  get leasedBlocks(): number {
    return this.#leased.size;
  }

  get inStep(): boolean {
    return this.#batch !== undefined;
  }

  /** Hashes of every cached block in order of block number, copies counted. */
  cachedHashes(): BigUint64Array {
    return this.#table.cachedHashes('gpu');
  }

  /** @throws SagaCapacityError when `maxCalls` are here */
  submit(request: EngineRequest): EngineCall {
    const { options } = this;
    const promptTokens = request.prompt.length;
    const tokens = new Uint32Array(promptTokens + request.answer.length);
    tokens.set(request.prompt);
    tokens.set(request.answer, promptTokens);
    const { loraName, cacheSalt } = request;
    const hasher = this.#hasherFor({
      ...(loraName === undefined ? {} : { loraName }),
      ...(cacheSalt === undefined ? {} : { cacheSalt }),
    });
    const call: EngineCall = {
      request,
      tokens,
      promptTokens,
      generated: 0,
      cachedTokens: 0,
      state: 'waiting',
      hashes: options.prefixCaching ? new BigUint64Array(Math.floor(tokens.length / options.blockTokens)) : noHashes,
      hashCount: 0,
      digests: options.wholeHashes ? [] : undefined,
      id: -1,
      hasher,
      computed: 0,
      admitted: false,
      order: this.#nextOrder++,
      aborted: false,
    };
    this.#hash(call, promptTokens);
    call.id = this.#former.submit({
      promptTokens,
      maxNewTokens: request.answer.length,
      priority: request.priority ?? 0,
      hashes: call.hashes.subarray(0, call.hashCount),
      ...(options.eviction === 'saga' ? callOf(request) : {}),
    });
    if (request.outcome !== undefined) this.#former.setOutcome(call.id, this.#inEngineTime(request.outcome));
    this.#calls[call.id] = call;
    this.#open.add(call);
    if (this.#open.size === 1) this.onWork();
    return call;
  }

  /** Ends a call; what it has computed stays cached. */
  abort(call: EngineCall): void {
    if (call.state === 'ended') return;
    call.aborted = true;
    this.counters.finished.abort++;
    this.#former.cancel(call.id);
    // A running call keeps its id while a batch is in flight.
    if (this.#batch !== undefined && call.state === 'running') {
      this.#aborted.push(call);
      call.state = 'ended';
      this.#open.delete(call);
    } else {
      this.#end(call);
    }
  }

  /**
   * Begins a step.
   *
   * @param now milliseconds, never running backwards
   * @returns its modelled seconds; `undefined` when there is nothing to compute (directives were carried out all the same, and
   * events of them went out)
   */
  beginStep(now: number): number | undefined {
    const { timeScale } = this.options;
    this.#time = Math.max(this.#time, Math.floor(now * 1000 * (timeScale === Infinity ? 1 : timeScale)));
    this.#expireLeases(now);
    this.onStep(now);
    if (this.#leases.size > 0) this.#revokeForMemory(now);
    const batch = this.#former.form();
    const { calls: count, admitted, preempted } = batch;
    if (preempted > 0) this.#notePreempted(preempted);
    if (count === 0) {
      this.#drain(0);
      this.#publish();
      return undefined;
    }
    this.#batch = batch;
    this.#noteAdmitted(count, admitted);
    this.#drain(count);
    const seconds = this.#stepSeconds(count);
    this.counters.steps++;
    this.counters.busySeconds += seconds;
    return seconds;
  }

  /** Ends the step in flight: tokens come out, and its events. */
  endStep(): void {
    const former = this.#former;
    const batch = this.#batch;
    if (batch === undefined) return;
    const count = batch.calls;
    const { calls, firstTokens, tokenCounts, sampled } = former.arrays;
    const owners: EngineCall[] = [];
    for (let i = 0; i < count; i++) {
      const call = this.#calls[calls[i] as number] as EngineCall;
      const computed = (firstTokens[i] as number) + (tokenCounts[i] as number);
      call.computed = computed;
      const complete = computed === call.promptTokens + call.generated;
      sampled[i] = complete ? 1 : 0;
      if (!complete) continue;
      call.generated++;
      if (!call.aborted) owners.push(call);
    }
    former.complete();
    this.#batch = undefined;
    for (const call of this.#aborted) this.#release(call);
    this.#aborted = [];
    const { blockTokens, prefixCaching } = this.options;
    const { counters } = this;
    for (const call of owners) {
      counters.generationTokens++;
      const known = call.promptTokens + call.generated;
      if (known === call.tokens.length) {
        counters.finished[call.request.finish ?? 'stop']++;
        this.#end(call);
      } else if (prefixCaching && known % blockTokens === 0) {
        const before = call.hashCount;
        this.#hash(call, known);
        former.addHashes(call.id, call.hashes.subarray(before, call.hashCount));
      }
    }
    this.#drain(0);
    this.#publish();
    for (const call of owners) call.request.onToken(call);
  }

  /** Forgets all hashes, as `/reset_prefix_cache`; false while calls run. Its event goes out with the next step. */
  resetPrefixCache(): boolean {
    if (this.#former.stats().runningCalls > 0) return false;
    for (const lease of [...this.#leases.values()]) this.#endLease(lease, 'reset');
    const done = this.#table.resetPrefixCache('gpu');
    return done;
  }

  /** A new process: nothing is cached, nothing runs. */
  restart(): void {
    this.#lose();
    this.#dispose();
    this.#leases.clear();
    this.#leased.clear();
    this.#digests.clear();
    this.#events = [];
    this.#recent = [];
    this.#make();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#lose();
    this.#dispose();
  }

  // ---- Directives

  /** The leading blocks of a chain that are cached, and how many of it are not. */
  resident(hashes: BigUint64Array): { hashes: BigUint64Array; missing: number } {
    // One token more than the blocks have: the block of the last one would be left out.
    const tokens = hashes.length * this.options.blockTokens + 1;
    const found = hashes.length === 0 ? 0 : this.#table.match(hashes, tokens).tokens / this.options.blockTokens;
    return { hashes: hashes.slice(0, found), missing: hashes.length - found };
  }

  /** Hashes of the full blocks of tokens. */
  hashesOf(tokens: Uint32Array, keys: RequestKeys): BigUint64Array {
    return this.#hasherFor(keys).update(tokens);
  }

  /**
   * Keeps blocks that are cached from eviction.
   *
   * @param hashes all cached, at most as many as the longest prompt has
   * @param budget most distinct blocks that all leases may hold
   */
  retain(
    hashes: BigUint64Array,
    budget: number,
    options: { value: number; now: number; until: number; onEnd: Lease['onEnd'] },
  ): Lease | 'budget' {
    let fresh = 0;
    for (const hash of hashes) if (!this.#leased.has(hash)) fresh++;
    if (this.#leased.size + fresh > budget || this.#leases.size >= this.options.maxLeases) return 'budget';
    let plan: number;
    try {
      ({ plan } = this.#table.planCopy('gpu', hashes, 'host'));
    } catch {
      return 'budget';
    }
    const { value, now, until, onEnd } = options;
    const lease: Lease = { id: this.#nextLease++, hashes, plan, value, from: now, until, onEnd };
    this.#leases.set(lease.id, lease);
    for (const hash of hashes) this.#leased.set(hash, (this.#leased.get(hash) ?? 0) + 1);
    return lease;
  }

  /** Ends a lease without telling. */
  release(lease: Lease): void {
    if (!this.#leases.delete(lease.id)) return;
    this.#table.abort(lease.plan);
    for (const hash of lease.hashes) {
      const count = this.#leased.get(hash) as number;
      if (count === 1) this.#leased.delete(hash);
      else this.#leased.set(hash, count - 1);
    }
  }

  /** Drops blocks, every copy; or makes them the next victims. The number that was found. */
  evict(hashes: BigUint64Array, mode: 'now' | 'first'): number {
    const backwards = hashes.slice().reverse();
    const freed = this.#table.evictFirst('gpu', backwards);
    if (mode === 'first') return freed;
    const dropped = this.#table.evict('gpu', hashes);
    while (this.#table.evict('gpu', hashes) > 0);
    return dropped;
  }

  /**
   * How the newest call of a thread ended, or will end; for the eviction policy `saga`.
   *
   * @returns whether that call is known
   */
  told(thread: number, told: CallOutcome): boolean {
    const outcome = this.#inEngineTime(told);
    let open: EngineCall | undefined;
    for (const call of this.#open) if (call.request.thread === thread) open = call;
    if (open !== undefined) {
      this.#former.setOutcome(open.id, outcome);
      return this.options.eviction === 'saga';
    }
    const last = this.#recent.findLast((call) => call.request.thread === thread);
    return this.#table.told(thread, { outputTokens: last?.generated ?? 0, ...outcome });
  }

  verify(): boolean {
    return this.#former.verify() && this.#table.verify();
  }

  // ---- Within

  /** Clients speak of seconds of the wall. */
  #inEngineTime(outcome: CallOutcome): CallOutcome {
    const { timeScale } = this.options;
    const { declaredGapSeconds: seconds } = outcome;
    if (seconds === undefined || timeScale === Infinity) return outcome;
    return { ...outcome, declaredGapSeconds: seconds * timeScale };
  }

  #hasherFor(keys: RequestKeys): BlockHasher {
    const { hashAlgorithm: algorithm, hashSeed, blockTokens, taggedKeys } = this.options;
    const hasher = this.#hashers.pop() ?? new BlockHasher({ algorithm, hashSeed, blockTokens, taggedKeys });
    return hasher.reset(keys);
  }

  /** Hashes what is full of the first `known` tokens. */
  #hash(call: EngineCall, known: number): void {
    const { blockTokens, prefixCaching } = this.options;
    if (!prefixCaching) return;
    const full = Math.floor(known / blockTokens);
    const { digests, tokens, hasher } = call;
    if (digests === undefined) {
      hasher.update(
        tokens.subarray(call.hashCount * blockTokens, full * blockTokens),
        call.hashes.subarray(call.hashCount, full),
      );
    } else {
      for (let block = call.hashCount; block < full; block++) {
        hasher.update(
          tokens.subarray(block * blockTokens, (block + 1) * blockTokens),
          call.hashes.subarray(block, block + 1),
        );
        digests.push(hasher.digest());
      }
    }
    call.hashCount = full;
  }

  #notePreempted(count: number): void {
    const { preempted } = this.#former.arrays;
    this.counters.preemptions += count;
    for (let i = 0; i < count; i++) {
      const call = this.#calls[preempted[i] as number];
      if (call === undefined) continue;
      call.state = 'waiting';
      call.computed = 0;
    }
  }

  #noteAdmitted(count: number, admitted: number): void {
    const { calls, firstTokens } = this.#former.arrays;
    for (let i = count - admitted; i < count; i++) {
      const call = this.#calls[calls[i] as number] as EngineCall;
      call.state = 'running';
      call.computed = firstTokens[i] as number;
      if (call.admitted) continue;
      call.admitted = true;
      call.cachedTokens = call.computed;
      this.counters.promptTokens += call.promptTokens;
      this.counters.queriedTokens += call.promptTokens;
      this.counters.cachedTokens += call.cachedTokens;
    }
  }

  #stepSeconds(count: number): number {
    const { base, perCall, perContextToken, perPrefillToken, perPrefillPair } = this.options.stepSeconds;
    const { calls, firstTokens, tokenCounts } = this.#former.arrays;
    let seconds = base;
    for (let i = 0; i < count; i++) {
      const call = this.#calls[calls[i] as number] as EngineCall;
      const first = firstTokens[i] as number;
      const tokens = tokenCounts[i] as number;
      if (first >= call.promptTokens && tokens === 1) seconds += perCall + perContextToken * (first + 1);
      else seconds += perPrefillToken * tokens + perPrefillPair * tokens * (first + tokens / 2);
    }
    return seconds;
  }

  /** What became of blocks since the last time, in vLLM's events. */
  #drain(count: number): void {
    const drained = this.#table.drainEvents();
    const { kinds } = drained;
    if (kinds.length === 0) return;
    const { blockTokens } = this.options;
    const { calls, firstTokens, tokenCounts } = this.#former.arrays;
    let place = 0; // call of the batch
    let block = -1; // its next block that may be stored; -1: from its beginning in this step
    for (let i = 0; i < kinds.length; i++) {
      if (drained.tiers[i] !== 0) continue;
      const kind = kinds[i];
      if (kind === 2) {
        this.#digests.clear();
        this.#events.push({ type: 'AllBlocksCleared' });
      } else if (kind === 1) {
        this.#events.push({ type: 'BlockRemoved', hash: this.#forget(drained.hashes[i] as bigint) });
      } else {
        // Calls store in the order of the batch, each of its blocks in order.
        const hash = drained.hashes[i] as bigint;
        let owner: EngineCall | undefined;
        for (; place < count; place++, block = -1) {
          const call = this.#calls[calls[place] as number] as EngineCall;
          const first = firstTokens[place] as number;
          if (block < 0) block = Math.floor(first / blockTokens);
          const end = Math.min(call.hashCount, Math.floor((first + (tokenCounts[place] as number)) / blockTokens));
          if (block < end && call.hashes[block] === hash) {
            owner = call;
            break;
          }
        }
        if (owner === undefined) {
          // Stored by a call that the same step preempted.
          for (const call of this.#open) {
            block = call.hashes.subarray(0, call.hashCount).indexOf(hash);
            if (block < 0) continue;
            owner = call;
            break;
          }
          if (owner === undefined) continue;
          i += this.#stored(owner, block, runOf(drained, i, owner, block)) - 1;
          block = -1;
          continue;
        }
        const run = runOf(drained, i, owner, block);
        this.#stored(owner, block, run);
        block += run;
        i += run - 1;
      }
    }
  }

  #stored(call: EngineCall, first: number, count: number): number {
    const { blockTokens } = this.options;
    const { cacheSalt, loraName, sessionId } = call.request;
    const hashes: BlockName[] = [];
    const extraKeys: (readonly string[] | undefined)[] = [];
    for (let block = first; block < first + count; block++) {
      hashes.push(this.#remember(call, block));
      const keys: string[] = [];
      if (loraName !== undefined) keys.push(loraName);
      if (cacheSalt !== undefined && block === 0) keys.push(cacheSalt);
      extraKeys.push(keys.length === 0 ? undefined : keys);
    }
    const parent =
      first === 0 ? undefined : call.digests === undefined ? call.hashes[first - 1] : call.digests[first - 1];
    const tokens = call.tokens.slice(first * blockTokens, (first + count) * blockTokens);
    this.#events.push({ type: 'BlockStored', hashes, parent, tokens, extraKeys, loraName, sessionId });
    return count;
  }

  #remember(call: EngineCall, block: number): BlockName {
    const hash = call.hashes[block] as bigint;
    const digest = call.digests?.[block];
    if (digest === undefined) return hash;
    const known = this.#digests.get(hash);
    if (known === undefined) this.#digests.set(hash, { digest, copies: 1 });
    else known.copies++;
    return digest;
  }

  #forget(hash: bigint): BlockName {
    const known = this.#digests.get(hash);
    if (known === undefined) return hash;
    if (--known.copies === 0) this.#digests.delete(hash);
    return known.digest;
  }

  #publish(): void {
    if (this.#events.length === 0) return;
    const events = this.#events;
    this.#events = [];
    this.onEvents(events);
  }

  #end(call: EngineCall): void {
    call.state = 'ended';
    this.#open.delete(call);
    this.#release(call);
  }

  #release(call: EngineCall): void {
    if (this.#calls[call.id] === call) this.#calls[call.id] = undefined;
    this.#hashers.push(call.hasher);
    this.#recent.push(call);
    if (this.#recent.length > 256) this.#recent = this.#recent.slice(128);
    call.request.onEnd?.();
  }

  #lose(): void {
    for (const call of [...this.#open]) {
      call.state = 'ended';
      call.request.onLost?.(call);
    }
    this.#open.clear();
    this.#aborted = [];
    this.#batch = undefined;
  }

  #dispose(): void {
    this.#former.close();
    this.#table.close();
  }

  #expireLeases(now: number): void {
    for (const lease of this.#leases.values()) if (lease.until <= now) this.#endLease(lease, 'expired');
  }

  #endLease(lease: Lease, why: 'expired' | 'memory' | 'reset'): void {
    this.release(lease);
    lease.onEnd(why);
  }

  /** Gives up the least valuable leases where the next step would lack blocks. */
  #revokeForMemory(now: number): void {
    let free = this.freeBlocks;
    let running = 0;
    let head: EngineCall | undefined;
    for (const call of this.#open) {
      if (call.state === 'running') running += this.#blocksWanted(call);
      else if (head === undefined || goesBefore(call, head)) head = call;
    }
    const wanted = running + (head === undefined ? 0 : this.#blocksWanted(head));
    if (free >= wanted) return;
    const target = wanted - free <= this.#leased.size ? wanted : running;
    while (free < target && this.#leases.size > 0) {
      let least: Lease | undefined;
      for (const lease of this.#leases.values())
        if (least === undefined || worthOf(lease, now) < worthOf(least, now)) least = lease;
      this.#endLease(least as Lease, 'memory');
      free = this.freeBlocks;
    }
  }

  /** New blocks for what the next step would compute of a call. */
  #blocksWanted(call: EngineCall): number {
    const { blockTokens, tokenBudget } = this.options;
    const known = call.promptTokens + call.generated;
    if (call.state === 'running') {
      const end = Math.min(known, call.computed + tokenBudget);
      return Math.ceil(end / blockTokens) - Math.ceil(call.computed / blockTokens);
    }
    const full = Math.min(call.hashCount, Math.floor((known - 1) / blockTokens));
    const found = this.#table.match(call.hashes.subarray(0, full), known).tokens;
    // Found blocks that are leased are not free, so they do not count against what is.
    let leased = 0;
    for (let block = 0; block < found / blockTokens; block++)
      if (this.#leased.has(call.hashes[block] as bigint)) leased++;
    return Math.ceil(Math.min(known, found + tokenBudget) / blockTokens) - leased;
  }
}

/** What the eviction policy is told of a call. Whoever names no thread but a session is a thread by that, as in the connector. */
function callOf({ thread, promptKind, sessionId }: EngineRequest): { thread?: number; promptKind?: PromptKind } {
  const named = thread ?? (sessionId === undefined ? undefined : numberOf(sessionId));
  return { ...(named === undefined ? {} : { thread: named }), ...(promptKind === undefined ? {} : { promptKind }) };
}

function numberOf(name: string): number {
  return createHash('sha256').update(name).digest().readUIntBE(0, 6);
}

/** How many "stored" events from `at` on are the blocks of a call from `block` on. */
function runOf(events: BlockEvents, at: number, call: EngineCall, block: number): number {
  let run = 1;
  while (
    events.kinds[at + run] === 0 &&
    block + run < call.hashCount &&
    events.hashes[at + run] === call.hashes[block + run]
  )
    run++;
  return run;
}

function goesBefore(a: EngineCall, b: EngineCall): boolean {
  const difference = (a.request.priority ?? 0) - (b.request.priority ?? 0);
  if (difference !== 0) return difference < 0;
  if (a.admitted !== b.admitted) return a.admitted;
  return a.order < b.order;
}

function worthOf(lease: Lease, now: number): number {
  return (lease.value * Math.max(0, lease.until - now)) / Math.max(1, lease.until - lease.from);
}
