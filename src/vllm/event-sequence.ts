/**
 * The order of a publisher's batches: what to apply, what to skip, and when to ask for a replay. No I/O and no clock; the sockets
 * are in event-subscriber.ts.
 *
 * A publisher numbers its batches from 0, and begins at 0 again with every start of the engine; nothing else names that start. So
 * the last batches are remembered by a fingerprint: a number that comes again with the same content is a **duplicate**, with another
 * one a **restart**. For the same reason a replay after a gap begins one batch before it: if that one is not the batch that was
 * applied, the engine began anew unseen. A number from before the first batch that a replay still had cannot be compared with anything:
 * it is thrown away, and the last batch is asked for, which shows whether the engine is another one. A replay has all that was published
 * before it was asked for: a batch received before that contradicts it is of an engine that is gone, and thrown away, too. Without
 * that, one batch could ask for replays for ever. What cannot be told: a batch of an engine that is gone, still on its way after the new
 * connection, with the very number that comes next, is taken for its successor's until that one's own shows.
 *
 *   idle -> replaying <-> live          with a replay endpoint
 *              |  ^
 *              v  | cooled
 *            cooling                    a replay failed: everything is forgotten, live batches are thrown away
 *   idle -> live                        without one: a gap forgets everything known, and goes on
 *
 * Invariants: batches are applied in the order of their numbers, each at most once a start; after anything that may be missing all
 * is forgotten (`reset`) before the next batch is applied, so what is known is never more than what the worker holds. `partial`:
 * it may be less.
 *
 * Cost: O(1) a batch, 64 bytes of its payload are looked at. Memory: 64 KiB, and the live batches kept during a replay (bounded).
 */

export interface SequenceActions {
  /** Returns `false` where the payload cannot be applied: everything is forgotten then. */
  apply(payload: Uint8Array, sequence: number): boolean;
  /** Everything known of the publisher is wrong. */
  reset(): void;
  /** Ask for all batches from a number on; an earlier request no longer counts. */
  replay(from: number): void;
  /** Call {@link EventSequence.cooled} after a while. */
  cool(): void;
}

export interface SequenceLimits {
  /** Whether there is a replay endpoint. */
  replay: boolean;
  /** Live batches kept during a replay. Default 16,384. */
  keptBatches?: number;
  /** And their payloads in all. Default 64 MiB. */
  keptBytes?: number;
}

/**
 * - `idle`: not started
 * - `live`: in sequence
 * - `replaying`: a replay was asked for
 * - `cooling`: none is asked for yet
 */
export type SequenceState = 'idle' | 'live' | 'replaying' | 'cooling';

/** More than the batches that vLLM keeps for replays by default (10,000). */
const remembered = 2 ** 14;
const fingerprintBytes = 32;

interface Kept {
  readonly sequence: number;
  readonly payload: Uint8Array;
  /** Replays that were asked for when it was received. */
  readonly replays: number;
}

export class EventSequence {
  duplicates = 0;
  gaps = 0;
  restarts = 0;
  resets = 0;
  dropped = 0;
  applied = 0;
  replays = 0;
  replayedFrames = 0;
  replayFailures = 0;
  readonly #actions: SequenceActions;
  readonly #canReplay: boolean;
  readonly #keptBatches: number;
  readonly #keptBytes: number;
  #state: SequenceState = 'idle';
  /** The number that comes next. */
  #next = 0;
  /** Of the first batch since which none is missing; those before cannot be compared. */
  #oldest = 0;
  /** Something may be missing from what is known. */
  #partial = false;
  /** A gap is being filled; what is known was right before it. */
  #gap = false;
  readonly #fingerprints = new Uint32Array(remembered);
  #kept: Kept[] = [];
  #bytes = 0;
  /** A live batch was thrown away since the replay was asked for. */
  #lost = false;
  /** Of the replay: the first number asked for, whether that was all there is, and whether a batch has come. */
  #from = 0;
  #everything = false;
  #begun = false;

  constructor(actions: SequenceActions, limits: SequenceLimits) {
    this.#actions = actions;
    this.#canReplay = limits.replay;
    this.#keptBatches = limits.keptBatches ?? remembered;
    this.#keptBytes = limits.keptBytes ?? 2 ** 26;
  }

  get state(): SequenceState {
    return this.#state;
  }

  /** The number that comes next. */
  get next(): number {
    return this.#next;
  }

  /** All that is known is right, but the worker may hold more. */
  get partial(): boolean {
    return this.#partial;
  }

  /** Batches are missing and being asked for; what is known is of the time before. */
  get gap(): boolean {
    return this.#gap;
  }

  /** As far as is known nothing is missing: it is live, or looks whether it is. */
  get inSequence(): boolean {
    return this.#state === 'live' || (this.#state === 'replaying' && !this.#gap && !this.#everything);
  }

  /** The number of kept live batches. */
  get kept(): number {
    return this.#kept.length;
  }

  /** The subscription stands: for the first time, or again after it was lost. */
  connected(): void {
    switch (this.#state) {
      case 'idle':
        if (this.#canReplay) this.#anew();
        else this.#state = 'live';
        break;
      case 'replaying':
        // What was kept, and what is on its way, may be of the engine before.
        this.#clearKept();
        this.#ask(Math.max(0, this.#next - 1));
        break;
      case 'live':
        if (this.#canReplay) {
          this.#gapped();
        } else if (this.#next > 0) {
          // Whether it is the engine of before cannot be told.
          this.#forget();
          this.#next = 0;
        }
        break;
      case 'cooling':
        break;
    }
  }

  /** Asks for the last batch again: was one missed behind it? */
  audit(): void {
    if (this.#state === 'live' && this.#canReplay) this.#ask(Math.max(0, this.#next - 1));
  }

  /** A batch was published. */
  live(sequence: number, payload: Uint8Array): void {
    this.#live({ sequence, payload, replays: this.replays });
  }

  #live(batch: Kept): void {
    switch (this.#state) {
      case 'idle':
        break;
      case 'cooling':
        ++this.dropped;
        break;
      case 'replaying':
        this.#keep(batch);
        break;
      case 'live':
        this.#take(batch);
        break;
    }
  }

  /** Something was published that cannot be read. */
  malformed(): void {
    if (this.#state === 'live') {
      ++this.gaps;
      if (this.#canReplay) this.#gapped();
      else this.#forget();
    } else if (this.#state === 'replaying') {
      this.#lost = true;
    }
  }

  /** A batch of the replay that was asked for last. */
  replayed(sequence: number, payload: Uint8Array): void {
    if (this.#state !== 'replaying') return;
    ++this.replayedFrames;
    if (!this.#begun) {
      this.#begun = true;
      // It begins later than asked: the publisher has forgotten the batches before.
      if (sequence > this.#from) this.#incomplete(sequence);
    }
    if (sequence < this.#next) {
      if (this.#known(sequence, payload)) return;
      // What a replay of everything brought cannot be of another start than what it brings later.
      if (this.#everything) this.replayFailed();
      else this.#restart();
    } else {
      // A hole within a replay will not be filled: the publisher could not encode that batch.
      if (sequence > this.#next) this.#incomplete(sequence);
      this.#apply(sequence, payload);
    }
  }

  /** The replay's end has come. */
  replayEnded(): void {
    if (this.#state !== 'replaying') return;
    if (!this.#begun && this.#from < this.#next) {
      // Not even the batch that was applied last is there: this engine has not come so far.
      this.#restart();
      return;
    }
    this.#goOn(true);
  }

  /** It did not come to its end, and will not. */
  replayFailed(): void {
    if (this.#state !== 'replaying') return;
    ++this.replayFailures;
    if (this.inSequence) {
      // It was only to show whether something is missing.
      this.#goOn(false);
      return;
    }
    this.dropped += this.#kept.length;
    this.#forget();
    this.#clearKept();
    this.#state = 'cooling';
    this.#actions.cool();
  }

  /** The time after a failed replay is over. */
  cooled(): void {
    if (this.#state === 'cooling') this.#anew();
  }

  /** Everything that the worker had before is known to be gone: it said so. */
  cleared(): void {
    this.#partial = false;
  }

  /** Live batches again, those first that were kept. `ended`: the replay had all that there was when it was asked for. */
  #goOn(ended: boolean): void {
    this.#state = 'live';
    this.#gap = false;
    const kept = this.#kept;
    const lost = this.#lost;
    this.#kept = [];
    this.#bytes = 0;
    this.#lost = false;
    let doubtful = false;
    // One of them may ask for another replay: those behind it are kept again.
    for (const batch of kept) {
      if (this.state !== 'live') this.#live(batch);
      else if (ended && batch.replays < this.replays && !this.#agrees(batch)) ++this.dropped;
      else if (this.#comparable(batch.sequence)) this.#live(batch);
      else {
        ++this.duplicates;
        doubtful = true;
      }
    }
    if (this.state === 'replaying') this.#lost ||= lost;
    else if (lost) this.#gapped();
    else if (doubtful) this.audit();
  }

  #take(batch: Kept): void {
    const { sequence, payload } = batch;
    if (sequence === this.#next) {
      if (sequence === 0) this.#partial = false;
      this.#apply(sequence, payload);
    } else if (sequence < this.#next) {
      if (this.#known(sequence, payload)) {
        ++this.duplicates;
      } else if (this.#canReplay && !this.#comparable(sequence)) {
        ++this.duplicates;
        this.audit();
      } else if (this.#canReplay) {
        this.#restart();
        this.#keep(batch);
      } else {
        ++this.restarts;
        this.#forget();
        this.#partial = sequence > 0;
        this.#next = sequence;
        this.#apply(sequence, payload);
      }
    } else if (this.#canReplay) {
      this.gaps += sequence - this.#next;
      this.#gapped();
      this.#keep(batch);
    } else {
      // Also the first batch of a publisher that was there before: nothing is known, so nothing is forgotten.
      if (this.#next > 0) this.gaps += sequence - this.#next;
      if (this.#next > 0) this.#forget();
      this.#partial = true;
      this.#next = sequence;
      this.#apply(sequence, payload);
    }
  }

  #apply(sequence: number, payload: Uint8Array): void {
    this.#fingerprints[sequence % remembered] = fingerprint(sequence, payload);
    this.#next = sequence + 1;
    ++this.applied;
    if (!this.#actions.apply(payload, sequence)) this.#forget();
  }

  /** What is known may be wrong, and is forgotten; the numbers go on. */
  #forget(): void {
    ++this.resets;
    this.#gap = false;
    this.#partial = true;
    this.#actions.reset();
  }

  /** Batches before `sequence` cannot be had. */
  #incomplete(sequence: number): void {
    ++this.replayFailures;
    if (this.#next > 0) this.gaps += Math.max(0, sequence - this.#next);
    this.#forget();
    this.#next = sequence;
    this.#oldest = sequence;
  }

  #restart(): void {
    // One that was noticed already, by a replay that was faster than what is live, is noticed again by its first live batch.
    if (this.#state !== 'replaying' || !this.#everything) ++this.restarts;
    this.#forget();
    this.#clearKept();
    this.#anew();
  }

  /** Nothing is known; all that the publisher has is asked for. */
  #anew(): void {
    this.#next = 0;
    this.#oldest = 0;
    this.#partial = false;
    this.#fingerprints.fill(0);
    this.#ask(0);
    this.#everything = true;
  }

  #gapped(): void {
    this.#gap = true;
    this.#ask(Math.max(0, this.#next - 1));
  }

  #ask(from: number): void {
    ++this.replays;
    this.#state = 'replaying';
    this.#from = from;
    this.#everything = false;
    this.#begun = false;
    this.#actions.replay(from);
  }

  #keep(batch: Kept): void {
    const { sequence, payload } = batch;
    const last = this.#kept.at(-1);
    if (last !== undefined && sequence <= last.sequence) {
      if (sequence === last.sequence && fingerprint(sequence, payload) === fingerprint(sequence, last.payload)) {
        ++this.duplicates;
        return;
      }
      // Its numbers run back: what the replay brings is of the engine before.
      this.#restart();
    }
    if (this.#kept.length >= this.#keptBatches || this.#bytes + payload.length > this.#keptBytes) {
      ++this.dropped;
      this.#lost = true;
      return;
    }
    this.#kept.push(batch);
    this.#bytes += payload.length;
  }

  #clearKept(): void {
    this.#kept = [];
    this.#bytes = 0;
    this.#lost = false;
  }

  /** Whether a batch is one of those that were applied. */
  #agrees({ sequence, payload }: Kept): boolean {
    return sequence < this.#next && this.#comparable(sequence) && this.#known(sequence, payload);
  }

  /** Whether its fingerprint would be there. */
  #comparable(sequence: number): boolean {
    return sequence >= Math.max(this.#oldest, this.#next - remembered);
  }

  #known(sequence: number, payload: Uint8Array): boolean {
    return this.#fingerprints[sequence % remembered] === fingerprint(sequence, payload);
  }
}

/** FNV-1a of the number, the length, and both ends of the payload, where its time and its newest blocks are. Never 0. */
function fingerprint(sequence: number, payload: Uint8Array): number {
  let hash = mix(mix(0x811c9dc5, sequence), payload.length);
  const head = Math.min(fingerprintBytes, payload.length);
  for (let i = 0; i < head; ++i) hash = mix(hash, payload[i] as number);
  for (let i = Math.max(head, payload.length - fingerprintBytes); i < payload.length; ++i)
    hash = mix(hash, payload[i] as number);
  return hash >>> 0 || 1;
}

function mix(hash: number, value: number): number {
  return Math.imul(hash ^ value, 0x01000193);
}
