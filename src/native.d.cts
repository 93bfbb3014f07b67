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
    /** Writes the registered array. */
    workerState(worker: number): number;
    openWorkflow(now: number, tenant: number): number;
    closeWorkflow(now: number, workflow: number): number;
    submitCall(now: number, workflow: number, promptTokens: number, chain: BigUint64Array, count: number): number;
    firstToken(now: number, call: number): number;
    finishCall(now: number, call: number, stop: number, tool: number, outputTokens: number): number;
    toolStarted(now: number, workflow: number, tool: number): number;
    toolFinished(now: number, workflow: number): number;
    tick(now: number): number;
    /** Number of decisions written to the registered array. */
    decide(now: number): number;
    /** The longest match; per worker and tier in the registered array. */
    match(chain: BigUint64Array, count: number): number;
    stats(): number;
    digest(): bigint;
    verify(): number;
    journalRead(bytes: Uint8Array): number;
    destroy(): number;
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
   * imbalanceCalls, minimumMatchPercent, seed, journalBytes. The other arrays are registered and written later.
   */
  createEngine(
    options: Float64Array,
    decisions: Uint32Array,
    depth: Uint32Array,
    stats: Float64Array,
    workerState: Uint32Array,
  ): native.Engine | number;
  /** `result`: status, events, decisions, good bytes. The digest of the state, or minus a status where there is none. */
  replayJournal(journal: Uint8Array, result: Float64Array): bigint | number;
};
export = native;
