/** What the tests of the gateway share. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { connect, type AddressInfo, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach } from 'vitest';
import { EmulatedWorker, type EmulatedWorkerOptions } from '../../src/emulated-worker/index.js';
import type { GatewayConfig, ModelConfig } from '../../src/gateway/config.js';
import { Gateway } from '../../src/gateway/gateway.js';
import type { ModelPool } from '../../src/gateway/model-pool.js';
import type { Logger, ServerOptions } from '../../src/vllm/index.js';
import { serverOf } from '../vllm/helpers.js';

export { randomOf, until } from '../vllm/helpers.js';

const open: { close(): unknown }[] = [];
afterEach(async () => {
  // The gateway before its workers.
  for (const one of open.splice(0).reverse()) await one.close();
});

/** Closed after the test. */
export function opened<T extends { close(): unknown }>(one: T): T {
  open.push(one);
  return one;
}

export async function emulated(options: EmulatedWorkerOptions = {}): Promise<EmulatedWorker> {
  return opened(await EmulatedWorker.start({ model: 'm', blocks: 4000, timeScale: Infinity, ...options }));
}

export type Script = (request: IncomingMessage, response: ServerResponse, body: string) => void | Promise<void>;

/** A server that is a vLLM worker as far as a worker set looks, and answers calls as a test wants. */
export class FakeWorker {
  readonly server: Server;
  readonly sockets = new Set<Socket>();
  /** Requests to other paths than those of the worker set. */
  readonly requests: { method: string; path: string; headers: IncomingMessage['headers']; body: string }[] = [];
  /** Calls whose connection closed before their answer was complete. */
  aborted = 0;
  script: Script;
  healthy = true;

  private constructor(script: Script) {
    this.script = script;
    this.server = createServer((request, response) => {
      this.#serve(request, response);
    });
    this.server.on('connection', (socket: Socket) => {
      this.sockets.add(socket);
      socket.on('close', () => this.sockets.delete(socket)).on('error', () => undefined);
    });
  }

  static async start(script: Script, port = 0): Promise<FakeWorker> {
    const worker = new FakeWorker(script);
    await new Promise<void>((resolve) => worker.server.listen(port, '127.0.0.1', resolve));
    return opened(worker);
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  #serve(request: IncomingMessage, response: ServerResponse): void {
    const path = request.url ?? '';
    if (path === '/health') response.writeHead(this.healthy ? 200 : 500).end();
    else if (path === '/version') response.end('{"version":"0.33.0"}');
    else if (path === '/v1/models') response.end('{"object":"list","data":[{"id":"m"},{"id":"inner"}]}');
    else if (path === '/metrics')
      response.end('vllm:cache_config_info{block_size="16",enable_prefix_caching="True",num_gpu_blocks="1000"} 1\n');
    else if (path === '/tokenize' || path.endsWith('/render') || path.startsWith('/server_info'))
      response.writeHead(404).end();
    else if (request.method === 'GET' && /^\/v1\/(chat\/completions|completions|responses|messages)$/.test(path))
      response.writeHead(405).end();
    else {
      const chunks: Buffer[] = [];
      response.on('close', () => {
        if (!response.writableFinished) this.aborted += 1;
      });
      request
        .on('data', (chunk: Buffer) => chunks.push(chunk))
        .on('error', () => undefined)
        .on('end', () => {
          const body = Buffer.concat(chunks).toString();
          this.requests.push({ method: request.method ?? '', path, headers: request.headers, body });
          void this.script(request, response, body);
        });
    }
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.server.close(resolve));
    for (const socket of this.sockets) socket.destroy();
    await closed;
  }
}

/** A stream of events, each written by itself. */
export const events =
  (...texts: string[]): Script =>
  (_request, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8' });
    for (const text of texts) response.write(text);
    response.end();
  };

export const json =
  (value: unknown, status = 200): Script =>
  (_request, response) => {
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value));
  };

/** A logger that keeps its lines as they would be printed. */
export function keptLog(): Logger & { lines: string[] } {
  const lines: string[] = [];
  const keep = (fields: object, message: string): void => {
    lines.push(
      `${message} ${JSON.stringify(fields, (_, value: unknown) =>
        value instanceof Error ? { ...value, message: value.message, stack: value.stack, cause: value.cause } : value,
      )}`,
    );
  };
  return { lines, debug: keep, info: keep, warn: keep, error: keep };
}

export interface Serving {
  gateway: Gateway;
  url: string;
  port: number;
  pool: ModelPool;
  log: Logger & { lines: string[] };
}

/** A gateway that listens, with one model `m` at these workers. */
export async function serve(
  workers: readonly (EmulatedWorker | FakeWorker | ServerOptions)[],
  config: Partial<GatewayConfig> = {},
  model: Partial<ModelConfig> = {},
): Promise<Serving> {
  const log = keptLog();
  const servers = workers.map((worker) =>
    worker instanceof EmulatedWorker ? serverOf(worker) : worker instanceof FakeWorker ? { url: worker.url } : worker,
  );
  const gateway = await Gateway.start({
    models: [{ name: 'm', servers, ...model }],
    port: 0,
    probe: false,
    log,
    ...config,
  });
  opened({ close: () => gateway.close({ graceSeconds: 0 }) });
  const { port } = await gateway.listen();
  const [pool] = gateway.pools.values();
  return { gateway, url: `http://127.0.0.1:${port}`, port, pool: pool as ModelPool, log };
}

export interface Answer {
  status: number;
  text: string;
  headers: Headers;
  json: () => Json;
}

/** Members of answers that the tests look at, of all routes. */
export interface Json {
  error: { code: string; message: string; type: string; param: string | null };
  usage: { completion_tokens: number };
  choices: { finish_reason: string }[];
  fine: boolean;
  from: string;
  id: string;
  ready: boolean;
  degraded: string[];
  explanation: string;
  reservation: string;
  workers: { features: { connector: string } }[];
  workflows: object[];
  model: string;
  priority: number;
  session_id: string;
  kv_transfer_params: { own: unknown; saga: { actions: { action_type: string }[] } };
  other: unknown;
  kv_hints: unknown;
  vllm_xargs: unknown;
}

export async function post(
  url: string,
  path: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const response = await fetch(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' || body instanceof Uint8Array ? (body as string) : JSON.stringify(body),
  });
  return await answerOf(response);
}

export async function get(url: string, path: string, headers: Record<string, string> = {}): Promise<Answer> {
  return await answerOf(await fetch(url + path, { headers }));
}

async function answerOf(response: Response): Promise<Answer> {
  const text = await response.text();
  return {
    status: response.status,
    text,
    headers: response.headers,
    json: () => JSON.parse(text) as Json,
  };
}

/** Bytes as they are to a port, and all that comes back until the connection closes or is silent. */
export async function raw(port: number, bytes: string | Buffer, silentMs = 400): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => undefined);
  let text = '';
  let last = performance.now();
  let closed = false;
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
    last = performance.now();
  });
  socket.on('close', () => (closed = true));
  socket.write(bytes);
  while (!closed && performance.now() - last < silentMs) await delay(5);
  socket.destroy();
  return text;
}

/** Nothing is left of any call. */
export function leftovers({ gateway, pool }: Serving): Record<string, number> {
  return {
    openCalls: pool.scheduler.stats().openCalls,
    waiting: pool.waitingCalls,
    sessionCalls: [...pool.sessions.values()].reduce((sum, { openCalls }) => sum + openCalls, 0),
    heldBytes: gateway.heldBytes,
  };
}

export const nothingLeft = { openCalls: 0, waiting: 0, sessionCalls: 0, heldBytes: 0 };

export const range = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i);
