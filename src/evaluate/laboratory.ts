/**
 * Runs the simulations of the evaluation's tables, each once: workloads, saturation rates and results are kept, so that tables
 * which ask for the same run share it.
 *
 * Load 1 is one rate for all systems: the rate at which `affinity` saturates, searched for per workload and seed. Two native runs
 * are under way at a time. Nothing here reads a clock; the same cases give the same outcomes.
 */
import type {
  CacheReplay,
  CacheRunResult,
  ClusterHardware,
  ClusterRunOptions,
  ClusterRunResult,
  ClusterSimulation,
  SimulationBackend,
} from '../simulate/backend.js';
import { shareOf, type CacheModel } from '../simulate/options.js';
import { inTurns, liveForPressure, runsAtOnce, tasksThatFit, type ProgressListener } from '../simulate/run.js';
import { callCount, taskCount, type WorkloadColumns } from '../workload/columns.js';
import { withHints } from '../workload/hints.js';
import { scheduleOf } from '../workload/schedule.js';
import type { CacheSystem, System } from './systems.js';
import type { WorkloadSource } from './workloads.js';

/**
 * How tasks arrive: at a multiple of the saturation rate; so many a second; so many live tasks; or as many live tasks as fill the KV room so many
 * times.
 */
export type Arrivals = { load: number } | { rate: number } | { live: number } | { pressure: number };

/** One run of a cluster. */
export interface ClusterCase {
  workload: WorkloadSource;
  cluster: ClusterHardware;
  system: System;
  arrivals: Arrivals;
  seed: number;
}

/** What came of a {@link ClusterCase}. */
export interface ClusterOutcome extends ClusterRunResult {
  tasks: number;
  calls: number;
  /** Completion time of each task, in the order of the workload. */
  taskSeconds: Float64Array;
}

/** A rate of saturation to search for. */
export type SaturationCase = Omit<ClusterCase, 'arrivals'>;

/** One replay against a cache. */
export interface CacheCase {
  workload: WorkloadSource;
  system: CacheSystem;
  model: CacheModel;
  /** Sessions live at once; undefined for a trace with arrival times. */
  live: number | undefined;
  /** Size of the cache in per cent of the distinct pages. */
  share: number;
  /** Only so many per cent of the requests; default 100. */
  first?: number;
  /** Measure the time of decisions. Such runs have the machine to themselves. */
  timing?: boolean;
}

/** Workloads and clusters that are kept open. More would fill the memory; opening takes well under a second. */
const keptOpen = 8;

/** Tokens of a page in cache mode. */
const cachePageTokens = 512;

interface OpenCluster {
  workload: WorkloadColumns;
  simulation: ClusterSimulation;
}

/** Simulations by case, each run once. */
export class Laboratory {
  private readonly workloads = new Recent<Promise<WorkloadColumns>>(keptOpen);
  private readonly clusters = new Recent<Promise<OpenCluster>>(keptOpen);
  private readonly replays = new Recent<Promise<{ replay: CacheReplay; requests: number }>>(keptOpen);
  private readonly rates = new Map<string, Promise<number>>();
  private readonly outcomes = new Map<string, ClusterOutcome>();
  private readonly cacheOutcomes = new Map<string, CacheRunResult>();

  constructor(
    private readonly backend: SimulationBackend,
    private readonly progress: ProgressListener,
  ) {}

  /** The tasks of a workload that a cluster plays: those of which every call fits into a worker. */
  async played(workload: WorkloadSource, cluster: ClusterHardware): Promise<WorkloadColumns> {
    return (await this.open({ workload, cluster })).workload;
  }

  /** Plays cases; outcomes in their order. */
  async cluster(label: string, cases: readonly ClusterCase[]): Promise<ClusterOutcome[]> {
    const searches = cases.flatMap((one) => ('load' in one.arrivals ? [referenceOf(one)] : []));
    await this.saturations(label, searches);
    const open = distinct(cases, keyOf).filter((one) => !this.outcomes.has(keyOf(one)));
    await this.inProgress(`${label}: simulating`, open, async (one, onProgress) => {
      this.outcomes.set(keyOf(one), await this.play(one, onProgress));
    });
    return cases.map((one) => this.outcomes.get(keyOf(one)) as ClusterOutcome);
  }

  /** Rates in tasks a second at which systems saturate; in the order of the cases. */
  async saturations(label: string, cases: readonly SaturationCase[]): Promise<number[]> {
    const open = distinct(cases, searchKeyOf).filter((one) => !this.rates.has(searchKeyOf(one)));
    await this.inProgress(`${label}: searching saturation`, open, async (one) => {
      const { simulation } = await this.open(one);
      const rate = simulation.saturation({ ...policyOf(one.system), seed: one.seed });
      this.rates.set(searchKeyOf(one), rate);
      await rate;
    });
    return Promise.all(cases.map((one) => this.rates.get(searchKeyOf(one)) as Promise<number>));
  }

  /** Replays cases against caches; outcomes in their order. */
  async cache(label: string, cases: readonly CacheCase[]): Promise<CacheRunResult[]> {
    const open = distinct(cases, cacheKeyOf).filter((one) => !this.cacheOutcomes.has(cacheKeyOf(one)));
    const timed = open.filter((one) => one.timing === true);
    const others = open.filter((one) => one.timing !== true);
    const replay = async (one: CacheCase, onProgress: (done: number) => void): Promise<void> => {
      this.cacheOutcomes.set(cacheKeyOf(one), await this.replay(one, onProgress));
    };
    await this.inProgress(`${label}: replaying`, others, replay);
    await this.inProgress(`${label}: timing decisions`, timed, replay, 1);
    return cases.map((one) => this.cacheOutcomes.get(cacheKeyOf(one)) as CacheRunResult);
  }

  private async play(one: ClusterCase, onProgress: (done: number) => void): Promise<ClusterOutcome> {
    const { workload, simulation } = await this.open(one);
    const { arrivals, cluster, seed } = one;
    const options: ClusterRunOptions = { ...policyOf(one.system), seed, rate: 0, live: 0, taskSeconds: true };
    if ('load' in arrivals) {
      options.rate = arrivals.load * (await (this.rates.get(searchKeyOf(referenceOf(one))) as Promise<number>));
    } else if ('rate' in arrivals) {
      options.rate = arrivals.rate;
    } else if ('live' in arrivals) {
      options.live = arrivals.live;
    } else {
      options.live = liveForPressure(workload, cluster.workers * cluster.kvTokens, arrivals.pressure);
    }
    const result = await simulation.run(options, onProgress);
    return {
      ...result,
      tasks: taskCount(workload),
      calls: callCount(workload),
      taskSeconds: result.taskSeconds as Float64Array,
    };
  }

  private workload(source: WorkloadSource): Promise<WorkloadColumns> {
    return this.workloads.get(source.key, () => source.open());
  }

  private open({ workload, cluster }: Pick<ClusterCase, 'workload' | 'cluster'>): Promise<OpenCluster> {
    return this.clusters.get(`${workload.key} ${JSON.stringify(cluster)}`, async () => {
      const columns = tasksThatFit(await this.workload(workload), cluster);
      return { workload: columns, simulation: this.backend.openCluster(columns, cluster) };
    });
  }

  private async replay(one: CacheCase, onProgress: (done: number) => void): Promise<CacheRunResult> {
    const { workload, system, live, model, share, first = 100, timing = false } = one;
    const { replay, requests } = await this.replays.get(
      JSON.stringify([workload.key, live, system.hints]),
      async () => {
        const columns = await this.workload(workload);
        const schedule = scheduleOf(columns, live === undefined ? {} : { live });
        return {
          replay: this.backend.openCache(columns, cachePageTokens, withHints(columns, schedule, system.hints)),
          requests: schedule.call.length,
        };
      },
    );
    return replay.run(
      {
        policy: system.policy,
        model,
        capacityPages: Math.max(1, partOf(replay.distinctPages, share)),
        requestLimit: Math.max(1, partOf(requests, first)),
        timing,
      },
      onProgress,
    );
  }

  /** Runs items a few at a time and adds up their progress. */
  private async inProgress<T>(
    label: string,
    items: readonly T[],
    run: (item: T, onProgress: (done: number) => void) => Promise<void>,
    atOnce = runsAtOnce,
  ): Promise<void> {
    if (items.length === 0) return;
    const done = items.map(() => 0);
    const report = (index: number, value: number): void => {
      done[index] = Math.min(1, value);
      this.progress.advance(done.reduce((sum, one) => sum + one, 0));
    };
    this.progress.begin(label, items.length);
    await inTurns(items, atOnce, async (item, index) => {
      await run(item, (value) => report(index, value));
      report(index, 1);
    });
    this.progress.end();
  }
}

/** Per cent of a count, rounded down. */
function partOf(count: number, percent: number): number {
  return shareOf(count, { text: String(percent), value: percent });
}

/** The search that says what load 1 is. */
function referenceOf({ workload, cluster, seed }: ClusterCase): SaturationCase {
  return { workload, cluster, seed, system: { name: 'affinity', policy: 'affinity' } };
}

/** What the native side is told of a system. */
function policyOf({ name: _name, ours: _ours, ...options }: System): Omit<System, 'name' | 'ours'> {
  return options;
}

function searchKeyOf({ workload, cluster, system, seed }: SaturationCase): string {
  return JSON.stringify([workload.key, cluster, policyOf(system), seed]);
}

function keyOf(one: ClusterCase): string {
  return `${searchKeyOf(one)} ${JSON.stringify(one.arrivals)}`;
}

function cacheKeyOf({ workload, system, ...rest }: CacheCase): string {
  return JSON.stringify([workload.key, system.policy, system.hints, rest]);
}

/** The items without those whose key has come before. */
function distinct<T>(items: readonly T[], key: (item: T) => string): T[] {
  return [...new Map(items.map((item) => [key(item), item])).values()];
}

/** Values by key; only those used last are kept. */
class Recent<T> {
  private readonly values = new Map<string, T>();

  constructor(private readonly most: number) {}

  get(key: string, make: () => T): T {
    const value = this.values.get(key) ?? make();
    this.values.delete(key);
    this.values.set(key, value);
    if (this.values.size > this.most) this.values.delete(this.values.keys().next().value as string);
    return value;
  }
}
