/**
 * One request to a worker, passed through chunk by chunk.
 *
 * undici's dispatch, with pauses while the client does not read and an abort when it has gone; nothing is buffered but what the two
 * sockets hold. A connection belongs to one request at a time and is kept open for the next.
 */
import { Agent, type Dispatcher } from 'undici';

/** Headers that are about one connection, not about the request (RFC 9110, 7.6.1). Those that `Connection` names are dropped too. */
const hopByHop = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]);

export interface UpstreamOptions {
  /** Seconds until a connection stands. Default 5. */
  connectSeconds?: number;
}

export interface UpstreamRequest {
  origin: string;
  path: string;
  method: string;
  /** Names in lower case. */
  headers: Record<string, string>;
  body: Uint8Array | null;
}

/** Who gets the answer. Each method is called in this order; after `failed` or `end` nothing comes. */
export interface UpstreamSink {
  /** `headers` without those of the connection. */
  head(status: number, headers: Record<string, string | string[]>): void;
  /** `false`: no more until {@link UpstreamCall.resume}. */
  data(chunk: Buffer): boolean;
  end(): void;
  failed(error: Error): void;
}

/** A request under way. */
export class UpstreamCall implements Dispatcher.DispatchHandler {
  readonly #sink: UpstreamSink;
  #controller: Dispatcher.DispatchController | undefined;
  #aborted: Error | undefined;
  #done = false;

  constructor(sink: UpstreamSink) {
    this.#sink = sink;
  }

  resume(): void {
    this.#controller?.resume();
  }

  /** Ends the request: the worker sees the connection close. The sink hears nothing more. */
  abort(reason: Error): void {
    if (this.#done) return;
    this.#done = true;
    this.#aborted = reason;
    this.#controller?.abort(reason);
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#aborted !== undefined) controller.abort(this.#aborted);
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: Record<string, string | string[] | undefined>,
  ): void {
    if (this.#done || status < 200) return;
    this.#sink.head(status, endToEnd(headers));
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (!this.#done && !this.#sink.data(chunk)) controller.pause();
  }

  onResponseEnd(): void {
    if (this.#done) return;
    this.#done = true;
    this.#sink.end();
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    if (this.#done) return;
    this.#done = true;
    this.#sink.failed(error);
  }
}

/** Connections to all workers. */
export class Upstream {
  readonly #agent: Agent;

  constructor(options: UpstreamOptions = {}) {
    this.#agent = new Agent({
      connect: { timeout: 1000 * (options.connectSeconds ?? 5) },
      // Whoever sends a request gives it up by himself.
      headersTimeout: 0,
      bodyTimeout: 0,
      pipelining: 1,
      // A worker has as many connections as it has calls: the scheduler bounds them, not the client.
      connections: null,
    });
  }

  send(request: UpstreamRequest, sink: UpstreamSink): UpstreamCall {
    const call = new UpstreamCall(sink);
    this.#agent.dispatch(
      {
        origin: request.origin,
        path: request.path,
        method: request.method,
        headers: request.headers,
        body: request.body,
      },
      call,
    );
    return call;
  }

  async close(): Promise<void> {
    await this.#agent.destroy();
  }
}

const noNames: readonly string[] = [];

/** The headers of a message that are not about its connection. */
export function endToEnd(
  headers: Readonly<Record<string, string | string[] | undefined>>,
): Record<string, string | string[]> {
  const named = headers['connection'];
  const dropped =
    named === undefined || named === 'keep-alive' || named === 'close'
      ? noNames
      : String(named)
          .toLowerCase()
          .split(',')
          .map((name) => name.trim());
  const kept: Record<string, string | string[]> = {};
  for (const name in headers) {
    const value = headers[name];
    if (value !== undefined && !hopByHop.has(name) && !dropped.includes(name)) kept[name] = value;
  }
  return kept;
}
