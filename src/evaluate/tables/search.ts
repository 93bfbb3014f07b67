/**
 * Whether the other systems do better under other parameters than their defaults here.
 */
import type { ClusterPolicy } from '../../simulate/options.js';
import type { Grid } from '../report.js';
import { combinationsOf, searchGrid, searchSeeds } from '../search-grid.js';
import type { Estimate } from '../statistics.js';
import { systemsOf, variantOf, type System } from '../systems.js';
import { completion, groupOf, loadCases, loadsOf, mixes, play, setupOf, type Outcomes, type Table } from '../table.js';

const loads = [0.9, 1.1];

/** Combinations that the table shows of each policy. */
const shown = 3;

interface Candidate {
  system: System;
  text: string;
  /** Completion time / that with the defaults, over all mixes and loads. */
  ratio: Estimate;
}

/** `saga evaluate search` */
export const searchTable: Table = {
  name: 'search',
  title: 'Parameters of the other systems',
  shows: 'completion time of the other systems over a grid of their parameters, two loads, seeds of its own',
  minutes: 7,
  async run(context) {
    const seeds = context.quick ? searchSeeds.slice(0, 1) : searchSeeds;
    const half = { ...context, tasks: context.quick ? context.tasks : Math.ceil(context.tasks / 2) };
    // Half the tasks saturate a cluster of half the workers.
    half.cluster = { ...context.cluster, workers: Math.max(1, context.cluster.workers / (context.quick ? 1 : 2)) };
    const played = loadsOf(context, loads);
    const groups = mixes.flatMap((mix) => played.map((load) => groupOf(mix, load)));
    const policies = Object.keys(searchGrid).filter((policy) => systemsOf([policy]).length > 0);
    const candidates: { policy: string; systems: System[] }[] = policies.map((policy) => {
      const combinations = combinationsOf(searchGrid[policy as ClusterPolicy] ?? {});
      const wanted = context.quick ? combinations.slice(0, 2) : combinations;
      return {
        policy,
        systems: wanted.flatMap((parameters) => variantOf(policy, `${policy} ${textOf(parameters)}`, { parameters })),
      };
    });
    const outcomes = await play(
      half,
      'search',
      loadCases(
        half,
        mixes,
        played,
        candidates.flatMap(({ systems }) => systems),
        seeds,
      ),
    );
    const ranked = candidates.map(({ policy, systems }) => ({ policy, found: ranking(outcomes, groups, systems) }));
    return {
      table: 'search',
      title: this.title,
      setup: setupOf(half, mixes, seeds),
      goals: [],
      grids: ranked.map(({ policy, found }) => gridOf(policy, found)),
      notes: [
        'Ratios are geometric means over both mixes and the loads, paired by seed. The defaults of each policy are those that the other tables use.',
        'The seeds are none of those on which systems are compared.',
      ],
      chart: {
        kind: 'bars',
        chart: {
          title: this.title,
          subtitle: 'Completion time of the best combination of the grid / that of the defaults',
          panels: [
            {
              title: 'Best combination',
              xTitle: 'completion time / that with the defaults',
              digits: 3,
              reference: { name: 'defaults', value: 1 },
              bars: ranked.flatMap(({ policy, found }) => {
                const best = found[0];
                return best === undefined
                  ? []
                  : [{ label: policy, value: best.ratio.mean, interval: best.ratio.interval }];
              }),
            },
          ],
        },
      },
    };
  },
};

/** Candidates from the best to the worst. The first system given is that with the defaults. */
function ranking(outcomes: Outcomes, groups: readonly string[], systems: readonly System[]): Candidate[] {
  const base = systems[0]?.name ?? '';
  return systems
    .flatMap((system) => {
      const ratio = outcomes.pooledRatio(groups, system.name, base, completion);
      return ratio === null ? [] : [{ system, text: textOf(system.parameters ?? {}), ratio }];
    })
    .sort((left, right) => left.ratio.mean - right.ratio.mean);
}

function gridOf(policy: string, found: readonly Candidate[]): Grid {
  const defaults = found.findIndex(({ text }) => text === textOf({}));
  return {
    title: `${policy}: ${found.length} combinations, the defaults are number ${defaults + 1}`,
    columns: [
      { key: 'rank', head: 'rank', digits: 0 },
      { key: 'parameters', head: 'parameters' },
      { key: 'ratio', head: 'completion time / defaults', digits: 3 },
    ],
    rows: found.flatMap(({ text, ratio }, index) =>
      index < shown || index === defaults || index === found.length - 1
        ? [{ rank: index + 1, parameters: text, ratio }]
        : [],
    ),
  };
}

function textOf(parameters: Readonly<Record<string, number>>): string {
  const entries = Object.entries(parameters);
  return entries.length === 0 ? 'defaults' : entries.map(([name, value]) => `${name}=${value}`).join(' ');
}
