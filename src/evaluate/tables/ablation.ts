/**
 * What each mechanism is worth: the whole system, and the system without each.
 */
import { partsOfPolicy } from '../../simulate/options.js';
import { ours, systemsOf, variantOf } from '../systems.js';
import { groupOf, loadCases, loadsOf, mixes, play, seedsText, setupOf, type Table } from '../table.js';
import { changeChart, variantGrid } from '../variants.js';

const loads = [0.9, 1.1];

/** `saga evaluate ablation` */
export const ablationTable: Table = {
  name: 'ablation',
  title: 'What each mechanism is worth',
  shows: 'saga with each mechanism off, both mixes, loads 0.9 and 1.1, three seeds',
  minutes: 4,
  async run(context) {
    const played = loadsOf(context, loads);
    const variants = [
      ...systemsOf([ours]),
      ...(partsOfPolicy[ours] ?? []).flatMap((part) => variantOf(ours, `without ${part}`, { without: [part] })),
      ...systemsOf(['affinity']),
    ];
    const outcomes = await play(context, 'ablation', loadCases(context, mixes, played, variants, context.sweepSeeds));
    const groups = mixes.flatMap((mix) => played.map((load) => groupOf(mix, load)));
    return {
      table: 'ablation',
      title: this.title,
      setup: setupOf(context, mixes, context.sweepSeeds),
      goals: [],
      grids: mixes.flatMap((mix) =>
        played.map((load) => variantGrid(outcomes, groupOf(mix, load), `${mix}, load ${load}`, ours, variants)),
      ),
      notes: [
        'Each row leaves out one part. Parts overlap, so the changes do not add up; a change whose interval holds 0 is no change.',
      ],
      chart: changeChart(
        outcomes,
        groups,
        this.title,
        `Completion time with one part off, mean over ${seedsText(context.sweepSeeds)}`,
        ours,
        variants.filter(({ name }) => name !== 'affinity'),
      ),
    };
  },
};
