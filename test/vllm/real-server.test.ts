/**
 * Against a real vLLM server without a GPU (python/vllm_testing), where SAGA_TEST_VLLM names installed environments, for example
 * `SAGA_TEST_VLLM=latest,baseline`: what is predicted of the cache is what the server reports.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it } from 'vitest';
import { Gateway } from '../../src/gateway/gateway.js';
import { Scheduler } from '../../src/index.js';
import { WorkerSet, type VllmWorker } from '../../src/vllm/index.js';
import { freePort, only, randomOf, until } from './helpers.js';

const environments = (process.env.SAGA_TEST_VLLM ?? '').split(',').filter((name) => name !== '');
const python = fileURLToPath(new URL('../../python', import.meta.url));

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

interface Ready {
  url: string;
  events: string;
  replay: string;
  model: string;
  version: string;
}

async function startServer(more: string[]): Promise<Ready> {
  const server: ChildProcess = spawn('python3', ['-m', 'vllm_testing.server', '--blocks', '200', ...more], {
    cwd: python,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  closing.push(async () => {
    const ended = once(server, 'exit');
    server.kill('SIGTERM');
    await ended;
  });
  const [line] = (await once(createInterface(server.stdout as NodeJS.ReadableStream), 'line')) as [string];
  const ready = JSON.parse(line) as Ready & { ready: boolean; error?: string };
  if (!ready.ready) throw new Error(ready.error);
  return ready;
}

async function cachedTokens(server: Ready, prompt: readonly number[]): Promise<number> {
  const response = await fetch(`${server.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: server.model, prompt, max_tokens: 2, temperature: 0 }),
  });
  const { usage } = (await response.json()) as { usage: { prompt_tokens_details?: { cached_tokens?: number } } };
  return usage.prompt_tokens_details?.cached_tokens ?? 0; // versions before 0.17 leave out a 0
}

describe.skipIf(environments.length === 0)('vLLM', () => {
  it.each(environments)(
    '%s: predictions come true, also of a set that joins late, and by either kind of keys',
    async (environment) => {
      const server = await startServer(['--env', environment]);
      const scheduler = new Scheduler({
        maxWorkers: 8,
        policy: 'affinity',
        blockTokens: environment === 'cpu' ? 32 : 16,
      });
      closing.push(() => scheduler.close());
      const { url, events, replay, model } = server;
      const setOf = async (hash: 'saga' | 'sha256_cbor'): Promise<WorkerSet> => {
        const set = new WorkerSet({
          scheduler,
          model,
          servers: [{ url, events, replay }],
          hash:
            hash === 'saga'
              ? { algorithm: hash }
              : { algorithm: hash, seed: '0', taggedKeys: environment !== 'baseline' },
        });
        closing.push(() => set.close());
        await set.start();
        return set;
      };
      const set = await setOf('saga');
      // Before 0.17 events do not tell salts. Without a salt all fit.
      const salted = [
        0.9,
        ['parity: prompts with a cache salt are not found under their keys in this version of vLLM'],
      ];
      const state = (of: WorkerSet): unknown => [only(of).trust, only(of).degraded];
      const fine = environment === 'baseline' ? salted : [1, []];
      expect(state(set)).toEqual(fine);
      expect(only(set).features.version).toContain(server.version);
      const source = set.sourceOf(only(set));
      const random = randomOf(11);
      const { blockTokens } = scheduler;
      let [hits, predictedAll] = [0, 0];
      for (let n = 0; n < 150; ++n) {
        const prompt: number[] = [];
        for (let depth = 0; depth < 1 + random(5); ++depth)
          prompt.push(
            ...Array.from({ length: 2 * blockTokens }, (_, i) => 10 + depth * 3 + random(1) + (n % 3) * (i % 2)),
          );
        prompt.push(...Array.from({ length: random(40) }, () => 10 + random(60)));
        const usable = source?.usable(scheduler.hash(prompt)) ?? 0;
        // The last token is computed in any case.
        const predicted = Math.min(usable, Math.floor((prompt.length - 1) / blockTokens)) * blockTokens;
        const applied = set.metrics().workers[0]?.events.applied;
        const cached = await cachedTokens(server, prompt);
        only(set).observe(predicted, cached);
        expect([n, cached]).toEqual([n, predicted]);
        hits += cached > 0 ? 1 : 0;
        predictedAll += predicted;
        // What it stored arrives with its events, unless it stored nothing.
        if (predicted + blockTokens <= prompt.length)
          await until('its events', () => (set.metrics().workers[0]?.events.applied ?? 0) > (applied ?? 0));
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      expect(hits).toBeGreaterThan(50);
      expect(predictedAll).toBeGreaterThan(1000);
      expect(state(set)).toEqual(fine);
      // One that joins now knows the same, by replay.
      const late = await setOf('saga');
      await until('it has read all', () => {
        const [own, other] = [set.sourceOf(only(set))?.stats(), late.sourceOf(only(late))?.stats()];
        return own !== undefined && own.copies === other?.copies && own.blocks === other.blocks;
      });
      expect(state(late)).toEqual(fine);
      const direct = await setOf('sha256_cbor');
      expect(state(direct)).toEqual([1, []]);
      expect(set.metrics().workers[0]?.events).toMatchObject({ malformed: 0, unknownRemovals: 0, resets: 0 });
    },
    400_000,
  );

  it.skipIf(!environments.includes('latest'))(
    'latest: what is decided of a call rides on its request, and blocks come by a request of our own',
    async () => {
      const directives = `tcp://127.0.0.1:${await freePort()}`;
      const connector = {
        kv_connector: 'SagaConnector',
        kv_connector_module_path: 'saga_vllm.connector',
        kv_role: 'kv_producer',
        kv_connector_extra_config: { strength: 'leases', directive_endpoint: directives },
      };
      const package_ = fileURLToPath(new URL('../../python/saga_vllm', import.meta.url));
      const more = ['--env', 'latest', '--connector', JSON.stringify(connector), '--python-path', package_];
      const { url, events, replay, model } = await startServer(more);
      const servers = [{ url, events, replay, directives }];
      const gateway = await Gateway.start({
        port: 0,
        models: [{ name: 'm', upstreamName: model, servers, without: ['eviction'] }],
      });
      closing.push(() => gateway.close({ graceSeconds: 0 }));
      const { port } = await gateway.listen();
      const [pool] = gateway.pools.values();
      const { directives: client, workers } = pool!.workers;
      const worker = workers[0] as VllmWorker;
      await until('the connector is known', () => worker.features.requestDirectives !== undefined);
      // Its engine knows kv_hints; its servers do not take them.
      expect(worker.features).toMatchObject({
        connector: 'leases',
        requestDirectives: { member: 'kv_transfer_params' },
      });
      // What the scheduler itself decides is left out: what happens comes from the request.
      const carryOut = client.carryOut.bind(client);
      client.carryOut = () => undefined;
      const call = async (prompt: readonly number[]): Promise<number> => {
        const response = await fetch(`http://127.0.0.1:${port}/v1/completions`, {
          method: 'POST',
          headers: { 'content-type': 'application/json', 'x-saga-session-id': 's' },
          body: JSON.stringify({ model: 'm', prompt, max_tokens: 2 }),
        });
        expect(response.status).toBe(200);
        await response.arrayBuffer();
        return Number(response.headers.get('x-saga-call')?.split('.').at(-1));
      };
      const prompt = Array.from({ length: 640 }, (_, i) => 10 + i);
      const leased = async (): Promise<unknown> => (await client.status(worker)).fields['leased_blocks'];
      const id = await call(prompt);
      expect(await leased()).toBe(40);
      const released = await client.release(worker, client.claimOf(id));
      expect([released, await leased()]).toEqual([{ status: 'released' }, 0]);
      const reported: string[] = [];
      const told = (what: string) => () => reported.push(what) > 0;
      const copy = { type: 'copy', reason: 'prefetch', callId: id, until: Number.MAX_SAFE_INTEGER };
      const outcomes = { applied: told('applied'), refused: told('refused'), expired: told('expired') };
      await client.evict(worker, { tokenIds: prompt }, 'now');
      carryOut({ ...copy, ...outcomes, worker: worker.worker, source: worker.worker } as never);
      await until('it is there', () => reported.length > 0);
      expect(reported).toEqual(['applied']);
      const cached = await fetch(`${url}/v1/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model, prompt, max_tokens: 1 }),
      });
      const { usage } = (await cached.json()) as { usage: { prompt_tokens_details: { cached_tokens: number } } };
      expect(usage.prompt_tokens_details.cached_tokens).toBe(624);
    },
    400_000,
  );
});
