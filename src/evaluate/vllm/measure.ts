/**
 * One run: tasks played against a gateway in front of vLLM servers that are up, with empty prefix caches.
 *
 * The gateway is made for the run, so that it knows nothing of an earlier one. Counters are read before and after, when nothing runs.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { SagaError } from '../../errors.js';
import type { GatewayConfig } from '../../gateway/index.js';
import { playTasks } from '../../play/index.js';
import type { Logger } from '../../vllm/index.js';
import type { WorkloadColumns } from '../../workload/columns.js';
import { addedCounters } from './counters.js';
import { blockTokens, type ServerSet } from './servers.js';
import { grain, seed, type MeasuredSystem } from './setup.js';
import { schedulerStepSeconds } from './step-model.js';

/** What came of a run. Seconds are those of the workload; tokens are those that were played. */
export interface MeasuredRun {
  tasks: number;
  calls: number;
  /** Calls that were not answered as they should have been, and the first reasons. */
  errors: number;
  reasons: string[];
  completionMean: number;
  completionP95: number;
  withoutGapsMean: number;
  withoutGapsP95: number;
  /** As the engines' metrics count them. */
  queries: number;
  hits: number;
  preemptions: number;
  generationTokens: number;
  /** Prompt tokens that the executors computed, those after a preemption included. */
  prefilledTokens: number;
  /** GPU time of all servers. */
  busySeconds: number;
  /** Wall time of the run. */
  wallSeconds: number;
  /** Wall time by which steps of all servers were late, over that of the run times servers. */
  lateShare: number;
  /** Seconds of a task (mean) that its calls were neither held in the gateway nor waiting or running in an engine. */
  betweenSeconds: number;
  /** Of them, those by which calls were sent late. */
  clientLateSeconds: number;
  /** Seconds of a task that its calls were held in the gateway. */
  heldSeconds: number;
  /** What the gateway complained of. */
  warnings: string[];
  versions: string;
}

const patience = 1800; // wall seconds of a run

/** Runs that are kept in a folder, by everything that matters for their outcome. */
export class KeptRuns {
  constructor(private readonly folder: string | undefined) {
    if (folder !== undefined) mkdirSync(folder, { recursive: true });
  }

  get(name: string, key: object): MeasuredRun | undefined {
    const file = this.#file(name);
    if (file === undefined || !existsSync(file)) return undefined;
    const kept = JSON.parse(readFileSync(file, 'utf8')) as { key: object; run: MeasuredRun };
    return JSON.stringify(kept.key) === JSON.stringify(key) ? kept.run : undefined;
  }

  put(name: string, key: object, run: MeasuredRun): void {
    const file = this.#file(name);
    if (file !== undefined) writeFileSync(file, `${JSON.stringify({ key, run }, null, 2)}\n`);
  }

  #file(name: string): string | undefined {
    return this.folder === undefined ? undefined : join(this.folder, `${name}.json`);
  }
}

/** Plays the tasks; every call has ended when it returns. */
export async function measure(
  set: ServerSet,
  system: MeasuredSystem,
  tasks: WorkloadColumns,
  tasksPerSecond: number,
  timeScale: number,
): Promise<MeasuredRun> {
  const warnings: string[] = [];
  await set.reset();
  const gateway = await (
    await import('../../gateway/index.js')
  ).Gateway.start(configOf(set, system, timeScale, loggerOf(warnings)));
  try {
    const { port } = await gateway.listen();
    for (const pool of gateway.pools.values())
      for (const { server, condition, trust, degraded } of pool.workers.workers)
        if (condition !== 'ready' || trust < 1 || degraded.length > 0)
          warnings.push(`${server.url} is ${condition}, trust ${trust}: ${degraded.join('; ')}`);
    const [before, reportsBefore] = [await set.counters(), await set.reports()];
    const begun = performance.now();
    const played = await playTasks({
      url: `http://127.0.0.1:${port}`,
      model: modelOf(set),
      tasks,
      timeScale,
      arrivals: { tasksPerSecond },
      seed,
      tokenRange: { low: 256, high: 32_000 },
      signal: AbortSignal.timeout(patience * 1000),
    });
    const wallSeconds = (performance.now() - begun) / 1000;
    const added = addedCounters(before, await set.counters());
    const reports = await set.reports();
    const grown = (of: 'busy_seconds' | 'late_seconds' | 'prefill_tokens'): number =>
      reports.reduce((sum, report, server) => sum + report[of] - (reportsBefore[server] as typeof report)[of], 0);
    const held = timeScale * queueSecondsOf(await gateway.metrics.text());
    const inEngines = timeScale * (added.queueSeconds + added.inferenceSeconds);
    const latency = played.calls.reduce((sum, { dueAt, endedAt }) => sum + endedAt - dueAt, 0);
    const late = played.calls.reduce((sum, { lateSeconds }) => sum + lateSeconds, 0);
    const failed = played.calls.filter(({ error }) => error !== undefined);
    return {
      tasks: played.tasks.length,
      calls: played.calls.length,
      errors: failed.length,
      reasons: [...new Set(failed.map(({ error }) => error as string))].slice(0, 5),
      completionMean: played.completion.mean,
      completionP95: played.completion.p95,
      withoutGapsMean: played.withoutGaps.mean,
      withoutGapsP95: played.withoutGaps.p95,
      queries: added.queries,
      hits: added.hits,
      preemptions: added.preemptions,
      generationTokens: added.generationTokens,
      prefilledTokens: grown('prefill_tokens'),
      busySeconds: grown('busy_seconds'),
      wallSeconds,
      lateShare: grown('late_seconds') / (wallSeconds * set.servers.length),
      betweenSeconds: (latency - held - inEngines) / played.tasks.length,
      clientLateSeconds: late / played.tasks.length,
      heldSeconds: held / played.tasks.length,
      warnings: warnings.slice(0, 10),
      versions: [...new Set(set.servers.map(({ version }) => version))].join(', '),
    };
  } catch (error) {
    if (error instanceof DOMException)
      throw new SagaError('SAGA_ERR_WRONG_STATE', `the run was not over after ${patience} s`, { cause: error });
    throw error;
  } finally {
    await gateway.close({ graceSeconds: 0 });
  }
}

/** Seconds from calls to their workers, summed over calls. */
function queueSecondsOf(metrics: string): number {
  const found = /^saga:request_queue_time_seconds_sum(?:\{[^}]*\})? (\S+)/m.exec(metrics);
  return found === null ? 0 : Number(found[1]);
}

function modelOf(set: ServerSet): string {
  return (set.servers[0] as { model: string }).model;
}

function configOf(set: ServerSet, system: MeasuredSystem, timeScale: number, log: Logger): GatewayConfig {
  return {
    host: '127.0.0.1',
    port: 0,
    timeScale,
    log,
    // A call waits as long as it must: what is late is measured, not refused.
    queueSeconds: patience,
    firstByteSeconds: patience,
    chunkSeconds: patience,
    deadlineSeconds: patience,
    models: [
      {
        name: modelOf(set),
        servers: set.servers.map(({ url, events, replay, directives }) => ({
          url,
          events,
          replay,
          ...(directives === undefined ? {} : { directives }),
        })),
        blockTokens,
        policy: system.policy,
        stepSeconds: schedulerStepSeconds(grain),
        kvBytesPerToken: 327_680 * grain,
        priority: system.connector,
      },
    ],
  };
}

function loggerOf(warnings: string[]): Logger {
  const silent = (): void => undefined;
  const keep = (fields: object, message: string): void => {
    const { err } = fields as { err?: unknown };
    warnings.push(err instanceof Error ? `${message}: ${err.message}` : message);
  };
  return { debug: silent, info: silent, warn: keep, error: keep };
}
