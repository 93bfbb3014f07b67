/** A publisher that misbehaves on demand: PUB, and a ROUTER for replays in the forms of vLLM up to 0.25 and since. */
import { Publisher, Router } from 'zeromq';

export class FakePublisher {
  readonly topic: string;
  readonly published: Buffer[] = [];
  readonly asked: number[] = [];
  /** As up to 0.25: no topic in replays. */
  old = false;
  /** Replays are not answered. */
  silent = false;
  /** So many batches are sent of a replay, and no end. */
  cut = Infinity;
  /** Batches forgotten. */
  forgotten = 0;
  /** Left out of replays. */
  hole = -1;
  readonly #pub = new Publisher({ linger: 0 });
  readonly #router = new Router({ linger: 0, sendHighWaterMark: 0 });

  constructor(topic = 'kv') {
    this.topic = topic;
  }

  async listen(): Promise<this> {
    await this.#pub.bind('tcp://127.0.0.1:*');
    await this.#router.bind('tcp://127.0.0.1:*');
    void this.#serve();
    return this;
  }

  /** Dials a subscriber that listens. */
  async dial(events: string): Promise<this> {
    this.#pub.connect(events);
    await this.#router.bind('tcp://127.0.0.1:*');
    void this.#serve();
    return this;
  }

  get events(): string {
    return this.#pub.lastEndpoint as string;
  }

  get replay(): string {
    return this.#router.lastEndpoint as string;
  }

  async publish(payload: Buffer, lost = false): Promise<void> {
    const number = this.published.push(payload) - 1;
    if (!lost) await this.#pub.send([this.topic, frame(number), payload]);
  }

  async raw(frames: (Buffer | string)[]): Promise<void> {
    await this.#pub.send(frames);
  }

  /** A new process at the same address, that nobody sees come. */
  restart(): void {
    this.published.length = 0;
  }

  close(): void {
    this.#pub.close();
    this.#router.close();
  }

  async #serve(): Promise<void> {
    try {
      for await (const [identity, delimiter, start] of this.#router) {
        if (delimiter?.length !== 0 || start?.length !== 8) continue;
        this.asked.push(Number(start.readBigUInt64BE()));
        if (this.silent) continue;
        let sent = 0;
        for (let n = Math.max(this.asked.at(-1) as number, this.forgotten); n < this.published.length; ++n) {
          if (sent++ >= this.cut) break;
          if (n === this.hole) continue;
          const payload = this.published[n] as Buffer;
          await this.#router.send([identity as Buffer, '', ...(this.old ? [] : [this.topic]), frame(n), payload]);
        }
        if (sent <= this.cut)
          await this.#router.send([identity as Buffer, '', ...(this.old ? [] : ['']), Buffer.alloc(8, 0xff), '']);
      }
    } catch {
      // closed
    }
  }
}

function frame(number: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(number));
  return bytes;
}
