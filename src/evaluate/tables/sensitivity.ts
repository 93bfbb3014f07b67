/**
 * Sensitivity of the paper's system to its parameters, each alone at the ends of the range that the paper names.
 */
import { systemsOf, variantOf } from '../systems.js';
import { groupOf, loadCases, play, seedsText, setupOf, type Table } from '../table.js';
import { changeChart, variantGrid } from '../variants.js';

const base = 'saga-paper';
const mix = 'swe-bench';
const load = 1.1;

/** Parameters of saga-paper with the range of the paper's Table 9 and the largest change that it found. */
export const paperRanges: readonly { parameter: string; low: number; high: number; paper: string }[] = [
  { parameter: 'recency', low: 0.2, high: 0.4, paper: '< 5 %' },
  { parameter: 'reuse', low: 0.4, high: 0.6, paper: '< 8 %' },
  { parameter: 'size', low: 0.1, high: 0.3, paper: '< 3 %' },
  { parameter: 'affinityLoadLimit', low: 0.6, high: 0.95, paper: '< 5 %' },
  { parameter: 'lowPressure', low: 0.6, high: 0.8, paper: '< 4 %' },
  { parameter: 'highPressure', low: 0.85, high: 0.95, paper: '< 6 %' },
  { parameter: 'idleSeconds', low: 0.05, high: 0.2, paper: '< 7 %' },
  { parameter: 'stealRatio', low: 1.5, high: 3, paper: '< 4 %' },
  { parameter: 'longestTtlSeconds', low: 120, high: 600, paper: '< 3 %' },
  { parameter: 'confidence', low: 0.5, high: 0.9, paper: '< 6 %' },
];

/** `saga evaluate sensitivity` */
export const sensitivityTable: Table = {
  name: 'sensitivity',
  title: "Sensitivity of the paper's system",
  shows: 'saga-paper with each parameter at both ends of the range of the paper, swe-bench, load 1.1, three seeds',
  minutes: 3,
  async run(context) {
    const variants = [
      ...systemsOf([base]),
      ...paperRanges.flatMap(({ parameter, low, high }) =>
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
      const range = paperRanges.find(({ parameter }) => (row['system'] as string).startsWith(`${parameter} `));
      row['paper'] = range?.paper ?? null;
    }
    return {
      table: 'sensitivity',
      title: this.title,
      setup: setupOf(context, [mix], context.sweepSeeds),
      goals: [],
      grids: [grid],
      notes: ["One parameter at a time; the others keep the paper's defaults."],
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
