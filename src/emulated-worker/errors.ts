/** Refusals in the shapes that vLLM answers with. */

/** Ends the handling of a request with an error body. */
export class HttpRefusal extends Error {
  readonly status: number;
  readonly type: string;
  readonly param: string | null;

  constructor(status: number, message: string, type: string, param: string | null = null) {
    super(message);
    this.status = status;
    this.type = type;
    this.param = param;
  }

  /** `{"error": {...}}` as vLLM's OpenAI routes have it. */
  body(): string {
    return JSON.stringify({
      error: { message: this.message, type: this.type, param: this.param, code: this.status },
    });
  }

  /** As vLLM's Anthropic routes have it; a body that does not fit the schema is refused in OpenAI's shape there, too. */
  anthropicBody(): string {
    if (this.type === 'Bad Request') return this.body();
    const type = { 400: 'invalid_request_error', 404: 'not_found_error', 413: 'request_too_large' }[this.status];
    return JSON.stringify({ type: 'error', error: { type: type ?? 'api_error', message: this.message } });
  }
}

/** The body does not fit the route's schema. */
export function malformed(message: string, param: string | null = null): HttpRefusal {
  return new HttpRefusal(400, message, 'Bad Request', param);
}

/** The body fits the schema but cannot be carried out. */
export function badRequest(message: string, param: string | null = null): HttpRefusal {
  return new HttpRefusal(400, message, 'BadRequestError', param);
}

export function unknownModel(model: string, known: readonly string[]): HttpRefusal {
  const message = `The model \`${model}\` does not exist. Valid aliases: ${known.join(', ')}.`;
  return new HttpRefusal(404, message, 'NotFoundError', 'model');
}

/** No such route, or not by this method: the web framework answers, in its own shape. */
export class RouteRefusal extends HttpRefusal {
  constructor(status: number, message: string) {
    super(status, message, message);
  }

  override body(): string {
    return JSON.stringify({ detail: this.message });
  }

  override anthropicBody(): string {
    return this.body();
  }
}

export function notFound(): RouteRefusal {
  return new RouteRefusal(404, 'Not Found');
}
