/**
 * Sensitivity of the paper's system to its parameters, each alone at the ends of its range.
 */
import { systemsOf, variantOf } from '../systems.js';
import { groupOf, loadCases, play, seedsText, setupOf, type Table } from '../table.js';
import { changeChart, variantGrid } from '../variants.js';

const base = 'saga-paper';
const mix = 'swe-bench';
const load = 1.1;

/**
 * Parameters of saga-paper with a range: that of the paper's Table 9 with the largest change found there, or one around the
 * default where the paper has none.
 */
export const ranges: readonly { parameter: string; low: number; high: number; paper: string | null }[] = [
  { parameter: 'theta', low: 0.6, high: 0.95, paper: '< 5 %' },
  { parameter: 'idleSeconds', low: 0.05, high: 0.2, paper: '< 7 %' },
  { parameter: 'mostImbalance', low: 1.5, high: 3, paper: '< 4 %' },
  { parameter: 'dispatchDepth', low: 2, high: 8, paper: null },
  { parameter: 'preemptionSeconds', low: 0.25, high: 1, paper: null },
];

/** `saga evaluate sensitivity` */
export const sensitivityTable: Table = {
  name: 'sensitivity',
  title: "Sensitivity of the paper's system",
  shows: 'saga-paper with each parameter at both ends of its range, swe-bench, load 1.1, three seeds',
  minutes: 2,
  async run(context) {
    const variants = [
      ...systemsOf([base]),
      ...ranges.flatMap(({ parameter, low, high }) =>
        [low, high].flatMap((value) =>
          variantOf(base, `${parameter} ${value}`, { parameters: { [parameter]: value } }),
        ),
      ),
    ];
    const group = groupOf(mix, load);
    const outcomes = await play(
      context,
      'sensitivity',
      loadCases(context, [mix], [load], variants, context.sweepSeeds),
    );
    const grid = variantGrid(outcomes, group, `${mix}, load ${load}`, base, variants);
    grid.columns.push({ key: 'paper', head: 'largest change in the paper' });
    for (const row of grid.rows) {
      const range = ranges.find(({ parameter }) => (row['system'] as string).startsWith(`${parameter} `));
      row['paper'] = range?.paper ?? null;
    }
    return {
      table: 'sensitivity',
      title: this.title,
      setup: setupOf(context, [mix], context.sweepSeeds),
      goals: [],
      grids: [grid],
      notes: [
        "One parameter at a time; the others keep the paper's defaults.",
        'Weights of WA-LRU, pressure thresholds, the longest time to live and the confidence of the prefetch are constants of saga-paper here and are not varied.',
      ],
      chart: changeChart(
        outcomes,
        [group],
        this.title,
        `${mix}, load ${load}, mean over ${seedsText(context.sweepSeeds)}`,
        base,
        variants,
      ),
    };
  },
};
