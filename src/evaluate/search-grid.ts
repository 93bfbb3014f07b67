/**
 * Parameters of the other systems, and the values that `saga evaluate search` tries: every combination of a policy's values, on
 * seeds that no other table uses. What each parameter means stands in the header of its policy (`native/core/sim/`).
 *
 * The systems are given every advantage: the search looks for the values under which they do best on these workloads.
 */
import type { ClusterPolicy } from '../simulate/options.js';

/** Values to try by name of the parameter. */
export type ParameterGrid = Readonly<Record<string, readonly number[]>>;

/** By policy. */
export const searchGrid: Readonly<Partial<Record<ClusterPolicy, ParameterGrid>>> = {
  'kv-router': {
    prefillScale: [0.5, 1, 2, 4],
    temperature: [0, 0.5],
    queueThreshold: [0, 4],
    sessionAffinitySeconds: [0, 300],
  },
  continuum: {
    memoryWeight: [0.25, 1, 4],
    queueWeight: [0, 1, 4],
    longestTtlSeconds: [60, 300],
  },
  'thunder-agent': {
    pauseThreshold: [0.85, 0.95, 1],
    halfLifeSeconds: [0, 2, 10],
    resumeOrder: [0, 1, 2, 3],
  },
  'kv-flow': {
    routing: [0, 1],
  },
  'saga-paper': {
    theta: [0.6, 0.8, 0.95],
    queueStrategy: [0, 2, 3],
    dispatchDepth: [2, 4, 8],
  },
};

/** Seeds of the search; none of them is one of the published seeds, which the other tables use. */
export const searchSeeds: readonly number[] = [11, 23];

/** All combinations of the values of a grid; the first is empty: the policy's defaults. */
export function combinationsOf(grid: ParameterGrid): Record<string, number>[] {
  let combinations: Record<string, number>[] = [{}];
  for (const [name, values] of Object.entries(grid)) {
    combinations = combinations.flatMap((one) => values.map((value) => ({ ...one, [name]: value })));
  }
  return Object.keys(grid).length === 0 ? combinations : [{}, ...combinations];
}
