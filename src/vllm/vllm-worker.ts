/**
 * A worker of the scheduler that is a data-parallel rank of a vLLM server: how to reach it, what it can do, and how well it is
 * known. Made by a {@link WorkerSet} when its server is healthy; when it is lost it stays lost, and the server that comes back is a
 * new worker.
 *
 *   starting -> ready <-> draining -> lost
 */
import type { Worker } from '../scheduler/worker.js';
import { Drift } from './drift.js';
import type { Expectation, Expectations } from './expectation.js';
import type { ServerOptions } from './options.js';
import { Doubts, type Doubt, type Reason } from './trust.js';

/**
 * - `starting`: in the scheduler, but takes no calls: its events are being read and its hashes probed
 * - `ready`: takes calls
 * - `draining`: takes no more
 * - `lost`: removed from the scheduler
 */
export type WorkerCondition = 'starting' | 'ready' | 'draining' | 'lost';

/**
 * - `connecting`: was not reached yet, or not since its workers were lost
 * - `up`: has workers
 * - `refused`: cannot be used as it is configured
 */
export type ServerCondition = 'connecting' | 'up' | 'refused';

/** What a worker can do; `undefined`: not known. */
export interface WorkerFeatures {
  /** Of vLLM. */
  version: string | undefined;
  /** Routes of generation by name, whether the server has them. */
  routes: Readonly<Partial<Record<WorkerRoute, boolean>>>;
  /** `false`: it refuses `priority`. Whether it schedules by one it takes cannot be seen: that stays `undefined`. */
  priority: boolean | undefined;
  /** Answers tell `cached_tokens`: `--enable-prompt-tokens-details`. */
  promptTokensDetails: boolean | undefined;
  /** What the connector saga_vllm can do; `undefined` also where there is none. */
  connector: 'policy' | 'leases' | 'none' | undefined;
  /** Directives that its connector takes from requests, as it says; `undefined`: it does not say. */
  requestDirectives: RequestDirectives | undefined;
  /** Algorithm of the engine's block hashes. */
  hashAlgorithm: string | undefined;
}

/** Directives that ride on requests, see docs/directives.md. */
export interface RequestDirectives {
  /** The member of a request that they are read from. */
  readonly member: 'kv_hints' | 'kv_transfer_params';
  /** Their types. */
  readonly types: ReadonlySet<string>;
}

export const workerRoutes = {
  completions: '/v1/completions',
  chat: '/v1/chat/completions',
  responses: '/v1/responses',
  messages: '/v1/messages',
  completionsRender: '/v1/completions/render',
  chatRender: '/v1/chat/completions/render',
  tokenize: '/tokenize',
} as const;
export type WorkerRoute = keyof typeof workerRoutes;

const loadAskMs = 100;

/** @internal What the set does for its workers. */
export interface WorkerOwner {
  /** A request to it failed. */
  unreachable(worker: VllmWorker, error: Error): void;
  /** Its trust is another one. */
  trustChanged(worker: VllmWorker): void;
  /** Predictions have drifted, or no longer. */
  driftChanged(worker: VllmWorker): void;
  /** A load header of an answer. */
  load(worker: VllmWorker, header: string): void;
}

export class VllmWorker {
  /** Of the scheduler. */
  readonly worker: Worker;
  readonly server: ServerOptions;
  /** Data-parallel rank. */
  readonly rank: number;
  /** Of the server's URL: `http://127.0.0.1:8000`. */
  readonly origin: string;
  /** What stands before `/v1` in its path, `''` as a rule. */
  readonly path: string;
  /** For every request to it: `authorization`, `x-data-parallel-rank`. */
  readonly headers: Readonly<Record<string, string>>;
  readonly #owner: WorkerOwner;
  readonly #doubts = new Doubts();
  readonly #blockTokens: number;
  #loadAskedAt = Number.NEGATIVE_INFINITY;
  /** @internal */
  readonly drift: Drift;
  /** @internal */
  features_: WorkerFeatures;
  /** @internal */
  condition_: WorkerCondition = 'starting';
  /** @internal Of calls there; `undefined`: it has no events. */
  expectations_: Expectations | undefined;

  /** @internal */
  constructor(
    worker: Worker,
    server: ServerOptions,
    rank: number,
    features: WorkerFeatures,
    owner: WorkerOwner,
    blockTokens = 16,
  ) {
    const url = new URL(server.url);
    this.worker = worker;
    this.server = server;
    this.rank = rank;
    this.origin = url.origin;
    this.path = url.pathname === '/' ? '' : url.pathname;
    this.features_ = features;
    this.headers = {
      ...(server.apiKey === undefined ? {} : { authorization: `Bearer ${server.apiKey}` }),
      ...((server.dataParallelRanks ?? 1) > 1 ? { 'x-data-parallel-rank': String(rank) } : {}),
    };
    this.#blockTokens = server.blockTokens ?? blockTokens;
    this.drift = new Drift(this.#blockTokens);
    this.#owner = owner;
  }

  get condition(): WorkerCondition {
    return this.condition_;
  }

  get features(): WorkerFeatures {
    return this.features_;
  }

  /** Why it is not trusted, or not of full use, in words: `events: no endpoint is configured`. Empty: all is well. */
  get degraded(): readonly string[] {
    return this.#doubts.words;
  }

  /** How far its pages are believed, 0 to 1: as the scheduler was told. */
  get trust(): number {
    return this.#doubts.trust;
  }

  /**
   * A call is sent there for leading blocks of a prompt that the worker holds. What becomes of them while it waits is taken into
   * account by {@link observe}; say when it has its first token, and when it has ended.
   *
   * @returns `undefined` where there is nothing to follow
   */
  expect(chain: BigUint64Array, blocks: number): Expectation | undefined {
    return blocks === 0 ? undefined : this.expectations_?.add(chain, blocks);
  }

  /**
   * An answer came: the cached tokens that were predicted for its prompt, and what its usage reports. Where predictions are wrong
   * time and again the worker is trusted less; what was evicted while the call waited is not counted.
   */
  observe(predictedTokens: number, reportedTokens: number, expectation?: Expectation): void {
    if (this.condition_ === 'lost' || expectation?.isVoid === true) return;
    const evicted = expectation === undefined ? 0 : expectation.evicted * this.#blockTokens;
    if (this.drift.observe(predictedTokens, reportedTokens, evicted)) this.#owner.driftChanged(this);
  }

  /** A request could not connect, or its connection died: its health is checked at once. */
  unreachable(error: Error): void {
    if (this.condition_ !== 'lost') this.#owner.unreachable(this, error);
  }

  /**
   * Whether a request to it should ask for its load, by `endpoint-load-metrics-format: TEXT`: the last one that did so is some time ago.
   * What comes with every answer of many a second tells nothing more.
   */
  wantsLoad(): boolean {
    const now = performance.now();
    if (now - this.#loadAskedAt < loadAskMs) return false;
    this.#loadAskedAt = now;
    return true;
  }

  /** The header `endpoint-load-metrics` of an answer of this worker; see {@link wantsLoad}. */
  loadHeader(text: string): void {
    if (this.condition_ !== 'lost') this.#owner.load(this, text);
  }

  /** @internal */
  doubt(doubt: Doubt, reason: Reason | undefined): void {
    if (this.#doubts.set(doubt, reason) && this.condition_ !== 'lost') this.#owner.trustChanged(this);
  }
}
