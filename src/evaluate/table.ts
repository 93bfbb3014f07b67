/**
 * A table of the evaluation: what it shows, what it costs, how it is made. Also what the tables have in common: the set-up,
 * outcomes by system over seeds, and the goals that compare systems.
 */
import type { ClusterHardware } from '../simulate/backend.js';
export type { Arrivals, ClusterOutcome } from './laboratory.js';
import type { ClusterCase, ClusterOutcome, Laboratory } from './laboratory.js';
import type { TableReport } from './report.js';
import { geometricMean, meanOf, pooledRatio, type Estimate } from './statistics.js';
import { ours, rivals, type System } from './systems.js';
import { paperSource, type PaperWorkload, type WorkloadSource } from './workloads.js';

/** One table of the evaluation. */
export interface Table {
  /** Argument of the command. */
  name: string;
  title: string;
  /** What it shows, in one line of `--list`. */
  shows: string;
  /** Wall-clock minutes of the full table on two cores, rounded up. */
  minutes: number;
  /** Needs more than this package: it is made only when its name is given. */
  onlyByName?: boolean;
  run(context: Context): Promise<TableReport>;
}

/** The set-up of a run of the command. */
export interface Context {
  laboratory: Laboratory;
  /** Small: one seed, two loads, a small cluster. */
  quick: boolean;
  /** Seeds of the tables that are headlines. */
  seeds: readonly number[];
  /** Seeds of sweeps and ablations: the first three. */
  sweepSeeds: readonly number[];
  /** Tasks of a generated workload. */
  tasks: number;
  cluster: ClusterHardware;
  /** Folder with claude-code-v6 and mooncake-conversation. */
  traces: string | undefined;
  /** The checkout, for what is no part of the package. */
  checkout: string;
  /** Folder where long measurements are kept, so that what was measured once is not measured again. */
  runs: string | undefined;
  environment: NodeJS.ProcessEnv;
  /** Of measurements in accelerated time; undefined: the table's own. */
  timeScale: number | undefined;
  /** A line for whoever waits. */
  note(text: string): void;
}

/** Seeds published with the paper's code. */
export const publishedSeeds = [42, 123, 456, 789, 1001, 1337, 2024, 7777, 8192, 31415] as const;

/** The paper's cluster: 16 workers of four A100. */
export const paperCluster: ClusterHardware = {
  workers: 16,
  hardware: 'a100-tp4',
  pageTokens: 16,
  kvTokens: 448_000,
  maxSequences: 256,
  stepTokens: 2048,
  hostTierTokens: 0,
  linkBytesPerSecond: 25e9,
};

/** The two single-tenant workloads of the paper. */
export const mixes = ['swe-bench', 'web-arena'] as const;

/** Loads of a table: all of them, or the two of a quick run. */
export function loadsOf(context: Context, loads: readonly number[]): readonly number[] {
  return context.quick ? loads.filter((load) => load === 0.9 || load === 1.1) : loads;
}

/** The paper's workload of a seed. */
export function sourceOf(context: Context, mix: PaperWorkload, seed: number): WorkloadSource {
  return paperSource(mix, tasksOf(context, mix), seed);
}

/** Tasks of a workload. Those of several tenants are about twice as long, and fewer of them do in a quick run. */
export function tasksOf(context: Context, mix: PaperWorkload): number {
  return context.quick && mix === 'multi-tenant' ? Math.ceil(context.tasks / 3) : context.tasks;
}

/** What a table of generated workloads was made with. */
export function setupOf(
  context: Context,
  mixesPlayed: readonly PaperWorkload[],
  seeds: readonly number[],
): Record<string, string> {
  return {
    workloads: mixesPlayed.map((mix) => `${mix} (${tasksOf(context, mix)} tasks)`).join(', '),
    seeds: seeds.join(', '),
    cluster: clusterText(context.cluster),
  };
}

/** `1 seed`, `3 seeds`. */
export function seedsText(seeds: readonly number[]): string {
  return `${seeds.length} ${seeds.length === 1 ? 'seed' : 'seeds'}`;
}

/** A cluster in words. */
export function clusterText({ workers, hardware, kvTokens }: ClusterHardware): string {
  return `${workers} ${workers === 1 ? 'worker' : 'workers'}, ${hardware}, KV room of ${kvTokens.toLocaleString('en-US')} tokens each`;
}

/** Outcomes of runs by group and system, each a list in the order of the seeds. */
export class Outcomes {
  private readonly lists = new Map<string, ClusterOutcome[]>();

  add(group: string, system: string, outcome: ClusterOutcome): void {
    const key = keyOf(group, system);
    const list = this.lists.get(key);
    if (list === undefined) this.lists.set(key, [outcome]);
    else list.push(outcome);
  }

  /** Undefined where the system was not played. */
  of(group: string, system: string): readonly ClusterOutcome[] | undefined {
    return this.lists.get(keyOf(group, system));
  }

  /** A figure of each seed. */
  figures(group: string, system: string, figure: (outcome: ClusterOutcome) => number): number[] | undefined {
    return this.of(group, system)?.map(figure);
  }

  /** Ratio of a figure of two systems, paired by seed; null where one was not played or a figure is 0. */
  ratio(group: string, over: string, under: string, figure: (outcome: ClusterOutcome) => number): Estimate | null {
    return this.pooledRatio([group], over, under, figure);
  }

  /** The same over several groups of as many seeds. */
  pooledRatio(
    groups: readonly string[],
    over: string,
    under: string,
    figure: (outcome: ClusterOutcome) => number,
  ): Estimate | null {
    const pairs = groups.flatMap((group) => {
      const left = this.figures(group, over, figure);
      const right = this.figures(group, under, figure);
      const usable = left !== undefined && right !== undefined && [...left, ...right].every((value) => value > 0);
      return usable ? [[left, right] as const] : [];
    });
    return pairs.length === groups.length ? pooledRatio(pairs) : null;
  }

  /** The rival whose mean is the best of a group. */
  bestRival(
    group: string,
    figure: (outcome: ClusterOutcome) => number,
    best: 'smallest' | 'largest' = 'smallest',
  ): { name: string; values: number[] } | undefined {
    const played = rivals.flatMap((name) => {
      const values = this.figures(group, name, figure);
      return values === undefined ? [] : [{ name, values }];
    });
    const sign = best === 'smallest' ? 1 : -1;
    return played.sort((left, right) => sign * (meanOf(left.values) - meanOf(right.values)))[0];
  }
}

/** A run of a table, and where its outcome goes. */
export interface GroupedCase extends ClusterCase {
  group: string;
}

/** Plays the cases of a table. */
export async function play(context: Context, label: string, cases: readonly GroupedCase[]): Promise<Outcomes> {
  const results = await context.laboratory.cluster(label, cases);
  const outcomes = new Outcomes();
  cases.forEach((one, index) => outcomes.add(one.group, one.system.name, results[index] as ClusterOutcome));
  return outcomes;
}

/** Cases of every mix, load, system and seed; the group is that of {@link groupOf}. */
export function loadCases(
  context: Context,
  mixesPlayed: readonly PaperWorkload[],
  loads: readonly number[],
  systems: readonly System[],
  seeds: readonly number[],
): GroupedCase[] {
  return mixesPlayed.flatMap((mix) =>
    seeds.flatMap((seed) => {
      const workload = sourceOf(context, mix, seed);
      return loads.flatMap((load) =>
        systems.map((system) => ({
          group: groupOf(mix, load),
          workload,
          cluster: context.cluster,
          system,
          arrivals: { load },
          seed,
        })),
      );
    }),
  );
}

/** Name of the outcomes of a mix at a load. */
export function groupOf(mix: string, load: number): string {
  return `${mix} ${load}`;
}

/** Mean task completion time of a run. */
export function completion(outcome: ClusterOutcome): number {
  return outcome.taskCompletionSeconds.mean;
}

/** The best rival's figure over ours (or ours over its), per group, and the name of that rival. */
export function againstBest(
  outcomes: Outcomes,
  group: string,
  figure: (outcome: ClusterOutcome) => number,
): { rival: string; pair: readonly [ours: number[], rival: number[]] } | undefined {
  const best = outcomes.bestRival(group, figure);
  const mine = outcomes.figures(group, ours, figure);
  return best === undefined || mine === undefined ? undefined : { rival: best.name, pair: [mine, best.values] };
}

/** Ratio of sums over seeds, and the geometric mean of those over groups; null where something was not played or is 0. */
export function ratioOfSums(
  outcomes: Outcomes,
  groups: readonly string[],
  over: string,
  under: string,
  figure: (outcome: ClusterOutcome) => number,
): number | null {
  const ratios = groups.map((group) => {
    const sum = (system: string): number =>
      outcomes.figures(group, system, figure)?.reduce((total, value) => total + value, 0) ?? Number.NaN;
    return sum(over) / sum(under);
  });
  if (ratios.some((ratio) => !Number.isFinite(ratio))) return null;
  return ratios.includes(0) ? 0 : geometricMean(ratios);
}

function keyOf(group: string, system: string): string {
  return JSON.stringify([group, system]);
}
