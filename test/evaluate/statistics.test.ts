import { describe, expect, it } from 'vitest';
import {
  deviationOf,
  estimateOf,
  geometricMean,
  jainIndex,
  meanOf,
  pairedDifference,
  pairedRatio,
  pooledRatio,
  studentQuantile,
} from '../../src/evaluate/statistics.js';

describe('means and intervals', () => {
  it('of a sample whose figures are known', () => {
    // n = 5, mean 30, standard deviation sqrt(250), quantile 2.776: 30 +- 19.629.
    const { mean, interval } = estimateOf([10, 20, 30, 40, 50]);
    expect(mean).toBe(30);
    expect(deviationOf([10, 20, 30, 40, 50])).toBeCloseTo(15.8114, 4);
    expect(interval?.[0]).toBeCloseTo(10.371, 3);
    expect(interval?.[1]).toBeCloseTo(49.629, 3);
  });

  it('of a single value have no interval', () => {
    expect(estimateOf([7])).toEqual({ mean: 7, interval: null });
    expect(deviationOf([7])).toBe(0);
  });

  it('of nothing are refused', () => {
    expect(() => meanOf([])).toThrow(RangeError);
    expect(() => geometricMean([])).toThrow(RangeError);
  });

  it("use Student's t: quantiles as printed in tables", () => {
    expect([1, 2, 9, 30].map(studentQuantile)).toEqual([12.706, 4.303, 2.262, 2.042]);
    expect(studentQuantile(31)).toBeCloseTo(2.0395, 3);
    expect(studentQuantile(40)).toBeCloseTo(2.0211, 3);
    expect(studentQuantile(120)).toBeCloseTo(1.9799, 3);
    expect(() => studentQuantile(0)).toThrow(RangeError);
  });
});

describe('geometric means', () => {
  it('are those of the logarithms', () => {
    expect(geometricMean([2, 8])).toBeCloseTo(4, 12);
    expect(geometricMean([1, 10, 100])).toBeCloseTo(10, 12);
  });

  it('take no zero', () => {
    expect(() => geometricMean([1, 0])).toThrow('above 0');
  });
});

describe('comparisons by pairs', () => {
  it('do not see what both sides have in common', () => {
    // The seeds differ by a factor of 100, the systems by 2 in each: no scatter at all.
    const { mean, interval } = pairedRatio([2, 200, 20], [1, 100, 10]);
    expect(mean).toBeCloseTo(2, 12);
    expect(interval?.[0]).toBeCloseTo(2, 9);
    expect(interval?.[1]).toBeCloseTo(2, 9);
  });

  it('have the interval of the ratios', () => {
    // Ratios 1, 2, 4: logarithms 0, 1, 2 in units of ln 2; half width 4.303 / sqrt(3) of these units.
    const { mean, interval } = pairedRatio([1, 2, 4], [1, 1, 1]);
    expect(mean).toBeCloseTo(2, 12);
    expect(interval?.[0]).toBeCloseTo(2 ** (1 - 4.303 / Math.sqrt(3)), 9);
    expect(interval?.[1]).toBeCloseTo(2 ** (1 + 4.303 / Math.sqrt(3)), 9);
  });

  it('give differences', () => {
    expect(pairedDifference([3, 5], [1, 1])).toEqual({ mean: 3, interval: [3 - 12.706, 3 + 12.706] });
  });

  it('pool workloads seed by seed', () => {
    // Seed 0: ratios 4 and 1, mean 2. Seed 1: ratios 1 and 4, mean 2. No scatter over seeds.
    const { mean, interval } = pooledRatio([
      [
        [4, 1],
        [1, 1],
      ],
      [
        [1, 4],
        [1, 1],
      ],
    ]);
    expect(mean).toBeCloseTo(2, 12);
    expect(interval?.[0]).toBeCloseTo(2, 9);
  });

  it('refuse what is no pair', () => {
    expect(() => pairedRatio([1, 2], [1])).toThrow(RangeError);
    expect(() =>
      pooledRatio([
        [[1], [1]],
        [
          [1, 2],
          [1, 2],
        ],
      ]),
    ).toThrow(RangeError);
  });
});

describe("Jain's index", () => {
  it('is 1 for equal shares and 1 / n where one has all', () => {
    expect(jainIndex([3, 3, 3])).toBe(1);
    expect(jainIndex([5, 0, 0, 0])).toBe(0.25);
    expect(jainIndex([1, 2, 3])).toBeCloseTo(36 / 42, 12);
    expect(jainIndex([0, 0])).toBe(1);
  });
});
