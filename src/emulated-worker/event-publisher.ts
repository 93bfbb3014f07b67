/**
 * KV events over ZeroMQ as vLLM publishes them: PUB with three frames (topic, sequence number, one batch in msgpack), and a ROUTER
 * that replays the last batches. Formats: vLLM 0.26 and later (events are maps, replayed batches carry their topic).
 *
 * Batches leave in order; what cannot leave yet waits, at most as many batches as the buffer keeps.
 */
import { Encoder } from '@msgpack/msgpack';
import { Publisher, Router } from 'zeromq';
import type { EngineEvent } from './engine.js';

export interface PublisherOptions {
  /** A ZeroMQ address; port `*` takes a free one. */
  endpoint: string;
  /** `undefined`: nothing is replayed. */
  replayEndpoint: string | undefined;
  topic: string;
  rank: number;
  blockTokens: number;
  /** Batches that can be replayed. */
  bufferBatches: number;
}

const endMarker = Buffer.alloc(8, 0xff);
const empty = Buffer.alloc(0);

/** One batch, ready to be sent. */
interface Batch {
  readonly sequence: Buffer;
  readonly payload: Buffer;
}

export class EventPublisher {
  readonly options: PublisherOptions;
  #publisher: Publisher;
  #router: Router | undefined;
  #topic: Buffer;
  #sequence = 0;
  #buffer: Batch[] = [];
  #firstBuffered = 0;
  #waiting: Batch[] = [];
  #sending = false;
  #paused = false;
  #toDrop = 0;
  #closed = false;

  private constructor(options: PublisherOptions) {
    this.options = options;
    this.#topic = Buffer.from(options.topic, 'utf8');
    this.#publisher = new Publisher({ sendHighWaterMark: 100_000, linger: 0 });
  }

  static async start(options: PublisherOptions): Promise<EventPublisher> {
    const publisher = new EventPublisher(options);
    try {
      await publisher.#publisher.bind(options.endpoint);
      if (options.replayEndpoint !== undefined) {
        publisher.#router = new Router({ sendHighWaterMark: 0, linger: 0 });
        await publisher.#router.bind(options.replayEndpoint);
        void publisher.#serveReplays(publisher.#router);
      }
    } catch (error) {
      publisher.close();
      throw error;
    }
    return publisher;
  }

  get endpoint(): string {
    return this.#publisher.lastEndpoint ?? this.options.endpoint;
  }

  get replayEndpoint(): string | undefined {
    return this.#router?.lastEndpoint ?? undefined;
  }

  /** The sequence number of the next batch. */
  get sequence(): number {
    return this.#sequence;
  }

  /** Publishes the events of a step. */
  publish(events: readonly EngineEvent[]): void {
    const sequence = Buffer.alloc(8);
    sequence.writeBigUInt64BE(BigInt(this.#sequence++));
    const payload = encodeBatch(unixSeconds(), events, this.options);
    const batch = { sequence, payload };
    this.#buffer.push(batch);
    // Cut in halves, so that it costs nothing per batch.
    if (this.#buffer.length >= 2 * this.options.bufferBatches) {
      const gone = this.#buffer.length - this.options.bufferBatches;
      this.#buffer = this.#buffer.slice(gone);
      this.#firstBuffered += gone;
    }
    if (this.#toDrop > 0) {
      this.#toDrop--;
      return;
    }
    this.#waiting.push(batch);
    if (this.#waiting.length > this.options.bufferBatches) this.#waiting.shift();
    void this.#send();
  }

  /** The next batches take their numbers and are not sent; they can be replayed. */
  drop(batches: number): void {
    this.#toDrop += batches;
  }

  /** Batches wait until {@link resume}. */
  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    void this.#send();
  }

  /** A new process: numbers begin at 0, and nothing can be replayed. */
  restart(): void {
    this.#sequence = 0;
    this.#buffer = [];
    this.#firstBuffered = 0;
    this.#waiting = [];
    this.#toDrop = 0;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#waiting = [];
    this.#publisher.close();
    this.#router?.close();
  }

  async #send(): Promise<void> {
    if (this.#sending) return;
    this.#sending = true;
    try {
      while (this.#waiting.length > 0 && !this.#paused && !this.#closed) {
        const { sequence, payload } = this.#waiting.shift() as Batch;
        await this.#publisher.send([this.#topic, sequence, payload]);
      }
    } catch (error) {
      if (!this.#closed) throw error;
    } finally {
      this.#sending = false;
    }
  }

  async #serveReplays(router: Router): Promise<void> {
    try {
      for await (const frames of router) {
        const [identity, delimiter, start] = frames;
        if (frames.length !== 3 || delimiter?.length !== 0 || start?.length !== 8) continue;
        const from = Number(start.readBigUInt64BE());
        // The last `bufferBatches` of what is there now; batches published meanwhile are live ones.
        const oldest = Math.max(0, this.#buffer.length - this.options.bufferBatches);
        const batches = this.#buffer.slice(Math.max(oldest, from - this.#firstBuffered));
        for (const { sequence, payload } of batches)
          await router.send([identity as Buffer, empty, this.#topic, sequence, payload]);
        await router.send([identity as Buffer, empty, empty, endMarker, empty]);
      }
    } catch (error) {
      if (!this.#closed) throw error;
    }
  }
}

const encoder = new Encoder({ useBigInt64: true });

/** @internal The payload of a message. `seconds` must not be a whole number: msgpack would make an integer of it. */
export function encodeBatch(
  seconds: number,
  events: readonly EngineEvent[],
  options: { blockTokens: number; rank: number },
): Buffer {
  return Buffer.from(
    encoder.encode([seconds, events.map((event) => wireOf(event, options.blockTokens)), options.rank]),
  );
}

/** Keys in the order in which vLLM declares them; those that equal their default are left out, as it does. */
function wireOf(event: EngineEvent, blockTokens: number): Record<string, unknown> {
  switch (event.type) {
    case 'AllBlocksCleared':
      return { type: 'AllBlocksCleared' };
    case 'BlockRemoved':
      return { type: 'BlockRemoved', block_hashes: [event.hash], medium: 'GPU', group_idx: 0 };
    case 'BlockStored':
      return {
        type: 'BlockStored',
        block_hashes: event.hashes,
        parent_block_hash: event.parent ?? null,
        token_ids: Array.from(event.tokens),
        block_size: blockTokens,
        lora_id: event.loraName === undefined ? null : 1,
        medium: 'GPU',
        lora_name: event.loraName ?? null,
        extra_keys: event.extraKeys.map((keys) => keys ?? null),
        group_idx: 0,
        kv_cache_spec_kind: 'full_attention',
        ...(event.sessionId === undefined ? {} : { session_id: event.sessionId }),
      };
  }
}

/** Never a whole number, which msgpack would encode as an integer. */
function unixSeconds(): number {
  const seconds = Date.now() / 1000;
  return Number.isInteger(seconds) ? seconds + 2 ** -20 : seconds;
}
