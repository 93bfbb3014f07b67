/**
 * All vLLM workers of one model, and the scheduler's view of them: servers come and go, their events, load and health are told to
 * the scheduler, and its directives are carried out.
 *
 * Every server has a life of its own (server-link.ts); the set knows which worker is whose. It connects only to what it is told
 * of or finds, and listens nowhere unless a server is told to be bound to.
 */
import { Agent } from 'undici';
import { SagaArgumentError, SagaStateError } from '../errors.js';
import type { Worker } from '../scheduler/worker.js';
import { DirectiveClient } from './directive-client.js';
import { checkDiscovery, startDiscovery, type Discovery } from './discovery.js';
import type { KvEventSource } from './kv-event-source.js';
import type { WorkerSetMetrics } from './metrics.js';
import {
  checkServer,
  checkTopics,
  checkUrl,
  checkWorkerSet,
  type CheckedOptions,
  type ServerOptions,
  type WorkerSetOptions,
} from './options.js';
import { errorText } from './server.js';
import { ServerLink, linkTimes, type LinkHost, type LinkTimes } from './server-link.js';
import type { ServerCondition, VllmWorker } from './vllm-worker.js';

/** A server as the set sees it, whether it has workers or not. */
export interface ServerState {
  readonly url: string;
  readonly condition: ServerCondition;
  /** Why it has no workers, in words; `undefined` while it has. */
  readonly reason: string | undefined;
}

const mostServers = 1024;

export class WorkerSet {
  /**
   * Called when it is worth deciding again: KV events were applied, a worker came, went or changed, a directive ended. At most
   * once a turn of the event loop.
   */
  onChange: () => void = () => {};
  /** Carries out the scheduler's directives. */
  readonly directives: DirectiveClient;
  readonly #options: CheckedOptions;
  readonly #links = new Map<string, ServerLink>();
  /** Urls that the discovery brought. */
  readonly #found = new Set<string>();
  readonly #byWorker = new Map<Worker, { link: ServerLink; worker: VllmWorker }>();
  /** Made when it is asked for; another array after every change. */
  #sorted: readonly VllmWorker[] | undefined;
  readonly #running = new Set<Promise<void>>();
  readonly #dispatcher = new Agent({ connect: { timeout: 5000 } });
  readonly #times: LinkTimes;
  #discovery: Discovery | undefined;
  #discoveries = 0;
  #discoveryFailures = 0;
  #changing = false;
  #started = false;
  #closed = false;

  /**
   * @param times for tests
   * @throws SagaArgumentError for an option outside its range
   */
  constructor(options: WorkerSetOptions, times: Partial<LinkTimes> = {}) {
    this.#options = checkWorkerSet(options);
    if (this.#options.discover !== undefined) checkDiscovery(this.#options.discover);
    this.#times = { ...linkTimes, ...times };
    const { scheduler, model, timeScale, log, requestIdOf, threadOf, promptOf, prefetchRequests, probe } =
      this.#options;
    this.directives = new DirectiveClient({
      of: (worker) => this.of(worker),
      channel: (worker) => this.#byWorker.get(worker.worker)?.link.channel(worker),
      now: () => scheduler.now(),
      changed: () => this.#changed(),
      countPriority: (worker) => {
        const metrics = this.#byWorker.get(worker.worker)?.link.directiveMetrics(worker);
        if (metrics) ++metrics.priorities;
      },
      timeScale,
      log,
      requestIdOf,
      threadOf,
      promptOf,
      model,
      most: prefetchRequests,
      probed: probe,
      complete: async (worker, body, options) => {
        const link = this.#byWorker.get(worker.worker)?.link;
        if (link === undefined) throw new Error('the worker was lost');
        return await link.complete(worker, body, options);
      },
      metrics: (worker) => this.#byWorker.get(worker.worker)?.link.directiveMetrics(worker),
    });
  }

  /** Workers that are not removed, by id. */
  get workers(): readonly VllmWorker[] {
    this.#sorted ??= [...this.#byWorker.values()].map(({ worker }) => worker).sort((a, b) => a.worker.id - b.worker.id);
    return this.#sorted;
  }

  /** All servers, in the order in which they came. */
  get servers(): readonly ServerState[] {
    return [...this.#links.values()].map(({ url, condition, reason }) => ({ url, condition, reason }));
  }

  of(worker: Worker): VllmWorker | undefined {
    return this.#byWorker.get(worker)?.worker;
  }

  /** @internal What its events have told. */
  sourceOf(worker: VllmWorker): KvEventSource | undefined {
    return this.#byWorker.get(worker.worker)?.link.feed(worker)?.source;
  }

  /** Resolves when every listed server, and what the discovery finds first, was tried once: it is ready, or cannot be reached now. */
  async start(): Promise<void> {
    if (this.#started) throw new SagaStateError('SAGA_ERR_WRONG_STATE', 'the set was started already');
    this.#open();
    this.#started = true;
    const { servers, discover } = this.#options;
    const tried = servers.map((server) => this.#link(server).tried);
    if (discover !== undefined) {
      this.#discovery = startDiscovery(discover, {
        found: (found) => this.#discovered(found),
        failed: (error) => {
          ++this.#discoveryFailures;
          this.#options.log.warn({ error: errorText(error) }, 'servers could not be discovered');
        },
      });
      await this.#discovery.first;
      tried.push(...[...this.#links.values()].map((link) => link.tried));
    }
    await Promise.all(tried);
  }

  /** One more server. Resolves when it was tried once. @throws SagaArgumentError for one that is there, or a wrong setting */
  async add(server: ServerOptions): Promise<void> {
    this.#open();
    const checked = checkServer('server', server);
    const known = this.#links.get(checked.url);
    if (known && !known.leaving) throw new SagaArgumentError(`server ${checked.url} is there already`);
    checkTopics(
      [...this.#links.values()]
        .filter((link) => link !== known)
        .map((link) => link.server.options)
        .concat(checked),
    );
    if (known) this.#forget(checked.url);
    this.#found.delete(checked.url);
    await this.#link(checked).tried;
  }

  /** Its workers take no more calls; those they have go on. */
  drain(url: string): void {
    this.#at(url).drain();
  }

  /** They take calls again. */
  resume(url: string): void {
    this.#at(url).resume();
  }

  /** It is forgotten at once: calls of its workers wait to be placed again. */
  remove(url: string): void {
    this.#at(url);
    this.#forget(checkUrl('url', url));
  }

  metrics(): WorkerSetMetrics {
    const links = [...this.#links.values()];
    return {
      workers: links.flatMap((link) => link.workerMetrics()).sort((a, b) => a.worker - b.worker),
      servers: links.map((link) => ({ ...link.metrics })),
      discoveries: this.#discoveries,
      discoveryFailures: this.#discoveryFailures,
    };
  }

  /** Removes all workers from the scheduler, and closes all connections. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.onChange = () => {};
    this.directives.close();
    await this.#discovery?.close();
    for (const link of this.#links.values()) link.stop();
    await Promise.all(this.#running);
    this.#links.clear();
    await this.#dispatcher.destroy();
  }

  #link(server: ServerOptions): ServerLink {
    if (this.#links.size >= mostServers) throw new SagaArgumentError(`a set has at most ${mostServers} servers`);
    const host: LinkHost = {
      options: this.#options,
      dispatcher: this.#dispatcher,
      directives: this.directives,
      times: this.#times,
      joined: (from, worker) => {
        this.#byWorker.set(worker.worker, { link: from, worker });
        this.#sorted = undefined;
        this.#changed();
      },
      left: (worker) => {
        this.#byWorker.delete(worker.worker);
        this.#sorted = undefined;
        this.#changed();
      },
      changed: () => this.#changed(),
    };
    const link = new ServerLink(server, host);
    this.#links.set(server.url, link);
    const running = link.run().finally(() => {
      this.#running.delete(running);
      // One that left by itself.
      if (this.#links.get(server.url) === link && !this.#closed) this.#links.delete(server.url);
    });
    this.#running.add(running);
    return link;
  }

  #forget(url: string): void {
    const link = this.#links.get(url);
    this.#links.delete(url);
    this.#found.delete(url);
    link?.stop();
  }

  #at(url: string): ServerLink {
    this.#open();
    const link = this.#links.get(checkUrl('url', url));
    if (link === undefined)
      throw new SagaStateError('SAGA_ERR_NOT_FOUND', `no server ${checkUrl('url', url)} is known`);
    return link;
  }

  /** The servers that the discovery sees now. Those it no longer sees are drained, and removed when no call is open there. */
  #discovered(servers: readonly ServerOptions[]): void {
    ++this.#discoveries;
    if (this.#closed) return;
    const present = new Set<string>();
    for (const given of servers) {
      const server = checkServer('a discovered server', given);
      present.add(server.url);
      const link = this.#links.get(server.url);
      if (link === undefined && this.#links.size < mostServers) {
        this.#found.add(server.url);
        this.#link(server);
      } else if (link?.leaving === true) {
        link.resume();
      }
    }
    for (const url of [...this.#found]) {
      if (present.has(url)) continue;
      const link = this.#links.get(url);
      if (link === undefined) this.#found.delete(url);
      else if (!link.leaving) link.leaveWhenIdle();
    }
  }

  #changed(): void {
    if (this.#changing || this.#closed) return;
    this.#changing = true;
    setImmediate(() => {
      this.#changing = false;
      this.onChange();
    });
  }

  #open(): void {
    if (this.#closed) throw new SagaStateError('SAGA_ERR_CLOSED', 'the set was closed');
  }
}
