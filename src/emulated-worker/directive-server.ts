/**
 * Directives to an emulated worker: the ROUTER end of docs/directives.md. What changes the cache waits for the next step, as in a
 * vLLM connector; `saga.status` and `saga.ended` are carried out at once.
 *
 * A message: received -> queued -> carried out at the beginning of a step, or refused, or expired. A lease: applied -> released,
 * expired or revoked. The answers of the last 4,096 messages are kept: a message that comes again is answered again and not
 * carried out again. A message that rides on a request is one of them; what it wants done `at` the `end` is queued when that has ended.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import { Router } from 'zeromq';
import type { CallOutcome } from '../page-table.js';
import { toolClasses, type StopReason } from '../scheduler/vocabulary.js';
import type { Engine, Lease } from './engine.js';
import { isObject, isSeconds } from './requests.js';

export interface DirectiveServerOptions {
  key: string | undefined;
  /** Most blocks of all leases. */
  budget: number;
}

type Reason =
  | 'budget'
  | 'memory'
  | 'unknown_action'
  | 'malformed'
  | 'not_resident'
  | 'epoch'
  | 'unsupported'
  | 'synthetic_request'
  | 'reset';

interface Outcome {
  action_id: string;
  status: 'pending' | 'applied' | 'refused' | 'expired' | 'released' | 'revoked';
  reason?: Reason;
  blocks?: number;
  missing?: number;
  [member: string]: unknown;
}

/** A message and what was answered to it so far. */
interface Message {
  readonly id: string;
  readonly outcomes: Map<string, Outcome>;
  /** Who asked; `undefined` where it rode on a request. */
  from: Buffer | undefined;
}

interface Action {
  readonly message: Message;
  readonly id: string;
  readonly type: string;
  readonly payload: Record<string, unknown>;
  /** Milliseconds of `performance.now()`. */
  readonly deadline: number;
}

interface Claim {
  readonly lease: Lease;
  readonly action: Action;
}

const stopReasonsByWord = new Map<unknown, StopReason>([
  [undefined, 'unknown'],
  [null, 'unknown'],
  ['tool_use', 'tool-use'],
  ['end_turn', 'end-turn'],
]);
const actionsOnRequests = ['saga.call', 'saga.ended', 'kv.retain', 'kv.release', 'kv.evict'];
/** Who may send requests need not be who may evict. */
const actionsWithKey = ['saga.call', 'saga.ended'];
const actionsAtEnd = ['saga.ended', 'kv.retain', 'kv.release', 'kv.evict'];
const mostMessages = 4096;
const mostQueued = 4096;
const mostBytes = 2 ** 20;
/** Seconds by which the sender's clock may differ. */
const mostDrift = 300;

export class DirectiveServer {
  readonly #engine: Engine;
  readonly #options: DirectiveServerOptions;
  #router: Router | undefined;
  readonly #messages = new Map<string, Message>();
  #queue: Action[] = [];
  readonly #claims = new Map<string, Claim>();
  /** By what stands for their request. */
  readonly #atEnd = new Map<object, Action[]>();
  #answers: { to: Buffer; message: string; outcomes: Outcome[] }[] = [];
  #sending = false;
  #closed = false;
  #epoch = Date.now();
  readonly #counters = { messages: 0, dropped: 0, repeated: 0, applied: 0, refused: 0, expired: 0, revoked: 0 };

  constructor(engine: Engine, options: DirectiveServerOptions) {
    this.#engine = engine;
    this.#options = options;
    engine.onStep = (now) => this.#carryOut(now);
  }

  async listen(endpoint: string): Promise<void> {
    const router = new Router({ linger: 0, maxMessageSize: mostBytes, sendHighWaterMark: 10_000 });
    this.#router = router;
    await router.bind(endpoint);
    void this.#receive(router);
  }

  get endpoint(): string | undefined {
    return this.#router?.lastEndpoint ?? undefined;
  }

  /** Of this start of the engine. */
  get epoch(): number {
    return this.#epoch;
  }

  /** The engine is about to start anew: nothing of before is answered any more. */
  restart(): void {
    this.#epoch = Math.max(this.#epoch + 1, Date.now());
    this.#messages.clear();
    this.#queue = [];
    this.#claims.clear();
    this.#atEnd.clear();
    this.#answers = [];
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#router?.close();
  }

  async #receive(router: Router): Promise<void> {
    try {
      for await (const frames of router) {
        const [from, text, signature] = frames;
        if (from === undefined || text === undefined || !this.#signed(frames.length, text, signature)) {
          this.#counters.dropped++;
          continue;
        }
        let envelope: unknown;
        try {
          envelope = JSON.parse(text.toString('utf8'));
        } catch {
          this.#counters.dropped++;
          continue;
        }
        this.handle(envelope, from);
      }
    } catch (error) {
      if (!this.#closed) throw error;
    }
  }

  #signed(frames: number, text: Buffer, signature: Buffer | undefined): boolean {
    const { key } = this.#options;
    if (key === undefined) return frames === 2;
    if (frames !== 3 || signature?.length !== 32) return false;
    return timingSafeEqual(signature, createHmac('sha256', key).update(text).digest());
  }

  /** A request has ended: what waited for that is carried out with the next step. */
  ended(rider: object): void {
    const actions = this.#atEnd.get(rider);
    if (actions === undefined) return;
    this.#atEnd.delete(rider);
    for (const action of actions) {
      const outcome = this.#accept(action, undefined);
      action.message.outcomes.set(action.id, outcome);
    }
  }

  /**
   * Takes a message: of the channel, or with `from` undefined, of a request, for which `rider` stands. Nothing in it can do harm.
   */
  handle(envelope: unknown, from: Buffer | undefined, rider?: object): void {
    const { key } = this.#options;
    this.#counters.messages++;
    if (!isObject(envelope) || typeof envelope.message_id !== 'string' || envelope.message_id.length > 128) {
      this.#counters.dropped++;
      return;
    }
    const { message_id: id, time, actions, epoch } = envelope;
    if (key !== undefined && from !== undefined) {
      const drift = typeof time === 'number' ? Math.abs(Date.now() / 1000 - time) : Infinity;
      if (!(drift <= mostDrift)) {
        this.#counters.dropped++;
        return;
      }
    }
    const known = this.#messages.get(id);
    if (known !== undefined) {
      this.#counters.repeated++;
      // What comes again on a request is answered to nobody.
      if (from !== undefined) {
        known.from = from;
        this.#answer(known, [...known.outcomes.values()]);
      }
      return;
    }
    const message: Message = { id, outcomes: new Map(), from };
    this.#messages.set(id, message);
    if (this.#messages.size > mostMessages) this.#messages.delete(this.#messages.keys().next().value as string);
    const expires = typeof envelope.expires_in === 'number' && envelope.expires_in >= 0 ? envelope.expires_in : 30;
    const deadline = performance.now() + expires * 1000;
    const outcomes: Outcome[] = [];
    for (const given of Array.isArray(actions) ? (actions as unknown[]) : []) {
      if (!isObject(given) || typeof given.action_id !== 'string' || typeof given.action_type !== 'string') {
        outcomes.push({
          action_id: isObject(given) ? textOf(given.action_id) : '',
          status: 'refused',
          reason: 'malformed',
        });
        continue;
      }
      const payload = isObject(given.payload) ? given.payload : {};
      const action: Action = {
        message,
        id: given.action_id,
        type: given.action_type,
        payload,
        // What rides on a request begins when it is to.
        deadline: from === undefined ? Number.POSITIVE_INFINITY : deadline,
      };
      outcomes.push(
        payload.at === undefined || payload.at === 'arrival'
          ? this.#accept(action, epoch)
          : this.#waitForEnd(action, epoch, rider),
      );
    }
    for (const outcome of outcomes) message.outcomes.set(outcome.action_id, outcome);
    this.#answer(message, outcomes);
  }

  #waitForEnd(action: Action, epoch: unknown, rider: object | undefined): Outcome {
    if (epoch !== undefined && epoch !== null && epoch !== this.#epoch) return this.#refusal(action, 'epoch');
    if (action.payload.at !== 'end' || !actionsAtEnd.includes(action.type)) return this.#refusal(action, 'malformed');
    if (rider === undefined) return this.#refusal(action, 'unsupported');
    const waiting = this.#atEnd.get(rider);
    if (waiting === undefined) this.#atEnd.set(rider, [action]);
    else waiting.push(action);
    return { action_id: action.id, status: 'pending' };
  }

  /** What is answered at once. */
  #accept(action: Action, epoch: unknown): Outcome {
    if (epoch !== undefined && epoch !== null && epoch !== this.#epoch) return this.#refusal(action, 'epoch');
    // Who has a key for directives does not take those of whoever may send requests.
    const rides = action.message.from === undefined;
    const concernsThread = action.type === 'saga.call' || action.type === 'saga.ended';
    if (rides && this.#options.key !== undefined && !concernsThread) return this.#refusal(action, 'unsupported');
    switch (action.type) {
      case 'saga.status':
        return this.#status(action);
      case 'saga.call':
        // It was taken from the request that it rides on; by itself it says nothing.
        return rides ? { action_id: action.id, status: 'applied' } : this.#refusal(action, 'unsupported');
      case 'saga.ended':
        return this.#ended(action);
      case 'kv.prefetch':
        return this.#refusal(action, 'synthetic_request');
      case 'kv.retain':
      case 'kv.release':
      case 'kv.evict':
        if (this.#queue.length >= mostQueued) return this.#refusal(action, 'memory');
        this.#queue.push(action);
        return { action_id: action.id, status: 'pending' };
      default:
        return this.#refusal(action, 'unknown_action');
    }
  }

  /** At the beginning of a step. */
  #carryOut(now: number): void {
    if (this.#queue.length === 0) return;
    const queue = this.#queue;
    this.#queue = [];
    for (const action of queue) {
      if (action.deadline < performance.now()) {
        this.#counters.expired++;
        this.#report(action, { action_id: action.id, status: 'expired' });
        continue;
      }
      const outcome =
        action.type === 'kv.retain'
          ? this.#retain(action, now)
          : action.type === 'kv.release'
            ? this.#release(action)
            : this.#evict(action);
      if (outcome.status === 'applied' || outcome.status === 'released') this.#counters.applied++;
      this.#report(action, outcome);
    }
  }

  #retain(action: Action, now: number): Outcome {
    const { claim_id: claim, target, ttl_seconds: ttl, value = 0.5 } = action.payload;
    if (
      typeof claim !== 'string' ||
      claim.length > 1024 ||
      typeof ttl !== 'number' ||
      !(ttl > 0) ||
      typeof value !== 'number' ||
      !(value >= 0 && value <= 1)
    )
      return this.#refusal(action, 'malformed');
    const chain = this.#chain(target);
    if (chain === undefined) return this.#refusal(action, 'malformed');
    const { hashes, missing } = this.#resident(chain, target);
    if (hashes.length === 0) return { ...this.#refusal(action, 'not_resident'), missing };
    const before = this.#claims.get(claim);
    if (before !== undefined) this.#endClaim(claim, before, 'released');
    const lease = this.#engine.retain(hashes, this.#options.budget, {
      value,
      now,
      until: now + ttl * 1000,
      onEnd: (why) => {
        const held = this.#claims.get(claim);
        if (held === undefined || held.action !== action) return;
        this.#claims.delete(claim);
        if (why === 'expired') this.#counters.expired++;
        else this.#counters.revoked++;
        this.#report(
          action,
          why === 'expired'
            ? { action_id: action.id, status: 'expired' }
            : { action_id: action.id, status: 'revoked', reason: why },
        );
      },
    });
    if (lease === 'budget') return this.#refusal(action, 'budget');
    this.#claims.set(claim, { lease, action });
    return { action_id: action.id, status: 'applied', blocks: hashes.length, missing };
  }

  #release(action: Action): Outcome {
    const { claim_id: claim } = action.payload;
    if (typeof claim !== 'string') return this.#refusal(action, 'malformed');
    const held = this.#claims.get(claim);
    if (held === undefined) return this.#refusal(action, 'not_resident');
    this.#endClaim(claim, held, 'released');
    return { action_id: action.id, status: 'released' };
  }

  #evict(action: Action): Outcome {
    const { target, mode = 'first' } = action.payload;
    const chain = this.#chain(target);
    if (chain === undefined || (mode !== 'now' && mode !== 'first')) return this.#refusal(action, 'malformed');
    const { hashes, missing } = this.#resident(chain, target);
    if (hashes.length === 0) return { ...this.#refusal(action, 'not_resident'), missing };
    // A lease on any of them ends: who evicts knows better.
    const gone = new Set(hashes);
    for (const [claim, held] of this.#claims)
      if (held.lease.hashes.some((hash) => gone.has(hash))) this.#endClaim(claim, held, 'released');
    const blocks = this.#engine.evict(hashes, mode);
    return { action_id: action.id, status: 'applied', blocks, missing };
  }

  #ended(action: Action): Outcome {
    if (this.#engine.options.eviction !== 'saga') return this.#refusal(action, 'unsupported');
    const { thread, stop_reason: stop, tool_class: tool = 0, session_end: sessionEnd = false } = action.payload;
    const seconds = action.payload.expected_seconds ?? undefined;
    const stopReason = stopReasonsByWord.get(stop);
    const toolClass = typeof tool === 'number' ? toolClasses[tool] : undefined;
    if (
      typeof thread !== 'number' ||
      !Number.isSafeInteger(thread) ||
      thread < 0 ||
      stopReason === undefined ||
      toolClass === undefined ||
      typeof sessionEnd !== 'boolean' ||
      (seconds !== undefined && !isSeconds(seconds))
    )
      return this.#refusal(action, 'malformed');
    const outcome: CallOutcome = {
      stopReason,
      tool: toolClass,
      sessionEnd,
      ...(seconds === undefined ? {} : { declaredGapSeconds: seconds }),
    };
    if (!this.#engine.told(thread, outcome)) return this.#refusal(action, 'not_resident');
    this.#counters.applied++;
    return { action_id: action.id, status: 'applied' };
  }

  #endClaim(claim: string, { lease, action }: Claim, status: 'released'): void {
    this.#claims.delete(claim);
    this.#engine.release(lease);
    this.#report(action, { action_id: action.id, status });
  }

  /** The blocks of a chain that are there, and how many are not; both without those before `from_block`. */
  #resident(chain: BigUint64Array, target: unknown): { hashes: BigUint64Array; missing: number } {
    const first = (target as { from_block?: number }).from_block ?? 0;
    const { hashes } = this.#engine.resident(chain);
    const missing = chain.length - Math.max(hashes.length, Math.min(first, chain.length));
    return { hashes: hashes.subarray(first), missing };
  }

  /** The chain that a target names; `undefined` where it is none. */
  #chain(target: unknown): BigUint64Array | undefined {
    if (!isObject(target)) return undefined;
    const { from_block: first = 0 } = target;
    if (typeof first !== 'number' || !Number.isSafeInteger(first) || first < 0) return undefined;
    const { hashes, token_ids: tokens, request_id: request, thread, cache_salt: salt, lora_name: lora } = target;
    const most = Math.ceil(this.#engine.options.maxModelTokens / this.#engine.options.blockTokens);
    if (Array.isArray(hashes)) {
      const named = (hashes as unknown[]).slice(0, most);
      if (!named.every((hash): hash is string => typeof hash === 'string' && /^(?:[0-9a-f]{2}){8,32}$/i.test(hash)))
        return undefined;
      return BigUint64Array.from(named, (hash) => BigInt(`0x${hash.slice(-16)}`));
    }
    if (Array.isArray(tokens)) {
      const ids = tokens as unknown[];
      if (ids.length > this.#engine.options.maxModelTokens) return undefined;
      if (!ids.every((id) => typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < 2 ** 32))
        return undefined;
      const keys = {
        ...(typeof salt === 'string' ? { cacheSalt: salt } : {}),
        ...(typeof lora === 'string' ? { loraName: lora } : {}),
      };
      try {
        return this.#engine.hashesOf(Uint32Array.from(ids as number[]), keys);
      } catch {
        return undefined;
      }
    }
    const call =
      typeof request === 'string'
        ? this.#engine.find(({ request: { requestId } }) => isRequest(requestId, request))
        : typeof thread === 'number'
          ? this.#engine.find((one) => one.request.thread === thread)
          : undefined;
    if (call !== undefined) return call.hashes.slice(0, call.hashCount);
    return typeof request === 'string' || typeof thread === 'number' ? new BigUint64Array(0) : undefined;
  }

  #status(action: Action): Outcome {
    const engine = this.#engine;
    return {
      action_id: action.id,
      status: 'applied',
      strength: engine.options.eviction === 'saga' ? 'policy' : 'leases',
      vllm_version: 'emulated',
      connector_version: 'emulated',
      block_size: engine.options.blockTokens,
      blocks: engine.options.blocks,
      leased_blocks: engine.leasedBlocks,
      leases: engine.leases.size,
      pending: this.#queue.length,
      request_members: ['kv_transfer_params', 'kv_hints'],
      request_actions: this.#options.key === undefined ? actionsOnRequests : actionsWithKey,
      counters: { ...this.#counters },
    };
  }

  #refusal(action: Action, reason: Reason): Outcome {
    this.#counters.refused++;
    return { action_id: action.id, status: 'refused', reason };
  }

  #report(action: Action, outcome: Outcome): void {
    action.message.outcomes.set(action.id, outcome);
    this.#answer(action.message, [outcome]);
  }

  #answer(message: Message, outcomes: Outcome[]): void {
    if (message.from === undefined || this.#router === undefined || this.#closed || outcomes.length === 0) return;
    this.#answers.push({ to: message.from, message: message.id, outcomes });
    void this.#send(this.#router);
  }

  async #send(router: Router): Promise<void> {
    if (this.#sending) return;
    this.#sending = true;
    const { key } = this.#options;
    try {
      for (let next = this.#answers.shift(); next !== undefined; next = this.#answers.shift()) {
        const text = Buffer.from(
          JSON.stringify({ message_id: next.message, epoch: this.#epoch, outcomes: next.outcomes }),
          'utf8',
        );
        const frames = [next.to, text];
        if (key !== undefined) frames.push(createHmac('sha256', key).update(text).digest());
        await router.send(frames);
      }
    } catch (error) {
      if (!this.#closed) throw error;
    } finally {
      this.#sending = false;
    }
  }
}

/** Whether a request is the one named: by its whole id, or by the id that its client gave. */
function isRequest(id: string | undefined, named: string): boolean {
  if (id === undefined) return false;
  return id === named || id.endsWith(`-${named}`) || id.endsWith(`_${named}`);
}

function textOf(value: unknown): string {
  return typeof value === 'string' ? value : '';
}
