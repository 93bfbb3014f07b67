/** Each program in examples/ runs as it stands, in a process of its own, against the gateway before a worker that plays its part by a script. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { EmulatedWorker } from '../../src/emulated-worker/index.js';
import { scriptOf } from '../../src/emulated-worker/script-file.js';
import { Gateway } from '../../src/gateway/index.js';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../../', import.meta.url));
const file = (path: string): string => `${root}examples/${path}`;

let workers: EmulatedWorker[] = [];
let gateway: Gateway;
let url = '';

beforeAll(async () => {
  const script = scriptOf(JSON.parse(readFileSync(file('script.json'), 'utf8')));
  workers = await Promise.all(
    [0, 1].map(() => EmulatedWorker.start({ model: 'demo', eventsPort: 0, timeScale: Infinity, script })),
  );
  gateway = await Gateway.start({
    port: 0,
    models: [
      {
        name: 'demo',
        servers: workers.map(({ url: server, events, replay }) => ({
          url: server,
          ...(events === undefined ? {} : { events }),
          ...(replay === undefined ? {} : { replay }),
        })),
      },
    ],
  });
  url = `http://127.0.0.1:${(await gateway.listen()).port}`;
});

afterAll(async () => {
  await gateway.close({ graceSeconds: 0 });
  await Promise.all(workers.map((worker) => worker.close()));
});

async function output(program: string, path: string): Promise<string[]> {
  const { stdout, stderr } = await run(program, [file(path)], {
    env: { PATH: process.env['PATH'], HOME: process.env['HOME'], SAGA_URL: url, NODE_NO_WARNINGS: '1' },
    timeout: 50_000,
  });
  expect(stderr).toBe('');
  return stdout.trimEnd().split('\n');
}

const answer = 'It is 18 degrees and cloudy in Paris.';

describe('examples/', () => {
  it('openai-sdk', async () => {
    expect(await output(process.execPath, 'openai-sdk/main.mjs')).toEqual([
      'streamed: one, two, three',
      'tool: get_weather of Paris',
      `answer: ${answer}`,
    ]);
  });

  it('ai-sdk', async () => {
    expect(await output(process.execPath, 'ai-sdk/main.mjs')).toEqual([
      'streamed: one, two, three',
      'tool: get_weather of Paris',
      `answer after 2 calls: ${answer}`,
    ]);
  });

  it('langgraph', async () => {
    expect(await output(process.execPath, 'langgraph/main.mjs')).toEqual([
      'tool: get_weather of Paris',
      'steps: human, ai, tool, ai',
      `answer: ${answer}`,
    ]);
  });

  it('select', async () => {
    expect(await output('python3', 'select/place.py')).toEqual([
      'new: 0 of 6 blocks held, 0 tokens were cached',
      'holder: 6 of 10 blocks held, 96 tokens were cached',
    ]);
  });

  it('fastify', async () => {
    const child = spawn(process.execPath, [file('fastify/server.mjs')], {
      env: { PATH: process.env['PATH'], WORKERS: workers.map((worker) => worker.url).join(','), PORT: '0' },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    try {
      const [line] = (await once(child.stdout, 'data')) as [Buffer];
      const [, address = ''] = /^listening at (http:\S+)\n$/.exec(line.toString()) ?? [];
      expect(await (await fetch(`${address}/hello`)).json()).toEqual({ hello: 'from Fastify' });
      const chat = await fetch(`${address}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'demo', messages: [{ role: 'user', content: 'Count to three.' }] }),
      });
      const { choices } = (await chat.json()) as { choices: { message: { content: string } }[] };
      expect(choices[0]?.message.content).toBe('one, two, three');
      expect(await (await fetch(`${address}/saga/workers`)).json()).toMatchObject({
        workers: [{ condition: 'ready' }, { condition: 'ready' }],
      });
    } finally {
      child.kill('SIGTERM');
      await once(child, 'exit');
    }
    expect(child.exitCode).toBe(0);
  });
});
