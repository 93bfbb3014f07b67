// Real vLLM on a machine without a GPU, for tests: `node scripts/vllm.mjs <command>`.
//
//   install [latest|cpu|baseline|all ...]   make virtual environments from the lock files (default: latest)
//   python  [latest|cpu|baseline]           print the path of an environment's interpreter
//   serve   [arguments]                     run a server: python -m vllm_testing.server
//   test    [arguments]                     run the tests of the harness itself: pytest in the environment "latest"
//   lock    [latest|cpu|baseline|all ...]   resolve python/vllm_testing/locks/<name>.in anew (asks the package registry)
//
// Environments lie outside the checkout, in $SAGA_VLLM_HOME, else $XDG_CACHE_HOME/saga-vllm, else ~/.cache/saga-vllm, one
// folder <name>-<hash of the lock file> each: a changed lock file makes a new environment and leaves the old one to running
// servers. A marker file is written last, so an interrupted installation is recognised and made again.
// python/vllm_testing/environments.py computes the same paths.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const names = ['latest', 'cpu', 'baseline'];
const uvVersion = '0.13.9';
const oldestPython = [3, 11];
const newestPython = [3, 13];
const markerName = 'saga-vllm-complete';

const python = join(dirname(dirname(fileURLToPath(import.meta.url))), 'python');
const locks = join(python, 'vllm_testing', 'locks');

const home = resolve(
  process.env.SAGA_VLLM_HOME || join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'saga-vllm'),
);

class Problem extends Error {}

function run(program, args, options = {}) {
  const result = spawnSync(program, args, { stdio: ['ignore', 'inherit', 'inherit'], ...options });
  if (result.error) throw new Problem(`${program} cannot be run: ${result.error.message}`);
  if (result.status !== 0) throw new Problem(`${program} ${args[0] ?? ''} failed (${result.signal ?? result.status})`);
}

function output(program, args) {
  const result = spawnSync(program, args, { encoding: 'utf8' });
  return result.status === 0 ? result.stdout.trim() : undefined;
}

/** An interpreter that the locks are made for: SAGA_VLLM_PYTHON, else the first of the usual names that fits. */
function findPython() {
  const given = process.env.SAGA_VLLM_PYTHON;
  const candidates = given ? [given] : ['python3', 'python3.12', 'python3.11', 'python3.13', 'python'];
  const program = `import sys; print(sys.executable if ${tuple(oldestPython)} <= sys.version_info[:2] <= ${tuple(newestPython)} else "")`;
  for (const candidate of candidates) {
    const path = output(candidate, ['-c', program]);
    if (path) return path;
  }
  const range = `Python ${oldestPython.join('.')} to ${newestPython.join('.')}`;
  throw new Problem(
    given
      ? `SAGA_VLLM_PYTHON (${given}) is not ${range}`
      : `${range} is missing: install it, or name one by the environment variable SAGA_VLLM_PYTHON`,
  );
}

const tuple = ([major, minor]) => `(${major}, ${minor})`;

/** uv of the pinned version: the one on the path if it is that, else one in a small environment of its own. */
function findUv() {
  if (output('uv', ['--version'])?.split(' ')[1] === uvVersion) return 'uv';
  const folder = join(home, `uv-${uvVersion}`);
  const uv = join(folder, 'bin', 'uv');
  if (output(uv, ['--version']) === undefined) {
    say(`uv ${uvVersion}: installing`);
    rmSync(folder, { recursive: true, force: true });
    run(findPython(), ['-m', 'venv', folder]);
    run(join(folder, 'bin', 'python'), ['-m', 'pip', 'install', '--quiet', `uv==${uvVersion}`]);
  }
  return uv;
}

function environmentFolder(name) {
  const hash = createHash('sha256')
    .update(readFileSync(join(locks, `${name}.txt`)))
    .digest('hex');
  return join(home, `${name}-${hash.slice(0, 12)}`);
}

const isComplete = (folder) => existsSync(join(folder, markerName));
const say = (line) => process.stdout.write(`${line}\n`);

function install(name) {
  const folder = environmentFolder(name);
  if (isComplete(folder)) {
    say(`${name}: up to date in ${folder}`);
    return;
  }
  mkdirSync(home, { recursive: true });
  const uv = findUv();
  const interpreter = findPython();
  const started = Date.now();
  say(`${name}: making ${folder}`);
  rmSync(folder, { recursive: true, force: true });
  run(uv, ['venv', '--quiet', '--python', interpreter, '--no-python-downloads', folder]);
  say(`${name}: installing the packages of locks/${name}.txt`);
  // The lock names every package, overrides applied: nothing is left to resolve.
  run(uv, [
    'pip',
    'install',
    '--quiet',
    '--no-deps',
    '--python',
    join(folder, 'bin', 'python'),
    '--requirements',
    join(locks, `${name}.txt`),
  ]);
  say(`${name}: compiling and importing`);
  const environment = { ...process.env, VLLM_TARGET_DEVICE: 'cpu', HF_HUB_OFFLINE: '1', DO_NOT_TRACK: '1' };
  delete environment.PYTHONDONTWRITEBYTECODE; // what the import compiles is what a server needs
  const program = 'import vllm, vllm.entrypoints.openai.api_server, vllm.v1.engine.core; print(vllm.__version__)';
  const version = spawnSync(join(folder, 'bin', 'python'), ['-c', program], { encoding: 'utf8', env: environment });
  if (version.status !== 0) throw new Problem(`import vllm fails in ${folder}:\n${version.stderr}`);
  const line = version.stdout.trim().split('\n').at(-1);
  writeFileSync(join(folder, markerName), `${line}\n`);
  say(`${name}: vLLM ${line}, ready after ${((Date.now() - started) / 1000).toFixed(0)} s`);
}

function lock(name) {
  const target = join(locks, `${name}.txt`);
  say(`${name}: resolving`);
  run(
    findUv(),
    [
      'pip',
      'compile',
      '--quiet',
      '--universal',
      '--python-version',
      oldestPython.join('.'),
      '--no-header',
      '--no-annotate',
      '--no-emit-index-url',
      '--no-emit-find-links',
      '--upgrade',
      '--override',
      `${name}.overrides`,
      `${name}.in`,
      '--output-file',
      target,
    ],
    { cwd: locks, stdio: ['ignore', 'ignore', 'inherit'] },
  );
  say(`${name}: ${readFileSync(target, 'utf8').trim().split('\n').length} packages`);
}

function interpreterOf(name) {
  const folder = environmentFolder(name);
  if (!isComplete(folder))
    throw new Problem(`the environment ${name} is missing: node scripts/vllm.mjs install ${name}`);
  return join(folder, 'bin', 'python');
}

/** Replaces this process as far as Node can: same streams, same exit status. */
function become(program, args) {
  const path = [python, process.env.PYTHONPATH].filter(Boolean).join(delimiter);
  const result = spawnSync(program, args, { stdio: 'inherit', env: { ...process.env, PYTHONPATH: path } });
  if (result.error) throw new Problem(`${program} cannot be run: ${result.error.message}`);
  process.exitCode = result.status ?? 1;
}

function selected(args) {
  const chosen = args.length === 0 ? ['latest'] : args.includes('all') ? names : args;
  for (const name of chosen) {
    if (!names.includes(name)) throw new Problem(`no environment is called ${name}: ${names.join(', ')}`);
  }
  return chosen;
}

try {
  const [command, ...args] = process.argv.slice(2);
  if (command === 'install') selected(args).forEach(install);
  else if (command === 'python') say(interpreterOf(selected(args)[0]));
  else if (command === 'serve') become(findPython(), ['-m', 'vllm_testing.server', ...args]);
  else if (command === 'test')
    become(interpreterOf('latest'), ['-m', 'pytest', '-q', join(python, 'vllm_testing', 'tests'), ...args]);
  else if (command === 'lock') selected(args).forEach(lock);
  else throw new Problem('usage: node scripts/vllm.mjs install|python|serve|test|lock [arguments]');
} catch (error) {
  if (!(error instanceof Problem)) throw error;
  process.stderr.write(`vllm.mjs: ${error.message}\n`);
  process.exitCode = 1;
}
