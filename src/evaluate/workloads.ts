/**
 * Workloads of the evaluation, by a key that says what is in them.
 */
import { generateAgentSessions } from '../workload/agent-workload.js';
import type { WorkloadColumns } from '../workload/columns.js';
import { generateTasks, paperWorkloads } from '../workload/paper-workloads.js';
import { readTrace } from '../workload/trace.js';

/** A workload that is opened when it is needed. */
export interface WorkloadSource {
  /** Equal keys, equal workloads. */
  readonly key: string;
  open(): Promise<WorkloadColumns>;
}

/** The paper's generated workloads. */
export type PaperWorkload = keyof typeof paperWorkloads;

/** A generated workload of the paper. */
export function paperSource(
  name: PaperWorkload,
  tasks: number,
  seed: number,
  toolTimeVariation?: number,
): WorkloadSource {
  return {
    key: `${name} tasks=${tasks} seed=${seed} variation=${toolTimeVariation ?? 'default'}`,
    open: () =>
      Promise.resolve(
        generateTasks({
          classes: paperWorkloads[name],
          tasks,
          seed,
          ...(toolTimeVariation === undefined ? {} : { toolTimeVariation }),
        }),
      ),
  };
}

/** Generated coding sessions. `orderSalt`: another order of the sessions. */
export function agentSource(sessions: number, seed: number, orderSalt = ''): WorkloadSource {
  return {
    key: `agent sessions=${sessions} seed=${seed} order=${orderSalt}`,
    open: () => Promise.resolve(generateAgentSessions({ sessions, seed }).arrange({ orderSalt })),
  };
}

/** A recorded trace. `orderSalt`: another order of the sessions. `limit`: only so many of them. */
export function traceSource(
  file: string,
  { orderSalt = '', limit }: { orderSalt?: string; limit?: number } = {},
): WorkloadSource {
  return {
    key: `${file} order=${orderSalt} limit=${limit ?? 'none'}`,
    async open() {
      const trace = await readTrace(file, { onError: 'fail' });
      return trace.workload(limit === undefined ? { orderSalt } : { orderSalt, limit });
    },
  };
}
