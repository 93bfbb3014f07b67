/**
 * The life of one server in a set: it is tried until it is healthy, its ranks join the scheduler as workers, its health and load are
 * watched, and when it is lost they are removed and all begins again.
 *
 *   connecting -> up -> connecting      two health checks in a row failed
 *   connecting -> refused -> connecting it cannot be used as it is: looked at again from time to time
 *
 * A server that comes back is a new worker. One that keeps failing waits longer each time, up to a minute: each time its calls have
 * to be placed again, and what is known of its cache is lost.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Dispatcher } from 'undici';
import { SagaError } from '../errors.js';
import { BlockHasher } from '../hasher.js';
import type { Worker } from '../scheduler/worker.js';
import { DirectiveChannel } from './directive-channel.js';
import type { DirectiveClient } from './directive-client.js';
import { usualGatherMs, type ReplayLimits } from './event-subscriber.js';
import { chainSaltOf } from './kv-event-source.js';
import {
  noDirectiveMetrics,
  noEventMetrics,
  type DirectiveMetrics,
  type EventMetrics,
  type ServerMetrics,
  type WorkerMetrics,
} from './metrics.js';
import { readLoadHeader, type RankMetrics } from './metrics-text.js';
import { endpointOfRank, type CheckedOptions, type ServerOptions } from './options.js';
import { probe } from './parity.js';
import { Server, UnusableServer, errorText, type ServerFacts } from './server.js';
import { factors } from './trust.js';
import { VllmWorker, type ServerCondition, type WorkerOwner } from './vllm-worker.js';
import { WorkerFeed } from './worker-feed.js';

/** Times in milliseconds; tests shorten them. */
export interface LinkTimes {
  /** Least time for a health check. */
  health: number;
  /** Between a failed check and the next one. */
  recheck: number;
  inspect: number;
  /** For a worker's events to be read before it takes calls. */
  settle: number;
  probeRequest: number;
  probeEvent: number;
  status: number;
  wakeRequest: number;
  /** Longest wait of a server that keeps failing. */
  backoff: number;
  replay: Partial<ReplayLimits>;
}

export const linkTimes: LinkTimes = {
  health: 2000,
  recheck: 250,
  inspect: 10_000,
  settle: 3000,
  probeRequest: 30_000,
  probeEvent: 3000,
  status: 10_000,
  wakeRequest: 30_000,
  backoff: 60_000,
  replay: {},
};

/** A server that was up so long is not one that keeps failing. */
const stableMs = 60_000;
const failuresToLose = 2;

const probeFactors = {
  failed: factors.parityFailed,
  // All that has no salt is right.
  salted: factors.partial,
  unproven: factors.parityUnproven,
} as const;

export interface LinkHost {
  readonly options: CheckedOptions;
  readonly dispatcher: Dispatcher;
  readonly directives: DirectiveClient;
  readonly times: LinkTimes;
  joined(link: ServerLink, worker: VllmWorker): void;
  left(worker: VllmWorker): void;
  changed(): void;
}

/** What belongs to one worker. */
interface Rank {
  readonly worker: VllmWorker;
  readonly blocks: number;
  readonly feed: WorkerFeed | undefined;
  readonly channel: DirectiveChannel | undefined;
  readonly events: EventMetrics;
  readonly directives: DirectiveMetrics;
  told: RankMetrics;
  headerAt: number;
  /** Whether the scheduler was told that it takes calls. */
  accepts: boolean;
  trust: number;
}

export class ServerLink implements WorkerOwner {
  readonly server: Server;
  readonly metrics: ServerMetrics;
  condition: ServerCondition = 'connecting';
  reason: string | undefined = 'not tried yet';
  /** When it was tried once: its workers are ready, or it has none. */
  readonly tried: Promise<void>;
  readonly #host: LinkHost;
  #tried!: () => void;
  #ranks: Rank[] = [];
  /** Lost, but the scheduler did not take it: its journal was full. */
  #owed: Worker[] = [];
  #draining = false;
  /** Removed as soon as no call is open. */
  #leaving = false;
  readonly #stop = new AbortController();
  /** Of the present workers. */
  #life = new AbortController();
  #hurry = new AbortController();

  constructor(server: ServerOptions, host: LinkHost) {
    this.#host = host;
    this.server = new Server(server, host.dispatcher);
    this.metrics = { url: server.url, condition: 'connecting', healthChecks: 0, healthFailures: 0, joined: 0, lost: 0 };
    this.tried = new Promise((resolve) => (this.#tried = resolve));
  }

  get url(): string {
    return this.server.options.url;
  }

  get workers(): VllmWorker[] {
    return this.#ranks.map((rank) => rank.worker);
  }

  channel(worker: VllmWorker): DirectiveChannel | undefined {
    return this.#rankOf(worker)?.channel;
  }

  feed(worker: VllmWorker): WorkerFeed | undefined {
    return this.#rankOf(worker)?.feed;
  }

  directiveMetrics(worker: VllmWorker): DirectiveMetrics | undefined {
    return this.#rankOf(worker)?.directives;
  }

  workerMetrics(): WorkerMetrics[] {
    return this.#ranks.map(({ worker, blocks, events, directives, told }) => ({
      url: this.url,
      rank: worker.rank,
      worker: worker.worker.id,
      condition: worker.condition,
      trust: worker.trust,
      drift: worker.drift.drift,
      surprise: worker.drift.surprise,
      evictedWhileWaiting: worker.drift.evictedTokens,
      observations: worker.drift.observations,
      blocks,
      blocksInUse: Math.round((told.usage ?? 0) * blocks),
      runningCalls: told.running ?? 0,
      waitingCalls: told.waiting ?? 0,
      events: { ...events },
      directives: { ...directives, outcomes: { ...directives.outcomes } },
    }));
  }

  /** Until {@link stop}. Never rejects. */
  async run(): Promise<void> {
    const { options, times } = this.#host;
    const { log } = options;
    let losses = 0;
    while (!this.#stop.signal.aborted) {
      let wait = options.healthSeconds * 1000;
      this.#letGo();
      try {
        await this.#health();
        const facts = await this.server.inspect(
          options.model,
          this.server.options.blockTokens ?? options.scheduler.blockTokens,
          times.inspect,
          this.#stop.signal,
        );
        const since = performance.now();
        await this.#join(facts);
        const why = await this.#watch();
        if (this.#stop.signal.aborted) break;
        this.#leave(why);
        losses = performance.now() - since < stableMs ? losses + 1 : 1;
        wait = Math.min(times.backoff, wait * 2 ** (losses - 1));
      } catch (error) {
        if (this.#stop.signal.aborted) break;
        const unusable = error instanceof UnusableServer || error instanceof SagaError;
        this.#state(unusable ? 'refused' : 'connecting', errorText(error));
        this.#leave(errorText(error));
        if (unusable) wait *= 6;
      }
      this.#tried();
      if (this.#leaving) this.stop();
      await this.#sleep(wait);
    }
    this.#leave('removed');
    this.#tried();
    log.debug({ url: this.url }, 'a server is no longer watched');
  }

  /** Ends {@link run}; its workers are removed. */
  stop(): void {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort();
    this.#leave('removed');
  }

  drain(): void {
    this.#draining = true;
    for (const rank of this.#ranks) this.#accept(rank);
  }

  resume(): void {
    this.#draining = false;
    this.#leaving = false;
    for (const rank of this.#ranks) this.#accept(rank);
  }

  /** Takes no more calls, and is removed when none is open. */
  leaveWhenIdle(): void {
    this.#leaving = true;
    this.drain();
    if (this.#ranks.length === 0) this.stop();
  }

  get leaving(): boolean {
    return this.#leaving;
  }

  async wake(worker: VllmWorker): Promise<void> {
    const { model } = this.#host.options;
    await this.server.send('POST', '/v1/completions', {
      ms: this.#host.times.wakeRequest,
      signal: this.#life.signal,
      headers: worker.headers,
      body: { model, prompt: [1], max_tokens: 1, temperature: 0, cache_salt: 'saga-wake' },
    });
  }

  /** A completion of our own; its status. */
  async complete(
    worker: VllmWorker,
    body: object,
    { id, ms, signal }: { id: string; ms: number; signal: AbortSignal },
  ): Promise<number> {
    const { status } = await this.server.send('POST', '/v1/completions', {
      ms,
      signal: AbortSignal.any([signal, this.#life.signal]),
      headers: { ...worker.headers, 'x-request-id': id },
      body,
    });
    return status;
  }

  // ---- What workers tell

  unreachable(worker: VllmWorker, error: Error): void {
    this.#host.options.log.info(
      { url: this.url, rank: worker.rank, error: errorText(error) },
      'a request to a server failed',
    );
    this.#hurry.abort();
  }

  trustChanged(worker: VllmWorker): void {
    const rank = this.#rankOf(worker);
    if (rank) this.#trust(rank);
  }

  driftChanged(worker: VllmWorker): void {
    const { drift, warning, factor } = worker.drift;
    const words = `cached tokens are fewer than predicted: ${Math.round(5 * factor) === 5 ? 'seldom' : 'often'}`;
    if (warning !== worker.degraded.some((reason) => reason.startsWith('drift:')))
      this.#host.options.log[warning ? 'warn' : 'info'](
        { url: this.url, rank: worker.rank, drift },
        warning ? 'predicted cache hits do not come true' : 'predicted cache hits come true again',
      );
    worker.doubt('drift', warning ? { words, factor } : undefined);
  }

  load(worker: VllmWorker, header: string): void {
    const rank = this.#rankOf(worker);
    if (!rank) return;
    const { waiting, usage } = readLoadHeader(header);
    if (usage === undefined) return;
    rank.headerAt = performance.now();
    this.#load(rank, { ...rank.told, usage, waiting: waiting ?? rank.told.waiting });
  }

  // ---- Joining and leaving

  async #join(facts: ServerFacts): Promise<void> {
    const { options, times } = this.#host;
    const { log } = options;
    this.#life = new AbortController();
    this.#hurry = new AbortController();
    for (const [rank, blocks] of facts.blocks.entries()) await this.#joinRank(rank, blocks, facts);
    this.#state('up', undefined);
    ++this.metrics.joined;
    log.info(
      { url: this.url, workers: this.#ranks.map((rank) => rank.worker.worker.id), version: facts.features.version },
      'a server joined',
    );
    const { signal } = this.#life;
    await Promise.all(
      this.#ranks.map(async (rank) => {
        await this.#settle(rank, signal);
        if (options.probe) await this.#probe(rank, signal);
        void this.#pollStatus(rank, signal);
      }),
    );
    if (signal.aborted) return;
    for (const rank of this.#ranks) {
      rank.worker.condition_ = 'ready';
      this.#accept(rank);
    }
    void this.#pollLoad(signal, times.health);
    this.#tried();
  }

  async #joinRank(number: number, blocks: number, facts: ServerFacts): Promise<void> {
    const added = this.#host.options.scheduler.addWorker({ blocks });
    let rank: Rank;
    try {
      added.drain();
      rank = this.#rank(added, number, blocks, facts);
    } catch (error) {
      this.#owed.push(added);
      this.#letGo();
      throw error;
    }
    const { worker, feed } = rank;
    this.#ranks.push(rank);
    this.#host.joined(this, worker);
    if (feed === undefined) worker.doubt('events', { words: 'no endpoint is configured', factor: factors.blind });
    this.#trust(rank);
    try {
      await feed?.start();
    } catch (error) {
      // Its events cannot be listened to; its calls can be served all the same.
      worker.doubt('source', {
        words: `cannot listen at ${this.server.options.events}: ${errorText(error)}`,
        factor: factors.blind,
      });
    }
  }

  #rank(added: Worker, number: number, blocks: number, facts: ServerFacts): Rank {
    const { options, times } = this.#host;
    const { scheduler, hash, log } = options;
    const server = this.server.options;
    const blockTokens = server.blockTokens ?? scheduler.blockTokens;
    const worker = new VllmWorker(added, server, number, facts.features, this, blockTokens);
    const events = noEventMetrics();
    const directives = noDirectiveMetrics();
    return {
      worker,
      blocks,
      feed:
        server.events === undefined
          ? undefined
          : new WorkerFeed({
              scheduler,
              worker,
              events: server.events,
              blocks,
              blockTokens,
              hash,
              metrics: events,
              applied: () => this.#host.changed(),
              log,
              limits: times.replay,
              // Where time runs faster, less of it.
              gatherMs: usualGatherMs / Math.max(1, options.timeScale),
            }),
      channel:
        server.directives === undefined
          ? undefined
          : new DirectiveChannel({
              endpoint: endpointOfRank(server.directives, number),
              key: server.directiveKey,
              metrics: directives,
              wakeMs: Math.max(20, 1000 / options.timeScale),
              wake: () => this.wake(worker),
            }),
      events,
      directives,
      told: { cache: undefined, running: undefined, waiting: undefined, usage: undefined },
      headerAt: Number.NEGATIVE_INFINITY,
      accepts: false,
      trust: 1,
    };
  }

  /** Waits until its events are read, but not for ever. */
  async #settle(rank: Rank, signal: AbortSignal): Promise<void> {
    const until = performance.now() + this.#host.times.settle;
    while (rank.feed && !rank.feed.settled && performance.now() < until && !signal.aborted)
      await delay(5, undefined, { signal }).catch(() => {});
  }

  async #probe(rank: Rank, signal: AbortSignal): Promise<void> {
    const { options, times } = this.#host;
    const { worker, feed } = rank;
    const blockTokens = worker.server.blockTokens ?? options.scheduler.blockTokens;
    const result = await probe({
      server: this.server,
      model: options.model,
      headers: worker.headers,
      blockTokens,
      held: feed && ((tokens, cacheSalt) => feed.source.usable(this.#chain(tokens, cacheSalt, blockTokens))),
      heldOtherwise:
        feed === undefined || options.hash.algorithm === 'saga'
          ? undefined
          : (tokens, cacheSalt) => feed.source.usable(this.#chain(tokens, cacheSalt, blockTokens, true)),
      requestMs: times.probeRequest,
      eventMs: times.probeEvent,
      signal,
    }).catch(() => undefined);
    if (result === undefined || signal.aborted) return;
    const { priority, promptTokensDetails, outcome, words } = result;
    worker.features_ = { ...worker.features_, priority, promptTokensDetails };
    if (outcome === 'passed') return;
    worker.doubt('parity', { words, factor: probeFactors[outcome] });
    options.log.warn({ url: this.url, rank: worker.rank, reason: words }, 'the parity probe was not passed');
  }

  /** `otherForm`: of the engine's own keys, the salt written in the way that is not configured. */
  #chain(tokens: Uint32Array, cacheSalt: string | undefined, blockTokens: number, otherForm = false): BigUint64Array {
    const { hash } = this.#host.options;
    const keys = cacheSalt === undefined ? {} : { cacheSalt };
    const hasher =
      hash.algorithm === 'saga'
        ? new BlockHasher({ blockTokens, salt: chainSaltOf(keys) })
        : new BlockHasher({
            algorithm: hash.algorithm,
            blockTokens,
            hashSeed: hash.seed,
            taggedKeys: (hash.taggedKeys ?? false) !== otherForm,
          }).reset(keys);
    return hasher.update(tokens);
  }

  #leave(why: string): void {
    this.#life.abort();
    const ranks = this.#ranks;
    this.#ranks = [];
    if (ranks.length === 0) return;
    ++this.metrics.lost;
    this.#host.options.log[this.#stop.signal.aborted ? 'info' : 'warn'](
      { url: this.url, reason: why },
      'a server left',
    );
    for (const { worker, feed, channel } of ranks) {
      worker.condition_ = 'lost';
      feed?.close();
      channel?.close();
      this.#owed.push(worker.worker);
      this.#letGo();
      this.#host.left(worker);
    }
    this.#state('connecting', why);
  }

  /** Removes from the scheduler what is lost, also what it did not let go before: it has room for so many workers at one time. */
  #letGo(): void {
    for (const worker of this.#owed) this.#tell(() => worker.remove());
    this.#owed = this.#owed.filter((worker) => !worker.gone);
  }

  // ---- Watching

  /** Until it is lost; returns why. */
  async #watch(): Promise<string> {
    const { healthSeconds } = this.#host.options;
    const { signal } = this.#life;
    const { recheck } = this.#host.times;
    for (let failures = 0; !signal.aborted;) {
      const slept = performance.now();
      await this.#sleep(failures === 0 ? healthSeconds * 1000 : recheck);
      // However many requests fail, it is not checked more often than so.
      const early = slept + Math.min(recheck, healthSeconds * 1000) - performance.now();
      if (early > 0) await delay(early, undefined, { signal }).catch(() => {});
      if (signal.aborted) break;
      if (this.#leaving && this.#ranks.every(({ worker }) => worker.worker.state().openCalls === 0)) {
        this.stop();
        break;
      }
      try {
        await this.#health();
        failures = 0;
      } catch (error) {
        if (++failures >= failuresToLose) return errorText(error);
      }
    }
    return this.reason ?? 'removed';
  }

  async #health(): Promise<void> {
    ++this.metrics.healthChecks;
    try {
      const ms = Math.max(this.#host.times.health, this.#host.options.healthSeconds * 1000);
      await this.server.health(ms, this.#stop.signal);
    } catch (error) {
      ++this.metrics.healthFailures;
      throw error;
    }
  }

  async #pollLoad(signal: AbortSignal, ms: number): Promise<void> {
    const interval = this.#host.options.loadSeconds * 1000;
    if (interval === 0) return;
    for (let failures = 0; !signal.aborted; await delay(interval, undefined, { signal, ref: false }).catch(() => {})) {
      const fresh = performance.now() - interval;
      if (this.#ranks.every((rank) => rank.headerAt > fresh)) continue;
      try {
        const metrics = await this.server.metrics(ms, signal);
        if (signal.aborted) return;
        failures = 0;
        for (const rank of this.#ranks) this.#measured(rank, metrics.get(rank.worker.rank));
      } catch (error) {
        if (signal.aborted) return;
        if (++failures === 3)
          for (const { worker } of this.#ranks)
            worker.doubt('load', { words: `/metrics cannot be read: ${errorText(error)}`, factor: factors.none });
      }
    }
  }

  #measured(rank: Rank, told: RankMetrics | undefined): void {
    if (told === undefined) {
      rank.worker.doubt('load', { words: '/metrics does not tell of this rank', factor: factors.none });
      return;
    }
    rank.worker.doubt('load', undefined);
    const blocks = Number(told.cache?.num_gpu_blocks ?? rank.blocks);
    if (this.server.options.blocks === undefined && Number.isInteger(blocks) && blocks >= 1 && blocks !== rank.blocks) {
      this.reason = `it has ${blocks} blocks now, had ${rank.blocks}`;
      this.#life.abort();
      this.#hurry.abort();
      return;
    }
    this.#load(rank, told);
  }

  #load(rank: Rank, told: RankMetrics): void {
    rank.told = told;
    const { usage, waiting } = told;
    if (usage === undefined) return;
    const blocksInUse = Math.min(rank.blocks, Math.round(usage * rank.blocks));
    this.#tell(() =>
      rank.worker.worker.load({ blocksInUse, ...(waiting === undefined ? {} : { waitingCalls: Math.round(waiting) }) }),
    );
    this.#host.changed();
  }

  /** What its connector can do, again and again: it may begin later than its server, or anew. */
  async #pollStatus(rank: Rank, signal: AbortSignal): Promise<void> {
    const { worker, channel } = rank;
    if (channel === undefined) return;
    while (!signal.aborted) {
      const report = await this.#host.directives.status(worker);
      if (signal.aborted) return;
      const { strength, requestDirectives } = report;
      worker.features_ = { ...worker.features_, connector: strength, requestDirectives };
      if (strength === undefined)
        worker.doubt('directives', { words: `no answer (${report.reason ?? report.status})`, factor: factors.none });
      else if (strength === 'none')
        worker.doubt('directives', {
          words: report.strengthReason ?? 'the connector can do nothing',
          factor: factors.none,
        });
      else worker.doubt('directives', undefined);
      await delay(this.#host.times.status, undefined, { signal, ref: false }).catch(() => {});
    }
  }

  // ---- Small things

  #state(condition: ServerCondition, reason: string | undefined): void {
    if (this.reason !== reason && condition !== 'up' && !this.#stop.signal.aborted)
      this.#host.options.log.warn({ url: this.url, condition, reason }, 'a server cannot be used');
    this.condition = condition;
    this.metrics.condition = condition;
    this.reason = reason;
  }

  #accept(rank: Rank): void {
    const { worker } = rank;
    if (worker.condition_ === 'starting' || worker.condition_ === 'lost') return;
    worker.condition_ = this.#draining ? 'draining' : 'ready';
    if (rank.accepts !== this.#draining) return;
    rank.accepts = !this.#draining;
    this.#tell(() => (rank.accepts ? worker.worker.resume() : worker.worker.drain()));
    this.#host.changed();
  }

  #trust(rank: Rank): void {
    const { trust } = rank.worker;
    if (Math.round(1000 * trust) === Math.round(1000 * rank.trust)) return;
    rank.trust = trust;
    this.#tell(() => rank.worker.worker.trust(trust));
    this.#host.changed();
  }

  /** A scheduler that is closed, or whose journal is full, is not told; that harms nobody but itself. */
  #tell(what: () => void): void {
    try {
      what();
    } catch (error) {
      this.#host.options.log.error({ url: this.url, error: errorText(error) }, 'the scheduler could not be told');
    }
  }

  #rankOf(worker: VllmWorker): Rank | undefined {
    return this.#ranks.find((rank) => rank.worker === worker);
  }

  /** Shortened by a request that failed, ended by {@link stop}. */
  async #sleep(ms: number): Promise<void> {
    if (this.#hurry.signal.aborted) this.#hurry = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, this.#hurry.signal]);
    await delay(ms, undefined, { signal }).catch(() => {});
  }
}
