/**
 * Synthetic workloads of the SAGA paper: `swe-bench`, `web-arena` and `multi-tenant`.
 *
 * Source: *SAGA: Workflow-Atomic Scheduling for AI Agent Inference on GPU Clusters* (arXiv 2605.00528) and the generators
 * published with it. Every quantity but the tool class and its duration is drawn once per task and holds for all of its steps.
 * A task is a chain: context' = context + answer + observation, and every gap is the tool's time. Tasks share no tokens.
 *
 * Where this differs: the published simulation adds the observation twice and the answer never; here each is added once.
 *
 * Every class of tasks declares its agent graph ({@link graphOf}).
 */
import { SagaError } from '../errors.js';
import { AgentGraph } from '../graph/agent-graph.js';
import { toolClasses as toolClassNames } from '../graph/tool-class.js';
import {
  promptKindNumber,
  stopReasonNumber,
  toolClassNumber,
  WorkloadBuilder,
  type WorkloadColumns,
} from './columns.js';
import { Random } from './random.js';

/** A gamma distribution; its mean is `shape * scale`. */
export interface Gamma {
  shape: number;
  scale: number;
}

/** Whole numbers from `low` to `high`, both included. */
export interface Range {
  low: number;
  high: number;
}

/** Latency of a tool class: a log-normal through these two percentiles, in milliseconds. */
export interface ToolLatency {
  p50: number;
  p95: number;
}

/** Order of the tool classes in mixes and latency tables. */
export const toolClasses = [
  toolClassNumber.codeExecution,
  toolClassNumber.fileOperation,
  toolClassNumber.webApi,
  toolClassNumber.databaseQuery,
] as const;

/** Latencies of code execution, file operation, web API and database query ("production traces" of the paper). */
export const paperToolLatencies: readonly ToolLatency[] = [
  { p50: 180, p95: 2_400 },
  { p50: 45, p95: 320 },
  { p50: 850, p95: 4_500 },
  { p50: 120, p95: 890 },
];

/** A class of tasks. */
export interface TaskClass {
  /** In the workload's `classNames`. */
  name: string;
  /** Steps (calls) of a task: gamma, rounded, clipped to `stepRange`. */
  steps: Gamma;
  stepRange: Range;
  /** Tokens of the first prompt, uniform. */
  promptTokens: Range;
  /** Tokens of each answer, uniform. */
  outputTokens: Range;
  /** Tokens that a tool's result adds to the context: gamma, rounded, at least 1. */
  observationTokens: Gamma;
  /** Shares of code execution, file operation, web API and database query among the tools called. */
  toolMix: readonly [number, number, number, number];
  /** Expected completion time in seconds, the base of the paper's deadline. */
  expectedSeconds: number;
  /** Tenants that send such tasks. */
  tenants: number;
  /** Tasks a minute of one such tenant. Only the ratio between classes matters: the simulation sets the rate. */
  ratePerMinute: number;
  /** Weight of each such tenant. */
  weight: number;
}

const burstTools = [0.5, 0, 0.5, 0] as const;
const burstObservation = { shape: 2, scale: 200 } as const;

/** Task classes of the paper's workloads. */
export const paperWorkloads: Readonly<Record<'swe-bench' | 'web-arena' | 'multi-tenant', readonly TaskClass[]>> = {
  'swe-bench': [
    {
      name: 'swe-bench',
      steps: { shape: 2, scale: 18.5 },
      stepRange: { low: 1, high: 150 },
      promptTokens: { low: 2_000, high: 4_000 },
      outputTokens: { low: 100, high: 500 },
      observationTokens: { shape: 2, scale: 175 },
      toolMix: [0.45, 0.4, 0.1, 0.05],
      expectedSeconds: 200,
      tenants: 1,
      ratePerMinute: 8,
      weight: 1,
    },
  ],
  'web-arena': [
    {
      name: 'web-arena',
      steps: { shape: 2, scale: 9 },
      stepRange: { low: 1, high: 80 },
      promptTokens: { low: 4_000, high: 8_000 },
      outputTokens: { low: 50, high: 200 },
      observationTokens: { shape: 2, scale: 400 },
      toolMix: [0.05, 0.15, 0.75, 0.05],
      expectedSeconds: 80,
      tenants: 1,
      ratePerMinute: 8,
      weight: 1,
    },
  ],
  'multi-tenant': [
    {
      name: 'heavy',
      steps: { shape: 2, scale: 50 },
      stepRange: { low: 1, high: 200 },
      promptTokens: { low: 3_000, high: 5_000 },
      outputTokens: { low: 200, high: 600 },
      observationTokens: burstObservation,
      toolMix: burstTools,
      expectedSeconds: 120,
      tenants: 3,
      ratePerMinute: 16,
      weight: 3,
    },
    {
      name: 'medium',
      steps: { shape: 2, scale: 15 },
      stepRange: { low: 1, high: 80 },
      promptTokens: { low: 2_000, high: 4_000 },
      outputTokens: { low: 100, high: 400 },
      observationTokens: burstObservation,
      toolMix: burstTools,
      expectedSeconds: 36,
      tenants: 4,
      ratePerMinute: 8,
      weight: 2,
    },
    {
      name: 'light',
      steps: { shape: 2, scale: 5 },
      stepRange: { low: 1, high: 30 },
      promptTokens: { low: 1_500, high: 3_000 },
      outputTokens: { low: 50, high: 200 },
      observationTokens: burstObservation,
      toolMix: burstTools,
      expectedSeconds: 12,
      tenants: 3,
      ratePerMinute: 4,
      weight: 1,
    },
  ],
};

/** How {@link generateTasks} draws a workload. */
export interface GenerateTasksOptions {
  /** Task classes, as in {@link paperWorkloads}. */
  classes: readonly TaskClass[];
  /** Number of tasks, in the order in which they arrive. */
  tasks: number;
  /** Default 42. */
  seed?: number;
  /** Tokens of a block id. Default 16. */
  blockTokens?: number;
  /** Default {@link paperToolLatencies}. */
  toolLatencies?: readonly ToolLatency[];
  /**
   * Coefficient of variation of tool times (their variance experiment): the log-normals keep their means and get the sigma
   * that gives this value. Default: sigma through P50 and P95.
   */
  toolTimeVariation?: number;
  /** Shortest tool time in milliseconds. Default 1. */
  shortestToolMilliseconds?: number;
  /** Longest gap, in seconds. Default 1,800. */
  gapCapSeconds?: number;
}

/** Standard normal quantile of 0.95. */
const z95 = 1.6448536269514722;

/** Parameters (mu, sigma) of the log-normal of a tool's milliseconds. */
export function toolLogNormal(latency: ToolLatency, variation?: number): { mu: number; sigma: number } {
  const mu = Math.log(latency.p50);
  const sigma = Math.log(latency.p95 / latency.p50) / z95;
  if (variation === undefined) return { mu, sigma };
  const wanted = Math.sqrt(Math.log(1 + variation * variation));
  return { mu: mu + (sigma * sigma) / 2 - (wanted * wanted) / 2, sigma: wanted };
}

/** Mean of a tool's time in seconds, as {@link toolLogNormal} has it. */
function meanSeconds({ mu, sigma }: { mu: number; sigma: number }): number {
  return Math.exp(mu + (sigma * sigma) / 2) / 1000;
}

/**
 * What a client declares for a class of tasks: a step for each tool of its mix, each followed by every step with the tool's share
 * of the probability that the task goes on. All values are means over the class, so that nothing tells what a task will draw.
 */
export function graphOf(
  taskClass: TaskClass,
  latencies: readonly ToolLatency[] = paperToolLatencies,
  toolTimeVariation?: number,
): AgentGraph {
  const meanSteps = Math.max(1, taskClass.steps.shape * taskClass.steps.scale);
  const mixed = taskClass.toolMix.reduce((sum, share) => sum + share, 0);
  const tools = taskClass.toolMix.flatMap((share, at) => {
    const name = toolClassNames[toolClasses[at] as number];
    return share > 0 && name !== undefined
      ? [{ name, share: share / mixed, latency: latencies[at] as ToolLatency }]
      : [];
  });
  const { low, high } = taskClass.outputTokens;
  return AgentGraph.fromJSON({
    name: taskClass.name,
    steps: tools.map(({ name, latency }) => ({
      name,
      tool: name,
      outputTokens: (low + high) / 2,
      observationTokens: taskClass.observationTokens.shape * taskClass.observationTokens.scale,
      gapSeconds: meanSeconds(toolLogNormal(latency, toolTimeVariation)),
    })),
    edges: tools.flatMap((from) =>
      tools.map((to) => ({ from: from.name, to: to.name, probability: to.share * (1 - 1 / meanSteps) })),
    ),
    start: Object.fromEntries(tools.map(({ name, share }) => [name, share])),
    firstPromptTokens: (taskClass.promptTokens.low + taskClass.promptTokens.high) / 2,
    expectedCalls: meanSteps,
    expectedSeconds: taskClass.expectedSeconds,
  });
}

/**
 * Draws a workload. Task n is the same however many follow it. The tenant of each task is drawn in proportion to the rates,
 * which is what a superposition of the tenants' Poisson processes gives.
 *
 * @throws SagaError `SAGA_ERR_OPTION` for a number of tasks that is not whole and positive, or no classes
 */
export function generateTasks(options: GenerateTasksOptions): WorkloadColumns {
  const { classes, tasks } = options;
  if (!Number.isInteger(tasks) || tasks < 1)
    throw new SagaError('SAGA_ERR_OPTION', `expected a whole number of tasks, at least 1, not ${tasks}`);
  if (classes.length === 0) throw new SagaError('SAGA_ERR_OPTION', 'expected at least one task class');
  const blockTokens = options.blockTokens ?? 16;
  const gapCap = options.gapCapSeconds ?? 1800;
  const shortest = options.shortestToolMilliseconds ?? 1;
  const tools = (options.toolLatencies ?? paperToolLatencies).map((latency) =>
    toolLogNormal(latency, options.toolTimeVariation),
  );
  const rates = classes.map((one) => one.tenants * one.ratePerMinute);
  const firstTenant = classes.map((_, index) => classes.slice(0, index).reduce((sum, one) => sum + one.tenants, 0));

  const builder = new WorkloadBuilder(
    blockTokens,
    classes.map((one) => one.name),
    classes.map((one) => graphOf(one, options.toolLatencies, options.toolTimeVariation)),
  );
  const root = new Random(options.seed ?? 42);
  let nextId = 0;
  for (let task = 0; task < tasks; ++task) {
    const random = root.fork(task);
    const classNumber = classes.length === 1 ? 0 : random.weighted(rates);
    const drawn = classes[classNumber] as TaskClass;
    const tenant =
      (firstTenant[classNumber] as number) + (drawn.tenants === 1 ? 0 : random.integer(0, drawn.tenants - 1));
    const wantedSteps = Math.round(random.gamma(drawn.steps.shape, drawn.steps.scale));
    const steps = Math.min(drawn.stepRange.high, Math.max(drawn.stepRange.low, wantedSteps));
    let context = random.integer(drawn.promptTokens.low, drawn.promptTokens.high);
    const output = random.integer(drawn.outputTokens.low, drawn.outputTokens.high);
    const observation = Math.max(
      1,
      Math.round(random.gamma(drawn.observationTokens.shape, drawn.observationTokens.scale)),
    );

    builder.beginTask({
      name: '',
      tenant,
      taskClass: classNumber,
      expectedSeconds: drawn.expectedSeconds,
      weight: drawn.weight,
      arrival: Number.NaN,
      graph: classNumber,
    });
    let gap = 0;
    for (let step = 0; step < steps; ++step) {
      const last = step === steps - 1;
      const tool = random.weighted(drawn.toolMix);
      const call = builder.addCall({
        thread: task,
        promptTokens: context,
        outputTokens: output,
        promptKind: step === 0 ? promptKindNumber.start : promptKindNumber.tool,
        stopReason: last ? stopReasonNumber.endTurn : stopReasonNumber.toolUse,
        toolClass: last ? toolClassNumber.none : (toolClasses[tool] as number),
        seconds: Number.NaN,
        time: 0,
        gapSeconds: gap,
        number: step,
        main: true,
      });
      if (step > 0) builder.addPredecessor(call - 1, Math.min(gap, gapCap));
      const blocks = Math.floor(context / blockTokens);
      if (blocks > 0) builder.addRun(nextId, blocks);
      if (last) {
        nextId += blocks;
        break;
      }
      const { mu, sigma } = tools[tool] as { mu: number; sigma: number };
      gap = Math.max(shortest, random.logNormal(mu, sigma)) / 1000;
      context += output + observation;
    }
  }
  return builder.finish();
}
