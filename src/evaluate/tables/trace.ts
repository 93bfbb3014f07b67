/**
 * Recorded coding sessions on a small cluster.
 */
import { join } from 'node:path';
import { goalOf } from '../report.js';
import { estimateOf, meanOf, pooledRatio } from '../statistics.js';
import { ours, reference, systems } from '../systems.js';
import {
  againstBest,
  clusterText,
  play,
  seedsText,
  type ClusterOutcome,
  type GroupedCase,
  type Table,
} from '../table.js';
import { agentSource, traceSource, type WorkloadSource } from '../workloads.js';
import { sessionTrace } from './eviction.js';

const load = 1.1;
const workers = 4;

/** Of a quick run: few sessions, and a worker that they fill. */
const quickSize = { sessions: 60, workers: 1 } as const;

/** `saga evaluate trace` */
export const traceTable: Table = {
  name: 'trace',
  title: 'Recorded sessions on four workers',
  shows:
    'completion time without gaps of recorded coding sessions (--traces), 4 workers h100-tp4, load 1.1, three arrivals',
  minutes: 6,
  async run(context) {
    const cluster = {
      ...context.cluster,
      workers: context.quick ? quickSize.workers : workers,
      hardware: 'h100-tp4' as const,
    };
    const seeds = context.sweepSeeds;
    const { traces } = context;
    const workload: WorkloadSource =
      traces === undefined
        ? agentSource(context.quick ? quickSize.sessions : 445, 42)
        : traceSource(join(traces, sessionTrace), context.quick ? { limit: quickSize.sessions } : {});
    const group = traces === undefined ? 'generated sessions' : 'claude-code-v6';
    const outcomes = await play(
      context,
      'trace',
      seeds.flatMap((seed) =>
        systems.map((system): GroupedCase => ({ group, workload, cluster, system, arrivals: { load }, seed })),
      ),
    );
    const withoutGaps = (one: ClusterOutcome): number => one.taskCompletionSecondsWithoutGaps.mean;
    const best = againstBest(outcomes, group, withoutGaps);
    const any = outcomes.of(group, reference)?.[0];
    return {
      table: 'trace',
      title: this.title,
      setup: {
        workload: `${group}: ${any?.tasks ?? 0} sessions, ${any?.calls ?? 0} calls`,
        seeds: seeds.join(', '),
        cluster: clusterText(cluster),
      },
      goals: [
        goalOf(
          `completion time without gaps, ${reference} / ${ours}`,
          'at least',
          1.3,
          outcomes.ratio(group, reference, ours, withoutGaps),
        ),
        goalOf(
          `completion time without gaps, ${ours} / best other`,
          'at most',
          1.02,
          best === undefined ? null : pooledRatio([best.pair]),
        ),
      ],
      grids: [
        {
          title: `${group}, load ${load}`,
          columns: [
            { key: 'system', head: 'system' },
            { key: 'seconds', head: 'mean without gaps s', digits: 0 },
            { key: 'ratio', head: `${reference} / it`, digits: 3 },
            { key: 'p95', head: 'p95 without gaps s', digits: 0 },
            { key: 'hits', head: 'hit rate', percent: true, digits: 1 },
            { key: 'optimum', head: 'misses / optimum', digits: 3 },
            { key: 'regenerated', head: 'regenerated tokens', scaled: true },
            { key: 'throughput', head: 'tokens/s', digits: 0 },
          ],
          rows: systems.map(({ name }) => {
            const mean = (figure: (one: ClusterOutcome) => number): number =>
              meanOf(outcomes.figures(group, name, figure) as number[]);
            return {
              system: name,
              seconds: estimateOf(outcomes.figures(group, name, withoutGaps) as number[]),
              ratio: outcomes.ratio(group, reference, name, withoutGaps),
              p95: mean((one) => one.taskCompletionSecondsWithoutGaps.p95),
              hits: mean((one) => one.prefixHitRate),
              optimum: mean((one) => one.beladyRatio),
              regenerated: mean((one) => one.regeneratedTokens),
              throughput: mean((one) => one.throughputTokensPerSecond),
            };
          }),
        },
      ],
      notes: [
        ...(traces === undefined
          ? [
              'No --traces were given: the sessions are generated, and the goals, which are set for the recorded ones, say little.',
            ]
          : []),
        'The sessions are the same under every seed; the seed draws their arrivals.',
        ...(best === undefined ? [] : [`The best other is ${best.rival}.`]),
      ],
      chart: {
        kind: 'bars',
        chart: {
          title: this.title,
          subtitle: `${group}, load ${load}, mean over ${seedsText(seeds)}`,
          panels: [
            {
              title: 'Mean completion time without gaps',
              xTitle: 'seconds',
              digits: 0,
              bars: systems.map((system) => {
                const { mean, interval } = estimateOf(outcomes.figures(group, system.name, withoutGaps) as number[]);
                return { label: system.name, value: mean, interval, ours: system.ours === true };
              }),
            },
          ],
        },
      },
    };
  },
};
