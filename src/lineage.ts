/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Whose call is this? Which workflow a call belongs to, for a gateway whose clients may or may not say so.
 *
 * In this order: the id that the host knows itself; the id that a known agent client sends in its headers ({@link workflowIdOf});
 * the lineage of the prompt: one that begins with all that an earlier call's prompt was continues that call's workflow.
 */
import native from './native.cjs';
import { checkInteger, checkOptions, checkText, describe } from './check.js';
import { SagaArgumentError, SagaStateError, errorOfStatus } from './errors.js';

const kinds = ['new', 'continued', 'forked', 'rolled-back', 'compacted'] as const;

/**
 * What a call is to those before it:
 *
 * - `new`: the first of a workflow
 * - `continued`: the next of a line of calls
 * - `forked`: a further line of its workflow, beside one that runs: a sub-agent, a parallel sample
 * - `rolled-back`: goes on from an earlier point of a line that waits, and takes its place
 * - `compacted`: of a workflow that was named: a new prompt in place of the old one, as when a summary replaces a conversation
 */
export type LineageKind = (typeof kinds)[number];

/** All bounds are fixed at construction; memory is allocated then. */
export interface LineageOptions {
  /** Most lines of calls known at one time, 2 to 2^20. Default 4,096. At most `maxHeads - 1` calls run at one time. */
  maxHeads?: number;
  /** Most blocks known at one time, 1 to 2^26. Default 2^20. 56 to 72 bytes each. */
  maxBlocks?: number;
  /** The last blocks of a prompt that the next one may lack, 0 to 4,096: what the client's template rewrites. Default 1. */
  slackBlocks?: number;
}

/** Headers of a request: those of `node:http`, a `Headers` object, or pairs of name and value. */
export type RequestHeaders =
  Iterable<readonly [string, string]> | Readonly<Record<string, string | readonly string[] | undefined>>;

/** What {@link Lineage.identify} says of a call. */
export interface Identity {
  kind: LineageKind;
  /** A number below `maxHeads`, used again once the workflow was closed or forgotten. */
  workflow: number;
  /** Line of calls that this one is the newest of: for {@link Lineage.ended}. */
  head: number;
  /** Head of the line that was left: nobody is expected to continue it, so what only it keeps in caches can go. */
  superseded: number | undefined;
  /** Leading blocks shared with the line that was continued, left or forked; of a new workflow: with any. */
  commonBlocks: number;
  /** Leading blocks that were known at all. */
  knownBlocks: number;
}

/** Present sizes, and totals since construction. */
export interface LineageStats {
  workflows: number;
  heads: number;
  runningCalls: number;
  blocks: number;
  /** Calls by what they were. */
  callsTotal: Record<LineageKind, number>;
  /** Lines that were left. */
  supersededTotal: number;
  /** Workflows forgotten to make room. */
  forgottenTotal: number;
  memoryBytes: number;
}

/** What a client says of itself in its headers. */
export interface WorkflowId {
  /** The session that the user began; of a sub-agent with a session of its own, the session of its parent. */
  workflow: string;
  /** The sub-agent that calls; `undefined`: the main agent. */
  agent: string | undefined;
  /** Who started the sub-agent. */
  parent: string | undefined;
  /** The client says that nothing follows: of the sub-agent where one is named, else of the workflow. */
  final: boolean;
}

const noHead = 2 ** 32 - 1;
const mostIdBytes = 1024;

/**
 * The workflow that a request belongs to by its headers, whose names count in any case. Known are, the first that is there wins:
 *
 * | client | session | sub-agent, parent |
 * |---|---|---|
 * | own | `X-SAGA-Session-ID` | `X-SAGA-Parent-Session-ID` |
 * | Dynamo | `X-Dynamo-Session-ID` | `X-Dynamo-Parent-Session-ID` |
 * | Claude Code | `X-Claude-Code-Session-ID` | `X-Claude-Code-Agent-ID`, `X-Claude-Code-Parent-Agent-ID` |
 * | Codex | `Session-ID`, `Thread-ID` | `Thread-ID`, `X-Codex-Parent-Thread-ID` |
 * | OpenCode, vLLM, llm-d as usually configured | `X-Session-ID` | `X-Parent-Session-ID` |
 *
 * With any of them, `X-SAGA-Session-Final: true` or `X-Dynamo-Session-Final: true` says that nothing follows. llm-d's
 * `X-LLM-D-Inference-Fairness-ID` names a tenant, not a workflow, and is not read.
 *
 * A header that is empty or longer than 1,024 bytes counts as absent: clients send what they like, and no request may fail by it.
 * Clients name parents, not roots: of a tree deeper than two levels every parent and its children are a workflow.
 *
 * @returns `undefined` where no known client names a session
 */
export function workflowIdOf(headers: RequestHeaders): WorkflowId | undefined {
  const sent = readHeaders(headers);
  const id =
    bySession(sent, 'x-saga-session-id', 'x-saga-parent-session-id') ??
    bySession(sent, 'x-dynamo-session-id', 'x-dynamo-parent-session-id') ??
    ofClaudeCode(sent) ??
    ofCodex(sent) ??
    bySession(sent, 'x-session-id', 'x-parent-session-id');
  if (id === undefined) return undefined;
  const final = isTrue(sent.get('x-saga-session-final')) || isTrue(sent.get('x-dynamo-session-final'));
  return { ...id, final };
}

/**
 * Which workflow each call belongs to: one that is named, by the host or in headers, or the one whose prompts it goes on with.
 *
 * Every method throws `SagaArgumentError` for an argument outside its range, and `SagaStateError`: `SAGA_ERR_NOT_FOUND`,
 * `SAGA_ERR_WRONG_STATE`, `SAGA_ERR_CLOSED` after {@link close}. A method that throws has changed nothing. When heads or blocks
 * are used up, the line unused for longest is forgotten, and a workflow with its last line ({@link forgotten}).
 *
 * @example
 * ```ts
 * const lineage = new Lineage();
 * const first = lineage.identify(hasher.reset().update(prompt)); // kind 'new'
 * lineage.ended(first.head);
 * const next = lineage.identify(hasher.reset().update(longerPrompt), { headers: { 'user-agent': 'mine' } });
 * console.log(next.kind, next.workflow === first.workflow); // continued true
 * ```
 */
export class Lineage {
  readonly maxHeads: number;
  readonly maxBlocks: number;
  readonly slackBlocks: number;
  readonly #native: native.Lineage;
  readonly #words = new Uint32Array(6);
  readonly #stats = new Float64Array(7 + kinds.length);
  readonly #forgotten: Uint32Array;
  #closed = false;

  /** @throws SagaArgumentError for an option outside its range */
  constructor(options: LineageOptions = {}) {
    checkOptions(options);
    this.maxHeads = checkInteger('maxHeads', options.maxHeads ?? 4096, 2, 2 ** 20);
    this.maxBlocks = checkInteger('maxBlocks', options.maxBlocks ?? 2 ** 20, 1, 2 ** 26);
    this.slackBlocks = checkInteger('slackBlocks', options.slackBlocks ?? 1, 0, 4096);
    this.#forgotten = new Uint32Array(this.maxHeads);
    const made = native.createLineage(
      this.maxHeads,
      this.maxBlocks,
      this.slackBlocks,
      this.#words,
      this.#stats,
      this.#forgotten,
    );
    if (typeof made === 'number')
      throw errorOfStatus(-made, `the lineage could not be made: ${native.statusText(-made)}`);
    this.#native = made;
  }

  /**
   * A call is sent. It runs until {@link ended}.
   *
   * @param chain hashes of the full blocks of its prompt, such as {@link BlockHasher.update} gives. Other tenants' prompts must not
   * share hashes with it: use a salt a tenant
   * @param from what else is known of it: `workflow`, a name of at most 1,024 bytes, wins; then what a known client says in the
   * `headers`. A name is the same workflow wherever it comes from
   * @throws SagaCapacityError `SAGA_ERR_FULL` when `maxHeads - 1` calls run
   */
  identify(chain: BigUint64Array, from: { workflow?: string; headers?: RequestHeaders } = {}): Identity {
    this.#open();
    if (!(chain instanceof BigUint64Array))
      throw new SagaArgumentError(`chain must be a BigUint64Array of block hashes, got ${describe(chain)}`);
    checkOptions(from);
    let id = '';
    if (from.workflow !== undefined) {
      id = checkText('workflow', from.workflow, mostIdBytes);
      if (id === '') throw new SagaArgumentError('workflow must not be empty; leave it out where none is known');
    } else if (from.headers !== undefined) {
      id = workflowIdOf(from.headers)?.workflow ?? '';
    }
    this.#answer(this.#native.identify(chain, id), () => `${this.maxHeads - 1} calls run, which is all that may`);
    const [kind = 0, workflow = 0, head = 0, superseded = 0, commonBlocks = 0, knownBlocks = 0] = this.#words;
    return {
      kind: kinds[kind] as LineageKind,
      workflow,
      head,
      superseded: superseded === noHead ? undefined : superseded,
      commonBlocks,
      knownBlocks,
    };
  }

  /**
   * The call of a head has ended, however.
   *
   * @throws SagaStateError `SAGA_ERR_NOT_FOUND` when no call of this head runs
   */
  ended(head: number): void {
    this.#open();
    this.#answer(this.#native.ended(checkInteger('head', head, 0, this.maxHeads - 1)), () => `call of head ${head}`);
  }

  /**
   * A workflow is done: it is forgotten.
   *
   * @throws SagaStateError `SAGA_ERR_NOT_FOUND`, or `SAGA_ERR_WRONG_STATE` when a call of it runs
   */
  closed(workflow: number): void {
    this.#open();
    const number = checkInteger('workflow', workflow, 0, this.maxHeads - 1);
    this.#answer(this.#native.closed(number), () => `workflow ${workflow}`);
  }

  /**
   * Workflows that the last {@link identify} forgot to make room, before it gave out its own number, which may be one of theirs:
   * close what you hold of them first. Empty after {@link closed}.
   */
  forgotten(): Uint32Array {
    this.#open();
    return this.#forgotten.slice(
      0,
      this.#answer(this.#native.forgotten(), () => 'forgotten'),
    );
  }

  stats(): LineageStats {
    this.#open();
    this.#answer(this.#native.stats(), () => 'stats');
    let next = 0;
    const read = (): number => this.#stats[next++] as number;
    return {
      workflows: read(),
      heads: read(),
      runningCalls: read(),
      blocks: read(),
      callsTotal: Object.fromEntries(kinds.map((kind) => [kind, read()])) as Record<LineageKind, number>,
      supersededTotal: read(),
      forgottenTotal: read(),
      memoryBytes: read(),
    };
  }

  /** Recomputes every invariant; `false` is a bug in SAGA. */
  verify(): boolean {
    this.#open();
    return this.#answer(this.#native.verify(), () => 'verify') === 1;
  }

  /** Frees the memory. Every later call throws `SAGA_ERR_CLOSED`. */
  close(): void {
    if (!this.#closed) this.#native.destroy();
    this.#closed = true;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #open(): void {
    if (this.#closed) throw new SagaStateError('SAGA_ERR_CLOSED', 'the lineage was closed');
  }

  #answer(value: number, what: () => string): number {
    if (value >= 0) return value;
    throw errorOfStatus(-value, `${what()} (${native.statusText(-value)})`);
  }
}

type Sent = ReadonlyMap<string, string>;
type Named = Omit<WorkflowId, 'final'>;

/** Sub-agents have sessions of their own and name that of their parent. */
function bySession(sent: Sent, sessionHeader: string, parentHeader: string): Named | undefined {
  const session = sent.get(sessionHeader);
  return session === undefined ? undefined : ofSession(session, sent.get(parentHeader));
}

function ofSession(session: string, parent: string | undefined): Named {
  if (parent === undefined || parent === session) return { workflow: session, agent: undefined, parent: undefined };
  return { workflow: parent, agent: session, parent };
}

/** Sub-agents share the session. One that names no parent agent was started by the main one. */
function ofClaudeCode(sent: Sent): Named | undefined {
  const workflow = sent.get('x-claude-code-session-id');
  if (workflow === undefined) return undefined;
  const agent = sent.get('x-claude-code-agent-id');
  const parent = agent === undefined ? undefined : (sent.get('x-claude-code-parent-agent-id') ?? workflow);
  return { workflow, agent, parent };
}

/** Older versions name the session alone, newer ones the thread, and perhaps the session that threads share. */
function ofCodex(sent: Sent): Named | undefined {
  const session = sent.get('session-id');
  const thread = sent.get('thread-id') ?? session;
  if (thread === undefined) return undefined;
  const parent = sent.get('x-codex-parent-thread-id');
  if (session === undefined || session === thread) return ofSession(thread, parent);
  return { workflow: session, agent: thread, parent: parent ?? session };
}

function isTrue(value: string | undefined): boolean {
  return value !== undefined && /^(true|1)$/i.test(value);
}

const headerNames = new Set([
  ...['x-saga-session-id', 'x-saga-parent-session-id', 'x-saga-session-final'],
  ...['x-dynamo-session-id', 'x-dynamo-parent-session-id', 'x-dynamo-session-final'],
  ...['x-claude-code-session-id', 'x-claude-code-agent-id', 'x-claude-code-parent-agent-id'],
  ...['session-id', 'thread-id', 'x-codex-parent-thread-id'],
  ...['x-session-id', 'x-parent-session-id'],
]);

/** Those that are known and can be used, by their name in lower case. Of several values, the first. */
function readHeaders(headers: RequestHeaders): Sent {
  if (typeof headers !== 'object' || headers === null)
    throw new SagaArgumentError(`headers must be an object or pairs of name and value, got ${describe(headers)}`);
  const pairs: Iterable<readonly [string, unknown]> =
    Symbol.iterator in headers ? (headers as Iterable<readonly [string, string]>) : Object.entries(headers);
  const sent = new Map<string, string>();
  for (const [name, given] of pairs) {
    const known = String(name).toLowerCase();
    if (!headerNames.has(known) || sent.has(known)) continue;
    const first: unknown = Array.isArray(given) ? given[0] : given;
    if (typeof first !== 'string') continue;
    const value = first.trim();
    if (value !== '' && Buffer.byteLength(value) <= mostIdBytes && !/\p{Surrogate}/u.test(value))
      sent.set(known, value);
  }
  return sent;
}
