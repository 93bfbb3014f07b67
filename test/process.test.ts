/**
 * The package in processes of their own: worker threads, exit with open schedulers, what the garbage collector frees, and what
 * the hot path allocates. They load what the build made (dist/).
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('../', import.meta.url));

/** Runs a program as an ES module in the package's folder; returns what it printed. */
function outputOf(program: string, flags: string[] = []): string {
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    [...flags, '--input-type=module', '-e', program],
    { cwd: root, encoding: 'utf8', timeout: 60_000 },
  );
  expect({ status, signal, stderr }).toEqual({ status: 0, signal: null, stderr: '' });
  return stdout;
}

function measured(program: string, flags: string[]): Record<string, number> {
  return JSON.parse(outputOf(program, flags)) as Record<string, number>;
}

describe('worker threads', () => {
  it('load the addon side by side and decide alike, and their end frees what they left open', () => {
    const output = outputOf(`
      import { Worker } from 'node:worker_threads';
      const program = \`
        import { parentPort } from 'node:worker_threads';
        import { Scheduler } from 'saga-scheduler';
        const scheduler = new Scheduler({ policy: 'affinity', maxBlocks: 4096, seed: 1, imbalanceCalls: 1 });
        const workers = Array.from({ length: 4 }, () => scheduler.addWorker({ blocks: 100, now: 0 }));
        const workflow = scheduler.openWorkflow({ now: 0 });
        for (let i = 1; i < 3000; ++i) {
          const prompt = Uint32Array.from({ length: 64 }, (_, at) => at * (i % 7));
          const { worker } = workflow.submit(prompt, { now: i }).place({ now: i });
          worker.stored(scheduler.hash(prompt), { now: i });
        }
        parentPort.postMessage([String(scheduler.digest()), scheduler.verify()]);
      \`;
      const run = () => new Promise((resolve, reject) => {
        const thread = new Worker(program, { eval: true });
        let message;
        thread.on('message', (value) => { message = value; });
        thread.on('error', reject);
        thread.on('exit', (code) => resolve([code, ...message]));
      });
      const results = await Promise.all([run(), run(), run()]);
      results.push(await run());
      console.log(JSON.stringify(results));
    `);
    const results = JSON.parse(output) as [number, string, boolean][];
    expect(results.length).toBe(4);
    for (const result of results) expect(result).toEqual([0, results[0]?.[1], true]);
  });

  it.each([
    ['work', 'for (;;) { const call = workflow.submit([1, 2, 3]); call.place(); call.finish(); }', 3],
    ['making objects', 'for (;;) { new BlockHasher(); new PromptChain(); new PageTable({ blocks: { gpu: 8 } }); }', 30],
  ])('can be ended amid their %s', (_, loop, threads) => {
    const output = outputOf(`
      import { Worker } from 'node:worker_threads';
      const program = \`
        import { parentPort } from 'node:worker_threads';
        import { BlockHasher, PageTable, PromptChain, Scheduler } from 'saga-scheduler';
        const scheduler = new Scheduler({ maxBlocks: 4096 });
        scheduler.addWorker({ blocks: 100 });
        const workflow = scheduler.openWorkflow();
        parentPort.postMessage('ready');
        ${loop}
      \`;
      for (let i = 0; i < ${threads}; ++i) {
        const thread = new Worker(program, { eval: true });
        await new Promise((resolve) => thread.on('message', resolve));
        await thread.terminate();
      }
      console.log('ended');
    `);
    expect(output).toBe('ended\n');
  });
});

describe('the end of a process', () => {
  it.each([
    ['by itself', ''],
    ['by process.exit', 'process.exit(0);'],
    ['in an exit handler', "process.on('exit', () => call.finish());"],
  ])('%s, with schedulers, page tables and hashers open', (_, end) => {
    const output = outputOf(`
      import { BlockHasher, PageTable, Scheduler } from 'saga-scheduler';
      const schedulers = [1, 2].map((seed) => new Scheduler({ maxBlocks: 1024, seed, journalBytes: 4096 }));
      const worker = schedulers[0].addWorker({ blocks: 1 });
      const call = schedulers[0].openWorkflow().submit([1]);
      call.place();
      const hasher = new BlockHasher({ algorithm: 'sha256_cbor' });
      const table = new PageTable({ blocks: { gpu: 8 } });
      console.log('still open');
      ${end}
    `);
    expect(output).toBe('still open\n');
  });
});

describe('the garbage collector', () => {
  it('frees 2,000 schedulers that were dropped, closed or not', () => {
    const growth = measured(
      `
      import { Scheduler } from 'saga-scheduler';
      const turn = async (count) => {
        for (let i = 0; i < count; ++i) {
          const scheduler = new Scheduler({ maxBlocks: 2 ** 12, maxOpenBlocks: 2 ** 12, maxChainBlocks: 2 ** 10 });
          const worker = scheduler.addWorker({ blocks: 10 });
          const prompt = Uint32Array.from({ length: 640 }, (_, at) => at);
          worker.stored(scheduler.hash(prompt, 'salt'));
          scheduler.openWorkflow({ salt: 'salt' }).submit(prompt).place();
          if (i % 3 === 0) scheduler.close();
          if (i % 20 === 19) { gc(); await new Promise(setImmediate); }
        }
        gc();
        await new Promise(setImmediate);
        return process.memoryUsage();
      };
      const before = await turn(200);
      const after = await turn(2000);
      const difference = (name) => after[name] - before[name];
      console.log(JSON.stringify({
        rss: difference('rss'), heapUsed: difference('heapUsed'), arrayBuffers: difference('arrayBuffers'),
      }));
    `,
      ['--expose-gc'],
    );
    // Each holds about 1 MB of native memory: 2,000 that stayed would be 2 GB.
    expect(growth['rss']).toBeLessThan(60e6);
    expect(growth['heapUsed']).toBeLessThan(3e6);
    expect(growth['arrayBuffers']).toBeLessThan(1e6);
  });
});

describe('the hot path', () => {
  it('allocates the call and its receipt and no more, and keeps nothing', () => {
    const used = measured(
      `
      import { Scheduler } from 'saga-scheduler';
      const scheduler = new Scheduler({ maxBlocks: 2 ** 16, clock: () => 0 });
      const workers = Array.from({ length: 8 }, () => scheduler.addWorker({ blocks: 1000 }));
      const workflow = scheduler.openWorkflow();
      const prompt = Uint32Array.from({ length: 8000 }, (_, at) => at);
      const hashes = scheduler.hash(prompt);
      const finish = { stop: 'tool-use', tool: 'web-api', outputTokens: 300 };
      const turn = (count) => {
        for (let i = 0; i < count; ++i) {
          const call = workflow.submit(prompt);
          call.place();
          call.firstToken();
          call.finish(finish);
        }
      };
      turn(20_000);
      gc();
      const before = process.memoryUsage();
      const count = 20_000;
      turn(count);
      const during = process.memoryUsage();
      gc();
      const after = process.memoryUsage();
      console.log(JSON.stringify({
        allocated: (during.heapUsed - before.heapUsed) / count,
        arrayBuffers: during.arrayBuffers - before.arrayBuffers,
        kept: (after.heapUsed - before.heapUsed) / count,
      }));
    `,
      // So large a nursery that nothing is collected on the way.
      ['--expose-gc', '--min-semi-space-size=64', '--max-semi-space-size=64'],
    );
    // The prompt has 8,000 tokens and 500 blocks: one object or number of 8 bytes for each would be 4,000. Some 400 are the call
    // and its receipt; code that the machine was too busy to compile yet needs more.
    expect(used['allocated']).toBeGreaterThan(50);
    expect(used['allocated']).toBeLessThan(1600);
    expect(used['arrayBuffers']).toBe(0);
    expect(used['kept']).toBeLessThan(16);
  });
});
