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

  /** As vLLM's Anthropic routes have it. */
  anthropicBody(): string {
    return JSON.stringify({ type: 'error', error: { type: this.type, message: this.message } });
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

export function unknownModel(model: string): HttpRefusal {
  return new HttpRefusal(404, `The model \`${model}\` does not exist.`, 'NotFoundError', 'model');
}

export function notFound(): HttpRefusal {
  return new HttpRefusal(404, 'Not Found', 'Not Found');
}
