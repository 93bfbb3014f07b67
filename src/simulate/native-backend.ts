/**
 * The native simulations behind {@link SimulationBackend}: packs options into the arrays that cross the border and takes
 * results out of them. A run occupies one thread of Node's pool; the workload is copied once for each `open`.
 */
import { SagaArgumentError, errorOfStatus } from '../errors.js';
import native from '../native.cjs';
import type { WorkloadColumns } from '../workload/columns.js';
import type {
  ClusterRunOptions,
  ClusterRunResult,
  Distribution,
  SaturationOptions,
  SimulationBackend,
} from './backend.js';
import { cachePolicies, type CachePolicy, type ClusterPolicy, type Hardware } from './options.js';

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
const roundRobin = 0;
const affinity = 1;
const policyParts: Readonly<Record<ClusterPolicy, readonly [placement: number, eviction: CachePolicy]>> = {
  'round-robin': [roundRobin, 'lru'],
  affinity: [affinity, 'lru'],
  'wa-lru': [affinity, 'wa-lru'],
  ttl: [affinity, 'ttl'],
};

/** `cachePolicies` stands in the order of `saga_eviction_t`. */
function evictionNumber(policy: CachePolicy): number {
  return cachePolicies.indexOf(policy);
}

/** The simulations of the addon. */
export const nativeBackend: SimulationBackend = {
  openCache(workload, pageTokens, schedule) {
    const replay = made(
      native.createCacheReplay(createWorkload(workload), pageTokens, schedule.call, schedule.start, schedule.end),
      `pages of ${pageTokens} tokens do not fit blocks of ${workload.blockTokens}: one must be a multiple of the other`,
    );
    // A trace of single requests has no threads that a policy could be told of.
    const inferThreads = workload.taskArrival === undefined ? 0 : 1;
    return {
      distinctPages: native.cacheReplayDistinctPages(replay),
      async run({ policy, model, capacityPages, requestLimit, timing }, onProgress) {
        const options = Float64Array.of(
          evictionNumber(policy),
          model === 'atomic' ? 0 : 1,
          capacityPages,
          requestLimit,
          inferThreads,
          timing ? 1 : 0,
        );
        const result = new Float64Array(8);
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
        const cluster = await opening;
        const result = new Float64Array(28);
        await watched(
          (counter) => native.runCluster(cluster, runOptions(run), run.journal ?? '', result, counter),
          onProgress && ((count) => onProgress(count / tasks)),
          run.journal === undefined ? 'the cluster cannot run' : `the journal ${run.journal} cannot be written`,
        );
        return clusterResult(result);
      },
      async saturation(search, onRun) {
        const cluster = await opening;
        const result = new Float64Array(1);
        const options = runOptions({ ...search, rate: 0, live: 0 });
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
  return made(native.createWorkload(workload), 'the workload is not valid');
}

function runOptions({
  policy,
  live,
  rate,
  seed,
}: ClusterRunOptions | (SaturationOptions & { live: 0; rate: 0 })): Float64Array {
  const [placement, eviction] = policyParts[policy];
  return Float64Array.of(placement, evictionNumber(eviction), live, rate, seed);
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
function clusterResult(values: Float64Array): ClusterRunResult {
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
    stateDigest: ((BigInt(at(25)) << 32n) | BigInt(at(26))).toString(16).padStart(16, '0'),
    journalBytes: at(27),
  };
}
