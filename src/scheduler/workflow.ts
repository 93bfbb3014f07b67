/** A task of an agent. */
import { checkInteger, checkOneOf, describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';
import { Call } from './call.js';
import { checkHashes, mostTokens, refused } from './checks.js';
import type { At, HashedPrompt, TokenIds } from './options.js';
import type { Scheduler } from './scheduler.js';
import { toolClasses, type ToolClass } from './vocabulary.js';

/** One task of an agent: its calls follow each other, with tool runs between them. Made by {@link Scheduler.openWorkflow}. */
export class Workflow {
  /** Unique among all workflows of the scheduler. */
  readonly id: number;
  readonly tenant: string;
  readonly salt: string;
  readonly #scheduler: Scheduler;

  /** @internal */
  constructor(scheduler: Scheduler, id: number, tenant: string, salt: string) {
    this.#scheduler = scheduler;
    this.id = id;
    this.tenant = tenant;
    this.salt = salt;
  }

  /**
   * A call to the model, to be placed by the next {@link Scheduler.decide} (or {@link Call.place}).
   *
   * @param prompt token ids of the whole prompt, at least one, or its block hashes with its length in tokens; at most
   * `maxChainBlocks` blocks
   * @throws SagaCapacityError when `maxCalls` are open, or their prompts exceed `maxOpenBlocks`
   */
  submit(prompt: TokenIds | HashedPrompt, at: At = {}): Call {
    const scheduler = this.#scheduler;
    const now = scheduler.time(at);
    let chain: BigUint64Array;
    let blocks: number;
    let promptTokens: number;
    if (Array.isArray(prompt) || ArrayBuffer.isView(prompt)) {
      const tokens = prompt as TokenIds;
      blocks = scheduler.hashPrompt(tokens, this.salt);
      promptTokens = tokens.length;
      chain = scheduler.chain;
      if (promptTokens === 0) throw new SagaArgumentError('a prompt must have at least one token, got none');
    } else {
      if (typeof prompt !== 'object' || prompt === null) {
        throw new SagaArgumentError(`prompt must be token ids or { chain, promptTokens }, got ${describe(prompt)}`);
      }
      const hashed = prompt as HashedPrompt;
      chain = checkHashes('chain', hashed.chain);
      blocks = chain.length;
      promptTokens = checkInteger('promptTokens', hashed.promptTokens, 1, mostTokens);
      const most = Math.floor(promptTokens / scheduler.blockTokens);
      scheduler.checkPromptBlocks(most);
      if (blocks > most)
        throw new SagaArgumentError(`chain must have at most ${most} hashes for ${promptTokens} tokens, got ${blocks}`);
    }
    const id = scheduler.native.submitCall(now, this.id, promptTokens, chain, blocks);
    if (id < 0) throw refused(id, `workflow ${this.id} cannot submit a call of ${blocks} blocks`);
    const call = new Call(scheduler, this, id, promptTokens);
    scheduler.remember(call);
    return call;
  }

  /**
   * The client runs a tool now.
   *
   * @param options.tool Default `none`: not known
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` while one runs already
   */
  toolStarted(options: { tool?: ToolClass } & At = {}): void {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    const tool = checkOneOf('tool', options.tool ?? 'none', toolClasses);
    const status = scheduler.native.toolStarted(now, this.id, tool);
    if (status < 0) throw refused(status, `workflow ${this.id} cannot start a tool`);
  }

  /**
   * The tool has returned.
   *
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` if none was started
   */
  toolFinished(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.toolFinished(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `workflow ${this.id} cannot finish a tool`);
  }

  /**
   * The task is done.
   *
   * @throws SagaStateError `SAGA_ERR_WRONG_STATE` while one of its calls is open
   */
  close(at: At = {}): void {
    const scheduler = this.#scheduler;
    const status = scheduler.native.closeWorkflow(scheduler.time(at), this.id);
    if (status < 0) throw refused(status, `workflow ${this.id} cannot be closed`);
  }
}
