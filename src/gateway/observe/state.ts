/** What the gateway knows, for people: readiness, workers, workflows, and why a call went where it did. */
import { GatewayError } from '../errors.js';
import type { Tenant } from '../identity.js';
import type { ModelPool } from '../model-pool.js';

export interface Readiness {
  /** Every model has a worker that takes calls. */
  ready: boolean;
  /** What is not as it should be, in words; calls are served all the same while `ready`. */
  degraded: string[];
  models: { model: string; readyWorkers: number; workers: number; waitingCalls: number }[];
}

/** Share of the prompts of the last five minutes. */
const tolerated = 0.01;

export function readiness(pools: readonly ModelPool[]): Readiness {
  const degraded: string[] = [];
  const models: Readiness['models'] = [];
  for (const pool of pools) {
    const { workers } = pool.workers;
    const readyWorkers = workers.filter(({ condition }) => condition === 'ready').length;
    if (readyWorkers === 0) degraded.push(`model ${pool.name}: no worker is ready`);
    for (const { url, condition } of pool.workers.metrics().servers)
      if (condition !== 'up') degraded.push(`model ${pool.name}: server ${url} is ${condition}`);
    for (const worker of workers)
      for (const reason of worker.degraded) degraded.push(`${worker.server.url} rank ${worker.rank}: ${reason}`);
    const unknown = pool.unknownPrompts.now();
    if (unknown.share > tolerated)
      degraded.push(
        `model ${pool.name}: ${unknown.count} prompts could not be made into tokens; they were placed by load alone`,
      );
    const mismatched = pool.mismatchedPrompts.now();
    if (mismatched.share > tolerated)
      degraded.push(
        `model ${pool.name}: of ${mismatched.count} prompts the workers count other tokens: tokenizer or template differ`,
      );
    models.push({ model: pool.name, readyWorkers, workers: workers.length, waitingCalls: pool.waitingCalls });
  }
  return { ready: models.every(({ readyWorkers }) => readyWorkers > 0), degraded, models };
}

export function workerList(pools: readonly ModelPool[]): object[] {
  return pools.flatMap((pool) =>
    pool.workers.workers.map((worker) => {
      const { features } = worker;
      return {
        model: pool.name,
        id: worker.worker.id,
        url: worker.server.url,
        rank: worker.rank,
        condition: worker.condition,
        degraded: worker.degraded,
        features,
        ...worker.worker.state(),
        ...(pool.scheduler.policy === 'saga' && worker.condition !== 'lost'
          ? { forecast: worker.worker.forecast() }
          : {}),
      };
    }),
  );
}

const mostListed = 1000;

/** The tenant's own workflows, or those of all, the newest first. */
export function workflowList(pools: readonly ModelPool[], tenant: Tenant | undefined): object[] {
  return pools
    .flatMap((pool) =>
      [...pool.sessions.values()]
        .filter((session) => tenant === undefined || session.tenant.name === tenant.name)
        .map((session) => ({
          model: pool.name,
          workflow: session.workflow.id,
          name: session.name,
          tenant: session.tenant.name,
          calls: session.calls,
          openCalls: session.openCalls,
          agents: session.threads.size,
          toolRuns: session.tools.size > 0,
          openedAt: new Date(session.openedAt).toISOString(),
          lastCallAt: new Date(session.lastCallAt).toISOString(),
        })),
    )
    .sort((a, b) => (a.lastCallAt < b.lastCallAt ? 1 : a.lastCallAt > b.lastCallAt ? -1 : b.workflow - a.workflow))
    .slice(0, mostListed);
}

/** `name`: as in the header `X-SAGA-Call` of its answer. */
export function explanation(pools: ReadonlyMap<string, ModelPool>, name: string, tenant: Tenant): object {
  const unknown = new GatewayError('not_found', `call ${name.slice(0, 100)} is not known (any more)`);
  const dot = name.lastIndexOf('.');
  let model: string;
  try {
    model = decodeURIComponent(name.slice(0, Math.max(dot, 0)));
  } catch {
    throw unknown;
  }
  const id = name.slice(dot + 1);
  const pool = pools.get(model);
  const call = /^\d{1,16}$/.test(id) ? pool?.call(Number(id)) : undefined;
  if (pool === undefined || call === undefined || call.workflow.tenant !== tenant.name) throw unknown;
  const { receipt } = call;
  const why = pool.scheduler.explain(call);
  return {
    call: name,
    workflow: call.workflow.id,
    agent: call.agent,
    promptTokens: call.promptTokens,
    state: call.ended ? 'ended' : receipt === undefined ? 'waiting' : 'placed',
    explanation: why?.text,
    receipt: receipt === undefined ? undefined : { ...receipt, worker: receipt.worker.id },
    saga:
      why?.saga === undefined ? undefined : { ...why.saga, holder: why.saga.holder?.id, source: why.saga.source?.id },
  };
}
