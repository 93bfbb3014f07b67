/** `saga demo`: what it draws, and the command from its beginning to its end with a few tasks. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import type { RunState } from '../../src/demo/comparison.js';
import { serversOf } from '../../src/demo/demo.js';
import { DemoView, pictureOf } from '../../src/demo/view.js';
import { EmulatedWorker } from '../../src/emulated-worker/index.js';

const root = fileURLToPath(new URL('../../', import.meta.url));

const state: RunState = {
  policy: 'affinity',
  run: 2,
  runs: 3,
  timeScale: 40,
  seconds: 3.2,
  progress: {
    seconds: 128,
    tasks: 80,
    arrivedTasks: 31,
    completedTasks: 20,
    failedTasks: 0,
    callsSent: 300,
    callsEnded: 290,
    promptTokens: 1_000_000,
    cachedTokens: 250_000,
    recomputedTokens: 640_000,
    outputTokens: 90_000,
  },
  queuedCalls: 4,
  placements: 296,
  workers: [
    {
      url: 'http://127.0.0.1:8000',
      running: 5,
      waiting: 1,
      usage: 0.5,
      queriedTokens: 100,
      cachedTokens: 25,
      preemptions: 0,
      busySeconds: 1,
      steps: 1,
      lateSeconds: 0,
    },
  ],
};

describe('the view', () => {
  it('draws workers, queue, placements, hit rate, tokens and tasks', () => {
    expect(pictureOf(state)).toEqual([
      'run 2 of 3: affinity                    3 s for 128 s of the agents',
      '',
      'worker 1  [############------------]  50 % of its blocks in use,   5 running,   1 waiting, hit rate  25 %',
      '',
      'tasks     [######------------------] 20 of 80 ended, 11 under way',
      'calls     296 placed, 290 answered, 4 in the queue of the gateway',
      'prompts   1,000,000 tokens, 25 % cached, 640,000 computed again',
    ]);
  });

  it('is redrawn in place on a terminal, and lines elsewhere', () => {
    const written = { terminal: '', file: '' };
    const terminal = new DemoView({ isTTY: true, columns: 60, write: (text) => (written.terminal += text) }, {});
    terminal.show(state);
    terminal.show(state);
    terminal.close();
    expect(written.terminal.split('\x1b[7A\r').length).toBe(3);
    expect(written.terminal.startsWith('\x1b[?25l')).toBe(true);
    expect(written.terminal.endsWith('\x1b[J\x1b[?25h')).toBe(true);
    const file = new DemoView({ write: (text) => (written.file += text) }, {});
    file.show(state);
    file.show({ ...state, seconds: 5 });
    file.show({ ...state, seconds: 7.5 });
    file.close();
    expect(written.file.split('\n').map((line) => line.slice(0, 26))).toEqual([
      'saga demo: affinity, 3 s: ',
      'saga demo: affinity, 8 s: ',
      '',
    ]);
  });
});

describe('SAGA_WORKERS', () => {
  it('has the settings of servers behind their URLs', () => {
    expect(serversOf('http://a:8000,events=tcp://a:5557,replay=tcp://a:5558,http://b:8000')).toEqual([
      { url: 'http://a:8000', events: 'tcp://a:5557', replay: 'tcp://a:5558' },
      { url: 'http://b:8000' },
    ]);
    expect(() => serversOf('events=tcp://a:5557')).toThrow('SAGA_WORKERS must begin with a URL');
    expect(() => serversOf('http://a:8000,size=3')).toThrow('size must be a setting of a server');
  });
});

async function demo(
  args: string[],
  env: NodeJS.ProcessEnv = {},
): Promise<{ code: number | null; out: string; err: string }> {
  const child = spawn(process.execPath, [`${root}dist/esm/cli/main.js`, 'demo', ...args], {
    env: { PATH: process.env['PATH'], NODE_NO_WARNINGS: '1', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const text = { out: '', err: '' };
  child.stdout.on('data', (chunk: Buffer) => (text.out += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (text.err += chunk.toString()));
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, ...text };
}

describe('the command', { timeout: 150_000 }, () => {
  it('plays all policies, prints lines and a table, and ends by itself', async () => {
    const { code, out, err } = await demo(['--tasks', '3', '--time-scale', '200']);
    expect({ code, err: code === 0 ? '' : err }).toEqual({ code: 0, err: '' });
    expect(err).toMatch(/^saga demo: 3 agent tasks like SWE-bench's, \d+ calls on 4 emulated workers/);
    for (const policy of ['round-robin', 'affinity', 'saga']) {
      expect(err).toContain(`saga demo: ${policy}, 0 s: `);
      // Task times, hit rate, tokens, seconds, calls.
      expect(out).toMatch(new RegExp(`\n${policy} +\\d+ +\\d+ +\\d+ +\\d+ % +[\\d,]+ +[\\d,]+ +\\d+\n`));
    }
    expect(out).toMatch(/Against affinity, tasks under saga take \d\.\d\d times (less|more) on average/);
  });

  it('uses real workers where they are named, and says so', async () => {
    const worker = await EmulatedWorker.start({ model: 'real', timeScale: 100 });
    try {
      const { code, out, err } = await demo([], { SAGA_WORKERS: worker.url });
      expect({ code, err: code === 0 ? '' : err }).toEqual({ code: 0, err: '' });
      expect(err).toContain('on the real workers of SAGA_WORKERS, in real time');
      expect(out).toMatch(/\nsaga +\d+ +\d+ +\d+ +\d+ % /);
    } finally {
      await worker.close();
    }
  });

  it('says which worker it cannot use', async () => {
    expect(await demo([], { SAGA_WORKERS: 'nowhere' })).toMatchObject({
      code: 2,
      err: 'saga demo: SAGA_WORKERS must begin with a URL such as http://127.0.0.1:8000, got nowhere\n',
    });
  });
});
