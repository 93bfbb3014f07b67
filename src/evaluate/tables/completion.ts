/**
 * Task completion time of every system on both mixes, and the goals.
 */
import { goalOf, type Cell, type Grid, type TableReport } from '../report.js';
import { estimateOf, geometricMean, meanOf, pooledRatio } from '../statistics.js';
import { ours, reference, systems } from '../systems.js';
import {
  againstBest,
  completion,
  groupOf,
  loadCases,
  loadsOf,
  mixes,
  play,
  ratioOfSums,
  seedsText,
  setupOf,
  type Context,
  type Outcomes,
  type Table,
} from '../table.js';

const loads = [0.5, 0.8, 0.9, 1, 1.1];

/** The load at which the headline is measured. */
const headline = 1.1;

/** `saga evaluate completion` */
export const completionTable: Table = {
  name: 'completion',
  title: 'Task completion time by system',
  shows: 'mean completion time on swe-bench and web-arena at loads 0.5 to 1.1, ten seeds, with the goals',
  minutes: 14,
  async run(context) {
    const played = loadsOf(context, loads);
    const outcomes = await play(context, 'completion', loadCases(context, mixes, played, systems, context.seeds));
    return report(context, outcomes, played);
  },
};

function report(context: Context, outcomes: Outcomes, played: readonly number[]): TableReport {
  return {
    table: 'completion',
    title: completionTable.title,
    setup: setupOf(context, mixes, context.seeds),
    goals: goals(outcomes, played),
    grids: [
      ...mixes.map((mix) => completionGrid(outcomes, mix, played)),
      ...mixes.map((mix) => detailGrid(outcomes, mix)),
      rivalGrid(outcomes, played),
    ],
    notes: [
      "Figures in brackets are 95 % confidence intervals over seeds (Student's t). Ratios are paired by seed and averaged as logarithms.",
      'The best other is the rival (kv-router, continuum, thunder-agent, kv-flow, saga-paper) with the smallest mean at that mix and load.',
    ],
    chart: {
      kind: 'bars',
      chart: {
        title: completionTable.title,
        subtitle: `Load ${headline}, mean over ${seedsText(context.seeds)} with 95 % confidence intervals`,
        panels: mixes.map((mix) => ({
          title: mix,
          xTitle: 'mean task completion time, seconds',
          digits: 0,
          bars: systems.map((system) => {
            const values = outcomes.figures(groupOf(mix, headline), system.name, completion) as number[];
            const { mean, interval } = estimateOf(values);
            return { label: system.name, value: mean, interval, ours: system.ours === true };
          }),
        })),
      },
    },
  };
}

function goals(outcomes: Outcomes, played: readonly number[]): TableReport['goals'] {
  const groups = mixes.map((mix) => groupOf(mix, headline));
  const speedup = outcomes.pooledRatio(groups, reference, ours, completion);
  const throughput = outcomes.pooledRatio(groups, ours, reference, (one) => one.throughputTokensPerSecond);
  const bestPairs = groups.map((group) => againstBest(outcomes, group, completion)?.pair);
  const everywhere = mixes.flatMap((mix) =>
    played.map((load) => {
      const pair = againstBest(outcomes, groupOf(mix, load), completion)?.pair;
      return pair === undefined ? Number.NaN : pooledRatio([pair]).mean;
    }),
  );
  return [
    goalOf(`completion time, ${reference} / ${ours} at load ${headline}, geometric mean`, 'at least', 1.64, speedup),
    goalOf(
      `regenerated tokens, ${ours} / ${reference} at load ${headline}, geometric mean`,
      'at most',
      0.5,
      ratioOfSums(outcomes, groups, ours, reference, (one) => one.regeneratedTokens),
    ),
    goalOf(`throughput, ${ours} / ${reference} at load ${headline}, geometric mean`, 'at least', 1, throughput),
    goalOf(
      `completion time, ${ours} / best other, largest of all mixes and loads`,
      'at most',
      1.02,
      everywhere.some(Number.isNaN) ? null : Math.max(...everywhere),
    ),
    goalOf(
      `completion time, ${ours} / best other at load ${headline}, geometric mean`,
      'at most',
      0.95,
      bestPairs.includes(undefined) ? null : pooledRatio(bestPairs.filter((pair) => pair !== undefined)),
    ),
  ];
}

function completionGrid(outcomes: Outcomes, mix: string, played: readonly number[]): Grid {
  return {
    title: `${mix}: mean task completion time in seconds, by load`,
    columns: [
      { key: 'system', head: 'system' },
      ...played.map((load) => ({ key: `load ${load}`, head: `load ${load}`, digits: 1 })),
      { key: 'speedup', head: `against ${reference} at ${headline}`, digits: 3 },
    ],
    rows: systems.map(({ name }) => ({
      system: name,
      ...Object.fromEntries(
        played.map((load): [string, Cell] => [
          `load ${load}`,
          estimateOf(outcomes.figures(groupOf(mix, load), name, completion) as number[]),
        ]),
      ),
      speedup: outcomes.ratio(groupOf(mix, headline), reference, name, completion),
    })),
  };
}

function detailGrid(outcomes: Outcomes, mix: string): Grid {
  const group = groupOf(mix, headline);
  return {
    title: `${mix}, load ${headline}: what the systems do, means over seeds`,
    columns: [
      { key: 'system', head: 'system' },
      { key: 'p95', head: 'p95 s', digits: 0 },
      { key: 'p99', head: 'p99 s', digits: 0 },
      { key: 'ideal', head: 'x ideal' },
      { key: 'hits', head: 'hit rate', percent: true, digits: 1 },
      { key: 'optimum', head: 'misses / optimum', digits: 3 },
      { key: 'regenerated', head: 'regenerated tokens', scaled: true },
      { key: 'useful', head: 'KV useful', percent: true, digits: 1 },
      { key: 'slo', head: 'SLO', percent: true, digits: 1 },
      { key: 'throughput', head: 'tokens/s', digits: 0 },
      { key: 'preemptions', head: 'preemptions', digits: 0 },
    ],
    rows: systems.map(({ name }) => {
      const mean = (figure: Parameters<Outcomes['figures']>[2]): number =>
        meanOf(outcomes.figures(group, name, figure) as number[]);
      return {
        system: name,
        p95: mean((one) => one.taskCompletionSeconds.p95),
        p99: mean((one) => one.taskCompletionSeconds.p99),
        ideal: mean((one) => one.taskCompletionSeconds.mean / one.idealSeconds),
        hits: mean((one) => one.prefixHitRate),
        optimum: geometricMean(outcomes.figures(group, name, (one) => one.beladyRatio) as number[]),
        regenerated: mean((one) => one.regeneratedTokens),
        useful: mean((one) => one.memoryUtilization),
        slo: mean((one) => one.sloAttainment),
        throughput: mean((one) => one.throughputTokensPerSecond),
        preemptions: mean((one) => one.preemptions),
      };
    }),
  };
}

function rivalGrid(outcomes: Outcomes, played: readonly number[]): Grid {
  return {
    title: `${ours} against the best other`,
    columns: [
      { key: 'mix', head: 'workload' },
      { key: 'load', head: 'load', digits: 1 },
      { key: 'rival', head: 'best other' },
      { key: 'seconds', head: 'its mean s', digits: 1 },
      { key: 'ratio', head: `${ours} / best other`, digits: 3 },
    ],
    rows: mixes.flatMap((mix) =>
      played.flatMap((load) => {
        const best = againstBest(outcomes, groupOf(mix, load), completion);
        if (best === undefined) return [];
        return [{ mix, load, rival: best.rival, seconds: meanOf(best.pair[1]), ratio: pooledRatio([best.pair]) }];
      }),
    ),
  };
}
