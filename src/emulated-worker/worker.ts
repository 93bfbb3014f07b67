/**
 * An emulated worker: a vLLM server as far as its clients can tell, without a GPU and without a model. It tokenizes, caches
 * prefixes, forms batches, streams answers and publishes KV events as vLLM does; a step takes the modelled time.
 */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { DirectiveServer } from './directive-server.js';
import { Driver } from './driver.js';
import { Engine, type EngineOptions } from './engine.js';
import { EventPublisher } from './event-publisher.js';
import { HttpApi } from './http-api.js';
import { resolveOptions, type EmulatedWorkerOptions, type ResolvedOptions } from './options.js';

/** Most blocks of leases, each counted with the longest prompt. */
const leaseWords = 2 ** 21;

/** @internal */
export function engineOptions(options: ResolvedOptions): EngineOptions {
  const longest = Math.ceil(options.maxModelTokens / options.blockTokens) + 1;
  return {
    blocks: options.blocks,
    blockTokens: options.blockTokens,
    maxModelTokens: options.maxModelTokens,
    maxSequences: options.maxSequences,
    tokenBudget: options.tokenBudget,
    maxCalls: options.maxCalls,
    maxLeases: Math.max(16, Math.min(1024, Math.floor(leaseWords / longest))),
    hashAlgorithm: options.hashAlgorithm,
    hashSeed: options.hashSeed,
    taggedKeys: options.taggedKeys,
    wholeHashes: options.wholeHashes,
    priorityScheduling: options.priorityScheduling,
    prefixCaching: options.prefixCaching,
    eviction: options.eviction,
    stepSeconds: options.stepSeconds,
    timeScale: options.timeScale,
  };
}

/** One rank. */
interface Rank {
  readonly engine: Engine;
  readonly driver: Driver;
  readonly publisher: EventPublisher | undefined;
  readonly directives: DirectiveServer;
}

export class EmulatedWorker {
  /** Its options with all defaults. */
  readonly options: Readonly<ResolvedOptions>;
  readonly #server: Server;
  readonly #ranks: Rank[];
  #closing: Promise<void> | undefined;

  private constructor(options: ResolvedOptions, server: Server, ranks: Rank[]) {
    this.options = options;
    this.#server = server;
    this.#ranks = ranks;
  }

  /**
   * Starts one; it listens when this returns.
   *
   * @throws SagaArgumentError for an option outside its range; what the system says where a port is taken
   */
  static async start(options: EmulatedWorkerOptions = {}): Promise<EmulatedWorker> {
    const resolved = resolveOptions(options);
    const ranks: Rank[] = [];
    const engines: Engine[] = [];
    const api = new HttpApi(resolved, engines);
    const server = createServer({ keepAliveTimeout: 65_000, requestTimeout: 0 }, (request, response) =>
      api.handle(request, response),
    );
    const worker = new EmulatedWorker(resolved, server, ranks);
    try {
      for (let rank = 0; rank < resolved.dataParallelRanks; rank++) {
        const engine = new Engine(engineOptions(resolved));
        engines.push(engine);
        const publisher =
          resolved.eventsPort === null
            ? undefined
            : await EventPublisher.start({
                endpoint: addressOf(resolved.host, resolved.eventsPort, rank),
                replayEndpoint:
                  resolved.replayPort === null ? undefined : addressOf(resolved.host, resolved.replayPort, rank),
                topic: resolved.topic,
                rank,
                blockTokens: resolved.blockTokens,
                bufferBatches: resolved.bufferBatches,
              });
        if (publisher !== undefined) engine.onEvents = (events) => publisher.publish(events);
        const directives = new DirectiveServer(engine, {
          key: resolved.directiveKey,
          budget: Math.floor(resolved.leaseBudget * engine.usableBlocks),
        });
        const driver = new Driver(engine, resolved.timeScale, () => api.flush());
        ranks.push({ engine, driver, publisher, directives });
        if (resolved.directivesPort !== null)
          await directives.listen(addressOf(resolved.host, resolved.directivesPort, rank));
      }
      const directivesOf = (engine: Engine): DirectiveServer | undefined =>
        ranks.find((rank) => rank.engine === engine)?.directives;
      api.onEnvelope = (engine, envelope, rider) => directivesOf(engine)?.handle(envelope, undefined, rider);
      api.onRiderEnd = (engine, rider) => directivesOf(engine)?.ended(rider);
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(resolved.port, resolved.host, () => {
          server.off('error', reject);
          resolve();
        });
      });
    } catch (error) {
      await worker.close();
      throw error;
    }
    return worker;
  }

  /** For example `http://127.0.0.1:8000`. */
  get url(): string {
    const { port } = this.#server.address() as AddressInfo;
    return `http://${this.options.host.includes(':') ? `[${this.options.host}]` : this.options.host}:${port}`;
  }

  /** Where events of rank 0 come from. */
  get events(): string | undefined {
    return this.#ranks[0]?.publisher?.endpoint;
  }

  get replay(): string | undefined {
    return this.#ranks[0]?.publisher?.replayEndpoint;
  }

  get directives(): string | undefined {
    return this.#ranks[0]?.directives.endpoint;
  }

  /** Its engines, one a rank. */
  get engines(): readonly Engine[] {
    return this.#ranks.map((rank) => rank.engine);
  }

  /** The next batches of events take their sequence numbers and are not sent: the subscriber sees a gap, and may replay. */
  dropEvents(batches: number, rank = 0): void {
    this.#ranks[rank]?.publisher?.drop(batches);
  }

  /** Batches of events wait until {@link resumeEvents}. */
  pauseEvents(rank = 0): void {
    this.#ranks[rank]?.publisher?.pause();
  }

  resumeEvents(rank = 0): void {
    this.#ranks[rank]?.publisher?.resume();
  }

  /** As a new process: calls are cut off, nothing is cached, event numbers begin at 0, directives have a new epoch. */
  restart(): void {
    for (const { engine, publisher, directives } of this.#ranks) {
      directives.restart();
      engine.restart();
      publisher?.restart();
    }
  }

  /** Ends it. Calls in progress are cut off. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    for (const { engine, driver, publisher, directives } of this.#ranks) {
      driver.close();
      directives.close();
      engine.close();
      publisher?.close();
    }
    if (!this.#server.listening) return;
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function addressOf(host: string, port: number, rank: number): string {
  const name = host.includes(':') ? `[${host}]` : host === 'localhost' ? '127.0.0.1' : host;
  return `tcp://${name}:${port === 0 ? '*' : port + rank}`;
}
