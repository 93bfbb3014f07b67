/**
 * Runs simulations and makes reports of them.
 *
 * A report is plain data in the form of the `--json` output. It holds no clock reading (unless `timing` is asked for), so that
 * the same options give the same bytes.
 */
import { callCount, selectTasks, taskCount, type WorkloadColumns } from '../workload/columns.js';
import { withHints } from '../workload/hints.js';
import { scheduleOf } from '../workload/schedule.js';
import type {
  CacheReplay,
  CacheRunResult,
  ClusterRunResult,
  Distribution,
  SaturationOptions,
  SimulationBackend,
} from './backend.js';
import {
  optionError,
  partsOfPolicy,
  shareOf,
  type CacheOptions,
  type CachePolicy,
  type ClusterOptions,
  type ClusterPolicy,
} from './options.js';

/** Native runs at one time. */
export const runsAtOnce = 2;

/** Hears how a simulation gets on. */
export interface ProgressListener {
  /** A part begins: `total` units of work, or undefined where nobody knows. */
  begin(label: string, total: number | undefined): void;
  /** So many units are done; with fractions while one is under way. */
  advance(done: number): void;
  end(): void;
}

/** One cache size and policy. */
export interface CacheResultRow {
  policy: CachePolicy;
  cachePages: number;
  /** The percentage as given; null where sizes were given in tokens. */
  cacheShare: number | null;
  requestedPages: number;
  missedPages: number;
  evictedPages: number;
  /** Requested pages in the leading run of resident ones / requested pages. */
  prefixHitRate: number;
  /** Missed pages / those of the offline optimum at the same size and model. */
  beladyRatio: number;
  /** The same with each missed token weighted by 1 + position / 60,000. */
  costRatio: number;
  /**
   * Time of everything that is done with the cache / requested pages, in nanoseconds; only with `timing`. It holds every
   * notification and decision of the policy and the cache's own work, which is the same for each policy. Runs are one at a time.
   */
  decisionNanoseconds?: number;
}

/** What `saga simulate --mode cache --json` prints. */
export interface CacheReport {
  schema: 'saga.simulate.cache/1';
  options: Record<string, unknown>;
  requests: number;
  distinctPages: number;
  results: CacheResultRow[];
}

/** One load and policy. */
export interface ClusterResultRow extends Omit<
  ClusterRunResult,
  'sloAttainmentPaper' | 'journalBytes' | 'taskSeconds'
> {
  policy: ClusterPolicy;
  /** Multiple of the saturation rate as given; null where tasks arrive otherwise. */
  load: number | null;
  /** Tasks a second of the open loop; null in a closed loop. */
  rateTasksPerSecond: number | null;
  /** Live tasks of the closed loop; null in an open loop. */
  liveTasks: number | null;
  /** null where the workload has no expected completion times. */
  sloAttainmentPaper: number | null;
}

/** What `saga simulate --mode cluster --json` prints. */
export interface ClusterReport {
  schema: 'saga.simulate.cluster/1';
  options: Record<string, unknown>;
  requests: number;
  tasks: number;
  /** Tasks left out because a call of theirs does not fit into the KV room of a worker. */
  tasksTooLarge: number;
  /** Rate at which `affinity` saturates; null where no load is relative to it. */
  saturationTasksPerSecond: number | null;
  /** Rates of the policies named by `--saturation`. */
  saturationByPolicy: Partial<Record<ClusterPolicy, number>>;
  results: ClusterResultRow[];
}

/**
 * Replays a workload against one shared cache at each size, under each policy. The optimum always runs, for the ratios.
 *
 * @throws SagaError `SAGA_ERR_OPTION` where an option does not fit the workload, or a cache is smaller than one page
 */
export async function simulateCache(
  workload: WorkloadColumns,
  options: CacheOptions,
  backend: SimulationBackend,
  progress: ProgressListener,
): Promise<CacheReport> {
  const { live, effective } = cacheDefaults(workload, options);
  const requestsInTime = scheduleOf(workload, {
    ...(live === undefined ? {} : { live }),
    gapCapSeconds: options.gapCapSeconds,
  });
  const schedule = withHints(workload, requestsInTime, options.hints, options.seed);
  const replay = backend.openCache(workload, options.pageTokens, schedule);
  const sizes = cacheSizes(options, replay.distinctPages);
  const requests = schedule.call.length;
  const requestLimit = options.first === undefined ? requests : shareOf(requests, options.first);
  if (requestLimit < 1)
    throw optionError(`expected --first to leave at least one of ${requests} requests, not ${options.first?.text} %`);

  const policies: CachePolicy[] = options.policies.includes('belady')
    ? options.policies
    : [...options.policies, 'belady'];
  const cells = sizes.flatMap((size) => policies.map((policy) => ({ size, policy })));
  progress.begin('replaying', cells.length);
  // Times are those of a run that has the machine to itself.
  const atOnce = options.timing ? 1 : runsAtOnce;
  const results = await runAll(cells, atOnce, progress, ({ size, policy }, onProgress) =>
    runCell(replay, options, policy, size.pages, requestLimit, onProgress),
  );
  progress.end();

  const rows = sizes.flatMap((size, sizeIndex) => {
    const resultOf = (policy: CachePolicy): CacheRunResult =>
      results[sizeIndex * policies.length + policies.indexOf(policy)] as CacheRunResult;
    return options.policies.map((policy) =>
      cacheRow(policy, size, resultOf(policy), resultOf('belady'), options.timing),
    );
  });
  return {
    schema: 'saga.simulate.cache/1',
    options: effective,
    requests: requestLimit,
    distinctPages: replay.distinctPages,
    results: rows,
  };
}

function runCell(
  replay: CacheReplay,
  options: CacheOptions,
  policy: CachePolicy,
  capacityPages: number,
  requestLimit: number,
  onProgress: (done: number) => void,
): Promise<CacheRunResult> {
  return replay.run({ policy, model: options.model, capacityPages, requestLimit, timing: options.timing }, onProgress);
}

function cacheDefaults(
  workload: WorkloadColumns,
  options: CacheOptions,
): { live: number | undefined; effective: Record<string, unknown> } {
  const arrivals = workload.taskArrival !== undefined;
  if (arrivals && options.live !== undefined) {
    throw optionError('expected no --live with a trace that has arrival times: it is played at them');
  }
  if (options.model === 'pinned' && workload.callSeconds === undefined) {
    throw optionError(
      'expected --model atomic with a trace that has no call durations: the default, pinned, needs them',
    );
  }
  checkPages(options.pageTokens, workload.blockTokens);
  const live = arrivals ? undefined : (options.live ?? 32);
  return {
    live,
    effective: {
      ...inputOptions(options),
      tasks: taskCount(workload),
      live: live ?? null,
      model: options.model,
      cacheTokens: options.cacheTokens ?? null,
      cacheShares: options.cacheShares?.map((share) => share.value) ?? null,
      pageTokens: options.pageTokens,
      first: options.first?.value ?? null,
      hints: options.hints,
      policies: options.policies,
      timing: options.timing,
    },
  };
}

function inputOptions(options: CacheOptions | ClusterOptions): Record<string, unknown> {
  return {
    mode: options.mode,
    trace: options.trace ?? null,
    workload: options.workload ?? null,
    seed: options.seed,
    tasks: options.tasks ?? null,
    gapCap: options.gapCapSeconds,
    orderSalt: options.orderSalt ?? null,
    onBadLine: options.onBadLine,
  };
}

function checkPages(pageTokens: number, blockTokens: number): void {
  if (pageTokens % blockTokens !== 0 && blockTokens % pageTokens !== 0) {
    throw optionError(
      `expected --page-tokens to be a multiple or a divisor of the ${blockTokens} tokens of a block of this input, not ${pageTokens}`,
    );
  }
}

interface CacheSize {
  pages: number;
  share: number | null;
}

/** Cache sizes in pages, each at least 1. */
function cacheSizes(options: CacheOptions, distinctPages: number): CacheSize[] {
  const fromTokens = (options.cacheTokens ?? []).map((tokens) => ({
    pages: Math.floor(tokens / options.pageTokens),
    share: null,
  }));
  const fromShares = (options.cacheShares ?? []).map((share) => {
    const pages = shareOf(distinctPages, share);
    if (pages < 1) {
      throw optionError(
        `expected a cache of at least one page, not --cache-shares ${share.text} (per cent of ${distinctPages} distinct pages)`,
      );
    }
    return { pages, share: share.value };
  });
  const sizes = [...fromTokens, ...fromShares];
  const tooLarge = sizes.find((size) => size.pages > 0xffff_fffe);
  if (tooLarge !== undefined)
    throw optionError(`expected a cache of at most ${0xffff_fffe} pages, not ${tooLarge.pages}`);
  return sizes;
}

function cacheRow(
  policy: CachePolicy,
  size: CacheSize,
  result: CacheRunResult,
  optimum: CacheRunResult,
  timing: boolean,
): CacheResultRow {
  return {
    policy,
    cachePages: size.pages,
    cacheShare: size.share,
    requestedPages: result.requestedPages,
    missedPages: result.missedPages,
    evictedPages: result.evictedPages,
    prefixHitRate:
      result.requestedPages === 0 ? 0 : (result.requestedPages - result.missedPages) / result.requestedPages,
    beladyRatio: ratio(result.missedPages, optimum.missedPages),
    costRatio: ratio(result.missedCost, optimum.missedCost),
    ...(timing
      ? { decisionNanoseconds: result.requestedPages === 0 ? 0 : result.policyNanoseconds / result.requestedPages }
      : {}),
  };
}

/** Of nothing and nothing it is 1: both did the best there is. */
function ratio(value: number, optimum: number): number {
  return value === optimum ? 1 : value / optimum;
}

/**
 * Plays a workload on a cluster at each load, under each policy.
 *
 * @throws SagaError `SAGA_ERR_OPTION` where an option does not fit the workload
 */
export async function simulateCluster(
  input: WorkloadColumns,
  options: ClusterOptions,
  backend: SimulationBackend,
  progress: ProgressListener,
): Promise<ClusterReport> {
  checkPages(options.pageTokens, input.blockTokens);
  const workload = tasksThatFit(input, options);
  const cluster = backend.openCluster(workload, {
    workers: options.workers,
    hardware: options.hardware,
    pageTokens: options.pageTokens,
    kvTokens: options.kvTokens,
    maxSequences: options.maxSequences,
    stepTokens: options.stepTokens,
    hostTierTokens: options.hostTierTokens,
    linkBytesPerSecond: Math.round(options.linkGigabytesPerSecond * 1e9),
  });
  const { arrivals, seed } = options;
  const hints = options.hints ?? (options.workload !== undefined || workload.graphs.length > 0 ? 'graph' : 'none');
  const driven = (policy: ClusterPolicy): SaturationOptions => ({
    policy,
    seed,
    hints,
    without: options.without.filter((part) => partsOfPolicy[policy]?.includes(part) === true),
  });
  const wanted = [
    ...new Set<ClusterPolicy>(arrivals.kind === 'load' ? ['affinity', ...options.saturation] : options.saturation),
  ];
  const saturation = new Map<ClusterPolicy, number>();
  if (wanted.length > 0) {
    progress.begin(`searching the saturation rate of ${wanted.join(', ')}`, undefined);
    const runs = wanted.map(() => 0);
    const rates = await inTurns(wanted, runsAtOnce, (policy, index) =>
      cluster.saturation(driven(policy), (count) => {
        runs[index] = count;
        progress.advance(runs.reduce((sum, one) => sum + one, 0));
      }),
    );
    wanted.forEach((policy, index) => saturation.set(policy, rates[index] as number));
    progress.end();
  }

  const journal = options.journal === undefined ? {} : { journal: options.journal };
  const points = pointsOf(arrivals, saturation.get('affinity'), workload, options);
  const cells = points.flatMap((point) => options.policies.map((policy) => ({ point, policy })));
  progress.begin('simulating', cells.length);
  const results = await runAll(cells, runsAtOnce, progress, ({ point, policy }, onProgress) =>
    cluster.run({ ...driven(policy), rate: point.rate ?? 0, live: point.live ?? 0, ...journal }, onProgress),
  );
  progress.end();

  const hasExpected = workload.taskExpected.some((expected) => expected > 0);
  return {
    schema: 'saga.simulate.cluster/1',
    options: { ...clusterOptions(options), hints, tasks: taskCount(input) },
    requests: callCount(workload),
    tasks: taskCount(workload),
    tasksTooLarge: taskCount(input) - taskCount(workload),
    saturationTasksPerSecond: arrivals.kind === 'load' ? (saturation.get('affinity') as number) : null,
    saturationByPolicy: Object.fromEntries(options.saturation.map((policy) => [policy, saturation.get(policy)])),
    results: cells.map(({ point, policy }, index) =>
      clusterRow(policy, point, results[index] as ClusterRunResult, hasExpected),
    ),
  };
}

/** The tasks of which every call fits into the KV room of a worker; an engine refuses a longer call. */
export function tasksThatFit(
  workload: WorkloadColumns,
  options: Pick<ClusterOptions, 'kvTokens' | 'pageTokens'>,
): WorkloadColumns {
  const room = Math.floor(options.kvTokens / options.pageTokens);
  let longest = 0;
  const fitting = selectTasks(workload, (task) => {
    let fits = true;
    const last = workload.taskFirstCall[task + 1] as number;
    for (let call = workload.taskFirstCall[task] as number; call < last; ++call) {
      const tokens = (workload.promptTokens[call] as number) + (workload.outputTokens[call] as number) - 1;
      longest = Math.max(longest, tokens);
      if (Math.ceil(tokens / options.pageTokens) > room) fits = false;
    }
    return fits;
  });
  if (fitting === undefined) {
    throw optionError(`expected a KV room of at least ${longest} tokens for the longest call, not ${options.kvTokens}`);
  }
  return fitting;
}

interface LoadPoint {
  load: number | null;
  rate: number | null;
  live: number | null;
}

function pointsOf(
  arrivals: ClusterOptions['arrivals'],
  saturation: number | undefined,
  workload: WorkloadColumns,
  options: ClusterOptions,
): LoadPoint[] {
  switch (arrivals.kind) {
    case 'load':
      return arrivals.loads.map((load) => ({ load, rate: load * (saturation as number), live: null }));
    case 'rate':
      return [{ load: null, rate: arrivals.tasksPerSecond, live: null }];
    case 'live':
      return [{ load: null, rate: null, live: arrivals.tasks }];
    case 'pressure':
      return [
        {
          load: null,
          rate: null,
          live: liveForPressure(workload, options.workers * options.kvTokens, arrivals.pressure),
        },
      ];
  }
}

/**
 * Tasks to keep live so that their contexts fill the KV room `pressure` times: pressure x room / mean context of a call
 * (prompt and half its answer, over all calls of all tasks), rounded, at least 1.
 */
export function liveForPressure(workload: WorkloadColumns, kvTokens: number, pressure: number): number {
  let context = 0;
  for (let call = 0; call < callCount(workload); ++call) {
    context += (workload.promptTokens[call] as number) + (workload.outputTokens[call] as number) / 2;
  }
  // More tasks than there are cannot be live; the bound is that of the native side.
  return Math.min(1e9, Math.max(1, Math.round((pressure * kvTokens * callCount(workload)) / context)));
}

function clusterOptions(options: ClusterOptions): Record<string, unknown> {
  const { arrivals } = options;
  return {
    ...inputOptions(options),
    workers: options.workers,
    hardware: options.hardware,
    load: arrivals.kind === 'load' ? arrivals.loads : null,
    rate: arrivals.kind === 'rate' ? arrivals.tasksPerSecond : null,
    live: arrivals.kind === 'live' ? arrivals.tasks : null,
    pressure: arrivals.kind === 'pressure' ? arrivals.pressure : null,
    saturation: options.saturation,
    pageTokens: options.pageTokens,
    kvTokens: options.kvTokens,
    maxSequences: options.maxSequences,
    stepTokens: options.stepTokens,
    hostTierTokens: options.hostTierTokens,
    linkGigabytes: options.linkGigabytesPerSecond,
    without: options.without,
    journal: options.journal ?? null,
    policies: options.policies,
  };
}

function clusterRow(
  policy: ClusterPolicy,
  point: LoadPoint,
  result: ClusterRunResult,
  hasExpected: boolean,
): ClusterResultRow {
  return {
    policy,
    load: point.load,
    rateTasksPerSecond: point.rate,
    liveTasks: point.live,
    tasksCompleted: result.tasksCompleted,
    taskCompletionSeconds: copyOf(result.taskCompletionSeconds),
    idealSeconds: result.idealSeconds,
    taskCompletionSecondsWithoutGaps: copyOf(result.taskCompletionSecondsWithoutGaps),
    prefixHitRate: result.prefixHitRate,
    beladyRatio: result.beladyRatio,
    costRatio: result.costRatio,
    regeneratedTokens: result.regeneratedTokens,
    memoryUtilization: result.memoryUtilization,
    sloAttainment: result.sloAttainment,
    sloAttainmentPaper: hasExpected ? result.sloAttainmentPaper : null,
    throughputTokensPerSecond: result.throughputTokensPerSecond,
    capacityPages: result.capacityPages,
    requestedPages: result.requestedPages,
    missedPages: result.missedPages,
    evictedPages: result.evictedPages,
    outputTokens: result.outputTokens,
    preemptions: result.preemptions,
    preemptedTokens: result.preemptedTokens,
    prefilledTokens: result.prefilledTokens,
    loadedTokens: result.loadedTokens,
    copiedPages: result.copiedPages,
    heldCalls: result.heldCalls,
    steals: result.steals,
    leases: { ...result.leases },
    stateDigest: result.stateDigest,
  };
}

function copyOf({ mean, p50, p95, p99 }: Distribution): Distribution {
  return { mean, p50, p95, p99 };
}

/** Runs all cells, a few at a time, and adds up their progress. */
function runAll<T, R>(
  cells: readonly T[],
  atOnce: number,
  progress: ProgressListener,
  run: (cell: T, onProgress: (done: number) => void) => Promise<R>,
): Promise<R[]> {
  const done = cells.map(() => 0);
  const report = (index: number, value: number): void => {
    done[index] = Math.min(1, value);
    progress.advance(done.reduce((sum, one) => sum + one, 0));
  };
  return inTurns(cells, atOnce, async (cell, index) => {
    const result = await run(cell, (value) => report(index, value));
    report(index, 1);
    return result;
  });
}

/** Results in the order of the items, whatever order they come in. After a failure nothing new is begun. */
export async function inTurns<T, R>(
  items: readonly T[],
  atOnce: number,
  run: (item: T, index: number) => Promise<R>,
): Promise<R[]> {
  const results: R[] = new Array<R>(items.length);
  let next = 0;
  let failed = false;
  const lane = async (): Promise<void> => {
    while (next < items.length && !failed) {
      const index = next++;
      try {
        results[index] = await run(items[index] as T, index);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  const lanes = await Promise.allSettled(Array.from({ length: Math.min(atOnce, items.length) }, lane));
  for (const outcome of lanes) if (outcome.status === 'rejected') throw outcome.reason;
  return results;
}
