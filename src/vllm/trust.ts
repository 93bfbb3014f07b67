/**
 * How far a worker's view is believed, and why not further.
 *
 * Each source of doubt sets a reason of its own or takes it back. The worker's trust is the product of the factors of all reasons:
 * a match of n blocks counts as n times that. The table of factors is in docs/vllm.md, with what to do about each.
 */

/** Where a doubt comes from. One reason of each at a time. */
export type Doubt = 'events' | 'source' | 'parity' | 'drift' | 'directives' | 'load';

/** A doubt in words, and what it leaves of the trust. */
export interface Reason {
  readonly words: string;
  readonly factor: number;
}

export const factors = {
  /** No events are configured, or none can be had now: nothing that is known can be relied on. */
  blind: 0,
  /** Events are missing and are being asked for: what is known was right a moment ago. */
  gap: 0.5,
  /** Everything known is right, but not all is known. */
  partial: 0.9,
  /** The decoder says that it may differ. */
  uncertain: 0.7,
  /** The probe shows that keys do not fit. */
  parityFailed: 0,
  /** The probe could not be carried through. */
  parityUnproven: 0.8,
  /** No doubt about the cache: only a reason to be shown. */
  none: 1,
} as const;

/** The reasons of one worker. */
export class Doubts {
  readonly #reasons = new Map<Doubt, Reason>();

  /** Returns whether something changed. */
  set(doubt: Doubt, reason: Reason | undefined): boolean {
    const before = this.#reasons.get(doubt);
    if (before?.words === reason?.words && before?.factor === reason?.factor) return false;
    if (reason === undefined) this.#reasons.delete(doubt);
    else this.#reasons.set(doubt, reason);
    return true;
  }

  get trust(): number {
    let trust = 1;
    for (const { factor } of this.#reasons.values()) trust *= factor;
    return trust;
  }

  /** `events: ...`, in a fixed order. */
  get words(): string[] {
    return [...this.#reasons].sort(([a], [b]) => (a < b ? -1 : 1)).map(([doubt, { words }]) => `${doubt}: ${words}`);
  }
}
