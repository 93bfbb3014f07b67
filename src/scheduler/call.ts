/** One call to the model. */
import { checkInteger, checkOneOf } from '../check.js';
import { SagaStateError } from '../errors.js';
import { refused, twoTo32 } from './checks.js';
import type { At } from './options.js';
import type { Receipt } from './receipt.js';
import type { Scheduler } from './scheduler.js';
import { stopReasons, toolClasses, type StopReason, type ToolClass } from './vocabulary.js';
import type { Workflow } from './workflow.js';

/** One call to the model: it waits, is placed, runs, and ends by {@link finish} or {@link cancel}. Made by {@link Workflow.submit}. */
export class Call {
  /** Unique among all calls of the scheduler. */
  readonly id: number;
  readonly workflow: Workflow;
  readonly promptTokens: number;
  /**
   * Where it goes and why; `undefined` while it waits. A call that loses its worker waits again and gets another one. It stays
   * when the call has ended.
   */
  readonly receipt: Receipt | undefined = undefined;
  readonly #scheduler: Scheduler;

  /** @internal */
  constructor(scheduler: Scheduler, workflow: Workflow, id: number, promptTokens: number) {
    this.#scheduler = scheduler;
    this.workflow = workflow;
    this.id = id;
    this.promptTokens = promptTokens;
  }

  /**
   * Places this call now, together with all others that wait. Does nothing where it has its receipt already.
   *
   * @throws SagaStateError `SAGA_ERR_NO_WORKER` when no worker is active; the call keeps waiting
   * @throws SagaCapacityError `SAGA_ERR_JOURNAL_FULL`; calls before it may have been placed
   */
  place(at: At = {}): Receipt {
    const scheduler = this.#scheduler;
    const now = scheduler.time(at);
    if (!scheduler.knows(this)) throw new SagaStateError('SAGA_ERR_NOT_FOUND', `call ${this.id} has ended`);
    // More than once only where the journal ran full before it was this call's turn: the second time throws.
    while (this.receipt === undefined) {
      if (scheduler.place(now) === 0)
        throw new SagaStateError('SAGA_ERR_NO_WORKER', 'no worker is active: add one, the call keeps waiting');
    }
    return this.receipt;
  }

  /**
   * The worker sent the first token.
   *
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` unless the call is placed and has had none
   */
  firstToken(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.firstToken(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `call ${this.id} cannot have its first token`);
  }

  /** The client is gone: the call ends, whatever its state. */
  cancel(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.cancelCall(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `call ${this.id} cannot be cancelled`);
    scheduler.forget(this);
  }

  /**
   * The answer is complete, or the call failed on the worker: it ends.
   *
   * @param options.stop why the answer ended. Default `unknown`
   * @param options.tool the tool that it asks for. Default `none`
   * @param options.outputTokens length of the answer, 0 to 2^32 - 1. Default 0
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` while it waits; {@link cancel} ends that
   */
  finish(options: { stop?: StopReason; tool?: ToolClass; outputTokens?: number } & At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    const stop = checkOneOf('stop', options.stop ?? 'unknown', stopReasons);
    const tool = checkOneOf('tool', options.tool ?? 'none', toolClasses);
    const tokens = checkInteger('outputTokens', options.outputTokens ?? 0, 0, twoTo32 - 1);
    const status = scheduler.native.finishCall(now, this.id, stop, tool, tokens);
    if (status < 0) throw refused(status, `call ${this.id} cannot be finished`);
    scheduler.forget(this);
  }
}
