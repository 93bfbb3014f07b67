/** One call to the model. */
import { checkInteger, checkOneOf } from '../check.js';
import { SagaStateError } from '../errors.js';
import type { CallHints } from '../graph/call-hints.js';
import { checkHashes, refused, twoTo32 } from './checks.js';
import type { At } from './options.js';
import type { Receipt } from './receipt.js';
import type { Scheduler } from './scheduler.js';
import { notTold, tellHints, tellNothing, toldColumn } from './told.js';
import { stopReasons, toolClasses, type StopReason, type ToolClass } from './vocabulary.js';
import type { Workflow } from './workflow.js';

/** One call to the model: it waits, is placed, runs, and ends by {@link finish} or {@link cancel}. Made by {@link Workflow.submit}. */
export class Call {
  /** Unique among all calls of the scheduler. */
  readonly id: number;
  readonly workflow: Workflow;
  readonly promptTokens: number;
  /** The agent of the workflow that calls; `undefined` for the main one. */
  readonly agent: string | undefined;
  /**
   * Where it goes and why; `undefined` while it waits or is held back. A call that loses its worker waits again and gets another one. It stays
   * when the call has ended.
   */
  readonly receipt: Receipt | undefined = undefined;
  /** @internal */
  ended = false;
  readonly #scheduler: Scheduler;
  /** What its hints told of the time after its answer, to be told again when it ends. */
  readonly #nextTool: number;
  readonly #gap: number;

  /** @internal `told`: the hints of its submission, if it had some. */
  constructor(
    scheduler: Scheduler,
    workflow: Workflow,
    id: number,
    promptTokens: number,
    agent: string | undefined,
    told: Float64Array | undefined,
  ) {
    this.#scheduler = scheduler;
    this.workflow = workflow;
    this.id = id;
    this.promptTokens = promptTokens;
    this.agent = agent;
    this.#nextTool = told?.[toldColumn.nextTool] ?? 0;
    this.#gap = told?.[toldColumn.gap] ?? Number.POSITIVE_INFINITY;
  }

  /**
   * Places this call now, together with all others that wait. Does nothing where it has its receipt already.
   *
   * @throws SagaStateError `SAGA_ERR_NO_WORKER` when no worker is active, `SAGA_ERR_HELD` when `saga` holds the call back: it waits
   * for room or for its blocks, and a later {@link Scheduler.decide} places it. Either way the call keeps waiting
   * @throws SagaCapacityError `SAGA_ERR_JOURNAL_FULL`; calls before it may have been placed
   */
  place(at: At = {}): Receipt {
    const scheduler = this.#scheduler;
    const now = scheduler.time(at);
    if (!scheduler.knows(this)) throw new SagaStateError('SAGA_ERR_NOT_FOUND', `call ${this.id} has ended`);
    // More than once only where the journal ran full before it was this call's turn: the second time throws.
    while (this.receipt === undefined) {
      if (scheduler.place(now) === 0 && this.receipt === undefined) throw scheduler.whyWaiting(this);
    }
    return this.receipt;
  }

  /**
   * The worker sent the first token.
   *
   * @param options.placement of the {@link Receipt} by which the worker runs it. Default: the present one
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` unless the call is placed and has had none, and where it has been placed anew since
   * `placement`
   */
  firstToken(options: { placement?: number } & At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    const status = scheduler.native.firstToken(now, this.id, placementOf(options));
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
   * @param options.hints what is known now: of the tool that runs next, of the time until the next call, whether this was the
   * agent's last one; `expectedOutputTokens` is of the next answer. They go before those of {@link Workflow.submit}
   * @param options.chain hashes of the full blocks behind those of the prompt that the answer has filled, if they are known: for
   * tokens `scheduler.hash([...prompt, ...answer], salt).subarray(promptBlocks)`. What is kept or copied in the gap then
   * includes the answer
   * @param options.placement of the {@link Receipt} by which the worker ran it. Default: the present one
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` while it waits; {@link cancel} ends that. Also where it has been placed anew since
   * `placement`: this is the answer of the lost worker
   */
  finish(
    options: {
      stop?: StopReason;
      tool?: ToolClass;
      outputTokens?: number;
      hints?: CallHints;
      chain?: BigUint64Array;
      placement?: number;
    } & At = {},
  ): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    const stop = checkOneOf('stop', options.stop ?? 'unknown', stopReasons);
    const tool = checkOneOf('tool', options.tool ?? 'none', toolClasses);
    const tokens = checkInteger('outputTokens', options.outputTokens ?? 0, 0, twoTo32 - 1);
    const { hints, chain = noHashes } = options;
    const placement = placementOf(options);
    checkHashes('chain', chain);
    let status: number;
    if (
      hints !== undefined ||
      chain.length > 0 ||
      placement !== notTold ||
      this.#nextTool !== 0 ||
      this.#gap !== Number.POSITIVE_INFINITY
    ) {
      const { told } = scheduler;
      tellNothing(told);
      if (hints !== undefined) tellHints(told, hints, this.workflow.graph);
      if (hints?.finalStep !== true) {
        if (hints?.nextTool === undefined) told[toldColumn.nextTool] = this.#nextTool;
        if (hints?.expectedSeconds === undefined) told[toldColumn.gap] = this.#gap;
      }
      told[toldColumn.placement] = placement;
      status = scheduler.native.finishCallWith(now, this.id, stop, tool, tokens, chain);
    } else {
      status = scheduler.native.finishCall(now, this.id, stop, tool, tokens);
    }
    if (status < 0) throw refused(status, `call ${this.id} cannot be finished`);
    scheduler.forget(this);
  }
}

const noHashes = new BigUint64Array();

/** The number of a placement, as it crosses the border. */
function placementOf({ placement }: { placement?: number }): number {
  return placement === undefined ? notTold : checkInteger('placement', placement, 0, 2 ** 16 - 1);
}
