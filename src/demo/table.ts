/** The result of a demonstration, for people. */
import type { RunResult } from './comparison.js';
import { grouped, percent } from './view.js';

/** Lateness beyond this share of a call's mean latency is warned of. */
const mostLateShare = 0.05;

const columns: readonly [head: string, unit: string, cell: (result: RunResult) => string][] = [
  ['policy', '', ({ policy }) => policy],
  ['task time', 'mean s', ({ played }) => played.completion.mean.toFixed(0)],
  ['task time', 'p95 s', ({ played }) => played.completion.p95.toFixed(0)],
  ['no gaps', 'mean s', ({ played }) => played.withoutGaps.mean.toFixed(0)],
  ['hit rate', '', ({ cachedTokens, queriedTokens }) => percent(cachedTokens / queriedTokens)],
  ['computed again', 'tokens', ({ played }) => grouped(played.recomputedTokens)],
  ['GPU busy', 's', ({ busySeconds }) => grouped(busySeconds)],
  ['preempted', 'calls', ({ preemptions }) => grouped(preemptions)],
];

/** One row a run. */
export function tableOf(results: readonly RunResult[]): string {
  const rows = [
    columns.map(([head]) => head),
    columns.map(([, unit]) => unit),
    ...results.map((result) => columns.map(([, , cell]) => cell(result))),
  ];
  const widths = columns.map((_, at) => Math.max(...rows.map((row) => (row[at] as string).length)));
  const lines = rows.map((row) =>
    row
      .map((cell, at) => (at === 0 ? cell.padEnd(widths[at] as number) : cell.padStart(widths[at] as number)))
      .join('  ')
      .trimEnd(),
  );
  lines.splice(2, 0, widths.map((width) => '-'.repeat(width)).join('  '));
  return lines.join('\n');
}

/** How SAGA compares with the others, whichever way. */
export function verdictOf(results: readonly RunResult[]): string {
  const saga = results.find(({ policy }) => policy === 'saga');
  if (saga === undefined) return '';
  return results
    .filter((other) => other !== saga)
    .map((other) => {
      const mean = other.played.completion.mean / saga.played.completion.mean;
      const p95 = other.played.completion.p95 / saga.played.completion.p95;
      return (
        `Against ${other.policy}, tasks under saga take ${comparison(mean)} on average, ${comparison(p95)} at p95, ` +
        `and ${grouped(Math.abs(other.played.recomputedTokens - saga.played.recomputedTokens))} tokens ` +
        `${other.played.recomputedTokens >= saga.played.recomputedTokens ? 'fewer' : 'more'} are computed again.`
      );
    })
    .join('\n');
}

/** `ratio`: the other's time by SAGA's. */
function comparison(ratio: number): string {
  return ratio >= 1 ? `${ratio.toFixed(2)} times less` : `${(1 / ratio).toFixed(2)} times more`;
}

/** What would make the figures wrong; none: nothing. */
export function warningsOf(results: readonly RunResult[]): string[] {
  return results.flatMap(({ policy, played, stepLateSeconds }) => {
    const warnings: string[] = [];
    if (played.failedTasks > 0) {
      const { error } = played.tasks.find((task) => task.error !== undefined) as { error: string };
      warnings.push(`${policy}: ${played.failedTasks} tasks failed (${error}); the figures are of the others`);
    }
    const late = played.lateness.mean + (Number.isFinite(stepLateSeconds) ? stepLateSeconds : 0);
    if (late > mostLateShare * played.latency.mean)
      warnings.push(
        `${policy}: this machine does not keep up: calls and steps are late by ${late.toFixed(1)} s on average, ` +
          `${percent(late / played.latency.mean)} of what a call takes; do not believe the times`,
      );
    return warnings;
  });
}
