/** A task of an agent. */
import { checkInteger, checkOneOf, checkText, describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';
import type { AgentGraph } from '../graph/agent-graph.js';
import type { CallHints } from '../graph/call-hints.js';
import { Call } from './call.js';
import { checkHashes, mostTokens, refused } from './checks.js';
import type { At, HashedPrompt, TokenIds } from './options.js';
import type { Scheduler } from './scheduler.js';
import { tellHints, tellNothing, toldColumn } from './told.js';
import { promptKinds, toolClasses, type PromptKind, type ToolClass } from './vocabulary.js';

/** One task of an agent: its calls follow each other, with tool runs between them. Made by {@link Scheduler.openWorkflow}. */
export class Workflow {
  /** Unique among all workflows of the scheduler. */
  readonly id: number;
  readonly tenant: string;
  readonly salt: string;
  /** What was declared about tasks like this one. */
  readonly graph: AgentGraph | undefined;
  readonly #scheduler: Scheduler;
  /** Agents but the main one, numbered from 1 in the order in which they first appear. */
  #agents: Map<string, number> | undefined;

  /** @internal */
  constructor(scheduler: Scheduler, id: number, tenant: string, salt: string, graph: AgentGraph | undefined) {
    this.#scheduler = scheduler;
    this.id = id;
    this.tenant = tenant;
    this.salt = salt;
    this.graph = graph;
  }

  /**
   * A call to the model, to be placed by the next {@link Scheduler.decide} (or {@link Call.place}).
   *
   * @param prompt token ids of the whole prompt, at least one, or its block hashes with its length in tokens; at most
   * `maxChainBlocks` blocks
   * @param options.agent which agent of the workflow calls, where it has several: a name of your choice. The calls of an agent
   * follow each other and share a growing prefix. Default: the main one
   * @param options.kind what the prompt brings. Default: taken from how the answer before ended
   * @param options.hints what is known about the call; `nextTool` and `expectedSeconds` tell of what comes after its answer
   * @throws SagaCapacityError when `maxCalls` are open, or their prompts exceed `maxOpenBlocks`, or `maxThreads` are in use
   */
  submit(
    prompt: TokenIds | HashedPrompt,
    options: { agent?: string; kind?: PromptKind; hints?: CallHints } & At = {},
  ): Call {
    const scheduler = this.#scheduler;
    const now = scheduler.time(options);
    const { agent: name, kind, hints } = options;
    const told = name !== undefined || kind !== undefined || hints !== undefined;
    const agent = name === undefined ? 0 : this.#agentNumber(checkText('agent', name));
    if (told) {
      tellNothing(scheduler.told);
      scheduler.told[toldColumn.agent] = agent;
      if (kind !== undefined) scheduler.told[toldColumn.promptKind] = checkOneOf('kind', kind, promptKinds);
      if (hints !== undefined) tellHints(scheduler.told, hints, this.graph);
    }
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
    const id = told
      ? scheduler.native.submitCallWith(now, this.id, promptTokens, chain, blocks)
      : scheduler.native.submitCall(now, this.id, promptTokens, chain, blocks);
    if (id < 0) throw refused(id, `workflow ${this.id} cannot submit a call of ${blocks} blocks`);
    if (name !== undefined) (this.#agents ??= new Map()).set(name, agent);
    const call = new Call(scheduler, this, id, promptTokens, name, hints === undefined ? undefined : scheduler.told);
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

  #agentNumber(name: string): number {
    return this.#agents?.get(name) ?? (this.#agents?.size ?? 0) + 1;
  }
}
