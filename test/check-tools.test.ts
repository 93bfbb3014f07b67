/** The sentence that a newcomer reads where a tool is missing. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';

const script = fileURLToPath(new URL('../scripts/check-tools.mjs', import.meta.url));
let folder = '';

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'saga-tools-'));
});

afterAll(() => {
  rmSync(folder, { recursive: true });
});

function check(env: Record<string, string>, ...args: string[]): { status: number | null; stderr: string } {
  const { CXX: _cxx, PYTHON: _python, npm_config_python: _config, ...rest } = process.env;
  const { status, stderr } = spawnSync(process.execPath, [script, ...args], {
    env: { ...rest, ...env },
    encoding: 'utf8',
  });
  return { status, stderr };
}

it('says nothing where everything is there', () => {
  expect(check({})).toEqual({ status: 0, stderr: '' });
});

it('names everything that is missing in one sentence', () => {
  expect(check({ PATH: folder })).toEqual({
    status: 1,
    stderr:
      'saga-scheduler cannot be built here: a C++20 compiler (g++ 11 or newer) is missing, ' +
      'Python 3.8 or newer is missing and make is missing.\n',
  });
});

it('asks for cmake only where cmake is used', () => {
  const { stderr } = check({ PATH: folder }, 'cmake');
  expect(stderr).toMatch(/^[^\n]*cmake is missing and ninja or make is missing\.\n$/);
});

it('tells a compiler that is too old from one that is missing', () => {
  const old = join(folder, 'old-compiler');
  // By a process of its own: what this one has open for writing, others that it starts meanwhile hold open, and it cannot be run.
  const text = '#!/bin/sh\n[ "$1" = -dumpversion ] && echo 8.3.0 && exit 0\nexit 1\n';
  execFileSync('sh', ['-c', 'cat > "$0" && chmod +x "$0"', old], { input: text });
  expect(check({ CXX: old }).stderr).toBe(
    `saga-scheduler cannot be built here: the C++ compiler ${old} 8.3.0 does not compile C++20 (g++ 11 or clang 14 does).\n`,
  );
  expect(check({ CXX: `${old}-gone` }).stderr).toContain('cannot be run');
});
