/**
 * What a workload looks like in numbers: to compare a generated one with a real one, and to tell the user what is played.
 */
import { promptKindNumber, callCount, taskCount, type WorkloadColumns } from './columns.js';

/** Value at a probability of a sample, by nearest rank: the smallest value that at least this share of the sample does not exceed. */
export function quantile(sorted: ArrayLike<number>, probability: number): number {
  if (sorted.length === 0) return Number.NaN;
  const rank = Math.ceil(probability * sorted.length) - 1;
  return sorted[Math.min(sorted.length - 1, Math.max(0, rank))] as number;
}

/** Some quantiles of a sample, and its mean. */
export interface Summary {
  count: number;
  mean: number;
  p10: number;
  p50: number;
  p90: number;
  p95: number;
  p99: number;
  max: number;
}

/** Summary of a sample; NaN throughout for an empty one. */
export function summarize(values: Iterable<number>): Summary {
  const sorted = Float64Array.from(values).sort();
  return {
    count: sorted.length,
    mean: sorted.reduce((sum, value) => sum + value, 0) / sorted.length,
    p10: quantile(sorted, 0.1),
    p50: quantile(sorted, 0.5),
    p90: quantile(sorted, 0.9),
    p95: quantile(sorted, 0.95),
    p99: quantile(sorted, 0.99),
    max: quantile(sorted, 1),
  };
}

/** Statistics of a workload. */
export interface WorkloadStatistics {
  tasks: number;
  calls: number;
  callsPerTask: Summary;
  firstPromptTokens: Summary;
  promptTokens: Summary;
  outputTokens: Summary;
  /** Recorded durations, without calls that have none. */
  callSeconds: Summary;
  /** Recorded gaps before calls that bring a tool's result. */
  toolGapSeconds: Summary;
  /** Recorded gaps before calls that bring a human's words. */
  userGapSeconds: Summary;
}

/** Computes the statistics; O(calls log calls). */
export function workloadStatistics(workload: WorkloadColumns): WorkloadStatistics {
  const first = workload.taskFirstCall;
  const tasks = taskCount(workload);
  const callsPerTask = Float64Array.from(
    { length: tasks },
    (_, task) => (first[task + 1] as number) - (first[task] as number),
  );
  const gapsOf = (kind: number): number[] =>
    Array.from(workload.callGapSeconds).filter((_, call) => workload.promptKind[call] === kind);
  return {
    tasks,
    calls: callCount(workload),
    callsPerTask: summarize(callsPerTask),
    firstPromptTokens: summarize(
      Array.from({ length: tasks }, (_, task) => workload.promptTokens[first[task] as number] as number),
    ),
    promptTokens: summarize(workload.promptTokens),
    outputTokens: summarize(workload.outputTokens),
    callSeconds: summarize(Array.from(workload.callSeconds ?? []).filter((seconds) => !Number.isNaN(seconds))),
    toolGapSeconds: summarize(gapsOf(promptKindNumber.tool)),
    userGapSeconds: summarize(gapsOf(promptKindNumber.user)),
  };
}
