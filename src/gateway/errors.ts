/**
 * What a client is told when its request cannot be answered: a status, a stable `code`, and a sentence that says what was expected.
 *
 * The body has OpenAI's shape, `{ "error": { message, type, param, code } }`, or Anthropic's for `/v1/messages`. Errors of workers
 * pass through as they are; these are the gateway's own. A message never holds keys, and of what the client sent at most a
 * few characters.
 */
import type { ServerResponse } from 'node:http';

/** Codes of the gateway's own errors, with the status that goes with each. They never change. */
export const gatewayErrors = {
  /** The body is not JSON, or no JSON object. */
  malformed_json: 400,
  /** A member of the body has the wrong type or a value out of range. */
  invalid_request: 400,
  /** The prompt is longer than `max_prompt_tokens`. */
  prompt_too_long: 400,
  /** No key, or a wrong one. */
  invalid_api_key: 401,
  /** The key is right, but not for this. */
  forbidden: 403,
  /** No such path. */
  unknown_route: 404,
  /** No worker serves a model of this name. */
  model_not_found: 404,
  /** A call, workflow or reservation that is not known (any more). */
  not_found: 404,
  /** The path is known, the method is not. */
  method_not_allowed: 405,
  /** The body did not arrive in time. */
  request_timeout: 408,
  /** The body is larger than `max_body_bytes`. */
  body_too_large: 413,
  /** Neither `application/json` nor without encoding. */
  unsupported_media_type: 415,
  /** As many calls wait as can. */
  queue_full: 429,
  /** More tenants than can be told apart. */
  too_many_tenants: 429,
  /** The gateway failed; the log says how. */
  internal_error: 500,
  /** No worker of the model has this route. */
  unsupported_route: 501,
  /** The worker broke off or could not be reached, and so did those tried after it. */
  worker_lost: 502,
  /** No worker of the model is ready. */
  no_worker: 503,
  /** The call waited longer than `queue_seconds`. */
  queue_timeout: 503,
  /** The gateway is shutting down. */
  shutting_down: 503,
  /** The answer was not complete, or not begun, in time. */
  deadline_exceeded: 504,
} as const;

export type GatewayErrorCode = keyof typeof gatewayErrors;

const typesByStatus: Readonly<Record<number, readonly [openai: string, anthropic: string]>> = {
  400: ['invalid_request_error', 'invalid_request_error'],
  401: ['authentication_error', 'authentication_error'],
  403: ['permission_error', 'permission_error'],
  404: ['invalid_request_error', 'not_found_error'],
  405: ['invalid_request_error', 'invalid_request_error'],
  408: ['timeout_error', 'timeout_error'],
  413: ['invalid_request_error', 'request_too_large'],
  415: ['invalid_request_error', 'invalid_request_error'],
  429: ['rate_limit_error', 'rate_limit_error'],
  503: ['overloaded_error', 'overloaded_error'],
  504: ['timeout_error', 'timeout_error'],
};

/** A request that ends without a worker's answer. */
export class GatewayError extends Error {
  readonly code: GatewayErrorCode;
  readonly status: number;
  /** The member of the body that is wrong. */
  readonly param: string | undefined;
  /** Seconds after which to try again. */
  readonly retryAfter: number | undefined;
  /** The connection cannot be used further: the rest of the body is not read. */
  readonly closes: boolean;

  constructor(
    code: GatewayErrorCode,
    message: string,
    options: { param?: string; retryAfter?: number; closes?: boolean; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'GatewayError';
    this.code = code;
    this.status = gatewayErrors[code];
    this.param = options.param;
    this.retryAfter = options.retryAfter;
    this.closes = options.closes ?? false;
  }

  /** The body of the answer. */
  toJson(shape: 'openai' | 'anthropic'): string {
    const [openai, anthropic] = typesByStatus[this.status] ?? ['api_error', 'api_error'];
    if (shape === 'anthropic')
      return JSON.stringify({ type: 'error', error: { type: anthropic, message: this.message, code: this.code } });
    return JSON.stringify({
      error: { message: this.message, type: openai, param: this.param ?? null, code: this.code },
    });
  }
}

/** Anything thrown, as an error for the client: what is not a {@link GatewayError} is the gateway's fault, and its message stays here. */
export function asGatewayError(thrown: unknown): GatewayError {
  if (thrown instanceof GatewayError) return thrown;
  return new GatewayError('internal_error', 'the gateway failed; its log says more', { cause: thrown });
}

/**
 * Answers with an error. After the first byte of an answer nothing can be told but by breaking off, which tells the client that the
 * answer is not complete.
 */
export function sendError(response: ServerResponse, error: GatewayError, shape: 'openai' | 'anthropic'): void {
  if (response.destroyed || response.writableEnded) return;
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const body = error.toJson(shape);
  const headers: Record<string, string | number> = {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
  };
  if (error.retryAfter !== undefined) headers['retry-after'] = Math.max(1, Math.ceil(error.retryAfter));
  if (error.closes) headers['connection'] = 'close';
  response.writeHead(error.status, headers);
  if (error.closes) endWhenRead(response, body);
  else response.end(body);
}

const lingerSeconds = 2;
const mostLingerBytes = 64 * 2 ** 20;

/**
 * Ends an answer to a request whose body is still on its way. A connection that is closed while its client sends is reset, and the answer
 * lost: so what comes is thrown away for a moment. The answer is complete by its length meanwhile.
 */
function endWhenRead(response: ServerResponse, body: string): void {
  const request = response.req;
  if (request.complete || request.destroyed || request.headers.expect !== undefined) {
    response.end(body);
    return;
  }
  response.write(body);
  let bytes = 0;
  const onData = (chunk: Buffer): void => {
    bytes += chunk.length;
    if (bytes > mostLingerBytes) end();
  };
  const end = (): void => {
    clearTimeout(timer);
    request.off('data', onData).off('end', end);
    response.off('close', end);
    response.end();
  };
  const timer = setTimeout(end, lingerSeconds * 1000);
  response.once('close', end);
  request.on('data', onData).once('end', end).resume();
}
