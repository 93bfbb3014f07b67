import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { EmulatedWorker } from '../../src/emulated-worker/index.js';

const command = fileURLToPath(new URL('../../dist/esm/cli/main.js', import.meta.url));

function doctor(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [command, 'doctor', ...args], (error, out, err) => {
      resolve({ code: error === null ? 0 : Number(error.code), out, err });
    });
  });
}

describe('saga doctor --directives', () => {
  const key = 'a key of at least 16 bytes';
  let worker: EmulatedWorker;
  beforeAll(async () => {
    worker = await EmulatedWorker.start({ directivesPort: 0, directiveKey: key, timeScale: Infinity });
  });
  afterAll(() => worker.close());

  it('says what the connector can do', async () => {
    const { code, out, err } = await doctor(
      '--directives',
      worker.directives as string,
      '--directive-key',
      key,
      '--json',
    );
    expect(err).toBe('');
    expect(JSON.parse(out)).toMatchObject({
      schema: 'saga.doctor.connector/1',
      strength: 'leases',
      ok: true,
      problem: null,
    });
    expect(code).toBe(0);
  });

  it('says that nobody answers, also to a wrong key, and shows no key', async () => {
    const wrong = 'another key of 16 bytes or more';
    const { code, out, err } = await doctor('--directives', worker.directives as string, '--directive-key', wrong);
    expect(err).toContain('no answer from');
    expect(out).toMatch(/^strength +unknown$/m);
    expect(out + err).not.toContain(wrong);
    expect(code).toBe(1);
  });

  it('refuses what is no endpoint', async () => {
    const { code, err } = await doctor('--directives', 'http://127.0.0.1:1');
    expect(err).toContain('--directives must be like tcp://127.0.0.1:5557');
    expect(code).toBe(2);
  });
});
