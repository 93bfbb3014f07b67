/**
 * The directive channel of one worker: a DEALER that sends actions, waits for their answers and forgets nothing it has not reported.
 *
 *   queued -> sent -> (pending ->) applied | refused | expired          an action
 *                                  applied -> released | expired | revoked    a lease, which goes on when it was applied
 *
 * Every action is reported: by what the worker answers, or as `expired` where no answer comes in time, `refused` where too many are
 * open. ZeroMQ connects again by itself; what was not sent until its deadline is `expired`.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { Dealer } from 'zeromq';
import { answerOf, framesOf, mostMessageBytes, type Action, type DirectiveOutcome } from './envelope.js';
import type { DirectiveMetrics } from './metrics.js';

/** Actions that wait for an answer, leases that hold among them. */
const mostOpen = 4096;
/** After an action's deadline, or a lease's end, until it is given up. */
const graceMs = 2000;
const sweepMs = 250;

/** Reports an outcome. `last`: no other one follows. */
export type Report = (outcome: DirectiveOutcome, last: boolean, fields: Readonly<Record<string, unknown>>) => void;

interface Entry {
  readonly messageId: string;
  readonly action: Action;
  readonly expiresIn: number;
  readonly report: Report;
  /** Set for a lease: how long it lasts once it is applied. */
  readonly leaseMs: number | undefined;
  /** Given up after this time, ms. */
  deadline: number;
  pendingSince: number | undefined;
  applied: boolean;
}

export interface ChannelOptions {
  endpoint: string;
  key: string | undefined;
  metrics: DirectiveMetrics;
  /** How long an answer may be pending until the engine is woken. */
  wakeMs: number;
  wake: () => Promise<void>;
}

const noFields: Readonly<Record<string, unknown>> = {};

export class DirectiveChannel {
  readonly #options: ChannelOptions;
  readonly #socket: Dealer;
  readonly #sender = randomBytes(6).toString('hex');
  readonly #open = new Map<string, Entry>();
  readonly #queue: Entry[] = [];
  #count = 0;
  #epoch: number | undefined;
  #sending = false;
  #waking = false;
  #wokenAt = Number.NEGATIVE_INFINITY;
  #sweeper: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: ChannelOptions) {
    this.#options = options;
    this.#socket = new Dealer({
      linger: 0,
      immediate: true,
      sendHighWaterMark: 1000,
      receiveHighWaterMark: 1000,
      sendTimeout: 1000,
      maxMessageSize: mostMessageBytes,
      reconnectInterval: 100,
      reconnectMaxInterval: 5000,
      heartbeatInterval: 5000,
      heartbeatTimeout: 15_000,
    });
    this.#socket.connect(options.endpoint);
    void this.#receive();
  }

  /** Of the engine, from its newest answer. */
  get epoch(): number | undefined {
    return this.#epoch;
  }

  /**
   * Sends an action.
   *
   * @param expiresIn seconds in which it may begin
   * @param leaseSeconds for a lease: until when its end is waited for
   */
  send(type: string, payload: Record<string, unknown>, expiresIn: number, report: Report, leaseSeconds?: number): void {
    const { metrics } = this.#options;
    ++metrics.sent;
    if (this.#closed || this.#open.size >= mostOpen) {
      ++metrics.outcomes.refused;
      report({ status: 'refused', reason: this.#closed ? 'lost' : 'queue' }, true, noFields);
      return;
    }
    const number = this.#count++;
    const entry: Entry = {
      messageId: `${this.#sender}-${number}`,
      action: { action_id: `${number}.0`, action_type: type, action_version: '1.0', payload },
      expiresIn,
      report,
      leaseMs: leaseSeconds === undefined ? undefined : leaseSeconds * 1000,
      deadline: performance.now() + expiresIn * 1000 + graceMs,
      pendingSince: undefined,
      applied: false,
    };
    this.#open.set(entry.messageId, entry);
    metrics.open = this.#open.size;
    this.#queue.push(entry);
    this.#sweeper ??= setInterval(() => this.#sweep(), Math.min(sweepMs, this.#options.wakeMs)).unref();
    if (!this.#sending) void this.#sendAll();
  }

  /** Everything that is open is reported as expired (`lost`), a lease that holds as revoked. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#sweeper);
    this.#socket.close();
    for (const entry of [...this.#open.values()]) {
      this.#finish(entry, { status: entry.applied ? 'revoked' : 'expired', reason: 'lost' });
    }
  }

  async #sendAll(): Promise<void> {
    this.#sending = true;
    while (!this.#closed) {
      const [entry] = this.#queue;
      if (entry === undefined) break;
      if (!this.#open.has(entry.messageId)) {
        this.#queue.shift();
        continue;
      }
      const { messageId, action, expiresIn } = entry;
      const frames = framesOf(
        { messageId, epoch: this.#epoch, expiresIn, time: Date.now() / 1000, actions: [action] },
        this.#options.key,
      );
      if ((frames[0]?.length ?? 0) > mostMessageBytes) {
        this.#queue.shift();
        this.#finish(entry, { status: 'refused', reason: 'malformed' });
        continue;
      }
      try {
        await this.#socket.send(frames);
        this.#queue.shift();
      } catch {
        // Nobody is connected: it stays in the queue until its deadline. A closed socket ends the loop.
        await delay(100, undefined, { ref: false });
      }
    }
    this.#sending = false;
  }

  async #receive(): Promise<void> {
    for (;;) {
      let frames: Buffer[];
      try {
        frames = await this.#socket.receive();
      } catch {
        return; // closed
      }
      this.#answered(frames);
    }
  }

  #answered(frames: Buffer[]): void {
    const { key, metrics } = this.#options;
    const answer = answerOf(frames, key);
    if (typeof answer === 'string') {
      ++metrics[answer];
      return;
    }
    if (answer.epoch !== undefined && answer.epoch !== this.#epoch) {
      const known = this.#epoch !== undefined;
      this.#epoch = answer.epoch;
      if (known) this.#restarted(answer.messageId);
    }
    for (const { actionId, outcome, fields } of answer.outcomes) {
      const entry = this.#open.get(answer.messageId);
      if (entry === undefined || entry.action.action_id !== actionId) continue;
      this.#outcome(entry, outcome, fields);
    }
  }

  #outcome(entry: Entry, outcome: DirectiveOutcome, fields: Readonly<Record<string, unknown>>): void {
    const { metrics } = this.#options;
    if (outcome.status === 'pending') {
      ++metrics.outcomes.pending;
      if (!entry.applied) entry.pendingSince ??= performance.now();
      return;
    }
    if (outcome.status === 'applied' && entry.leaseMs !== undefined) {
      if (entry.applied) return; // the same answer again
      ++metrics.outcomes.applied;
      entry.applied = true;
      entry.pendingSince = undefined;
      entry.deadline = performance.now() + entry.leaseMs + graceMs;
      entry.report(outcome, false, fields);
      return;
    }
    this.#finish(entry, outcome, fields);
  }

  #finish(entry: Entry, outcome: DirectiveOutcome, fields = noFields): void {
    if (!this.#open.delete(entry.messageId)) return;
    const { metrics } = this.#options;
    metrics.open = this.#open.size;
    ++metrics.outcomes[outcome.status];
    entry.report(outcome, true, fields);
  }

  /** The engine began anew: what it had accepted is gone. */
  #restarted(answered: string): void {
    for (const entry of [...this.#open.values()]) {
      if (entry.messageId === answered) continue;
      if (entry.applied) this.#finish(entry, { status: 'revoked', reason: 'reset' });
      else if (entry.pendingSince !== undefined) this.#finish(entry, { status: 'expired', reason: 'reset' });
    }
  }

  #sweep(): void {
    const now = performance.now();
    let asleep = false;
    for (const entry of [...this.#open.values()]) {
      if (now >= entry.deadline) this.#finish(entry, { status: 'expired', reason: 'no answer' });
      else if (entry.pendingSince !== undefined && now - entry.pendingSince >= this.#options.wakeMs) asleep = true;
    }
    if (asleep) this.#wake(now);
    if (this.#open.size === 0) {
      clearInterval(this.#sweeper);
      this.#sweeper = undefined;
    }
  }

  #wake(now: number): void {
    if (this.#waking || now - this.#wokenAt < this.#options.wakeMs) return;
    this.#waking = true;
    ++this.#options.metrics.wakes;
    this.#options
      .wake()
      .catch(() => {}) // An engine that cannot be woken leaves its directives to their deadlines.
      .finally(() => {
        this.#waking = false;
        this.#wokenAt = performance.now();
      });
  }
}
