/** Workloads played against an emulated worker, against figures known beforehand. */
import { afterEach, describe, expect, it } from 'vitest';
import { EmulatedWorker, type EmulatedWorkerOptions } from '../../src/emulated-worker/index.js';
import { playTasks, poissonArrivals, scaledWorkload, WorkloadContent } from '../../src/play/index.js';
import { promptKindNumber, stopReasonNumber, toolClassNumber, WorkloadBuilder } from '../../src/workload/columns.js';
import type { WorkloadColumns } from '../../src/workload/columns.js';
import { generateTasks, paperWorkloads } from '../../src/workload/paper-workloads.js';

let workers: EmulatedWorker[] = [];
afterEach(async () => {
  await Promise.all(workers.map((worker) => worker.close()));
  workers = [];
});

async function worker(options: EmulatedWorkerOptions = {}): Promise<EmulatedWorker> {
  const made = await EmulatedWorker.start({ model: 'm', blocks: 400, timeScale: Infinity, ...options });
  workers.push(made);
  return made;
}

interface Call {
  prompt: number;
  output: number;
  ids: [first: number, length: number];
  /** Of earlier calls of the task: number and gap in seconds. */
  after?: [call: number, gap: number][];
  thread?: number;
}

function workloadOf(blockTokens: number, tasks: readonly (readonly Call[])[]): WorkloadColumns {
  const builder = new WorkloadBuilder(blockTokens, ['test']);
  let threads = 0;
  for (const calls of tasks) {
    builder.beginTask({ name: '', tenant: 0, taskClass: 0, expectedSeconds: 0, weight: 1, arrival: NaN });
    const first = builder.calls;
    calls.forEach(({ prompt, output, ids, after, thread = 0 }, number) => {
      builder.addCall({
        thread: threads + thread,
        promptTokens: prompt,
        outputTokens: output,
        promptKind: number === 0 ? promptKindNumber.start : promptKindNumber.tool,
        stopReason: number === calls.length - 1 ? stopReasonNumber.endTurn : stopReasonNumber.toolUse,
        toolClass: toolClassNumber.none,
        seconds: NaN,
        time: 0,
        gapSeconds: 0,
        number,
        main: thread === 0,
      });
      for (const [call, gap] of after ?? []) builder.addPredecessor(first + call, gap);
      builder.addRun(...ids);
    });
    threads += 10;
  }
  return builder.finish();
}

/** Two calls; the second one has the first one's prompt, its answer and 12 tokens more. */
const pair = (firstId: number): Call[] => [
  { prompt: 40, output: 20, ids: [firstId, 2] },
  { prompt: 72, output: 10, ids: [firstId, 4], after: [[0, 0]] },
];

describe('WorkloadContent', () => {
  const content = new WorkloadContent(workloadOf(16, [pair(5), pair(5), pair(900)]), 1, { low: 100, high: 1000 });

  it('continues a prompt with the answer and what comes behind it', () => {
    const before = [...content.prompt(0), ...content.answer(0)];
    expect(before.length).toBe(60);
    expect([...content.prompt(1)].slice(0, 60)).toEqual(before);
    expect([...content.prompt(1, 60)]).toEqual([...content.prompt(1)].slice(60));
    expect([content.previous(0), content.previous(1), content.continued(0), content.continued(1)]).toEqual([
      undefined,
      0,
      true,
      false,
    ]);
  });

  it('has equal tokens for equal ids alone, within the range', () => {
    // Ids 5 to 8 cover 64 tokens; what is behind them belongs to each call.
    expect([...content.prompt(3)].slice(0, 64)).toEqual([...content.prompt(1)].slice(0, 64));
    expect([...content.prompt(3)].slice(64)).not.toEqual([...content.prompt(1)].slice(64));
    expect([...content.prompt(5)].slice(0, 16)).not.toEqual([...content.prompt(1)].slice(0, 16));
    for (const token of content.prompt(1)) expect(token >= 100 && token < 1000).toBe(true);
  });

  it('is other words with another seed', () => {
    const other = new WorkloadContent(content.columns, 2, { low: 100, high: 1000 });
    expect([...other.prompt(0)]).not.toEqual([...content.prompt(0)]);
  });
});

describe('scaledWorkload', () => {
  it('plays each id as fewer tokens', () => {
    const { promptTokens, outputTokens, blockTokens, runLength } = scaledWorkload(
      workloadOf(64, [[{ prompt: 130, output: 9, ids: [0, 2] }]]),
      16,
    );
    expect([promptTokens[0], outputTokens[0], blockTokens, runLength[0]]).toEqual([33, 3, 16, 2]);
    expect(() => scaledWorkload(workloadOf(64, [pair(0)]), 48)).toThrow('expected a divisor of 64 block tokens');
  });
});

describe('poissonArrivals', () => {
  it('has one pattern at every rate', () => {
    const slow = poissonArrivals(1000, 1, 42);
    const fast = poissonArrivals(1000, 4, 42);
    slow.forEach((seconds, task) => expect(Math.abs(seconds / 4 - (fast[task] as number))).toBeLessThan(1e-5));
    expect((slow[999] as number) / 1000).toBeGreaterThan(0.9);
    expect((slow[999] as number) / 1000).toBeLessThan(1.1);
    expect([...poissonArrivals(3, 1, 43)]).not.toEqual([...slow.subarray(0, 3)]);
  });
});

describe('playTasks', () => {
  it.each([true, false])('counts what was cached and what was computed again (streams: %s)', async (stream) => {
    const { url } = await worker();
    const tasks = workloadOf(16, [pair(5), pair(100)]);
    const result = await playTasks({ url, model: 'm', tasks, arrivals: { live: 1 }, stream });
    // 59 tokens of the first call are there, 48 of them in whole blocks.
    expect(result.calls.map(({ call, cachedTokens, promptTokens }) => [call, cachedTokens, promptTokens])).toEqual([
      [0, 0, 40],
      [1, 48, 72],
      [2, 0, 40],
      [3, 48, 72],
    ]);
    const { completedTasks, failedTasks, promptTokens, cachedTokens, outputTokens, recomputedTokens } = result;
    expect({ completedTasks, failedTasks, promptTokens, cachedTokens, outputTokens, recomputedTokens }).toEqual({
      completedTasks: 2,
      failedTasks: 0,
      promptTokens: 224,
      cachedTokens: 96,
      outputTokens: 60,
      recomputedTokens: 0,
    });
    expect(Number.isNaN(result.firstByte.mean)).toBe(!stream);
  });

  it('tells when a cache had forgotten', async () => {
    const { url } = await worker({ blocks: 6 });
    // Of five blocks nothing is left when the other task has run between.
    const tasks = workloadOf(16, [
      [
        { prompt: 40, output: 20, ids: [0, 2] },
        { prompt: 72, output: 2, ids: [0, 4], after: [[0, 0.4]] },
      ],
      [{ prompt: 70, output: 4, ids: [50, 4] }],
    ]);
    const result = await playTasks({ url, model: 'm', tasks, arrivals: { seconds: [0, 0.15] } });
    expect(result.calls.map(({ call, recomputedTokens }) => [call, recomputedTokens])).toEqual([
      [0, 0],
      [2, 0],
      [1, 48],
    ]);
    expect(result.recomputedTokens).toBe(48);
  });

  it('waits for the last of several, and knows the gaps on the critical path', async () => {
    const { url } = await worker();
    const tasks = workloadOf(16, [
      [
        { prompt: 40, output: 2, ids: [0, 2] },
        { prompt: 40, output: 2, ids: [10, 2], thread: 1, after: [[0, 4]] },
        { prompt: 72, output: 2, ids: [0, 4], after: [[0, 1], [1, 2]] }, // prettier-ignore
      ],
    ]);
    const result = await playTasks({ url, model: 'm', tasks, arrivals: { live: 1 }, timeScale: 20 });
    const [task] = result.tasks;
    expect(task?.completionSeconds).toBeGreaterThanOrEqual(6);
    expect((task?.completionSeconds as number) - (task?.withoutGapsSeconds as number)).toBeCloseTo(6, 9);
    expect(result.calls.map(({ call }) => call)).toEqual([0, 1, 2]);
  });

  it('ends a task with its first error, and plays the others', async () => {
    const { url } = await worker({ maxModelTokens: 80 });
    const tasks = workloadOf(16, [[{ prompt: 100, output: 2, ids: [0, 6] }], pair(50)]);
    const result = await playTasks({ url, model: 'm', tasks, arrivals: { live: 2 }, seed: 3 });
    expect([result.completedTasks, result.failedTasks]).toEqual([0, 2]);
    expect(result.tasks[0]?.error).toMatch(/maximum context length is 80 tokens/);
  });

  it('breaks off when told to', async () => {
    const { url } = await worker({ timeScale: 1 });
    const stop = new AbortController();
    const tasks = generateTasks({ classes: paperWorkloads['swe-bench'], tasks: 2 });
    const playing = playTasks({ url, model: 'm', tasks, arrivals: { live: 2 }, signal: stop.signal });
    setTimeout(() => stop.abort(new Error('enough')), 50);
    await expect(playing).rejects.toThrow('enough');
  });
});
