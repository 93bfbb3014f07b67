/**
 * The gateway: an HTTP server (or a handler within one) in front of the workers of one or several models.
 *
 * A request is authenticated by its headers, then read within bounds, then served: calls to models by `call.ts`, `/saga/...` by
 * `select.ts` and `observe/`, other `/v1` routes by whichever worker of the model fits. Errors are told in the shape that clients of the path know.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { SagaArgumentError } from '../errors.js';
import { JsonOutline } from '../json-outline.js';
import type { Logger } from '../vllm/index.js';
import { Body, HeldBytes, checkJson, readBody, type BodyLimits } from './body.js';
import { ResponseWorkers, endpointPaths, serveCall, type CallContext } from './call.js';
import type { GatewayConfig, ModelConfig } from './config.js';
import { Deadlines } from './deadlines.js';
import { GatewayError, asGatewayError, sendError } from './errors.js';
import { forward, forwardBody, readyWorkers, type ForwardContext } from './forward.js';
import { Tenants, type Tenant } from './identity.js';
import { ModelPool } from './model-pool.js';
import { GatewayMetrics } from './observe/metrics.js';
import { explanation, readiness, workerList, workflowList } from './observe/state.js';
import { startSpan, type RequestSpan } from './observe/trace.js';
import { Selections } from './select.js';
import { createPromptSource } from './tokens/index.js';
import type { PromptSource } from './tokens/types.js';
import { Upstream } from './upstream.js';

/** Without an answer from anybody: the log goes nowhere. */
const noLog: Logger = { debug() {}, info() {}, warn() {}, error() {} };

const loopback = /^(?:localhost|127(?:\.\d{1,3}){3}|::1|\[::1\])$/;
const mostPathBytes = 2048;
const mostHeaderBytes = 16_384;
const defaults = {
  host: '127.0.0.1',
  port: 8080,
  maxBodyBytes: 32 * 2 ** 20,
  maxHeldBytes: 2 ** 30,
  maxConnections: 16_384,
  headerSeconds: 20,
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
  readonly #bodyLimits: BodyLimits;
  readonly #responses = new ResponseWorkers();
  readonly #selections: Selections;
  readonly #log: Logger;
  readonly #deadlines: Deadlines;
  readonly #limits: Required<Pick<GatewayConfig, keyof typeof defaults>>;
  readonly #trustParameters: boolean;
  readonly #open = new Set<ServerResponse>();
  #server: Server | undefined;
  #closing: Promise<void> | undefined;

  private constructor(config: GatewayConfig) {
    this.config = config;
    this.#log = config.log ?? noLog;
    this.#limits = { ...defaults, ...definedOf(config) };
    const { bodySeconds, firstByteSeconds, chunkSeconds, deadlineSeconds } = this.#limits;
    this.#deadlines = new Deadlines(Math.min(bodySeconds, firstByteSeconds, chunkSeconds, deadlineSeconds));
    this.#held = new HeldBytes(this.#limits.maxHeldBytes);
    this.#bodyLimits = {
      maxBodyBytes: this.#limits.maxBodyBytes,
      bodySeconds,
      held: this.#held,
      deadlines: this.#deadlines,
    };
    this.#trustParameters = config.trustClientParameters ?? false;
    this.#tenants = new Tenants(config);
    if (!loopback.test(this.#limits.host) && !this.#tenants.closed && config.insecure !== true)
      throw new SagaArgumentError(
        `host ${this.#limits.host} can be reached from outside: set apiKeys, or insecure to serve whoever comes`,
      );
    this.#upstream = new Upstream();
    const pools = new Map<string, ModelPool>();
    for (const model of config.models) {
      if (this.#targets.has(model.name)) throw new SagaArgumentError(`model ${model.name} is there twice`);
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

  /**
   * Checks all of a configuration that can be checked without connecting to anything.
   *
   * @throws SagaArgumentError
   */
  static async check(config: GatewayConfig): Promise<void> {
    await new Gateway(config).close({ graceSeconds: 0 });
  }

  /** Listens at `host` and `port`. */
  async listen(): Promise<AddressInfo> {
    const { host, port, maxConnections, headerSeconds } = this.#limits;
    const headersTimeout = Math.ceil(headerSeconds * 1000);
    const server = createServer(
      {
        keepAliveTimeout: 75_000,
        // A body has its own time, see readBody. Without one for requests node has none for headers either, unless it is told.
        requestTimeout: 0,
        headersTimeout,
        connectionsCheckingInterval: Math.min(5000, headersTimeout),
        maxHeaderSize: mostHeaderBytes,
      },
      this.handler,
    );
    server.maxConnections = maxConnections;
    server.on('clientError', refuseConnection);
    // A client that asks first is told to send its body when its key was looked at.
    server.on('checkContinue', (request: IncomingMessage, response: ServerResponse) => {
      asking.set(request, response);
      this.handler(request, response);
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

  /** Bytes of requests that are held now. */
  get heldBytes(): number {
    return this.#held.now;
  }

  /**
   * Takes no new requests, lets those that run end, and breaks off what is left after `graceSeconds` (default 30).
   */
  close(options: { graceSeconds?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(options.graceSeconds ?? 30);
    return this.#closing;
  }

  async #close(graceSeconds: number): Promise<void> {
    const server = this.#server;
    const closed = server === undefined ? undefined : new Promise((resolve) => server.close(resolve));
    server?.closeIdleConnections();
    const until = performance.now() + 1000 * graceSeconds;
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
    const shape = path === '/v1/messages' || path.startsWith('/v1/messages/') ? 'anthropic' : 'openai';
    this.#open.add(response);
    response.once('close', () => this.#open.delete(response));
    const span = startSpan(request, path);
    const names = namesOf(request, span);
    const { requestId } = names;
    try {
      if (this.#closing !== undefined)
        throw new GatewayError('shutting_down', 'the gateway is shutting down', { closes: true, retryAfter: 1 });
      await this.#route(request, response, path, names);
    } catch (thrown) {
      const error = asGatewayError(thrown);
      span.failed(error);
      this.metrics.failed(error.code);
      const fields = { requestId, path, code: error.code, err: error.cause };
      if (error.code === 'internal_error') this.#log.error(fields, 'a request failed within the gateway');
      else this.#log.info(fields, error.message);
      sendError(response, error, shape);
    } finally {
      span.end(response.statusCode);
    }
  }

  async #route(request: IncomingMessage, response: ServerResponse, path: string, names: RequestNames): Promise<void> {
    if (path === '/healthz') {
      allow(request, 'GET');
      sendJson(response, 200, { status: 'ok' });
      return;
    }
    const endpoint = Object.hasOwn(endpointPaths, path) ? endpointPaths[path] : undefined;
    if (endpoint === undefined) checkPath(request, path);
    if (path === '/readyz') {
      allow(request, 'GET');
      const state = readiness([...this.pools.values()]);
      // A probe has no key: it is told whether, and not what.
      sendJson(response, state.ready ? 200 : 503, this.#isKnown(request) ? state : { ready: state.ready });
      return;
    }
    const { tenant, operator } = this.#tenants.identify(request.headers);
    const checkOperator = (): void => {
      if (!operator)
        throw new GatewayError('forbidden', `${path} needs a key of admin_keys, or without those one of api_keys`);
    };
    if (endpoint !== undefined) {
      allow(request, 'POST');
      await this.#withBody(request, async (body) => {
        const context = this.#context(this.#targetOf(body), tenant, names);
        const previous = endpoint === 'responses' ? body.text('previous_response_id') : undefined;
        if (previous !== undefined) {
          // Its prompt is what that worker remembers: nobody else has it.
          const worker = this.#responses.of(previous, tenant);
          this.metrics.passed(path);
          await forward(context, request, response, [worker], forwardBody(context, body, true));
          return;
        }
        await serveCall(context, endpoint, request, response, body);
      });
      return;
    }
    switch (path) {
      case '/metrics':
        allow(request, 'GET');
        checkOperator();
        sendText(response, await this.metrics.text(), this.metrics.contentType);
        return;
      case '/v1/models':
        allow(request, 'GET');
        sendJson(response, 200, { object: 'list', data: [...this.#targets.keys()].map(modelCard) });
        return;
      case '/saga/workers':
        allow(request, 'GET');
        checkOperator();
        sendJson(response, 200, { workers: workerList([...this.pools.values()]) });
        return;
      case '/saga/workflows': {
        allow(request, 'GET');
        const all = /[?&]all=true(?:&|$)/.test(request.url ?? '');
        if (all) checkOperator();
        sendJson(response, 200, { workflows: workflowList([...this.pools.values()], all ? undefined : tenant) });
        return;
      }
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
    if (path.startsWith('/v1/responses/') && isPlain(path)) {
      const worker = this.#responses.of(decoded(path.split('/')[3] ?? ''), tenant);
      const context = this.#passing(tenant, names);
      this.metrics.passed('/v1/responses/{id}');
      await this.#withPlainBody(request, async (body) => {
        const sent = body === undefined ? { bytes: null, response: false } : forwardBody(context, body, false);
        await forward(context, request, response, [worker], sent);
      });
      return;
    }
    if (path.startsWith('/v1/') && request.method === 'POST' && isPlain(path) && !ofOneWorker.test(path)) {
      await this.#withBody(request, async (body) => {
        const context = this.#context(this.#targetOf(body), tenant, names);
        const workers = readyWorkers(context.pool, 1 + context.retries);
        this.metrics.passed('/v1/*');
        await forward(context, request, response, workers, forwardBody(context, body, false));
      });
      return;
    }
    throw unknownRoute(request, path);
  }

  #isKnown(request: IncomingMessage): boolean {
    try {
      this.#tenants.identify(request.headers);
      return true;
    } catch {
      return false;
    }
  }

  /** Reads and scans the body, and holds its bytes until `use` has ended. */
  async #withBody(request: IncomingMessage, use: (body: Body) => Promise<void>): Promise<void> {
    checkJson(request);
    if (request.headers.expect !== undefined) asking.get(request)?.writeContinue();
    const bytes = await readBody(request, this.#bodyLimits);
    try {
      await use(Body.of(bytes, this.#scanner));
    } finally {
      this.#held.give(bytes.length);
    }
  }

  /** The same for routes whose requests have a body or none. */
  async #withPlainBody(request: IncomingMessage, use: (body: Body | undefined) => Promise<void>): Promise<void> {
    const { 'content-length': length, 'transfer-encoding': encoding } = request.headers;
    const bare = request.method === 'GET' || request.method === 'HEAD' || request.method === 'DELETE';
    if (bare || (encoding === undefined && (length === undefined || length === '0'))) await use(undefined);
    else await this.#withBody(request, use);
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

  #passing(tenant: Tenant, { requestId, upstreamId, trace }: RequestNames): ForwardContext {
    const { firstByteSeconds, chunkSeconds, deadlineSeconds } = this.#limits;
    return {
      upstream: this.#upstream,
      tenant,
      requestId,
      upstreamId,
      trace,
      trustParameters: this.#trustParameters,
      deadlines: this.#deadlines,
      firstByteSeconds,
      chunkSeconds,
      deadlineSeconds,
      log: this.#log,
      responses: this.#responses,
    };
  }

  #context(target: Target, tenant: Tenant, { requestId, upstreamId, trace, span }: RequestNames): CallContext {
    const { firstByteSeconds, chunkSeconds, deadlineSeconds, retries } = this.#limits;
    // Spelled out: it is made for every call.
    return {
      pool: target.pool,
      prompts: target.prompts,
      loraName: target.loraName,
      modelName: target.modelName,
      upstream: this.#upstream,
      tenant,
      requestId,
      upstreamId,
      trace,
      trustParameters: this.#trustParameters,
      deadlines: this.#deadlines,
      firstByteSeconds,
      chunkSeconds,
      deadlineSeconds,
      log: this.#log,
      responses: this.#responses,
      retries,
      ended: (record) => {
        this.metrics.ended(record);
        this.#log.info(record, 'call');
        span.set?.({
          'gen_ai.request.model': record.model,
          'gen_ai.usage.input_tokens': record.promptTokens,
          'gen_ai.usage.output_tokens': record.outputTokens,
          'saga.tenant': record.tenant,
          'saga.worker': record.worker,
          'saga.call': record.callId,
          'saga.cached_tokens': record.cachedTokens,
        });
      },
    };
  }
}

/** Requests that want to be told to send their bodies. */
const asking = new WeakMap<IncomingMessage, ServerResponse>();

/** Answers what is no HTTP, unless an answer is on its way there. */
function refuseConnection(
  error: Error & { code?: string },
  socket: Duplex & { _httpMessage?: ServerResponse | null; destroySoon?: () => void },
): void {
  if (socket.writable && socket._httpMessage?.headersSent !== true) {
    const [status, message] =
      error.code === 'HPE_HEADER_OVERFLOW'
        ? ['431 Request Header Fields Too Large', 'the headers are too large']
        : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
          ? ['408 Request Timeout', 'the headers did not arrive in time']
          : ['400 Bad Request', 'the request is no HTTP'];
    const body = new GatewayError('invalid_request', message).toJson('openai');
    const head = `HTTP/1.1 ${status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${body.length}`;
    socket.write(`${head}\r\n\r\n${body}`);
  }
  socket.destroySoon?.();
}

/** Routes that would change one worker and not the others. */
const ofOneWorker = /^\/v1\/(?:un)?load_lora_adapter$/;

/** What stands behind these is a name of its own, which can be written with escapes. */
const named = /^\/(?:v1\/models|v1\/responses|saga\/explain)\//;

/**
 * A path that somebody could read otherwise is nobody's: what is scheduled is told by the path, and a worker that decodes more than the
 * gateway must not get there by another way.
 *
 * @throws GatewayError `unknown_route`
 */
function checkPath(request: IncomingMessage, path: string): void {
  const segments = path.split('/');
  const name = named.test(path) ? segments.splice(3, 1) : [];
  // eslint-disable-next-line no-control-regex
  const odd = /[%\\\u0000-\u0020\u007f-\uffff]/;
  const plain = segments.every(
    (segment, i) => !odd.test(segment) && !/^\.\.?$/.test(segment) && (i === 0 || segment !== ''),
  );
  if (plain && path.startsWith('/') && name.every((each) => !/^\.{0,2}$/.test(each))) return;
  throw unknownRoute(request, path);
}

function unknownRoute(request: IncomingMessage, path: string): GatewayError {
  return new GatewayError('unknown_route', `there is no ${request.method ?? ''} ${path.slice(0, 200)}`, {
    closes: true,
  });
}

/** Whether a path means the same to whoever reads it: no segment leads elsewhere. */
function isPlain(path: string): boolean {
  return path.split('/').every((segment, i) => i === 0 || !/^$|^\.\.?$|[/\\]/.test(decoded(segment)));
}

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

/** By what a request is known. */
interface RequestNames extends Pick<CallContext, 'requestId' | 'upstreamId' | 'trace'> {
  readonly span: RequestSpan;
}

/** The client's request id, if it is one that can be logged and sent on; workers get it with something behind it that no client knows. */
function namesOf(request: IncomingMessage, span: RequestSpan): RequestNames {
  const given = request.headers['x-request-id'];
  const trace = span.headers();
  if (typeof given === 'string' && /^[\w.:/+=@-]{1,128}$/.test(given))
    return { requestId: given, upstreamId: `${given}-${randomBytes(6).toString('hex')}`, trace, span };
  const requestId = randomUUID();
  return { requestId, upstreamId: requestId, trace, span };
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
