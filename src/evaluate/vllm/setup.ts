/**
 * What `saga evaluate vllm` plays, on what: workloads, pools, loads, systems.
 *
 * One token that is played stands for {@link grain} tokens, and one step for as many steps: prompts and answers are a quarter as
 * long, a 64-token id of the trace is one 16-token block, and steps take the time that the whole ones would (`step-model.ts`). The
 * simulator plays the same workload with the same grain, so the two can be compared figure by figure.
 */
import { join } from 'node:path';
import { scaledWorkload } from '../../play/index.js';
import type { ClusterHardware } from '../../simulate/backend.js';
import { noGraph, selectTasks, taskCount, type WorkloadColumns } from '../../workload/columns.js';
import { generateTasks, paperWorkloads, type TaskClass } from '../../workload/paper-workloads.js';
import { readTrace } from '../../workload/trace.js';
import type { System } from '../systems.js';
import type { WorkloadSource } from '../workloads.js';
import { blockTokens, type VllmEnvironment } from './servers.js';

export const grain = 4;

/** Of arrivals, contents and generated tasks. */
export const seed = 42;

/** A system that is measured: engines, what stands in front of them, and how the simulator plays it. */
export interface MeasuredSystem {
  /** In tables: `a` to `d`. */
  letter: string;
  title: string;
  environment: VllmEnvironment;
  connector: boolean;
  /** Of the gateway. */
  policy: 'round-robin' | 'affinity' | 'saga';
  simulated: System;
  /** Whether its engines admit a call only where the whole prompt finds room (`scheduler_reserve_full_isl`). */
  wholePrompts: boolean;
}

/** vLLM workers cannot copy blocks between each other on order. */
const without = ['stealing', 'prefetch'] as const;

export const measuredSystems: readonly MeasuredSystem[] = [
  {
    letter: 'a',
    title: 'vLLM 0.15.1, affinity',
    environment: 'baseline',
    connector: false,
    policy: 'affinity',
    simulated: { name: 'affinity', policy: 'affinity', hints: 'graph' },
    wholePrompts: false,
  },
  {
    letter: 'b',
    title: 'vLLM 0.33.0, round robin',
    environment: 'latest',
    connector: false,
    policy: 'round-robin',
    simulated: { name: 'round-robin', policy: 'round-robin', hints: 'graph' },
    wholePrompts: true,
  },
  {
    letter: 'c',
    title: 'vLLM 0.33.0, affinity',
    environment: 'latest',
    connector: false,
    policy: 'affinity',
    simulated: { name: 'affinity', policy: 'affinity', hints: 'graph' },
    wholePrompts: true,
  },
  {
    letter: 'd',
    title: 'vLLM 0.33.0, SAGA',
    environment: 'latest',
    connector: true,
    policy: 'saga',
    simulated: { name: 'saga', policy: 'saga', hints: 'graph', without: [...without] },
    wholePrompts: true,
  },
];

/** What is measured, and how large. */
export interface VllmSetup {
  systems: readonly MeasuredSystem[];
  workloads: readonly { name: string; text: string; source: WorkloadSource }[];
  /** Highest first: what a connector learns in one run it knows in the next, and the goal is set for the first. */
  loads: readonly number[];
  cluster: ClusterHardware;
  blocks: number;
  timeScale: number;
}

/** The full set, or the smoke test of a quick run. */
export function setupOf(quick: boolean, traces: string | undefined, timeScale: number): VllmSetup {
  const blocks = quick ? 300 : 900;
  const workers = quick ? 2 : 4;
  const swe = sweSource(quick ? 32 : 120, quick ? 0.2 : 0.4);
  const trace = traces === undefined || quick ? [] : [traceSource(join(traces, 'claude-code-v6', 'requests.jsonl'))];
  return {
    systems: quick ? measuredSystems.filter(({ letter }) => letter === 'c' || letter === 'd') : measuredSystems,
    workloads: [swe, ...trace],
    loads: quick ? [1.1] : [1.1, 0.9, 0.5],
    blocks,
    timeScale,
    cluster: {
      workers,
      hardware: 'a100-tp4',
      pageTokens: blockTokens,
      kvTokens: blocks * blockTokens,
      maxSequences: 256,
      stepTokens: 2048,
      hostTierTokens: 0,
      linkBytesPerSecond: 25e9,
      tokenGrain: grain,
      wholePrompts: true,
    },
  };
}

/** Tasks of the class `swe-bench` with fewer steps. */
function sweSource(tasks: number, share: number): VllmSetup['workloads'][number] {
  const [whole] = paperWorkloads['swe-bench'] as [TaskClass];
  const taskClass: TaskClass = {
    ...whole,
    steps: { shape: whole.steps.shape, scale: whole.steps.scale * share },
    stepRange: { low: whole.stepRange.low, high: Math.round(whole.stepRange.high * share) },
  };
  return {
    name: 'swe-bench',
    text: `swe-bench with ${share} of its steps`,
    source: {
      key: `vllm swe-bench tasks=${tasks} share=${share} seed=${seed}`,
      open: () =>
        Promise.resolve(
          scaledWorkload(
            undeclared(generateTasks({ classes: [taskClass], tasks, seed, blockTokens: grain * blockTokens })),
            blockTokens,
          ),
        ),
    },
  };
}

const sessions = 90;
const calls = 8;
const gapSeconds = 30;

/** The beginnings of recorded sessions. */
function traceSource(file: string): VllmSetup['workloads'][number] {
  return {
    name: 'claude-code-v6',
    text: `the first ${calls} calls of each of ${sessions} recorded sessions, gaps of at most ${gapSeconds} s`,
    source: {
      key: `vllm ${file} sessions=${sessions} calls=${calls} gap=${gapSeconds}`,
      async open() {
        const trace = await readTrace(file, { onError: 'fail' });
        const whole = trace.workload({ limit: sessions, gapCapSeconds: gapSeconds });
        return scaledWorkload(selectTasks(whole, () => true, calls) as WorkloadColumns, blockTokens);
      },
    },
  };
}

/** Clients of a gateway declare no graphs; that a task is over they do say. */
function undeclared(columns: WorkloadColumns): WorkloadColumns {
  return { ...columns, graphs: [], taskGraph: new Uint32Array(taskCount(columns)).fill(noGraph) };
}
