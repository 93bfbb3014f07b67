/**
 * Runs tables of the evaluation one after the other and hands out each report as soon as it is there.
 */
import { existsSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import { SagaError } from '../errors.js';
import type { SimulationBackend } from '../simulate/backend.js';
import type { ProgressListener } from '../simulate/run.js';
import { Laboratory } from './laboratory.js';
import type { FinishedReport } from './report.js';
import { paperCluster, publishedSeeds, type Context, type Table } from './table.js';

/** What is run. */
export interface EvaluateOptions {
  tables: readonly Table[];
  quick: boolean;
  /** Number of seeds of the headline tables; sweeps take the first three of them. */
  seeds: number;
  /** Tasks of a generated workload. */
  tasks: number;
  /** Folder with the recorded traces. */
  traces: string | undefined;
  /** Folder where long measurements are kept. */
  runs: string | undefined;
  /** Of measurements in accelerated time. */
  timeScale: number | undefined;
}

/** Seeds of sweeps and ablations. */
const sweepSeeds = 3;

/** What a quick run is made of: it shows that every table works, not what the figures are. */
export const quickSize = { seeds: 1, tasks: 300, workers: 4 } as const;

const quickNote =
  'A quick run, with one seed and a small cluster: it shows that the table can be made, not how systems compare.';

/** What the full set is made of. */
export const fullSize = { seeds: publishedSeeds.length, tasks: 1000 } as const;

/** Files of a folder of traces that the tables read. */
export const traceFiles = [
  join('claude-code-v6', 'requests.jsonl'),
  join('mooncake-conversation', 'requests.jsonl'),
] as const;

/** A table that could not be made. */
export interface Failure {
  table: string;
  error: SagaError;
}

/** Where and when a run takes place. */
export interface Surroundings {
  machine: string;
  /** As `2026-01-31`. */
  date: string;
  command: string;
  /** Milliseconds of a clock that only goes forward. */
  now(): number;
  /** The checkout. */
  checkout: string;
  environment: NodeJS.ProcessEnv;
}

/**
 * Makes the tables. A table that fails does not keep the others from being made.
 *
 * @param onReport - hears of each report at once, so that nothing is lost when a later table ends badly
 * @returns the tables that failed
 * @throws SagaError `SAGA_ERR_TRACE_UNREADABLE` where the folder of traces lacks a file
 */
export async function evaluate(
  options: EvaluateOptions,
  backend: SimulationBackend,
  progress: ProgressListener & { note(text: string): void },
  surroundings: Surroundings,
  onReport: (report: FinishedReport) => void,
): Promise<Failure[]> {
  checkTraces(options.traces);
  const laboratory = new Laboratory(backend, progress);
  const seeds = publishedSeeds.slice(0, options.seeds);
  const context: Context = {
    laboratory,
    quick: options.quick,
    seeds,
    sweepSeeds: seeds.slice(0, sweepSeeds),
    tasks: options.tasks,
    cluster: options.quick ? { ...paperCluster, workers: quickSize.workers } : paperCluster,
    traces: options.traces,
    checkout: surroundings.checkout,
    runs: options.runs,
    timeScale: options.timeScale,
    environment: surroundings.environment,
    note: (text) => progress.note(text),
  };
  const failures: Failure[] = [];
  for (const [index, table] of options.tables.entries()) {
    progress.note(`saga evaluate: ${table.name} (${index + 1} of ${options.tables.length})`);
    const begun = surroundings.now();
    try {
      const report = await table.run(context);
      onReport({
        ...report,
        notes: options.quick ? [quickNote, ...report.notes] : report.notes,
        command: surroundings.command,
        date: surroundings.date,
        machine: surroundings.machine,
        seconds: (surroundings.now() - begun) / 1000,
      });
    } catch (error) {
      if (!(error instanceof SagaError)) throw error;
      progress.end();
      failures.push({ table: table.name, error });
    }
  }
  return failures;
}

function checkTraces(traces: string | undefined): void {
  if (traces === undefined) return;
  const missing = traceFiles.find((file) => !existsSync(join(traces, file)));
  if (missing !== undefined) {
    throw new SagaError('SAGA_ERR_TRACE_UNREADABLE', `expected --traces to name a folder with the file ${missing}`);
  }
}

/** This machine in words. */
export function machineText(): string {
  const model = cpus()[0]?.model.trim() ?? 'unknown processor';
  const memory = Math.round(totalmem() / 2 ** 30);
  return `${availableParallelism()} cores of ${model}, ${memory} GiB, ${process.platform} ${process.arch}, Node ${process.versions.node}`;
}
