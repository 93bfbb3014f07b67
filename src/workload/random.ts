/**
 * Seeded random numbers for workload generators: the same seed gives the same draws on every machine, as far as the
 * platform's `Math.log`, `Math.exp`, `Math.cos` and `Math.pow` agree (integers and uniform numbers agree always).
 *
 * The generator is xoshiro128** (Blackman and Vigna, 2018), seeded through splitmix32; a draw costs a few nanoseconds.
 * `fork` gives an independent stream for a numbered part, so that task 7 of a workload is the same however many tasks follow.
 */
export class Random {
  private a: number;
  private b: number;
  private c: number;
  private d: number;
  private spare: number | undefined;

  /** @param seed - any integer from 0 to 2^53 - 1 */
  constructor(private readonly seed: number) {
    let state = (seed ^ Math.floor(seed / 0x1_0000_0000)) >>> 0;
    state = (state + Math.imul(Math.floor(seed / 0x1_0000_0000), 0x9e3779b9)) >>> 0;
    const next = (): number => {
      state = (state + 0x9e3779b9) >>> 0;
      let mixed = state;
      mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
      mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
      return (mixed ^ (mixed >>> 16)) >>> 0;
    };
    this.a = next();
    this.b = next();
    this.c = next();
    this.d = next() || 1; // the state must not be all zero
  }

  /** An independent stream, the same for the same seed and number. */
  fork(number: number): Random {
    const mixed = Math.imul((number + 1) >>> 0, 0x85ebca6b) >>> 0;
    return new Random((this.seed % 0x20_0000) * 0x1_0000_0000 + ((Math.floor(this.seed / 0x20_0000) ^ mixed) >>> 0));
  }

  /** Uniform integer from 0 to 2^32 - 1. */
  uint32(): number {
    const product = Math.imul(this.b, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const shifted = this.b << 9;
    this.c ^= this.a;
    this.d ^= this.b;
    this.b ^= this.c;
    this.a ^= this.d;
    this.c ^= shifted;
    this.d = (this.d << 11) | (this.d >>> 21);
    return result;
  }

  /** Uniform in [0, 1), 53 bits. */
  uniform(): number {
    const high = this.uint32() >>> 5;
    const low = this.uint32() >>> 6;
    return (high * 0x400_0000 + low) / 0x20_0000_0000_0000;
  }

  /** Uniform integer from `low` to `high`, both included. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.uniform() * (high - low + 1));
  }

  /** True with the given probability. */
  chance(probability: number): boolean {
    return this.uniform() < probability;
  }

  /** Standard normal (Box and Muller; both numbers of a pair are used). */
  normal(): number {
    if (this.spare !== undefined) {
      const spare = this.spare;
      this.spare = undefined;
      return spare;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** exp of a normal variable with mean `mu` and standard deviation `sigma`. */
  logNormal(mu: number, sigma: number): number {
    return Math.exp(mu + sigma * this.normal());
  }

  /** Exponential with the given mean. */
  exponential(mean: number): number {
    return -mean * Math.log(1 - this.uniform());
  }

  /** Gamma with mean `shape * scale` (Marsaglia and Tsang, 2000; shapes below 1 through the boost of a shape above). */
  gamma(shape: number, scale: number): number {
    if (shape < 1) return this.gamma(shape + 1, scale) * Math.pow(1 - this.uniform(), 1 / shape);
    const d = shape - 1 / 3;
    const c = 1 / Math.sqrt(9 * d);
    for (;;) {
      const x = this.normal();
      const cube = 1 + c * x;
      if (cube <= 0) continue;
      const v = cube * cube * cube;
      if (Math.log(1 - this.uniform()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v * scale;
    }
  }

  /** Index drawn in proportion to non-negative weights, of which at least one is positive. */
  weighted(weights: readonly number[]): number {
    let rest = this.uniform() * weights.reduce((sum, weight) => sum + weight, 0);
    let last = 0;
    for (let index = 0; index < weights.length; ++index) {
      const weight = weights[index] as number;
      if (weight <= 0) continue;
      last = index;
      rest -= weight;
      if (rest < 0) return index;
    }
    return last; // rounding of the sum
  }
}

/** Points of a distribution, `[probability, value]`, both rising, from probability 0 to 1. */
export type Quantiles = readonly (readonly [probability: number, value: number])[];

/**
 * Draws from a distribution known by quantiles: inverse transform, between two points linear in log(value + offset).
 * The offset (1 unit by default) makes zeros possible and keeps the interpolation linear near them.
 */
export function drawQuantiles(random: Random, quantiles: Quantiles, offset = 1): number {
  const probability = random.uniform();
  let upper = 1;
  while (upper < quantiles.length - 1 && (quantiles[upper] as readonly [number, number])[0] <= probability) ++upper;
  const [p0, v0] = quantiles[upper - 1] as readonly [number, number];
  const [p1, v1] = quantiles[upper] as readonly [number, number];
  if (v0 === v1) return v0;
  const share = (probability - p0) / (p1 - p0);
  return Math.exp(Math.log(v0 + offset) * (1 - share) + Math.log(v1 + offset) * share) - offset;
}
