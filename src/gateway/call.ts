/**
 * One call to a model, from its body to the last byte of its answer.
 *
 *     tokens and hashes -> identity -> a worker (ModelPool) -> the worker's answer, chunk by chunk -> what became of it
 *
 * The body goes on as the client sent it but for a few members; the answer too. A worker that fails before its first byte is replaced by
 * another one; after it the connection is broken off, which tells the client that its answer is not complete. When the client goes,
 * the worker's request is aborted at once. Nothing of the answer is kept but facts (`answer.ts`).
 */
import { randomBytes } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { withMembers } from '../json-outline.js';
import type { PromptKind } from '../scheduler.js';
import type { Logger, VllmWorker, WorkerRoute } from '../vllm/index.js';
import { AnswerReader, type Endpoint } from './answer.js';
import type { Body } from './body.js';
import { CallSignal } from './call-signal.js';
import type { Deadlines } from './deadlines.js';
import { GatewayError } from './errors.js';
import { hintActions, type HintAction } from './hints.js';
import { nameOf, type Tenant } from './identity.js';
import type { ModelPool, Placed } from './model-pool.js';
import type { PromptSource } from './tokens/types.js';
import { LateWorker, WorkerFailure, relay } from './relay.js';
import type { Upstream } from './upstream.js';

const avoidMilliseconds = 50;
const mostAvoids = 100;

export const endpointPaths: Readonly<Record<string, Endpoint>> = {
  '/v1/chat/completions': 'chat',
  '/v1/completions': 'completions',
  '/v1/responses': 'responses',
  '/v1/messages': 'messages',
};

const routeOf: Readonly<Record<Endpoint, WorkerRoute>> = {
  chat: 'chat',
  completions: 'completions',
  responses: 'responses',
  messages: 'messages',
};

/** What a call needs of its gateway. */
export interface CallContext {
  readonly pool: ModelPool;
  readonly upstream: Upstream;
  readonly prompts: PromptSource;
  readonly tenant: Tenant;
  /** LoRA adapter by which the client called the model. */
  readonly loraName: string | undefined;
  /** The name by which the workers know what the client named; `undefined`: the client's. */
  readonly modelName: string | undefined;
  /** The client's, or one of the gateway's: in answers and in the log. */
  readonly requestId: string;
  /** By which workers know it: no client can choose that of another one. */
  readonly upstreamId: string;
  /** Headers by which a worker's spans become children of the gateway's; `undefined`: the client's pass. */
  readonly trace: Readonly<Record<string, string>> | undefined;
  readonly retries: number;
  readonly deadlines: Deadlines;
  readonly firstByteSeconds: number;
  readonly chunkSeconds: number;
  readonly deadlineSeconds: number;
  readonly log: Logger;
  /** Whether clients may send `priority` and `kv_transfer_params`. */
  readonly trustParameters: boolean;
  /** Which worker has a response that this one goes on from. */
  readonly responses: ResponseWorkers;
  /** Timings and figures of the call, when it has ended. */
  readonly ended: (record: CallRecord) => void;
}

/** What is measured of a call. */
export interface CallRecord {
  requestId: string;
  endpoint: Endpoint;
  model: string;
  tenant: string;
  /** Of the answer; 499 where the client went first. */
  status: number;
  /** Milliseconds since its body was there. */
  placedAfter: number | undefined;
  firstByteAfter: number | undefined;
  endedAfter: number;
  worker: number | undefined;
  promptTokens: number | undefined;
  outputTokens: number | undefined;
  cachedTokens: number | undefined;
  callId: number | undefined;
}

/** The newest answers of `/v1/responses` by id: whose they are, and which worker has them. */
export class ResponseWorkers {
  readonly #workers = new Map<string, { worker: VllmWorker; tenant: string }>();
  readonly #most: number;

  constructor(most = 65_536) {
    this.#most = most;
  }

  remember(id: string, worker: VllmWorker, tenant: Tenant): void {
    this.#workers.delete(id);
    this.#workers.set(id, { worker, tenant: tenant.name });
    if (this.#workers.size > this.#most) this.#workers.delete(this.#workers.keys().next().value as string);
  }

  /** @throws GatewayError `not_found` where it is not known, or another tenant's, or its worker is gone */
  of(id: string, tenant: Tenant): VllmWorker {
    const known = this.#workers.get(id);
    if (known === undefined || known.tenant !== tenant.name || known.worker.condition === 'lost')
      throw new GatewayError('not_found', `response ${id.slice(0, 80)} is not known, or its worker is gone`, {
        param: 'previous_response_id',
      });
    return known.worker;
  }
}

/** Serves a call; throws what the client is to be told, where nothing was told yet. */
export async function serveCall(
  context: CallContext,
  endpoint: Endpoint,
  request: IncomingMessage,
  response: ServerResponse,
  body: Body,
): Promise<void> {
  const begun = performance.now();
  const record: CallRecord = {
    requestId: context.requestId,
    endpoint,
    model: context.pool.name,
    tenant: context.tenant.name,
    status: 500,
    placedAfter: undefined,
    firstByteAfter: undefined,
    endedAfter: 0,
    worker: undefined,
    promptTokens: undefined,
    outputTokens: undefined,
    cachedTokens: undefined,
    callId: undefined,
  };
  const gone = new CallSignal();
  const onClose = (): void => {
    if (!response.writableFinished) gone.abort(clientGone);
  };
  response.once('close', onClose);
  const deadline = context.deadlines.begin(context.deadlineSeconds, () => {
    gone.abort(new GatewayError('deadline_exceeded', `the call did not end within ${context.deadlineSeconds} seconds`));
  });
  let placed: Placed | undefined;
  let usageAsked = false;
  try {
    const streamed = body.flag('stream') ?? false;
    checkChoices(body);
    usageAsked = !asksForUsage(body) && streamed && (endpoint === 'chat' || endpoint === 'completions');
    checkRoute(context.pool, endpoint);
    const named = nameOf(request.headers, body);
    const prompt = await context.prompts.prepare({
      endpoint,
      body,
      cacheSalt: saltOf(context.tenant, body),
      loraName: context.loraName,
      workflow: named.workflow,
      worker: anyWorker(context.pool, routeOf[endpoint]),
      signal: gone,
    });
    record.promptTokens = prompt.promptTokens;
    placed = await context.pool.submit({
      tenant: context.tenant,
      named,
      prompt,
      kind: kindOf(endpoint, body),
      requestId: context.upstreamId,
      signal: gone,
    });
    const lacks = ({ features }: VllmWorker): boolean => features.routes[routeOf[endpoint]] === false;
    for (let tries = 0; ; ++tries) {
      for (let asked = 0; lacks(placed.worker); ++asked) {
        // Where those that have it have no room now, it is placed elsewhere again: a moment later there may be some.
        if (asked > 0) await delay(avoidMilliseconds);
        gone.throwIfAborted();
        if (asked === mostAvoids)
          throw new GatewayError('no_worker', `no worker that has ${pathOf(endpoint)} has room`, { retryAfter: 1 });
        await placed.avoid(lacks);
      }
      const { worker, call } = placed;
      record.placedAfter ??= performance.now() - begun;
      record.worker = worker.worker.id;
      record.callId = call.id;
      const failed = await passThrough(placed);
      if (failed === undefined) {
        record.status = response.statusCode;
        break;
      }
      gone.throwIfAborted();
      if (tries >= context.retries) {
        context.pool.failed(worker, failed);
        if (failed instanceof LateWorker)
          throw new GatewayError('deadline_exceeded', failed.message, { cause: failed });
        throw new GatewayError('worker_lost', 'the worker failed before its first byte, and so did those before it', {
          retryAfter: 1,
          cause: failed,
        });
      }
      context.log.warn(
        { requestId: context.requestId, worker: worker.server.url, err: failed },
        'the worker failed before its first byte; another one is tried',
      );
      await placed.again(failed);
    }
  } catch (error) {
    placed?.cancel();
    record.status = error === clientGone ? 499 : error instanceof GatewayError ? error.status : 500;
    if (error !== clientGone) throw error;
  } finally {
    deadline.end();
    response.off('close', onClose);
    record.endedAfter = performance.now() - begun;
    context.ended(record);
  }

  /** One worker's answer; see {@link relay}. */
  async function passThrough(call: Placed): Promise<WorkerFailure | undefined> {
    const { worker } = call;
    const sent = upstreamBody(context, endpoint, body, call, usageAsked);
    const headers = upstreamHeaders(context, request, worker, sent.length);
    if (worker.wantsLoad()) headers['endpoint-load-metrics-format'] = 'TEXT';
    let reader: AnswerReader | undefined;
    let failed: WorkerFailure | undefined;
    let unwatch: (() => void) | undefined;
    try {
      failed = await relay(context.upstream, {
        request: {
          origin: worker.origin,
          path: worker.path + pathOf(endpoint),
          method: 'POST',
          headers,
          body: sent,
        },
        response,
        signal: gone,
        deadlines: context.deadlines,
        firstByteSeconds: context.firstByteSeconds,
        chunkSeconds: context.chunkSeconds,
        failable: (fail) => {
          unwatch = context.pool.watch(worker, () => {
            fail(new WorkerFailure('the worker was lost'));
          });
        },
        head: (status, headers) => {
          const load = headers['endpoint-load-metrics'];
          if (load !== undefined) {
            if (typeof load === 'string') worker.loadHeader(load);
            delete headers['endpoint-load-metrics'];
          }
          const events = String(headers['content-type'] ?? '').startsWith('text/event-stream');
          // What is taken out makes the answer shorter than the worker said.
          if (events && headers['content-length'] !== undefined) delete headers['content-length'];
          headers['x-request-id'] = context.requestId;
          headers['x-saga-call'] = callName(context.pool, call.call.id);
          if (status < 400) reader = new AnswerReader(endpoint, { streamed: events, dropUsage: usageAsked });
          return reader;
        },
        firstByte: () => {
          unwatch?.();
          record.firstByteAfter ??= performance.now() - begun;
          call.firstByte();
        },
      });
    } catch (error) {
      if (error instanceof GatewayError && error.code === 'worker_lost')
        context.pool.failed(worker, error.cause as Error);
      throw error;
    } finally {
      unwatch?.();
    }
    if (failed !== undefined) return failed;
    const facts = reader?.facts;
    if (facts === undefined) {
      call.cancel();
      return undefined;
    }
    if (endpoint === 'responses' && facts.id !== undefined)
      context.responses.remember(facts.id, worker, context.tenant);
    record.outputTokens = facts.outputTokens;
    record.cachedTokens = facts.cachedTokens;
    if (facts.promptTokens !== undefined) context.prompts.counted(call.request.prompt, facts.promptTokens);
    call.finish(facts);
    return undefined;
  }
}

/** The client closed its connection: there is nobody to be told. */
export const clientGone = new Error('the client has gone');

/** By which a client asks why its call went where it did. */
export function callName(pool: ModelPool, id: number): string {
  return `${encodeURIComponent(pool.name)}.${id}`;
}

function pathOf(endpoint: Endpoint): string {
  return endpoint === 'chat' ? '/v1/chat/completions' : `/v1/${endpoint}`;
}

/** One that is ready and has the route, to ask for tokens: the least loaded would do no better. */
function anyWorker(pool: ModelPool, route: WorkerRoute): VllmWorker | undefined {
  for (const worker of pool.workers.workers)
    if (worker.condition === 'ready' && worker.features.routes[route] !== false) return worker;
  return undefined;
}

/** @throws GatewayError where it is known that no ready worker has the route */
function checkRoute(pool: ModelPool, endpoint: Endpoint): void {
  let lacks = false;
  for (const { condition, features } of pool.workers.workers) {
    if (condition !== 'ready') continue;
    if (features.routes[routeOf[endpoint]] !== false) return;
    lacks = true;
  }
  if (lacks) throw unsupported(pool, endpoint);
}

function unsupported(pool: ModelPool, endpoint: Endpoint): GatewayError {
  return new GatewayError(
    'unsupported_route',
    `no worker of model ${pool.name} that can take it has ${pathOf(endpoint)}`,
  );
}

function checkChoices(body: Body): void {
  // Several answers to one prompt share its blocks on one worker: they are one call.
  body.integer('n', 1, 128);
}

export function saltOf(tenant: Tenant, body: Body): string | undefined {
  const own = body.text('cache_salt');
  if (tenant.cacheSalt === undefined) return own;
  return own === undefined ? tenant.cacheSalt : `${tenant.cacheSalt}\n${own}`;
}

function asksForUsage(body: Body): boolean {
  return body.object('stream_options')?.['include_usage'] === true;
}

/** What the newest message brings, told by its first bytes: roles stand there in every client's messages. */
function kindOf(endpoint: Endpoint, body: Body): PromptKind | undefined {
  const name = endpoint === 'responses' ? 'input' : 'messages';
  const messages = body.outline.elements(name);
  if (messages === undefined || !messages.listed || messages.count === 0) return undefined;
  const last = messages.at(messages.count - 1);
  const start = body.bytes.toString('latin1', last.start, Math.min(last.end, last.start + 512));
  if (/"(?:role"\s*:\s*"tool"|type"\s*:\s*"(?:function_call_output|tool_result)")/.test(start)) return 'tool';
  return messages.count === 1 ? undefined : /"role"\s*:\s*"user"/.test(start) ? 'user' : undefined;
}

/** Begins the ids of messages on requests: those of another process, or of before a restart, are others. */
const messages = randomBytes(6).toString('hex');

/** The client's body with what the worker needs besides. */
function upstreamBody(
  context: CallContext,
  endpoint: Endpoint,
  body: Body,
  placed: Placed,
  usageAsked: boolean,
): Buffer {
  const { worker, receipt, request, session } = placed;
  const members = membersOf(context, body);
  if (usageAsked) members['stream_options'] = { ...body.object('stream_options'), include_usage: true };
  const salt = saltOf(context.tenant, body);
  if (context.tenant.cacheSalt !== undefined) members['cache_salt'] = salt;
  const { features } = worker;
  const own = context.trustParameters ? body.member('priority') : undefined;
  if (context.pool.config.priority === true && features.priority !== false && own === undefined)
    members['priority'] = receipt.priority;
  const takes = endpoint !== 'messages' || isAtLeast(features.version, messagesTakeParameters);
  if (request.named.session !== undefined && takes && body.member('session_id') === undefined)
    members['session_id'] = request.named.session;
  if (features.connector !== undefined && takes) {
    const seconds = request.named.hints?.expectedSeconds;
    const read = context.pool.config.kvHints === false ? undefined : features.requestDirectives;
    const hints = read === undefined ? noHints : hintActions(context.pool, placed, read);
    const id = `${messages}-${placed.call.id}-${receipt.placement}`;
    const apart = hints.length > 0 && read?.member === 'kv_hints';
    // An envelope of its own, and of its own name: what has come under a name is not done again.
    if (apart) members['kv_hints'] = { protocol_version: '0.1', message_id: `${id}-hints`, actions: hints };
    members['kv_transfer_params'] = {
      ...(members['kv_transfer_params'] as object | undefined),
      saga: {
        protocol_version: '0.1',
        message_id: id,
        actions: [
          {
            action_id: '0',
            action_type: 'saga.call',
            action_version: '1.0',
            payload: {
              thread: placed.thread,
              prompt_kind: session.calls === 1 ? 'start' : (request.kind ?? 'tool'),
              ...(seconds === undefined
                ? {}
                : { expected_seconds: context.pool.workers.directives.wallSeconds(seconds) }),
            },
          },
          ...(apart ? noHints : hints),
        ],
      },
    };
  }
  if (Object.keys(members).length === 0) return body.bytes;
  return Buffer.concat(withMembers(body.bytes, body.outline, members));
}

const noHints: readonly HintAction[] = [];

/** Of vLLM: its `/v1/messages` has `kv_transfer_params` and `session_id`. */
const messagesTakeParameters = [0, 33] as const;

function isAtLeast(version: string | undefined, [major, minor]: readonly [number, number]): boolean {
  const found = /^v?(\d+)\.(\d+)/.exec(version ?? '');
  if (found === null) return false;
  const [, own, second] = found.map(Number) as [number, number, number];
  return own > major || (own === major && second >= minor);
}

/**
 * What is changed of any body: the name of the model; and what steers an engine is left out, as it is the gateway's to say. A client could
 * otherwise give orders to the connector, have blocks fetched from where it likes, or go before everybody else.
 */
export function membersOf(
  context: Pick<CallContext, 'trustParameters'> & { readonly modelName?: string | undefined },
  body: Body,
): Record<string, unknown> {
  const members: Record<string, unknown> = {};
  if (context.modelName !== undefined) members['model'] = context.modelName;
  if (body.member('kv_hints') !== undefined) members['kv_hints'] = undefined;
  if (body.member('kv_transfer_params') !== undefined)
    members['kv_transfer_params'] = context.trustParameters ? withoutOrders(body, 'kv_transfer_params') : undefined;
  // vLLM puts these beside the others: a name among them would be one of those.
  if (body.member('vllm_xargs') !== undefined) {
    const kept = withoutOrders(body, 'vllm_xargs');
    if (!context.trustParameters) delete kept?.['kv_transfer_params'];
    members['vllm_xargs'] = kept;
  }
  if (body.member('priority') !== undefined && !context.trustParameters) members['priority'] = undefined;
  return members;
}

function withoutOrders(body: Body, name: string): Record<string, unknown> | undefined {
  const kept = body.object(name);
  if (kept === undefined) return undefined;
  delete kept['saga'];
  delete kept['kv_hints'];
  return kept;
}

/** Of a client's headers those that tell the worker something; never its key, its cookies or its address. */
const forwarded = [
  'accept',
  'traceparent',
  'tracestate',
  'baggage',
  'anthropic-version',
  'anthropic-beta',
  'openai-beta',
];

export function upstreamHeaders(
  context: Pick<CallContext, 'upstreamId' | 'trustParameters' | 'trace'>,
  request: IncomingMessage,
  worker: VllmWorker,
  length: number | undefined,
): Record<string, string> {
  const headers: Record<string, string> = {
    'x-request-id': context.upstreamId,
    'user-agent': 'saga',
    ...worker.headers,
  };
  if (length !== undefined) {
    headers['content-type'] = 'application/json';
    headers['content-length'] = String(length);
  }
  for (const name of forwarded) {
    const value = request.headers[name];
    if (typeof value === 'string') headers[name] = value;
  }
  const { trace } = context;
  if (trace !== undefined) {
    for (const name of ['traceparent', 'tracestate', 'baggage']) delete headers[name];
    Object.assign(headers, trace);
  }
  const priority = request.headers['x-vllm-priority'];
  if (context.trustParameters && typeof priority === 'string') headers['x-vllm-priority'] = priority;
  return headers;
}
