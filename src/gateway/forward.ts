/**
 * Requests that are not scheduled: other routes of a model, which any of its workers can answer, and those that go on from an answer that
 * one worker holds.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { withMembers } from '../json-outline.js';
import type { VllmWorker } from '../vllm/index.js';
import { AnswerReader } from './answer.js';
import type { Body } from './body.js';
import { CallSignal } from './call-signal.js';
import { clientGone, membersOf, saltOf, upstreamHeaders, type CallContext } from './call.js';
import { GatewayError } from './errors.js';
import type { ModelPool } from './model-pool.js';
import { LateWorker, relay } from './relay.js';

export type ForwardContext = Pick<
  CallContext,
  | 'upstream'
  | 'tenant'
  | 'requestId'
  | 'upstreamId'
  | 'trace'
  | 'trustParameters'
  | 'deadlines'
  | 'firstByteSeconds'
  | 'chunkSeconds'
  | 'deadlineSeconds'
  | 'responses'
  | 'log'
>;

/** What is sent of a request. */
export interface ForwardBody {
  bytes: Buffer | null;
  /** A call to `/v1/responses`, whose answer can be gone on from. */
  response: boolean;
}

/** The body as the workers want it: with their name of the model, and in the tenant's name space. */
export function forwardBody(
  context: ForwardContext & { readonly modelName?: string | undefined },
  body: Body,
  response: boolean,
): ForwardBody {
  const members = membersOf(context, body);
  // Servers pass over what a route does not know.
  if (context.tenant.cacheSalt !== undefined) members['cache_salt'] = saltOf(context.tenant, body);
  const bytes =
    Object.keys(members).length === 0 ? body.bytes : Buffer.concat(withMembers(body.bytes, body.outline, members));
  return { bytes, response };
}

/**
 * Sends a request to the first of `workers` that answers.
 *
 * @throws GatewayError
 */
export async function forward(
  context: ForwardContext,
  request: IncomingMessage,
  response: ServerResponse,
  workers: readonly VllmWorker[],
  body: ForwardBody,
): Promise<void> {
  const gone = new CallSignal();
  const onClose = (): void => {
    if (!response.writableFinished) gone.abort(clientGone);
  };
  response.once('close', onClose);
  const deadline = context.deadlines.begin(context.deadlineSeconds, () => {
    gone.abort(
      new GatewayError('deadline_exceeded', `the request did not end within ${context.deadlineSeconds} seconds`),
    );
  });
  try {
    let cause: Error | undefined;
    for (const worker of workers) {
      let reader: AnswerReader | undefined;
      const failed = await relay(context.upstream, {
        request: {
          origin: worker.origin,
          path: worker.path + (request.url ?? '/'),
          method: request.method ?? 'GET',
          headers: upstreamHeaders(context, request, worker, body.bytes?.length),
          body: body.bytes,
        },
        response,
        signal: gone,
        deadlines: context.deadlines,
        firstByteSeconds: context.firstByteSeconds,
        chunkSeconds: context.chunkSeconds,
        head: (status, headers) => {
          delete headers['endpoint-load-metrics'];
          headers['x-request-id'] = context.requestId;
          const streamed = String(headers['content-type'] ?? '').startsWith('text/event-stream');
          if (body.response && status < 400) reader = new AnswerReader('responses', { streamed, dropUsage: false });
          return reader;
        },
        firstByte: () => undefined,
      });
      if (failed === undefined) {
        const id = reader?.facts.id;
        if (id !== undefined) context.responses.remember(id, worker, context.tenant);
        return;
      }
      cause = failed;
      worker.unreachable(failed);
    }
    if (cause instanceof LateWorker) throw new GatewayError('deadline_exceeded', cause.message, { cause });
    throw new GatewayError('worker_lost', 'the worker could not be reached or broke off', {
      retryAfter: 1,
      cause,
    });
  } catch (error) {
    if (error !== clientGone) throw error;
  } finally {
    deadline.end();
    response.off('close', onClose);
  }
}

/** Those that take calls, the one with the fewest first. */
export function readyWorkers(pool: ModelPool, most: number): VllmWorker[] {
  const ready = pool.workers.workers
    .filter(({ condition }) => condition === 'ready')
    .map((worker) => ({ worker, calls: worker.worker.state().openCalls }))
    .sort((a, b) => a.calls - b.calls || a.worker.worker.id - b.worker.worker.id);
  if (ready.length === 0)
    throw new GatewayError('no_worker', `no worker of model ${pool.name} is ready`, { retryAfter: 5 });
  return ready.slice(0, most).map(({ worker }) => worker);
}
