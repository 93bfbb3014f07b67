/**
 * Random operations on the policy `saga`, with everything that can be told, against a model of what is open. Where a call goes is the
 * scheduler's business; that it goes to a worker that is there, once, and that nothing is lost or waits for ever is checked
 * here, after each operation. A twin that sees the same events, and one rebuilt from the journal, must end in the same state.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AgentGraph, type CallHints } from '../src/graph/index.js';
import {
  Scheduler,
  type Call,
  type Directive,
  type PlacementReason,
  type Worker,
  type Workflow,
} from '../src/index.js';

const graph = AgentGraph.define({
  firstPromptTokens: 20,
  expectedSeconds: 30,
  steps: { plan: { outputTokens: 30, next: 'act' }, act: { tool: 'web-api', next: { act: 0.6 } } },
});
const bounds = { maxWorkers: 5, maxWorkflows: 4, maxCalls: 12, maxTenants: 3 } as const;
const tenants = ['a', 'b', 'c', 'd'];

type CallOperation =
  | { kind: 'place' | 'first token' | 'cancel' | 'stale'; which: number }
  | { kind: 'finish'; which: number; outputTokens: number; hints: CallHints | undefined; end: boolean };
type Operation =
  | { kind: 'add worker' | 'decide' | 'take directives' }
  | { kind: 'remove worker' | 'close' | 'tool'; which: number }
  | CallOperation
  | { kind: 'open'; which: number; graph: boolean; agentKind: string | undefined }
  | { kind: 'submit'; which: number; tokens: number; agent: string | undefined; hints: CallHints | undefined }
  | { kind: 'stored' | 'removed'; which: number; from: number; count: number }
  | { kind: 'load'; which: number; blocksInUse: number; waitingCalls: number | undefined }
  | { kind: 'weight'; which: number; weight: number }
  | { kind: 'outcome'; which: number; outcome: 'applied' | 'refused' | 'expired' | 'revoked' }
  | { kind: 'wait'; microseconds: number };

const which = fc.nat(1000);
const maybe = <T>(one: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> => fc.option(one, { nil: undefined, freq: 2 });
const hints: fc.Arbitrary<CallHints> = fc.record(
  {
    nextTool: fc.constantFrom('web-api', 'run_tests'),
    expectedSeconds: fc.constantFrom(0, 0.5, 20),
    stepKind: fc.constantFrom('plan', 'act'),
    expectedOutputTokens: fc.constantFrom(0, 12, 400.5),
  },
  { requiredKeys: [] },
);
const final: fc.Arbitrary<CallHints> = fc.record({ finalStep: fc.constant(true) });
const told = maybe(fc.oneof({ weight: 4, arbitrary: hints }, { weight: 1, arbitrary: final }));

const operation: fc.Arbitrary<Operation> = fc.oneof(
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('add worker' as const) }) },
  { weight: 8, arbitrary: fc.record({ kind: fc.constant('decide' as const) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('take directives' as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('remove worker' as const), which }) },
  { weight: 6, arbitrary: fc.record({ kind: fc.constantFrom('place', 'first token', 'cancel', 'stale'), which }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constantFrom('close', 'tool'), which }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('open' as const),
      which,
      graph: fc.boolean(),
      agentKind: maybe(fc.constantFrom('coder', 'reviewer')),
    }),
  },
  {
    weight: 14,
    arbitrary: fc.record({
      kind: fc.constant('submit' as const),
      which,
      tokens: fc.integer({ min: 1, max: 60 }),
      agent: maybe(fc.constantFrom('sub', 'other')),
      hints: told,
    }),
  },
  {
    weight: 12,
    arbitrary: fc.record({
      kind: fc.constant('finish' as const),
      which,
      outputTokens: fc.nat(40),
      hints: told,
      end: fc.boolean(),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constantFrom('stored', 'removed'), which, from: fc.nat(5), count: fc.nat(14) }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('load' as const),
      which,
      blocksInUse: fc.nat(20),
      waitingCalls: maybe(fc.nat(5)),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant('weight' as const), which, weight: fc.constantFrom(0.001, 0.5, 1, 3) }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('outcome' as const),
      which,
      outcome: fc.constantFrom('applied', 'refused', 'expired', 'revoked'),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant('wait' as const),
      microseconds: fc.constantFrom(1, 50_000, 1_000_000, 20_000_000, 5_000_000_000),
    }),
  },
);

/** They begin with something to work on. */
const start: readonly Operation[] = [
  { kind: 'add worker' },
  { kind: 'add worker' },
  { kind: 'open', which: 0, graph: true, agentKind: undefined },
  { kind: 'open', which: 1, graph: false, agentKind: 'coder' },
];
const runs = fc.array(operation, { minLength: 60, maxLength: 250, size: 'max' }).map((rest) => [...start, ...rest]);

const promptOf = (tokens: number): Uint32Array => Uint32Array.from({ length: tokens }, (_, i) => i);

interface ModelCall {
  call: Call;
  workflow: ModelWorkflow;
  state: 'waiting' | 'placed' | 'running';
  /** Of its placements so far, the newest last. Those that were lost before a decide gave them out are missing. */
  placements: number[];
}
interface ModelWorkflow {
  workflow: Workflow;
  openCalls: number;
  tool: boolean;
}

/** What the runs came across. */
const seen = new Set<Directive['type'] | PlacementReason | 'held'>();

/** A scheduler and what it should know. */
class Model {
  readonly scheduler: Scheduler;
  readonly journal: Uint8Array[] = [];
  private now = 1000;
  private readonly workers: { worker: Worker; active: boolean }[] = [];
  private workflows: ModelWorkflow[] = [];
  private readonly calls = new Map<Call, ModelCall>();
  private readonly names = new Set<string>();
  private readonly answerable: Directive[] = [];
  private readonly leases = new Set<number>();
  private readonly ids = new Set<number>();
  private readonly counts = { placedCalls: 0, finishedCalls: 0, cancelledCalls: 0 };
  /** A call that was granted a worker which is lost before a decide counts as well there. */
  private replacedCalls = 0;

  constructor(
    seed: number,
    without: 'eviction'[],
    private readonly blocks: number,
  ) {
    this.scheduler = new Scheduler({
      ...bounds,
      policy: 'saga',
      maxBlocks: 128,
      maxChainBlocks: 16,
      blockTokens: 4,
      without,
      seed,
      journalBytes: 2 ** 18,
      clock: () => this.now,
    });
  }

  private pick<T>(items: readonly T[], at: number): T | undefined {
    return items[at % Math.max(1, items.length)];
  }

  /** Does it, asserts that it ends in one of `expected`: `done` or the code of an error. Returns whether it was done. */
  private ends(expected: string | string[], action: () => unknown): boolean {
    let code = 'done';
    try {
      action();
    } catch (error) {
      code = (error as { code?: string }).code ?? String(error);
    }
    expect([expected].flat()).toContain(code);
    return code === 'done';
  }

  /** Takes note of what was placed. */
  private placed(calls: readonly Call[]): void {
    expect(new Set(calls).size).toBe(calls.length);
    for (const call of calls) {
      const one = this.calls.get(call) as ModelCall;
      expect(one.state).toBe('waiting');
      const { placement = -1 } = call.receipt ?? {};
      expect(placement).toBeGreaterThan(one.placements.at(-1) ?? -1);
      one.placements.push(placement);
      expect(this.workers.find(({ worker }) => worker === call.receipt?.worker)?.active).toBe(true);
      one.state = 'placed';
      ++this.counts.placedCalls;
    }
  }

  /** Calls that have a receipt now and had none before. */
  private newlyPlaced(): Call[] {
    return [...this.calls.values()]
      .filter(({ state, call }) => state === 'waiting' && call.receipt !== undefined)
      .map(({ call }) => call);
  }

  private takeDirectives(): void {
    for (const directive of this.scheduler.directives()) {
      seen.add(directive.type);
      expect(this.workers.some(({ worker }) => worker === directive.worker)).toBe(true);
      expect(directive.decidedAt).toBeLessThanOrEqual(this.now);
      if (directive.call !== undefined) expect(directive.call.id).toBe(directive.callId);
      switch (directive.type) {
        case 'copy':
          expect(directive.blocks).toBeGreaterThan(0);
          expect(directive.source === directive.worker).toBe(['prefetch', 'reload'].includes(directive.reason));
          break;
        case 'retain':
          expect(directive.until).toBeGreaterThan(0);
          this.leases.add(directive.id);
          break;
        case 'release':
          expect(this.leases.delete(directive.id)).toBe(true);
          break;
        case 'drop':
          break;
        case 'priority':
          expect(directive.call).toBeDefined();
          break;
      }
      if (directive.type !== 'copy' && directive.type !== 'retain') continue;
      expect(this.ids.has(directive.id)).toBe(false);
      this.ids.add(directive.id);
      this.answerable.push(directive);
    }
  }

  private end(one: ModelCall): void {
    this.calls.delete(one.call);
    --one.workflow.openCalls;
  }

  apply(step: Operation): void {
    const { scheduler } = this;
    switch (step.kind) {
      case 'wait':
        this.now += step.microseconds;
        return;
      case 'add worker': {
        const fits = this.workers.filter((one) => one.active).length < bounds.maxWorkers;
        let added: Worker | undefined;
        const add = (): unknown => (added = scheduler.addWorker({ blocks: this.blocks }));
        if (this.ends(fits ? 'done' : 'SAGA_ERR_FULL', add))
          this.workers.push({ worker: added as unknown as Worker, active: true });
        return;
      }
      case 'remove worker': {
        const one = this.pick(this.workers, step.which);
        if (one === undefined) return;
        if (!this.ends(one.active ? 'done' : 'SAGA_ERR_NOT_FOUND', () => one.worker.remove())) return;
        one.active = false;
        for (const call of this.calls.values()) {
          if (call.state === 'waiting' || call.call.receipt !== undefined) continue;
          call.state = 'waiting';
          ++this.replacedCalls;
        }
        return;
      }
      case 'load': {
        const one = this.pick(this.workers, step.which);
        if (one === undefined) return;
        const { blocksInUse, waitingCalls } = step;
        const load = waitingCalls === undefined ? { blocksInUse } : { blocksInUse, waitingCalls, freeBlocks: 3 };
        this.ends(one.active ? 'done' : 'SAGA_ERR_NOT_FOUND', () => one.worker.load(load));
        return;
      }
      case 'stored':
      case 'removed': {
        const one = this.pick(this.workers, step.which);
        if (one === undefined) return;
        const hashes = scheduler.hash(promptOf(4 * (step.from + step.count))).subarray(step.from);
        const action = (): void => (step.kind === 'stored' ? one.worker.stored(hashes) : one.worker.removed(hashes));
        this.ends(one.active ? ['done', 'SAGA_ERR_FULL'] : 'SAGA_ERR_NOT_FOUND', action);
        return;
      }
      case 'weight': {
        const name = tenants[step.which % tenants.length] as string;
        const fits = this.names.has(name) || this.names.size < bounds.maxTenants;
        if (this.ends(fits ? 'done' : 'SAGA_ERR_FULL', () => scheduler.tenant(name, { weight: step.weight })))
          this.names.add(name);
        return;
      }
      case 'open': {
        const tenant = tenants[step.which % tenants.length] as string;
        let workflow: Workflow | undefined;
        const options = {
          tenant,
          ...(step.graph ? { graph } : {}),
          ...(step.agentKind === undefined ? {} : { agentKind: step.agentKind }),
        };
        const fits =
          this.workflows.length < bounds.maxWorkflows &&
          (this.names.has(tenant) || this.names.size < bounds.maxTenants);
        if (!this.ends(fits ? 'done' : 'SAGA_ERR_FULL', () => (workflow = scheduler.openWorkflow(options)))) return;
        this.names.add(tenant);
        this.workflows.push({ workflow: workflow as Workflow, openCalls: 0, tool: false });
        return;
      }
      case 'close': {
        const one = this.pick(this.workflows, step.which);
        if (one === undefined) return;
        if (this.ends(one.openCalls === 0 ? 'done' : 'SAGA_ERR_WRONG_STATE', () => one.workflow.close()))
          this.workflows = this.workflows.filter((other) => other !== one);
        return;
      }
      case 'tool': {
        const one = this.pick(this.workflows, step.which);
        if (one === undefined) return;
        if (one.tool) one.workflow.toolFinished();
        else one.workflow.toolStarted({ tool: 'web-api' });
        one.tool = !one.tool;
        return;
      }
      case 'submit': {
        const one = this.pick(this.workflows, step.which);
        if (one === undefined) return;
        let call: Call | undefined;
        const prompt = promptOf(step.tokens);
        const wrong = step.hints?.stepKind !== undefined && one.workflow.graph === undefined;
        const options = {
          ...(step.agent === undefined ? {} : { agent: step.agent }),
          ...(step.hints === undefined ? {} : { hints: step.hints }),
        };
        const expected = wrong
          ? 'SAGA_ERR_INVALID_ARGUMENT'
          : this.calls.size < bounds.maxCalls
            ? ['done', 'SAGA_ERR_FULL'] // threads may be used up
            : 'SAGA_ERR_FULL';
        if (!this.ends(expected, () => (call = one.workflow.submit(prompt, options)))) return;
        const made = call as Call;
        this.calls.set(made, { call: made, workflow: one, state: 'waiting', placements: [] });
        ++one.openCalls;
        return;
      }
      case 'decide':
        this.placed(scheduler.decide());
        return;
      case 'take directives':
        this.takeDirectives();
        return;
      case 'outcome': {
        const directive = this.pick(this.answerable, step.which);
        if (directive?.type === 'copy' && step.outcome !== 'revoked') {
          // Whatever was said of a copy ends it.
          directive[step.outcome]();
          expect(directive.applied()).toBe(false);
        } else if (directive?.type === 'retain') {
          const holds = directive[step.outcome]() && step.outcome === 'applied';
          if (step.outcome !== 'applied') {
            expect(directive.applied()).toBe(false);
          }
          if (!holds && step.outcome !== 'applied') this.answerable.splice(this.answerable.indexOf(directive), 1);
        }
        return;
      }
      default:
        this.applyToCall(step);
    }
  }

  private applyToCall(step: CallOperation): void {
    const one = this.pick([...this.calls.values()], step.which);
    if (one === undefined) return;
    const { call } = one;
    const waiting = one.state === 'waiting';
    switch (step.kind) {
      case 'place': {
        const active = this.workers.some((worker) => worker.active);
        const expected = waiting ? (active ? ['done', 'SAGA_ERR_HELD'] : 'SAGA_ERR_NO_WORKER') : 'done';
        const done = this.ends(expected, () => call.place());
        expect(done).toBe(call.receipt !== undefined);
        if (active && !done) seen.add('held');
        this.placed(this.newlyPlaced());
        return;
      }
      case 'first token':
        if (this.ends(one.state === 'placed' ? 'done' : 'SAGA_ERR_WRONG_STATE', () => call.firstToken()))
          one.state = 'running';
        // Then the worker holds its prompt.
        if (one.state === 'running')
          this.ends(['done', 'SAGA_ERR_FULL', 'SAGA_ERR_NOT_FOUND'], () =>
            call.receipt?.worker.stored(this.scheduler.hash(promptOf(call.promptTokens))),
          );
        return;
      case 'stale': {
        const placement = one.placements.at(waiting ? -1 : -2);
        if (placement === undefined) return;
        this.ends('SAGA_ERR_WRONG_STATE', () => call.finish({ placement }));
        this.ends('SAGA_ERR_WRONG_STATE', () => call.firstToken({ placement }));
        return;
      }
      case 'finish': {
        const { outputTokens } = step;
        const wrong = step.hints?.stepKind !== undefined && one.workflow.workflow.graph === undefined;
        const expected = wrong ? 'SAGA_ERR_INVALID_ARGUMENT' : waiting ? 'SAGA_ERR_WRONG_STATE' : 'done';
        const stop = step.end ? 'end-turn' : 'tool-use';
        const answer = step.hints === undefined ? {} : { hints: step.hints, placement: one.placements.at(-1) ?? 0 };
        if (waiting && step.hints !== undefined) return;
        if (!this.ends(expected, () => call.finish({ stop, outputTokens, ...answer }))) return;
        this.end(one);
        ++this.counts.finishedCalls;
        return;
      }
      case 'cancel':
        call.cancel();
        this.end(one);
        ++this.counts.cancelledCalls;
        return;
    }
  }

  check(): void {
    const { scheduler } = this;
    expect(scheduler.verify()).toBe(true);
    const waiting = [...this.calls.values()].filter((one) => one.state === 'waiting').length;
    const stats = scheduler.stats();
    expect(stats).toMatchObject({
      ...this.counts,
      workers: this.workers.filter((one) => one.active).length,
      workflows: this.workflows.length,
      openCalls: this.calls.size,
      waitingCalls: waiting,
    });
    expect(stats.replacedCalls).toBeGreaterThanOrEqual(this.replacedCalls);
    expect(stats.saga?.queuedCalls).toBeLessThanOrEqual(waiting);
    for (const { call, state } of this.calls.values()) {
      expect(call.receipt === undefined).toBe(state === 'waiting');
      if (state === 'waiting') continue;
      const why = scheduler.explain(call);
      expect([why?.worker, why?.reason]).toEqual([call.receipt?.worker, call.receipt?.reason]);
      if (why !== undefined) seen.add(why.reason);
      expect(why?.saga?.price.total).toBeGreaterThanOrEqual(0);
    }
    expect(scheduler.tenants().map(({ name }) => name)).toEqual([...this.names]);
    this.journal.push(scheduler.readJournal());
  }

  /** With a worker there and time enough every call is placed: nothing waits for ever. */
  finishAll(): void {
    const { scheduler } = this;
    if (!this.workers.some((one) => one.active)) return;
    for (let round = 0; this.calls.size > 0; ++round) {
      expect(round).toBeLessThan(200);
      this.placed(scheduler.decide());
      this.takeDirectives();
      this.journal.push(scheduler.readJournal());
      for (const one of [...this.calls.values()]) {
        if (one.state === 'waiting') continue;
        one.call.finish({ stop: 'end-turn' });
        this.end(one);
        ++this.counts.finishedCalls;
      }
      this.check();
      // An agent that is away may come back: the room that it holds is given up after some minutes.
      this.now = Math.max(this.now + 60_000_000, scheduler.nextWake ?? 0);
    }
    for (const { workflow } of this.workflows) workflow.close();
    this.workflows = [];
    this.placed(scheduler.decide());
    this.check();
    expect(scheduler.stats().saga).toMatchObject({ threads: 0, queuedCalls: 0 });
  }
}

describe('the policy saga', () => {
  it('loses nothing and starves nobody, whatever comes, and the journal rebuilds it', () => {
    let placed = 0;
    fc.assert(
      fc.property(runs, fc.boolean(), fc.constantFrom(30, 400), (operations, leases, blocks) => {
        const [model, twin] = [1, 1].map((seed) => new Model(seed, leases ? ['eviction'] : [], blocks)) as [
          Model,
          Model,
        ];
        for (const one of [model, twin]) {
          for (const step of operations) {
            one.apply(step);
            one.check();
          }
          one.finishAll();
        }
        const digest = model.scheduler.digest();
        expect(twin.scheduler.digest()).toBe(digest);
        expect(Scheduler.replay(Buffer.concat(model.journal)).digest).toBe(digest);
        placed += model.scheduler.stats().placedCalls;
        for (const { scheduler } of [model, twin]) scheduler.close();
      }),
      { numRuns: 30, seed: 20 },
    );
    // Preemptions need more urgency than these runs have, and little makes it worth computing a prompt again.
    expect(placed).toBeGreaterThan(300);
    for (const what of ['copy', 'drop', 'held', 'holder', 'new', 'pull', 'release', 'retain'] as const)
      expect(seen).toContain(what);
  });
});
