/** How often something was so of late: counts by the minute, of the last five. Costs an addition or two each time. */

const minutes = 5;
const minuteMilliseconds = 60_000;

export class RecentShare {
  readonly #yes = new Float64Array(minutes);
  readonly #all = new Float64Array(minutes);
  readonly #clock: () => number;
  #minute = 0;

  /** @param clock milliseconds that never run backwards */
  constructor(clock: () => number = () => performance.now()) {
    this.#clock = clock;
    this.#minute = Math.floor(clock() / minuteMilliseconds);
  }

  add(yes: boolean): void {
    this.#advance();
    const at = this.#minute % minutes;
    this.#all[at] = (this.#all[at] as number) + 1;
    if (yes) this.#yes[at] = (this.#yes[at] as number) + 1;
  }

  /** In the last five minutes, of which the present one is not complete. */
  now(): { count: number; share: number } {
    this.#advance();
    const sum = (counts: Float64Array): number => counts.reduce((total, count) => total + count, 0);
    const count = sum(this.#yes);
    return { count, share: count === 0 ? 0 : count / sum(this.#all) };
  }

  #advance(): void {
    const minute = Math.floor(this.#clock() / minuteMilliseconds);
    for (let left = Math.min(minute - this.#minute, minutes); left > 0; --left) {
      const at = (minute - left + 1) % minutes;
      this.#yes[at] = 0;
      this.#all[at] = 0;
    }
    this.#minute = minute;
  }
}
