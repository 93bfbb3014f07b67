/**
 * Share of the KV room that holds what will be used, in a closed loop that fills it.
 */
import { goalOf } from '../report.js';
import { estimateOf, meanOf } from '../statistics.js';
import { ours, reference, systems } from '../systems.js';
import { mixes, play, seedsText, setupOf, sourceOf, type GroupedCase, type Table } from '../table.js';

const pressure = 1;

/** `saga evaluate memory` */
export const memoryTable: Table = {
  name: 'memory',
  title: 'Useful share of the KV memory',
  shows:
    'time-weighted share of the KV room that a running or a later call uses, closed loop at pressure 1, three seeds',
  minutes: 3,
  async run(context) {
    const seeds = context.sweepSeeds;
    const outcomes = await play(
      context,
      'memory',
      mixes.flatMap((mix) =>
        seeds.flatMap((seed) =>
          systems.map((system): GroupedCase => ({
            group: mix,
            workload: sourceOf(context, mix, seed),
            cluster: context.cluster,
            system,
            arrivals: { pressure },
            seed,
          })),
        ),
      ),
    );
    const useful = (one: { memoryUtilization: number }): number => one.memoryUtilization;
    return {
      table: 'memory',
      title: this.title,
      setup: setupOf(context, mixes, seeds),
      goals: [
        goalOf(
          `useful share of the KV room, ${ours} / ${reference}, geometric mean`,
          'at least',
          1.22,
          outcomes.pooledRatio(mixes, ours, reference, useful),
        ),
      ],
      grids: mixes.map((mix) => ({
        title: mix,
        columns: [
          { key: 'system', head: 'system' },
          { key: 'useful', head: 'KV useful', percent: true, digits: 1 },
          { key: 'ratio', head: `against ${reference}`, digits: 3 },
          { key: 'hits', head: 'hit rate', percent: true, digits: 1 },
          { key: 'throughput', head: 'tokens/s', digits: 0 },
        ],
        rows: systems.map(({ name }) => ({
          system: name,
          useful: estimateOf(outcomes.figures(mix, name, useful) as number[]),
          ratio: outcomes.ratio(mix, name, reference, useful),
          hits: meanOf(outcomes.figures(mix, name, (one) => one.prefixHitRate) as number[]),
          throughput: meanOf(outcomes.figures(mix, name, (one) => one.throughputTokensPerSecond) as number[]),
        })),
      })),
      notes: [
        'Pressure 1: as many tasks live as fill the KV room of the cluster with the mean context of a call; each that ends is followed by the next.',
        'Useful is what a running call uses, or a later call of a task that has arrived will hit.',
      ],
      chart: {
        kind: 'bars',
        chart: {
          title: this.title,
          subtitle: `Closed loop, pressure ${pressure}, mean over ${seedsText(seeds)}`,
          panels: mixes.map((mix) => ({
            title: mix,
            xTitle: 'share of the KV room, per cent',
            digits: 1,
            bars: systems.map((system) => {
              const { mean, interval } = estimateOf(
                outcomes.figures(mix, system.name, (one) => 100 * one.memoryUtilization) as number[],
              );
              return { label: system.name, value: mean, interval, ours: system.ours === true };
            }),
          })),
        },
      },
    };
  },
};
