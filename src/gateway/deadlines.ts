/**
 * Deadlines of requests. Nearly all are met, so none has a timer of its own: all of them are looked at a few times a second. To begin, put
 * off or end one costs some nanoseconds; one that has passed is told up to a twentieth of the shortest one late, at most a quarter of a
 * second, and never early.
 */
const leastPeriodMs = 5;
const mostPeriodMs = 250;

/** One deadline, in the list of those that run. Ended or passed, it can be begun again. */
export class Deadline {
  /** @internal */
  at = 0;
  /** @internal */
  milliseconds = 0;
  /** @internal */
  delayed = false;
  /** @internal */
  previous: Deadline | undefined;
  /** @internal */
  next: Deadline | undefined;
  /** @internal */
  passed: () => void;

  /** @internal */
  constructor(passed: () => void) {
    this.passed = passed;
  }

  /** Its time begins anew with the next look at it. */
  putOff(): void {
    this.delayed = true;
  }

  /** It does not matter any more. */
  end(): void {
    const { previous, next } = this;
    if (previous === undefined || next === undefined) return;
    previous.next = next;
    next.previous = previous;
    this.previous = undefined;
    this.next = undefined;
  }
}

/** All deadlines of a gateway. */
export class Deadlines {
  readonly #periodMs: number;
  /** Before the first one and behind the last one. */
  readonly #ends = new Deadline(() => undefined);
  #timer: NodeJS.Timeout | undefined;

  /** @param shortestSeconds of those that will be begun */
  constructor(shortestSeconds: number) {
    this.#periodMs = Math.min(mostPeriodMs, Math.max(leastPeriodMs, (shortestSeconds * 1000) / 20));
    this.#ends.next = this.#ends;
    this.#ends.previous = this.#ends;
  }

  begin(seconds: number, passed: () => void): Deadline {
    const deadline = new Deadline(passed);
    this.again(deadline, seconds);
    return deadline;
  }

  /** Another time for one, from now on. */
  again(deadline: Deadline, seconds: number): void {
    deadline.end();
    deadline.milliseconds = seconds * 1000;
    deadline.at = performance.now() + deadline.milliseconds;
    deadline.delayed = false;
    const ends = this.#ends;
    const last = ends.previous as Deadline;
    last.next = deadline;
    deadline.previous = last;
    deadline.next = ends;
    ends.previous = deadline;
    this.#timer ??= setInterval(() => {
      this.#look();
    }, this.#periodMs).unref();
  }

  #look(): void {
    const now = performance.now();
    const ends = this.#ends;
    // What is told may end others.
    const due: Deadline[] = [];
    for (let each = ends.next as Deadline; each !== ends; each = each.next as Deadline) {
      if (each.delayed) {
        each.delayed = false;
        each.at = now + each.milliseconds;
      } else if (each.at <= now) {
        due.push(each);
      }
    }
    for (const each of due) {
      if (each.next === undefined) continue;
      each.end();
      each.passed();
    }
    if (ends.next !== ends) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
