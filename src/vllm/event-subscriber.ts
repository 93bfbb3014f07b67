/**
 * The sockets of one publisher and rank: a SUB that its batches come by, and a DEALER for each attempt of a replay.
 *
 * The subscription stands before the first replay is asked for; a little later, after every new connection and after a minute of
 * silence a replay of the last batch shows whether one was missed at the end, or the engine began anew. Only this side connects,
 * unless it is told to bind.
 *
 * Replays follow the policy of llm-d-router: an attempt ends after 2 s of silence, 3 attempts without progress or 2 minutes in all
 * end the replay, the next one comes 30 s later. At most 8 run at once in the process: a publisher stops publishing while it
 * replays. Memory: batches that ZeroMQ holds (4,096 live ones, 20,000 of a replay) and those that EventSequence keeps.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { Dealer, Subscriber } from 'zeromq';
import { EventSequence, type SequenceActions } from './event-sequence.js';
import type { EventMetrics } from './metrics.js';

export interface ReplayLimits {
  /** Silence that ends an attempt. */
  idleMs: number;
  /** Without progress. */
  attempts: number;
  /** Of one replay. */
  totalMs: number;
  /** Between a replay that failed and the next one. */
  coolMs: number;
  /** Between the beginnings of two replays. */
  spacingMs: number;
  /** From the first replay to the one that shows what was missed. */
  settleMs: number;
  /** Silence after which the last batch is asked for. */
  auditMs: number;
}

export const replayLimits: Readonly<ReplayLimits> = {
  idleMs: 2000,
  attempts: 3,
  totalMs: 120_000,
  coolMs: 30_000,
  spacingMs: 100,
  settleMs: 1000,
  auditMs: 60_000,
};

export interface SubscriberOptions {
  events: string;
  bind: boolean;
  replay: string | undefined;
  topic: string;
  metrics: EventMetrics;
  /** See {@link SequenceActions}. */
  apply: (payload: Uint8Array) => boolean;
  reset: () => void;
  /** Something about the state may be different. */
  onChange: () => void;
  limits?: Partial<ReplayLimits>;
  /** That a message close behind another one may wait, so that those of a moment are read together. Default {@link usualGatherMs}. */
  gatherMs?: number;
}

const mostMessageBytes = 2 ** 26;
const mostReplays = 8;
/** Engines publish once a step: only those with shorter steps are read later than they publish. */
export const usualGatherMs = 10;

/** Who may replay now: first come, first served. */
class Slots {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async take(): Promise<void> {
    if (this.#free > 0) --this.#free;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  give(): void {
    const next = this.#waiting.shift();
    if (next) next();
    else ++this.#free;
  }
}

const slots = new Slots(mostReplays);

/** Who hears a socket. */
interface Listener {
  readonly topic: Buffer;
  connected(): void;
  disconnected(): void;
  received(frames: Buffer[]): void;
}

/**
 * A SUB that one publisher is heard by, or several that connect to the same endpoint: they are told apart by their topics then, and
 * nobody can say which of them a connection is of.
 */
class Inlet {
  /** Those that are bound, by endpoint. */
  static readonly #bound = new Map<string, Inlet>();
  readonly #socket: Subscriber;
  readonly #endpoint: string;
  readonly #gatherMs: number;
  readonly #listeners = new Set<Listener>();
  #connections = 0;
  #ready: Promise<void> = Promise.resolve();

  /** @throws Error where the endpoint cannot be bound */
  static async open(endpoint: string, bind: boolean, gatherMs: number, listener: Listener): Promise<Inlet> {
    const known = bind ? Inlet.#bound.get(endpoint) : undefined;
    const inlet = known ?? new Inlet(endpoint, bind, gatherMs);
    inlet.#listeners.add(listener);
    inlet.#socket.subscribe(listener.topic);
    try {
      await inlet.#ready;
    } catch (error) {
      inlet.leave(listener);
      throw error;
    }
    if (known !== undefined && inlet.#connections > 0) listener.connected();
    return inlet;
  }

  private constructor(endpoint: string, bind: boolean, gatherMs: number) {
    this.#endpoint = endpoint;
    this.#gatherMs = gatherMs;
    this.#socket = new Subscriber({
      linger: 0,
      receiveHighWaterMark: 4096,
      maxMessageSize: mostMessageBytes,
      reconnectInterval: 100,
      reconnectMaxInterval: 5000,
      heartbeatInterval: 10_000,
      heartbeatTimeout: 30_000,
    });
    this.#socket.events.on('handshake', () => {
      ++this.#connections;
      for (const listener of this.#listeners) listener.connected();
    });
    this.#socket.events.on('disconnect', () => {
      this.#connections = Math.max(0, this.#connections - 1);
      if (this.#connections === 0) for (const listener of this.#listeners) listener.disconnected();
    });
    if (bind) {
      Inlet.#bound.set(endpoint, this);
      this.#ready = this.#socket.bind(endpoint);
    } else {
      this.#socket.connect(endpoint);
    }
    void this.#receive();
  }

  /** Closed with the last one. */
  leave(listener: Listener): void {
    if (!this.#listeners.delete(listener)) return;
    if (this.#listeners.size > 0) {
      this.#socket.unsubscribe(listener.topic);
      return;
    }
    if (Inlet.#bound.get(this.#endpoint) === this) Inlet.#bound.delete(this.#endpoint);
    this.#socket.close();
  }

  async #receive(): Promise<void> {
    await this.#ready.catch(() => {});
    let last = Number.NEGATIVE_INFINITY;
    for (;;) {
      let frames: Buffer[];
      try {
        // One that comes alone is told at once; of a stream of them those of a moment are read together, as to wait for each costs more than
        // to read it.
        if (!this.#socket.readable) {
          if (performance.now() - last < this.#gatherMs)
            await new Promise((resolve) => setTimeout(resolve, this.#gatherMs).unref());
        }
        frames = await this.#socket.receive();
        last = performance.now();
      } catch {
        return; // closed
      }
      const [topic] = frames;
      if (topic === undefined) continue;
      for (const listener of this.#listeners) if (startsWith(topic, listener.topic)) listener.received(frames);
    }
  }
}

/** A sequence number's frame; `end` of a replay; `undefined`: it is none. */
function numberOf(frame: Uint8Array | undefined): number | 'end' | undefined {
  if (frame?.length !== 8) return undefined;
  const view = new DataView(frame.buffer, frame.byteOffset, 8);
  const [high, low] = [view.getUint32(0), view.getUint32(4)];
  if (high === 0xffff_ffff && low === 0xffff_ffff) return 'end';
  return high < 2 ** 21 ? high * 2 ** 32 + low : undefined;
}

function frameOf(number: number): Buffer {
  const frame = Buffer.alloc(8);
  frame.writeUInt32BE(Math.floor(number / 2 ** 32), 0);
  frame.writeUInt32BE(number % 2 ** 32, 4);
  return frame;
}

export class EventSubscriber {
  readonly sequence: EventSequence;
  readonly #options: SubscriberOptions;
  readonly #limits: ReplayLimits;
  readonly #topic: Buffer;
  readonly #listener: Listener;
  #inlet: Inlet | undefined;
  /** Counts replays asked for: what another one brings is thrown away. */
  #replay = 0;
  #replayedAt = Number.NEGATIVE_INFINITY;
  #dealer: Dealer | undefined;
  #cooling: NodeJS.Timeout | undefined;
  #audit: NodeJS.Timeout | undefined;
  #heardAt = 0;
  #up = false;
  #closed = false;

  constructor(options: SubscriberOptions) {
    this.#options = options;
    this.#limits = { ...replayLimits, ...options.limits };
    this.#topic = Buffer.from(options.topic);
    const actions: SequenceActions = {
      apply: options.apply,
      reset: options.reset,
      replay: (from) => void this.#startReplay(from),
      cool: () => {
        this.#cooling = setTimeout(() => {
          this.sequence.cooled();
          this.#changed();
        }, this.#limits.coolMs).unref();
      },
    };
    this.sequence = new EventSequence(actions, { replay: options.replay !== undefined });
    this.#listener = {
      topic: this.#topic,
      connected: () => {
        if (this.#closed) return;
        ++options.metrics.connections;
        this.#up = true;
        this.sequence.connected();
        this.#changed();
        // Its subscription may reach the publisher later than the replay: what was published in between shows now.
        this.#auditIn(this.#limits.settleMs);
      },
      disconnected: () => {
        this.#up = false;
        this.#changed();
      },
      received: (frames) => {
        if (!this.#closed) this.#received(frames);
      },
    };
  }

  /** Whether the publisher is connected. */
  get connected(): boolean {
    return this.#up;
  }

  /** @throws Error where an endpoint cannot be bound */
  async start(): Promise<void> {
    const { events, bind } = this.#options;
    const inlet = await Inlet.open(events, bind, this.#options.gatherMs ?? usualGatherMs, this.#listener);
    if (this.#closed) inlet.leave(this.#listener);
    else this.#inlet = inlet;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    ++this.#replay;
    clearTimeout(this.#cooling);
    clearTimeout(this.#audit);
    this.#dealer?.close();
    this.#inlet?.leave(this.#listener);
  }

  #auditIn(ms: number): void {
    clearTimeout(this.#audit);
    if (this.#options.replay === undefined || this.#closed) return;
    this.#audit = setTimeout(() => {
      const silence = performance.now() - this.#heardAt;
      if (ms < this.#limits.auditMs || silence >= this.#limits.auditMs) {
        if (this.#up) this.sequence.audit();
        this.#changed();
        this.#auditIn(this.#limits.auditMs);
      } else {
        this.#auditIn(this.#limits.auditMs - silence);
      }
    }, ms).unref();
  }

  #received(frames: Buffer[]): void {
    const { metrics } = this.#options;
    ++metrics.frames;
    this.#heardAt = performance.now();
    const number = numberOf(frames[1]);
    const payload = frames[2];
    if (frames.length !== 3 || typeof number !== 'number' || payload === undefined) {
      ++metrics.malformed;
      this.sequence.malformed();
    } else {
      metrics.bytes += payload.length;
      this.sequence.live(number, payload);
    }
    this.#changed();
  }

  #changed(): void {
    const { metrics } = this.#options;
    const { sequence } = this;
    metrics.duplicates = sequence.duplicates;
    metrics.gaps = sequence.gaps;
    metrics.restarts = sequence.restarts;
    metrics.resets = sequence.resets;
    metrics.dropped = sequence.dropped;
    metrics.applied = sequence.applied;
    metrics.replays = sequence.replays;
    metrics.replayedFrames = sequence.replayedFrames;
    metrics.replayFailures = sequence.replayFailures;
    if (!this.#closed) this.#options.onChange();
  }

  /** Carries a replay through, until another one is asked for. */
  async #startReplay(from: number): Promise<void> {
    const replay = ++this.#replay;
    this.#dealer?.close();
    this.#dealer = undefined;
    const wait = this.#replayedAt + this.#limits.spacingMs - performance.now();
    if (wait > 0) await delay(wait, undefined, { ref: false });
    if (replay !== this.#replay) return;
    await slots.take();
    try {
      this.#replayedAt = performance.now();
      if (replay === this.#replay) await this.#attempts(from, replay);
    } finally {
      slots.give();
    }
  }

  async #attempts(from: number, replay: number): Promise<void> {
    const { attempts, totalMs } = this.#limits;
    const until = performance.now() + totalMs;
    let start = from;
    for (let failures = 0; failures < attempts && performance.now() < until;) {
      const before = this.sequence.next;
      const ended = await this.#attempt(start, replay);
      if (replay !== this.#replay) return;
      if (ended) {
        this.sequence.replayEnded();
        this.#changed();
        return;
      }
      failures = this.sequence.next > before ? 0 : failures + 1;
      start = Math.max(0, this.sequence.next - 1);
    }
    this.sequence.replayFailed();
    this.#changed();
  }

  /** Returns whether the end has come. */
  async #attempt(from: number, replay: number): Promise<boolean> {
    const { idleMs } = this.#limits;
    const dealer = new Dealer({
      linger: 0,
      immediate: true,
      sendTimeout: idleMs,
      receiveTimeout: idleMs,
      // The publisher's ROUTER throws away what does not fit: its whole buffer must.
      receiveHighWaterMark: 20_000,
      maxMessageSize: mostMessageBytes,
    });
    this.#dealer = dealer;
    try {
      dealer.connect(this.#options.replay as string);
      await dealer.send(['', frameOf(from)]);
      for (let received = 0; ; ++received) {
        const frames = await dealer.receive();
        if (replay !== this.#replay) return false;
        // A delimiter, since vLLM 0.26 the topic, number, payload.
        const number = numberOf(frames.at(-2));
        if (frames[0]?.length !== 0 || frames.length < 3 || frames.length > 4 || number === undefined) {
          ++this.#options.metrics.malformed;
          return false;
        }
        if (number === 'end') return true;
        if (frames.length === 4 && !startsWith(frames[1] as Buffer, this.#topic)) continue;
        // A hole amid the answers was made on the way: once more. Behind the batch that was asked for it is the publisher's.
        if (number > this.sequence.next && received >= 2) return false;
        this.sequence.replayed(number, frames.at(-1) as Buffer);
        if (replay !== this.#replay) return false;
      }
    } catch {
      return false; // silence, or closed for another replay
    } finally {
      dealer.close();
      if (this.#dealer === dealer) this.#dealer = undefined;
    }
  }
}

function startsWith(frame: Buffer, topic: Buffer): boolean {
  return frame.length >= topic.length && frame.subarray(0, topic.length).equals(topic);
}
