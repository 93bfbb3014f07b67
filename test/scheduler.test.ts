/** Scheduler, Worker, Workflow and Call: receipts whole, every refusal, lost workers, journals, odd arrays. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  SagaArgumentError,
  SagaCapacityError,
  SagaError,
  SagaJournalError,
  SagaStateError,
  Scheduler,
  type Call,
  type Receipt,
  type SchedulerOptions,
  type Worker,
} from '../src/index.js';

const hashes = (...values: number[]): BigUint64Array => BigUint64Array.from(values, BigInt);
const tokens = (count: number, first = 0): Uint32Array<ArrayBuffer> =>
  Uint32Array.from({ length: count }, (_, i) => first + i);
/** A prompt of blocks of 4 tokens with these hashes. */
const prompt = (...values: number[]): { chain: BigUint64Array; promptTokens: number } => ({
  chain: hashes(...values),
  promptTokens: 4 * values.length,
});

const small = {
  policy: 'affinity',
  maxWorkers: 4,
  maxWorkflows: 4,
  maxCalls: 8,
  maxBlocks: 64,
  maxChainBlocks: 16,
  blockTokens: 4,
} as const;

/** The state of a new worker. */
const untold = {
  blocks: 100,
  openCalls: 0,
  blocksInUse: 0,
  active: true,
  trust: 1,
  accepts: true,
  windowBlocks: 0,
};

/** A scheduler with a clock that stands still at 5. */
function schedulerOf(options: SchedulerOptions = {}, workers = 0): [Scheduler, ...Worker[]] {
  const scheduler = new Scheduler({ ...small, clock: () => 5, ...options });
  return [scheduler, ...Array.from({ length: workers }, () => scheduler.addWorker({ blocks: 100 }))];
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

/** Asserts class, code and message, and that the state is as before. */
function refused(
  scheduler: Scheduler,
  kind: new (...given: never[]) => SagaError,
  code: string,
  message: string | RegExp,
  action: () => unknown,
): void {
  const before = scheduler.digest();
  const error = errorOf(action);
  expect(error.message).toMatch(message);
  expect([error.code, error.name]).toEqual([code, kind.name]);
  expect(scheduler.digest()).toBe(before);
  expect(scheduler.verify()).toBe(true);
}

describe('a receipt', () => {
  it('says by affinity: the longest match, what is held in which tier, and the load', () => {
    const [scheduler, first, second] = schedulerOf({}, 2) as [Scheduler, Worker, Worker];
    second.stored(hashes(1, 2, 3), { now: 6 });
    second.stored(hashes(4), { tier: 'host', parent: 3n, now: 6 });
    second.stored(hashes(5), { tier: 'disk', parent: 4n, now: 7 });
    first.stored(hashes(1), { now: 7 });
    second.load({ blocksInUse: 30, now: 8 });
    const workflow = scheduler.openWorkflow({ now: 9 });
    const call = workflow.submit({ chain: hashes(1, 2, 3, 4, 5, 6), promptTokens: 27 }, { now: 10 });
    expect(call.receipt).toBeUndefined();
    expect(call.place({ now: 11 })).toEqual({
      worker: second,
      reason: 'longest-match',
      promptBlocks: 6,
      matchedBlocks: { gpu: 3, host: 4, disk: 5 },
      longestMatch: { blocks: 3, worker: 1 },
      openCalls: 0,
      blocksInUse: 30,
      activeWorkers: 2,
      priority: 0,
      placement: 0,
      decidedAt: 11,
    } satisfies Receipt);
    expect(call.receipt?.worker).toBe(second);

    // 27 tokens take 7 blocks, which the worker has not reported yet.
    expect(workflow.submit(prompt(1, 2), { now: 12 }).place({ now: 2 ** 33 })).toEqual({
      worker: second,
      reason: 'longest-match',
      promptBlocks: 2,
      matchedBlocks: { gpu: 2, host: 2, disk: 2 },
      longestMatch: { blocks: 2, worker: 1 },
      openCalls: 1,
      blocksInUse: 37,
      activeWorkers: 2,
      priority: 0,
      placement: 0,
      decidedAt: 2 ** 33,
    } satisfies Receipt);
    expect(scheduler.stats()).toEqual({
      workers: 2,
      workflows: 1,
      openCalls: 2,
      waitingCalls: 0,
      placedCalls: 2,
      finishedCalls: 0,
      cancelledCalls: 0,
      replacedCalls: 0,
      promptBlocks: 8,
      matchedBlocks: 5,
      holderBlocks: 6,
      journalBytes: 0,
      saga: undefined,
    });
  });

  it('says when nobody holds anything: the fewest blocks in use', () => {
    const [scheduler, first, second] = schedulerOf({}, 2) as [Scheduler, Worker, Worker];
    first.load({ blocksInUse: 9 });
    second.load({ blocksInUse: 8 });
    expect(scheduler.openWorkflow().submit(tokens(3)).place()).toEqual({
      worker: second,
      reason: 'fewest-blocks',
      promptBlocks: 0,
      matchedBlocks: { gpu: 0, host: 0, disk: 0 },
      longestMatch: { blocks: 0, worker: undefined },
      openCalls: 0,
      blocksInUse: 8,
      activeWorkers: 2,
      priority: 0,
      placement: 0,
      decidedAt: 5,
    } satisfies Receipt);
  });

  it('says when a match is too short to decide', () => {
    const [scheduler, first] = schedulerOf({ minimumMatchPercent: 50 }, 2) as [Scheduler, Worker];
    first.stored(hashes(1, 2));
    first.load({ blocksInUse: 1 });
    const workflow = scheduler.openWorkflow();
    const reasonOf = (call: Call): unknown[] => [
      call.place().worker.id,
      call.receipt?.reason,
      call.receipt?.longestMatch,
    ];
    expect(reasonOf(workflow.submit(prompt(1, 2, 3, 4, 5)))).toEqual([1, 'fewest-blocks', { blocks: 2, worker: 0 }]);
    expect(reasonOf(workflow.submit(prompt(1, 2, 3, 4)))).toEqual([0, 'longest-match', { blocks: 2, worker: 0 }]);
  });

  it('says when load alone decides', () => {
    const [scheduler, first] = schedulerOf({ imbalanceCalls: 1 }, 2) as [Scheduler, Worker];
    first.stored(hashes(1));
    const workflow = scheduler.openWorkflow();
    const receipts = [1, 2, 3].map(() => workflow.submit(prompt(1)).place());
    expect(receipts.map(({ worker, reason, openCalls }) => [worker.id, reason, openCalls])).toEqual([
      [0, 'longest-match', 0],
      [0, 'longest-match', 1],
      [1, 'imbalance', 0],
    ]);
  });

  it('says whose turn it is', () => {
    const [scheduler] = schedulerOf({ policy: 'round-robin' }, 3);
    const workflow = scheduler.openWorkflow();
    const calls = Array.from({ length: 5 }, () => workflow.submit(tokens(9)));
    expect(scheduler.decide()).toEqual(calls);
    expect(calls.map((call) => [call.receipt?.worker.id, call.receipt?.reason, call.receipt?.openCalls])).toEqual([
      [0, 'round-robin', 0],
      [1, 'round-robin', 0],
      [2, 'round-robin', 0],
      [0, 'round-robin', 1],
      [1, 'round-robin', 1],
    ]);
    expect(scheduler.decide()).toEqual([]);
  });
});

describe('a call', () => {
  it('is placed with all others that wait, once', () => {
    const [scheduler] = schedulerOf({}, 1);
    const workflow = scheduler.openWorkflow();
    const [before, call, after] = [1, 2, 3].map((value) => workflow.submit(prompt(value))) as [Call, Call, Call];
    const receipt = call.place();
    expect([before.receipt?.openCalls, receipt.openCalls, after.receipt?.openCalls]).toEqual([0, 1, 2]);
    const digest = scheduler.digest();
    expect(call.place({ now: 7 })).toBe(receipt);
    expect(scheduler.digest()).toBe(digest);
  });

  it('waits while there is no worker', () => {
    const [scheduler] = schedulerOf();
    const call = scheduler.openWorkflow().submit(tokens(4));
    refused(
      scheduler,
      SagaStateError,
      'SAGA_ERR_NO_WORKER',
      /^no worker is active: add one, the call keeps waiting$/,
      () => call.place(),
    );
    expect([call.receipt, scheduler.stats().waitingCalls]).toEqual([undefined, 1]);
    const worker = scheduler.addWorker({ blocks: 1 });
    expect(call.place().worker).toBe(worker);
  });

  it('keeps its receipt when it has ended, and can do nothing more', () => {
    const [scheduler, worker] = schedulerOf({}, 1) as [Scheduler, Worker];
    const workflow = scheduler.openWorkflow();
    const finished = workflow.submit(tokens(4));
    finished.place();
    finished.firstToken();
    finished.finish({ stop: 'end-turn', tool: 'none', outputTokens: 2 ** 32 - 1 });
    const cancelled = workflow.submit(tokens(4));
    cancelled.cancel();
    expect([finished.receipt?.worker, cancelled.receipt]).toEqual([worker, undefined]);
    expect(cancelled.id).not.toBe(finished.id);
    for (const call of [finished, cancelled]) {
      for (const action of [() => call.place(), () => call.firstToken(), () => call.finish(), () => call.cancel()]) {
        refused(
          scheduler,
          SagaStateError,
          'SAGA_ERR_NOT_FOUND',
          new RegExp(`^call ${call.id} (has ended|cannot)`),
          action,
        );
      }
    }
    expect(scheduler.stats()).toMatchObject({ openCalls: 0, finishedCalls: 1, cancelledCalls: 1, placedCalls: 1 });
    expect(worker.state().openCalls).toBe(0);
    workflow.close();
  });

  it('follows its states', () => {
    const [scheduler] = schedulerOf({}, 1);
    const call = scheduler.openWorkflow().submit(tokens(4));
    const wrong = (message: RegExp, action: () => unknown): void =>
      refused(scheduler, SagaStateError, 'SAGA_ERR_WRONG_STATE', message, action);
    wrong(/^call 0 cannot have its first token \(/, () => call.firstToken());
    wrong(/^call 0 cannot be finished \(/, () => call.finish());
    call.place();
    call.firstToken();
    wrong(/^call 0 cannot have its first token \(the event does not fit the state of the object\)$/, () =>
      call.firstToken(),
    );
    call.finish();
  });

  it('can be cancelled in each of its states', () => {
    const [scheduler, worker] = schedulerOf({}, 1) as [Scheduler, Worker];
    const workflow = scheduler.openWorkflow();
    workflow.submit(tokens(4)).cancel();
    const placed = workflow.submit(tokens(4));
    placed.place();
    placed.cancel();
    const running = workflow.submit(tokens(4));
    running.place();
    running.firstToken();
    expect(worker.state()).toEqual({ ...untold, openCalls: 1, blocksInUse: 1 });
    running.cancel();
    expect(worker.state()).toEqual(untold);
    expect(scheduler.stats()).toMatchObject({ cancelledCalls: 3, openCalls: 0, waitingCalls: 0 });
    expect(scheduler.verify()).toBe(true);
  });
});

/** Whatever can be told of a worker. */
function eventsOf(worker: Worker): (() => unknown)[] {
  return [
    () => worker.stored(hashes(1)),
    () => worker.removed(hashes(1)),
    () => worker.cleared(),
    () => worker.load({ blocksInUse: 1 }),
    () => worker.load({ blocksInUse: 1, waitingCalls: 2 }),
    () => worker.trust(0.5),
    () => worker.drain(),
    () => worker.resume(),
    () => worker.window(1),
    () => worker.windowStored(hashes(1)),
    () => worker.windowRemoved(hashes(1)),
    () => worker.remove(),
  ];
}

describe('a worker', () => {
  it('that is lost takes its pages and receipts along; its calls go first when they are placed again', () => {
    const [scheduler, first, second] = schedulerOf({}, 2) as [Scheduler, Worker, Worker];
    first.stored(hashes(1, 2));
    const workflow = scheduler.openWorkflow();
    const onFirst = workflow.submit(prompt(1, 2));
    onFirst.place();
    onFirst.firstToken();
    const onSecond = workflow.submit(prompt(9));
    expect(onSecond.place().worker).toBe(second);
    const waiting = workflow.submit(prompt(1));
    first.remove();
    expect([onFirst.receipt, onSecond.receipt?.worker, waiting.receipt]).toEqual([undefined, second, undefined]);
    expect(first.state()).toEqual({ ...untold, active: false });
    expect(scheduler.worker(0)).toBe(first);
    expect(scheduler.decide()).toEqual([onFirst, waiting]);
    expect(onFirst.receipt).toMatchObject({ worker: second, matchedBlocks: { gpu: 0 }, activeWorkers: 1 });
    expect(scheduler.stats()).toMatchObject({ replacedCalls: 1, placedCalls: 4, holderBlocks: 0, workers: 1 });
    onFirst.firstToken();

    for (const event of eventsOf(first))
      refused(scheduler, SagaStateError, 'SAGA_ERR_NOT_FOUND', /^worker 0 cannot /, event);
  });

  it('that is gone is not the one that has its id', () => {
    const [scheduler, first, second] = schedulerOf({ maxWorkers: 2, journalBytes: 2 ** 16 }, 2) as [
      Scheduler,
      Worker,
      Worker,
    ];
    refused(scheduler, SagaCapacityError, 'SAGA_ERR_FULL', /maxWorkers is 2/, () => scheduler.addWorker({ blocks: 7 }));
    first.stored(hashes(1, 2));
    first.trust(0.5);
    first.window(3);
    first.load({ blocksInUse: 9 });
    first.drain();
    first.remove();
    const last = { ...untold, trust: 0.5, windowBlocks: 3, accepts: false, active: false };
    expect(first.state()).toEqual(last);

    const third = scheduler.addWorker({ blocks: 7 });
    expect([third.id, third === first, scheduler.worker(0)]).toEqual([0, false, third]);
    expect(third.state()).toEqual({ ...untold, blocks: 7 });
    expect(first.state()).toEqual(last);
    for (const event of eventsOf(first))
      refused(scheduler, SagaStateError, 'SAGA_ERR_NOT_FOUND', /^worker 0 cannot /, event);
    expect(third.state()).toEqual({ ...untold, blocks: 7 });

    third.stored(hashes(1));
    second.remove();
    const call = scheduler.openWorkflow().submit(prompt(1, 2));
    expect(call.place()).toMatchObject({ worker: third, matchedBlocks: { gpu: 1 } });
    expect(call.receipt?.worker).toBe(third);
    // The one that went first comes first.
    third.remove();
    expect(call.receipt).toBeUndefined();
    const [fourth, fifth] = [scheduler.addWorker({ blocks: 1 }), scheduler.addWorker({ blocks: 2 })];
    expect([fourth.id, fifth.id, scheduler.worker(0), scheduler.worker(1)]).toEqual([1, 0, fifth, fourth]);
    expect(Scheduler.replay(scheduler.readJournal()).digest).toBe(scheduler.digest());
  });

  it('may come and go any number of times', () => {
    const [scheduler] = schedulerOf({ maxWorkers: 3 });
    const ids: number[] = [];
    for (let i = 0; i < 3000; ++i) {
      const worker = scheduler.addWorker({ blocks: 100 });
      ids.push(worker.id);
      worker.stored(hashes(1, 2));
      worker.remove();
    }
    expect(ids).toEqual(Array.from({ length: 3000 }, (_, i) => i % 3));
    expect(scheduler.stats()).toMatchObject({ workers: 0, holderBlocks: 0 });
    expect(scheduler.verify()).toBe(true);
  });

  it('holds a block as often as it stored it', () => {
    const [scheduler, worker] = schedulerOf({}, 1) as [Scheduler, Worker];
    const depth = (): number[] => [...scheduler.match(hashes(1, 2, 3)).subarray(0, 3)];
    worker.stored(hashes(1, 2, 3));
    worker.stored(hashes(2));
    worker.removed(hashes(2, 77));
    expect(depth()).toEqual([3, 3, 3]);
    worker.removed(hashes(2));
    expect(depth()).toEqual([1, 1, 1]);
    worker.stored(hashes(2), { tier: 'disk' });
    expect(depth()).toEqual([1, 1, 3]);
    worker.cleared();
    expect(depth()).toEqual([0, 0, 0]);
    expect(scheduler.stats().holderBlocks).toBe(0);
  });

  it('counts for what it is trusted', () => {
    const [scheduler, first, second] = schedulerOf({}, 2) as [Scheduler, Worker, Worker];
    first.stored(hashes(1, 2, 3, 4));
    second.stored(hashes(1, 2));
    const workflow = scheduler.openWorkflow();
    first.trust(0.5004);
    expect(first.state()).toEqual({ ...untold, trust: 0.5 });
    expect(workflow.submit(prompt(1, 2, 3, 4)).place().worker).toBe(first);
    first.trust(0.49, { now: 6 });
    expect(workflow.submit(prompt(1, 2, 3, 4), { now: 6 }).place({ now: 6 })).toMatchObject({
      worker: second,
      matchedBlocks: { gpu: 2 },
      longestMatch: { blocks: 4, worker: 0 },
    });
    expect(scheduler.match(hashes(1, 2, 3, 4))[0]).toBe(4);
    for (const trust of [-0.001, 1.001, Number.NaN, '1', undefined]) {
      const message = /^trust must be a number from 0 to 1, got /;
      refused(scheduler, SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT', message, () => first.trust(trust as number));
    }
  });

  it('gets nothing while it is drained, and keeps its calls', () => {
    const [scheduler, first, second] = schedulerOf({}, 2) as [Scheduler, Worker, Worker];
    first.stored(hashes(1, 2));
    const workflow = scheduler.openWorkflow();
    const running = workflow.submit(prompt(1, 2));
    expect(running.place().worker).toBe(first);
    first.drain();
    expect(first.state()).toEqual({ ...untold, openCalls: 1, blocksInUse: 2, accepts: false });
    expect(workflow.submit(prompt(1, 2)).place()).toMatchObject({ worker: second, activeWorkers: 1 });
    running.firstToken();
    running.finish();
    second.drain();
    const waiting = workflow.submit(prompt(1, 2));
    expect(scheduler.decide()).toEqual([]);
    first.resume();
    expect(scheduler.decide()).toEqual([waiting]);
    expect(waiting.receipt?.worker).toBe(first);
    expect(scheduler.verify()).toBe(true);
  });

  it('with window groups can use a prefix whose last blocks they hold', () => {
    const [scheduler, worker] = schedulerOf({ maxBlocks: 8, journalBytes: 4096 }, 1) as [Scheduler, Worker];
    const depth = (): number => scheduler.match(hashes(1, 2, 3, 4, 5))[0] as number;
    worker.stored(hashes(1, 2, 3, 4, 5));
    worker.window(2);
    expect(worker.state()).toEqual({ ...untold, windowBlocks: 2 });
    expect(depth()).toBe(0);
    worker.windowStored(hashes(1, 3, 4));
    expect(depth()).toBe(4);
    worker.windowRemoved(hashes(4, 77));
    expect(depth()).toBe(1);
    worker.window(0);
    expect(depth()).toBe(5);
    worker.window(1);
    expect(depth()).toBe(3);

    const most = hashes(...Array.from({ length: 9 }, (_, i) => 100 + i));
    refused(scheduler, SagaCapacityError, 'SAGA_ERR_FULL', /^worker 0 cannot store 9 window blocks/, () =>
      worker.windowStored(most),
    );
    for (const blocks of [-1, 1.5, 2 ** 24 + 1, '1']) {
      const message = /^blocks must be an integer from 0 to 16777216, got /;
      refused(scheduler, SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT', message, () =>
        worker.window(blocks as number),
      );
    }
    for (const event of [worker.windowStored.bind(worker), worker.windowRemoved.bind(worker)]) {
      refused(scheduler, SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT', /^hashes must be a BigUint64Array/, () =>
        event([1n] as unknown as BigUint64Array),
      );
    }
    const replayed = Scheduler.replay(scheduler.readJournal());
    expect(replayed.digest).toBe(scheduler.digest());
  });
});

describe('tenants and workflows', () => {
  it('with different salts match no block of each other', () => {
    const [scheduler, first] = schedulerOf({}, 2) as [Scheduler, Worker];
    first.stored(scheduler.hash(tokens(40), 'acme'));
    const place = (salt?: string): [string | undefined, number] => {
      const call = scheduler.openWorkflow(salt === undefined ? {} : { salt }).submit(tokens(40));
      const receipt = call.place();
      call.cancel();
      return [receipt.reason, receipt.longestMatch.blocks];
    };
    expect(place('acme')).toEqual(['longest-match', 10]);
    expect(place('other')).toEqual(['fewest-blocks', 0]);
    expect(place()).toEqual(['fewest-blocks', 0]);
  });

  it('carry their names, and a refused one leaves no trace', () => {
    const [scheduler] = schedulerOf({ maxWorkflows: 1 });
    const workflow = scheduler.openWorkflow({ tenant: 'acme', salt: 'x' });
    expect([workflow.id, workflow.tenant, workflow.salt]).toEqual([0, 'acme', 'x']);
    expect(errorOf(() => scheduler.openWorkflow({ tenant: 'refused' })).code).toBe('SAGA_ERR_FULL');
    workflow.close();
    scheduler.openWorkflow({ tenant: 'second' });
    const [twin] = schedulerOf({ maxWorkflows: 1 });
    twin.openWorkflow({ tenant: 'acme' }).close();
    expect(twin.digest()).not.toBe(scheduler.digest());
    twin.openWorkflow({ tenant: 'second' });
    expect(twin.digest()).toBe(scheduler.digest());
  });

  it('run one tool at a time, and end when no call is open', () => {
    const [scheduler] = schedulerOf();
    const workflow = scheduler.openWorkflow();
    const wrong = (message: RegExp, action: () => unknown): void =>
      refused(scheduler, SagaStateError, 'SAGA_ERR_WRONG_STATE', message, action);
    wrong(/^workflow 0 cannot finish a tool \(/, () => workflow.toolFinished());
    workflow.toolStarted({ tool: 'database-query' });
    wrong(/^workflow 0 cannot start a tool \(/, () => workflow.toolStarted());
    workflow.toolFinished();
    const call = workflow.submit(tokens(1));
    wrong(/^workflow 0 cannot be closed \(/, () => workflow.close());
    call.cancel();
    workflow.close();
    const ended: (() => unknown)[] = [
      () => workflow.close(),
      () => workflow.toolStarted(),
      () => workflow.toolFinished(),
      () => workflow.submit(tokens(1)),
    ];
    for (const action of ended) refused(scheduler, SagaStateError, 'SAGA_ERR_NOT_FOUND', /^workflow 0 cannot /, action);
  });
});

describe('time', () => {
  it('is taken from the clock, cut to whole microseconds, or from now', () => {
    let time = 1.9;
    const [scheduler] = schedulerOf({ clock: () => time }, 1);
    const workflow = scheduler.openWorkflow();
    expect(workflow.submit(tokens(1)).place().decidedAt).toBe(1);
    expect(workflow.submit(tokens(1)).place({ now: 1000 }).decidedAt).toBe(1000);
    time = 1000;
    expect(workflow.submit(tokens(1)).place().decidedAt).toBe(1000);
    time = Number.NaN;
    refused(
      scheduler,
      SagaArgumentError,
      'SAGA_ERR_INVALID_ARGUMENT',
      /^the time of the clock must be .* got NaN$/,
      () => scheduler.decide(),
    );
    time = '7' as never;
    refused(
      scheduler,
      SagaArgumentError,
      'SAGA_ERR_INVALID_ARGUMENT',
      /^the time of the clock must be .* got "7"$/,
      () => scheduler.decide(),
    );
  });

  it('runs forward by itself where nobody gives it', () => {
    const scheduler = new Scheduler({ ...small });
    scheduler.addWorker({ blocks: 1 });
    const workflow = scheduler.openWorkflow();
    const first = workflow.submit(tokens(1)).place().decidedAt;
    const second = workflow.submit(tokens(1)).place().decidedAt;
    expect(first).toBeGreaterThanOrEqual(0);
    expect(second).toBeGreaterThanOrEqual(first);
    expect(second).toBeLessThan(10_000_000);
  });

  it('must not run backwards', () => {
    const [scheduler, worker] = schedulerOf({}, 1) as [Scheduler, Worker];
    const workflow = scheduler.openWorkflow({ now: 100 });
    const call = workflow.submit(tokens(1), { now: 100 });
    const at = { now: 99 };
    const late: (() => unknown)[] = [
      () => scheduler.addWorker({ blocks: 1, ...at }),
      () => scheduler.openWorkflow(at),
      () => scheduler.decide(at),
      () => call.place(at),
      () => call.cancel(at),
      () => workflow.submit(tokens(1), at),
      () => workflow.toolStarted(at),
      () => workflow.close(at),
      () => worker.stored(hashes(1), at),
      () => worker.removed(hashes(1), at),
      () => worker.cleared(at),
      () => worker.load({ blocksInUse: 1, ...at }),
      () => worker.remove(at),
    ];
    for (const action of late) {
      const message = /\(the time lies before an event that was applied already\)$/;
      refused(scheduler, SagaStateError, 'SAGA_ERR_TIME_REVERSED', message, action);
    }
  });
});

describe('bounds', () => {
  const full = /\(a bound fixed at creation is reached\)$/;

  it('of workers, workflows, calls and open blocks', () => {
    const [scheduler] = schedulerOf({ maxOpenBlocks: 512, maxChainBlocks: 300 }, 4);
    const refuse = (message: RegExp, action: () => unknown): void => {
      refused(scheduler, SagaCapacityError, 'SAGA_ERR_FULL', message, action);
      refused(scheduler, SagaCapacityError, 'SAGA_ERR_FULL', full, action);
    };
    refuse(/^a worker cannot be added: maxWorkers is 4 /, () => scheduler.addWorker({ blocks: 1 }));
    const workflows = Array.from({ length: 4 }, () => scheduler.openWorkflow());
    refuse(/^a workflow cannot be opened /, () => scheduler.openWorkflow());
    // 257 blocks take two of the two pieces of 256.
    const large = workflows[0]?.submit(tokens(4 * 257)) as Call;
    refuse(/^workflow 1 cannot submit a call of 1 blocks /, () => workflows[1]?.submit(tokens(4)));
    large.cancel();
    for (let i = 0; i < 8; ++i) workflows[i % 4]?.submit(tokens(3));
    refuse(/^workflow 2 cannot submit a call of 0 blocks /, () => workflows[2]?.submit(tokens(3)));
  });

  it('of blocks known', () => {
    const [scheduler, worker] = schedulerOf({ maxBlocks: 2 }, 1) as [Scheduler, Worker];
    worker.stored(hashes(1, 2));
    refused(scheduler, SagaCapacityError, 'SAGA_ERR_FULL', /^worker 0 cannot store 1 blocks /, () =>
      worker.stored(hashes(3)),
    );
    worker.removed(hashes(1));
    worker.stored(hashes(3));
  });

  it('are no bound on the calls of one decide', () => {
    const [scheduler] = schedulerOf({ maxCalls: 600, policy: 'round-robin' }, 3);
    const workflow = scheduler.openWorkflow();
    for (const count of [600, 256, 512, 1]) {
      const calls = Array.from({ length: count }, () => workflow.submit(tokens(5)));
      expect(scheduler.decide()).toEqual(calls);
      expect(new Set(calls.map((call) => call.receipt?.worker.id)).size).toBe(Math.min(count, 3));
      for (const call of calls) call.finish();
    }
    expect(scheduler.stats()).toMatchObject({ placedCalls: 1369, finishedCalls: 1369, openCalls: 0 });
  });

  it('of prompts', () => {
    const [scheduler] = schedulerOf({}, 1);
    const workflow = scheduler.openWorkflow();
    expect(workflow.submit(tokens(67)).place().promptBlocks).toBe(16);
    const message = /^a prompt must have at most 16 blocks of 4 tokens \(maxChainBlocks\), got 17$/;
    for (const given of [tokens(68), prompt(...tokens(17)), { chain: hashes(), promptTokens: 68 }]) {
      refused(scheduler, SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT', message, () => workflow.submit(given));
    }
  });
});

describe('options that are refused', () => {
  it.each<[unknown, string]>([
    [null, 'options must be an object, got null'],
    [8, 'options must be an object, got 8'],
    [{ maxWorkers: 0 }, 'maxWorkers must be an integer from 1 to 1024, got 0'],
    [{ maxWorkers: 1025 }, 'maxWorkers must be an integer from 1 to 1024, got 1025'],
    [{ maxWorkflows: 2 ** 24 + 1 }, 'maxWorkflows must be an integer from 1 to 16777216, got 16777217'],
    [{ maxCalls: '8' }, 'maxCalls must be an integer from 1 to 16777216, got "8"'],
    [{ maxBlocks: 2 ** 29 }, 'maxBlocks must be an integer from 1 to 536870911, got 536870912'],
    [{ maxOpenBlocks: 0 }, 'maxOpenBlocks must be an integer from 1 to 4294967296, got 0'],
    [{ maxChainBlocks: -1 }, 'maxChainBlocks must be an integer from 1 to 16777216, got -1'],
    [{ blockTokens: 4097 }, 'blockTokens must be an integer from 1 to 4096, got 4097'],
    [{ policy: 'random' }, 'policy must be one of round-robin, affinity, saga, got "random"'],
    [{ imbalanceCalls: 2 ** 32 }, 'imbalanceCalls must be an integer from 0 to 4294967295, got 4294967296'],
    [{ minimumMatchPercent: 101 }, 'minimumMatchPercent must be an integer from 0 to 100, got 101'],
    [{ seed: 1.5 }, 'seed must be an integer from 0 to 9007199254740991, got 1.5'],
    [{ journalBytes: 4095 }, 'journalBytes must be 0 or at least 4096, got 4095'],
    [{ journalBytes: 2 ** 41 }, 'journalBytes must be an integer from 0 to 1099511627776, got 2199023255552'],
    [{ clock: 5 }, 'clock must be a function that returns microseconds, got 5'],
    [{ maxThreads: 0 }, 'maxThreads must be an integer from 1 to 16777216, got 0'],
    [{ maxTenants: 2 ** 17 }, 'maxTenants must be an integer from 1 to 65536, got 131072'],
    [{ maxGraphs: 4097 }, 'maxGraphs must be an integer from 0 to 4096, got 4097'],
    [{ maxLeases: -1 }, 'maxLeases must be an integer from 0 to 1048576, got -1'],
    [{ maxDirectives: 0 }, 'maxDirectives must be an integer from 1 to 1048576, got 0'],
    [{ maxReceipts: 0.5 }, 'maxReceipts must be an integer from 0 to 16777216, got 0.5'],
    [{ without: 'eviction' }, 'without must be an array of parts, got "eviction"'],
    [
      { without: ['everything'] },
      'without must be one of prediction, eviction, affinity, stealing, prefetch, admission, fairness, ttl, got "everything"',
    ],
    [{ directiveSeconds: 0 }, 'directiveSeconds must be an integer from 1 to 86400, got 0'],
    [{ kvBytesPerToken: 0 }, 'kvBytesPerToken must be an integer from 1 to 1073741824, got 0'],
    [
      { linkBytesPerSecond: 2e13 },
      'linkBytesPerSecond must be an integer from 1 to 10000000000000, got 20000000000000',
    ],
    [{ stepSeconds: { base: 0 } }, 'stepSeconds.base must be a number from 5e-324 to 1000, got 0'],
    [
      { stepSeconds: { perToken: 1 } },
      'stepSeconds.perToken is not known; expected base, perCall, perContextToken, perPrefillToken, perPrefillPair',
    ],
    [{ stepSeconds: 5 }, 'stepSeconds must be an object, got 5'],
  ])('%o', (options, message) => {
    const error = errorOf(() => new Scheduler(options as SchedulerOptions));
    expect(error).toBeInstanceOf(SagaArgumentError);
    expect([error.code, error.message]).toEqual(['SAGA_ERR_INVALID_ARGUMENT', message]);
  });
});

describe('an option that is misspelt', () => {
  it('is refused with the names of all that there are', () => {
    const options = { maxworkers: 5 } as SchedulerOptions;
    expect(errorOf(() => new Scheduler(options)).message).toMatch(/^maxworkers is not known; expected maxWorkers, /);
  });
});

describe('arguments that are refused', () => {
  const [scheduler, worker] = schedulerOf({}, 1) as [Scheduler, Worker];
  const workflow = scheduler.openWorkflow();
  const call = workflow.submit(tokens(4));
  call.place();
  const any = (value: unknown): never => value as never;

  it.each<[string, () => unknown, string]>([
    ['no options', () => scheduler.addWorker(any(undefined)), 'options must be an object, got undefined'],
    ['blocks', () => scheduler.addWorker({ blocks: 0 }), 'blocks must be an integer from 1 to 4294967295, got 0'],
    [
      'blocks left out',
      () => scheduler.addWorker(any({})),
      'blocks must be an integer from 1 to 4294967295, got undefined',
    ],
    ['now', () => scheduler.decide({ now: -1 }), 'now must be an integer from 0 to 9007199254740991, got -1'],
    ['a fraction', () => scheduler.decide({ now: 0.5 }), 'now must be an integer from 0 to 9007199254740991, got 0.5'],
    ['a number as options', () => call.place(any(5)), 'options must be an object, got 5'],
    ['a text as options', () => scheduler.openWorkflow(any('acme')), 'options must be an object, got "acme"'],
    ['null as options', () => worker.cleared(any(null)), 'options must be an object, got null'],
    ['tenant', () => scheduler.openWorkflow({ tenant: any(5) }), 'tenant must be a string, got 5'],
    ['salt', () => scheduler.openWorkflow({ salt: any({}) }), 'salt must be a string, got Object'],
    [
      'half a character',
      () => scheduler.openWorkflow({ salt: 'a\udfff' }),
      'salt must be well-formed Unicode, got half of a surrogate pair',
    ],
    ['a salt to hash', () => scheduler.hash([1], any(5)), 'salt must be a string, got 5'],
    ['hashes', () => worker.stored(any([1n])), 'hashes must be a BigUint64Array of block hashes, got Array'],
    [
      'signed',
      () => worker.stored(any(new BigInt64Array(1))),
      'hashes must be a BigUint64Array of block hashes, got BigInt64Array',
    ],
    ['hashes to remove', () => worker.removed(any(null)), 'hashes must be a BigUint64Array of block hashes, got null'],
    ['tier', () => worker.stored(hashes(1), { tier: any('cpu') }), 'tier must be one of gpu, host, disk, got "cpu"'],
    ['tier to remove', () => worker.removed(hashes(1), { tier: any(0) }), 'tier must be one of gpu, host, disk, got 0'],
    [
      'parent',
      () => worker.stored(hashes(1), { parent: any(5) }),
      'parent must be a bigint from 0n to 2n ** 64n - 1n, got 5',
    ],
    [
      'a large parent',
      () => worker.stored(hashes(1), { parent: 2n ** 64n }),
      'parent must be a bigint from 0n to 2n ** 64n - 1n, got 18446744073709551616n',
    ],
    ['load', () => worker.load({ blocksInUse: -1 }), 'blocksInUse must be an integer from 0 to 4294967295, got -1'],
    ['chain to match', () => scheduler.match(any([])), 'chain must be a BigUint64Array of block hashes, got Array'],
    ['tokens', () => scheduler.hash(any('text')), 'tokens must be a Uint32Array or an array of token ids, got "text"'],
    ['a token', () => scheduler.hash([1, -1]), 'a token id must be an integer from 0 to 4294967295, got -1'],
    [
      'a large token',
      () => workflow.submit([2 ** 32]),
      'a token id must be an integer from 0 to 4294967295, got 4294967296',
    ],
    [
      'a hole',
      () => workflow.submit(new Array<number>(3)),
      'a token id must be an integer from 0 to 4294967295, got undefined',
    ],
    ['no token', () => workflow.submit([]), 'a prompt must have at least one token, got none'],
    ['no token at all', () => workflow.submit(new Uint32Array()), 'a prompt must have at least one token, got none'],
    ['a text', () => workflow.submit(any('text')), 'prompt must be token ids or { chain, promptTokens }, got "text"'],
    ['nothing', () => workflow.submit(any(null)), 'prompt must be token ids or { chain, promptTokens }, got null'],
    [
      'floats',
      () => workflow.submit(any(new Float32Array(4))),
      'tokens must be a Uint32Array or an array of token ids, got Float32Array',
    ],
    ['no chain', () => workflow.submit(any({})), 'chain must be a BigUint64Array of block hashes, got undefined'],
    [
      'no length',
      () => workflow.submit(any({ chain: hashes(1) })),
      'promptTokens must be an integer from 1 to 2147483648, got undefined',
    ],
    [
      'a chain longer than its prompt',
      () => workflow.submit({ chain: hashes(1, 2), promptTokens: 7 }),
      'chain must have at most 1 hashes for 7 tokens, got 2',
    ],
    ['stop', () => call.finish({ stop: any('stop') }), 'stop must be one of unknown, tool-use, end-turn, got "stop"'],
    [
      'tool',
      () => call.finish({ tool: any('bash') }),
      'tool must be one of none, code-execution, file-operation, web-api, database-query, got "bash"',
    ],
    [
      'output',
      () => call.finish({ outputTokens: 1.5 }),
      'outputTokens must be an integer from 0 to 4294967295, got 1.5',
    ],
    [
      'tool started',
      () => workflow.toolStarted({ tool: any(1) }),
      'tool must be one of none, code-execution, file-operation, web-api, database-query, got 1',
    ],
    ['bytes', () => scheduler.readJournal(0), 'most must be an integer from 1 to 1073741824, got 0'],
    ['journal', () => Scheduler.replay(any('x')), 'journal must be a Uint8Array, got "x"'],
  ])('%s', (_, action, message) => {
    refused(scheduler, SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT', '', action);
    expect(errorOf(action).message).toBe(message);
  });
});

describe('arrays', () => {
  it('of any kind give the same hashes: plain, typed, views with an offset, shared memory', () => {
    const [scheduler] = schedulerOf();
    const expected = scheduler.hash(tokens(18, 7));
    expect(expected.length).toBe(4);
    const padded = new Uint32Array(40);
    padded.set(tokens(18, 7), 5);
    const shared = new Uint32Array(new SharedArrayBuffer(160), 8, 18);
    shared.set(tokens(18, 7));
    for (const given of [[...tokens(18, 7)], padded.subarray(5, 23), shared]) {
      expect(scheduler.hash(given)).toEqual(expected);
    }
    const [other, worker] = schedulerOf({}, 1) as [Scheduler, Worker];
    worker.stored(expected);
    for (const given of [[...tokens(18, 7)], padded.subarray(5, 23), shared, { chain: expected, promptTokens: 18 }]) {
      expect(other.openWorkflow().submit(given).place().matchedBlocks.gpu).toBe(4);
    }
  });

  it('of hashes may be views with an offset or in shared memory', () => {
    const [scheduler, worker] = schedulerOf({}, 1) as [Scheduler, Worker];
    worker.stored(hashes(9, 1, 2, 9).subarray(1, 3));
    const shared = new BigUint64Array(new SharedArrayBuffer(64), 16, 3);
    shared.set(hashes(1, 2, 3));
    worker.stored(shared.subarray(2), { parent: 2n });
    expect([...scheduler.match(shared)].slice(0, 3)).toEqual([3, 3, 3]);
    expect(scheduler.stats().holderBlocks).toBe(3);
  });

  it('that are empty or detached hold nothing, and do no harm', () => {
    const [scheduler, worker] = schedulerOf({}, 1) as [Scheduler, Worker];
    const detached = new BigUint64Array(4);
    structuredClone(detached, { transfer: [detached.buffer] });
    for (const nothing of [new BigUint64Array(0), detached]) {
      worker.stored(nothing);
      worker.stored(nothing, { parent: 1n });
      worker.removed(nothing);
      expect([...scheduler.match(nothing)]).toEqual(new Array(12).fill(0));
      expect(scheduler.openWorkflow().submit({ chain: nothing, promptTokens: 64 }).place()).toMatchObject({
        promptBlocks: 16,
        longestMatch: { blocks: 0, worker: undefined },
      });
    }
    expect(scheduler.stats().holderBlocks).toBe(0);
    const gone = tokens(8);
    structuredClone(gone, { transfer: [gone.buffer] });
    expect(scheduler.hash(gone)).toEqual(hashes());
    expect(errorOf(() => scheduler.openWorkflow().submit(gone)).message).toBe(
      'a prompt must have at least one token, got none',
    );
    expect(scheduler.verify()).toBe(true);
  });

  it('that come back from hash are the caller’s own; the one from match is not', () => {
    const [scheduler, worker] = schedulerOf({}, 1) as [Scheduler, Worker];
    const first = scheduler.hash(tokens(8));
    const second = scheduler.hash(tokens(8, 100));
    expect(first).not.toEqual(second);
    expect(first).toEqual(scheduler.hash(tokens(8)));
    worker.stored(first);
    const depth = scheduler.match(first);
    expect(depth.length).toBe(3 * 4);
    expect(depth[0]).toBe(2);
    expect(scheduler.match(second)).toBe(depth);
    expect(depth[0]).toBe(0);
  });

  it('many salts: hashers that were forgotten hash as before', () => {
    const [scheduler] = schedulerOf();
    const hashOf = (i: number): bigint => scheduler.hash(tokens(4), `salt ${i}`)[0] as bigint;
    const once = Array.from({ length: 1500 }, (_, i) => hashOf(i));
    expect(new Set(once).size).toBe(1500);
    expect(Array.from({ length: 1500 }, (_, i) => hashOf(i))).toEqual(once);
  });
});

describe('the journal', () => {
  /** A few events of each kind. */
  function play(scheduler: Scheduler): void {
    const [first, second] = [scheduler.addWorker({ blocks: 9 }), scheduler.addWorker({ blocks: 9 })];
    second.stored(hashes(1, 2));
    const workflow = scheduler.openWorkflow({ tenant: 'acme' });
    const calls = [prompt(1, 2), prompt(3), prompt(1)].map((one) => workflow.submit(one));
    scheduler.decide();
    calls[0]?.firstToken();
    second.removed(hashes(2));
    first.load({ blocksInUse: 5 });
    second.remove();
    calls[1]?.cancel();
    scheduler.decide();
    for (const call of [calls[0], calls[2]]) call?.finish({ stop: 'tool-use', tool: 'web-api', outputTokens: 7 });
    workflow.toolStarted({ tool: 'web-api' });
    workflow.toolFinished();
    first.cleared();
    workflow.close();
  }

  it('read in pieces of any size rebuilds the state and every decision', () => {
    for (const most of [1, 7, 64, 2 ** 20]) {
      const [scheduler] = schedulerOf({ journalBytes: 2 ** 16, seed: 3 });
      play(scheduler);
      const pieces: Uint8Array[] = [];
      for (;;) {
        const piece = scheduler.readJournal(most);
        if (piece.length === 0) break;
        expect(piece.length).toBeLessThanOrEqual(most);
        pieces.push(piece);
      }
      const journal = Buffer.concat(pieces);
      expect(journal.subarray(0, 8).toString()).toBe('SAGAJRNL');
      expect(scheduler.stats().journalBytes).toBe(journal.length);
      // 20 events and 2 calls of decide, which placed 3 calls and then the one that lost its worker and the one behind it.
      expect(Scheduler.replay(journal)).toEqual({ digest: scheduler.digest(), events: 20, decisions: 5 });
    }
  });

  it('is the same bytes for the same events, and says where it is damaged', () => {
    const journalOf = (seed: number): Buffer => {
      const [scheduler] = schedulerOf({ journalBytes: 2 ** 16, seed });
      play(scheduler);
      return Buffer.from(scheduler.readJournal());
    };
    const journal = journalOf(3);
    expect(journalOf(3).equals(journal)).toBe(true);
    expect(journalOf(4).equals(journal)).toBe(false);
    const damaged = Buffer.from(journal);
    damaged[journal.length - 1] = (damaged[journal.length - 1] as number) ^ 1;
    for (const bad of [new Uint8Array(0), Buffer.from('SAGA'), journal.subarray(0, journal.length - 1), damaged]) {
      const error = errorOf(() => Scheduler.replay(bad));
      expect(error).toBeInstanceOf(SagaJournalError);
      expect(error.code).toBe('SAGA_ERR_JOURNAL_CORRUPT');
      expect(error.message).toMatch(
        /^not a journal, or it is cut off or damaged; \d+ events and the first \d+ bytes are good$/,
      );
    }
    const folder = mkdtempSync(join(tmpdir(), 'saga-journal-'));
    const file = join(folder, 'journal');
    writeFileSync(file, journal);
    expect(Scheduler.replayFile(file)).toEqual(Scheduler.replay(journal));
    expect(errorOf(() => Scheduler.replayFile(folder)).code).toBe('SAGA_ERR_INVALID_ARGUMENT');
    expect(errorOf(() => Scheduler.replayFile(`${file}s`)).code).toBe('SAGA_ERR_INVALID_ARGUMENT');
    rmSync(folder, { recursive: true });
    const version = Buffer.from(journal);
    version[8] = 99;
    expect(errorOf(() => Scheduler.replay(version)).code).toBe('SAGA_ERR_VERSION_MISMATCH');
  });

  it('that is not read refuses events until it is, and then rebuilds the state all the same', () => {
    const [scheduler, worker] = schedulerOf({ journalBytes: 4096, maxBlocks: 1024 }, 1) as [Scheduler, Worker];
    const journal: Uint8Array[] = [];
    let refusals = 0;
    for (let i = 0; i < 40; ++i) {
      const event = (): void => worker.stored(hashes(...tokens(50, i)));
      const before = scheduler.digest();
      try {
        event();
      } catch (error) {
        expect(error).toBeInstanceOf(SagaCapacityError);
        expect((error as SagaError).code).toBe('SAGA_ERR_JOURNAL_FULL');
        expect((error as SagaError).message).toBe(
          'worker 0 cannot store 50 blocks (the journal buffer is full: read it first)',
        );
        expect(scheduler.digest()).toBe(before);
        ++refusals;
        journal.push(scheduler.readJournal());
        event();
      }
    }
    expect(refusals).toBeGreaterThan(3);
    journal.push(scheduler.readJournal());
    expect(Scheduler.replay(Buffer.concat(journal))).toEqual({ digest: scheduler.digest(), events: 41, decisions: 0 });
    // What the empty buffer could not take would fail for ever.
    refused(scheduler, SagaCapacityError, 'SAGA_ERR_FULL', /^worker 0 cannot store 600 blocks \(a bound/, () =>
      worker.stored(hashes(...tokens(600))),
    );
  });

  it('that runs full amid a decide gives what was placed, and place() does not take that for a missing worker', () => {
    const [scheduler] = schedulerOf({ journalBytes: 4096, maxCalls: 200, maxOpenBlocks: 2 ** 16 }, 2);
    const workflow = scheduler.openWorkflow();
    const journal: Uint8Array[] = [];
    const calls = Array.from({ length: 100 }, () => {
      journal.push(scheduler.readJournal());
      return workflow.submit(tokens(3));
    });
    journal.push(scheduler.readJournal());
    // One record holds 63 decisions and fills the buffer.
    expect(scheduler.decide()).toEqual(calls.slice(0, 63));
    refused(scheduler, SagaCapacityError, 'SAGA_ERR_JOURNAL_FULL', /^the waiting calls cannot be placed \(/, () =>
      scheduler.decide(),
    );
    const last = calls[99] as Call;
    refused(scheduler, SagaCapacityError, 'SAGA_ERR_JOURNAL_FULL', /^the waiting calls cannot be placed \(/, () =>
      last.place(),
    );
    journal.push(scheduler.readJournal());
    expect(last.place().openCalls).toBe(49);
    expect(scheduler.stats().waitingCalls).toBe(0);
    journal.push(scheduler.readJournal());
    expect(Scheduler.replay(Buffer.concat(journal))).toMatchObject({ digest: scheduler.digest(), decisions: 100 });
  });

  it('is empty where there is none', () => {
    const [scheduler] = schedulerOf({}, 1);
    expect(scheduler.readJournal()).toEqual(new Uint8Array(0));
  });
});

describe('a closed scheduler', () => {
  it('refuses everything, and may be closed again', () => {
    const [scheduler, worker] = schedulerOf({ journalBytes: 4096 }, 1) as [Scheduler, Worker];
    const workflow = scheduler.openWorkflow();
    const call = workflow.submit(tokens(4));
    call.place();
    scheduler[Symbol.dispose]();
    scheduler.close();
    const actions: (() => unknown)[] = [
      () => scheduler.addWorker({ blocks: 1 }),
      () => scheduler.worker(0),
      () => scheduler.openWorkflow(),
      () => scheduler.decide(),
      () => scheduler.match(hashes(1)),
      () => scheduler.hash([1]),
      () => scheduler.stats(),
      () => scheduler.digest(),
      () => scheduler.verify(),
      () => scheduler.readJournal(),
      () => worker.stored(hashes(1)),
      () => worker.removed(hashes(1)),
      () => worker.cleared(),
      () => worker.load({ blocksInUse: 1 }),
      () => worker.trust(1),
      () => worker.drain(),
      () => worker.resume(),
      () => worker.window(0),
      () => worker.windowStored(hashes(1)),
      () => worker.windowRemoved(hashes(1)),
      () => worker.remove(),
      () => worker.state(),
      () => workflow.submit(tokens(4)),
      () => workflow.toolStarted(),
      () => workflow.toolFinished(),
      () => workflow.close(),
      () => call.place(),
      () => call.firstToken(),
      () => call.finish(),
      () => call.cancel(),
    ];
    for (const action of actions) {
      const error = errorOf(action);
      expect(error).toBeInstanceOf(SagaStateError);
      expect([error.code, error.message]).toEqual(['SAGA_ERR_CLOSED', 'the scheduler was closed']);
    }
  });
});
