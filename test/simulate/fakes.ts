/** A backend whose results follow from the options by simple formulas, and streams that remember. */
import type { SimulateStreams } from '../../src/cli/simulate.js';
import type {
  CacheRunOptions,
  ClusterHardware,
  ClusterRunOptions,
  SaturationOptions,
  SimulationBackend,
} from '../../src/simulate/backend.js';
import type { CachePolicy, ClusterPolicy } from '../../src/simulate/options.js';
import type { CacheSchedule, WorkloadColumns } from '../../src/workload/columns.js';

/** Misses of each policy as a multiple of the optimum's. */
export const missFactors: Record<CachePolicy, number> = {
  lru: 1.5,
  'lru-prefix': 1.25,
  'wa-lru': 2,
  ttl: 1.75,
  'saga-paper': 1.4,
  saga: 1.2,
  belady: 1,
};

const completionFactors: Record<ClusterPolicy, number> = {
  'round-robin': 4,
  affinity: 2,
  'wa-lru': 3,
  ttl: 1.5,
  'kv-router': 1.8,
  continuum: 1.6,
  'thunder-agent': 1.7,
  'kv-flow': 1.9,
  'saga-paper': 1.4,
  saga: 1.25,
};

/** What the fake was asked to do. */
export interface FakeBackend extends SimulationBackend {
  readonly opened: { workload: WorkloadColumns; pageTokens: number; schedule: CacheSchedule }[];
  readonly cacheRuns: CacheRunOptions[];
  readonly clusters: ClusterHardware[];
  readonly clusterRuns: ClusterRunOptions[];
  readonly saturations: SaturationOptions[];
  /** Most runs under way at one time. */
  mostAtOnce: number;
}

/** The fake: 1,000 distinct pages; a cache of n pages misses 10,000 - 10 n pages under the optimum. */
export function fakeBackend(distinctPages = 1000): FakeBackend {
  let running = 0;
  const slowly = async <T>(result: T): Promise<T> => {
    fake.mostAtOnce = Math.max(fake.mostAtOnce, ++running);
    await new Promise((resolve) => setTimeout(resolve, 2));
    --running;
    return result;
  };
  const fake: FakeBackend = {
    opened: [],
    cacheRuns: [],
    clusters: [],
    clusterRuns: [],
    saturations: [],
    mostAtOnce: 0,
    openCache(workload, pageTokens, schedule) {
      fake.opened.push({ workload, pageTokens, schedule });
      return {
        distinctPages,
        run(options, onProgress) {
          fake.cacheRuns.push(options);
          onProgress?.(0.5);
          const missedPages = (10_000 - 10 * options.capacityPages) * missFactors[options.policy];
          return slowly({
            requests: options.requestLimit,
            requestedPages: 50_000,
            missedPages,
            evictedPages: missedPages - options.capacityPages,
            missedCost: missedPages * 600,
            evictionNanoseconds: options.timing ? (missedPages - options.capacityPages) * 80 : 0,
            policyNanoseconds: options.timing ? 50_000 * 12.5 : 0,
          });
        },
      };
    },
    openCluster(workload, hardware) {
      fake.clusters.push(hardware);
      return {
        run(options, onProgress) {
          fake.clusterRuns.push(options);
          onProgress?.(0.5);
          const mean = completionFactors[options.policy] * 100 * (1 + options.rate + options.live / 100);
          const distribution = { mean, p50: mean * 0.8, p95: mean * 2, p99: mean * 3 };
          return slowly({
            tasksCompleted: workload.taskTenant.length,
            taskCompletionSeconds: distribution,
            taskCompletionSecondsWithoutGaps: { ...distribution, mean: mean - 20 },
            idealSeconds: 100,
            prefixHitRate: 0.9,
            capacityPages: 28_000,
            requestedPages: 5000,
            missedPages: 500,
            evictedPages: 100,
            beladyRatio: 1.25,
            costRatio: 1.5,
            regeneratedTokens: 1_234_567,
            memoryUtilization: 0.5,
            sloAttainment: 0.75,
            sloAttainmentPaper: 0.25,
            throughputTokensPerSecond: 4321,
            outputTokens: 9999,
            preemptions: 3,
            preemptedTokens: 30,
            prefilledTokens: 12_345,
            loadedTokens: 16,
            copiedPages: 4,
            heldCalls: 6,
            steals: 2,
            leases: { granted: 5, refused: 1, expired: 2, released: 1, revoked: 1 },
            stateDigest: '00000000deadbeef',
            journalBytes: 0,
          });
        },
        saturation(options, onRun) {
          fake.saturations.push(options);
          onRun?.(3);
          return slowly(2 / completionFactors[options.policy]);
        },
      };
    },
  };
  return fake;
}

/** Streams that keep what is written to them. */
export function rememberingStreams(
  environment: Record<string, string> = {},
): SimulateStreams & { texts: { out: string; err: string } } {
  const texts = { out: '', err: '' };
  return {
    texts,
    out: { write: (text: string) => (texts.out += text) },
    err: { write: (text: string) => (texts.err += text) },
    environment,
  };
}
