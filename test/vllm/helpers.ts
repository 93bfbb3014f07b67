/** What the tests of the adapters share. */
import { createServer, type AddressInfo, type Server } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { EmulatedWorker } from '../../src/emulated-worker/index.js';
import type { Logger, ServerOptions, VllmWorker, WorkerSet } from '../../src/vllm/index.js';
import type { LinkTimes } from '../../src/vllm/server-link.js';

/** Times that fit a test. */
export const shortTimes: Partial<LinkTimes> = {
  recheck: 20,
  settle: 2000,
  probeEvent: 2000,
  status: 100,
  backoff: 200,
  replay: { idleMs: 300, coolMs: 200, spacingMs: 5, settleMs: 30, auditMs: 200 },
};

export const serverOf = (worker: EmulatedWorker, more: Partial<ServerOptions> = {}): ServerOptions => ({
  url: worker.url,
  ...(worker.events === undefined ? {} : { events: worker.events }),
  ...(worker.replay === undefined ? {} : { replay: worker.replay }),
  ...(worker.directives === undefined ? {} : { directives: worker.directives }),
  ...more,
});

/** A logger that keeps its lines. */
export function lines(): Logger & { lines: string[] } {
  const kept: string[] = [];
  const keep = (fields: object, message: string): void => void kept.push(`${message} ${JSON.stringify(fields)}`);
  return { lines: kept, debug: keep, info: keep, warn: keep, error: keep };
}

export async function until(what: string, holds: () => boolean, ms = 10_000): Promise<void> {
  const end = performance.now() + ms;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await delay(5);
  }
}

/** The one worker of a set. */
export function only(set: WorkerSet): VllmWorker {
  const [worker, ...others] = set.workers;
  if (worker === undefined || others.length > 0) throw new Error(`the set has ${set.workers.length} workers`);
  return worker;
}

/** Numbers from 0 to below `below`, the same for the same seed. */
export function randomOf(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** One completion of token ids; resolves with its status. */
export async function complete(worker: EmulatedWorker, prompt: readonly number[], more: object = {}): Promise<number> {
  const response = await fetch(`${worker.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: worker.options.model, prompt, max_tokens: 2, ...more }),
  });
  await response.arrayBuffer();
  return response.status;
}

/** The first of so many ports in a row that nobody listened at a moment ago. */
export async function freePort(count = 1): Promise<number> {
  const listen = (server: Server, port: number): Promise<number> =>
    new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, '127.0.0.1', () => resolve((server.address() as AddressInfo).port));
    });
  for (;;) {
    const servers = Array.from({ length: count }, () => createServer());
    try {
      const first = await listen(servers[0] as Server, 0);
      for (const [i, server] of servers.entries()) if (i > 0) await listen(server, first + i);
      return first;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
    } finally {
      await Promise.all(servers.map((server) => new Promise((closed) => server.close(closed))));
    }
  }
}
