/**
 * Carries out the scheduler's directives on vLLM workers, by the protocol of docs/directives.md.
 *
 * | directive | is carried out as | reported |
 * |---|---|---|
 * | retain | `kv.retain` of the call's request | applied, refused, expired, revoked |
 * | release | `kv.release` | no |
 * | drop | `kv.evict`, mode `first` | no |
 * | copy `prefetch`, `migrate` | a request of our own with the prompt, for one token, at the worker (prefetch.ts) | applied, refused, expired |
 * | copy `pull`, `reload` | a call waits for it, and brings or computes the blocks as fast itself: refused at once | refused |
 * | priority | nothing: a call that was sent has its priority | no, counted |
 *
 * Times of the scheduler become seconds of the wall here, and only here: nobody else knows the time scale of the set.
 *
 * A worker without a channel, or with a connector that can do nothing, refuses everything. Whatever happens to a connection, each
 * retain is reported.
 */
import { randomBytes } from 'node:crypto';
import type { CopyDirective, Directive, DropDirective, RetainDirective } from '../scheduler/directive.js';
import type { Worker } from '../scheduler/worker.js';
import type { DirectiveChannel, Report } from './directive-channel.js';
import {
  endedPayload,
  statusReport,
  targetPayload,
  type DirectiveOutcome,
  type DirectiveStatusReport,
  type DirectiveTarget,
  type EndedCall,
} from './envelope.js';
import type { CallReference, Logger } from './options.js';
import { Prefetches, type PrefetchHost, type PrefetchPrompt } from './prefetch.js';
import type { VllmWorker } from './vllm-worker.js';

/** Seconds in which an action may begin. */
const expiresIn = 30;
const statusSeconds = 2;
/** A lease without an end. */
const longestLease = 86_400;
/** Of the scheduler's values of leases: 1 for a connector. */
const valueOne = 1e6;

/** @internal What the client needs of its set. */
export interface DirectiveHost extends PrefetchHost {
  of(worker: Worker): VllmWorker | undefined;
  channel(worker: VllmWorker): DirectiveChannel | undefined;
  /** Scheduler time, microseconds. */
  now(): number;
  /** Something was reported to the scheduler. */
  changed(): void;
  countPriority(worker: VllmWorker): void;
  readonly timeScale: number;
  readonly log: Logger;
  readonly requestIdOf: (call: CallReference) => string | undefined;
  readonly threadOf: (call: CallReference) => number | undefined;
  readonly promptOf: (call: CallReference) => PrefetchPrompt | undefined;
}

export class DirectiveClient {
  readonly #host: DirectiveHost;
  /** Several schedulers may use a worker: their claims are told apart. */
  readonly #claims = randomBytes(6).toString('hex');
  readonly #prefetches: Prefetches;

  /** @internal */
  constructor(host: DirectiveHost) {
    this.#host = host;
    this.#prefetches = new Prefetches(host);
  }

  /** Carries out a directive of the scheduler, and reports to it what became of it. Never throws. */
  carryOut(directive: Directive): void {
    const worker = this.#host.of(directive.worker);
    switch (directive.type) {
      case 'copy':
        this.#copy(directive, worker);
        break;
      case 'retain':
        this.#retain(directive, worker);
        break;
      case 'release':
        if (worker) this.#send(worker, 'kv.release', { claim_id: this.claimOf(directive.callId) }, ignore);
        break;
      case 'drop':
        if (worker) this.#drop(directive, worker);
        break;
      case 'priority':
        if (worker) this.#host.countPriority(worker);
        break;
    }
  }

  /** Tells the engine's own policy what follows a call: `saga.ended`. */
  ended(call: EndedCall): void {
    if (!this.#usable(call.worker)) return;
    const { expectedSeconds: seconds } = call;
    const told = seconds === undefined ? call : { ...call, expectedSeconds: this.wallSeconds(seconds) };
    this.#send(call.worker, 'saga.ended', endedPayload(told), ignore);
  }

  /** Scheduler time in the seconds of the wall that directives speak of. */
  wallSeconds(seconds: number): number {
    return seconds / this.#host.timeScale;
  }

  /** By which a worker knows the lease of what a call has left there, whichever way it came: a call has one. */
  claimOf(callId: number): string {
    return `${this.#claims}-${callId}`;
  }

  /**
   * The call has come whose blocks were to be there before it, or it will not come: a request that still brings them is taken back.
   * `call` is the one before it, whose prompt it is.
   */
  withdraw(call: CallReference): void {
    if (this.#prefetches.size > 0) this.#prefetches.withdraw(call.id);
  }

  /** @internal */
  close(): void {
    this.#prefetches.close();
  }

  /** `now`: the blocks lose their hashes. `first`: they are the next victims. */
  evict(worker: VllmWorker, target: DirectiveTarget, mode: 'now' | 'first' = 'first'): Promise<DirectiveOutcome> {
    return this.#ask(worker, 'kv.evict', { target: targetPayload(target), mode });
  }

  /** A lease of so many seconds of the wall. Resolves when it holds or was refused; `onEnd` is told how one that held ends. */
  retain(
    worker: VllmWorker,
    target: DirectiveTarget,
    options: { claimId: string; ttlSeconds: number; value?: number; onEnd?: (outcome: DirectiveOutcome) => void },
  ): Promise<DirectiveOutcome> {
    const { claimId, ttlSeconds, value = 0.5, onEnd } = options;
    return new Promise((resolve) => {
      let held = false;
      this.#send(
        worker,
        'kv.retain',
        { claim_id: claimId, target: targetPayload(target), ttl_seconds: ttlSeconds, value },
        (outcome, last) => {
          if (held) onEnd?.(outcome);
          else resolve(outcome);
          held = !last;
        },
        ttlSeconds,
      );
    });
  }

  release(worker: VllmWorker, claimId: string): Promise<DirectiveOutcome> {
    return this.#ask(worker, 'kv.release', { claim_id: claimId });
  }

  /** What the worker's connector can do. */
  status(worker: VllmWorker): Promise<DirectiveStatusReport> {
    return new Promise((resolve) => {
      const channel = this.#host.channel(worker);
      if (channel === undefined) resolve({ ...unreachable, requestDirectives: undefined, fields: {} });
      channel?.send('saga.status', {}, statusSeconds, (outcome, _, fields) => resolve(statusReport(outcome, fields)));
    });
  }

  #retain(directive: RetainDirective, worker: VllmWorker | undefined): void {
    const requestId = this.#host.requestIdOf({ id: directive.callId });
    if (worker === undefined || requestId === undefined || !this.#usable(worker)) {
      this.#report(directive, { status: 'refused' });
      return;
    }
    const seconds = this.wallSeconds((directive.until - this.#host.now()) / 1e6);
    if (!(seconds > 0)) {
      this.#report(directive, { status: 'expired' });
      return;
    }
    const ttl = Math.min(seconds, longestLease);
    this.#send(
      worker,
      'kv.retain',
      {
        claim_id: this.claimOf(directive.callId),
        target: targetPayload({ requestId }),
        ttl_seconds: ttl,
        value: leaseValueOf(directive),
      },
      (outcome) => this.#report(directive, outcome),
      ttl,
    );
  }

  /** Who comes in a gap can be prepared for. A call that waits brings its blocks itself, and nothing comes from another worker. */
  #copy(directive: CopyDirective, worker: VllmWorker | undefined): void {
    const { reason, callId } = directive;
    const prompt =
      worker === undefined || this.#host.most === 0 || (reason !== 'prefetch' && reason !== 'migrate')
        ? undefined
        : this.#host.promptOf({ id: callId });
    if (worker === undefined || prompt === undefined) {
      this.#report(directive, { status: 'refused' });
      return;
    }
    const ms = 1000 * this.wallSeconds((directive.until - this.#host.now()) / 1e6);
    this.#prefetches.start(callId, worker, prompt, ms, (outcome) => this.#report(directive, outcome));
  }

  #drop(directive: DropDirective, worker: VllmWorker): void {
    if (!this.#usable(worker)) return;
    const call = { id: directive.callId };
    const thread = this.#host.threadOf(call);
    const requestId = this.#host.requestIdOf(call);
    const target: DirectiveTarget | undefined =
      thread !== undefined ? { thread } : requestId === undefined ? undefined : { requestId };
    if (target) this.#send(worker, 'kv.evict', { target: targetPayload(target), mode: 'first' }, ignore);
  }

  /** Whether anything can come of a directive there. */
  #usable(worker: VllmWorker): boolean {
    return worker.features.connector !== 'none' && this.#host.channel(worker) !== undefined;
  }

  #ask(worker: VllmWorker, type: string, payload: Record<string, unknown>): Promise<DirectiveOutcome> {
    return new Promise((resolve) => {
      this.#send(worker, type, payload, (outcome) => resolve(outcome));
    });
  }

  #send(
    worker: VllmWorker,
    type: string,
    payload: Record<string, unknown>,
    report: Report,
    leaseSeconds?: number,
  ): void {
    const channel = this.#host.channel(worker);
    if (channel === undefined) report(unreachable, true, {});
    else channel.send(type, payload, expiresIn, report, leaseSeconds);
  }

  #report(directive: RetainDirective | CopyDirective, outcome: DirectiveOutcome): void {
    try {
      switch (outcome.status) {
        case 'applied':
          directive.applied();
          break;
        case 'refused':
          directive.refused();
          break;
        case 'expired':
          directive.expired();
          break;
        case 'revoked':
          if (directive.type === 'retain') directive.revoked();
          break;
        case 'released': // by its own order
        case 'pending':
          break;
      }
    } catch (error) {
      // A scheduler that is closed, or whose journal is full, lets the directive run out.
      this.#host.log.warn(
        { err: error, directive: directive.type, worker: directive.worker.id },
        'a directive was not reported',
      );
    }
    this.#host.changed();
  }
}

/** Of a lease, as connectors know it: 0 to 1. */
export function leaseValueOf({ value }: RetainDirective): number {
  return Math.min(1, Math.max(0, value / valueOne));
}

const ignore: Report = () => {};
const unreachable: DirectiveOutcome = { status: 'refused', reason: 'unreachable' };
