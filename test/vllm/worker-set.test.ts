/** Servers come, go, fail, come back and change; their load, trust and health reach the scheduler. */
import { createServer, type Server as HttpServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { Agent } from 'undici';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { EmulatedWorker, type EmulatedWorkerOptions } from '../../src/emulated-worker/index.js';
import { Scheduler } from '../../src/index.js';
import { DirectiveClient } from '../../src/vllm/directive-client.js';
import { WorkerSet, type ServerOptions, type VllmWorker, type WorkerSetOptions } from '../../src/vllm/index.js';
import { checkWorkerSet } from '../../src/vllm/options.js';
import { Server } from '../../src/vllm/server.js';
import { ServerLink, linkTimes, type LinkHost } from '../../src/vllm/server-link.js';
import { complete, freePort, lines, only, serverOf, shortTimes, until } from './helpers.js';

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

async function emulate(options: EmulatedWorkerOptions = {}): Promise<EmulatedWorker> {
  const worker = await EmulatedWorker.start({ eventsPort: 0, blocks: 101, timeScale: Infinity, ...options });
  closing.push(() => worker.close());
  return worker;
}

function setOf(servers: readonly ServerOptions[], options: Partial<WorkerSetOptions> & { maxWorkers?: number } = {}) {
  const { maxWorkers = 8, ...rest } = options;
  const scheduler = new Scheduler({ maxWorkers, policy: 'affinity' });
  closing.push(() => scheduler.close());
  const log = lines();
  const set = new WorkerSet(
    { scheduler, model: 'emulated', servers, log, healthSeconds: 0.1, loadSeconds: 0.05, ...rest },
    { ...shortTimes, health: 500, inspect: 2000, settle: 300, probeEvent: 300 },
  );
  closing.push(() => set.close());
  return { scheduler, set, log };
}

/** A server of plain answers; a POST answers as the route says, too. */
/** A text, a status, or what is made of the request's body. */
type Answer = string | number;
interface RequestBody {
  prompt?: number[];
  priority?: number;
}
type Route = Answer | ((body: RequestBody) => Answer);

async function plainServer(
  routes: Record<string, Route>,
): Promise<{ url: string; routes: typeof routes; server: HttpServer }> {
  const server = createServer((request, response) => {
    const route = routes[(request.url ?? '').split('?')[0] as string] ?? 404;
    const send = (answer: Answer): void => {
      if (typeof answer === 'number') response.writeHead(answer).end();
      else response.writeHead(200, { 'content-type': 'text/plain' }).end(answer);
    };
    if (typeof route === 'function')
      void text(request).then((body) => send(route(JSON.parse(body || '{}') as RequestBody)));
    else {
      request.resume();
      send(route);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closing.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, routes, server };
}

const vllmRoutes = (more: Record<string, Route> = {}): Record<string, Route> => ({
  '/health': '',
  '/version': '{"version":"0.33.0"}',
  '/v1/models': '{"data":[{"id":"emulated"}]}',
  '/metrics':
    'vllm:cache_config_info{block_size="16",num_gpu_blocks="50",engine="0"} 1.0\n' +
    'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:num_requests_waiting{engine="0"} 3.0\n',
  ...more,
});

describe('joining', () => {
  it('blocks and what it can do come from the server', async () => {
    const worker = await emulate({ priorityScheduling: true });
    const { set, scheduler } = setOf([serverOf(worker)]);
    let changes = 0;
    set.onChange = () => ++changes;
    await set.start();
    const one = only(set);
    expect(one.worker.state()).toMatchObject({ blocks: 101, accepts: true, trust: 1 });
    expect(one).toMatchObject({ condition: 'ready', rank: 0, origin: worker.url, path: '', headers: {} });
    expect(one.features).toMatchObject({
      version: '0.33.0+emulated',
      priority: undefined,
      promptTokensDetails: true,
      hashAlgorithm: 'sha256_cbor',
    });
    expect(one.features.routes).toMatchObject({ completions: true, chat: true });
    expect(set.of(one.worker)).toBe(one);
    expect(set.servers).toEqual([{ url: worker.url, condition: 'up', reason: undefined }]);
    await until('it was told of changes', () => changes > 0);
    expect(
      scheduler
        .openWorkflow()
        .submit(Uint32Array.of(1, 2, 3))
        .place().worker,
    ).toBe(one.worker);
  });

  it('each data-parallel rank is a worker with its own events', async () => {
    const eventsPort = await freePort(4);
    const worker = await emulate({ dataParallelRanks: 2, eventsPort, replayPort: eventsPort + 2 });
    const { set, scheduler } = setOf([serverOf(worker, { dataParallelRanks: 2 })]);
    await set.start();
    expect(set.workers.map(({ rank, headers, condition, degraded }) => [rank, headers, condition, degraded])).toEqual([
      [0, { 'x-data-parallel-rank': '0' }, 'ready', []],
      [1, { 'x-data-parallel-rank': '1' }, 'ready', []],
    ]);
    const prompt = Array.from({ length: 50 }, (_, i) => i);
    await fetch(`${worker.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...set.workers[1]?.headers },
      body: JSON.stringify({ model: 'emulated', prompt, max_tokens: 1 }),
    });
    await until('rank 1 has it', () => scheduler.match(scheduler.hash(prompt))[3] === 3);
    expect(scheduler.match(scheduler.hash(prompt))[0]).toBe(0);
  });

  it.each([
    ['another model', { '/v1/models': '{"data":[{"id":"llama"}]}' }, /it has no model "emulated", but llama/],
    ['a wrong apiKey', { '/v1/models': 401 }, /refuses its apiKey/],
    [
      'another block size',
      { '/metrics': 'vllm:cache_config_info{block_size="32",num_gpu_blocks="50"} 1' },
      /its blocks have 32 tokens, the scheduler's 16/,
    ],
    [
      'no prefix cache',
      { '/metrics': 'vllm:cache_config_info{block_size="16",enable_prefix_caching="False",num_gpu_blocks="5"} 1' },
      /prefix cache is off/,
    ],
    ['no number of blocks', { '/metrics': 'up 1' }, /set blocks/],
    [
      'disaggregation',
      {
        '/server_info':
          '{"vllm_config":{"kv_transfer_config":{"kv_connector":"NixlConnector","kv_role":"kv_consumer"}}}',
      },
      /prefill\/decode disaggregation \(kv_role kv_consumer, NixlConnector\)/,
    ],
  ])('refuses a server with %s', async (_, routes: Record<string, string | number>, reason) => {
    const server = await plainServer(vllmRoutes(routes));
    const { set } = setOf([{ url: server.url }]);
    await set.start();
    expect(set.workers).toEqual([]);
    expect(set.servers[0]).toMatchObject({ condition: 'refused' });
    expect(set.servers[0]?.reason).toMatch(reason);
  });

  it('its own connector as producer is no disaggregation', async () => {
    const server = await plainServer(
      vllmRoutes({ '/server_info': '{"kv_connector": "SagaConnector", "kv_role": "kv_producer"}' }),
    );
    const { set } = setOf([{ url: server.url }], { probe: false });
    await set.start();
    expect(only(set).worker.state()).toMatchObject({ blocks: 50 });
  });

  it('a scheduler that is full refuses, and says so', async () => {
    const [a, b] = [await emulate(), await emulate()];
    const { set } = setOf([serverOf(a), serverOf(b)], { maxWorkers: 1 });
    await set.start();
    expect(set.workers.length).toBe(1);
    expect(set.servers.find(({ condition }) => condition === 'refused')?.reason).toMatch(/maxWorkers is 1/);
  });
});

describe('watching', () => {
  it('load comes from /metrics, and from headers of answers', async () => {
    const server = await plainServer(vllmRoutes());
    const { set } = setOf([{ url: server.url }], { probe: false });
    await set.start();
    await until('the load is there', () => only(set).worker.state().blocksInUse === 13);
    expect(set.metrics().workers[0]).toMatchObject({ blocks: 50, blocksInUse: 13, waitingCalls: 3 });
    only(set).loadHeader('TEXT named_metrics.num_requests_waiting=1.0, named_metrics.kv_cache_usage_perc=0.5');
    expect(only(set).worker.state().blocksInUse).toBe(25);
    expect(set.metrics().workers[0]).toMatchObject({ blocksInUse: 25, waitingCalls: 1 });
    server.routes['/metrics'] = 500;
    await until('it is said', () => only(set).degraded.some((reason) => reason.startsWith('load:')));
    expect(only(set)).toMatchObject({ condition: 'ready' });
  });

  it('without events nothing is believed', async () => {
    const { set } = setOf([{ url: (await emulate()).url }]);
    await set.start();
    expect(only(set).degraded).toEqual(['events: no endpoint is configured']);
    expect(only(set).worker.state().trust).toBe(0);
  });

  it('two failed checks lose it, its calls wait, and it comes back as another worker', async () => {
    const server = await plainServer(vllmRoutes());
    const { set, scheduler } = setOf([{ url: server.url }], { probe: false });
    await set.start();
    const first = only(set);
    const call = scheduler.openWorkflow().submit(Uint32Array.of(1, 2, 3));
    expect(call.place().worker).toBe(first.worker);
    server.routes['/health'] = 503;
    first.unreachable(new Error('socket hang up'));
    await until('it is lost', () => set.workers.length === 0);
    expect(first.condition).toBe('lost');
    expect(call.receipt).toBeUndefined();
    expect(first.worker.state().active).toBe(false);
    expect(set.servers[0]).toMatchObject({ condition: 'connecting', reason: '/health answers 503' });
    server.routes['/health'] = '';
    await until('it is back', () => set.workers.length === 1 && only(set).condition === 'ready');
    expect(only(set).worker.id).toBe(1);
    expect(call.place().worker).toBe(only(set).worker);
    expect(set.metrics().servers[0]).toMatchObject({ joined: 2, lost: 1 });
  });

  it('one failed check loses nothing', async () => {
    const server = await plainServer(vllmRoutes());
    const { set } = setOf([{ url: server.url }], { probe: false });
    await set.start();
    let failures = 0;
    server.server.prependListener('request', (request) => {
      if (request.url === '/health' && failures === 0) {
        ++failures;
        request.socket.destroy();
      }
    });
    await until('it failed and was checked again', () => {
      const { healthChecks = 0, healthFailures = 0 } = set.metrics().servers[0] ?? {};
      return healthFailures === 1 && healthChecks >= 4;
    });
    expect(set.metrics().servers[0]).toMatchObject({ lost: 0 });
    expect(only(set).condition).toBe('ready');
  });

  it('many failing requests check health no more often than a quick second check', async () => {
    const server = await plainServer(vllmRoutes());
    const { set } = setOf([{ url: server.url }], { probe: false, healthSeconds: 1 });
    await set.start();
    const before = set.metrics().servers[0]?.healthChecks ?? 0;
    const end = performance.now() + 300;
    await until('300 ms are over', () => {
      only(set).unreachable(new Error('reset'));
      return performance.now() > end;
    });
    const checks = (set.metrics().servers[0]?.healthChecks ?? 0) - before;
    // Every 20 ms here.
    expect(checks).toBeGreaterThan(3);
    expect(checks).toBeLessThan(17);
  });

  it('a key is in no reason and no log line', async () => {
    const server = await plainServer(vllmRoutes());
    const apiKey = 'hunter2-is-the-key';
    const { set, log } = setOf([{ url: server.url, apiKey }], { probe: true });
    await set.start();
    server.routes['/health'] = 500;
    only(set).unreachable(new Error('reset'));
    await until('it is lost', () => set.workers.length === 0);
    server.routes['/health'] = '';
    server.routes['/v1/models'] = 401;
    await until('it is refused', () => set.servers[0]?.condition === 'refused');
    expect(log.lines.length).toBeGreaterThan(2);
    expect(log.lines.join() + JSON.stringify(set.servers) + JSON.stringify(set.metrics())).not.toContain('hunter2');
  });

  it('events that cannot be listened to are a reason, and no worker is lost for it', async () => {
    const worker = await emulate();
    const taken = `tcp://127.0.0.1:${new URL(worker.url).port}`;
    const { set } = setOf([{ url: worker.url, events: taken, eventsBind: true }], { probe: false });
    await set.start();
    expect(only(set)).toMatchObject({ condition: 'ready', trust: 0 });
    expect(only(set).degraded.some((reason) => reason.includes('cannot listen at'))).toBe(true);
  });

  it('another number of blocks is another cache', async () => {
    const server = await plainServer(vllmRoutes());
    const { set } = setOf([{ url: server.url }], { probe: false });
    await set.start();
    server.routes['/metrics'] = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="60"} 1.0\n';
    await until('it joined anew', () => set.workers.length === 1 && only(set).worker.state().blocks === 60);
    expect(only(set).worker.id).toBe(1);
  });

  it('drift lowers trust and is a warning, until predictions are right again', async () => {
    const { set, log } = setOf([serverOf(await emulate())]);
    await set.start();
    const worker = only(set);
    for (let n = 0; n < 30; ++n) worker.observe(1600, 1584);
    expect(worker).toMatchObject({ trust: 1, degraded: [] });
    for (let n = 0; n < 40; ++n) worker.observe(1600, 0);
    expect(worker.degraded.length).toBe(1);
    expect(worker.trust).toBeLessThan(0.3);
    expect(worker.worker.state().trust).toBeCloseTo(worker.trust, 3);
    expect(set.metrics().workers[0]?.drift).toBeCloseTo(1 - 0.95 ** 40, 6);
    for (let n = 0; n < 60; ++n) worker.observe(1600, 1600);
    expect(worker).toMatchObject({ trust: 1, degraded: [] });
    expect(log.lines.filter((line) => line.startsWith('predicted cache hits')).length).toBe(2);
  });
});

describe('the probe', () => {
  it('a wrong seed: the keys do not fit, nothing is believed', async () => {
    const worker = await emulate({ hashSeed: '1' });
    const { set } = setOf([serverOf(worker)], { hash: { algorithm: 'sha256_cbor', seed: '0' } });
    await set.start();
    expect(only(set)).toMatchObject({ condition: 'ready', trust: 0 });
    expect(only(set).degraded).toEqual([
      "parity: of the probe's 3 blocks 0 came with its events under the expected key",
    ]);
  });

  it.each([
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ])('salts in hashes: the server has tagged keys, %s; so it is set, %s', async (tagged, set_) => {
    const worker = await emulate({ taggedKeys: tagged });
    const { set } = setOf([serverOf(worker)], { hash: { algorithm: 'sha256_cbor', seed: '0', taggedKeys: set_ } });
    await set.start();
    const words =
      'parity: prompts with a cache salt are found under keys of the other form: change taggedKeys (hash_tagged_keys)';
    expect(only(set)).toMatchObject(tagged === set_ ? { trust: 1, degraded: [] } : { trust: 0.9, degraded: [words] });
  });

  it('a server that refuses priorities: known, and asked without', async () => {
    const asked: unknown[] = [];
    const usage = JSON.stringify({ usage: { prompt_tokens_details: { cached_tokens: 48 } } });
    const server = await plainServer(
      vllmRoutes({
        '/v1/completions': (body) => {
          if (body.prompt === undefined) return 405; // is the route there?
          asked.push(body.priority);
          return body.priority === undefined ? usage : 400;
        },
      }),
    );
    const { set } = setOf([{ url: server.url }]);
    await set.start();
    expect(asked).toEqual([undefined, 1, undefined]);
    expect(only(set).features).toMatchObject({ priority: false, promptTokensDetails: true });
  });

  it('no prompt-token details: known, and no failure', async () => {
    const { set } = setOf([serverOf(await emulate({ promptTokensDetails: false }))]);
    await set.start();
    expect(only(set)).toMatchObject({ trust: 1, degraded: [] });
    expect(only(set).features.promptTokensDetails).toBe(false);
  });

  it('wrong cached tokens are found', async () => {
    const usage = JSON.stringify({ usage: { prompt_tokens_details: { cached_tokens: 16 } } });
    const server = await plainServer(vllmRoutes({ '/v1/completions': usage }));
    const { set } = setOf([{ url: server.url }]);
    await set.start();
    expect(only(set).degraded).toContain("parity: the probe's repeat reports 16 cached tokens, not 48");
  });

  it('a server that does not answer it is believed less', async () => {
    const server = await plainServer(vllmRoutes({ '/v1/completions': 500 }));
    const { set } = setOf([{ url: server.url }]);
    await set.start();
    expect(only(set).degraded).toContain('parity: the probe was answered with 500');
    expect(only(set).condition).toBe('ready');
  });
});

describe('changing the list', () => {
  it('add, drain, resume, remove', async () => {
    const [a, b] = [await emulate(), await emulate()];
    const { set, scheduler } = setOf([serverOf(a)]);
    await set.start();
    await set.add(serverOf(b));
    expect(set.workers.map(({ condition }) => condition)).toEqual(['ready', 'ready']);
    await expect(set.add(serverOf(b))).rejects.toThrow(/is there already/);
    set.drain(`${a.url}/`);
    expect(set.workers.map(({ condition }) => condition)).toEqual(['draining', 'ready']);
    for (let n = 0; n < 4; ++n)
      expect(scheduler.openWorkflow().submit(Uint32Array.of(n)).place().worker.id).toBe(set.workers[1]?.worker.id);
    set.resume(a.url);
    expect(set.workers[0]?.worker.state().accepts).toBe(true);
    set.remove(b.url);
    expect(only(set).origin).toBe(a.url);
    expect(() => set.remove(b.url)).toThrow(/no server/);
    await set.add(serverOf(b));
    expect(set.workers.map(({ worker }) => worker.id)).toEqual([0, 2]);
  });

  it('servers may come and go far more often than there is room for workers', async () => {
    // What a server answers once, it answers each time.
    const { url } = await plainServer(vllmRoutes());
    const agent = new Agent();
    closing.push(() => agent.destroy());
    const facts = await new Server({ url }, agent).inspect('emulated', 16, 10_000, new AbortController().signal);
    vi.spyOn(Server.prototype, 'inspect').mockResolvedValue(facts);
    vi.spyOn(Server.prototype, 'health').mockResolvedValue();
    closing.push(() => vi.restoreAllMocks());
    const scheduler = new Scheduler({ maxWorkers: 3, policy: 'affinity' });
    closing.push(() => scheduler.close());
    const steady = scheduler.addWorker({ blocks: 50 });
    const joined: VllmWorker[] = [];
    const log = { debug() {}, info() {}, warn() {}, error() {} };
    const host: LinkHost = {
      options: checkWorkerSet({ scheduler, model: 'emulated', servers: [], log, probe: false, loadSeconds: 0 }),
      dispatcher: agent,
      directives: new DirectiveClient(undefined as never),
      times: linkTimes,
      joined: (_, worker) => void joined.push(worker),
      left: () => {},
      changed: () => {},
    };
    const urls = ['http://first:1', 'http://second:1'];
    for (let i = 0; i < 1500; ++i) {
      const links = urls.map((url) => new ServerLink({ url, blocks: 50 }, host));
      const running = links.map((link) => link.run());
      await Promise.all(links.map(({ tried }) => tried));
      expect(links.map(({ condition, reason }) => [condition, reason])).toEqual(links.map(() => ['up', undefined]));
      expect(joined.slice(-2).map(({ condition, worker }) => [condition, worker.state().accepts])).toEqual([
        ['ready', true],
        ['ready', true],
      ]);
      for (const link of links) link.stop();
      await Promise.all(running);
    }
    expect(joined.length).toBe(3000);
    expect(new Set(joined.map(({ worker }) => worker)).size).toBe(3000);
    expect(new Set(joined.map(({ worker }) => worker.id))).toEqual(new Set([1, 2]));
    expect(joined.every(({ condition, worker }) => condition === 'lost' && !worker.state().active)).toBe(true);
    expect(scheduler.stats().workers).toBe(1);
    expect(steady.state().active).toBe(true);
    expect(scheduler.verify()).toBe(true);
  });

  it('a worker that the scheduler could not let go is removed when it can be', async () => {
    const { url, routes } = await plainServer(vllmRoutes());
    const { set, scheduler } = setOf([{ url }], { maxWorkers: 1, probe: false });
    await set.start();
    const lost = only(set).worker;
    let refusals = 3;
    const remove = lost.remove.bind(lost);
    lost.remove = (at) => {
      if (refusals-- > 0) throw new Error('the journal is full');
      remove(at);
    };
    routes['/health'] = 503;
    await until('it is lost', () => set.workers.length === 0);
    expect(lost.state().active).toBe(true);
    routes['/health'] = '';
    await until('it is back', () => set.workers.length === 1 && only(set).condition === 'ready');
    expect([lost.state().active, only(set).worker.id, scheduler.stats().workers]).toEqual([false, 0, 1]);
  });

  it('a server that is down is joined when it comes up', async () => {
    const port = await freePort();
    const { set } = setOf([{ url: `http://127.0.0.1:${port}` }]);
    await set.start();
    expect(set.workers).toEqual([]);
    expect(set.servers[0]).toMatchObject({ condition: 'connecting' });
    expect(set.servers[0]?.reason).toMatch(/ECONNREFUSED/);
    await emulate({ port });
    await until('it joined', () => set.workers.length === 1 && only(set).condition === 'ready');
  });

  it('close removes all workers, and nothing works after it', async () => {
    const worker = await emulate();
    const { set, scheduler } = setOf([serverOf(worker)]);
    await set.start();
    await complete(worker, [1, 2, 3]);
    await set.close();
    expect(scheduler.stats().workers).toBe(0);
    expect(set.workers).toEqual([]);
    await expect(set.add(serverOf(worker))).rejects.toThrow(/closed/);
    await set.close();
  });
});
