/**
 * The gateway: an HTTP server (or a handler within one) in front of the workers of one or several models.
 *
 * A request is authenticated by its headers, then read within bounds, then served: calls to models by `call.ts`, `/saga/...` by
 * `select.ts` and `observe/`, other `/v1` routes by whichever worker of the model fits. Errors are told in the shape that clients of the path know.
 */
import { randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { SagaArgumentError } from '../errors.js';
import { JsonOutline } from '../json-outline.js';
import type { Logger, VllmWorker } from '../vllm/index.js';
import { Body, HeldBytes, checkJson, readBody } from './body.js';
import { ResponseWorkers, endpointPaths, serveCall, upstreamHeaders, type CallContext } from './call.js';
import type { GatewayConfig, ModelConfig } from './config.js';
import { GatewayError, asGatewayError, sendError } from './errors.js';
import { Tenants, type Tenant } from './identity.js';
import { ModelPool } from './model-pool.js';
import { GatewayMetrics } from './observe/metrics.js';
import { explanation, readiness, workerList, workflowList } from './observe/state.js';
import { startSpan } from './observe/trace.js';
import { Selections } from './select.js';
import { createPromptSource } from './tokens/index.js';
import type { PromptSource } from './tokens/types.js';
import { Upstream } from './upstream.js';

/** Without an answer from anybody: the log goes nowhere. */
const noLog: Logger = { debug() {}, info() {}, warn() {}, error() {} };

const loopback = /^(?:localhost|127(?:\.\d{1,3}){3}|::1|\[::1\])$/;
const mostPathBytes = 2048;
const defaults = {
  host: '127.0.0.1',
  port: 8080,
  maxBodyBytes: 32 * 2 ** 20,
  maxHeldBytes: 2 ** 30,
  bodySeconds: 30,
  firstByteSeconds: 600,
  chunkSeconds: 300,
  deadlineSeconds: 3600,
  retries: 2,
};

/** A model as a client named it. */
interface Target {
  readonly pool: ModelPool;
  readonly prompts: PromptSource;
  readonly loraName: string | undefined;
  readonly modelName: string | undefined;
}

/** See the head of this file. Made by {@link Gateway.start}. */
export class Gateway {
  readonly config: GatewayConfig;
  /** By the name that clients use. */
  readonly pools: ReadonlyMap<string, ModelPool>;
  /** For `node:http` and Express; with Fastify `(request, reply) => { reply.hijack(); gateway.handler(request.raw, reply.raw); }`. */
  readonly handler: (request: IncomingMessage, response: ServerResponse) => void;
  readonly metrics: GatewayMetrics;
  readonly #targets = new Map<string, Target>();
  readonly #tenants: Tenants;
  readonly #upstream: Upstream;
  readonly #scanner = new JsonOutline();
  readonly #held: HeldBytes;
  readonly #responses = new ResponseWorkers();
  readonly #selections: Selections;
  readonly #log: Logger;
  readonly #limits: Required<Pick<GatewayConfig, keyof typeof defaults>>;
  readonly #open = new Set<ServerResponse>();
  #server: Server | undefined;
  #closing = false;

  private constructor(config: GatewayConfig) {
    this.config = config;
    this.#log = config.log ?? noLog;
    this.#limits = { ...defaults, ...definedOf(config) };
    this.#tenants = new Tenants(config);
    if (!loopback.test(this.#limits.host) && !this.#tenants.closed && config.insecure !== true)
      throw new SagaArgumentError(
        `host ${this.#limits.host} can be reached from outside: set apiKeys, or insecure to serve whoever comes`,
      );
    this.#held = new HeldBytes(this.#limits.maxHeldBytes);
    this.#upstream = new Upstream({
      headSeconds: this.#limits.firstByteSeconds,
      chunkSeconds: this.#limits.chunkSeconds,
    });
    const pools = new Map<string, ModelPool>();
    for (const model of config.models) {
      if (pools.has(model.name)) throw new SagaArgumentError(`model ${model.name} is there twice`);
      const pool = new ModelPool(model, config, this.#log);
      pools.set(model.name, pool);
      const prompts = createPromptSource(pool);
      this.#targets.set(model.name, { pool, prompts, loraName: undefined, modelName: renamed(model) });
      for (const [alias, loraName] of Object.entries(model.aliases ?? {})) {
        if (this.#targets.has(alias)) throw new SagaArgumentError(`model ${alias} is there twice`);
        const modelName = loraName ?? model.upstreamName ?? model.name;
        this.#targets.set(alias, { pool, prompts, loraName: loraName ?? undefined, modelName });
      }
    }
    if (pools.size === 0) throw new SagaArgumentError('models must have at least one');
    this.pools = pools;
    this.metrics = new GatewayMetrics([...pools.values()]);
    this.#selections = new Selections();
    this.handler = (request, response) => {
      void this.#serve(request, response);
    };
  }

  /**
   * Connects to the workers. Nothing listens yet.
   *
   * @throws SagaArgumentError for a configuration that cannot be, such as an address for everybody without keys
   */
  static async start(config: GatewayConfig): Promise<Gateway> {
    const gateway = new Gateway(config);
    try {
      await Promise.all([...gateway.pools.values()].map((pool) => pool.start()));
    } catch (error) {
      await gateway.close({ graceSeconds: 0 });
      throw error;
    }
    return gateway;
  }

  /** Listens at `host` and `port`. */
  async listen(): Promise<AddressInfo> {
    const { host, port } = this.#limits;
    const server = createServer({ keepAliveTimeout: 75_000, requestTimeout: 0 }, this.handler);
    server.on('clientError', (_error, socket) => {
      // Headers that are too large or no HTTP at all.
      if (socket.writable)
        socket.end(
          'HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n\r\n' + badRequest,
        );
    });
    this.#server = server;
    return await new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, host, () => {
        server.off('error', reject);
        resolve(server.address() as AddressInfo);
      });
    });
  }

  /**
   * Takes no new requests, lets those that run end, and breaks off what is left after `graceSeconds` (default 30).
   */
  async close(options: { graceSeconds?: number } = {}): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    const server = this.#server;
    const closed = server === undefined ? undefined : new Promise((resolve) => server.close(resolve));
    server?.closeIdleConnections();
    const until = performance.now() + 1000 * (options.graceSeconds ?? 30);
    while (this.#open.size > 0 && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 20));
    for (const response of this.#open) response.destroy();
    server?.closeAllConnections();
    await closed;
    this.#selections.close();
    for (const { prompts } of this.#targets.values()) prompts.close();
    await Promise.all([...this.pools.values()].map((pool) => pool.close()));
    await this.#upstream.close();
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = pathOf(request);
    const shape = path === '/v1/messages' ? 'anthropic' : 'openai';
    this.#open.add(response);
    response.once('close', () => this.#open.delete(response));
    const requestId = requestIdOf(request);
    const span = startSpan(request, path);
    try {
      if (this.#closing)
        throw new GatewayError('shutting_down', 'the gateway is shutting down', { closes: true, retryAfter: 1 });
      await this.#route(request, response, path, requestId);
    } catch (thrown) {
      const error = asGatewayError(thrown);
      span.failed(error);
      this.metrics.failed(error.code);
      const fields = { requestId, path, code: error.code, err: error.cause };
      if (error.code === 'internal_error') this.#log.error(fields, 'a request failed within the gateway');
      else this.#log.info(fields, error.message);
      sendError(response, error, shape);
      // Whatever of the body is still to come is not read.
      if (error.closes) request.resume().once('end', () => request.socket.destroySoon());
    } finally {
      span.end(response.statusCode);
    }
  }

  async #route(request: IncomingMessage, response: ServerResponse, path: string, requestId: string): Promise<void> {
    if (path === '/healthz') {
      allow(request, 'GET');
      sendJson(response, 200, { status: 'ok' });
      return;
    }
    const tenant = this.#tenants.of(request.headers);
    const endpoint = Object.hasOwn(endpointPaths, path) ? endpointPaths[path] : undefined;
    if (endpoint !== undefined) {
      allow(request, 'POST');
      await this.#withBody(request, async (body) => {
        const context = this.#context(this.#targetOf(body), tenant, requestId);
        const previous = endpoint === 'responses' ? body.text('previous_response_id') : undefined;
        if (previous !== undefined) {
          // Its prompt is what that worker remembers: nobody else has it.
          const worker = this.#responses.of(previous);
          if (worker === undefined)
            throw new GatewayError(
              'not_found',
              `response ${previous.slice(0, 80)} is not known, or its worker is gone`,
              {
                param: 'previous_response_id',
              },
            );
          await this.#forward(request, response, worker, requestId, body.bytes, endpoint);
          return;
        }
        await serveCall(context, endpoint, request, response, body);
      });
      return;
    }
    switch (path) {
      case '/readyz': {
        allow(request, 'GET');
        const state = readiness([...this.pools.values()]);
        sendJson(response, state.ready ? 200 : 503, state);
        return;
      }
      case '/metrics':
        allow(request, 'GET');
        sendText(response, await this.metrics.text(), this.metrics.contentType);
        return;
      case '/v1/models':
        allow(request, 'GET');
        sendJson(response, 200, { object: 'list', data: [...this.#targets.keys()].map(modelCard) });
        return;
      case '/saga/workers':
        allow(request, 'GET');
        sendJson(response, 200, { workers: workerList([...this.pools.values()]) });
        return;
      case '/saga/workflows':
        allow(request, 'GET');
        sendJson(response, 200, { workflows: workflowList([...this.pools.values()], tenant) });
        return;
      case '/saga/select':
      case '/saga/select_and_reserve':
        allow(request, 'POST');
        await this.#withBody(request, async (body) => {
          const target = this.#targetOf(body);
          const reserve = path === '/saga/select_and_reserve';
          sendJson(response, 200, await this.#selections.select(target, tenant, request, body, reserve));
        });
        return;
      case '/saga/release':
        allow(request, 'POST');
        await this.#withBody(request, (body) => {
          sendJson(response, 200, this.#selections.release(body, tenant));
          return Promise.resolve();
        });
        return;
      default:
    }
    if (path.startsWith('/saga/explain/')) {
      allow(request, 'GET');
      sendJson(response, 200, explanation(this.pools, path.slice('/saga/explain/'.length), tenant));
      return;
    }
    if (path.startsWith('/v1/models/')) {
      allow(request, 'GET');
      const name = decoded(path.slice('/v1/models/'.length));
      if (!this.#targets.has(name)) throw modelNotFound(name);
      sendJson(response, 200, modelCard(name));
      return;
    }
    if (path.startsWith('/v1/responses/')) {
      const id = decoded(path.split('/')[3] ?? '');
      const worker = this.#responses.of(id);
      if (worker === undefined)
        throw new GatewayError('not_found', `response ${id.slice(0, 80)} is not known, or its worker is gone`);
      await this.#forward(request, response, worker, requestId, await this.#plainBody(request), undefined);
      return;
    }
    if (path.startsWith('/v1/') && request.method === 'POST') {
      await this.#withBody(request, async (body) => {
        const { pool } = this.#targetOf(body);
        await this.#forward(request, response, this.#readyWorker(pool), requestId, body.bytes, undefined);
      });
      return;
    }
    throw new GatewayError('unknown_route', `there is no ${request.method ?? ''} ${path.slice(0, 200)}`, {
      closes: true,
    });
  }

  /** Reads and scans the body, and holds its bytes until `use` has ended. */
  async #withBody(request: IncomingMessage, use: (body: Body) => Promise<void>): Promise<void> {
    checkJson(request);
    const bytes = await readBody(request, { ...this.#limits, held: this.#held });
    try {
      await use(Body.of(bytes, this.#scanner));
    } finally {
      this.#held.give(bytes.length);
    }
  }

  async #plainBody(request: IncomingMessage): Promise<Buffer | null> {
    if (request.method === 'GET' || request.method === 'DELETE') return null;
    const bytes = await readBody(request, { ...this.#limits, held: this.#held });
    this.#held.give(bytes.length);
    return bytes;
  }

  #targetOf(body: Body): Target {
    const name = body.text('model', 1024);
    if (name === undefined) {
      // A client that names none means the only one.
      const [only] = this.#targets.values();
      if (this.pools.size === 1 && only !== undefined) return only;
      throw new GatewayError('invalid_request', 'model is needed: its name', { param: 'model' });
    }
    const target = this.#targets.get(name);
    if (target === undefined) throw modelNotFound(name);
    return target;
  }

  #context(target: Target, tenant: Tenant, requestId: string): CallContext {
    const { retries, firstByteSeconds, chunkSeconds, deadlineSeconds } = this.#limits;
    return {
      ...target,
      upstream: this.#upstream,
      tenant,
      requestId,
      retries,
      firstByteSeconds,
      chunkSeconds,
      deadlineSeconds,
      log: this.#log,
      responses: this.#responses,
      ended: (record) => {
        this.metrics.ended(record);
        this.#log.debug({ requestId, ...record }, 'call');
      },
    };
  }

  /** The one with the fewest calls: what is passed through is not scheduled. */
  #readyWorker(pool: ModelPool): VllmWorker {
    let best: VllmWorker | undefined;
    let fewest = Infinity;
    for (const worker of pool.workers.workers) {
      if (worker.condition !== 'ready') continue;
      const { openCalls } = worker.worker.state();
      if (openCalls < fewest) [best, fewest] = [worker, openCalls];
    }
    if (best === undefined)
      throw new GatewayError('no_worker', `no worker of model ${pool.name} is ready`, { retryAfter: 5 });
    return best;
  }

  /** A request that is not scheduled, to a worker and back. */
  async #forward(
    request: IncomingMessage,
    response: ServerResponse,
    worker: VllmWorker,
    requestId: string,
    body: Buffer | null,
    endpoint: 'chat' | 'completions' | 'responses' | 'messages' | undefined,
  ): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const call = this.#upstream.send(
        {
          origin: worker.origin,
          path: worker.path + (request.url ?? '/'),
          method: request.method ?? 'GET',
          headers: upstreamHeaders({ requestId }, request, worker, body?.length),
          body,
        },
        {
          head: (status, headers) => {
            headers['x-request-id'] = requestId;
            response.writeHead(status, headers);
          },
          data: (chunk) => response.write(chunk),
          end: () => {
            response.end();
            resolve();
          },
          failed: (error) => {
            worker.unreachable(error);
            reject(new GatewayError('worker_lost', 'the worker could not be reached or broke off', { cause: error }));
          },
        },
      );
      response.on('drain', () => {
        call.resume();
      });
      response.once('close', () => {
        if (response.writableFinished) return;
        call.abort(new Error('the client has gone'));
        resolve();
      });
      if (endpoint !== undefined) this.metrics.passed(endpoint);
    });
  }
}

const badRequest = new GatewayError('invalid_request', 'the request is no HTTP, or its headers are too large').toJson(
  'openai',
);

/** Settings that were given. */
function definedOf(config: GatewayConfig): Partial<Required<Pick<GatewayConfig, keyof typeof defaults>>> {
  return Object.fromEntries(Object.entries(config).filter(([name, value]) => name in defaults && value !== undefined));
}

function renamed({ name, upstreamName }: ModelConfig): string | undefined {
  return upstreamName === undefined || upstreamName === name ? undefined : upstreamName;
}

/** Without the query. */
function pathOf(request: IncomingMessage): string {
  const url = request.url ?? '/';
  const query = url.indexOf('?');
  const path = query < 0 ? url : url.slice(0, query);
  return path.length > mostPathBytes ? '/' : path;
}

/** The client's, if it is one that can be logged and sent on. */
function requestIdOf(request: IncomingMessage): string {
  const given = request.headers['x-request-id'];
  return typeof given === 'string' && /^[\w.:/+=@-]{1,128}$/.test(given) ? given : randomUUID();
}

function allow(request: IncomingMessage, method: string): void {
  if (request.method === method || (method === 'GET' && request.method === 'HEAD')) return;
  throw new GatewayError('method_not_allowed', `the method must be ${method}, got ${request.method ?? 'none'}`, {
    closes: true,
  });
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function modelNotFound(name: string): GatewayError {
  return new GatewayError('model_not_found', `there is no model ${JSON.stringify(name.slice(0, 100))}`, {
    param: 'model',
  });
}

function modelCard(name: string): object {
  return { id: name, object: 'model', created: 0, owned_by: 'saga' };
}

function sendJson(response: ServerResponse, status: number, value: unknown): void {
  const body = JSON.stringify(value);
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) });
  response.end(body);
}

function sendText(response: ServerResponse, text: string, type: string): void {
  response.writeHead(200, { 'content-type': type, 'content-length': Buffer.byteLength(text) });
  response.end(text);
}
