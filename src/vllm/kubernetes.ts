/**
 * Ready endpoints of a Kubernetes service: its EndpointSlices are listed, then watched, and listed anew from time to time and
 * whenever the watch breaks off. Done by plain requests with the files of the pod's service account, which needs `get`, `list` and
 * `watch` of `endpointslices` in `discovery.k8s.io`. Lists and lines are bounded; the token is read anew for each request, as it is
 * replaced.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Agent, request } from 'undici';
import { SagaArgumentError } from '../errors.js';
import { serverAt, type Discovery, type DiscoveryEvents } from './discovery.js';
import { checkUrl, type KubernetesDiscovery, type ServerOptions } from './options.js';

const defaultAccount = '/var/run/secrets/kubernetes.io/serviceaccount';
const mostBodyBytes = 2 ** 24;
const mostSlices = 1000;
const mostServers = 1024;
const requestMs = 15_000;
const leastBackoffMs = 200;
const mostBackoffMs = 30_000;
/** A label of llm-d; services hand theirs to their slices. */
const roleLabel = 'llm-d.ai/role';

/** What is read of an EndpointSlice. */
interface Slice {
  metadata?: { name?: string; resourceVersion?: string; labels?: Record<string, string> };
  addressType?: string;
  endpoints?: { addresses?: string[]; conditions?: { ready?: boolean } }[] | null;
  ports?: { name?: string; port?: number }[] | null;
}

export function startKubernetes(options: KubernetesDiscovery, events: DiscoveryEvents): Discovery {
  const watch = new EndpointWatch(options, events);
  return { first: watch.first, close: () => watch.close() };
}

class EndpointWatch {
  readonly first: Promise<void>;
  readonly #options: KubernetesDiscovery;
  readonly #events: DiscoveryEvents;
  readonly #stop = new AbortController();
  readonly #slices = new Map<string, Slice>();
  readonly #running: Promise<void>;
  #first!: () => void;
  #agent: Agent | undefined;
  #shown: string | undefined;

  constructor(options: KubernetesDiscovery, events: DiscoveryEvents) {
    this.#options = options;
    this.#events = events;
    this.first = new Promise((resolve) => (this.#first = resolve));
    this.#running = this.#run();
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#running;
    await this.#agent?.destroy();
  }

  async #run(): Promise<void> {
    let wait = leastBackoffMs;
    while (!this.#stop.signal.aborted) {
      try {
        const version = await this.#list();
        this.#first();
        wait = leastBackoffMs;
        await this.#watch(version);
      } catch (error) {
        if (this.#stop.signal.aborted) break;
        this.#events.failed(error);
        this.#first();
        await delay(wait, undefined, { signal: this.#stop.signal, ref: false }).catch(() => {});
        wait = Math.min(2 * wait, mostBackoffMs);
      }
    }
    this.#first();
  }

  /** Returns the version to watch from. */
  async #list(): Promise<string> {
    const slices = new Map<string, Slice>();
    let version = '';
    for (let next: string | undefined = ''; next !== undefined;) {
      const body = await this.#get(
        `limit=500${next === '' ? '' : `&continue=${encodeURIComponent(next)}`}`,
        AbortSignal.timeout(requestMs),
      );
      const chunks: Buffer[] = [];
      let bytes = 0;
      for await (const chunk of body) {
        bytes += chunk.length;
        if (bytes > mostBodyBytes) throw new Error('the list of EndpointSlices is too long');
        chunks.push(chunk);
      }
      const list = JSON.parse(Buffer.concat(chunks).toString('utf8')) as {
        items?: Slice[];
        metadata?: { resourceVersion?: string; continue?: string };
      };
      if (!Array.isArray(list.items)) throw new Error('the API server answered no list of EndpointSlices');
      for (const slice of list.items) this.#keep(slices, slice);
      version = list.metadata?.resourceVersion ?? '';
      next = list.metadata?.continue === '' ? undefined : list.metadata?.continue;
    }
    this.#slices.clear();
    for (const [name, slice] of slices) this.#slices.set(name, slice);
    this.#tell();
    return version;
  }

  /** Until it is time to list again. */
  async #watch(version: string): Promise<void> {
    const seconds = this.#options.resyncSeconds ?? 300;
    const body = await this.#get(
      `watch=true&allowWatchBookmarks=true&timeoutSeconds=${seconds}&resourceVersion=${encodeURIComponent(version)}`,
      // The API server ends it earlier; a connection that died does not.
      AbortSignal.timeout(1000 * seconds + requestMs),
    );
    let rest = '';
    const decoder = new TextDecoder();
    for await (const chunk of body) {
      rest += decoder.decode(chunk, { stream: true });
      const lines = rest.split('\n');
      rest = lines.pop() as string;
      if (rest.length > mostBodyBytes) throw new Error('a line of the watch is too long');
      for (const line of lines) {
        if (line.trim() === '') continue;
        const { type, object } = JSON.parse(line) as { type?: string; object?: Slice };
        // What it had is too old (410), or it cannot go on: everything is listed again.
        if (type === 'ERROR') return;
        const name = object?.metadata?.name;
        if (object === undefined || name === undefined) continue;
        if (type === 'DELETED') this.#slices.delete(name);
        else if (type === 'ADDED' || type === 'MODIFIED') this.#keep(this.#slices, object);
      }
      this.#tell();
    }
  }

  #keep(slices: Map<string, Slice>, slice: Slice): void {
    const name = slice.metadata?.name;
    if (name === undefined) return;
    if (!slices.has(name) && slices.size >= mostSlices)
      throw new Error(`there are more than ${mostSlices} EndpointSlices`);
    slices.set(name, slice);
  }

  #tell(): void {
    const slices = [...this.#slices.values()];
    const of = (type: string): Slice[] => slices.filter((slice) => slice.addressType === type);
    // A service of both families has every endpoint twice.
    const used = of('IPv4').length > 0 ? of('IPv4') : of('IPv6');
    const servers = new Map<string, ServerOptions>();
    for (const slice of used) {
      const role = slice.metadata?.labels?.[roleLabel];
      if (role === 'prefill' || role === 'decode') {
        this.#events.failed(
          new Error(
            `service ${this.#options.service} has ${roleLabel}=${role}: prefill/decode disaggregation is not supported`,
          ),
        );
        continue;
      }
      const port = this.#portOf(slice);
      if (port === undefined) continue;
      for (const { addresses, conditions } of slice.endpoints ?? []) {
        const [address] = addresses ?? [];
        if (address === undefined || conditions?.ready === false || servers.size >= mostServers) continue;
        const server = serverAt(this.#options.server, address, port);
        servers.set(server.url, server);
      }
    }
    const urls = [...servers.keys()].sort();
    const shown = urls.join(' ');
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#events.found(urls.map((url) => servers.get(url) as ServerOptions));
  }

  #portOf(slice: Slice): number | undefined {
    const { port } = this.#options;
    if (typeof port === 'number') return port;
    const ports = slice.ports ?? [];
    return (port === undefined ? ports[0] : ports.find(({ name }) => name === port))?.port;
  }

  async #get(query: string, limit: AbortSignal): Promise<AsyncIterable<Buffer>> {
    const { service, apiServer, serviceAccount = defaultAccount } = this.#options;
    const read = async (name: string): Promise<string> => (await readFile(join(serviceAccount, name), 'utf8')).trim();
    const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port = '443' } = process.env;
    if (apiServer === undefined && host === undefined)
      throw new Error('this is no pod: KUBERNETES_SERVICE_HOST is not set, and discover.apiServer neither');
    const base = checkUrl(
      'discover.apiServer',
      apiServer ?? `https://${host?.includes(':') ? `[${host}]` : host}:${port}`,
    );
    const { protocol, hostname } = new URL(base);
    if (protocol === 'http:' && !/^(localhost|127\.[\d.]+|\[::1\])$/.test(hostname))
      throw new SagaArgumentError('discover.apiServer must be https: a token goes there');
    this.#agent ??= new Agent({
      connect: { timeout: requestMs, ...(protocol === 'https:' ? { ca: await read('ca.crt') } : {}) },
      bodyTimeout: 0,
      headersTimeout: requestMs,
    });
    const namespace = this.#options.namespace ?? (await read('namespace'));
    const selector = encodeURIComponent(`kubernetes.io/service-name=${service}`);
    const { statusCode, body } = await request(
      `${base}/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices?labelSelector=${selector}&${query}`,
      {
        dispatcher: this.#agent,
        signal: AbortSignal.any([this.#stop.signal, limit]),
        headers: { authorization: `Bearer ${await read('token')}`, accept: 'application/json' },
      },
    );
    if (statusCode !== 200) {
      await body.dump({ limit: 2 ** 16 });
      const hint = statusCode === 403 ? ': the service account may not list endpointslices of discovery.k8s.io' : '';
      throw new Error(`the API server answers ${statusCode}${hint}`);
    }
    return body as AsyncIterable<Buffer>;
  }
}
