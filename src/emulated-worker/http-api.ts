/**
 * The HTTP surface: routes, bodies with bounds, and answers that leave as the engine makes tokens. What a request brings is checked
 * before anything is submitted; a client that goes away ends its call.
 *
 * A stream costs one short string a token; what several steps made in one turn of the loop leaves in one write.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { AnswerReader, planAnswer, scriptedAnswer, type Answer, type ScriptRequest } from './answer.js';
import { encodeChat, type ChatMessage } from './chat-template.js';
import type { Engine, EngineCall, EngineRequest } from './engine.js';
import { HttpRefusal, RouteRefusal, badRequest, malformed, notFound, unknownModel } from './errors.js';
import {
  ChatFormat,
  CompletionFormat,
  MessagesFormat,
  ResponsesFormat,
  hexId,
  type AnswerContext,
  type AnswerFormat,
  type Finish,
} from './formats.js';
import { cacheUsage, metricsText } from './metrics.js';
import type { ResolvedOptions } from './options.js';
import {
  anthropicMessages,
  chatMessages,
  commonFields,
  idsOf,
  isSeconds,
  optionalArray,
  optionalBoolean,
  optionalInteger,
  optionalObject,
  optionalString,
  parseBody,
  promptOf,
  responsesMessages,
  type Body,
  type CommonFields,
} from './requests.js';
import { decode, encode, tokenText } from './tokenizer.js';
import { promptKinds } from '../scheduler/vocabulary.js';

/** What vLLM's answers would come from, with a mark. */
export const emulatedVersion = '0.33.0+emulated';

/** A client that reads nothing is cut off when so much waits for it. */
const mostUnread = 16 * 2 ** 20;
/** `max_tokens` of `/v1/completions` where none is given. */
const completionTokens = 16;

type Endpoint = ScriptRequest['endpoint'];

/** What a `saga.call` says of its request. */
type SagaCall = Pick<EngineRequest, 'thread' | 'promptKind' | 'outcome'>;

/** A generating request, understood. */
interface Generation {
  endpoint: Endpoint;
  body: Body;
  model: string;
  loraName: string | undefined;
  prompt: Uint32Array;
  lastText: string;
  fields: CommonFields;
  id: string;
  parsed: boolean;
  sagaCall: SagaCall | undefined;
}

export class HttpApi {
  readonly #options: ResolvedOptions;
  readonly #engines: readonly Engine[];
  readonly #created = Math.floor(Date.now() / 1000);
  /** Streams to which something was written since the last flush. */
  #dirty: OpenAnswer[] = [];
  #open = 0;
  #next = 0;
  /** Receives the envelopes of directives that ride on requests. */
  onEnvelope: (engine: Engine, envelope: unknown, rider: object) => void = () => undefined;
  /** The request for which `rider` stands has ended; only of those that had an envelope. */
  onRiderEnd: (engine: Engine, rider: object) => void = () => undefined;

  constructor(options: ResolvedOptions, engines: readonly Engine[]) {
    this.#options = options;
    this.#engines = engines;
  }

  /** Writes out what the last steps have brought. */
  flush(): void {
    const dirty = this.#dirty;
    if (dirty.length === 0) return;
    this.#dirty = [];
    for (const answer of dirty) answer.flush();
  }

  handle(request: IncomingMessage, response: ServerResponse): void {
    this.#route(request, response).catch((error: unknown) => this.#refuse(request, response, error));
  }

  async #route(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = pathOf(request);
    const requestId = headerOf(request, 'x-request-id');
    if (this.#options.requestIdHeaders) response.setHeader('X-Request-Id', requestId ?? hexId());
    switch (path) {
      case '/health':
      case '/ping':
        response.writeHead(200, { 'content-length': 0 }).end();
        return;
      case '/version':
        sendJson(response, 200, { version: emulatedVersion });
        return;
      case '/load':
        sendJson(response, 200, { server_load: this.#open });
        return;
      case '/metrics':
        response.setHeader('content-type', 'text/plain; version=0.0.4; charset=utf-8');
        response.end(metricsText(this.#engines, this.#options.model));
        return;
      case '/v1/models':
        sendJson(response, 200, this.#models());
        return;
      default:
    }
    const post = postRoutes[path];
    if (post === undefined) throw notFound();
    if (request.method !== 'POST') throw new RouteRefusal(405, 'Method Not Allowed');
    if (path === '/reset_prefix_cache') {
      let success = true;
      for (const engine of this.#engines) success = engine.resetPrefixCache() && success;
      sendJson(response, 200, { success });
      return;
    }
    const type = headerOf(request, 'content-type')?.split(';', 1)[0]?.trim().toLowerCase();
    if (type !== undefined && type !== 'application/json')
      throw malformed("1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed");
    const body = parseBody(await this.#read(request));
    this.#post(post, body, request, response);
  }

  #post(route: Route, body: Body, request: IncomingMessage, response: ServerResponse): void {
    switch (route) {
      case 'tokenize':
        this.#tokenize(body, response);
        return;
      case 'detokenize': {
        this.#model(body);
        const tokens = idsOf(optionalArray(body, 'tokens') ?? [], 'tokens');
        sendJson(response, 200, { prompt: decode(tokens) });
        return;
      }
      case 'renderChat':
      case 'renderCompletion': {
        const generation = this.#understand(route === 'renderChat' ? 'chat' : 'completions', body, request);
        const rendered = this.#rendered(generation);
        sendJson(response, 200, route === 'renderChat' ? rendered : [rendered]);
        return;
      }
      case 'countTokens':
        sendCount(response, this.#understand('messages', { max_tokens: 1, ...body }, request).prompt.length);
        return;
      case 'reset':
        return;
      default:
        this.#generate(this.#understand(route, body, request), request, response);
    }
  }

  /** Reads a body of bounded length. */
  #read(request: IncomingMessage): Promise<Buffer> {
    const most = this.#options.maxBodyBytes;
    const tooLarge = (): HttpRefusal =>
      new HttpRefusal(413, `A request has at most ${most} bytes.`, 'Request Entity Too Large');
    return new Promise((resolve, reject) => {
      if (Number(request.headers['content-length'] ?? 0) > most) {
        reject(tooLarge());
        return;
      }
      const parts: Buffer[] = [];
      let size = 0;
      request.on('data', (part: Buffer) => {
        size += part.length;
        if (size > most) {
          request.pause();
          reject(tooLarge());
        } else parts.push(part);
      });
      request.on('end', () => resolve(parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts)));
      request.on('error', reject);
      request.on('close', () => {
        if (!request.complete) reject(new Error('the client went away'));
      });
    });
  }

  #refuse(request: IncomingMessage, response: ServerResponse, error: unknown): void {
    if (response.destroyed || response.socket === null || response.socket.destroyed) return;
    const refusal =
      error instanceof HttpRefusal
        ? error
        : new HttpRefusal(500, error instanceof Error ? error.message : String(error), 'InternalServerError');
    if (response.headersSent) {
      response.destroy();
      return;
    }
    const text = pathOf(request).startsWith('/v1/messages') ? refusal.anthropicBody() : refusal.body();
    response.statusCode = refusal.status;
    response.setHeader('content-type', 'application/json');
    // What is left of a body that was too long is not read.
    if (!request.complete) response.setHeader('connection', 'close');
    response.end(text);
  }

  /** The model that a body names, and the adapter if it is one. */
  #model(body: Body): { model: string; loraName: string | undefined } {
    const name = optionalString(body, 'model') ?? this.#options.model;
    if (name === this.#options.model) return { model: name, loraName: undefined };
    if (this.#options.adapters.includes(name)) return { model: name, loraName: name };
    throw unknownModel(name, [this.#options.model, ...this.#options.adapters]);
  }

  #models(): unknown {
    const { model, adapters, maxModelTokens } = this.#options;
    const card = (id: string, parent: string | null): unknown => ({
      id,
      object: 'model',
      created: this.#created,
      owned_by: 'vllm',
      root: model,
      parent,
      max_model_len: parent === null ? maxModelTokens : null,
      permission: [],
    });
    return { object: 'list', data: [card(model, null), ...adapters.map((name) => card(name, model))] };
  }

  #tokenize(body: Body, response: ServerResponse): void {
    this.#model(body);
    const tokens =
      body.messages === undefined
        ? encode(optionalString(body, 'prompt') ?? missing('prompt'))
        : encodeChat(
            chatMessages(body),
            optionalArray(body, 'tools') ?? [],
            optionalBoolean(body, 'add_generation_prompt', true),
          );
    sendJson(response, 200, {
      count: tokens.length,
      max_model_len: this.#options.maxModelTokens,
      tokens,
      token_strs: optionalBoolean(body, 'return_token_strs', false) ? tokens.map(tokenText) : null,
    });
  }

  #rendered({ id, prompt, model, fields }: Generation): unknown {
    return {
      request_id: id,
      token_ids: Array.from(prompt),
      token_offsets: null,
      features: null,
      content_parts: null,
      sampling_params: { max_tokens: fields.maxTokens ?? this.#options.maxModelTokens - prompt.length },
      model,
      reasoning_ended: null,
      reasoning_parser_kwargs: null,
      return_token_ids: null,
      output_mode: 'tokens',
      parse_context: null,
      stream: fields.stream,
      stream_options: null,
      cache_salt: fields.cacheSalt ?? null,
      priority: fields.priority ?? 0,
      kv_transfer_params: fields.transferParams ?? null,
      ec_transfer_params: null,
    };
  }

  #understand(endpoint: Endpoint, body: Body, request: IncomingMessage): Generation {
    const { model, loraName } = this.#model(body);
    let tokens: ArrayLike<number>;
    let lastText = '';
    let parsed = false;
    let maxTokens: number | undefined;
    const ofChat = (messages: readonly ChatMessage[]): void => {
      const tools = optionalArray(body, 'tools') ?? [];
      parsed = tools.length > 0 && body.tool_choice !== 'none';
      lastText = messages.at(-1)?.content ?? '';
      tokens = encodeChat(messages, tools, optionalBoolean(body, 'add_generation_prompt', true));
    };
    tokens = [];
    switch (endpoint) {
      case 'completions': {
        const prompt = promptOf(body);
        tokens = typeof prompt === 'string' ? encode(prompt) : prompt;
        if (typeof prompt === 'string') lastText = prompt;
        maxTokens = optionalInteger(body, 'max_tokens') ?? completionTokens;
        break;
      }
      case 'chat':
        ofChat(chatMessages(body));
        maxTokens = optionalInteger(body, 'max_completion_tokens') ?? optionalInteger(body, 'max_tokens');
        break;
      case 'messages':
        ofChat(anthropicMessages(body));
        maxTokens = optionalInteger(body, 'max_tokens');
        if (maxTokens === undefined) missing('max_tokens');
        break;
      case 'responses':
        if (optionalString(body, 'previous_response_id') !== undefined)
          throw new HttpRefusal(
            404,
            `Response with id '${String(body.previous_response_id)}' not found.`,
            'invalid_request_error',
            'response_id',
          );
        ofChat(responsesMessages(body));
        maxTokens = optionalInteger(body, 'max_output_tokens');
        break;
    }
    const fields = commonFields(body, maxTokens);
    fields.sessionId ??= headerOf(request, 'x-session-id');
    const priority = headerOf(request, 'x-vllm-priority');
    if (priority !== undefined && /^[+-]?\d+$/.test(priority)) fields.priority = Number(priority);
    this.#check(tokens, fields);
    const prefix = { completions: 'cmpl-', chat: 'chatcmpl-', messages: 'chatcmpl-', responses: 'resp_' }[endpoint];
    return {
      endpoint,
      body,
      model,
      loraName,
      prompt: Uint32Array.from(tokens),
      lastText,
      fields,
      id: `${prefix}${headerOf(request, 'x-request-id') ?? fields.requestId ?? hexId()}`,
      parsed,
      sagaCall: sagaCallOf(fields),
    };
  }

  #check(tokens: ArrayLike<number>, fields: CommonFields): void {
    const { maxModelTokens } = this.#options;
    const { maxTokens } = fields;
    if (tokens.length === 0)
      throw badRequest('Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)', 'prompt');
    if (fields.priority !== undefined && Math.abs(fields.priority) > 2 ** 31 - 1)
      throw malformed('priority must be a 32-bit integer', 'body.priority');
    if (tokens.length > maxModelTokens)
      throw badRequest(
        `This model's maximum context length is ${maxModelTokens} tokens. However, your prompt contains ${tokens.length} input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=${tokens.length})`,
        'input_tokens',
      );
    if (maxTokens !== undefined && maxTokens > maxModelTokens)
      throw badRequest(
        `max_tokens=${maxTokens} cannot be greater than max_model_len=${maxModelTokens}. Please request fewer output tokens. (parameter=max_tokens, value=${maxTokens})`,
        'max_tokens',
      );
    if (tokens.length === maxModelTokens)
      throw badRequest('max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)', 'max_tokens');
    // What the context leaves is what there is.
    if (maxTokens !== undefined) fields.maxTokens = Math.min(maxTokens, maxModelTokens - tokens.length);
  }

  /** The engine of a request: the rank that it names, or the one with the fewest calls. */
  #engine(request: IncomingMessage): Engine {
    const given = headerOf(request, 'x-data-parallel-rank');
    if (given === undefined) {
      let best = this.#engines[this.#next++ % this.#engines.length] as Engine;
      for (const engine of this.#engines) if (engine.openCalls < best.openCalls) best = engine;
      return best;
    }
    const engine = /^\d+$/.test(given) ? this.#engines[Number(given)] : undefined;
    if (engine === undefined)
      throw badRequest(`data_parallel_rank ${given} is out of range [0, ${this.#engines.length}).`);
    return engine;
  }

  #generate(generation: Generation, request: IncomingMessage, response: ServerResponse): void {
    const { endpoint, body, fields, prompt } = generation;
    const engine = this.#engine(request);
    const room = this.#options.maxModelTokens - prompt.length;
    const most = fields.maxTokens ?? room;
    const scripted = (): Answer | undefined =>
      this.#options.script?.({ endpoint, body, promptTokens: prompt.length, lastText: generation.lastText });
    const { tokens, finish } =
      fields.script === undefined
        ? planAnswer(fields.answer ?? scripted(), prompt, most, fields.maxTokens !== undefined || fields.ignoreEnd)
        : scriptedAnswer(fields.script, most);
    const load = loadHeader(headerOf(request, 'endpoint-load-metrics-format'), engine);
    if (load !== undefined) response.setHeader('endpoint-load-metrics', load);
    const envelopes = [fields.transferParams?.saga, fields.hints].filter((given) => given !== undefined);
    for (const envelope of envelopes) this.onEnvelope(engine, envelope, generation);
    const answer = new OpenAnswer(this.#options, generation, finish, response, (dirty) => this.#dirty.push(dirty));
    let call: EngineCall;
    try {
      call = engine.submit({
        prompt,
        answer: tokens,
        // Without priority scheduling it is taken and means nothing, as in vLLM 0.33.
        priority: this.#options.priorityScheduling ? (fields.priority ?? 0) : 0,
        cacheSalt: fields.cacheSalt,
        loraName: generation.loraName,
        sessionId: fields.sessionId,
        finish,
        requestId: generation.id,
        ...generation.sagaCall,
        onToken: (now) => answer.token(now),
        onLost: () => response.destroy(),
        ...(envelopes.length === 0 ? {} : { onEnd: () => this.onRiderEnd(engine, generation) }),
      });
    } catch {
      this.onRiderEnd(engine, generation);
      throw new HttpRefusal(503, 'Too many requests are waiting.', 'ServiceUnavailableError');
    }
    this.#open++;
    response.on('close', () => {
      this.#open--;
      engine.abort(call);
    });
  }
}

/** An answer on its way. */
class OpenAnswer {
  readonly #response: ServerResponse;
  readonly #context: AnswerContext;
  readonly #format: AnswerFormat;
  readonly #stream: boolean;
  readonly #finish: Finish;
  readonly #completion: boolean;
  readonly #blockTokens: number;
  readonly #onDirty: (answer: OpenAnswer) => void;
  #text = '';
  #begun = false;
  #ended = false;

  constructor(
    options: ResolvedOptions,
    { id, model, prompt, fields, parsed, endpoint, body }: Generation,
    finish: Finish,
    response: ServerResponse,
    onDirty: (answer: OpenAnswer) => void,
  ) {
    this.#response = response;
    this.#finish = finish;
    this.#completion = endpoint === 'completions';
    this.#blockTokens = options.blockTokens;
    this.#stream = fields.stream;
    this.#onDirty = onDirty;
    this.#context = {
      id,
      model,
      created: Math.floor(Date.now() / 1000),
      promptTokens: prompt.length,
      cachedTokens: 0,
      createdTokens: null,
      completionTokens: 0,
      includeUsage: fields.includeUsage,
      continuousUsage: fields.includeUsage && fields.continuousUsage,
      details: options.promptTokensDetails,
      promptTokenIds: fields.returnTokenIds ? prompt : undefined,
      parsed,
      reader: new AnswerReader(),
    };
    this.#format = formatOf(endpoint, this.#context, body);
  }

  /** A token came out. */
  token(call: EngineCall): void {
    const context = this.#context;
    const at = call.promptTokens + call.generated - 1;
    const id = call.tokens[at] as number;
    const last = at === call.tokens.length - 1;
    context.completionTokens = call.generated;
    const delta = context.reader.push(id);
    const waiting = this.#text !== '' || this.#ended;
    if (this.#stream) {
      if (!this.#begun) {
        this.#cached(call);
        this.#text += this.#format.begin();
        this.#begun = true;
      }
      this.#text += this.#format.token(delta, id, last ? this.#finish : undefined);
      if (last) this.#text += this.#format.end(this.#finish);
    } else if (last) {
      this.#cached(call);
      this.#text = this.#format.whole(this.#finish, call.tokens.subarray(call.promptTokens));
    }
    this.#ended = last;
    if (!waiting && (this.#text !== '' || last)) this.#onDirty(this);
  }

  /** What the cache did with the prompt. vLLM tells what was created for all routes but completions. */
  #cached(call: EngineCall): void {
    const context = this.#context;
    context.cachedTokens = call.cachedTokens;
    if (this.#completion) return;
    context.createdTokens = Math.max(
      0,
      call.promptTokens - (call.promptTokens % this.#blockTokens) - call.cachedTokens,
    );
  }

  flush(): void {
    const response = this.#response;
    const text = this.#text;
    this.#text = '';
    if (response.destroyed) return;
    if (!response.headersSent)
      response.writeHead(200, {
        'content-type': this.#stream ? 'text/event-stream; charset=utf-8' : 'application/json',
        ...(this.#stream ? {} : { 'content-length': Buffer.byteLength(text) }),
      });
    if (this.#ended) response.end(text);
    else if (response.writableLength > mostUnread) response.destroy();
    else response.write(text);
  }
}

function formatOf(endpoint: Endpoint, context: AnswerContext, body: Body): AnswerFormat {
  switch (endpoint) {
    case 'completions':
      return new CompletionFormat(context);
    case 'chat':
      return new ChatFormat(context);
    case 'messages':
      return new MessagesFormat(context);
    case 'responses':
      return new ResponsesFormat(context, body);
  }
}

type Route = Endpoint | 'tokenize' | 'detokenize' | 'renderChat' | 'renderCompletion' | 'countTokens' | 'reset';

const postRoutes: Readonly<Record<string, Route | undefined>> = Object.assign(
  Object.create(null) as Record<string, Route>,
  {
    '/v1/completions': 'completions',
    '/v1/chat/completions': 'chat',
    '/v1/responses': 'responses',
    '/v1/messages': 'messages',
    '/v1/messages/count_tokens': 'countTokens',
    '/tokenize': 'tokenize',
    '/detokenize': 'detokenize',
    '/v1/chat/completions/render': 'renderChat',
    '/v1/completions/render': 'renderCompletion',
    '/reset_prefix_cache': 'reset',
  } satisfies Record<string, Route>,
);

function pathOf(request: IncomingMessage): string {
  const url = request.url ?? '/';
  const query = url.indexOf('?');
  return query < 0 ? url : url.slice(0, query);
}

function headerOf(request: IncomingMessage, name: string): string | undefined {
  const value = request.headers[name];
  return typeof value === 'string' && value !== '' ? value : undefined;
}

function sendJson(response: ServerResponse, status: number, value: unknown): void {
  const text = JSON.stringify(value);
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
  response.end(text);
}

function sendCount(response: ServerResponse, tokens: number): void {
  sendJson(response, 200, { input_tokens: tokens, context_management: { original_input_tokens: tokens } });
}

function missing(name: string): never {
  throw malformed(
    `1 validation error:\n  {'type': 'missing', 'loc': 'body.${name}', 'msg': 'Field required'}`,
    `body.${name}`,
  );
}

/** The `saga.call` that rides on the request. One that is malformed is none. */
function sagaCallOf(fields: CommonFields): SagaCall | undefined {
  for (const envelope of [fields.transferParams?.saga, fields.hints]) {
    const actions = (envelope as { actions?: unknown } | undefined)?.actions;
    if (!Array.isArray(actions)) continue;
    for (const action of actions as unknown[]) {
      if (typeof action !== 'object' || action === null) continue;
      const { action_type: type, payload } = action as Record<string, unknown>;
      if (type !== 'saga.call') continue;
      const given = optionalObject({ payload }, 'payload') ?? {};
      const { thread, prompt_kind: kind = 'start', expected_seconds: expected } = given;
      const seconds = expected ?? undefined;
      const promptKind = promptKinds.find((one) => one === kind);
      if (typeof thread !== 'number' || !Number.isSafeInteger(thread) || thread < 0) continue;
      if (promptKind === undefined || (seconds !== undefined && !isSeconds(seconds))) continue;
      return { thread, promptKind, outcome: seconds === undefined ? undefined : { declaredGapSeconds: seconds } };
    }
  }
  return undefined;
}

function loadHeader(format: string | undefined, engine: Engine): string | undefined {
  const kind = format?.toUpperCase();
  if (kind !== 'TEXT' && kind !== 'JSON') return undefined;
  const values = { num_requests_waiting: engine.waitingCalls, kv_cache_usage_perc: cacheUsage(engine) };
  const number = (value: number): string => (Number.isInteger(value) ? value.toFixed(1) : String(value));
  const list = Object.entries(values);
  if (kind === 'JSON')
    return `JSON {"named_metrics": {${list.map(([name, value]) => `"${name}": ${number(value)}`).join(', ')}}}`;
  return `TEXT ${list.map(([name, value]) => `named_metrics.${name}=${number(value)}`).join(', ')}`;
}
