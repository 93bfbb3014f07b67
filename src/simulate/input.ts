/**
 * The workload that a simulation plays: read from a trace or generated, as the options say.
 */
import { generateAgentSessions } from '../workload/agent-workload.js';
import { callCount, taskCount, type WorkloadColumns } from '../workload/columns.js';
import { generateTasks, paperWorkloads } from '../workload/paper-workloads.js';
import { readTrace, type MalformedInput } from '../workload/trace.js';
import { optionError, type InputOptions, type Mode, type WorkloadName } from './options.js';

/** A workload and where it comes from. */
export interface SimulationInput {
  workload: WorkloadColumns;
  /** One line about it for people. */
  description: string;
  /** Malformed lines that were skipped. */
  malformedLines: number;
}

/** Tasks of a generated workload where the options name no number. */
export function defaultTasks(workload: WorkloadName, mode: Mode): number {
  if (mode === 'cache') return 445; // as many sessions as the workload was calibrated on
  return workload === 'multi-tenant' ? 1000 : 2000;
}

/**
 * Reads or generates the workload.
 *
 * @throws SagaError of {@link readTrace}, or `SAGA_ERR_OPTION` where an option does not fit the trace
 */
export async function openInput(
  options: InputOptions & { mode: Mode },
  onMalformed: (report: MalformedInput) => void,
): Promise<SimulationInput> {
  const arrange = {
    gapCapSeconds: options.gapCapSeconds,
    orderSalt: options.orderSalt === undefined ? '' : String(options.orderSalt),
  };
  if (options.trace !== undefined) {
    const trace = await readTrace(options.trace, { onError: options.onBadLine, onMalformed });
    if (trace.hasArrivals && options.orderSalt !== undefined) {
      throw optionError('expected no --order-salt with a trace that has arrival times: it is played in their order');
    }
    const workload = trace.workload(options.tasks === undefined ? arrange : { ...arrange, limit: options.tasks });
    return { workload, description: describe(options.trace, workload), malformedLines: trace.malformed };
  }
  const name = options.workload as WorkloadName;
  const tasks = options.tasks ?? defaultTasks(name, options.mode);
  const workload =
    name === 'agent'
      ? generateAgentSessions({ sessions: tasks, seed: options.seed }).arrange(arrange)
      : generateTasks({
          classes: paperWorkloads[name],
          tasks,
          seed: options.seed,
          gapCapSeconds: options.gapCapSeconds,
        });
  return { workload, description: describe(name, workload), malformedLines: 0 };
}

function describe(source: string, workload: WorkloadColumns): string {
  const tasks = taskCount(workload);
  const calls = callCount(workload);
  const tokens = workload.promptTokens.reduce((sum, one) => sum + one, 0);
  const tasksText = workload.taskArrival === undefined ? `${tasks.toLocaleString('en-US')} tasks, ` : '';
  return `${source}: ${tasksText}${calls.toLocaleString('en-US')} calls, ${(tokens / 1e6).toFixed(1)} M prompt tokens`;
}
