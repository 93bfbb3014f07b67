/**
 * One model: its scheduler, its workers, and the calls that wait for a worker.
 *
 * After every event the pool is pumped: `decide` places calls, whose requests go on; directives go to the workers; a timer is set for the
 * scheduler's next wake. A call passes
 *
 *     submit -> waiting -> placed -> firstByte -> finished | cancelled
 *
 * and may go back to waiting while no byte of its answer is there, when its worker fails. Each ends exactly once, whoever gives up first.
 */
import { createHash, randomBytes } from 'node:crypto';
import { SagaError, SagaStateError } from '../errors.js';
import { classifyTool } from '../graph/tool-class.js';
import { Lineage, type Identity, type LineageKind } from '../lineage.js';
import { Scheduler, type Call, type PromptKind, type Receipt, type Workflow } from '../scheduler.js';
import { leaseValueOf } from '../vllm/directive-client.js';
import { WorkerSet, type Expectation, type Logger, type PrefetchPrompt, type VllmWorker } from '../vllm/index.js';
import type { AnswerFacts } from './answer.js';
import type { CallSignal } from './call-signal.js';
import type { GatewayConfig, ModelConfig } from './config.js';
import { GatewayError } from './errors.js';
import type { Named, Tenant } from './identity.js';
import { RecentShare } from './observe/recent.js';
import type { Prompt, PromptLine } from './tokens/types.js';

export interface SubmitRequest {
  tenant: Tenant;
  named: Named;
  prompt: Prompt;
  kind: PromptKind | undefined;
  /** By which its worker will know it; `undefined`: another program sends it there. */
  requestId?: string;
  signal: CallSignal;
}

/** A workflow that is open. */
export interface Session {
  /** Of the lineage; used again when it was closed. */
  readonly number: number;
  readonly workflow: Workflow;
  readonly tenant: Tenant;
  /** The client's name for it. */
  readonly name: string | undefined;
  /** What the workers' policy knows its agents as: agent to thread. */
  readonly threads: Map<string, number>;
  readonly openedAt: number;
  lastCallAt: number;
  calls: number;
  openCalls: number;
  /** Agents, or lines of calls without a name, whose client runs a tool now: the scheduler knows one tool of a workflow. */
  readonly tools: Set<string>;
  /** Leading blocks of its first prompt that other workflows have too. */
  readonly sharedBlocks: number;
  /** Of the lease that the scheduler decided on last, 0 to 1. */
  leaseValue: number | undefined;
  /** By thread the lease that its newest call took along, until the scheduler decides on it. */
  bridges: Map<number, Bridge> | undefined;
  /** Its number is gone, or nothing follows: it is closed with its last call. */
  closing: boolean;
}

/** Counted since the start. */
export interface PoolCounters {
  submitted: number;
  placed: number;
  finished: number;
  cancelled: number;
  retried: number;
  queueTimeouts: number;
  queueFull: number;
  lineage: Record<LineageKind, number>;
  /** By what the client sends, or by the prompt. */
  namedCalls: number;
  predictedTokens: number;
  cachedTokens: number;
  promptTokens: number;
  outputTokens: number;
  tokenizedTokens: number;
  hashedBlocks: number;
  promptsBySource: Record<Prompt['source'], number>;
  /** Prompts of which the worker counts other tokens. */
  promptTokenMismatches: number;
  /** Prompts that go on from a known one and were made into tokens anew all the same. */
  promptsRemade: number;
}

const keptCalls = 4096;
const longestName = 900;
const shunMilliseconds = 1000;
const mostAgents = 1024;

/** A lease that rode on a request. */
export interface Bridge {
  readonly callId: number;
  readonly worker: VllmWorker;
}

/** The newest call of a line: where, and by which name the worker knows it. */
interface LineEnd {
  readonly worker: VllmWorker;
  readonly requestId: string;
}

/** The line that a call takes the place of. */
export interface Superseded extends LineEnd {
  /** Leading blocks that both have. */
  readonly commonBlocks: number;
}

/** A prompt that may be sent once more, to bring its blocks ahead of the next call. */
interface KeptPrompt {
  readonly callId: number;
  readonly line: PromptLine;
  readonly tokens: number;
  readonly blocks: number;
  /** Of its last block: the line may have gone another way since. */
  readonly last: bigint;
}

/** Threads are numbers of a process; workers may hear of several processes, and of one before its restart: each begins somewhere else. */
let lastThread = randomBytes(6).readUIntBE(0, 6);
const threadSeed = randomBytes(16);

/** Of an agent for which there is no room: the same each time, among the numbers far above those that are counted. */
function threadOf(session: Session, agent: string): number {
  const digest = createHash('sha256').update(threadSeed).update(`${session.workflow.id}\n${agent}`).digest();
  return 2 ** 52 + digest.readUIntBE(0, 6);
}

/** A call that has a worker. Ends by {@link finish} or {@link cancel}, once. */
export class Placed {
  readonly session: Session;
  readonly request: SubmitRequest;
  /** The lineage's number of the line it belongs to. */
  readonly head: number;
  readonly lineage: LineageKind;
  readonly thread: number;
  readonly superseded: Superseded | undefined;
  call: Call;
  receipt: Receipt;
  /** What the worker had of its prompt when it was sent there. */
  expectation: Expectation | undefined;
  worker: VllmWorker;
  /** Milliseconds that it waited, in all. */
  waited: number;
  ended = false;
  readonly #pool: ModelPool;

  /** @internal */
  constructor(
    pool: ModelPool,
    from: {
      session: Session;
      request: SubmitRequest;
      head: number;
      lineage: LineageKind;
      thread: number;
      superseded: Superseded | undefined;
    },
    call: Call,
    receipt: Receipt,
    worker: VllmWorker,
    waited: number,
  ) {
    this.#pool = pool;
    this.session = from.session;
    this.request = from.request;
    this.head = from.head;
    this.lineage = from.lineage;
    this.thread = from.thread;
    this.superseded = from.superseded;
    this.call = call;
    this.receipt = receipt;
    this.worker = worker;
    this.waited = waited;
    this.expect();
  }

  /** Prompt tokens that the worker is thought to have: never the last one, which is always computed. */
  get predictedTokens(): number {
    return this.#pool.predictedBlocks(this.call, this.receipt) * this.#pool.scheduler.blockTokens;
  }

  /** @internal It has a worker, and another one than before. */
  expect(): void {
    this.expectation?.end();
    const blocks = this.#pool.predictedBlocks(this.call, this.receipt);
    this.expectation = this.worker.expect(this.request.prompt.chain, blocks);
  }

  firstByte(): void {
    if (!this.ended) this.#pool.firstByte(this);
  }

  finish(facts: AnswerFacts): void {
    if (!this.ended) this.#pool.finish(this, facts);
  }

  cancel(): void {
    if (!this.ended) this.#pool.cancel(this);
  }

  /**
   * Its worker failed before the first byte: another one.
   *
   * @throws GatewayError as {@link ModelPool.submit}; the call has ended then
   */
  async again(error: Error): Promise<void> {
    await this.#pool.again(this, error);
  }

  /**
   * Its worker cannot answer it: one that can, where there is room now.
   *
   * @throws GatewayError as {@link ModelPool.submit}; the call has ended then
   */
  async avoid(lacks: (worker: VllmWorker) => boolean): Promise<void> {
    await this.#pool.again(this, new Error('the worker has not what the call needs'), lacks);
  }
}

/** What a running tool belongs to: the agent, or where none is named the line of calls. */
function lineKey({ agent }: Named, head: number): string {
  return agent === undefined ? `line ${head}` : `agent ${agent}`;
}

interface Waiter {
  resolve: (call: Call) => void;
  reject: (error: Error) => void;
}

/** See the head of this file. */
export class ModelPool {
  readonly name: string;
  readonly config: ModelConfig;
  readonly scheduler: Scheduler;
  readonly workers: WorkerSet;
  readonly sessions = new Map<number, Session>();
  readonly counters: PoolCounters = {
    submitted: 0,
    placed: 0,
    finished: 0,
    cancelled: 0,
    retried: 0,
    queueTimeouts: 0,
    queueFull: 0,
    lineage: { new: 0, continued: 0, forked: 0, 'rolled-back': 0, compacted: 0 },
    namedCalls: 0,
    predictedTokens: 0,
    cachedTokens: 0,
    promptTokens: 0,
    outputTokens: 0,
    tokenizedTokens: 0,
    hashedBlocks: 0,
    promptsBySource: { ids: 0, worker: 0, local: 0, unknown: 0 },
    promptTokenMismatches: 0,
    promptsRemade: 0,
  };
  /** Prompts that nobody could make tokens of. */
  readonly unknownPrompts = new RecentShare();
  /** Of prompts made into tokens those of which the worker counts others. */
  readonly mismatchedPrompts = new RecentShare();
  readonly #lineage: Lineage;
  readonly #queueSeconds: number;
  readonly #idleMilliseconds: number;
  readonly log: Logger;
  readonly #manyTenants: boolean;
  /** That one tenant can have at one time. */
  readonly mostReservations: number;
  readonly #salts = new Map<string, number>();
  readonly #waiting = new Map<number, Waiter>();
  /** The newest calls by id, for explanations. */
  readonly #calls = new Map<
    number,
    { call: Call; requestId: string | undefined; thread: number; session: Session | undefined }
  >();
  /** By the lineage's number of the line: at workers with a connector, and while hints are not switched off. */
  readonly #lineEnds = new Map<number, LineEnd>();
  /** By thread; only where blocks may be brought ahead of a return. */
  readonly #prompts = new Map<number, KeptPrompt>();
  readonly #prefetches: boolean;
  readonly #hints: boolean;
  /** Leases keep what will be used soon: the workers evict by an order of their own. */
  readonly leases: boolean;
  /** Workers whose server has just failed, until they get calls again. */
  readonly #shunned = new Map<VllmWorker, NodeJS.Timeout>();
  /** Who wants to know that a worker is lost: calls there without a first byte. */
  readonly #watched = new Map<VllmWorker, Set<() => void>>();
  #timer: NodeJS.Timeout | undefined;
  #sweeper: NodeJS.Timeout | undefined;
  #pumping = false;
  #pumpAgain = false;
  /** It is pumped at the end of this turn of the event loop. */
  #pumpDue = false;
  /** For which the timer is set, of the scheduler's clock. */
  #wakeAt = Number.POSITIVE_INFINITY;
  #closed = false;
  readonly #microsecondsScale: number;

  constructor(config: ModelConfig, gateway: GatewayConfig, log: Logger) {
    this.name = config.name;
    this.config = config;
    this.log = log;
    this.#queueSeconds = gateway.queueSeconds ?? 120;
    this.#idleMilliseconds = 1000 * (gateway.workflowIdleSeconds ?? 900);
    this.#manyTenants = (gateway.tenants?.length ?? 0) > 0 || gateway.trustTenantHeader === true;
    const timeScale = gateway.timeScale ?? 1;
    this.#microsecondsScale = timeScale * 1000;
    const started = performance.now();
    const algorithm = config.hashAlgorithm ?? 'saga';
    const maxCalls = gateway.maxCalls ?? 8192;
    this.mostReservations = this.#manyTenants ? Math.max(1, Math.floor(maxCalls / 4)) : maxCalls;
    // Blocks do not go from one vLLM worker to another on order: nothing is moved or pulled, whatever is configured.
    const without = new Set([...(config.without ?? []), 'stealing' as const]);
    if (config.prefetchRequests === 0) without.add('prefetch');
    const saga = (config.policy ?? 'saga') === 'saga';
    this.#prefetches = saga && !without.has('prefetch');
    this.#hints = config.kvHints ?? true;
    this.leases = saga && without.has('eviction') && !without.has('ttl');
    this.scheduler = new Scheduler({
      clock: () => (performance.now() - started) * this.#microsecondsScale,
      // As many as there can be: one for each data-parallel rank of each server.
      maxWorkers: 1024,
      blockTokens: config.blockTokens ?? 16,
      maxCalls,
      maxWorkflows: 2 * maxCalls,
      maxBlocks: 2 ** 22,
      maxOpenBlocks: 2 ** 22,
      policy: config.policy ?? 'saga',
      without: [...without],
      ...(config.stepSeconds === undefined ? {} : { stepSeconds: config.stepSeconds }),
      ...(config.kvBytesPerToken === undefined ? {} : { kvBytesPerToken: config.kvBytesPerToken }),
    });
    if (this.scheduler.policy === 'saga')
      for (const { name, weight } of gateway.tenants ?? [])
        if (weight !== undefined) this.scheduler.tenant(name, { weight });
    this.#lineage = new Lineage({ maxHeads: Math.min(Math.max(2 * maxCalls, 4), 2 ** 20), maxBlocks: 2 ** 20 });
    this.workers = new WorkerSet({
      scheduler: this.scheduler,
      model: config.upstreamName ?? config.name,
      ...(config.servers === undefined ? {} : { servers: config.servers }),
      ...(config.discover === undefined ? {} : { discover: config.discover }),
      hash:
        algorithm === 'saga'
          ? { algorithm }
          : { algorithm, seed: config.hashSeed ?? '0', taggedKeys: config.hashTaggedKeys ?? false },
      probe: gateway.probe ?? true,
      timeScale,
      requestIdOf: ({ id }) => this.#calls.get(id)?.requestId,
      threadOf: ({ id }) => this.#calls.get(id)?.thread,
      promptOf: ({ id }) => this.#promptOf(id),
      ...(config.prefetchRequests === undefined ? {} : { prefetchRequests: config.prefetchRequests }),
      log,
    });
    this.workers.onChange = () => {
      for (const [worker, lost] of this.#watched) if (worker.condition === 'lost') for (const tell of [...lost]) tell();
      this.pump();
    };
  }

  async start(): Promise<void> {
    await this.workers.start();
    this.#sweeper = setInterval(
      () => {
        this.#sweep();
      },
      Math.min(Math.max(this.#idleMilliseconds / 4, 50), 30_000),
    ).unref();
    this.pump();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearInterval(this.#sweeper);
    for (const timer of this.#shunned.values()) clearTimeout(timer);
    this.#shunned.clear();
    for (const waiter of this.#waiting.values())
      waiter.reject(new GatewayError('shutting_down', 'the gateway is shutting down'));
    this.#waiting.clear();
    await this.workers.close();
    this.#lineage.close();
    this.scheduler.close();
  }

  /** Calls that have no worker yet. */
  get waitingCalls(): number {
    return this.#waiting.size;
  }

  /** One of the newest calls. */
  call(id: number): Call | undefined {
    return this.#calls.get(id)?.call;
  }

  /**
   * Puts a call into its workflow and waits until it has a worker.
   *
   * @throws GatewayError `queue_full`, `queue_timeout`, `no_worker`, `shutting_down`; the signal's reason when that aborts
   */
  async submit(request: SubmitRequest): Promise<Placed> {
    this.#open();
    const { tenant, named, prompt } = request;
    const identity = this.#identify(tenant, named, prompt.chain);
    let session: Session;
    try {
      session = this.#session(identity, tenant, named);
    } catch (error) {
      this.#lineage.ended(identity.head);
      throw error;
    }
    const { counters } = this;
    counters.lineage[identity.kind] += 1;
    counters.submitted += 1;
    counters.promptTokens += prompt.promptTokens;
    counters.tokenizedTokens += prompt.tokenizedTokens;
    counters.hashedBlocks += prompt.hashedBlocks;
    counters.promptsBySource[prompt.source] += 1;
    this.unknownPrompts.add(prompt.source === 'unknown');
    if (named.workflow !== undefined) counters.namedCalls += 1;
    session.openCalls += 1;
    session.calls += 1;
    session.lastCallAt = Date.now();
    session.closing = false;
    const from = {
      session,
      request,
      head: identity.head,
      lineage: identity.kind,
      thread: this.#thread(session, named.agent),
      superseded: identity.superseded === undefined ? undefined : this.#superseded(identity.superseded, identity),
    };
    if (this.#prefetches) this.#forgetPrompt(from.thread);
    if (session.bridges !== undefined) this.#endBridge(session, from.thread);
    try {
      this.#toolEnded(session, lineKey(named, identity.head));
      if (identity.superseded !== undefined) this.#toolEnded(session, lineKey(named, identity.superseded));
      const kind = identity.kind === 'new' ? 'start' : request.kind;
      const placed = await this.#place(session, request, kind);
      const made = new Placed(this, from, placed.call, placed.receipt, placed.worker, placed.waited);
      if (from.superseded !== undefined) this.#evictSuperseded(from.superseded, placed.worker);
      return made;
    } catch (error) {
      counters.cancelled += 1;
      this.#left(session, identity.head);
      throw error;
    }
  }

  /**
   * Where a call would go now. It is given to the scheduler as the call of a workflow of its own and taken back at once: neither the workflow
   * that its client names nor anything that is learned is touched by it.
   *
   * @throws GatewayError as {@link submit}
   */
  async ask(request: SubmitRequest): Promise<{ call: Call; receipt: Receipt; worker: VllmWorker; waited: number }> {
    this.#open();
    const { tenant, named, prompt } = request;
    let workflow: Workflow;
    try {
      workflow = this.scheduler.openWorkflow({ tenant: tenant.name });
    } catch (error) {
      throw this.#refused(error);
    }
    let asked: Call | undefined;
    try {
      this.#checkWorkers();
      asked = workflow.submit(
        { chain: prompt.chain, promptTokens: prompt.promptTokens },
        { kind: 'start', ...(named.hints === undefined ? {} : { hints: named.hints }) },
      );
      this.#remember(asked, { requestId: undefined, thread: 0, session: undefined });
      return await this.#wait(asked, request.signal);
    } catch (error) {
      throw this.#refused(error);
    } finally {
      if (!this.#closed) {
        if (asked?.ended === false) asked.cancel();
        workflow.close();
        this.#pumpSoon();
      }
    }
  }

  /** @internal Leading blocks of a prompt that the worker is thought to have: never the one of the last token, which is always computed. */
  predictedBlocks(call: Call, receipt: Receipt): number {
    const most = Math.floor((call.promptTokens - 1) / this.scheduler.blockTokens);
    return Math.min(receipt.matchedBlocks.gpu, most);
  }

  /** @internal */
  firstByte(placed: Placed): void {
    placed.expectation?.started();
    this.#tell(placed, () => {
      placed.call.firstToken({ placement: placed.receipt.placement });
    });
    this.#pumpSoon();
  }

  /** @internal */
  finish(placed: Placed, facts: AnswerFacts): void {
    placed.ended = true;
    const { session, call, receipt, worker, request } = placed;
    const { counters } = this;
    const final = request.named.final;
    // A completion is text, in which nobody but its client can see a tool: then what that said beforehand counts.
    const told = facts.stop === undefined && !final ? request.named.hints?.nextTool : undefined;
    const toolName = facts.tools[0] ?? told;
    const tool = toolName === undefined ? 'none' : classifyTool(toolName);
    counters.finished += 1;
    counters.outputTokens += facts.outputTokens ?? 0;
    if (facts.cachedTokens !== undefined && request.prompt.source !== 'unknown') {
      counters.cachedTokens += facts.cachedTokens;
      counters.predictedTokens += placed.predictedTokens;
      worker.observe(placed.predictedTokens, facts.cachedTokens, placed.expectation);
    }
    placed.expectation?.end();
    if (this.#prefetches && !final) this.#keepPrompt(placed);
    if (this.#hints && worker.features.requestDirectives !== undefined && request.requestId !== undefined)
      this.#lineEnds.set(placed.head, { worker, requestId: request.requestId });
    const stop = facts.stop ?? (told === undefined ? 'unknown' : 'tool-use');
    const seconds = request.named.hints?.expectedSeconds;
    try {
      this.#tell(placed, () => {
        call.finish({
          stop,
          tool,
          outputTokens: Math.min(facts.outputTokens ?? 0, 2 ** 31),
          placement: receipt.placement,
          ...(final ? { hints: { finalStep: true } } : {}),
        });
      });
      this.workers.directives.ended({
        worker,
        thread: placed.thread,
        stop,
        tool,
        sessionEnd: final,
        ...(seconds === undefined ? {} : { expectedSeconds: seconds }),
      });
      if (stop === 'tool-use' && !final && !this.#closed && session.tools.size < mostAgents) {
        if (session.tools.size === 0) session.workflow.toolStarted({ tool });
        session.tools.add(lineKey(request.named, placed.head));
      }
    } finally {
      if (final && request.named.agent === undefined) session.closing = true;
      this.#left(session, placed.head);
      this.#pumpSoon();
    }
  }

  #toolEnded(session: Session, key: string): void {
    if (session.tools.delete(key) && session.tools.size === 0) session.workflow.toolFinished();
  }

  /** @internal */
  cancel(placed: Placed): void {
    placed.ended = true;
    placed.expectation?.end();
    this.counters.cancelled += 1;
    try {
      this.#tell(placed, () => {
        placed.call.cancel();
      });
    } finally {
      this.#left(placed.session, placed.head);
      this.#pumpSoon();
    }
  }

  /** @internal */
  async again(placed: Placed, error: Error, lacks?: (worker: VllmWorker) => boolean): Promise<void> {
    const { session, request } = placed;
    this.counters.retried += 1;
    if (lacks === undefined) this.failed(placed.worker, error);
    try {
      this.#open();
      let next: { call: Call; receipt: Receipt; worker: VllmWorker; waited: number };
      const { receipt } = placed.call;
      const worker = receipt === undefined ? undefined : this.workers.of(receipt.worker);
      if (lacks !== undefined) {
        this.#tell(placed, () => {
          placed.call.cancel();
        });
        next = await this.#without(lacks, () => this.#place(session, request, request.kind));
      } else if (receipt !== undefined && receipt.placement !== placed.receipt.placement && worker !== undefined) {
        // The scheduler knew that the worker was lost, and has placed the call anew meanwhile.
        next = { call: placed.call, receipt, worker, waited: 0 };
      } else if (receipt === undefined && !placed.call.ended) {
        this.#checkWorkers();
        next = await this.#wait(placed.call, request.signal);
        this.counters.placed += 1;
      } else {
        this.#tell(placed, () => {
          placed.call.cancel();
        });
        next = await this.#place(session, request, request.kind);
      }
      placed.call = next.call;
      placed.receipt = next.receipt;
      placed.worker = next.worker;
      placed.waited += next.waited;
      placed.expect();
    } catch (thrown) {
      placed.ended = true;
      placed.expectation?.end();
      this.counters.cancelled += 1;
      try {
        this.#tell(placed, () => {
          placed.call.cancel();
        });
      } finally {
        this.#left(session, placed.head);
        this.pump();
      }
      throw thrown;
    }
  }

  /** Does something while workers get no calls; only what it does before it first waits is done without them. */
  #without<T>(lacks: (worker: VllmWorker) => boolean, use: () => T): T {
    const drained = this.workers.workers.filter(
      (worker) => worker.condition === 'ready' && !this.#shunned.has(worker) && lacks(worker),
    );
    for (const { worker } of drained) worker.drain();
    try {
      return use();
    } finally {
      for (const worker of drained) this.#readmit(worker);
    }
  }

  /** Decides, hands over what was decided, and sets the timer for the next time. */
  pump(): void {
    // A directive that is refused at once, or a waiter, may come back here.
    if (this.#pumping) {
      this.#pumpAgain = true;
      return;
    }
    this.#pumpDue = false;
    if (this.#closed) return;
    this.#pumping = true;
    try {
      do {
        this.#pumpAgain = false;
        for (const call of this.scheduler.decide()) {
          const waiter = this.#waiting.get(call.id);
          this.#waiting.delete(call.id);
          waiter?.resolve(call);
        }
        for (const directive of this.scheduler.directives()) {
          if (directive.type === 'retain') this.#valued(directive.callId, leaseValueOf(directive));
          this.workers.directives.carryOut(directive);
        }
      } while (this.#pumpAgain);
    } catch (error) {
      this.log.error({ err: error, model: this.name }, 'scheduling failed');
    } finally {
      this.#pumping = false;
    }
    const { nextWake } = this.scheduler;
    // A timer that is early does no harm: it is left, as wakes move with nearly every event.
    if (nextWake === undefined || nextWake >= this.#wakeAt) return;
    clearTimeout(this.#timer);
    this.#wakeAt = nextWake;
    const milliseconds = (nextWake - this.scheduler.now()) / this.#microsecondsScale;
    this.#timer = setTimeout(
      () => {
        this.#wakeAt = Number.POSITIVE_INFINITY;
        this.pump();
      },
      Math.min(Math.max(milliseconds, 0), 2 ** 31 - 1),
    ).unref();
  }

  /** After an event that can only let calls go which wait: at once where some do, else once for all events of this turn of the loop. */
  #pumpSoon(): void {
    if (this.#waiting.size > 0) {
      this.pump();
    } else if (!this.#pumpDue) {
      this.#pumpDue = true;
      setImmediate(() => {
        if (this.#pumpDue) this.pump();
      });
    }
  }

  /** `lost` is called when the worker is, unless what is returned was called before. */
  watch(worker: VllmWorker, lost: () => void): () => void {
    const known = this.#watched.get(worker);
    const all = known ?? new Set();
    if (known === undefined) this.#watched.set(worker, all);
    all.add(lost);
    if (worker.condition === 'lost') lost();
    return () => {
      all.delete(lost);
      if (all.size === 0 && this.#watched.get(worker) === all) this.#watched.delete(worker);
    };
  }

  /** A request to a worker failed, or its answer broke off. */
  failed(worker: VllmWorker, error: Error): void {
    worker.unreachable(error);
    if (!this.#closed) this.#shun(worker);
  }

  /**
   * A server has just failed a call: for a moment calls go elsewhere. Whether it is lost its health checks find out meanwhile. Where all
   * others have failed too, they get another chance.
   */
  #shun(failed: VllmWorker): void {
    const same: VllmWorker[] = [];
    const others: VllmWorker[] = [];
    for (const worker of this.workers.workers)
      if (worker.condition === 'ready')
        (worker.origin === failed.origin && worker.path === failed.path ? same : others).push(worker);
    if (others.length === 0) return;
    if (others.every((worker) => this.#shunned.has(worker))) for (const worker of others) this.#readmit(worker);
    for (const worker of same) {
      if (this.#shunned.has(worker)) continue;
      worker.worker.drain();
      this.#shunned.set(
        worker,
        setTimeout(() => {
          this.#readmit(worker);
          this.pump();
        }, shunMilliseconds).unref(),
      );
    }
  }

  #readmit(worker: VllmWorker): void {
    clearTimeout(this.#shunned.get(worker));
    this.#shunned.delete(worker);
    // One that is drained for another reason stays so.
    if (!this.#closed && worker.condition === 'ready') worker.worker.resume();
  }

  #checkWorkers(): void {
    if (this.workers.workers.every(({ condition }) => condition !== 'ready' && condition !== 'draining'))
      throw new GatewayError('no_worker', `no worker of model ${this.name} is ready`, { retryAfter: 5 });
  }

  #open(): void {
    if (this.#closed) throw new GatewayError('shutting_down', 'the gateway is shutting down');
  }

  #identify(tenant: Tenant, named: Named, chain: BigUint64Array): ReturnType<Lineage['identify']> {
    try {
      const own = this.#manyTenants ? this.#apart(tenant, chain) : chain;
      if (named.workflow === undefined) return this.#lineage.identify(own);
      // Two tenants' sessions of the same name are two.
      const name = `${tenant.name}\n${named.workflow}`;
      const short = Buffer.byteLength(name) <= longestName ? name : createHash('sha256').update(name).digest('hex');
      return this.#lineage.identify(own, { workflow: Buffer.from(short).toString() });
    } catch (error) {
      throw this.#refused(error);
    }
  }

  /** The chain with other hashes for each tenant: nobody continues the workflow of another one by sending the same prompt. */
  #apart(tenant: Tenant, chain: BigUint64Array): BigUint64Array {
    let salt = this.#salts.get(tenant.name);
    if (salt === undefined) {
      salt = createHash('sha256').update(tenant.name).digest().readUInt32LE();
      this.#salts.set(tenant.name, salt);
    }
    const own = chain.slice();
    const halves = new Uint32Array(own.buffer);
    for (let i = 0; i < halves.length; i += 2) halves[i] = (halves[i] as number) ^ salt;
    return own;
  }

  #session({ workflow: number, kind, commonBlocks }: Identity, tenant: Tenant, named: Named): Session {
    // They made room; the number of a new one may be one of theirs.
    for (const gone of this.#lineage.forgotten()) this.#forget(gone);
    if (kind === 'new') this.#forget(number);
    const known = this.sessions.get(number);
    if (known !== undefined) return known;
    try {
      const workflow = this.scheduler.openWorkflow({ tenant: tenant.name });
      const opened: Session = {
        number,
        workflow,
        tenant,
        name: named.workflow,
        threads: new Map(),
        openedAt: Date.now(),
        lastCallAt: Date.now(),
        calls: 0,
        openCalls: 0,
        tools: new Set(),
        sharedBlocks: kind === 'new' ? commonBlocks : 0,
        leaseValue: undefined,
        bridges: undefined,
        closing: false,
      };
      this.sessions.set(number, opened);
      return opened;
    } catch (error) {
      throw this.#refused(error);
    }
  }

  #thread(session: Session, agent: string | undefined): number {
    const name = agent ?? '';
    let thread = session.threads.get(name);
    if (thread === undefined) {
      if (session.threads.size >= mostAgents) return threadOf(session, name);
      thread = ++lastThread;
      session.threads.set(name, thread);
    }
    return thread;
  }

  async #place(
    session: Session,
    { named, prompt, requestId, signal }: SubmitRequest,
    kind: PromptKind | undefined,
  ): Promise<{ call: Call; receipt: Receipt; worker: VllmWorker; waited: number }> {
    signal.throwIfAborted();
    this.#checkWorkers();
    let call: Call;
    try {
      call = session.workflow.submit(
        { chain: prompt.chain, promptTokens: prompt.promptTokens },
        {
          ...(named.agent === undefined ? {} : { agent: named.agent }),
          ...(kind === undefined ? {} : { kind }),
          ...(named.hints === undefined ? {} : { hints: named.hints }),
        },
      );
    } catch (error) {
      throw this.#refused(error);
    }
    this.#remember(call, { requestId, thread: this.#thread(session, named.agent), session });
    const placed = await this.#wait(call, signal);
    this.counters.placed += 1;
    return placed;
  }

  #remember(call: Call, of: { requestId: string | undefined; thread: number; session: Session | undefined }): void {
    this.#calls.set(call.id, { call, ...of });
    if (this.#calls.size > keptCalls) this.#calls.delete(this.#calls.keys().next().value as number);
  }

  /** Until a call that is submitted is placed; it is cancelled when that does not happen. */
  async #wait(
    call: Call,
    signal: CallSignal,
  ): Promise<{ call: Call; receipt: Receipt; worker: VllmWorker; waited: number }> {
    const begun = performance.now();
    for (;;) {
      this.pump();
      // Most calls are placed at once: no promise, no timer, no listener.
      if (!call.ended && (call.receipt === undefined || this.workers.of(call.receipt.worker) === undefined))
        await this.#patience(call, signal, begun);
      const { receipt } = call;
      const worker = receipt === undefined ? undefined : this.workers.of(receipt.worker);
      if (receipt !== undefined && worker !== undefined)
        return { call, receipt, worker, waited: performance.now() - begun };
      // Placed, and its worker lost before anybody could look: it waits again.
      if (call.ended) throw new GatewayError('worker_lost', 'the worker was lost');
    }
  }

  async #patience(call: Call, signal: CallSignal, begun: number): Promise<void> {
    const placed = new Promise<Call>((resolve, reject) => {
      this.#waiting.set(call.id, { resolve, reject });
    });
    placed.catch(() => undefined);
    const seconds = this.#queueSeconds;
    let timer: NodeJS.Timeout | undefined;
    let onAbort: (() => void) | undefined;
    const givenUp = new Promise<never>((_, reject) => {
      const left = Math.max(0, seconds * 1000 - (performance.now() - begun));
      timer = setTimeout(() => {
        this.counters.queueTimeouts += 1;
        reject(
          new GatewayError('queue_timeout', `the call waited for ${seconds} seconds and got no worker`, {
            retryAfter: 10,
          }),
        );
      }, left);
      onAbort = () => {
        if (signal.reason !== undefined) reject(signal.reason);
      };
      signal.listen(onAbort);
      if (signal.aborted) onAbort();
    });
    try {
      await Promise.race([placed, givenUp]);
    } catch (error) {
      this.#waiting.delete(call.id);
      if (!this.#closed && !call.ended) call.cancel();
      throw error;
    } finally {
      clearTimeout(timer);
      if (onAbort !== undefined) signal.unlisten(onAbort);
    }
  }

  /** An event about a call that the scheduler may have placed anew since: then it is not about the present placement, and the call ends. */
  #tell(placed: Placed, event: () => void): void {
    if (this.#closed || placed.call.ended) return;
    try {
      event();
    } catch (error) {
      if (!(error instanceof SagaStateError)) throw error;
      if (placed.ended && !placed.call.ended) placed.call.cancel();
    }
  }

  /** A call of the session has ended. */
  #left(session: Session, head: number): void {
    session.openCalls -= 1;
    if (this.#closed) return;
    this.#lineage.ended(head);
    session.lastCallAt = Date.now();
    // The map is in the order of use: see #sweep.
    if (this.sessions.get(session.number) === session) {
      this.sessions.delete(session.number);
      this.sessions.set(session.number, session);
    }
    if (!session.closing || session.openCalls > 0) return;
    if (this.sessions.get(session.number) === session) {
      this.#lineage.closed(session.number);
      this.sessions.delete(session.number);
    }
    this.#close(session);
  }

  /** Its workflow ends: nothing is brought ahead of a return any more. */
  #close(session: Session): void {
    if (this.#prefetches) for (const thread of session.threads.values()) this.#forgetPrompt(thread);
    for (const thread of session.bridges?.keys() ?? []) this.#endBridge(session, thread);
    session.workflow.close();
  }

  /**
   * Closes workflows that nobody has gone on with for long: most clients never say that they are done. The scheduler learns by it who comes
   * back, and stops keeping room for those who do not.
   */
  #sweep(): void {
    const before = Date.now() - this.#idleMilliseconds;
    for (const session of this.sessions.values()) {
      if (session.openCalls > 0) continue; // with its end it goes to the end of the order
      if (session.lastCallAt > before) break;
      this.sessions.delete(session.number);
      session.closing = true;
      this.#lineage.closed(session.number);
      this.#close(session);
    }
  }

  /** The lineage needs the number for another one. */
  #forget(number: number): void {
    const session = this.sessions.get(number);
    if (session === undefined) return;
    this.sessions.delete(number);
    session.closing = true;
    if (session.openCalls === 0) this.#close(session);
  }

  // ---- What rides on requests, or is sent ahead of them

  #superseded(head: number, { commonBlocks }: Identity): Superseded | undefined {
    const end = this.#lineEnds.get(head);
    if (end === undefined) return undefined;
    this.#lineEnds.delete(head);
    return { ...end, commonBlocks };
  }

  /** Where it cannot ride on the request that takes the line's place. */
  #evictSuperseded({ worker, requestId, commonBlocks }: Superseded, placed: VllmWorker): void {
    const takes = worker.features.requestDirectives;
    if (takes === undefined || (worker === placed && takes.types.has('kv.evict'))) return;
    void this.workers.directives.evict(worker, { requestId, fromBlock: commonBlocks }, 'first');
  }

  /** The scheduler decided on a lease of what a call has left: it is the scheduler's now. */
  #valued(callId: number, value: number): void {
    const known = this.#calls.get(callId);
    if (known?.session === undefined) return;
    known.session.leaseValue = value;
    if (known.session.bridges?.get(known.thread)?.callId === callId) known.session.bridges.delete(known.thread);
  }

  /** The thread goes on, or its workflow has ended, and the scheduler has not taken its lease over. */
  #endBridge(session: Session, thread: number): void {
    const bridge = session.bridges?.get(thread);
    if (bridge === undefined) return;
    session.bridges?.delete(thread);
    const { directives } = this.workers;
    void directives.release(bridge.worker, directives.claimOf(bridge.callId));
  }

  #keepPrompt({ session, request, call, thread }: Placed): void {
    const { line, chain, promptTokens } = request.prompt;
    const last = chain[chain.length - 1];
    // Of agents beyond those that are counted nobody would take it back.
    if (line === undefined || last === undefined || !session.threads.has(request.named.agent ?? '')) return;
    this.#prompts.set(thread, { callId: call.id, line, tokens: promptTokens, blocks: chain.length, last });
  }

  /** The thread goes on, or its workflow has ended. */
  #forgetPrompt(thread: number): void {
    const kept = this.#prompts.get(thread);
    if (kept === undefined) return;
    this.#prompts.delete(thread);
    this.workers.directives.withdraw({ id: kept.callId });
  }

  /** The prompt of the newest call of a thread, if its tokens are still known. */
  #promptOf(callId: number): PrefetchPrompt | undefined {
    const thread = this.#calls.get(callId)?.thread;
    const kept = thread === undefined ? undefined : this.#prompts.get(thread);
    if (kept?.callId !== callId) return undefined;
    const { line, tokens, blocks, last } = kept;
    const { chain, cacheSalt, loraName } = line;
    try {
      if (chain.length < tokens || chain.chain[blocks - 1] !== last) return undefined;
      const all = new Uint32Array(chain.length);
      chain.tokensInto(all);
      return { tokens: all.subarray(0, tokens), cacheSalt, loraName };
    } catch (error) {
      // The line made room for others.
      if (error instanceof SagaStateError) return undefined;
      throw error;
    }
  }

  #refused(error: unknown): Error {
    if (error instanceof SagaError) {
      const { code } = error;
      if (code === 'SAGA_ERR_FULL') {
        this.counters.queueFull += 1;
        return new GatewayError('queue_full', `model ${this.name} has as many calls as it can take; try again`, {
          retryAfter: 1,
          cause: error,
        });
      }
      if (code === 'SAGA_ERR_INVALID_ARGUMENT') return new GatewayError('invalid_request', error.message);
    }
    return error as Error;
  }
}
