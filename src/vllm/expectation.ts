/**
 * What calls were sent to a worker for, and what its events have taken away since.
 *
 * A call is placed by what the worker holds then, and may wait in the engine's queue; what is evicted meanwhile is missing when it
 * starts. The prediction was right, so this is no drift: an {@link Expectation} says how much of it went. It ends when the answer has
 * begun, as the blocks of a running call stay; two more batches are looked at, for events that come later than the first token.
 *
 *   waiting -> started -> ended             void: what is known of the worker was forgotten, so nothing can be said
 *
 * Cost: one object a call; a look-up of one block for each call that waits, with each batch that tells of removals. Blocks go from the
 * end of a chain, so the last one that is left is looked at, and the chain is searched only when it has gone.
 */

/** Of one worker. Those that come beyond it are void. */
const mostOpen = 1024;
/** Batches with removals that are looked at after the first token. */
const batchesAfter = 2;

/** Leading blocks of a prompt that a worker held when a call was sent there. */
export class Expectation {
  /** Of them, those that were there all the time. */
  held: number;
  /** Nothing can be said. */
  isVoid = false;
  readonly #of: Expectations;
  /** @internal */
  readonly chain: BigUint64Array;
  /** @internal Batches that are still looked at. */
  left = Number.POSITIVE_INFINITY;
  readonly #blocks: number;

  /** @internal */
  constructor(of: Expectations, chain: BigUint64Array, blocks: number) {
    this.#of = of;
    this.chain = chain;
    this.#blocks = blocks;
    this.held = blocks;
  }

  /** Blocks that were removed since. */
  get evicted(): number {
    return this.#blocks - this.held;
  }

  /** The first token is there. */
  started(): void {
    this.left = Math.min(this.left, batchesAfter);
  }

  /** The call has ended, one way or another. */
  end(): void {
    this.#of.ended(this);
  }
}

/** All of one worker. */
export class Expectations {
  readonly #holds: (block: bigint) => boolean;
  readonly #open = new Set<Expectation>();

  /** @param holds whether the worker holds a block, as its events tell */
  constructor(holds: (block: bigint) => boolean) {
    this.#holds = holds;
  }

  /** Open now. */
  get size(): number {
    return this.#open.size;
  }

  /** @param blocks leading ones of `chain`, at least 1 */
  add(chain: BigUint64Array, blocks: number): Expectation {
    const expectation = new Expectation(this, chain, blocks);
    if (this.#open.size < mostOpen) this.#open.add(expectation);
    else expectation.isVoid = true;
    return expectation;
  }

  /** A batch of events with removals was applied. */
  removed(): void {
    for (const expectation of this.#open) {
      const { chain, held } = expectation;
      if (held > 0 && !this.#holds(chain[held - 1] as bigint)) expectation.held = this.#leading(chain, held - 1);
      if (--expectation.left <= 0) this.#open.delete(expectation);
    }
  }

  /** What was known of the worker was forgotten. */
  reset(): void {
    for (const expectation of this.#open) expectation.isVoid = true;
    this.#open.clear();
  }

  /** @internal */
  ended(expectation: Expectation): void {
    this.#open.delete(expectation);
  }

  /** Leading blocks that are held, of the first `most`: those of a chain are held up to one of them. */
  #leading(chain: BigUint64Array, most: number): number {
    let low = 0;
    let high = most;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#holds(chain[middle - 1] as bigint)) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
