/**
 * Everything that the addon offers, typed by hand in one place. Only files named `*.ts` beside this one that wrap it may
 * import it; they check arguments first. A number that comes back is a result (>= 0) or minus a `saga_status_t`.
 *
 * @internal
 */
declare namespace native {
  interface Hasher {
    reset(): number;
    setKeys(loraName: string, cacheSalt: string): number;
    /** Number of blocks hashed. */
    update(tokens: Uint32Array, hashes: BigUint64Array): number;
    /** Size of the digest written to `out` (32 bytes of room). */
    digest(out: Uint8Array): number;
  }

  interface Engine {
    addWorker(now: number, capacityBlocks: number): number;
    removeWorker(now: number, worker: number): number;
    /** With `hasParent` = 1 the first element of `hashes` is the parent of the second. */
    blocksStored(now: number, worker: number, tier: number, hashes: BigUint64Array, hasParent: number): number;
    blocksRemoved(now: number, worker: number, tier: number, hashes: BigUint64Array): number;
    blocksCleared(now: number, worker: number): number;
    workerLoad(now: number, worker: number, blocksInUse: number): number;
    /** 2^32 - 1: not told. */
    workerLoadWith(now: number, worker: number, blocksInUse: number, waitingCalls: number, freeBlocks: number): number;
    workerTrust(now: number, worker: number, perMille: number): number;
    /** `accepts`: 0 or 1. */
    workerAccepts(now: number, worker: number, accepts: number): number;
    workerWindow(now: number, worker: number, blocks: number): number;
    windowStored(now: number, worker: number, hashes: BigUint64Array): number;
    windowRemoved(now: number, worker: number, hashes: BigUint64Array): number;
    /** `results` (Float64Array of 26) is registered and written later. The source tells this engine of `worker`. */
    createKvSource(
      worker: number,
      algorithm: number,
      blockTokens: number,
      maxBlocks: number,
      maxBatchBytes: number,
      results: Float64Array,
    ): KvSource | number;
    /** Writes the registered array: capacity, open calls, blocks in use, active, trust per mille, accepts, window blocks. */
    workerState(worker: number): number;
    /** The graph's id; columns as of `AgentGraph.toColumns`. */
    declareGraph(now: number, steps: Float64Array, edges: Float64Array, totals: Float64Array): number;
    setTenant(now: number, tenant: number, weight: number): number;
    /** `graph`: 2^32 - 1 for none; `agentKind`: 0 for none. */
    openWorkflow(now: number, tenant: number, graph: number, agentKind: number): number;
    closeWorkflow(now: number, workflow: number): number;
    submitCall(now: number, workflow: number, promptTokens: number, chain: BigUint64Array, count: number): number;
    /** The rest is in `told`. */
    submitCallWith(now: number, workflow: number, promptTokens: number, chain: BigUint64Array, count: number): number;
    /** `placement`: 2^32 - 1 for the present one. */
    firstToken(now: number, call: number, placement: number): number;
    finishCall(now: number, call: number, stop: number, tool: number, outputTokens: number): number;
    /** `chain`: of the answer. The rest is in `told`. */
    finishCallWith(
      now: number,
      call: number,
      stop: number,
      tool: number,
      outputTokens: number,
      chain: BigUint64Array,
    ): number;
    cancelCall(now: number, call: number): number;
    toolStarted(now: number, workflow: number, tool: number): number;
    toolFinished(now: number, workflow: number): number;
    tick(now: number): number;
    /** Number of decisions written to the registered array. What was to go on by now is done first. */
    decide(now: number): number;
    /** Microseconds, or infinity. */
    nextWake(): number;
    /** `outcome`: 0 applied, 1 refused, 2 expired, 3 revoked. */
    directiveDone(now: number, id: number, outcome: number): number;
    /** The longest match; per worker and tier in the registered array. */
    match(chain: BigUint64Array, count: number): number;
    /** This and the next five write `results`, in the order of the C interface's struct. */
    stats(): number;
    schedulerStats(): number;
    /** Brier scores of both, gaps, within p50, p90, p95; then predictions, happened, sum predicted of ten bins of both. */
    calibration(): number;
    tenantState(tenant: number): number;
    workerForecast(worker: number): number;
    /** Reason, worker, source, holder, matched and prompt blocks, placement, submitted at, queued, granted at, two prices of six terms, trust per mille. */
    receipt(call: number): number;
    digest(): bigint;
    verify(): number;
    journalRead(bytes: Uint8Array): number;
    destroy(): number;
  }

  /** `words` and `stats` are the registered arrays. A copy is four words: source tier and block, target tier and block. */
  interface PageTable {
    /** Tokens that hit; in `words`: in all, then by tier. */
    match(hashes: BigUint64Array, tokenCount: number, slowest: number): number;
    /** The sequence; in `words` as of match. `thread` negative: not told. `now` in microseconds. */
    open(
      hashes: BigUint64Array,
      tokenCount: number,
      slowest: number,
      thread: number,
      promptKind: number,
      now: number,
    ): number;
    /** 1 if there is a copy to execute, which is in `words`. */
    allocateSlots(sequence: number, newTokens: number): number;
    cacheFullBlocks(sequence: number, hashes: BigUint64Array): number;
    /** The new sequence. */
    fork(parent: number): number;
    truncate(sequence: number, tokenCount: number): number;
    /** `declaredGap` in microseconds, negative: not told. */
    free(
      sequence: number,
      stopReason: number,
      toolClass: number,
      sessionEnd: number,
      outputTokens: number,
      declaredGap: number,
      preempted: number,
      now: number,
    ): number;
    /** As free. */
    told(
      thread: number,
      stopReason: number,
      toolClass: number,
      sessionEnd: number,
      outputTokens: number,
      declaredGap: number,
      now: number,
    ): number;
    threadLeft(thread: number, now: number): number;
    /** Number of copies. */
    drainDemotions(copies: Uint32Array): number;
    /** 18 values: those of `EvictionStats` (src/page-table.ts) in order. */
    evictionStats(out: Float64Array): number;
    /** 3 values: those of `Regret` in order. */
    regret(out: Float64Array): number;
    /** In `words`: token count, block count, cached blocks, resident, busy. */
    sequenceState(sequence: number): number;
    exportBlockTables(sequences: Uint32Array, width: number, padding: number, blockTables: Int32Array): number;
    /** Number of slots. `ranges`: sequence, first token, token count. */
    exportSlotMapping(ranges: Uint32Array, slotMapping: BigInt64Array): number;
    /** The plan; the number of copies in `words[0]`. So the next two. */
    planSwapOut(sequence: number, target: number, copies: Uint32Array): number;
    planSwapIn(sequence: number, copies: Uint32Array): number;
    planCopy(source: number, hashes: BigUint64Array, target: number, copies: Uint32Array): number;
    commit(plan: number): number;
    abort(plan: number): number;
    /** How many hashes were found. */
    evict(tier: number, hashes: BigUint64Array): number;
    /** How many blocks were found free. */
    evictFirst(tier: number, hashes: BigUint64Array): number;
    /** 1 if it was done. */
    resetPrefixCache(tier: number): number;
    /** Number of hashes. */
    cachedHashes(tier: number, hashes: BigUint64Array): number;
    /**
     * `options`: maxCalls, maxSequences, tokenBudget, maxPrefillChunk, maxCopies, order, preemption, slowestHit, sessionAffinity,
     * hitAfterCompletion, starvationLimit (negative: none), width of the block tables. `arrays` are registered and written
     * later: words (13), stats (17), and those of `BatchArrays` (src/batch.ts) in order.
     */
    createBatchFormer(options: Float64Array, arrays: readonly ArrayBufferView[]): BatchFormer | number;
    /** Number of events. */
    drainEvents(hashes: BigUint64Array, blocks: Uint32Array, tiers: Uint8Array, kinds: Uint8Array): number;
    stats(): number;
    verify(): number;
    digest(): bigint | number;
    destroy(): number;
  }

  /** `words` and the other arrays are the registered ones. */
  interface BatchFormer {
    /** The call. */
    submit(
      now: number,
      promptTokens: number,
      maxNewTokens: number,
      priority: number,
      workflow: number,
      urgency: number,
      hashes: BigUint64Array,
      thread: number,
      promptKind: number,
    ): number;
    addHashes(call: number, hashes: BigUint64Array): number;
    setPriority(call: number, priority: number): number;
    /** Number of calls. */
    setUrgency(workflow: number, urgency: number): number;
    /** `declaredGap` in microseconds, negative: not told. */
    setOutcome(
      call: number,
      stopReason: number,
      toolClass: number,
      sessionEnd: number,
      outputTokens: number,
      declaredGap: number,
    ): number;
    cancel(call: number): number;
    /** Number of calls. */
    cancelWorkflow(workflow: number): number;
    /** In `words` from the eighth on: state, known and computed tokens, hashes, hit tokens, preemptions. */
    callStatus(call: number): number;
    /** Number of calls; in `words`: calls, decode calls, tokens, admitted, updates, copies, preempted. */
    form(now: number): number;
    /** Number of calls that ended. */
    complete(calls: number): number;
    stats(): number;
    verify(): number;
    digest(): bigint | number;
    destroy(): number;
  }
}

declare namespace native {
  interface KvSource {
    /** In `results`: rank (-1: none), timestamp, uncertain bits, status of the engine, and the 17 of `saga_kv_counts_t`. */
    apply(now: number, payload: Uint8Array): number;
    reset(now: number): number;
    sync(now: number): number;
    /** `fullDepth`: 2^32 - 1 for none. */
    usable(tier: number, chain: BigUint64Array, fullDepth: number): number;
    /** Copies of the block `hash[0]`. */
    holds(group: number, tier: number, hash: BigUint64Array): number;
    /** Bits of `saga_kv_uncertain_t`. */
    uncertain(): number;
    /**
     * In `results`: uncertain bits, groups, window blocks, engine behind, batches, blocks, copies, nameless blocks, memory bytes,
     * and the 17 of `saga_kv_counts_t`.
     */
    stats(): number;
    verify(): number;
    destroy(): number;
  }
}

declare namespace native {
  /** `words`, `stats` and `forgotten` are the registered arrays. */
  interface Lineage {
    /** In `words`: kind, workflow, head, superseded (2^32 - 1: none), common and known blocks. An empty `id` is none. */
    identify(hashes: BigUint64Array, id: string): number;
    ended(head: number): number;
    closed(workflow: number): number;
    /** How many; they are in `forgotten`. */
    forgotten(): number;
    stats(): number;
    verify(): number;
    destroy(): number;
  }
}

declare namespace native {
  /** Opaque; freed when collected. A wrong handle is refused, never used. */
  type PromptChain = object & { readonly promptChain: unique symbol };
}

declare namespace native {
  /** Opaque; freed when collected. A wrong handle is refused, never used. */
  type Workload = object & { readonly workload: unique symbol };
  type CacheReplay = object & { readonly cacheReplay: unique symbol };
  type Cluster = object & { readonly cluster: unique symbol };

  /** See `WorkloadColumns` (src/workload/columns.ts). Times and ids are integers below 2^53. */
  interface Columns {
    readonly blockTokens: number;
    readonly taskTenant: Uint32Array;
    readonly taskFirstCall: Uint32Array;
    /** Microseconds, 0 = none. */
    readonly taskExpected: Float64Array;
    readonly callThread: Uint32Array;
    readonly promptTokens: Uint32Array;
    readonly outputTokens: Uint32Array;
    readonly promptKind: Uint8Array;
    readonly stopReason: Uint8Array;
    readonly toolClass: Uint8Array;
    readonly callFirstPredecessor: Uint32Array;
    readonly predecessorCall: Uint32Array;
    readonly predecessorGap: Float64Array;
    readonly callFirstRun: Uint32Array;
    readonly runFirstId: Float64Array;
    readonly runLength: Uint32Array;
    /** Per tenant, above 0. */
    readonly tenantWeight?: Float64Array;
    /** Per task: number of its graph, 2^32 - 1 for none. */
    readonly taskGraph?: Uint32Array;
    /** Five numbers a graph: steps, edges, first prompt tokens, expected calls, expected seconds. */
    readonly graphRows?: Float64Array;
    /** Four numbers a step, graph by graph: tool class, output tokens, observation tokens, gap in seconds. */
    readonly graphSteps?: Float64Array;
    /** Three numbers an edge, graph by graph: from, to, probability. */
    readonly graphEdges?: Float64Array;
  }
}

declare const native: {
  readonly abiVersion: number;
  readonly version: string;
  /** The binary that was loaded. */
  readonly binaryPath: string;
  statusText(status: number): string;
  /** Does nothing: the least that one call across the border costs. */
  nothing(): void;
  createHasher(algorithm: number, blockTokens: number, root: string): native.Hasher | number;
  /**
   * `options`: maxWorkers, maxWorkflows, maxCalls, maxBlocks, maxOpenBlocks, maxChainBlocks, blockTokens, placement,
   * imbalanceCalls, minimumMatchPercent, seed, journalBytes; maxThreads, maxTenants, maxGraphs, maxLeases, maxDirectives,
   * maxReceipts, without, directiveSeconds, kvBytesPerToken, linkBytesPerSecond; step: base, per call, per context token, per
   * prefill token, per prefill pair. NaN: default. The other arrays are registered and written later, but for `told` (8),
   * which is read: agent, prompt kind, next tool, final step (1 no, 2 yes), gap (infinity: not told), step, output tokens,
   * placement. 2^32 - 1 tells nothing, but for tool, final step and output tokens: there 0 does.
   */
  createEngine(
    options: Float64Array,
    decisions: Uint32Array,
    depth: Uint32Array,
    results: Float64Array,
    workerState: Uint32Array,
    told: Float64Array,
  ): native.Engine | number;
  /** `result`: status, events, decisions, good bytes. The digest of the state, or minus a status where there is none. */
  replayJournal(journal: Uint8Array, result: Float64Array): bigint | number;
  /** The same for a file of any size; -2 where it cannot be read. */
  replayJournalFile(path: string, result: Float64Array): bigint | number;
  /**
   * `options`: blockTokens, blocks of GPU, host and disk, maxSequences, maxBlocksPerSequence, maxPlans, eventCapacity,
   * uncachedFirst. `words` (8) and `stats` (35) are registered and written later.
   */
  createPageTable(options: Float64Array, words: Uint32Array, stats: Float64Array): native.PageTable | number;

  /** `words` (6), `stats` (12) and `forgotten` (maxHeads) are registered and written later. */
  createLineage(
    maxHeads: number,
    maxBlocks: number,
    slackBlocks: number,
    words: Uint32Array,
    stats: Float64Array,
    forgotten: Uint32Array,
  ): native.Lineage | number;

  /** `options`: algorithm, blockTokens, maxTokens. In `words` (4): the last two are the length in tokens and in blocks. */
  createPromptChain(
    options: Float64Array,
    root: string,
    loraName: string,
    cacheSalt: string,
    words: Uint32Array,
  ): native.PromptChain | number;
  /** In `words` (4): common tokens, hashed blocks, and then length in tokens and in blocks. So the next one. */
  promptChainUpdate(chain: native.PromptChain, tokens: Uint32Array | Int32Array, words: Uint32Array): number;
  promptChainAppend(chain: native.PromptChain, tokens: Uint32Array | Int32Array, words: Uint32Array): number;
  /** In `words`: length in tokens and in blocks, as above. */
  promptChainTruncate(chain: native.PromptChain, tokens: number, words: Uint32Array): number;
  /** How many there are; as many as fit are written. So the next one. */
  promptChainHashes(chain: native.PromptChain, out: BigUint64Array): number;
  promptChainTokens(chain: native.PromptChain, out: Uint32Array | Int32Array): number;
  promptChainFork(chain: native.PromptChain, tokens: number, words: Uint32Array): native.PromptChain | number;
  /** In `stats` (3): tokens compared, tokens hashed, bytes. */
  promptChainStats(chain: native.PromptChain, stats: Float64Array): number;
  promptChainVerify(chain: native.PromptChain): number;
  promptChainDestroy(chain: native.PromptChain): number;

  /**
   * `names`: UTF-8 texts behind one another that end at `nameEnds`. `header` (7): saga_json_outline_t. `members`: eight words each,
   * `elements`: three words each, as of json.h. Returns how many ids there are for `ids`.
   */
  jsonScan(
    body: Uint8Array,
    names: Uint8Array,
    nameEnds: Uint32Array,
    header: Uint32Array,
    members: Uint32Array,
    elements: Uint32Array,
    ids: Uint32Array,
  ): number;
  /** `result` (3): error, position, count. */
  jsonTokenIds(
    body: Uint8Array,
    start: number,
    end: number,
    ids: Uint32Array | Int32Array,
    result: Uint32Array,
  ): number;
  jsonErrorText(error: number): string;
  commonPrefix(a: Uint8Array, b: Uint8Array): number;
  hashBytes(bytes: Uint8Array): bigint;

  /** 2^32 - 1: the batch names no rank. */
  kvBatchRank(payload: Uint8Array): number;
  /** Of one bit. */
  kvUncertainText(reason: number): string;

  createWorkload(columns: native.Columns): native.Workload | number;
  /** `sessionEnd`: 1 for the last call of its thread. `declaredGap`: microseconds, NaN where nothing is declared. */
  createCacheReplay(
    workload: native.Workload,
    pageTokens: number,
    call: Uint32Array,
    start: Float64Array,
    end: Float64Array,
    sessionEnd?: Uint8Array,
    declaredGap?: Float64Array,
  ): native.CacheReplay | number;
  cacheReplayDistinctPages(replay: native.CacheReplay): number;
  /**
   * `options`: policy, model, capacityPages, requestLimit, inferThreads, timing. `result` (9): requests, requestedPages,
   * missedPages, evictedPages, requestedCost, missedCost, evictionNanoseconds, overflows, policyNanoseconds. `progress[0]`:
   * requests done. Resolves to 0 or minus a status.
   */
  runCacheReplay(
    replay: native.CacheReplay,
    options: Float64Array,
    result: Float64Array,
    progress: BigUint64Array,
  ): Promise<number>;
  /**
   * `options`: workers, hardware, pageTokens, maxSequences, tokenBudget, kvTokens (0: by hardware), hostTierTokens,
   * linkBytesPerSecond, tokenGrain, wholePrompts. Plays every task alone first.
   */
  createCluster(workload: native.Workload, options: Float64Array): Promise<native.Cluster | number>;
  /**
   * `options` (14): policy, hints, without, live, rate, seed, 8 parameters (NaN: default). `journal`: a file to write, or ''.
   * `result` (39): tasksCompleted, completion mean, p50, p95, p99, completion without gaps likewise, idealSeconds,
   * prefixHitRate, capacityPages, requestedPages, missedPages, evictedPages, beladyRatio, costRatio, regeneratedTokens,
   * memoryUtilization, sloAttainment, sloAttainmentPaper, throughputTokensPerSecond, outputTokens, preemptions, steps, engine
   * digest high and low 32 bits, journal bytes, prefilledTokens, loadedTokens, preemptedTokens, copiedPages, heldCalls, steals, leases granted,
   * refused, expired, released, revoked. `taskSeconds`: a place for each task. `progress[0]`: tasks completed. Resolves to 0 or
   * minus a status (-2: the journal cannot be opened, -6: not written).
   */
  runCluster(
    cluster: native.Cluster,
    options: Float64Array,
    journal: string,
    result: Float64Array,
    progress: BigUint64Array,
    taskSeconds?: Float64Array,
  ): Promise<number>;
  /** `options` as of runCluster. `result[0]`: tasks a second. `progress[0]`: runs done. */
  clusterSaturation(
    cluster: native.Cluster,
    options: Float64Array,
    result: Float64Array,
    progress: BigUint64Array,
  ): Promise<number>;
  clusterLiveForPressure(cluster: native.Cluster, pressure: number): number;
};
export = native;
