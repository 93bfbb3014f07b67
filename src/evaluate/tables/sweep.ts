/**
 * Mean task completion time from an idle cluster to one past saturation.
 */
import type { Cell } from '../report.js';
import { estimateOf, meanOf } from '../statistics.js';
import { systems } from '../systems.js';
import { completion, groupOf, loadCases, loadsOf, mixes, play, seedsText, setupOf, type Table } from '../table.js';

const loads = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4];

/** `saga evaluate sweep` */
export const sweepTable: Table = {
  name: 'sweep',
  title: 'Task completion time from idle to past saturation',
  shows: 'mean completion time of every system over ten loads from 0.1 to 1.4, three seeds',
  minutes: 5,
  async run(context) {
    const played = loadsOf(context, loads);
    const outcomes = await play(context, 'sweep', loadCases(context, mixes, played, systems, context.sweepSeeds));
    return {
      table: 'sweep',
      title: this.title,
      setup: setupOf(context, mixes, context.sweepSeeds),
      goals: [],
      grids: mixes.map((mix) => ({
        title: `${mix}: mean task completion time in seconds, by load`,
        columns: [
          { key: 'system', head: 'system' },
          ...played.map((load) => ({ key: `load ${load}`, head: String(load), digits: 1 })),
        ],
        rows: systems.map(({ name }) => ({
          system: name,
          ...Object.fromEntries(
            played.map((load): [string, Cell] => [
              `load ${load}`,
              estimateOf(outcomes.figures(groupOf(mix, load), name, completion) as number[]).mean,
            ]),
          ),
        })),
      })),
      notes: ['Load 1 is the rate at which affinity takes 3 times the ideal time, for that workload and seed.'],
      chart: {
        kind: 'lines',
        chart: {
          title: this.title,
          subtitle: `Mean over ${seedsText(context.sweepSeeds)}, ${context.tasks} tasks each`,
          xTitle: 'load (1 = where affinity takes 3 times the ideal time)',
          xLabels: played.map(String),
          panels: mixes.map((mix) => ({
            title: mix,
            yTitle: 'mean task completion time, seconds',
            floor: 'log',
            series: systems.map(({ name }) => ({
              name,
              values: played.map((load) => meanOf(outcomes.figures(groupOf(mix, load), name, completion) as number[])),
            })),
          })),
        },
      },
    };
  },
};
