/**
 * Tool times that vary more and more at equal means.
 */
import { meanOf } from '../statistics.js';
import { systemsOf } from '../systems.js';
import { completion, play, seedsText, setupOf, tasksOf, type GroupedCase, type Table } from '../table.js';
import { variantGrid } from '../variants.js';
import { paperSource } from '../workloads.js';

const variations = [0.5, 1, 1.5, 2, 3];
const load = 0.9;
const mix = 'swe-bench';
const base = 'affinity';

/** `saga evaluate tool-variance` */
export const toolVarianceTable: Table = {
  name: 'tool-variance',
  title: 'Variation of tool times',
  shows:
    'completion time where tool times have a coefficient of variation of 0.5 to 3, swe-bench, load 0.9, three seeds',
  minutes: 3,
  async run(context) {
    const played = systemsOf([base, 'ttl', 'saga-paper', 'saga']);
    const wanted = context.quick ? [0.5, 3] : variations;
    const seeds = context.sweepSeeds;
    const outcomes = await play(
      context,
      'tool-variance',
      wanted.flatMap((variation) =>
        seeds.flatMap((seed) =>
          played.map((system): GroupedCase => ({
            group: String(variation),
            workload: paperSource(mix, tasksOf(context, mix), seed, variation),
            cluster: context.cluster,
            system,
            arrivals: { load },
            seed,
          })),
        ),
      ),
    );
    return {
      table: 'tool-variance',
      title: this.title,
      setup: setupOf(context, [mix], seeds),
      goals: [],
      grids: wanted.map((variation) =>
        variantGrid(outcomes, String(variation), `coefficient of variation ${variation}`, base, played),
      ),
      notes: [
        'The log-normals of the tools keep their means and get the sigma of that variation. Load 0.9 of the saturation rate of affinity on the same tasks.',
      ],
      chart: {
        kind: 'lines',
        chart: {
          title: this.title,
          subtitle: `${mix}, load ${load}, mean over ${seedsText(seeds)}`,
          xTitle: 'coefficient of variation of tool times',
          xLabels: wanted.map(String),
          panels: [
            {
              title: 'Mean task completion time',
              yTitle: 'seconds',
              floor: 0,
              series: played.map(({ name }) => ({
                name,
                values: wanted.map((one) => meanOf(outcomes.figures(String(one), name, completion) as number[])),
              })),
            },
            {
              title: 'Misses against the offline optimum',
              yTitle: 'missed pages / those of the optimum',
              floor: 1,
              reference: { name: 'optimum', value: 1 },
              series: played.map(({ name }) => ({
                name,
                values: wanted.map((one) =>
                  meanOf(outcomes.figures(String(one), name, (outcome) => outcome.beladyRatio) as number[]),
                ),
              })),
            },
          ],
        },
      },
    };
  },
};
