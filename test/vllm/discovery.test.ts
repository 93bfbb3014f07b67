/** Where servers come from: DNS by a resolver that is told, Kubernetes by an API server on loopback. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { EmulatedWorker } from '../../src/emulated-worker/index.js';
import { Scheduler } from '../../src/index.js';
import { startDiscovery, startDns, type Discovery, type Resolver } from '../../src/vllm/discovery.js';
import { WorkerSet, type DiscoverOptions, type ServerOptions } from '../../src/vllm/index.js';
import { shortTimes, until } from './helpers.js';

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

function watching(start: (events: Parameters<typeof startDiscovery>[1]) => Discovery) {
  const seen = { lists: [] as string[][], servers: [] as readonly ServerOptions[], errors: [] as string[] };
  const discovery = start({
    found: (servers) => {
      seen.servers = servers;
      seen.lists.push(servers.map(({ url }) => url));
    },
    failed: (error) => void seen.errors.push((error as Error).message),
  });
  closing.push(() => discovery.close());
  return { seen, discovery };
}

const nobody: Resolver = {
  resolve4: () => Promise.resolve([]),
  resolve6: () => Promise.resolve([]),
  resolveSrv: () => Promise.resolve([]),
};
const failure = (code: string): Error => Object.assign(new Error(code), { code });

describe('dns', () => {
  it('every address is a server, with the ports that are told', async () => {
    const { seen, discovery } = watching((events) =>
      startDns(
        { type: 'dns', host: 'vllm', port: 8000, server: { eventsPort: 5557, replayPort: 5558, apiKey: 'k' } },
        events,
        { ...nobody, resolve4: () => Promise.resolve(['10.0.0.2', '10.0.0.1']) },
      ),
    );
    await discovery.first;
    expect(seen.servers).toEqual([
      { url: 'http://10.0.0.1:8000', events: 'tcp://10.0.0.1:5557', replay: 'tcp://10.0.0.1:5558', apiKey: 'k' },
      { url: 'http://10.0.0.2:8000', events: 'tcp://10.0.0.2:5557', replay: 'tcp://10.0.0.2:5558', apiKey: 'k' },
    ]);
  });

  it('SRV has names and ports, AAAA gets its brackets', async () => {
    const srv = watching((events) =>
      startDns({ type: 'dns', host: '_http._tcp.vllm', record: 'SRV' }, events, {
        ...nobody,
        resolveSrv: () => Promise.resolve([{ name: 'a.vllm', port: 8001 }]),
      }),
    );
    const six = watching((events) =>
      startDns(
        { type: 'dns', host: 'vllm', record: 'AAAA', port: 80, server: { scheme: 'https', eventsPort: 1 } },
        events,
        {
          ...nobody,
          resolve6: () => Promise.resolve(['fd00::1']),
        },
      ),
    );
    await Promise.all([srv.discovery.first, six.discovery.first]);
    expect(srv.seen.lists).toEqual([['http://a.vllm:8001']]);
    expect(six.seen.servers).toEqual([{ url: 'https://[fd00::1]:80', events: 'tcp://[fd00::1]:1' }]);
  });

  it('is asked again; a failure changes nothing, a name without addresses does', async () => {
    const answers: (() => Promise<string[]>)[] = [
      () => Promise.resolve(['10.0.0.1']),
      () => Promise.reject(failure('ETIMEOUT')),
      () => Promise.reject(failure('ENOTFOUND')),
    ];
    const { seen } = watching((events) =>
      startDns({ type: 'dns', host: 'vllm', port: 81, everySeconds: 0.02 }, events, {
        ...nobody,
        resolve4: () => (answers.shift() ?? (() => Promise.resolve(['10.0.0.9'])))(),
      }),
    );
    await until('four answers', () => seen.lists.length === 3);
    expect(seen.lists).toEqual([['http://10.0.0.1:81'], [], ['http://10.0.0.9:81']]);
    expect(seen.errors).toEqual(['ETIMEOUT', 'ENOTFOUND']);
  });

  it.each([
    { type: 'dns', host: 'no spaces', port: 80 },
    { type: 'dns', host: 'vllm' },
    { type: 'dns', host: 'vllm', port: 80, record: 'TXT' },
    { type: 'dns', host: 'vllm', port: 80, server: { eventsPort: 70_000 } },
    { type: 'dns', host: 'vllm', port: 80, server: { role: 'prefill' } },
    { type: 'kubernetes', service: '../secrets' },
    { type: 'kubernetes', service: 'vllm', namespace: 'a/b' },
    { type: 'etcd' },
  ])('refuses %j', (options) => {
    expect(() => startDiscovery(options as unknown as DiscoverOptions, { found: () => {}, failed: () => {} })).toThrow(
      /^discover/,
    );
  });
});

interface Slice {
  metadata: { name: string; labels?: Record<string, string> };
  addressType: string;
  endpoints: { addresses: string[]; conditions?: { ready?: boolean } }[];
  ports: { name: string; port: number }[];
}

const sliceOf = (name: string, addresses: string[], more: Partial<Slice> = {}): Slice => ({
  metadata: { name },
  addressType: 'IPv4',
  endpoints: addresses.map((address) => ({ addresses: [address], conditions: { ready: true } })),
  ports: [
    { name: 'http', port: 8000 },
    { name: 'metrics', port: 9000 },
  ],
  ...more,
});

/** An API server: one list, in two pages, and a watch that the test writes to. */
async function apiServer(slices: Slice[]) {
  const state = {
    slices,
    requests: [] as { url: URL; token: string | undefined }[],
    watches: [] as ServerResponse[],
    status: 200,
  };
  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    const url = new URL(request.url ?? '', 'http://api');
    state.requests.push({ url, token: request.headers.authorization });
    if (state.status !== 200) {
      response.writeHead(state.status).end('{}');
      return;
    }
    response.writeHead(200, { 'content-type': 'application/json' });
    if (url.searchParams.get('watch') === 'true') {
      state.watches.push(response);
      response.flushHeaders();
      return;
    }
    const second = url.searchParams.get('continue') === 'page 2';
    response.end(
      JSON.stringify({
        metadata: { resourceVersion: '77', ...(second ? {} : { continue: 'page 2' }) },
        items: second ? state.slices.slice(1) : state.slices.slice(0, 1),
      }),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closing.push(() => {
    server.closeAllConnections();
    server.close();
  });
  const serviceAccount = mkdtempSync(join(tmpdir(), 'saga-account-'));
  closing.push(() => rmSync(serviceAccount, { recursive: true }));
  writeFileSync(join(serviceAccount, 'token'), 'token-1\n');
  writeFileSync(join(serviceAccount, 'namespace'), 'models');
  const tell = (type: string, object: object, split = false): void => {
    const line = `${JSON.stringify({ type, object })}\n`;
    const watch = state.watches.at(-1) as ServerResponse;
    if (split) {
      watch.write(line.slice(0, 20));
      setTimeout(() => watch.write(line.slice(20)), 10);
    } else {
      watch.write(line);
    }
  };
  const options: DiscoverOptions = {
    type: 'kubernetes',
    service: 'vllm',
    apiServer: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    serviceAccount,
  };
  return { state, options, serviceAccount, tell };
}

describe('kubernetes', () => {
  it('lists in pages, watches, and follows what changes', async () => {
    const { state, options, serviceAccount, tell } = await apiServer([
      sliceOf('a', ['10.0.0.1', '10.0.0.2']),
      sliceOf('b', ['10.0.0.3']),
    ]);
    const { seen, discovery } = watching((events) =>
      startDiscovery({ ...options, server: { eventsPort: 5557 } }, events),
    );
    await discovery.first;
    expect(seen.lists).toEqual([['http://10.0.0.1:8000', 'http://10.0.0.2:8000', 'http://10.0.0.3:8000']]);
    expect(seen.servers[0]?.events).toBe('tcp://10.0.0.1:5557');
    await until('it watches', () => state.watches.length === 1);
    const [first] = state.requests;
    expect(first?.url.pathname).toBe('/apis/discovery.k8s.io/v1/namespaces/models/endpointslices');
    expect(first?.url.searchParams.get('labelSelector')).toBe('kubernetes.io/service-name=vllm');
    expect(first?.token).toBe('Bearer token-1');
    expect(state.requests.at(-1)?.url.searchParams.get('resourceVersion')).toBe('77');
    // One is no longer ready; the line comes in two pieces.
    const changed = sliceOf('a', ['10.0.0.1']);
    changed.endpoints.push({ addresses: ['10.0.0.2'], conditions: { ready: false } });
    tell('MODIFIED', changed, true);
    await until('it is gone', () => seen.lists.length === 2);
    tell('DELETED', sliceOf('b', []));
    tell('BOOKMARK', { metadata: { resourceVersion: '80' } });
    tell('ADDED', sliceOf('c', ['10.0.0.4']));
    await until('all is told', () => seen.lists.at(-1)?.includes('http://10.0.0.4:8000') === true);
    expect(seen.lists.at(-1)).toEqual(['http://10.0.0.1:8000', 'http://10.0.0.4:8000']);
    // Too old: everything is listed again, by a token that was replaced.
    writeFileSync(join(serviceAccount, 'token'), 'token-2\n');
    state.slices = [sliceOf('d', ['10.0.0.5'])];
    tell('ERROR', { code: 410 });
    await until('it was listed anew', () => seen.lists.at(-1)?.[0] === 'http://10.0.0.5:8000');
    expect(state.requests.at(-1)?.token).toBe('Bearer token-2');
    expect(seen.errors).toEqual([]);
  });

  it('takes a port by name or number, one family, and no side of disaggregation', async () => {
    const { options } = await apiServer([
      sliceOf('six', ['fd00::1'], { addressType: 'IPv6' }),
      sliceOf('four', ['10.0.0.1']),
      sliceOf('prefill', ['10.0.0.2'], { metadata: { name: 'prefill', labels: { 'llm-d.ai/role': 'prefill' } } }),
    ]);
    const byName = watching((events) => startDiscovery({ ...options, port: 'metrics' }, events));
    const byNumber = watching((events) => startDiscovery({ ...options, port: 8080 }, events));
    await Promise.all([byName.discovery.first, byNumber.discovery.first]);
    expect(byName.seen.lists).toEqual([['http://10.0.0.1:9000']]);
    expect(byNumber.seen.lists).toEqual([['http://10.0.0.1:8080']]);
    expect(byName.seen.errors[0]).toMatch(/prefill\/decode disaggregation is not supported/);
  });

  it('a failure changes nothing, says why, and is tried again', async () => {
    const { state, options } = await apiServer([sliceOf('a', ['10.0.0.1'])]);
    state.status = 403;
    const { seen, discovery } = watching((events) => startDiscovery(options, events));
    await discovery.first;
    expect(seen.errors).toEqual([
      'the API server answers 403: the service account may not list endpointslices of discovery.k8s.io',
    ]);
    state.status = 200;
    await until('it is listed', () => seen.lists.length === 1);
    expect(seen.lists).toEqual([['http://10.0.0.1:8000']]);
    state.status = 500;
    state.watches.at(-1)?.end();
    await until('it failed again', () => seen.errors.length > 1);
    expect(seen.lists.length).toBe(1);
  });

  it('sends its token over plain HTTP to loopback alone', async () => {
    const { options } = await apiServer([]);
    const { seen, discovery } = watching((events) =>
      startDiscovery({ ...options, apiServer: 'http://10.255.255.1:6443' }, events),
    );
    await discovery.first;
    expect(seen.errors).toEqual(['discover.apiServer must be https: a token goes there']);
  });
});

describe('a set that discovers', () => {
  it('adds what is found, drains what is gone, and removes it when its calls have ended', async () => {
    const [a, b] = [
      await EmulatedWorker.start({ timeScale: Infinity }),
      await EmulatedWorker.start({ timeScale: Infinity }),
    ];
    closing.push(() => Promise.all([a.close(), b.close()]));
    const portOf = (worker: EmulatedWorker): number => Number(new URL(worker.url).port);
    const of = (name: string, worker: EmulatedWorker): Slice =>
      sliceOf(name, ['127.0.0.1'], { ports: [{ name: 'http', port: portOf(worker) }] });
    const { state, options, tell } = await apiServer([of('a', a), of('b', b)]);
    const scheduler = new Scheduler({ maxWorkers: 8, policy: 'round-robin' });
    closing.push(() => scheduler.close());
    const set = new WorkerSet(
      { scheduler, model: 'emulated', discover: options, healthSeconds: 0.05, probe: false },
      shortTimes,
    );
    closing.push(() => set.close());
    await set.start();
    expect(set.workers.map(({ origin }) => origin).sort()).toEqual([a.url, b.url].sort());
    const call = scheduler.openWorkflow().submit(Uint32Array.of(1));
    const held = set.of(call.place().worker);
    await until('it watches', () => state.watches.length === 1);
    tell('DELETED', of(held?.origin === a.url ? 'a' : 'b', a));
    await until('it is drained', () => held?.condition === 'draining');
    expect(set.workers.length).toBe(2);
    call.finish();
    await until('it is gone', () => set.workers.length === 1);
    expect(held?.condition).toBe('lost');
    expect(set.metrics()).toMatchObject({ discoveries: 2, discoveryFailures: 0 });
  });
});
