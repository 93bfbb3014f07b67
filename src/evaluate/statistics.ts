/**
 * Statistics of repeated simulations: means, geometric means and 95 % confidence intervals.
 *
 * A seed fixes the tasks and the arrivals, and all systems play the same ones. Systems are therefore compared **paired**: the
 * ratio (or difference) is taken per seed, and the interval is that of these ratios, which is narrower and more honest than
 * comparing two means whose common scatter is the workload's. Ratios are averaged as logarithms. The intervals are Student's t.
 */

/** A mean and its 95 % confidence interval; without interval where there is one observation. */
export interface Estimate {
  mean: number;
  interval: readonly [low: number, high: number] | null;
}

/** Quantile 0.975 of Student's t with 1 to 30 degrees of freedom. */
const studentQuantiles = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11,
  2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/** Standard normal quantile of 0.975. */
const normalQuantile = 1.959964;

/** Half the width of a 95 % interval in standard errors: quantile 0.975 of Student's t. */
export function studentQuantile(degrees: number): number {
  if (!Number.isInteger(degrees) || degrees < 1) throw new RangeError('expected at least one degree of freedom');
  const z = normalQuantile;
  return (
    studentQuantiles[degrees - 1] ??
    z + (z ** 3 + z) / (4 * degrees) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * degrees ** 2)
  );
}

/** Arithmetic mean. */
export function meanOf(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError('expected at least one value');
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Standard deviation of a sample (n - 1); 0 of a single value. */
export function deviationOf(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const mean = meanOf(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1));
}

/** Geometric mean of values above 0. */
export function geometricMean(values: readonly number[]): number {
  return Math.exp(meanOf(values.map(logarithm)));
}

/** Mean with its interval. */
export function estimateOf(values: readonly number[]): Estimate {
  const mean = meanOf(values);
  if (values.length < 2) return { mean, interval: null };
  const half = (studentQuantile(values.length - 1) * deviationOf(values)) / Math.sqrt(values.length);
  return { mean, interval: [mean - half, mean + half] };
}

/** Mean of the differences `left - right`, seed by seed. */
export function pairedDifference(left: readonly number[], right: readonly number[]): Estimate {
  checkPairs(left, right);
  return estimateOf(left.map((value, index) => value - (right[index] as number)));
}

/** Geometric mean of the ratios `left / right`, seed by seed. */
export function pairedRatio(left: readonly number[], right: readonly number[]): Estimate {
  return pooledRatio([[left, right]]);
}

/**
 * Geometric mean of paired ratios over several workloads. Seed n of each workload makes one observation, the mean of the
 * logarithms, so that the interval is one over seeds.
 */
export function pooledRatio(
  pairs: readonly (readonly [left: readonly number[], right: readonly number[]])[],
): Estimate {
  const seeds = pairs[0]?.[0].length ?? 0;
  for (const [left, right] of pairs) {
    checkPairs(left, right);
    if (left.length !== seeds) throw new RangeError('expected as many seeds of each workload');
  }
  const logarithms = Array.from({ length: seeds }, (_, seed) =>
    meanOf(pairs.map(([left, right]) => logarithm(left[seed] as number) - logarithm(right[seed] as number))),
  );
  const { mean, interval } = estimateOf(logarithms);
  return { mean: Math.exp(mean), interval: interval && [Math.exp(interval[0]), Math.exp(interval[1])] };
}

/** Jain's index of fairness: 1 where all shares are equal, 1 / n where one has everything. */
export function jainIndex(shares: readonly number[]): number {
  const sum = shares.reduce((total, share) => total + share, 0);
  const squares = shares.reduce((total, share) => total + share * share, 0);
  return squares === 0 ? 1 : (sum * sum) / (shares.length * squares);
}

function logarithm(value: number): number {
  if (!(value > 0)) throw new RangeError(`expected values above 0 for a geometric mean, not ${value}`);
  return Math.log(value);
}

function checkPairs(left: readonly number[], right: readonly number[]): void {
  if (left.length !== right.length || left.length === 0) throw new RangeError('expected pairs of values');
}
