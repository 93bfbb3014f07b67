/**
 * Several tenants: who keeps the promised completion time, and how evenly the tenants are served.
 */
import type { ClusterOutcome } from '../laboratory.js';
import type { WorkloadColumns } from '../../workload/columns.js';
import { goalOf, type Cell } from '../report.js';
import { estimateOf, jainIndex, meanOf } from '../statistics.js';
import { ours, systemOf, systems } from '../systems.js';
import { play, seedsText, setupOf, sourceOf, type GroupedCase, type Table } from '../table.js';

const mix = 'multi-tenant';
const load = 0.9;

/** A task keeps the promise if it takes at most so many times its ideal time. */
const promise = 3;

interface Shares {
  /** Attainment by class name, and `overall`. */
  attainment: Record<string, number>;
  /** Jain's index over tenants of the mean speed (ideal time / completion time) of their tasks. */
  jain: number;
}

/** `saga evaluate tenants` */
export const tenantsTable: Table = {
  name: 'tenants',
  title: 'Several tenants',
  shows:
    'share of tasks in time, overall and by class, and fairness between tenants, multi-tenant at load 0.9, three seeds',
  minutes: 5,
  async run(context) {
    const seeds = context.sweepSeeds;
    const cases = seeds.flatMap((seed) => {
      const workload = sourceOf(context, mix, seed);
      // One task at a time on an idle cluster: the ideal time of each, for tasks share no tokens.
      const alone: GroupedCase = {
        group: 'alone',
        workload,
        cluster: context.cluster,
        system: { ...systemOf('affinity'), name: 'alone' },
        arrivals: { live: 1 },
        seed,
      };
      return [alone, ...systems.map((system): GroupedCase => ({ ...alone, group: mix, system, arrivals: { load } }))];
    });
    const outcomes = await play(context, 'tenants', cases);
    const alone = outcomes.of('alone', 'alone') as readonly ClusterOutcome[];
    const workloads: WorkloadColumns[] = [];
    for (const seed of seeds)
      workloads.push(await context.laboratory.played(sourceOf(context, mix, seed), context.cluster));
    const classes = workloads[0]?.classNames ?? [];
    const shares = new Map<string, Shares[]>(
      systems.map(({ name }) => [
        name,
        (outcomes.of(mix, name) as readonly ClusterOutcome[]).map((outcome, index) =>
          sharesOf(
            outcome.taskSeconds,
            alone[index]?.taskSeconds ?? [],
            workloads[index]?.taskClass ?? new Uint8Array(),
            workloads[index]?.taskTenant ?? new Uint32Array(),
            classes,
          ),
        ),
      ]),
    );
    const attainmentOf = (system: string, name: string): number[] =>
      (shares.get(system) ?? []).map((one) => one.attainment[name] ?? Number.NaN);
    return {
      table: 'tenants',
      title: this.title,
      setup: setupOf(context, [mix], seeds),
      goals: [
        goalOf(
          `tasks of ${ours} within ${promise} x ideal at load ${load}`,
          'at least',
          0.995,
          shares.has(ours) ? estimateOf(attainmentOf(ours, 'overall')) : null,
          { percent: true, digits: 2 },
        ),
      ],
      grids: [
        {
          title: `Tasks in time (within ${promise} x ideal), load ${load}`,
          columns: [
            { key: 'system', head: 'system' },
            ...['overall', ...classes].map((name) => ({ key: name, head: name, percent: true, digits: 2 })),
            { key: 'paper', head: "the paper's SLO", percent: true, digits: 1 },
            { key: 'jain', head: "Jain's index", digits: 3 },
            { key: 'seconds', head: 'mean s', digits: 1 },
          ],
          rows: systems.map(({ name }) => ({
            system: name,
            ...Object.fromEntries(
              ['overall', ...classes].map((one): [string, Cell] => {
                const values = attainmentOf(name, one).filter(Number.isFinite);
                return [one, values.length === 0 ? null : one === 'overall' ? estimateOf(values) : meanOf(values)];
              }),
            ),
            paper: meanOf(outcomes.figures(mix, name, (one) => one.sloAttainmentPaper) as number[]),
            jain: meanOf((shares.get(name) ?? []).map((one) => one.jain)),
            seconds: meanOf(outcomes.figures(mix, name, (one) => one.taskCompletionSeconds.mean) as number[]),
          })),
        },
      ],
      notes: [
        "The paper's SLO is 1.5 x an expected time that is the same for all tasks of a class; tool times and step counts alone put it out of reach for many tasks.",
        "Jain's index is over tenants, of the mean of ideal time / completion time of their tasks: 1 where all are slowed down alike.",
      ],
      chart: {
        kind: 'bars',
        chart: {
          title: this.title,
          subtitle: `Tasks within ${promise} x ideal, load ${load}, mean over ${seedsText(seeds)}`,
          sameScale: true,
          panels: ['overall', ...classes].map((name) => ({
            title: name,
            xTitle: 'tasks in time, per cent',
            digits: 1,
            bars: systems.map((system) => ({
              label: system.name,
              value: 100 * meanOf(attainmentOf(system.name, name)),
              ours: system.ours === true,
            })),
          })),
        },
      },
    };
  },
};

/** Attainment and fairness of one run. All arrays are per task. */
export function sharesOf(
  completions: ArrayLike<number>,
  ideals: ArrayLike<number>,
  taskClass: ArrayLike<number>,
  taskTenant: ArrayLike<number>,
  classes: readonly string[],
): Shares {
  const kept = classes.map(() => 0);
  const all = classes.map(() => 0);
  const speeds = new Map<number, number[]>();
  for (let task = 0; task < completions.length; ++task) {
    const [completion, ideal] = [completions[task] as number, ideals[task] as number];
    const index = taskClass[task] as number;
    all[index] = (all[index] ?? 0) + 1;
    if (completion <= promise * ideal) kept[index] = (kept[index] ?? 0) + 1;
    const tenant = taskTenant[task] as number;
    const served = speeds.get(tenant);
    if (served === undefined) speeds.set(tenant, [ideal / completion]);
    else served.push(ideal / completion);
  }
  const total = (counts: readonly number[]): number => counts.reduce((sum, count) => sum + count, 0);
  return {
    attainment: {
      overall: total(kept) / total(all),
      ...Object.fromEntries(classes.map((name, index) => [name, (kept[index] ?? 0) / (all[index] ?? 0)])),
    },
    jain: jainIndex([...speeds.values()].map(meanOf)),
  };
}
