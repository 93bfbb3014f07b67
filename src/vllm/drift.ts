/**
 * How far predicted cache hits are from reported ones, on one worker.
 *
 * Two moving averages over answers: of the share of predicted tokens that were not there (**drift**, which is why a worker is trusted
 * less), and of the share of reported ones that nobody predicted (**surprise**: stored after the decision, or unknown here; it is
 * shown and harms nobody). A block more or less is no error: the last block of a prompt is computed again in any case. What events
 * took away while a call waited at the worker was predicted rightly and is no drift (expectation.ts); it is counted by itself.
 */

/** Weight of the newest answer. */
const weight = 1 / 20;
/** Answers before the averages mean something. */
const least = 20;
/** Drift that is a warning, and below which it no longer is. */
const warnAbove = 0.2;
const warnBelow = 0.1;

export class Drift {
  drift = 0;
  surprise = 0;
  observations = 0;
  /** Predicted tokens that were not there because they were evicted while the call waited. */
  evictedTokens = 0;
  /** Above the threshold, with hysteresis. */
  warning = false;
  readonly #blockTokens: number;

  constructor(blockTokens: number) {
    this.#blockTokens = blockTokens;
  }

  /**
   * Returns whether {@link factor} may have changed.
   *
   * @param evicted predicted tokens that were removed since, as events tell
   */
  observe(predicted: number, reported: number, evicted = 0): boolean {
    if (!(predicted >= 0 && reported >= 0 && evicted >= 0) || !Number.isFinite(predicted + reported + evicted))
      return false;
    const gone = Math.max(0, Math.min(evicted, predicted - reported));
    this.evictedTokens += gone;
    const lacking = predicted - gone - reported;
    const missing = lacking > this.#blockTokens ? lacking / predicted : 0;
    const extra = reported - predicted > this.#blockTokens ? (reported - predicted) / reported : 0;
    // A prompt of which nothing was predicted says nothing of drift.
    if (predicted > this.#blockTokens) this.drift += weight * (missing - this.drift);
    if (reported > this.#blockTokens) this.surprise += weight * (extra - this.surprise);
    ++this.observations;
    const before = this.warning;
    if (this.observations >= least) this.warning = this.drift > (this.warning ? warnBelow : warnAbove);
    return this.warning || before;
  }

  /** What is left of the worker's trust. */
  get factor(): number {
    // In steps, so that not every answer is a change.
    return this.warning ? Math.round(20 * Math.max(0, 1 - this.drift)) / 20 : 1;
  }
}
