/**
 * Order of execution: breadth first, depth first, and the mixture, as the paper's strategy table has them.
 */
import type { ClusterOutcome } from '../laboratory.js';
import { estimateOf, meanOf } from '../statistics.js';
import { ours, systemsOf, variantOf } from '../systems.js';
import {
  completion,
  mixes,
  play,
  seedsText,
  setupOf,
  sourceOf,
  type Arrivals,
  type GroupedCase,
  type Table,
} from '../table.js';

/** Values of the parameter `queueStrategy` of saga-paper. */
const strategies = [
  { name: 'breadth first', strategy: 0 },
  { name: 'depth first', strategy: 1 },
  { name: 'hybrid by call', strategy: 2 },
  { name: 'hybrid by session', strategy: 3 },
] as const;

const regimes: readonly { name: string; arrivals: Arrivals }[] = [
  { name: 'open loop, load 1.1', arrivals: { load: 1.1 } },
  { name: 'closed loop, pressure 1', arrivals: { pressure: 1 } },
];

/** `saga evaluate strategy` */
export const strategyTable: Table = {
  name: 'strategy',
  title: 'Order of execution',
  shows: 'breadth first, depth first and hybrids of saga-paper, and saga: completion time, tasks a minute, evictions',
  minutes: 2,
  async run(context) {
    const seeds = context.sweepSeeds;
    const played = [
      ...strategies.flatMap(({ name, strategy }) =>
        variantOf('saga-paper', `saga-paper, ${name}`, { parameters: { queueStrategy: strategy } }),
      ),
      ...systemsOf(['affinity', ours]),
    ];
    const groupOf = (mix: string, regime: string): string => `${mix}: ${regime}`;
    const outcomes = await play(
      context,
      'strategy',
      mixes.flatMap((mix) =>
        seeds.flatMap((seed) =>
          regimes.flatMap(({ name, arrivals }) =>
            played.map((system): GroupedCase => ({
              group: groupOf(mix, name),
              workload: sourceOf(context, mix, seed),
              cluster: context.cluster,
              system,
              arrivals,
              seed,
            })),
          ),
        ),
      ),
    );
    return {
      table: 'strategy',
      title: this.title,
      setup: setupOf(context, mixes, seeds),
      goals: [],
      grids: mixes.flatMap((mix) =>
        regimes.map(({ name: regime }) => ({
          title: groupOf(mix, regime),
          columns: [
            { key: 'system', head: 'system' },
            { key: 'seconds', head: 'mean s', digits: 1 },
            { key: 'tasks', head: 'tasks a minute', digits: 1 },
            { key: 'evictions', head: 'pages evicted / pages admitted', percent: true, digits: 1 },
            { key: 'preemptions', head: 'preemptions', digits: 0 },
          ],
          rows: played.map(({ name }) => {
            const figures = (figure: (one: ClusterOutcome) => number): number[] =>
              outcomes.figures(groupOf(mix, regime), name, figure) as number[];
            return {
              system: name,
              seconds: estimateOf(figures(completion)),
              tasks: estimateOf(figures(tasksPerMinute)),
              evictions: meanOf(figures(evictionsPerAdmission)),
              preemptions: meanOf(figures((one) => one.preemptions)),
            };
          }),
        })),
      ),
      notes: [
        'Tasks a minute: output tokens a second over the output tokens of a task, in the window of the throughput.',
        'Pages admitted: the pages of prompts that were missed, which need room.',
        "The paper's strategy table needs a saturated run: in an open loop below saturation every strategy finishes as many tasks as arrive.",
      ],
      chart: {
        kind: 'bars',
        chart: {
          title: this.title,
          subtitle: `Mean over ${seedsText(seeds)}`,
          panels: mixes.flatMap((mix) =>
            regimes.map(({ name: regime }) => ({
              title: groupOf(mix, regime),
              xTitle: 'mean task completion time, seconds',
              digits: 0,
              bars: played.map((system) => {
                const { mean, interval } = estimateOf(
                  outcomes.figures(groupOf(mix, regime), system.name, completion) as number[],
                );
                return { label: system.name, value: mean, interval, ours: system.ours === true };
              }),
            })),
          ),
        },
      },
    };
  },
};

function tasksPerMinute(one: ClusterOutcome): number {
  return (60 * one.throughputTokensPerSecond * one.tasks) / one.outputTokens;
}

function evictionsPerAdmission(one: ClusterOutcome): number {
  return one.missedPages === 0 ? 0 : one.evictedPages / one.missedPages;
}
