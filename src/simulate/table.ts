/**
 * Reports as tables for people: aligned columns, numbers to the right, units in the heads.
 */
import type { CacheReport, ClusterReport } from './run.js';

/** A column: its head, and whether its cells stand to the right. */
interface Column {
  head: string;
  right: boolean;
}

function left(head: string): Column {
  return { head, right: false };
}

function right(head: string): Column {
  return { head, right: true };
}

/** Lays out rows under heads; a blank line where the first cell of a row differs from the one before. */
export function layOut(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const widths = columns.map((column, index) =>
    Math.max(column.head.length, ...rows.map((row) => (row[index] ?? '').length)),
  );
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, index) =>
        columns[index]?.right === true ? cell.padStart(widths[index] ?? 0) : cell.padEnd(widths[index] ?? 0),
      )
      .join('  ')
      .trimEnd();
  const lines = [line(columns.map((column) => column.head)), widths.map((width) => '-'.repeat(width)).join('  ')];
  rows.forEach((row, index) => {
    if (index > 0 && row[0] !== rows[index - 1]?.[0]) lines.push('');
    lines.push(line(row));
  });
  return lines.join('\n');
}

/** The table of a report. */
export function tableOf(report: CacheReport | ClusterReport): string {
  return report.schema === 'saga.simulate.cache/1' ? cacheTable(report) : clusterTable(report);
}

function cacheTable(report: CacheReport): string {
  const pageTokens = Number(report.options['pageTokens']);
  const timed = report.options['timing'] === true;
  const columns = [
    right('cache'),
    right('pages'),
    left('policy'),
    right('hit rate %'),
    right('misses / optimum'),
    right('cost / optimum'),
    right('missed pages'),
    right('evicted pages'),
    ...(timed ? [right('policy ns/page')] : []),
  ];
  const rows = report.results.map((row) => [
    `${row.cacheShare === null ? '' : `${row.cacheShare} % = `}${tokensText(row.cachePages * pageTokens)}`,
    count(row.cachePages),
    row.policy,
    (100 * row.prefixHitRate).toFixed(2),
    row.beladyRatio.toFixed(3),
    row.costRatio.toFixed(3),
    count(row.missedPages),
    count(row.evictedPages),
    ...(timed ? [row.decisionNanoseconds?.toFixed(1) ?? '-'] : []),
  ]);
  const requested = report.results[0]?.requestedPages ?? 0;
  return [
    `${count(report.requests)} requests, ${count(requested)} pages of ${pageTokens} tokens asked for, ${count(report.distinctPages)} distinct in the input`,
    '',
    layOut(columns, rows),
  ].join('\n');
}

function clusterTable(report: ClusterReport): string {
  const columns = [
    right('load'),
    right('tasks/s'),
    left('policy'),
    right('TCT mean s'),
    right('p50 s'),
    right('p95 s'),
    right('p99 s'),
    right('x ideal'),
    right('hit rate %'),
    right('misses / optimum'),
    right('regenerated'),
    right('KV useful %'),
    right('SLO %'),
    right('tokens/s'),
  ];
  const rows = report.results.map((row) => [
    row.load === null ? (row.liveTasks === null ? '-' : `${count(row.liveTasks)} live`) : String(row.load),
    row.rateTasksPerSecond === null ? '-' : row.rateTasksPerSecond.toPrecision(4),
    row.policy,
    row.taskCompletionSeconds.mean.toFixed(1),
    row.taskCompletionSeconds.p50.toFixed(1),
    row.taskCompletionSeconds.p95.toFixed(1),
    row.taskCompletionSeconds.p99.toFixed(1),
    (row.taskCompletionSeconds.mean / row.idealSeconds).toFixed(2),
    (100 * row.prefixHitRate).toFixed(2),
    row.beladyRatio.toFixed(3),
    tokensText(row.regeneratedTokens),
    (100 * row.memoryUtilization).toFixed(1),
    (100 * row.sloAttainment).toFixed(1),
    count(Math.round(row.throughputTokensPerSecond)),
  ]);
  const head = [`${count(report.tasks)} tasks, ${count(report.requests)} calls`];
  if (report.saturationTasksPerSecond !== null) {
    head.push(
      `load 1 = ${report.saturationTasksPerSecond.toPrecision(4)} tasks/s, where affinity takes 3 x the ideal time`,
    );
  }
  for (const [policy, rate] of Object.entries(report.saturationByPolicy)) {
    head.push(`${policy} saturates at ${rate.toPrecision(4)} tasks/s`);
  }
  return [...head, '', layOut(columns, rows)].join('\n');
}

function count(value: number): string {
  return value.toLocaleString('en-US');
}

/** Tokens to three figures: `1.99 M`, `448 K`. */
export function tokensText(tokens: number): string {
  const scaled = (value: number, unit: string): string =>
    `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ${unit}`;
  if (tokens >= 1e9) return scaled(tokens / 1e9, 'G');
  if (tokens >= 1e6) return scaled(tokens / 1e6, 'M');
  if (tokens >= 1e3) return scaled(tokens / 1e3, 'K');
  return String(tokens);
}
