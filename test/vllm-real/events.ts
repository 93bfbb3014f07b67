/**
 * KV events read apart from the code under test: a relay between a publisher and its subscribers that loses messages, and a recorder
 * of all events, decoded by @msgpack/msgpack into a simple model.
 */
import { decode } from '@msgpack/msgpack';
import { Publisher, Subscriber } from 'zeromq';

/** Passes messages on, but for those that are to be lost. */
export class Relay {
  lost = 0;
  passed = 0;
  readonly endpoint: string;
  readonly #from = new Subscriber({ receiveHighWaterMark: 0, linger: 0 });
  readonly #to: Publisher;
  #drop = 0;

  private constructor(to: Publisher) {
    this.#to = to;
    this.endpoint = to.lastEndpoint as string;
  }

  static async start(events: string): Promise<Relay> {
    const to = new Publisher({ sendHighWaterMark: 0, linger: 0 });
    await to.bind('tcp://127.0.0.1:*');
    const relay = new Relay(to);
    relay.#from.connect(events);
    relay.#from.subscribe();
    void relay.#run();
    return relay;
  }

  /** The next messages are lost. */
  drop(messages: number): void {
    this.#drop = messages;
  }

  close(): void {
    this.#from.close();
    this.#to.close();
  }

  async #run(): Promise<void> {
    for await (const message of this.#from) {
      if (this.#drop > 0) {
        --this.#drop;
        ++this.lost;
        continue;
      }
      ++this.passed;
      if (this.#to.closed) return;
      await this.#to.send(message);
    }
  }
}

export type KvEvent =
  | {
      type: 'stored';
      hashes: bigint[];
      parent: bigint | undefined;
      tokens: number[];
      salt: string | undefined;
    }
  | { type: 'removed'; hashes: bigint[] }
  | { type: 'cleared' };

/** A block as its event told of it. */
export interface KnownBlock {
  parent: bigint | undefined;
  tokens: number[];
  /** Of the first block of a chain. */
  salt: string | undefined;
}

/** All events of a publisher since it was subscribed to, as they came. */
export class Recorder {
  readonly events: KvEvent[] = [];
  /** Every block that was ever stored. */
  readonly blocks = new Map<bigint, KnownBlock>();
  /** Hashes that came as bytes, and as integers. */
  readonly forms = { bytes: 0, integers: 0 };
  lastSequence = -1;
  readonly #from = new Subscriber({ receiveHighWaterMark: 0, linger: 0 });

  constructor(events: string) {
    this.#from.connect(events);
    this.#from.subscribe();
    void this.#run();
  }

  close(): void {
    this.#from.close();
  }

  /** Whether all blocks of a pool were told of. */
  has(pool: { copies: ReadonlyMap<bigint, number> }): boolean {
    return [...pool.copies.keys()].every((hash) => this.blocks.has(hash));
  }

  /** Tokens and salt of the chain that ends with this block, from its root. */
  chainOf(hash: bigint): { tokens: number[]; salt: string | undefined } {
    const parts: number[][] = [];
    let at: KnownBlock | undefined;
    for (let next: bigint | undefined = hash; next !== undefined; next = at.parent) {
      at = this.blocks.get(next);
      if (at === undefined) throw new Error(`no event told of block ${next.toString(16)}`);
      parts.push(at.tokens);
    }
    return { tokens: parts.reverse().flat(), salt: at?.salt };
  }

  async #run(): Promise<void> {
    for await (const [, sequence, payload] of this.#from) {
      this.lastSequence = Number((sequence as Buffer).readBigUInt64BE());
      const [, events] = decode(payload as Buffer, { useBigInt64: true }) as [number, Record<string, unknown>[]];
      for (const event of events) this.#take(event);
    }
  }

  #take(event: Record<string, unknown>): void {
    const hashes = ((event.block_hashes ?? []) as unknown[]).map((hash) => this.#hash(hash));
    switch (event.type) {
      case 'BlockStored': {
        const parent = event.parent_block_hash === null ? undefined : this.#hash(event.parent_block_hash);
        const tokens = (event.token_ids as (number | bigint)[]).map(Number);
        const extra = (event.extra_keys as (unknown[] | null)[] | undefined)?.[0];
        const salt = parent === undefined && extra ? saltOf(extra) : undefined;
        const size = tokens.length / hashes.length;
        hashes.forEach((hash, i) =>
          this.blocks.set(hash, {
            parent: i === 0 ? parent : hashes[i - 1],
            tokens: tokens.slice(i * size, (i + 1) * size),
            salt: i === 0 ? salt : undefined,
          }),
        );
        this.events.push({ type: 'stored', hashes, parent, tokens, salt });
        break;
      }
      case 'BlockRemoved':
        this.events.push({ type: 'removed', hashes });
        break;
      case 'AllBlocksCleared':
        this.events.push({ type: 'cleared' });
        break;
      default:
        throw new Error(`an event of type ${String(event.type)}`);
    }
  }

  #hash(hash: unknown): bigint {
    if (hash instanceof Uint8Array) {
      ++this.forms.bytes;
      return Buffer.from(hash.buffer, hash.byteOffset, hash.length).readBigUInt64BE(hash.length - 8);
    }
    ++this.forms.integers;
    return BigInt.asUintN(64, BigInt(hash as number | bigint));
  }
}

/** As an event shows it: the bare text, or named. */
function saltOf(extra: readonly unknown[]): string | undefined {
  const last = extra.at(-1);
  if (typeof last === 'string') return last;
  return Array.isArray(last) && last[0] === 'cache_salt' ? String(last[1]) : undefined;
}
