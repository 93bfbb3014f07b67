/**
 * Blocks ahead of a return. vLLM has no call that loads blocks; a request does: one of our own with the prompt of the call that has
 * ended, for one token, brings the blocks from the worker's host memory where its offloading connector has them, and computes what
 * is nowhere.
 *
 *   started -> applied | refused | expired          once each; `withdrawn` counts as expired
 *
 * - It goes behind everything else, where the server schedules by priority.
 * - It is no call of its workflow: it has no session, a name that begins with `saga-prefetch-`, and for the connector's policy it is a
 *   thread of its own, which ends with it.
 * - It is taken back when the call that it is for comes first, when its workflow ends, and at its deadline: what was computed by then
 *   stays cached.
 * - So many at one time on a worker; further ones are refused.
 */
import { randomBytes } from 'node:crypto';
import type { DirectiveOutcome } from './envelope.js';
import type { DirectiveMetrics } from './metrics.js';
import type { VllmWorker } from './vllm-worker.js';

/** A prompt by its tokens. */
export interface PrefetchPrompt {
  readonly tokens: ArrayLike<number>;
  readonly cacheSalt?: string | undefined;
  readonly loraName?: string | undefined;
}

/** @internal What it needs of its set. */
export interface PrefetchHost {
  readonly model: string;
  /** At one time on a worker. */
  readonly most: number;
  /** Whether it is known which servers refuse a priority. */
  readonly probed: boolean;
  /** Sends a completion; its status. */
  complete(worker: VllmWorker, body: object, options: { id: string; ms: number; signal: AbortSignal }): Promise<number>;
  metrics(worker: VllmWorker): DirectiveMetrics | undefined;
}

/** Behind every priority that the scheduler gives. */
export const lowestPriority = 2 ** 15 - 1;
/** Threads of a gateway's agents are below, or from 2^52 on. */
const firstThread = 2 ** 51;

interface Open {
  readonly call: number;
  readonly worker: VllmWorker;
  readonly abort: AbortController;
  readonly done: (outcome: DirectiveOutcome) => void;
}

export class Prefetches {
  readonly #host: PrefetchHost;
  readonly #sender = randomBytes(6).toString('hex');
  #thread = firstThread + randomBytes(6).readUIntBE(0, 6);
  #count = 0;
  /** By the id of the call whose prompt it is. */
  readonly #open = new Map<number, Open>();
  readonly #running = new Map<VllmWorker, number>();

  constructor(host: PrefetchHost) {
    this.#host = host;
  }

  /** Under way now. */
  get size(): number {
    return this.#open.size;
  }

  /**
   * @param call whose prompt it is
   * @param ms until its deadline
   * @param done told once
   */
  start(
    call: number,
    worker: VllmWorker,
    prompt: PrefetchPrompt,
    ms: number,
    done: (outcome: DirectiveOutcome) => void,
  ): void {
    const running = this.#running.get(worker) ?? 0;
    if (running >= this.#host.most || this.#open.has(call) || prompt.tokens.length === 0) {
      done({ status: 'refused', reason: 'queue' });
      return;
    }
    if (!(ms > 0)) {
      done({ status: 'expired' });
      return;
    }
    const open: Open = { call, worker, abort: new AbortController(), done };
    this.#open.set(call, open);
    this.#running.set(worker, running + 1);
    const metrics = this.#host.metrics(worker);
    if (metrics !== undefined) {
      metrics.prefetches += 1;
      metrics.prefetchesOpen += 1;
    }
    void this.#send(open, prompt, ms).then((outcome) => this.#end(open, outcome));
  }

  /** What it is for has come, or will not come: its end is told before this returns. */
  withdraw(call: number): void {
    const open = this.#open.get(call);
    if (open !== undefined) this.#end(open, { status: 'expired', reason: 'withdrawn' });
  }

  /** All of them end. */
  close(): void {
    for (const call of [...this.#open.keys()]) this.withdraw(call);
  }

  async #send({ worker, abort }: Open, prompt: PrefetchPrompt, ms: number): Promise<DirectiveOutcome> {
    const id = `saga-prefetch-${this.#sender}-${this.#count++}`;
    const options = { id, ms: Math.min(Math.ceil(ms), 2 ** 31 - 1), signal: abort.signal };
    try {
      const status = await this.#host.complete(worker, this.#body(worker, prompt, id), options);
      return status === 200 ? { status: 'applied' } : { status: 'refused', reason: `answered with ${status}` };
    } catch (error) {
      const late = error instanceof Error && error.name === 'TimeoutError';
      return late ? { status: 'expired' } : { status: 'refused', reason: 'unreachable' };
    }
  }

  #end(open: Open, outcome: DirectiveOutcome): void {
    const { call, worker, abort, done } = open;
    if (this.#open.get(call) !== open) return;
    this.#open.delete(call);
    abort.abort();
    const left = (this.#running.get(worker) as number) - 1;
    if (left === 0) this.#running.delete(worker);
    else this.#running.set(worker, left);
    const metrics = this.#host.metrics(worker);
    if (metrics !== undefined) {
      metrics.prefetchesOpen -= 1;
      if (outcome.status === 'applied') metrics.prefetchesApplied += 1;
      else if (outcome.reason === 'withdrawn') metrics.prefetchesWithdrawn += 1;
    }
    done(outcome);
  }

  #body(worker: VllmWorker, { tokens, cacheSalt, loraName }: PrefetchPrompt, id: string): object {
    const { features } = worker;
    return {
      model: loraName ?? this.#host.model,
      prompt: Array.from(tokens),
      max_tokens: 1,
      temperature: 0,
      ...(cacheSalt === undefined ? {} : { cache_salt: cacheSalt }),
      // A server that does not schedule by priority may refuse every request with one.
      ...(this.#host.probed && features.priority !== false ? { priority: lowestPriority } : {}),
      ...(features.connector === undefined
        ? {}
        : {
            kv_transfer_params: { saga: { protocol_version: '0.1', message_id: id, actions: this.#actions(worker) } },
          }),
    };
  }

  #actions({ features }: VllmWorker): object[] {
    const thread = this.#thread++;
    const action = (number: number, type: string, payload: object): object => ({
      action_id: String(number),
      action_type: type,
      action_version: '1.0',
      payload: { thread, ...payload },
    });
    const call = action(0, 'saga.call', { prompt_kind: 'start' });
    return features.requestDirectives?.types.has('saga.ended') === true
      ? [call, action(1, 'saga.ended', { session_end: true, at: 'end' })]
      : [call];
  }
}
