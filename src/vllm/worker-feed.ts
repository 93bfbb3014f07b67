/**
 * The KV events of one worker: from its publisher (EventSubscriber), through the decoder (KvEventSource), into the scheduler. It says
 * of the worker how far what is known can be believed.
 */
import { SagaArgumentError, SagaError } from '../errors.js';
import type { Scheduler } from '../scheduler/scheduler.js';
import { EventSubscriber, type ReplayLimits } from './event-subscriber.js';
import { Expectations } from './expectation.js';
import { KvEventSource, type KvEventReport } from './kv-event-source.js';
import type { EventMetrics } from './metrics.js';
import { endpointOfRank, type EventHash, type Logger } from './options.js';
import { factors, type Reason } from './trust.js';
import { errorText } from './server.js';
import type { VllmWorker } from './vllm-worker.js';

export interface FeedOptions {
  scheduler: Scheduler;
  worker: VllmWorker;
  events: string;
  blocks: number;
  blockTokens: number;
  hash: EventHash;
  metrics: EventMetrics;
  /** Something was applied. */
  applied: () => void;
  log: Logger;
  limits?: Partial<ReplayLimits>;
  /** See {@link SubscriberOptions.gatherMs}. */
  gatherMs?: number;
}

const mostBlocks = 2 ** 28;

export class WorkerFeed {
  readonly source: KvEventSource;
  readonly subscriber: EventSubscriber;
  readonly #expectations: Expectations;
  readonly #options: FeedOptions;
  /** The scheduler did not take a reset: nothing is applied before it does. */
  #resetOwed = false;
  #closed = false;

  constructor(options: FeedOptions) {
    const { scheduler, worker, hash, blocks, blockTokens } = options;
    const { server, rank } = worker;
    this.#options = options;
    this.source = new KvEventSource(scheduler, worker.worker, {
      algorithm: hash.algorithm,
      blockTokens,
      // Copies in host memory and on disk are counted, too.
      maxBlocks: Math.min(mostBlocks, Math.max(2 ** 14, 4 * blocks)),
    });
    this.#expectations = new Expectations((block) => this.source.copies(block) > 0);
    worker.expectations_ = this.#expectations;
    this.subscriber = new EventSubscriber({
      events: endpointOfRank(options.events, rank),
      bind: server.eventsBind ?? false,
      replay: server.replay === undefined ? undefined : endpointOfRank(server.replay, rank),
      topic: server.topic ?? '',
      metrics: options.metrics,
      apply: (payload) => this.#apply(payload),
      reset: () => this.#reset(),
      onChange: () => this.#judge(),
      ...(options.limits === undefined ? {} : { limits: options.limits }),
      ...(options.gatherMs === undefined ? {} : { gatherMs: options.gatherMs }),
    });
    this.#judge();
  }

  /** @throws Error where an endpoint cannot be bound */
  start(): Promise<void> {
    return this.subscriber.start();
  }

  /** Whether everything that was published until now is known. */
  get settled(): boolean {
    return this.subscriber.connected && this.subscriber.sequence.inSequence;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#expectations.reset();
    this.subscriber.close();
    this.source.close();
  }

  #apply(payload: Uint8Array): boolean {
    const { metrics, worker } = this.#options;
    if (this.#closed || (this.#resetOwed && !this.#reset())) return false;
    try {
      const report = this.source.apply(payload);
      metrics.unknownRemovals += report.unknownRemovals;
      if (report.clearedEvents > 0) this.subscriber.sequence.cleared();
      if (report.removedBlocks > 0 || report.clearedEvents > 0) this.#expectations.removed();
      worker.doubt('source', this.#sourceReason(report));
      this.#options.applied();
      return true;
    } catch (error) {
      if (error instanceof SagaArgumentError || (error instanceof SagaError && error.code === 'SAGA_ERR_FULL'))
        ++metrics.malformed;
      this.#options.log.warn(
        { url: worker.server.url, rank: worker.rank, error: errorText(error) },
        'a batch of KV events was not applied',
      );
      return false;
    }
  }

  #sourceReason(report: KvEventReport): Reason | undefined {
    const { server, rank } = this.#options.worker;
    // A server of one rank may be any rank of a larger deployment.
    if ((server.dataParallelRanks ?? 1) > 1 && (report.dataParallelRank ?? rank) !== rank)
      return { words: `its events are of rank ${report.dataParallelRank}`, factor: factors.blind };
    // Told again with the next batch.
    if (report.schedulerBehind)
      return { words: 'the scheduler has not taken all of it yet', factor: factors.uncertain };
    return report.uncertain === undefined ? undefined : { words: report.uncertain, factor: factors.uncertain };
  }

  #reset(): boolean {
    if (this.#closed) return false;
    this.#expectations.reset();
    try {
      this.source.reset();
      this.#resetOwed = false;
      this.#options.worker.doubt('source', undefined);
      this.#options.applied();
    } catch (error) {
      this.#resetOwed = true;
      this.#options.log.error(
        { url: this.#options.worker.server.url, error: errorText(error) },
        'a worker was not reset',
      );
    }
    return !this.#resetOwed;
  }

  #judge(): void {
    if (!this.#closed) this.#options.worker.doubt('events', this.#reason());
  }

  #reason(): Reason | undefined {
    const { sequence, connected } = this.subscriber;
    if (this.#resetOwed) return reasons.behind;
    if (sequence.state === 'idle') return reasons.idle;
    if (sequence.state === 'cooling') return reasons.cooling;
    if (!sequence.inSequence) return sequence.gap ? reasons.gap : reasons.reading;
    if (!connected) return reasons.disconnected;
    if (!sequence.partial) return undefined;
    return this.#options.worker.server.replay === undefined ? reasons.noReplay : reasons.partial;
  }
}

const reasons = {
  idle: { words: 'not connected', factor: factors.blind },
  cooling: { words: 'a replay failed; events are ignored until the next one', factor: factors.blind },
  reading: { words: 'being read from the start', factor: factors.partial },
  gap: { words: 'some are missing and asked for', factor: factors.gap },
  disconnected: { words: 'connection lost', factor: factors.gap },
  noReplay: { words: 'some are missing, and there is no replay endpoint', factor: factors.partial },
  partial: { words: 'some are missing and cannot be had', factor: factors.partial },
  behind: { words: 'the scheduler does not take them', factor: factors.blind },
} as const satisfies Record<string, Reason>;
