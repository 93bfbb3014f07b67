/** What the gateway knows, for people: readiness, workers, workflows, explanations. */
import { GatewayError } from '../errors.js';
import type { Tenant } from '../identity.js';
import type { ModelPool } from '../model-pool.js';

export interface Readiness {
  /** Every model has a worker that takes calls. */
  ready: boolean;
  /** What is not as it should be, in words. */
  degraded: string[];
}

export function readiness(pools: readonly ModelPool[]): Readiness {
  const degraded: string[] = [];
  let ready = true;
  for (const { name, workers } of pools) {
    if (!workers.workers.some(({ condition }) => condition === 'ready')) {
      ready = false;
      degraded.push(`model ${name}: no worker is ready`);
    }
    for (const worker of workers.workers)
      for (const reason of worker.degraded) degraded.push(`${worker.server.url} rank ${worker.rank}: ${reason}`);
  }
  return { ready, degraded };
}

export function workerList(pools: readonly ModelPool[]): object[] {
  return pools.flatMap(({ name, workers }) =>
    workers.workers.map((worker) => ({
      model: name,
      id: worker.worker.id,
      url: worker.server.url,
      rank: worker.rank,
      condition: worker.condition,
      degraded: worker.degraded,
      ...worker.worker.state(),
    })),
  );
}

export function workflowList(_pools: readonly ModelPool[], _tenant: Tenant): object[] {
  return [];
}

/** `name`: as in `X-SAGA-Call`. */
export function explanation(_pools: ReadonlyMap<string, ModelPool>, name: string): object {
  throw new GatewayError('not_found', `call ${name.slice(0, 100)} is not known`);
}
