/**
 * The same tasks on the same workers under several policies, one after another: for each the workers are empty, a gateway is put in front of them,
 * and agents are played against it.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { Gateway } from '../gateway/index.js';
import { noProgress, playTasks, type Arrivals, type PlayProgress, type PlayResult } from '../play/index.js';
import type { Logger } from '../vllm/index.js';
import { taskCount, type WorkloadColumns } from '../workload/columns.js';
import { countersOf, type WorkerCounters, type Workers } from './workers.js';

/** In the order in which they run. */
export const policies = ['round-robin', 'affinity', 'saga'] as const;
export type Policy = (typeof policies)[number];

export interface Plan {
  model: string;
  tasks: WorkloadColumns;
  arrivals: Arrivals;
  timeScale: number;
  /** Whether answers are dictated: only emulated workers can be told. */
  script: boolean;
  /** Other words in every run: for workers that are not empty. */
  freshWords: boolean;
  /** Tokens of a KV block of the workers. */
  blockTokens: number;
  startWorkers: (policy: Policy) => Promise<Workers>;
}

/** A run as it goes: what a view draws. */
export interface RunState {
  policy: Policy;
  /** From 1. */
  run: number;
  runs: number;
  timeScale: number;
  /** Of this machine, since the run's beginning. */
  seconds: number;
  progress: PlayProgress;
  /** Calls that wait in the gateway. */
  queuedCalls: number;
  placements: number;
  workers: (WorkerCounters & { url: string })[];
}

export interface RunResult {
  policy: Policy;
  played: PlayResult;
  /** Of the workers in this run. */
  cachedTokens: number;
  queriedTokens: number;
  preemptions: number;
  /** NaN where workers do not tell. */
  busySeconds: number;
  /** By which a step was late on average, in seconds of the workload; NaN where workers do not tell. */
  stepLateSeconds: number;
}

const silent: Logger = { debug() {}, info() {}, warn() {}, error() {} };
/** Milliseconds between two looks at the workers. */
const lookMs = 400;

/**
 * Runs every policy.
 *
 * @param onState called at every look at the workers
 */
export async function compare(
  plan: Plan,
  signal: AbortSignal,
  onState: (state: RunState) => void,
): Promise<RunResult[]> {
  const results: RunResult[] = [];
  for (const [at, policy] of policies.entries()) results.push(await runPolicy(plan, policy, at, signal, onState));
  return results;
}

async function runPolicy(
  plan: Plan,
  policy: Policy,
  at: number,
  signal: AbortSignal,
  onState: (state: RunState) => void,
): Promise<RunResult> {
  const { model, timeScale } = plan;
  const workers = await plan.startWorkers(policy);
  let gateway: Gateway | undefined;
  const looking = new AbortController();
  try {
    signal.throwIfAborted();
    gateway = await Gateway.start({
      models: [{ name: model, policy, servers: workers.servers, blockTokens: plan.blockTokens }],
      timeScale,
      port: 0,
      // Of this machine: nobody gives up.
      queueSeconds: 3600,
      log: silent,
    });
    const pool = gateway.pools.get(model);
    const unready = pool?.workers.workers.filter(({ condition }) => condition !== 'ready') ?? [];
    if (pool === undefined || pool.workers.workers.length < workers.servers.length || unready.length > 0) {
      const found = pool?.workers.metrics().servers.map(({ url, condition }) => `${url} is ${condition}`) ?? [];
      throw new Error(`not all workers can be used: ${found.join(', ')}`);
    }
    const { port } = await gateway.listen();
    const urls = workers.servers.map(({ url }) => url);
    const before = await Promise.all(urls.map((url) => countersOf(url, signal)));
    const state: RunState = {
      policy,
      run: at + 1,
      runs: policies.length,
      timeScale,
      seconds: 0,
      progress: noProgress(taskCount(plan.tasks)),
      queuedCalls: 0,
      placements: 0,
      workers: before.map((counters, i) => ({ ...since(counters, counters), url: urls[i] as string })),
    };
    const begun = performance.now();
    const look = async (): Promise<void> => {
      const now = await Promise.all(urls.map((url) => countersOf(url, looking.signal)));
      now.forEach((counters, i) => {
        Object.assign(state.workers[i] as object, since(counters, before[i] as WorkerCounters));
      });
      state.seconds = (performance.now() - begun) / 1000;
      state.progress.seconds = state.seconds * timeScale;
      state.queuedCalls = pool.waitingCalls;
      state.placements = pool.counters.placed;
    };
    const lookOn = async (): Promise<void> => {
      for (;;) {
        await look();
        onState(state);
        await delay(lookMs, undefined, { signal: looking.signal });
      }
    };
    // A look that fails says nothing: a worker that is gone ends its calls.
    const looked = lookOn().catch(() => undefined);
    const played = await playTasks({
      url: `http://127.0.0.1:${port}`,
      model,
      tasks: plan.tasks,
      timeScale,
      arrivals: plan.arrivals,
      contentSeed: plan.freshWords ? Date.now() + at : 1,
      // Every chunk would cost this machine more than it shows.
      stream: false,
      script: plan.script,
      sessionPrefix: `demo-${policy}`,
      signal,
      onProgress: (progress) => {
        state.progress = progress;
      },
    });
    looking.abort();
    await looked;
    const after = await Promise.all(urls.map((url) => countersOf(url, signal)));
    const total = after.map((counters, i) => since(counters, before[i] as WorkerCounters));
    const sum = (of: (counters: WorkerCounters) => number): number => total.reduce((all, one) => all + of(one), 0);
    return {
      policy,
      played,
      cachedTokens: sum((one) => one.cachedTokens),
      queriedTokens: sum((one) => one.queriedTokens),
      preemptions: sum((one) => one.preemptions),
      busySeconds: sum((one) => one.busySeconds),
      stepLateSeconds:
        (sum((one) => one.lateSeconds) * timeScale) /
        Math.max(
          1,
          sum((one) => one.steps),
        ),
    };
  } finally {
    looking.abort();
    await gateway?.close({ graceSeconds: 0 });
    await workers.close();
  }
}

/** Counters are differences; the rest is as it is now. */
function since(now: WorkerCounters, before: WorkerCounters): WorkerCounters {
  return {
    running: now.running,
    waiting: now.waiting,
    usage: now.usage,
    queriedTokens: now.queriedTokens - before.queriedTokens,
    cachedTokens: now.cachedTokens - before.cachedTokens,
    preemptions: now.preemptions - before.preemptions,
    busySeconds: now.busySeconds - before.busySeconds,
    steps: now.steps - before.steps,
    lateSeconds: now.lateSeconds - before.lateSeconds,
  };
}
