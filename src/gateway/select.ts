/**
 * Placement for stacks in any language, which send the request to the worker themselves:
 *
 *     POST /saga/select              { model, token_ids, ... } -> where it would go now
 *     POST /saga/select_and_reserve  the same -> it counts as running there, until
 *     POST /saga/release             { reservation, output_tokens, cached_tokens, stop_reason, tool, cancelled }
 *
 * A selection leaves nothing behind: it is asked for as a workflow of its own, whatever workflow the request names. A reservation is a call of
 * its workflow.
 *
 * One tenant of several can have a quarter of `max_calls` reserved at one time. A reservation that is not released ends by itself after
 * `ttl_seconds`, as a call that was cancelled. Token ids are read from the body natively: they never become JavaScript values.
 */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { AnswerFacts } from './answer.js';
import type { Body } from './body.js';
import { CallSignal } from './call-signal.js';
import { callName } from './call.js';
import { GatewayError } from './errors.js';
import { nameOf, type Tenant } from './identity.js';
import type { ModelPool, Placed } from './model-pool.js';
import type { PromptSource } from './tokens/types.js';

interface Reservation {
  readonly placed: Placed;
  readonly pool: ModelPool;
  readonly tenant: string;
  readonly timer: NodeJS.Timeout;
}

const mostTtlSeconds = 3600;
const defaultTtlSeconds = 600;
const stops = ['tool_use', 'end_turn', 'unknown'];

/** Reservations that are open. */
export class Selections {
  readonly #reservations = new Map<string, Reservation>();
  /** By tenant and model, with those that wait for their worker. */
  readonly #open = new Map<string, number>();

  /** Open now. */
  get size(): number {
    return this.#reservations.size;
  }

  async select(
    target: { pool: ModelPool; prompts: PromptSource; loraName: string | undefined },
    tenant: Tenant,
    request: IncomingMessage,
    body: Body,
    reserve: boolean,
  ): Promise<object> {
    const { pool, prompts, loraName } = target;
    const ttl = body.integer('ttl_seconds', 1, mostTtlSeconds) ?? defaultTtlSeconds;
    if (body.outline.elements('token_ids') === undefined)
      throw new GatewayError('invalid_request', 'token_ids is needed: an array of token ids', { param: 'token_ids' });
    const own = body.text('cache_salt');
    const cacheSalt =
      tenant.cacheSalt === undefined ? own : own === undefined ? tenant.cacheSalt : `${tenant.cacheSalt}\n${own}`;
    const named = nameOf(request.headers, body);
    const gone = new CallSignal();
    const onClose = (): void => {
      gone.abort(new GatewayError('request_timeout', 'the client has gone', { closes: true }));
    };
    request.socket.once('close', onClose);
    let counted = false;
    try {
      const prompt = await prompts.prepare({
        endpoint: 'ids',
        body,
        cacheSalt,
        loraName,
        workflow: named.workflow,
        worker: undefined,
        signal: gone,
      });
      if (reserve) this.#count(pool, tenant);
      counted = reserve;
      const asked = { tenant, named, prompt, kind: undefined, signal: gone };
      const placed = reserve ? await pool.submit(asked) : undefined;
      const { call, worker, receipt, waited } = placed ?? (await pool.ask(asked));
      const answer = {
        call: callName(pool, call.id),
        worker: {
          id: worker.worker.id,
          url: worker.server.url,
          data_parallel_rank: (worker.server.dataParallelRanks ?? 1) > 1 ? worker.rank : undefined,
        },
        cache_salt: tenant.cacheSalt === undefined ? undefined : cacheSalt,
        priority: pool.config.priority === true ? receipt.priority : undefined,
        predicted_cached_tokens: pool.predictedBlocks(call, receipt) * pool.scheduler.blockTokens,
        workflow: placed?.session.workflow.id,
        lineage: placed?.lineage,
        receipt: {
          reason: receipt.reason,
          prompt_blocks: receipt.promptBlocks,
          matched_blocks: receipt.matchedBlocks,
          longest_match: receipt.longestMatch,
          open_calls: receipt.openCalls,
          blocks_in_use: receipt.blocksInUse,
          active_workers: receipt.activeWorkers,
          waited_ms: Math.round(waited * 1000) / 1000,
        },
      };
      if (placed === undefined) return answer;
      const id = `${callName(pool, placed.call.id)}-${randomUUID()}`;
      const timer = setTimeout(() => {
        this.#reservations.delete(id);
        this.#uncount(pool, tenant.name);
        placed.cancel();
      }, ttl * 1000).unref();
      this.#reservations.set(id, { placed, pool, tenant: tenant.name, timer });
      counted = false;
      return { reservation: id, expires_in: ttl, ...answer };
    } finally {
      if (counted) this.#uncount(pool, tenant.name);
      request.socket.off('close', onClose);
    }
  }

  release(body: Body, tenant: Tenant): object {
    const id = body.text('reservation', 2048);
    if (id === undefined)
      throw new GatewayError('invalid_request', 'reservation is needed: as /saga/select_and_reserve gave it', {
        param: 'reservation',
      });
    const facts: AnswerFacts = {
      stop: undefined,
      tools: [],
      outputTokens: body.integer('output_tokens', 0, 2 ** 31),
      promptTokens: undefined,
      cachedTokens: body.integer('cached_tokens', 0, 2 ** 31),
      id: undefined,
      unread: 0,
    };
    const stop = body.text('stop_reason') ?? 'unknown';
    if (!stops.includes(stop))
      throw new GatewayError('invalid_request', `stop_reason must be one of ${stops.join(', ')}`, {
        param: 'stop_reason',
      });
    if (stop === 'tool_use') facts.stop = 'tool-use';
    if (stop === 'end_turn') facts.stop = 'end-turn';
    const tool = body.text('tool', 256);
    if (tool !== undefined) facts.tools.push(tool);
    const cancelled = body.flag('cancelled') ?? false;
    const reservation = this.#reservations.get(id);
    if (reservation === undefined || reservation.tenant !== tenant.name)
      throw new GatewayError('not_found', 'the reservation is not known: it was released or has expired', {
        param: 'reservation',
      });
    this.#reservations.delete(id);
    this.#uncount(reservation.pool, tenant.name);
    clearTimeout(reservation.timer);
    if (cancelled) reservation.placed.cancel();
    else reservation.placed.finish(facts);
    return { released: true };
  }

  /** @throws GatewayError `queue_full` */
  #count(pool: ModelPool, tenant: Tenant): void {
    const key = `${tenant.name}\n${pool.name}`;
    const open = this.#open.get(key) ?? 0;
    if (open >= pool.mostReservations)
      throw new GatewayError('queue_full', `the tenant has ${open} reservations: release some`, { retryAfter: 1 });
    this.#open.set(key, open + 1);
  }

  #uncount(pool: ModelPool, tenant: string): void {
    const key = `${tenant}\n${pool.name}`;
    const left = (this.#open.get(key) ?? 0) - 1;
    if (left > 0) this.#open.set(key, left);
    else this.#open.delete(key);
  }

  close(): void {
    for (const { placed, timer } of this.#reservations.values()) {
      clearTimeout(timer);
      placed.cancel();
    }
    this.#reservations.clear();
    this.#open.clear();
  }
}
