/** The policy saga through the API: explanations, held calls, directives and their outcomes, tenants, what is told, figures. */
import { describe, expect, it } from 'vitest';
import { AgentGraph, type CallHints } from '../src/graph/index.js';
import {
  SagaArgumentError,
  SagaCapacityError,
  SagaError,
  SagaStateError,
  Scheduler,
  jainIndex,
  type Call,
  type SchedulerOptions,
  type Worker,
} from '../src/index.js';
import { DirectiveQueue, decisionWords } from '../src/scheduler/directive.js';

const tokens = (count: number, first = 0): Uint32Array => Uint32Array.from({ length: count }, (_, i) => first + i);

const graph = AgentGraph.define({
  expectedSeconds: 30,
  steps: { plan: { outputTokens: 30, next: 'act' }, act: { tool: 'web-api', next: { act: 0.6 } } },
});

/** A scheduler whose time is set by hand. */
class Bench {
  now = 0;
  readonly scheduler: Scheduler;
  readonly workers: Worker[];

  constructor(workers: number, blocks: number, options: SchedulerOptions = {}) {
    this.scheduler = new Scheduler({ policy: 'saga', clock: () => this.now, ...options });
    this.workers = Array.from({ length: workers }, () => this.scheduler.addWorker({ blocks }));
  }

  /** A call runs for some seconds on its worker, which then holds its prompt. */
  run(call: Call, prompt: Uint32Array, seconds: number): void {
    call.place();
    call.firstToken();
    call.receipt?.worker.stored(this.scheduler.hash(prompt));
    this.now += seconds * 1e6;
    call.finish({ stop: 'tool-use', tool: 'web-api', outputTokens: 100 });
    this.scheduler.decide();
  }
}

function errorOf(action: () => unknown): SagaError {
  try {
    action();
  } catch (error) {
    if (error instanceof SagaError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('an explanation', () => {
  it('tells of a call that comes back to the worker that has its blocks', () => {
    const bench = new Bench(2, 10_000);
    const { scheduler } = bench;
    const workflow = scheduler.openWorkflow();
    const prompt = tokens(16_000);
    const first = workflow.submit(prompt);
    bench.run(first, prompt, 5);
    expect(scheduler.explain(first)).toMatchObject({ reason: 'new', matchedBlocks: 0, promptBlocks: 1000 });

    bench.now += 1_000_000;
    const second = workflow.submit(tokens(16_800));
    const granted = scheduler.explain(second); // before it is read by a decide
    const receipt = second.place();
    expect(receipt).toMatchObject({ reason: 'holder', promptBlocks: 1050, placement: 0, decidedAt: 6_000_000 });
    expect(receipt.worker).toBe(first.receipt?.worker);
    const why = scheduler.explain(second);
    expect(why).toEqual(granted);
    expect(why).toMatchObject({ reason: 'holder', matchedBlocks: 1000, promptBlocks: 1050 });
    expect(why?.worker).toBe(receipt.worker);
    expect(why?.saga).toMatchObject({ submittedAt: 6_000_000, grantedAt: 6_000_000, queued: 0, source: undefined });
    expect(why?.saga?.holder).toBe(receipt.worker);
    const { total, ...terms } = why?.saga?.price ?? { total: NaN };
    expect(Object.keys(terms)).toEqual(['wait', 'prefill', 'transfer', 'decode', 'interference', 'displacement']);
    expect(total).toBeCloseTo(
      Object.values(terms).reduce((sum, term) => sum + term, 0),
      12,
    );
    // 50 blocks are missing, not 1,050: 800 tokens of 0.178 ms, and attention over the 16,000 before them.
    expect(why?.saga?.price.prefill).toBeCloseTo(0.1424 + 800 * 16_400 * 4.7e-9, 1);
    expect(why?.text).toMatch(
      /^Call \d+ goes to worker \d \(holder; 1000 of 1050 blocks there\): \d\.\d{3} s = prefill 0\.\d{3} \+ decode \d\.\d{3}/,
    );
  });

  it('speaks of workers that are gone as themselves, or not at all', () => {
    const bench = new Bench(1, 10_000, { maxWorkers: 1 });
    const { scheduler } = bench;
    const gone = bench.workers[0] as Worker;
    const prompt = tokens(16_000);
    const workflow = scheduler.openWorkflow();
    const first = workflow.submit(prompt);
    bench.run(first, prompt, 5);
    const second = workflow.submit(prompt);
    expect(second.place().worker).toBe(gone);
    second.finish();
    const lost = workflow.submit(prompt);
    lost.place();
    gone.remove();
    expect(scheduler.explain(lost)?.worker).toBe(gone);
    const next = scheduler.addWorker({ blocks: 10_000 });
    expect(next.id).toBe(0);
    expect(scheduler.explain(second)).toMatchObject({ reason: 'holder', matchedBlocks: 1000 });
    expect(scheduler.explain(second)?.worker).toBe(gone);
    expect(scheduler.explain(second)?.saga?.holder).toBe(gone);
    // It is granted the new one, and then placed there.
    expect(scheduler.explain(lost)?.worker).toBe(next);
    expect(lost.place().worker).toBe(next);
    expect(scheduler.explain(lost)?.saga?.holder).toBeUndefined();

    next.remove();
    lost.cancel();
    expect([lost.receipt, scheduler.explain(lost)?.worker]).toEqual([undefined, next]);
    expect(scheduler.addWorker({ blocks: 1 }).id).toBe(0);
    expect(scheduler.explain(lost)).toBeUndefined();
  });

  it('is forgotten when newer ones have taken its place, and stays when the call has ended', () => {
    const bench = new Bench(1, 10_000, { maxReceipts: 1 });
    const { scheduler } = bench;
    const calls = [1, 2].map((agent) => scheduler.openWorkflow().submit(tokens(64), { agent: String(agent) }));
    scheduler.decide();
    expect(calls.map((call) => scheduler.explain(call)?.reason)).toEqual([undefined, 'new']);
    calls[1]?.finish();
    expect(scheduler.explain(calls[1] as Call)?.reason).toBe('new');
  });

  it('of the other policies is the receipt in words', () => {
    const scheduler = new Scheduler({ policy: 'affinity', clock: () => 0 });
    const worker = scheduler.addWorker({ blocks: 100 });
    worker.stored(scheduler.hash(tokens(32)));
    const call = scheduler.openWorkflow().submit(tokens(48));
    expect(scheduler.explain(call)).toBeUndefined();
    call.place();
    expect(scheduler.explain(call)).toEqual({
      text:
        'Call 0 goes to worker 0 (longest-match; 2 of 3 blocks there). Longest match 2 blocks, on worker 0; ' +
        '0 calls open and 0 blocks in use there; 1 workers to choose from.',
      worker,
      reason: 'longest-match',
      matchedBlocks: 2,
      promptBlocks: 3,
      saga: undefined,
    });
  });
});

describe('a worker', () => {
  it('that is trusted less loses to one that computes the prompt again', () => {
    const bench = new Bench(1, 10_000, { linkBytesPerSecond: 1 }); // nothing is ever copied
    const { scheduler } = bench;
    const holder = bench.workers[0] as Worker;
    scheduler.openWorkflow().submit(tokens(800, 90_000)).place();
    const other = scheduler.addWorker({ blocks: 10_000 });
    holder.stored(scheduler.hash(tokens(4800)));
    holder.trust(0.9);
    const near = scheduler.openWorkflow().submit(tokens(4800));
    expect(near.place().worker).toBe(holder);
    const why = scheduler.explain(near);
    expect(why).toMatchObject({ reason: 'holder', matchedBlocks: 300, saga: { trust: 0.9 } });
    expect(why?.text).toContain('Its match counts as 270 blocks');
    near.cancel();
    holder.trust(0.05);
    const far = scheduler.openWorkflow().submit(tokens(4800));
    expect(far.place()).toMatchObject({ worker: other, longestMatch: { blocks: 300, worker: 0 } });
    expect(scheduler.explain(far)).toMatchObject({ reason: 'recompute', saga: { trust: 1 } });
  });

  it('that is drained gives back what it was not told of, and its paused agents move', () => {
    const bench = new Bench(2, 10_000);
    const { scheduler } = bench;
    const workflow = scheduler.openWorkflow();
    bench.run(workflow.submit(tokens(6400)), tokens(6400), 1);
    const [from, to] = bench.workers as [Worker, Worker];
    from.drain();
    scheduler.decide();
    const [copy] = [...scheduler.directives()].filter(({ type }) => type === 'copy');
    expect(copy).toMatchObject({ type: 'copy', reason: 'migrate', source: from, worker: to });
    to.stored(scheduler.hash(tokens(6400)));
    const next = workflow.submit(tokens(6500));
    bench.now += 1e6;
    scheduler.decide();
    expect(next.receipt?.worker).toBe(to);

    const granted = scheduler.openWorkflow().submit(tokens(100, 70_000));
    to.drain();
    expect(scheduler.decide()).toEqual([]);
    expect(granted.receipt).toBeUndefined();
    from.resume();
    expect(scheduler.decide()).toEqual([granted]);
    expect(granted.receipt?.worker).toBe(from);
    expect(scheduler.verify()).toBe(true);
  });
});

describe('a call that is held', () => {
  it('says so, says when to decide again, and is placed once there is room', () => {
    const bench = new Bench(1, 1000);
    const { scheduler } = bench;
    const first = scheduler.openWorkflow().submit(tokens(12_000));
    const second = scheduler.openWorkflow().submit(tokens(12_000, 50_000));
    expect(scheduler.decide()).toEqual([first]);
    const error = errorOf(() => second.place());
    expect(error).toBeInstanceOf(SagaStateError);
    expect([error.code, error.message]).toEqual([
      'SAGA_ERR_HELD',
      expect.stringMatching(
        /^call \d+ is held back until there is room or its blocks are there: decide again (at \d+ or )?after the next event$/,
      ),
    ]);
    expect(scheduler.stats()).toMatchObject({ waitingCalls: 1, saga: { queuedCalls: 1, queued: 1 } });
    expect(scheduler.explain(second)).toBeUndefined();

    bench.now = 5_000_000;
    first.finish({ stop: 'end-turn', hints: { finalStep: true } });
    first.workflow.close();
    expect(scheduler.decide()).toEqual([second]);
    expect(scheduler.explain(second)?.saga).toMatchObject({ submittedAt: 0, queued: 5_000_000, grantedAt: 5_000_000 });
    expect(scheduler.explain(second)?.text).toMatch(/\. It waited 5\.000 s in the queue\.$/);
    expect(scheduler.stats().saga).toMatchObject({ queuedCalls: 0, queued: 1, grants: 2 });
  });

  it('is another thing than a call without a worker', () => {
    const { scheduler } = new Bench(0, 0);
    const call = scheduler.openWorkflow().submit(tokens(4));
    expect(errorOf(() => call.place()).code).toBe('SAGA_ERR_NO_WORKER');
    scheduler.addWorker({ blocks: 100 });
    expect(call.place().reason).toBe('new');
  });
});

describe('a call that has ended', () => {
  it('keeps its receipt, also when its worker is lost, and can do nothing more', () => {
    const { scheduler, workers } = new Bench(1, 1000);
    const workflow = scheduler.openWorkflow();
    const cancelled = workflow.submit(tokens(64));
    cancelled.cancel();
    const finished = workflow.submit(tokens(64));
    const receipt = finished.place();
    finished.finish();
    workers[0]?.remove();
    expect(finished.receipt).toBe(receipt);
    for (const call of [cancelled, finished]) {
      for (const action of [() => call.place(), () => call.firstToken(), () => call.finish(), () => call.cancel()])
        expect(errorOf(action).code).toBe('SAGA_ERR_NOT_FOUND');
    }
  });
});

describe('the next wake', () => {
  it('is none where nothing happens, and a time not in the past while an agent is away', () => {
    const bench = new Bench(1, 10_000);
    const { scheduler } = bench;
    expect(scheduler.nextWake).toBeUndefined();
    const prompt = tokens(1600);
    bench.run(scheduler.openWorkflow().submit(prompt), prompt, 2);
    const wake = scheduler.nextWake as number;
    expect(wake).toBeGreaterThan(bench.now);
    bench.now = wake;
    scheduler.decide();
    expect(scheduler.nextWake ?? Infinity).toBeGreaterThan(wake);
    expect(new Scheduler({ policy: 'affinity' }).nextWake).toBeUndefined();
  });
});

describe('directives', () => {
  function leased(): Bench & { call: Call } {
    const bench = new Bench(1, 10_000, { without: ['eviction'], maxWorkers: 1 });
    const prompt = tokens(16_000);
    const call = bench.scheduler.openWorkflow().submit(prompt);
    bench.run(call, prompt, 5);
    return Object.assign(bench, { call });
  }

  it('of a lease name the call that has ended, its blocks and a deadline, and take each outcome once', () => {
    const { scheduler, call, workers, now } = leased();
    const [lease, ...more] = scheduler.directives();
    expect(more).toEqual([]);
    if (lease?.type !== 'retain') throw new Error(`expected a lease, got ${lease?.type}`);
    expect([lease.call, lease.callId, lease.worker]).toEqual([call, call.id, workers[0]]);
    expect(lease.blocks).toBe(1006); // 16,100 tokens, the answer included
    expect(lease.decidedAt).toBe(now);
    expect(lease.until).toBeGreaterThan(now);
    expect(scheduler.directives()).toEqual([]);
    expect(workers[0]?.forecast().leasedBlocks).toBe(1006);

    expect(lease.applied()).toBe(true);
    expect(lease.revoked()).toBe(true);
    expect([lease.revoked(), lease.expired(), lease.refused(), lease.applied()]).toEqual([false, false, false, false]);
    expect(scheduler.stats().saga?.leases).toMatchObject({ granted: 1, revoked: 1, expired: 0, released: 0 });
    expect(workers[0]?.forecast().leasedBlocks).toBe(0);
  });

  it('release a lease when its agent comes back', () => {
    const bench = leased();
    const { scheduler, call } = bench;
    const [lease] = scheduler.directives();
    bench.now += 1_000_000;
    call.workflow.submit(tokens(16_100)).place();
    const released = scheduler.directives().filter((one) => one.type === 'release');
    expect(released.map(({ id, worker }) => [id, worker])).toEqual([
      [lease?.type === 'retain' && lease.id, bench.workers[0]],
    ]);
    expect(scheduler.stats().saga?.leases).toMatchObject({ granted: 1, released: 1 });
  });

  it('of a worker that is gone are not of the one that has its id', () => {
    const bench = leased();
    const { scheduler, workers } = bench;
    const gone = workers[0] as Worker;
    // Decided and handed over, but not taken yet.
    gone.remove();
    const next = scheduler.addWorker({ blocks: 10_000 });
    expect([next.id, next === gone, scheduler.worker(0)]).toEqual([0, false, next]);
    const [lease, ...more] = scheduler.directives();
    if (lease?.type !== 'retain') throw new Error(`expected a lease, got ${lease?.type}`);
    expect(more).toEqual([]);
    expect(lease.worker).toBe(gone);
    expect([lease.applied(), lease.revoked()]).toEqual([false, false]);
    expect(next.forecast().leasedBlocks).toBe(0);
    expect(errorOf(() => gone.forecast()).code).toBe('SAGA_ERR_NOT_FOUND');
    expect(scheduler.stats().saga?.leases).toMatchObject({ granted: 1, revoked: 1 });
    expect(scheduler.verify()).toBe(true);
  });

  it('that refuse an outcome say which', () => {
    const { scheduler } = leased();
    const [lease] = scheduler.directives();
    scheduler.close();
    expect(errorOf(() => lease?.type === 'retain' && lease.applied()).code).toBe('SAGA_ERR_CLOSED');
  });

  it('are none with the other policies', () => {
    const scheduler = new Scheduler({ policy: 'round-robin' });
    scheduler.addWorker({ blocks: 1 });
    scheduler.openWorkflow().submit(tokens(4)).place();
    expect(scheduler.directives()).toEqual([]);
  });
});

describe('the ring of directives', () => {
  const { scheduler, workers } = new Bench(3, 100);
  /** The words of a decision. */
  function words(type: number, fill: Readonly<Record<number, number>>): Uint32Array {
    const made = new Uint32Array(decisionWords);
    made[0] = type;
    for (const [at, value] of Object.entries(fill)) made[Number(at)] = value;
    return made;
  }

  it('gives each type its class, with numbers of 64 bits', () => {
    const queue = new DirectiveQueue(8);
    queue.push(words(2, { 1: 2, 2: 7, 4: 1, 5: 33, 6: 1, 8: 5, 9: 2, 12: 9, 13: 1, 14: 3 }), 0, undefined, workers);
    queue.push(words(3, { 1: 0, 5: 4, 8: 6, 10: 1, 11: 1, 12: 0xffffffff, 13: 0xffffffff }), 0, undefined, workers);
    queue.push(words(4, { 1: 1, 8: 6 }), 0, undefined, workers);
    queue.push(words(5, { 1: 1, 2: 3, 3: 1 }), 0, undefined, workers);
    queue.push(words(6, { 1: 1, 7: 0xfffffffe }), 0, undefined, workers);
    const [copy, retain, release, drop, priority] = queue.take(scheduler);
    expect(copy).toMatchObject({
      type: 'copy',
      callId: 7,
      reason: 'migrate',
      blocks: 33,
      id: 5 + 2 * 2 ** 32,
      until: 9 + 2 ** 32,
      decidedAt: 3,
    });
    expect([copy?.worker, copy?.type === 'copy' && copy.source]).toEqual([workers[2], workers[1]]);
    expect(retain).toMatchObject({ type: 'retain', blocks: 4, id: 6, value: 1 + 2 ** 32, until: Infinity });
    expect(release).toMatchObject({ type: 'release', id: 6 });
    expect(drop).toMatchObject({ type: 'drop', callId: 3 + 2 ** 32 });
    expect(priority).toMatchObject({ type: 'priority', priority: -2 });
    expect(queue.take(scheduler)).toEqual([]);
  });

  it('loses the oldest where it is full, keeps the order around its end, and counts', () => {
    const queue = new DirectiveQueue(3);
    const push = (id: number): void => queue.push(words(4, { 8: id }), 0, undefined, workers);
    const ids = (): number[] => queue.take(scheduler).map((one) => (one.type === 'release' ? one.id : NaN));
    [1, 2].forEach(push);
    expect(ids()).toEqual([1, 2]);
    [3, 4, 5].forEach(push);
    expect([ids(), queue.lost]).toEqual([[3, 4, 5], 0]);
    [6, 7, 8, 9, 10].forEach(push);
    expect([ids(), queue.lost, ids()]).toEqual([[8, 9, 10], 2, []]);
  });
});

describe('tenants', () => {
  it('come in the order in which they first appear, with their weights', () => {
    const { scheduler } = new Bench(1, 10_000, { maxTenants: 3 });
    expect(scheduler.tenants()).toEqual([]);
    expect(scheduler.tenant('b', { weight: 3 })).toEqual({
      name: 'b',
      weight: 3,
      waiting: 0,
      served: 0,
      lag: 0,
      credit: 0,
      share: 0,
    });
    scheduler.openWorkflow({ tenant: 'a' });
    scheduler.openWorkflow();
    expect(scheduler.tenants().map(({ name, weight }) => [name, weight])).toEqual([
      ['b', 3],
      ['a', 1],
      ['', 1],
    ]);
    expect(scheduler.tenant('a', { weight: 1 / 3 }).weight).toBe(1 / 3);
    expect(scheduler.tenant('a').weight).toBe(1 / 3);

    const before = scheduler.digest();
    for (const action of [() => scheduler.tenant('c', { weight: 1 }), () => scheduler.openWorkflow({ tenant: 'c' })]) {
      const error = errorOf(action);
      expect(error).toBeInstanceOf(SagaCapacityError);
      expect([error.code, error.message]).toEqual(['SAGA_ERR_FULL', 'a scheduler knows at most 3 tenant names']);
    }
    expect(errorOf(() => scheduler.tenant('c')).code).toBe('SAGA_ERR_FULL');
    expect(scheduler.digest()).toBe(before);
  });

  it('that are not known are not made by asking', () => {
    const { scheduler } = new Bench(1, 100);
    const error = errorOf(() => scheduler.tenant('nobody'));
    expect([error.code, error.message]).toEqual(['SAGA_ERR_NOT_FOUND', 'no tenant "nobody" is known']);
    expect(scheduler.tenants()).toEqual([]);
  });

  it('are charged for what their calls take', () => {
    const bench = new Bench(1, 10_000);
    const { scheduler } = bench;
    const prompt = tokens(1600);
    bench.run(scheduler.openWorkflow({ tenant: 'a' }).submit(prompt), prompt, 4);
    scheduler.openWorkflow({ tenant: 'b' });
    const [a, b] = scheduler.tenants();
    expect(a?.served).toBeGreaterThan(0);
    expect(b?.served).toBe(0);
    expect(scheduler.tenant('a')).toEqual(a);
  });
});

describe("Jain's index", () => {
  it.each([
    [[], 1],
    [[0, 0], 1],
    [[5], 1],
    [[2, 2, 2], 1],
    [[1, 0, 0, 0], 0.25],
    [[3, 1], 0.8],
    [[1e200, 1e200], 1],
    [[1e-200, 0], 0.5],
  ])('of %j is %d', (shares, index) => {
    expect(jainIndex(shares)).toBeCloseTo(index, 12);
  });

  it('refuses what is no share', () => {
    for (const share of [-1, NaN, Infinity]) {
      expect(() => jainIndex([1, share])).toThrow(
        new SagaArgumentError(`a share must be a number from 0 to ${Number.MAX_VALUE}, got ${share}`),
      );
    }
  });
});

describe('what is told', () => {
  it('of graphs is declared once, equal or the same, up to the bound', () => {
    const { scheduler } = new Bench(1, 100, { maxGraphs: 1 });
    scheduler.declare(graph);
    scheduler.declare(graph);
    scheduler.declare(AgentGraph.fromJSON(graph.toJSON()));
    expect(scheduler.openWorkflow({ graph }).graph).toBe(graph);
    expect(scheduler.stats().saga?.graphs).toBe(1);
    const other = AgentGraph.define({ steps: { only: {} } });
    const error = errorOf(() => scheduler.openWorkflow({ graph: other }));
    expect([error.code, error.message]).toEqual([
      'SAGA_ERR_FULL',
      expect.stringMatching(/^the graph cannot be declared \(/),
    ]);
    expect(scheduler.stats().workflows).toBe(1);
  });

  it('of agents makes a thread each, and calls that overlap run in lanes', () => {
    const bench = new Bench(1, 10_000);
    const { scheduler } = bench;
    const workflow = scheduler.openWorkflow();
    const threads = (): number | undefined => scheduler.stats().saga?.threads;
    const main = workflow.submit(tokens(64));
    const review = workflow.submit(tokens(64), { agent: 'reviewer' });
    expect([main.agent, review.agent, threads()]).toEqual([undefined, 'reviewer', 2]);
    workflow.submit(tokens(80), { agent: 'reviewer' });
    expect(threads()).toBe(3);
    review.place();
    review.finish();
    workflow.submit(tokens(96), { agent: 'reviewer', kind: 'tool' });
    expect(threads()).toBe(3);
  });

  it('that is wrong is refused, and nothing has changed', () => {
    const { scheduler } = new Bench(1, 10_000);
    const plain = scheduler.openWorkflow();
    const graphed = scheduler.openWorkflow({ graph });
    const any = (value: unknown): never => value as never;
    const call = graphed.submit(tokens(64));
    call.place();
    const before = scheduler.digest();
    for (const [action, message] of [
      [() => scheduler.openWorkflow({ graph: any({}) }), 'graph must be an AgentGraph, got Object'],
      [() => scheduler.openWorkflow({ graph: any(null) }), 'graph must be an AgentGraph, got null'],
      [() => scheduler.openWorkflow({ agentKind: any(5) }), 'agentKind must be a string, got 5'],
      [() => scheduler.declare(any('graph')), 'graph must be an AgentGraph, got "graph"'],
      [() => plain.submit(tokens(4), { agent: any(1) }), 'agent must be a string, got 1'],
      [() => plain.submit(tokens(4), { kind: any('human') }), 'kind must be one of start, tool, user, got "human"'],
      [
        () => plain.submit(tokens(4), { hints: { stepKind: 'act' } }),
        'stepKind names a step of a declared graph, and none is given',
      ],
      [
        () => graphed.submit(tokens(4), { hints: { stepKind: 'rest' } }),
        'stepKind must be a step of the graph, got "rest"',
      ],
      [
        () => graphed.submit(tokens(4), { hints: { expectedSeconds: -1 } }),
        'expectedSeconds must be a number from 0 to 1000000000, got -1',
      ],
      [() => call.finish({ hints: any(5) }), 'the value must be an object, got 5'],
      [() => call.finish({ chain: any([1n]) }), 'chain must be a BigUint64Array of block hashes, got Array'],
      [() => call.finish({ placement: 2 ** 16 }), 'placement must be an integer from 0 to 65535, got 65536'],
      [() => call.firstToken({ placement: -1 }), 'placement must be an integer from 0 to 65535, got -1'],
      [() => call.finish({ outputTokens: 8, chain: new BigUint64Array(9) }), /^call \d+ cannot be finished \(/],
      [() => scheduler.tenant('a', { weight: 0 }), 'weight must be a number from 0.0009765625 to 1024, got 0'],
      [
        () => scheduler.worker(0)?.load({ blocksInUse: 1, waitingCalls: -1 }),
        'waitingCalls must be an integer from 0 to 4294967294, got -1',
      ],
    ] as [() => unknown, string | RegExp][]) {
      const error = errorOf(action);
      expect(error.message).toMatch(message);
      expect(error.code).toBe('SAGA_ERR_INVALID_ARGUMENT');
    }
    expect(scheduler.digest()).toBe(before);
  });

  it('of a call about the time behind its answer is told again with the answer', () => {
    const digestOf = (submit: object, finish: object): bigint => {
      const bench = new Bench(1, 10_000);
      const { scheduler } = bench;
      const call = scheduler.openWorkflow({ graph }).submit(tokens(640), { hints: submit });
      call.place();
      bench.now += 2_000_000;
      call.finish({ stop: 'tool-use', outputTokens: 5, hints: finish });
      return scheduler.digest();
    };
    const gap = { expectedSeconds: 40, nextTool: 'web_search' };
    // The same state whether or not the answer repeats it; another one where the answer says otherwise.
    expect(digestOf(gap, {})).toBe(digestOf(gap, gap));
    expect(digestOf(gap, {})).not.toBe(digestOf(gap, { ...gap, expectedSeconds: 4 }));
    // Behind the last answer nothing comes: neither a tool nor a gap.
    const other = { expectedSeconds: 7, nextTool: 'run_tests' };
    expect(digestOf(gap, {})).not.toBe(digestOf(other, {}));
    expect(digestOf(gap, { finalStep: true })).toBe(digestOf(other, { finalStep: true }));
  });

  it('of the length of an answer, by hint or by step, is in the price of its decoding', () => {
    const steps = AgentGraph.define({
      start: 'short',
      steps: { short: { outputTokens: 10, next: 'long' }, long: { outputTokens: 4000 } },
    });
    const decodeOf = (hints: CallHints, declared?: AgentGraph): number => {
      const { scheduler } = new Bench(1, 10_000);
      const call = scheduler.openWorkflow(declared && { graph: declared }).submit(tokens(640), { hints });
      call.place();
      return scheduler.explain(call)?.saga?.price.decode ?? NaN;
    };
    const untold = decodeOf({});
    expect(decodeOf({ expectedOutputTokens: 4000 })).toBeGreaterThan(1.5 * untold);
    expect(decodeOf({ expectedOutputTokens: 0 })).toBeLessThan(untold / 1.5);
    expect(decodeOf({ stepKind: 'long' }, steps)).toBeGreaterThan(1.5 * decodeOf({ stepKind: 'short' }, steps));
  });

  it('of the time until the next call, or that there is none, is in what a worker is reckoned to hold', () => {
    const residentAfter = (hints: CallHints): number => {
      const bench = new Bench(1, 10_000);
      const { scheduler } = bench;
      const call = scheduler.openWorkflow().submit(tokens(16_000));
      call.place();
      bench.now = 2_000_000;
      call.finish({ stop: 'tool-use', outputTokens: 100, hints });
      scheduler.decide();
      return scheduler.worker(0)?.forecast().residentTokens ?? NaN;
    };
    const soon = residentAfter({ expectedSeconds: 1, nextTool: 'web-api' });
    expect(soon).toBeGreaterThan(10_000);
    expect(residentAfter({ expectedSeconds: 300 })).toBeLessThan(soon / 2);
    expect(residentAfter({ finalStep: true })).toBeLessThan(residentAfter({ finalStep: false }));
  });

  it('of the chain of an answer counts when it comes to what a worker holds', () => {
    const bench = new Bench(2, 10_000);
    const { scheduler } = bench;
    const workflow = scheduler.openWorkflow();
    const whole = scheduler.hash(tokens(1920));
    const call = workflow.submit(tokens(1600));
    const { worker } = call.place();
    worker.stored(whole);
    bench.now = 2_000_000;
    call.finish({ stop: 'tool-use', outputTokens: 320, chain: whole.subarray(100) });
    const next = workflow.submit(tokens(2000));
    next.place();
    expect(scheduler.explain(next)).toMatchObject({ matchedBlocks: 120, promptBlocks: 125, reason: 'holder' });
  });

  it('of a load counts, also what a worker says of its queue', () => {
    const digests = [{}, { waitingCalls: 3 }, { waitingCalls: 3, freeBlocks: 9 }].map((told) => {
      const { scheduler, workers } = new Bench(1, 100);
      workers[0]?.load({ blocksInUse: 40, ...told });
      expect(workers[0]?.state().blocksInUse).toBe(40);
      return scheduler.digest();
    });
    expect(new Set(digests).size).toBe(3);
  });

  it('of kinds of agents is told apart for the first 63 names', () => {
    const digestOf = (last: string | undefined): bigint => {
      const { scheduler } = new Bench(1, 100);
      for (let i = 1; i < 63; ++i) scheduler.openWorkflow({ agentKind: `kind ${i}` });
      scheduler.openWorkflow({ agentKind: 'kind 63' });
      scheduler.openWorkflow(last === undefined ? {} : { agentKind: last });
      expect(scheduler.verify()).toBe(true);
      return scheduler.digest();
    };
    expect(digestOf('kind 64')).toBe(digestOf(undefined));
    expect(digestOf('kind 63')).not.toBe(digestOf(undefined));
  });
});

describe('a lost worker', () => {
  it('has its late answer refused by the number of its placement', () => {
    const { scheduler } = new Bench(2, 1000);
    const call = scheduler.openWorkflow().submit(tokens(64));
    const first = call.place();
    first.worker.remove();
    expect(call.receipt).toBeUndefined();
    const second = call.place();
    expect([first.placement, second.placement, second.worker === first.worker]).toEqual([0, 1, false]);
    for (const action of [
      () => call.firstToken({ placement: 0 }),
      () => call.finish({ placement: 0, outputTokens: 3 }),
    ]) {
      expect(errorOf(action).code).toBe('SAGA_ERR_WRONG_STATE');
    }
    expect(scheduler.stats().saga?.stale).toBe(2);
    call.firstToken({ placement: 1 });
    call.finish({ placement: 1, outputTokens: 3 });
    expect(scheduler.stats()).toMatchObject({ finishedCalls: 1, replacedCalls: 1 });
  });
});

describe('figures', () => {
  it('of saga begin at nothing', () => {
    const { scheduler, workers } = new Bench(1, 100);
    expect(scheduler.stats().saga).toEqual({
      queuedCalls: 0,
      threads: 0,
      graphs: 0,
      grants: 0,
      queued: 0,
      held: 0,
      steals: 0,
      pulls: 0,
      recomputes: 0,
      thrash: 0,
      prefetches: { started: 0, cancelled: 0 },
      preemptions: 0,
      copies: { decided: 0, applied: 0, refused: 0, expired: 0 },
      leases: { granted: 0, refused: 0, expired: 0, released: 0, revoked: 0 },
      drops: { decided: 0, lost: 0 },
      unreadDirectives: 0,
      stale: 0,
    });
    expect(workers[0]?.forecast()).toEqual({
      openCalls: 0,
      costFactor: 1,
      residentTokens: 0,
      runningTokens: 0,
      leasedBlocks: 0,
    });
    const { nextCall, withinHorizon, gaps } = scheduler.calibration();
    expect(gaps).toEqual({ count: 0, withinP50: 0, withinP90: 0, withinP95: 0 });
    for (const { brier, bins } of [nextCall, withinHorizon]) {
      expect(brier).toBe(0);
      expect(bins).toEqual(Array.from({ length: 10 }, () => ({ predictions: 0, happened: 0, predicted: NaN })));
    }
  });

  it('tell how good predictions were once it is known what came', () => {
    const bench = new Bench(1, 10_000);
    const { scheduler } = bench;
    const workflow = scheduler.openWorkflow();
    for (let i = 1; i <= 10; ++i) {
      const prompt = tokens(160 * i);
      bench.run(workflow.submit(prompt), prompt, 1);
      bench.now += 500_000;
    }
    const { nextCall, gaps } = scheduler.calibration();
    const sum = (pick: (bin: { predictions: number; happened: number }) => number): number =>
      nextCall.bins.reduce((total, bin) => total + pick(bin), 0);
    expect([sum((bin) => bin.predictions), sum((bin) => bin.happened), gaps.count]).toEqual([9, 9, 9]);
    expect(gaps.withinP50).toBeLessThanOrEqual(gaps.withinP90);
    for (const [i, { predictions, predicted }] of nextCall.bins.entries()) {
      if (predictions === 0) continue;
      expect(predicted).toBeGreaterThanOrEqual(i / 10);
      expect(predicted).toBeLessThanOrEqual((i + 1) / 10);
    }
    expect(nextCall.brier).toBeGreaterThan(0);
  });

  it('of saga are refused by the other policies', () => {
    const scheduler = new Scheduler({ policy: 'round-robin' });
    const worker = scheduler.addWorker({ blocks: 1 });
    expect(scheduler.stats().saga).toBeUndefined();
    for (const [action, message] of [
      [() => scheduler.tenants(), 'the policy round-robin knows no tenants; saga does'],
      [() => scheduler.tenant('a', { weight: 2 }), 'the policy round-robin knows no tenants; saga does'],
      [() => scheduler.calibration(), 'the policy round-robin knows no predictions; saga does'],
      [() => worker.forecast(), /^worker 0 has no forecast \(/],
    ] as [() => unknown, string | RegExp][]) {
      const error = errorOf(action);
      expect(error.message).toMatch(message);
      expect([error.code, error instanceof SagaStateError]).toEqual(['SAGA_ERR_WRONG_STATE', true]);
    }
  });
});
