/**
 * The HTTP side of one vLLM server: whether it is healthy, what it is, its load, and single requests of our own to it. Bodies are
 * read up to a bound, every request has a time limit, redirects are not followed, and errors never repeat a key.
 */
import { request, type Dispatcher } from 'undici';
import { readMetrics, type RankMetrics } from './metrics-text.js';
import type { ServerOptions } from './options.js';
import { workerRoutes, type WorkerFeatures, type WorkerRoute } from './vllm-worker.js';

const mostBodyBytes = 2 ** 24;
const mostErrorText = 200;

/** Not usable as it is configured: trying again does not help until something is changed. */
export class UnusableServer extends Error {}

export interface HttpAnswer {
  status: number;
  body: string;
}

/** What a server is. */
export interface ServerFacts {
  features: WorkerFeatures;
  /** By rank. */
  blocks: number[];
  blockTokens: number | undefined;
}

export class Server {
  readonly options: ServerOptions;
  readonly #dispatcher: Dispatcher;
  readonly #headers: Readonly<Record<string, string>>;

  constructor(options: ServerOptions, dispatcher: Dispatcher) {
    this.options = options;
    this.#dispatcher = dispatcher;
    this.#headers = options.apiKey === undefined ? {} : { authorization: `Bearer ${options.apiKey}` };
  }

  /** @throws Error unless it is healthy */
  async health(ms: number, signal?: AbortSignal): Promise<void> {
    const { status } = await this.send('GET', '/health', { ms, signal });
    if (status !== 200) throw new Error(`/health answers ${status}`);
  }

  async metrics(ms: number, signal?: AbortSignal): Promise<Map<number, RankMetrics>> {
    const { status, body } = await this.send('GET', '/metrics', { ms, signal });
    if (status !== 200) throw new Error(`/metrics answers ${status}`);
    return readMetrics(body);
  }

  /**
   * Looks at a server that is healthy.
   *
   * @throws UnusableServer where it cannot serve `model` with blocks of `blockTokens`; Error where it does not answer
   */
  async inspect(model: string, blockTokens: number, ms: number, signal?: AbortSignal): Promise<ServerFacts> {
    const [version, models, metrics, info] = await Promise.all([
      this.send('GET', '/version', { ms, signal }),
      this.send('GET', '/v1/models', { ms, signal }),
      this.metrics(ms, signal),
      this.send('GET', '/server_info?config_format=json', { ms, signal }),
    ]);
    this.#checkModel(models, model);
    if (info.status === 200) checkRole(info.body);
    const count = this.options.dataParallelRanks ?? 1;
    const cache = [...metrics.values()].find((rank) => rank.cache !== undefined)?.cache;
    if (cache?.enable_prefix_caching === 'False')
      throw new UnusableServer('its prefix cache is off: start it with --enable-prefix-caching');
    const reported = Number(cache?.block_size ?? NaN);
    if (Number.isInteger(reported) && reported !== blockTokens)
      throw new UnusableServer(
        `its blocks have ${reported} tokens, the scheduler's ${blockTokens}: start it with --block-size ${blockTokens}, or set blockTokens`,
      );
    const blocks = Array.from({ length: count }, (_, rank) => {
      const told = Number((metrics.get(rank)?.cache ?? cache)?.num_gpu_blocks ?? NaN);
      const number = this.options.blocks ?? told;
      if (!Number.isInteger(number) || number < 1)
        throw new UnusableServer('its /metrics do not tell num_gpu_blocks (vllm:cache_config_info): set blocks');
      return number;
    });
    return {
      blocks,
      blockTokens: Number.isInteger(reported) ? reported : undefined,
      features: {
        version: textOf(version, 'version'),
        routes: await this.#routes(ms, signal),
        priority: undefined,
        promptTokensDetails: undefined,
        connector: undefined,
        requestDirectives: undefined,
        hashAlgorithm: cache?.prefix_caching_hash_algo,
      },
    };
  }

  /** One request; a status is no error. */
  async send(
    method: 'GET' | 'POST',
    path: string,
    options: {
      ms: number;
      signal?: AbortSignal | undefined;
      body?: object;
      headers?: Readonly<Record<string, string>>;
    },
  ): Promise<HttpAnswer> {
    const limit = AbortSignal.timeout(options.ms);
    const signal = options.signal === undefined ? limit : AbortSignal.any([options.signal, limit]);
    const { statusCode, body } = await request(this.options.url + path, {
      method,
      dispatcher: this.#dispatcher,
      signal,
      headers: {
        ...this.#headers,
        ...options.headers,
        ...(options.body === undefined ? {} : { 'content-type': 'application/json' }),
      },
      ...(options.body === undefined ? {} : { body: JSON.stringify(options.body) }),
    });
    const chunks: Buffer[] = [];
    let bytes = 0;
    for await (const chunk of body as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      if (bytes > mostBodyBytes) throw new Error(`${path} answers more than ${mostBodyBytes} bytes`);
      chunks.push(chunk);
    }
    return { status: statusCode, body: Buffer.concat(chunks).toString('utf8') };
  }

  #checkModel(answer: HttpAnswer, model: string): void {
    if (answer.status === 401 || answer.status === 403)
      throw new UnusableServer(`it refuses its apiKey (${answer.status} for /v1/models)`);
    if (answer.status !== 200) throw new Error(`/v1/models answers ${answer.status}`);
    const list = (parsed(answer.body) as { data?: unknown } | undefined)?.data;
    if (!Array.isArray(list)) throw new Error('/v1/models answers no list');
    const names = list.map((one) => (one as { id?: unknown } | null)?.id).filter((id) => typeof id === 'string');
    if (!names.includes(model))
      throw new UnusableServer(
        `it has no model ${JSON.stringify(model)}, but ${names.slice(0, 8).join(', ') || 'none'}`,
      );
  }

  /** FastAPI answers GET of a route that takes POST with 405, of none with 404. */
  async #routes(ms: number, signal: AbortSignal | undefined): Promise<Partial<Record<WorkerRoute, boolean>>> {
    const routes: Partial<Record<WorkerRoute, boolean>> = {};
    await Promise.all(
      (Object.entries(workerRoutes) as [WorkerRoute, string][]).map(async ([name, path]) => {
        const { status } = await this.send('GET', path, { ms, signal });
        if (status === 404) routes[name] = false;
        else if (status === 405 || status < 300) routes[name] = true;
      }),
    );
    return routes;
  }
}

/** A server that only prefills or only decodes. /server_info is there in development mode only. */
function checkRole(body: string): void {
  const role = /"kv_role"\s*:\s*"(\w+)"/.exec(body)?.[1];
  const connector = /"kv_connector"\s*:\s*"(\w+)"/.exec(body)?.[1] ?? '';
  // saga_vllm is a producer by name that sends nothing anywhere; so are the offloading connectors.
  const local = /^(Saga|Offloading|SimpleCPUOffload|LMCache|Multi)/.test(connector);
  if (role === 'kv_consumer' || (role === 'kv_producer' && !local)) {
    throw new UnusableServer(
      `it is one side of prefill/decode disaggregation (kv_role ${role}, ${connector || 'no connector'}), which is not supported: its blocks do not ` +
        'stay where the calls are',
    );
  }
}

function parsed(body: string): unknown {
  try {
    return JSON.parse(body) as unknown;
  } catch {
    return undefined;
  }
}

function textOf(answer: HttpAnswer, name: string): string | undefined {
  if (answer.status !== 200) return undefined;
  const value = (parsed(answer.body) as Record<string, unknown> | undefined)?.[name];
  return typeof value === 'string' ? value.slice(0, mostErrorText) : undefined;
}

/** An error in one line, for a reason or a log. */
export function errorText(error: unknown): string {
  if (!(error instanceof Error)) return 'unknown error';
  const code = (error as { code?: unknown }).code;
  if (error.name === 'TimeoutError') return 'no answer in time';
  const text = error.message || (error instanceof AggregateError ? errorText(error.errors[0]) : error.name);
  return (typeof code === 'string' && !text.includes(code) ? `${text} (${code})` : text).slice(0, mostErrorText);
}

export { parsed as parsedJson };
