/**
 * The package as users get it: packed, installed into an empty project where no compiler can be found, loaded from both module
 * formats under every supported Node, and its commands run.
 */
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

/** The oldest supported Node and the newest of each line, by their exact versions in the npm registry. */
const nodeVersions = ['20.19.6', '22.23.3', '24.21.0'];

const root = fileURLToPath(new URL('../../', import.meta.url));
const require = createRequire(import.meta.url);
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
  version: string;
  scripts: Record<string, string>;
};

const work = mkdtempSync(join(tmpdir(), 'saga-packaging-'));
const project = join(work, 'project');
const installed = join(project, 'node_modules/saga-scheduler');
const bare = join(work, 'bin');
let tarball = '';

interface Outcome {
  status: number | null;
  stdout: string;
  stderr: string;
}

interface RunOptions {
  cwd?: string;
  env?: NodeJS.ProcessEnv;
}

function run(program: string, args: string[], options: RunOptions = {}): Outcome {
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    cwd: project,
    encoding: 'utf8',
    timeout: 240_000,
    ...options,
  });
  if (error) throw error;
  return { status, stdout, stderr };
}

function findOnPath(name: string): string | undefined {
  const folders = (process.env['PATH'] ?? '').split(delimiter);
  return folders.map((folder) => join(folder, name)).find((file) => existsSync(file));
}

function npm(args: string[], options: RunOptions = {}): Outcome {
  const cli = process.env['npm_execpath'] ?? realpathSync(findOnPath('npm') ?? 'npm');
  return run(process.execPath, [cli, ...args], options);
}

/** An environment in which node and a shell can be found, and no compiler, make or Python. */
function withoutCompiler(): NodeJS.ProcessEnv {
  const { CC: _cc, CXX: _cxx, NODE_PATH: _path, ...env } = process.env;
  return { ...env, PATH: bare };
}

/** Runs the installed command `saga` with the same Node, as `npx saga` does. */
const saga = (args: string[], env: NodeJS.ProcessEnv = withoutCompiler()): Outcome =>
  run(join(project, 'node_modules/.bin/saga'), args, { env });

function filesOf(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) => !file.startsWith('node_modules'));
}

function nodeOf(version: string): string {
  return join(work, 'runtimes/node_modules', `node-${version}`, 'bin/node');
}

beforeAll(() => {
  mkdirSync(project, { recursive: true });
  mkdirSync(bare);
  symlinkSync(process.execPath, join(bare, 'node'));
  for (const name of ['sh', 'env']) symlinkSync(findOnPath(name) ?? `/bin/${name}`, join(bare, name));

  const packed = npm(['pack', '--pack-destination', work], { cwd: root });
  expect(packed.status, packed.stderr).toBe(0);
  tarball = join(work, readdirSync(work).find((file) => file.endsWith('.tgz')) ?? '');

  const runtimes = join(work, 'runtimes');
  mkdirSync(runtimes);
  const platform = `node-${process.platform}-${process.arch}`;
  const dependencies = Object.fromEntries(nodeVersions.map((v) => [`node-${v}`, `npm:${platform}@${v}`]));
  writeFileSync(join(runtimes, 'package.json'), JSON.stringify({ private: true, dependencies }));
  const fetched = npm(['install', '--no-audit', '--no-fund', '--no-package-lock'], { cwd: runtimes });
  expect(fetched.status, fetched.stderr).toBe(0);

  writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'project', private: true }));
  for (const file of ['smoke.mjs', 'smoke.cjs']) {
    copyFileSync(new URL(file, import.meta.url), join(project, file));
  }
});

afterAll(() => {
  rmSync(work, { recursive: true, force: true });
});

describe('the tarball', () => {
  it('installs without a script of its own or a compiler, by npm install and by npm ci', () => {
    for (const command of [['install', tarball], ['ci']]) {
      const { status, stdout, stderr } = npm([...command, '--no-audit', '--no-fund', '--foreground-scripts'], {
        env: withoutCompiler(),
      });
      const output = `${stdout}${stderr}`;
      expect(status, output).toBe(0);
      // zeromq has one, which does nothing where its own binaries fit.
      const others = output
        .split('\n')
        .filter((line) => !/zeromq@|node \.\/script\/install\.js|install-scripts/.test(line))
        .join('\n');
      expect(others).not.toMatch(/gyp|script/i);
    }
  });

  it('holds the binary, both module formats and the native sources, and nothing that makes npm compile', () => {
    const files = filesOf(installed);
    const libc = process.platform === 'linux' ? '.glibc' : '';
    for (const file of [
      `prebuilds/${process.platform}-${process.arch}/saga-scheduler${libc}.node`,
      'dist/esm/index.js',
      'dist/esm/index.d.ts',
      'dist/esm/native.cjs',
      'dist/esm/cli/main.js',
      'dist/cjs/index.js',
      'dist/cjs/index.d.ts',
      'dist/cjs/native.cjs',
      'dist/cjs/package.json',
      'native/include/saga/saga.h',
      'native/sources.json',
      'cmake/saga-config.cmake',
      'CMakeLists.txt',
      'LICENSE',
      'README.md',
    ]) {
      expect(files).toContain(file);
    }
    const { core, capi, node } = JSON.parse(readFileSync(join(installed, 'native/sources.json'), 'utf8')) as Record<
      string,
      string[]
    >;
    for (const file of [core, capi, node].flat()) expect(files).toContain(file);
    expect(files.filter((file) => /binding\.gyp|tsbuildinfo|^native\/test|^build/.test(file))).toEqual([]);
    expect(Object.keys(manifest.scripts).filter((name) => /install/.test(name))).toEqual([]);
  });

  it('has types and entry points that attw and publint accept', () => {
    const bin = (name: string, field: string): string => {
      const file = require.resolve(`${name}/package.json`);
      const { bin: paths } = require(file) as { bin: Record<string, string> };
      return join(dirname(file), paths[field] ?? '');
    };
    const attw = run(process.execPath, [bin('@arethetypeswrong/cli', 'attw'), tarball, '--no-color']);
    expect(attw.status, attw.stdout).toBe(0);
    const publint = join(root, 'node_modules/publint/src/cli.js');
    const lint = run(process.execPath, [publint, 'run', tarball, '--strict']);
    expect(lint.status, `${lint.stdout}${lint.stderr}`).toBe(0);
  });
});

describe.each(nodeVersions)('under Node %s', (version) => {
  it.each(['smoke.mjs', 'smoke.cjs'])('%s loads the package and uses it', (file) => {
    const { status, stdout, stderr } = run(nodeOf(version), [file], { env: withoutCompiler() });
    expect(stderr).toBe('');
    expect(stdout.trim()).toBe('ok');
    expect(status).toBe(0);
  });

  it('saga doctor finds everything in order', () => {
    const main = join(installed, 'dist/esm/cli/main.js');
    const { status, stdout } = run(nodeOf(version), [main, 'doctor', '--json'], { env: withoutCompiler() });
    expect(JSON.parse(stdout)).toMatchObject({
      ok: true,
      problem: null,
      node: version,
      platform: process.platform,
    });
    expect(status).toBe(0);
  });
});

describe('the command saga', () => {
  it('prints its version', () => {
    expect(saga(['--version'])).toEqual({ status: 0, stdout: `${manifest.version}\n`, stderr: '' });
  });

  it('prints its help, which names every command', () => {
    const { status, stdout } = saga(['--help']);
    expect(status).toBe(0);
    for (const command of ['simulate', 'doctor', 'build']) expect(stdout).toContain(command);
  });

  it('doctor shows the prebuilt binary', () => {
    const { status, stdout, stderr } = saga(['doctor']);
    expect(stdout).toContain('prebuilds');
    expect(stdout).toMatch(/self-test\s+passed/);
    expect(stderr).toBe('');
    expect(status).toBe(0);
  });
});

describe('on a platform without a prebuilt binary', () => {
  const prebuilds = join(installed, 'prebuilds');

  beforeAll(() => {
    renameSync(prebuilds, `${prebuilds}.away`);
  });

  afterAll(() => {
    renameSync(`${prebuilds}.away`, prebuilds);
  });

  it('loading fails with a coded error that names the platform and the one command to run', () => {
    const program = "import('saga-scheduler').catch((e) => console.log(JSON.stringify([e.code, e.message])))";
    const { stdout } = run(process.execPath, ['-e', program]);
    const [code, message] = JSON.parse(stdout) as [string, string];
    expect(code).toBe('SAGA_ERR_NATIVE_MISSING');
    for (const part of [process.platform, process.arch, 'npx saga build']) expect(message).toContain(part);
  });

  it('saga doctor says so in one sentence and exits with 1', () => {
    const { status, stderr } = saga(['doctor']);
    expect(stderr).toMatch(/^saga doctor: [^\n]*npx saga build[^\n]*\.\n$/);
    expect(status).toBe(1);
  });

  it('saga build without a compiler says so in one sentence and exits with 1', () => {
    const { status, stderr } = saga(['build']);
    expect(stderr).toMatch(/^saga build: No C\+\+ compiler was found[^\n]*\.\n$/);
    expect(status).toBe(1);
    expect(existsSync(join(installed, 'build/Release/saga.node'))).toBe(false);
  });

  it('saga build compiles the addon with a Node that has no headers beside it, and all is well again', () => {
    const lonely = join(work, 'lonely/bin/node');
    mkdirSync(dirname(lonely), { recursive: true });
    copyFileSync(nodeOf(nodeVersions[0] ?? ''), lonely);
    const built = run(lonely, [join(installed, 'dist/esm/cli/main.js'), 'build']);
    expect(built.status, built.stderr).toBe(0);
    const { status, stdout } = saga(['doctor', '--json']);
    const report = JSON.parse(stdout) as { ok: boolean; binary: string };
    expect(report.ok).toBe(true);
    expect(report.binary).toContain(join('build', 'Release', 'saga.node'));
    expect(status).toBe(0);
  });

  it('saga doctor survives a binary that kills its process', () => {
    const binary = join(installed, 'build/Release/saga.node');
    const source = join(work, 'crash.c');
    writeFileSync(source, '__attribute__((constructor)) static void crash(void) { __builtin_trap(); }\n');
    rmSync(binary);
    expect(run('cc', ['-shared', '-fPIC', source, '-o', binary]).status).toBe(0);
    const { status, stdout, stderr } = saga(['doctor', '--json']);
    expect(JSON.parse(stdout)).toMatchObject({ ok: false, abiVersion: null });
    expect(stderr).toMatch(/^saga doctor: the self-test was killed by SIG\w+[^\n]*\.\n$/);
    expect(status).toBe(1);
    rmSync(join(installed, 'build'), { recursive: true });
  });
});

describe.runIf(findOnPath('cmake'))('from C', () => {
  it('find_package(saga) works straight from node_modules', () => {
    const source = join(root, 'native/test/c_consumer');
    const out = join(work, 'consumer');
    const configured = run('cmake', ['-S', source, '-B', out, `-Dsaga_DIR=${installed}/cmake`]);
    expect(configured.status, configured.stderr).toBe(0);
    const compiled = run('cmake', ['--build', out, '--parallel', '2']);
    expect(compiled.status, compiled.stdout).toBe(0);
    expect(run(join(out, 'consumer'), []).status).toBe(0);
  });
});
