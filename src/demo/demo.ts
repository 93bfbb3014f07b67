/**
 * `saga demo`: a gateway with four workers behind it and agents before it, on this machine: first with round robin, then with affinity, then with
 * SAGA, each on the same tasks and on workers whose caches are empty.
 *
 * The emulated workers have the step times of a model of 70B parameters on four A100 and pools so small that the agents under way
 * do not fit: then it matters who is let in, and where. With real workers (`SAGA_WORKERS`) the tasks are few and short.
 */
import { request } from 'undici';
import { SagaArgumentError, SagaError } from '../errors.js';
import { readConfiguration } from '../gateway/settings.js';
import type { Environment, ProgressStream } from '../simulate/progress.js';
import type { ServerOptions } from '../vllm/index.js';
import { callCount } from '../workload/columns.js';
import { generateTasks, paperWorkloads, type TaskClass } from '../workload/paper-workloads.js';
import { compare, policies, type Plan, type RunResult } from './comparison.js';
import { tableOf, verdictOf, warningsOf } from './table.js';
import { DemoView, grouped } from './view.js';
import { startEmulated } from './workers.js';

export interface DemoStreams {
  out: { write(text: string): unknown };
  err: ProgressStream;
  environment: Environment;
}

export interface DemoOptions {
  /** The file that is the command `saga`: emulated workers are processes of it. */
  command: string;
  /** Tasks of the emulated run. */
  tasks: number;
  /** How many times faster than real. */
  timeScale: number;
  /** Servers as `SAGA_WORKERS` has them. Default: emulated workers. */
  workers: string | undefined;
}

/** Nobody waits longer, whatever the machine. */
const longestSeconds = 170;

const emulated = { workers: 4, kvTokens: 56_000, blockTokens: 16, tasksPerSecond: 0.25 };
const sweBench = paperWorkloads['swe-bench'][0] as TaskClass;
/** SWE-bench's tasks with half the steps: so that they end while somebody watches. */
const emulatedClass: TaskClass = { ...sweBench, steps: { shape: 2, scale: 9 }, stepRange: { low: 2, high: 48 } };
/** Small enough for any server. */
const realClass: TaskClass = {
  ...sweBench,
  steps: { shape: 4, scale: 1 },
  stepRange: { low: 2, high: 6 },
  promptTokens: { low: 400, high: 800 },
  outputTokens: { low: 16, high: 48 },
  observationTokens: { shape: 2, scale: 30 },
};
const realTasks = { tasks: 12, live: 6 };

/** @returns the exit code */
export async function demo(options: DemoOptions, streams: DemoStreams, signal: AbortSignal): Promise<number> {
  const begun = performance.now();
  const tooLong = AbortSignal.timeout(longestSeconds * 1000);
  const stop = AbortSignal.any([signal, tooLong]);
  let view: DemoView | undefined;
  try {
    const plan =
      options.workers === undefined ? emulatedPlan(options) : await realPlan(serversOf(options.workers), stop);
    streams.err.write(`${introductionOf(plan, options)}\n`);
    view = new DemoView(streams.err, streams.environment);
    const shown = view;
    const results = await compare(plan, stop, (state) => {
      shown.show(state);
    });
    view.close();
    streams.out.write(`${reportOf(results, plan, (performance.now() - begun) / 1000)}\n`);
    for (const warning of warningsOf(results)) streams.err.write(`saga demo: ${warning}.\n`);
    return results.some(({ played }) => played.failedTasks > 0) ? 1 : 0;
  } catch (error) {
    view?.close();
    if (signal.aborted) return 130;
    if (tooLong.aborted) {
      streams.err.write(
        `saga demo: not at its end after ${longestSeconds} seconds: this machine is too slow for it.\n`,
      );
      return 1;
    }
    if (!(error instanceof Error)) throw error;
    streams.err.write(`saga demo: ${error.message}\n`);
    return error instanceof SagaError ? 2 : 1;
  }
}

function emulatedPlan({ command, tasks, timeScale }: DemoOptions): Plan {
  const { blockTokens } = emulated;
  return {
    model: 'demo',
    tasks: generateTasks({ classes: [emulatedClass], tasks, blockTokens }),
    arrivals: { tasksPerSecond: emulated.tasksPerSecond },
    timeScale,
    script: true,
    freshWords: false,
    blockTokens,
    startWorkers: (policy) =>
      startEmulated({ ...emulated, command, model: 'demo', timeScale, saga: policy === 'saga' }),
  };
}

async function realPlan(servers: readonly ServerOptions[], signal: AbortSignal): Promise<Plan> {
  const { url } = servers[0] as ServerOptions;
  const { statusCode, body } = await request(`${url}/v1/models`, { signal });
  const models = (await body.json()) as { data?: { id?: unknown }[] };
  const model = models.data?.[0]?.id;
  if (statusCode !== 200 || typeof model !== 'string') throw new Error(`${url}/v1/models names no model`);
  return {
    model,
    tasks: generateTasks({ classes: [realClass], tasks: realTasks.tasks }),
    arrivals: { live: realTasks.live },
    timeScale: 1,
    script: false,
    freshWords: true,
    blockTokens: servers[0]?.blockTokens ?? 16,
    startWorkers: () => Promise.resolve({ servers, close: () => Promise.resolve() }),
  };
}

/** `URL[,name=value]...[,URL...]`, also with spaces between servers. */
export function serversOf(text: string): ServerOptions[] {
  const servers: string[] = [];
  for (const part of text.split(/[\s,]+/).filter((piece) => piece !== '')) {
    if (/^https?:\/\//.test(part)) servers.push(part);
    else if (servers.length > 0) servers.push(`${servers.pop() as string},${part}`);
    else throw new SagaArgumentError(`SAGA_WORKERS must begin with a URL such as http://127.0.0.1:8000, got ${part}`);
  }
  if (servers.length === 0) throw new SagaArgumentError('SAGA_WORKERS names no worker');
  const { config } = readConfiguration({ flags: { model: 'demo', servers } });
  return [...(config.models[0]?.servers ?? [])];
}

function introductionOf(plan: Plan, { workers }: DemoOptions): string {
  const calls = callCount(plan.tasks);
  const tasks = `${plan.tasks.taskTenant.length} agent tasks like SWE-bench's, ${grouped(calls)} calls`;
  if (workers !== undefined)
    return `saga demo: ${tasks} on the real workers of SAGA_WORKERS, in real time: few and short tasks, so expect small differences.`;
  return (
    `saga demo: ${tasks} on ${emulated.workers} emulated workers with room for ${grouped(emulated.kvTokens)} tokens each, ` +
    `${plan.timeScale} times faster than real; ${policies.length} runs.`
  );
}

function reportOf(results: readonly RunResult[], plan: Plan, seconds: number): string {
  const scaled = plan.timeScale === 1 ? '' : `, ${plan.timeScale} times faster than the seconds of the table`;
  return `\n${tableOf(results)}\n\n${verdictOf(results)}\nIn all ${seconds.toFixed(0)} s${scaled}.`;
}
