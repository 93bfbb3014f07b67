/** Workloads made smaller: the same shape with blocks of fewer tokens. */
import { SagaError } from '../errors.js';
import type { WorkloadColumns } from '../workload/columns.js';

/**
 * The workload with every block id standing for `blockTokens` tokens instead of `workload.blockTokens`; prompts and answers get shorter by
 * the same factor, rounded up. A recorded trace of 64-token ids becomes one of 16-token blocks, a quarter as long. Gaps stay.
 *
 * The result is a workload like any other: what is played can be simulated, too.
 *
 * @throws SagaError `SAGA_ERR_OPTION` where `blockTokens` does not divide the workload's
 */
export function scaledWorkload(workload: WorkloadColumns, blockTokens: number): WorkloadColumns {
  const factor = workload.blockTokens / blockTokens;
  if (!Number.isInteger(factor) || factor < 1)
    throw new SagaError(
      'SAGA_ERR_OPTION',
      `expected a divisor of ${workload.blockTokens} block tokens, not ${blockTokens}`,
    );
  if (factor === 1) return workload;
  const shorter = (tokens: number): number => Math.ceil(tokens / factor);
  return {
    ...workload,
    blockTokens,
    promptTokens: workload.promptTokens.map(shorter),
    outputTokens: workload.outputTokens.map(shorter),
  };
}
