/**
 * The native simulations behind {@link SimulationBackend}: packs options into the arrays that cross the border and takes
 * results out of them. A run occupies one thread of Node's pool; the workload is copied once for each `open`.
 */
import { SagaArgumentError, errorOfStatus } from '../errors.js';
import native from '../native.cjs';
import type { WorkloadColumns } from '../workload/columns.js';
import type { ClusterRunOptions, ClusterRunResult, Distribution, SimulationBackend } from './backend.js';
import {
  clusterPolicies,
  runsThroughEngine,
  partsOfPolicy,
  policyParameters,
  policyParts,
  type CachePolicy,
  type Hardware,
} from './options.js';

/** How often a run in progress is looked at. */
const pollMilliseconds = 100;

/** The status of a search that finds nothing. */
const notFound = -2;

/** Numbers of the C interface. */
const hardwareNumbers: Readonly<Record<Hardware, number>> = {
  'h100-tp4': 0,
  'h100-tp8': 1,
  'a100-tp4': 2,
  'a100-tp8': 3,
};
const evictionNumbers: Readonly<Record<CachePolicy, number>> = {
  lru: 0,
  'lru-prefix': 1,
  'wa-lru': 2,
  ttl: 3,
  belady: 4,
  'saga-paper': 5,
  saga: 6,
};
/** Places for parameters of a policy. */
const parameterCount = 8;

/** The simulations of the addon. */
export const nativeBackend: SimulationBackend = {
  openCache(workload, pageTokens, schedule) {
    const replay = made(
      native.createCacheReplay(
        createWorkload(workload),
        pageTokens,
        schedule.call,
        schedule.start,
        schedule.end,
        schedule.sessionEnd,
        schedule.declaredGap,
      ),
      `pages of ${pageTokens} tokens do not fit blocks of ${workload.blockTokens}: one must be a multiple of the other`,
    );
    // A trace of single requests has no threads that a policy could be told of.
    const inferThreads = workload.taskArrival === undefined ? 0 : 1;
    return {
      distinctPages: native.cacheReplayDistinctPages(replay),
      async run({ policy, model, capacityPages, requestLimit, timing }, onProgress) {
        const options = Float64Array.of(
          evictionNumbers[policy],
          model === 'atomic' ? 0 : 1,
          capacityPages,
          requestLimit,
          inferThreads,
          timing ? 1 : 0,
        );
        const result = new Float64Array(9);
        await watched(
          (counter) => native.runCacheReplay(replay, options, result, counter),
          onProgress && ((count) => onProgress(count / requestLimit)),
          'the cache replay cannot run',
        );
        const at = (index: number): number => result[index] as number;
        return {
          requests: at(0),
          requestedPages: at(1),
          missedPages: at(2),
          evictedPages: at(3),
          missedCost: at(5),
          evictionNanoseconds: at(6),
          policyNanoseconds: at(8),
        };
      },
    };
  },

  openCluster(workload, hardware) {
    const options = Float64Array.of(
      hardware.workers,
      hardwareNumbers[hardware.hardware],
      hardware.pageTokens,
      hardware.maxSequences,
      hardware.stepTokens,
      hardware.kvTokens,
      hardware.hostTierTokens,
      hardware.linkBytesPerSecond,
      hardware.tokenGrain ?? 1,
      hardware.wholePrompts === true ? 1 : 0,
    );
    const tasks = workload.taskTenant.length;
    const opening = native.createCluster(createWorkload(workload), options).then((cluster) => {
      if (cluster === -1) {
        throw new SagaArgumentError(
          `the cluster cannot serve this workload: every call must fit into the KV room of a worker (${hardware.kvTokens} tokens)`,
        );
      }
      return made(cluster, 'the cluster cannot be made');
    });
    opening.catch(() => undefined); // whoever awaits a run gets the error
    return {
      async run(run, onProgress) {
        const options = runOptions(workload, run);
        const cluster = await opening;
        const result = new Float64Array(39);
        const taskSeconds = run.taskSeconds === true ? new Float64Array(tasks) : undefined;
        await watched(
          (counter) => native.runCluster(cluster, options, run.journal ?? '', result, counter, taskSeconds),
          onProgress && ((count) => onProgress(count / tasks)),
          run.journal === undefined ? 'the cluster cannot run' : `the journal ${run.journal} cannot be written`,
        );
        return {
          ...clusterResult(result, runsThroughEngine(run.policy, hardware.hostTierTokens)),
          ...(taskSeconds === undefined ? {} : { taskSeconds }),
        };
      },
      async saturation(search, onRun) {
        const options = runOptions(workload, { ...search, rate: 0, live: 0 });
        const cluster = await opening;
        const result = new Float64Array(1);
        let status = 0;
        await watched(
          async (counter) => {
            status = await native.clusterSaturation(cluster, options, result, counter);
            return status === notFound ? 0 : status;
          },
          onRun,
          'the saturation rate cannot be searched',
        );
        if (status === notFound) {
          throw new SagaArgumentError(
            `expected more than ${tasks} tasks on ${hardware.workers} workers: no rate of arrival saturates them under ${search.policy}`,
          );
        }
        return result[0] as number;
      },
    };
  },
};

function createWorkload(workload: WorkloadColumns): native.Workload {
  const graphs = workload.graphs.map((graph) => graph.toColumns());
  const rows = graphs.map(({ steps, edges, totals }) => [steps.length / 4, edges.length / 3, ...totals]);
  const columns = {
    ...workload,
    graphRows: Float64Array.from(rows.flat()),
    graphSteps: Float64Array.from(graphs.flatMap(({ steps }) => [...steps])),
    graphEdges: Float64Array.from(graphs.flatMap(({ edges }) => [...edges])),
  };
  return made(native.createWorkload(columns), 'the workload is not valid');
}

/** Options of a run as they cross the border. */
function runOptions(
  workload: WorkloadColumns,
  { policy, live, rate, seed, hints, without = [], parameters = {} }: ClusterRunOptions,
): Float64Array {
  const told = hints ?? (workload.graphs.length > 0 ? 'graph' : 'none');
  const parts = without.reduce((sum, name) => {
    const part = partsOfPolicy[policy]?.find((one) => one === name);
    if (part === undefined) throw new SagaArgumentError(`without must name parts of ${policy}, got ${name}`);
    return sum | (1 << policyParts.indexOf(part));
  }, 0);
  const values = new Array<number>(parameterCount).fill(Number.NaN);
  for (const [name, value] of Object.entries(parameters)) {
    const number = policyParameters[policy]?.indexOf(name) ?? -1;
    if (number < 0) throw new SagaArgumentError(`parameters must be those of ${policy}, got ${name}`);
    if (!Number.isFinite(value)) throw new SagaArgumentError(`parameters.${name} must be a number, got ${value}`);
    values[number] = value;
  }
  return Float64Array.of(clusterPolicies.indexOf(policy), told === 'graph' ? 1 : 0, parts, live, rate, seed, ...values);
}

/** A handle, or the error of the status that came in its place. */
function made<T extends object>(handle: T | number, what: string): T {
  if (typeof handle === 'number') throw errorOfStatus(-handle, `${what} (${native.statusText(-handle)})`);
  return handle;
}

/** Waits for a run and reports its counter meanwhile. Throws the error of its status. */
async function watched(
  start: (counter: BigUint64Array) => Promise<number>,
  onCount: ((count: number) => void) | undefined,
  what: string,
): Promise<void> {
  // Shared memory, because it is read while another thread writes it.
  const counter = new BigUint64Array(new SharedArrayBuffer(8));
  const timer = onCount && setInterval(() => onCount(Number(Atomics.load(counter, 0))), pollMilliseconds);
  try {
    const status = await start(counter);
    if (status < 0) throw errorOfStatus(-status, `${what} (${native.statusText(-status)})`);
  } finally {
    clearInterval(timer);
  }
}

/** The order of the values is that of `runCluster` in `native.d.cts`. */
function clusterResult(values: Float64Array, throughEngine: boolean): ClusterRunResult {
  const at = (index: number): number => values[index] as number;
  const distribution = (from: number): Distribution => ({
    mean: at(from),
    p50: at(from + 1),
    p95: at(from + 2),
    p99: at(from + 3),
  });
  return {
    tasksCompleted: at(0),
    taskCompletionSeconds: distribution(1),
    taskCompletionSecondsWithoutGaps: distribution(5),
    idealSeconds: at(9),
    prefixHitRate: at(10),
    capacityPages: at(11),
    requestedPages: at(12),
    missedPages: at(13),
    evictedPages: at(14),
    beladyRatio: at(15),
    costRatio: at(16),
    regeneratedTokens: at(17),
    memoryUtilization: at(18),
    sloAttainment: at(19),
    sloAttainmentPaper: at(20),
    throughputTokensPerSecond: at(21),
    outputTokens: at(22),
    preemptions: at(23),
    preemptedTokens: at(30),
    prefilledTokens: at(28),
    loadedTokens: at(29),
    copiedPages: at(31),
    heldCalls: at(32),
    steals: at(33),
    leases: { granted: at(34), refused: at(35), expired: at(36), released: at(37), revoked: at(38) },
    stateDigest: throughEngine ? ((BigInt(at(25)) << 32n) | BigInt(at(26))).toString(16).padStart(16, '0') : null,
    journalBytes: at(27),
  };
}
