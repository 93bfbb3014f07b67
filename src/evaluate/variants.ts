/**
 * Variants of one system side by side: completion times, and how much each differs from the base.
 */
import type { Grid, TableChart } from './report.js';
import { estimateOf, meanOf, type Estimate } from './statistics.js';
import type { System } from './systems.js';
import { completion, type Outcomes } from './table.js';

/** A grid of variants in one group of outcomes: completion time, change against the base, and what explains it. */
export function variantGrid(
  outcomes: Outcomes,
  group: string,
  title: string,
  base: string,
  variants: readonly System[],
): Grid {
  return {
    title,
    columns: [
      { key: 'system', head: 'system' },
      { key: 'seconds', head: 'mean s', digits: 1 },
      { key: 'change', head: `change against ${base}`, percent: true, digits: 1 },
      { key: 'p95', head: 'p95 s', digits: 0 },
      { key: 'hits', head: 'hit rate', percent: true, digits: 1 },
      { key: 'regenerated', head: 'regenerated tokens', scaled: true },
      { key: 'throughput', head: 'tokens/s', digits: 0 },
    ],
    rows: variants.map(({ name }) => ({
      system: name,
      seconds: estimateOf(outcomes.figures(group, name, completion) as number[]),
      change: name === base ? null : changeOf(outcomes, [group], name, base),
      p95: meanOf(outcomes.figures(group, name, (one) => one.taskCompletionSeconds.p95) as number[]),
      hits: meanOf(outcomes.figures(group, name, (one) => one.prefixHitRate) as number[]),
      regenerated: meanOf(outcomes.figures(group, name, (one) => one.regeneratedTokens) as number[]),
      throughput: meanOf(outcomes.figures(group, name, (one) => one.throughputTokensPerSecond) as number[]),
    })),
  };
}

/** By what share a variant's completion time differs from the base's: 0.1 is 10 % longer. Null where one was not played. */
export function changeOf(
  outcomes: Outcomes,
  groups: readonly string[],
  variant: string,
  base: string,
): Estimate | null {
  const ratio = outcomes.pooledRatio(groups, variant, base, completion);
  if (ratio === null) return null;
  return { mean: ratio.mean - 1, interval: ratio.interval && [ratio.interval[0] - 1, ratio.interval[1] - 1] };
}

/** Bars of the change of each variant against the base, in per cent, one panel a group. */
export function changeChart(
  outcomes: Outcomes,
  groups: readonly string[],
  title: string,
  subtitle: string,
  base: string,
  variants: readonly System[],
): TableChart {
  return {
    kind: 'bars',
    chart: {
      title,
      subtitle,
      sameScale: true,
      panels: groups.map((group) => ({
        title: group.replace(/ ([\d.]+)$/, ', load $1'),
        xTitle: `mean task completion time against ${base}, per cent longer`,
        digits: 1,
        bars: variants.flatMap(({ name }) => {
          const change = name === base ? null : changeOf(outcomes, [group], name, base);
          if (change === null) return [];
          const interval = change.interval && ([100 * change.interval[0], 100 * change.interval[1]] as const);
          return [{ label: name, value: 100 * change.mean, interval }];
        }),
      })),
    },
  };
}
