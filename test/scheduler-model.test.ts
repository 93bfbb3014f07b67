/**
 * Random operations on the scheduler against a model of open calls and of who comes next in a round robin. After each operation
 * every count must be the model's and `verify()` true; a second scheduler that sees the same events, and one rebuilt from the
 * journal, must end in the same state.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Scheduler, type Call, type Worker, type Workflow } from '../src/index.js';

type Operation =
  | { kind: 'add worker' | 'open' | 'decide' }
  | { kind: 'remove worker' | 'close' | 'place' | 'first token' | 'finish' | 'cancel'; which: number }
  | { kind: 'submit'; which: number; tokens: number }
  | { kind: 'stored' | 'removed'; which: number; from: number; count: number };

const bounds = { maxWorkers: 6, maxWorkflows: 3, maxCalls: 12 } as const;

const which = fc.nat(1000);
const operation: fc.Arbitrary<Operation> = fc.oneof(
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('add worker' as const) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('open' as const) }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('decide' as const) }) },
  {
    weight: 12,
    arbitrary: fc.record({
      kind: fc.constantFrom('close', 'place', 'first token', 'finish', 'cancel'),
      which,
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('remove worker' as const), which }) },
  {
    weight: 10,
    arbitrary: fc.record({ kind: fc.constant('submit' as const), which, tokens: fc.integer({ min: 1, max: 40 }) }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constantFrom('stored', 'removed'),
      which,
      from: fc.nat(5),
      count: fc.nat(8),
    }),
  },
);

interface ModelCall {
  call: Call;
  workflow: ModelWorkflow;
  state: 'waiting' | 'placed' | 'running';
  worker: number | undefined;
}
interface ModelWorkflow {
  workflow: Workflow;
  openCalls: number;
}

/** A scheduler and what it should know. */
class Model {
  readonly scheduler: Scheduler;
  private now = 0;
  /** By id. */
  private readonly workers: { worker: Worker; active: boolean }[] = [];
  private readonly removedIds: number[] = [];
  private workflows: ModelWorkflow[] = [];
  /** Open calls in order of submission. */
  private calls: ModelCall[] = [];
  private next = 0;
  private readonly counts = { placedCalls: 0, finishedCalls: 0, cancelledCalls: 0, replacedCalls: 0 };
  readonly journal: Uint8Array[] = [];

  constructor(seed: number) {
    this.scheduler = new Scheduler({
      ...bounds,
      maxBlocks: 64,
      maxChainBlocks: 16,
      blockTokens: 4,
      policy: 'round-robin',
      seed,
      journalBytes: 2 ** 16,
      clock: () => ++this.now,
    });
  }

  private pick<T>(items: readonly T[], at: number): T | undefined {
    return items[at % Math.max(1, items.length)];
  }

  /** Does it, asserts that it ends in `expected`: `done` or the code of an error. Returns whether it was done. */
  private ends(expected: string, action: () => unknown): boolean {
    let code = 'done';
    try {
      action();
    } catch (error) {
      code = (error as { code: string }).code;
    }
    expect(code).toBe(expected);
    return code === 'done';
  }

  /** What a decide places: every waiting call, in order, each on the next active worker. */
  private placeAll(): Call[] {
    const waiting = this.calls.filter((one) => one.state === 'waiting');
    if (!this.workers.some((one) => one.active)) return [];
    for (const one of waiting) {
      while (this.workers[this.next]?.active !== true) this.next = (this.next + 1) % this.workers.length;
      one.worker = this.next;
      one.state = 'placed';
      this.next = (this.next + 1) % this.workers.length;
      ++this.counts.placedCalls;
    }
    return waiting.map((one) => one.call);
  }

  private end(one: ModelCall): void {
    this.calls = this.calls.filter((other) => other !== one);
    --one.workflow.openCalls;
  }

  apply(step: Operation): void {
    const { scheduler } = this;
    switch (step.kind) {
      case 'add worker': {
        const fits = this.workers.filter((one) => one.active).length < bounds.maxWorkers;
        if (!this.ends(fits ? 'done' : 'SAGA_ERR_FULL', () => scheduler.addWorker({ blocks: 10 }))) return;
        const fresh = this.workers.length < bounds.maxWorkers;
        const id = fresh ? this.workers.length : (this.removedIds.shift() as number);
        this.workers[id] = { worker: scheduler.worker(id) as Worker, active: true };
        return;
      }
      case 'remove worker': {
        const one = this.pick(this.workers, step.which);
        if (one === undefined) return;
        if (!this.ends(one.active ? 'done' : 'SAGA_ERR_NOT_FOUND', () => one.worker.remove())) return;
        one.active = false;
        this.removedIds.push(one.worker.id);
        for (const call of this.calls.filter((other) => other.worker === one.worker.id)) {
          Object.assign(call, { state: 'waiting', worker: undefined });
          ++this.counts.replacedCalls;
        }
        return;
      }
      case 'stored':
      case 'removed': {
        const one = this.pick(this.workers, step.which);
        if (one === undefined) return;
        const hashes = BigUint64Array.from({ length: step.count }, (_, i) => BigInt(step.from + i + 1));
        const action = (): void => (step.kind === 'stored' ? one.worker.stored(hashes) : one.worker.removed(hashes));
        this.ends(one.active ? 'done' : 'SAGA_ERR_NOT_FOUND', action);
        return;
      }
      case 'open': {
        let workflow: Workflow | undefined;
        const fits = this.workflows.length < bounds.maxWorkflows;
        if (this.ends(fits ? 'done' : 'SAGA_ERR_FULL', () => (workflow = scheduler.openWorkflow())))
          this.workflows.push({ workflow: workflow as Workflow, openCalls: 0 });
        return;
      }
      case 'close': {
        const one = this.pick(this.workflows, step.which);
        if (one === undefined) return;
        if (this.ends(one.openCalls === 0 ? 'done' : 'SAGA_ERR_WRONG_STATE', () => one.workflow.close()))
          this.workflows = this.workflows.filter((other) => other !== one);
        return;
      }
      case 'submit': {
        const one = this.pick(this.workflows, step.which);
        if (one === undefined) return;
        let call: Call | undefined;
        const prompt = Uint32Array.from({ length: step.tokens }, (_, i) => i);
        const fits = this.calls.length < bounds.maxCalls;
        if (!this.ends(fits ? 'done' : 'SAGA_ERR_FULL', () => (call = one.workflow.submit(prompt)))) return;
        this.calls.push({ call: call as Call, workflow: one, state: 'waiting', worker: undefined });
        ++one.openCalls;
        return;
      }
      case 'decide':
        expect(scheduler.decide().map((call) => call.id)).toEqual(this.placeAll().map((call) => call.id));
        return;
      default:
        this.applyToCall(step.kind, step.which);
    }
  }

  private applyToCall(kind: 'place' | 'first token' | 'finish' | 'cancel', at: number): void {
    const one = this.pick(this.calls, at);
    if (one === undefined) return;
    switch (kind) {
      case 'place': {
        if (one.state === 'waiting') this.placeAll();
        this.ends(one.worker === undefined ? 'SAGA_ERR_NO_WORKER' : 'done', () => one.call.place());
        return;
      }
      case 'first token':
        if (this.ends(one.state === 'placed' ? 'done' : 'SAGA_ERR_WRONG_STATE', () => one.call.firstToken()))
          one.state = 'running';
        return;
      case 'finish':
        if (!this.ends(one.state === 'waiting' ? 'SAGA_ERR_WRONG_STATE' : 'done', () => one.call.finish())) return;
        this.end(one);
        ++this.counts.finishedCalls;
        return;
      case 'cancel':
        one.call.cancel();
        this.end(one);
        ++this.counts.cancelledCalls;
        return;
    }
  }

  check(): void {
    const { scheduler } = this;
    expect(scheduler.verify()).toBe(true);
    expect(scheduler.stats()).toMatchObject({
      ...this.counts,
      workers: this.workers.filter((one) => one.active).length,
      workflows: this.workflows.length,
      openCalls: this.calls.length,
      waitingCalls: this.calls.filter((one) => one.state === 'waiting').length,
    });
    for (const { call, worker } of this.calls) expect(call.receipt?.worker.id).toBe(worker);
    this.workers.forEach(({ worker, active }, id) => {
      const openCalls = this.calls.filter((one) => one.worker === id).length;
      expect(worker.state()).toMatchObject({ active, openCalls, blocks: 10 });
    });
    this.journal.push(scheduler.readJournal());
  }
}

describe('the scheduler', () => {
  it('does what the model does, whatever comes', () => {
    fc.assert(
      fc.property(fc.array(operation, { minLength: 20, maxLength: 120 }), (operations) => {
        const [model, twin, other] = [new Model(1), new Model(1), new Model(2)];
        for (const step of operations) {
          model.apply(step);
          model.check();
        }
        for (const step of operations) {
          twin.apply(step);
          other.apply(step);
        }
        const digest = model.scheduler.digest();
        expect(twin.scheduler.digest()).toBe(digest);
        expect(other.scheduler.digest()).not.toBe(digest);
        expect(Scheduler.replay(Buffer.concat(model.journal)).digest).toBe(digest);
        for (const { scheduler } of [model, twin, other]) scheduler.close();
      }),
      { numRuns: 150, seed: 20 },
    );
  });
});
