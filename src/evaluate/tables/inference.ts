/**
 * What declarations are worth: the workflow's graph declared, nothing declared, and no prediction at all.
 */
import { goalOf } from '../report.js';
import { ours, systemsOf, variantOf } from '../systems.js';
import { groupOf, loadCases, loadsOf, mixes, play, seedsText, setupOf, type Table } from '../table.js';
import { changeChart, changeOf, variantGrid } from '../variants.js';

/** Loads, and how much longer tasks may take at most where nothing is declared. */
const limits = [
  { load: 0.9, limit: 0.05 },
  { load: 1.1, limit: 0.15 },
] as const;

const inferred = 'nothing declared';

/** `saga evaluate inference` */
export const inferenceTable: Table = {
  name: 'inference',
  title: 'Declared graphs against inference',
  shows: 'saga told of the graph, told nothing, and without prediction, loads 0.9 and 1.1, three seeds',
  minutes: 2,
  async run(context) {
    const variants = [
      ...systemsOf([ours]),
      ...variantOf(ours, inferred, { hints: 'none' }),
      ...variantOf(ours, 'without prediction', { hints: 'none', without: ['prediction'] }),
    ];
    const played = loadsOf(
      context,
      limits.map(({ load }) => load),
    );
    const outcomes = await play(context, 'inference', loadCases(context, mixes, played, variants, context.sweepSeeds));
    return {
      table: 'inference',
      title: this.title,
      setup: setupOf(context, mixes, context.sweepSeeds),
      goals: limits.map(({ load, limit }) =>
        goalOf(
          `completion time, nothing declared against graph declared, load ${load}, geometric mean: longer by`,
          'at most',
          limit,
          changeOf(
            outcomes,
            mixes.map((mix) => groupOf(mix, load)),
            inferred,
            ours,
          ),
          { percent: true, digits: 1 },
        ),
      ),
      grids: mixes.flatMap((mix) =>
        played.map((load) => variantGrid(outcomes, groupOf(mix, load), `${mix}, load ${load}`, ours, variants)),
      ),
      notes: [
        `${ours} is told of the graph of each task's class when the task arrives, never of the task's own draws.`,
      ],
      chart: changeChart(
        outcomes,
        mixes.flatMap((mix) => played.map((load) => groupOf(mix, load))),
        this.title,
        `Mean over ${seedsText(context.sweepSeeds)}`,
        ours,
        variants,
      ),
    };
  },
};
