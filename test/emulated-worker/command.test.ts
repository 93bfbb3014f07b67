/** `saga worker` as a process. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import type { WorkerReport } from '../../src/cli/worker.js';

const command = fileURLToPath(new URL('../../dist/esm/cli/main.js', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'saga-worker-'));
afterAll(() => rmSync(folder, { recursive: true }));

async function run(...args: string[]): Promise<{ code: number | null; errors: string }> {
  const child = spawn(process.execPath, [command, 'worker', ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
  let errors = '';
  child.stderr.on('data', (part: Buffer) => (errors += part.toString()));
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, errors };
}

describe.skipIf(!existsSync(command))('saga worker (skipped where nothing is built)', () => {
  it('says where it listens, answers by its script, and ends on a signal', async () => {
    const script = join(folder, 'script.json');
    writeFileSync(
      script,
      JSON.stringify({
        rules: [{ contains: 'list', answer: { toolCalls: [{ name: 'ls' }] } }],
        default: { content: 'Done.' },
      }),
    );
    const args = ['--port', '0', '--events-port', '0', '--directives-port', '0', '--time-scale', 'infinity'];
    const child = spawn(process.execPath, [command, 'worker', ...args, '--script', script, '--json']);
    const [line] = (await once(child.stdout, 'data')) as [Buffer];
    const report = JSON.parse(line.toString()) as WorkerReport;
    expect(report.schema).toBe('saga.worker/1');
    for (const address of [report.events, report.replay, report.directives])
      expect(address).toMatch(/^tcp:\/\/127\.0\.0\.1:\d+$/);
    const ask = async (content: string): Promise<unknown> => {
      const response = await fetch(`${report.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ messages: [{ role: 'user', content }] }),
      });
      return ((await response.json()) as { choices: unknown[] }).choices[0];
    };
    expect(await ask('list it')).toMatchObject({
      finish_reason: 'tool_calls',
      message: { content: null, tool_calls: [{ type: 'function', function: { name: 'ls', arguments: '{}' } }] },
    });
    expect(await ask('anything')).toMatchObject({ finish_reason: 'stop', message: { content: 'Done.' } });
    child.kill('SIGTERM');
    const [code] = (await once(child, 'close')) as [number | null];
    expect(code).toBe(0);
  });

  it('refuses what it cannot use, in one sentence', async () => {
    expect(await run('--step-model', '{')).toMatchObject({
      code: 2,
      errors: expect.stringContaining('--step-model is not JSON') as string,
    });
    expect(await run('--blocks', '1')).toMatchObject({
      code: 2,
      errors: expect.stringContaining('blocks must be') as string,
    });
    expect(await run('--time-scale', '-1')).toMatchObject({ code: 2 });
    expect(await run('--script', join(folder, 'none.json'))).toMatchObject({
      code: 2,
      errors: expect.stringContaining('cannot be read') as string,
    });
  });
});
