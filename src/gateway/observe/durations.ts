/**
 * Histograms of durations, in Prometheus' text format. An observation is a few additions and no object: every call makes three.
 */

/** Of one set of labels. */
class Series {
  /** By bucket, not cumulative; the last one has no bound. */
  readonly counts: Float64Array;
  readonly labels: string;
  sum = 0;

  constructor(labels: string, buckets: number) {
    this.labels = labels;
    this.counts = new Float64Array(buckets + 1);
  }
}

/** A histogram whose labels are the values of two names, the second one of which may be left out. */
export class Durations {
  readonly #name: string;
  readonly #help: string;
  readonly #labelNames: readonly [string, string?];
  readonly #buckets: readonly number[];
  readonly #series = new Map<string, Map<string, Series>>();

  constructor(name: string, help: string, labelNames: readonly [string, string?], buckets: readonly number[]) {
    this.#name = name;
    this.#help = help;
    this.#labelNames = labelNames;
    this.#buckets = buckets;
  }

  observe(seconds: number, first: string, second = ''): void {
    const series = this.#series.get(first)?.get(second) ?? this.#make(first, second);
    const buckets = this.#buckets;
    let at = 0;
    while (at < buckets.length && seconds > (buckets[at] as number)) ++at;
    series.counts[at] = (series.counts[at] as number) + 1;
    series.sum += seconds;
  }

  text(): string {
    const name = this.#name;
    const lines = [`# HELP ${name} ${this.#help}`, `# TYPE ${name} histogram`];
    for (const bySecond of this.#series.values()) {
      for (const { labels, counts, sum } of bySecond.values()) {
        let below = 0;
        counts.forEach((count, i) => {
          below += count;
          lines.push(`${name}_bucket{le="${this.#buckets[i] ?? '+Inf'}",${labels}} ${below}`);
        });
        lines.push(`${name}_sum{${labels}} ${sum}`, `${name}_count{${labels}} ${below}`);
      }
    }
    return `${lines.join('\n')}\n`;
  }

  #make(first: string, second: string): Series {
    const [firstName, secondName] = this.#labelNames;
    const labels = `${firstName}="${escaped(first)}"`;
    const series = new Series(
      secondName === undefined ? labels : `${labels},${secondName}="${escaped(second)}"`,
      this.#buckets.length,
    );
    const bySecond = this.#series.get(first) ?? new Map<string, Series>();
    this.#series.set(first, bySecond.set(second, series));
    return series;
  }
}

function escaped(value: string): string {
  return value.replace(/[\\"\n]/g, (letter) => (letter === '\n' ? '\\n' : `\\${letter}`));
}
