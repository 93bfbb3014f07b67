/**
 * Directives: what the policy `saga` wants done on workers between calls.
 *
 * They are advice that costs time when it is not followed, never correctness. Each is a small object of its own class, made when
 * {@link Scheduler.directives} is called; until then its numbers lie in a ring of fixed size. A copy and a lease have an id, and
 * their executor reports what became of them; the others are done or not, and nobody asks.
 *
 *   copy     decided -> applied | refused | expired
 *   retain   decided -> (applied ->) refused | expired | revoked, or released by the scheduler
 */
import type { Call } from './call.js';
import { refused, twoTo32 } from './checks.js';
import type { At } from './options.js';
import type { Scheduler } from './scheduler.js';
import { copyReasons, outcomes, type CopyReason } from './vocabulary.js';
import type { Worker } from './worker.js';

/** Words of a decision, whatever its type. */
export const decisionWords = 16;

const maxUint32 = twoTo32 - 1;

/** A directive by its `type`. */
export type Directive = CopyDirective | RetainDirective | ReleaseDirective | DropDirective | PriorityDirective;

/** What every directive has. */
abstract class Decided {
  /** Who carries it out. */
  readonly worker: Worker;
  /**
   * The call that stands for the blocks: those of its prompt and, once it has ended, of its answer. `undefined` for one that was
   * forgotten when its workflow was closed, which only a drop can be about.
   */
  readonly call: Call | undefined;
  /** Its id. */
  readonly callId: number;
  /** Microseconds. */
  readonly decidedAt: number;

  constructor(entry: Entry) {
    this.worker = entry.worker;
    this.call = entry.call;
    this.callId = entry.number(2);
    this.decidedAt = entry.number(14);
  }
}

/** A directive that has an id and an outcome. */
abstract class Answered extends Decided {
  /** Of the copy or the lease; not used again. */
  readonly id: number;
  /** Number of leading blocks that it is about. */
  readonly blocks: number;
  /** A copy is not needed after this time; a lease ends then. Microseconds. */
  readonly until: number;
  readonly #scheduler: Scheduler;

  constructor(entry: Entry) {
    super(entry);
    this.#scheduler = entry.scheduler;
    this.blocks = entry.word(5);
    this.id = entry.number(8);
    this.until = entry.number(12);
  }

  /**
   * It is done: the copied blocks are there, or the lease holds (and will report how it ends).
   *
   * @returns `false` where it had ended before: it was reported already, has expired or was released
   */
  applied(at: At = {}): boolean {
    return this.report('applied', at);
  }

  /** Memory or the link has no room for it, or the worker does not know the blocks. Returns as {@link applied}. */
  refused(at: At = {}): boolean {
    return this.report('refused', at);
  }

  /** It came too late; of a lease: its deadline has passed. Returns as {@link applied}. */
  expired(at: At = {}): boolean {
    return this.report('expired', at);
  }

  /** @internal */
  protected report(outcome: (typeof outcomes)[number], at: At): boolean {
    const scheduler = this.#scheduler;
    const status = scheduler.native.directiveDone(scheduler.time(at), this.id, outcomes.indexOf(outcome));
    if (status === -2) return false;
    if (status < 0) throw refused(status, `directive ${this.id} cannot be ${outcome}`);
    return true;
  }
}

/** Blocks go from a worker to another one, or from host to GPU memory of one (`source === worker`). The source keeps its own. */
export class CopyDirective extends Answered {
  readonly type = 'copy';
  readonly source: Worker;
  readonly reason: CopyReason;

  /** @internal */
  constructor(entry: Entry) {
    super(entry);
    this.source = entry.source as Worker;
    this.reason = copyReasons[entry.word(4)] as CopyReason;
  }
}

/** A lease: what the worker caches of the call is kept before {@link until}, unless memory needs it. */
export class RetainDirective extends Answered {
  readonly type = 'retain';
  /** Of two leases the one of lower value is given up first. */
  readonly value: number;

  /** @internal */
  constructor(entry: Entry) {
    super(entry);
    this.value = entry.number(10);
  }

  /** Memory needed its blocks. Returns as {@link applied}. */
  revoked(at: At = {}): boolean {
    return this.report('revoked', at);
  }
}

/** The lease ends; its blocks stay cached like all others. */
export class ReleaseDirective extends Decided {
  readonly type = 'release';
  /** Of the {@link RetainDirective}. */
  readonly id: number;

  /** @internal */
  constructor(entry: Entry) {
    super(entry);
    this.id = entry.number(8);
  }
}

/** The call's agent does not come back to this worker: what only it would use there is evicted first. */
export class DropDirective extends Decided {
  readonly type = 'drop';

  /** @internal */
  constructor(entry: Entry) {
    super(entry);
  }
}

/** The place in the worker's queue of a call that was sent: smaller goes first. */
export class PriorityDirective extends Decided {
  readonly type = 'priority';
  readonly priority: number;

  /** @internal */
  constructor(entry: Entry) {
    super(entry);
    this.priority = entry.word(7) | 0;
  }
}

/** A directive's words, and what they refer to. `source`: of a copy. */
class Entry {
  constructor(
    readonly scheduler: Scheduler,
    readonly call: Call | undefined,
    readonly worker: Worker,
    readonly source: Worker | undefined,
    private readonly words: Uint32Array,
    private readonly from: number,
  ) {}

  word(at: number): number {
    return this.words[this.from + at] as number;
  }

  /** Two words. All ones is a time that never comes. */
  number(at: number): number {
    const [low, high] = [this.word(at), this.word(at + 1)];
    return low === maxUint32 && high === maxUint32 ? Number.POSITIVE_INFINITY : low + high * twoTo32;
  }
}

const copyType = 2;

/** By the number of the type, which starts at 1; that is a placement. */
const classes = [
  undefined,
  CopyDirective,
  RetainDirective,
  ReleaseDirective,
  DropDirective,
  PriorityDirective,
] as const;

/**
 * Directives that were decided and not read: a ring of words. When it is full the oldest is lost, which {@link lost} counts.
 *
 * Nothing is allocated by {@link push}.
 */
export class DirectiveQueue {
  lost = 0;
  readonly #capacity: number;
  readonly #words: Uint32Array;
  /** What the words refer to by number, which another one may have when they are taken. */
  readonly #calls: (Call | undefined)[] = [];
  readonly #workers: (Worker | undefined)[] = [];
  readonly #sources: (Worker | undefined)[] = [];
  #first = 0;
  #count = 0;

  constructor(capacity: number) {
    this.#capacity = capacity;
    this.#words = new Uint32Array(capacity * decisionWords);
  }

  /** The decision whose words begin at `from`. `workers`: by id. */
  push(words: Uint32Array, from: number, call: Call | undefined, workers: readonly Worker[]): void {
    if (this.#capacity === 0) return;
    if (this.#count === this.#capacity) {
      this.#first = (this.#first + 1) % this.#capacity;
      --this.#count;
      ++this.lost;
    }
    const place = (this.#first + this.#count++) % this.#capacity;
    for (let i = 0; i < decisionWords; ++i) this.#words[place * decisionWords + i] = words[from + i] as number;
    this.#calls[place] = call;
    this.#workers[place] = workers[words[from + 1] as number];
    this.#sources[place] =
      (words[from] as number) % 2 ** 16 === copyType ? workers[words[from + 6] as number] : undefined;
  }

  /** All of them, the oldest first. */
  take(scheduler: Scheduler): Directive[] {
    const taken: Directive[] = [];
    for (; this.#count > 0; --this.#count) {
      const at = this.#first;
      const [call, worker, source] = [this.#calls[at], this.#workers[at] as Worker, this.#sources[at]];
      const entry = new Entry(scheduler, call, worker, source, this.#words, at * decisionWords);
      const made = classes[(entry.word(0) & 0xffff) - 1] as new (entry: Entry) => Directive;
      taken.push(new made(entry));
      this.#calls[at] = this.#workers[at] = this.#sources[at] = undefined;
      this.#first = (at + 1) % this.#capacity;
    }
    return taken;
  }
}

/** Whether a decision is a placement, by its first word: type, and which placement of its call. */
export function isPlacement(word: number): boolean {
  return (word & 0xffff) === 1;
}
