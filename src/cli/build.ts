/**
 * `saga build`: compiles the addon from the sources that the package ships, for a platform without a prebuilt binary.
 *
 * Calls the C++ compiler directly, with the files and flags of `native/sources.json`: that needs neither Python nor make nor
 * CMake, and Node's headers come from the running Node or from the package node-api-headers, so nothing is downloaded. The
 * result is `build/Release/saga.node` inside the package, which the loader prefers to a prebuilt binary. It appears there
 * only when complete.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, realpathSync, renameSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface BuildOptions {
  /** Compiler processes at a time. Default: as many as the machine has cores. */
  jobs?: number;
  /** Also print every compiler command. Default: false. */
  verbose?: boolean;
}

/** What went wrong, as one sentence, and the compiler's own words where it has any. */
class BuildError extends Error {
  readonly details: string;

  constructor(message: string, details = '') {
    super(message);
    this.details = details;
  }
}

interface Sources {
  flags: string[];
  addonDefines: string[];
  core: string[];
  capi: string[];
  node: string[];
}

type Command = [program: string, ...args: string[]];

const root = fileURLToPath(new URL('../../../', import.meta.url));
const require = createRequire(import.meta.url);

function findCompiler(): Command {
  const given = process.env['CXX']?.trim();
  const candidates: Command[] = given ? [given.split(/\s+/) as Command] : [['c++'], ['g++'], ['clang++']];
  for (const [program, ...args] of candidates) {
    if (spawnSync(program, [...args, '--version'], { stdio: 'ignore' }).status === 0) return [program, ...args];
  }
  throw new BuildError(
    given
      ? `The C++ compiler named by CXX (${given}) cannot be run.`
      : 'No C++ compiler was found: install g++ 11 or clang 14 or newer, or name one in CXX.',
  );
}

function nodeHeaders(): string {
  const beside = resolve(realpathSync(process.execPath), '../../include/node');
  if (existsSync(join(beside, 'node_api.h'))) return beside;
  return (require('node-api-headers') as { include_dir: string }).include_dir;
}

function addonHeaders(): string {
  const { include_dir: folder } = require('node-addon-api') as { include_dir: string };
  // Relative to the working directory in some versions.
  return resolve(folder);
}

/** Runs one command; rejects with its output if it fails. */
function run(command: Command, failure: string, verbose: boolean): Promise<void> {
  const [program, ...args] = command;
  if (verbose) process.stderr.write(`${command.join(' ')}\n`);
  return new Promise((done, failed) => {
    const child = spawn(program, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    const collect = (chunk: Buffer): void => {
      output += chunk.toString();
    };
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    child.on('error', (error) => {
      failed(new BuildError(failure, error.message));
    });
    child.on('close', (status) => {
      if (status === 0) done();
      else failed(new BuildError(failure, output));
    });
  });
}

async function compile(options: BuildOptions): Promise<string> {
  if (process.platform === 'win32') {
    throw new BuildError('saga build cannot compile on Windows; Linux and macOS are supported.');
  }
  const compiler = findCompiler();
  const sources = JSON.parse(readFileSync(join(root, 'native/sources.json'), 'utf8')) as Sources;
  const files = [...sources.core, ...sources.capi, ...sources.node];
  const output = join(root, 'build/Release/saga.node');
  const objects = join(root, `build/saga-build-${String(process.pid)}`);
  try {
    mkdirSync(objects, { recursive: true });
    mkdirSync(dirname(output), { recursive: true });
  } catch (error) {
    throw new BuildError(`The package's folder cannot be written: ${(error as Error).message}.`);
  }

  const flags = [
    ...sources.flags,
    ...['-O3', '-fPIC', '-pthread', '-DNDEBUG'],
    ...sources.addonDefines.map((define) => `-D${define}`),
    ...['-Inative/include', '-isystem', addonHeaders(), '-isystem', nodeHeaders()],
  ];
  try {
    const pending = files.map((file, i) => ({
      file,
      object: join(objects, `${String(i)}-${basename(file)}.o`),
    }));
    const linked = pending.map(({ object }) => object);
    let finished = 0;
    const worker = async (): Promise<void> => {
      for (let next = pending.shift(); next; next = pending.shift()) {
        const { file, object } = next;
        const command: Command = [...compiler, ...flags, '-c', file, '-o', object];
        await run(command, `The C++ compiler ${compiler.join(' ')} failed on ${file}.`, options.verbose ?? false);
        finished += 1;
        process.stderr.write(`[${String(finished)}/${String(files.length)}] ${file}\n`);
      }
    };
    const jobs = Math.max(1, options.jobs ?? availableParallelism());
    await Promise.all(Array.from({ length: jobs }, worker)).finally(() => pending.splice(0));

    const shared = process.platform === 'darwin' ? ['-bundle', '-undefined', 'dynamic_lookup'] : ['-shared'];
    const made = join(objects, 'saga.node');
    const link: Command = [...compiler, ...shared, '-pthread', ...linked, '-o', made];
    await run(link, `The C++ compiler ${compiler.join(' ')} could not link the addon.`, options.verbose ?? false);
    renameSync(made, output);
  } finally {
    rmSync(objects, { recursive: true, force: true });
  }
  return output;
}

/**
 * Runs the command.
 *
 * @returns the exit code: 0 when the addon has been built, 1 when not (the reason is on standard error).
 */
export async function build(options: BuildOptions = {}): Promise<number> {
  try {
    const output = await compile(options);
    process.stdout.write(`Built ${output}. Check it with: npx saga doctor\n`);
    return 0;
  } catch (error) {
    if (!(error instanceof BuildError)) throw error;
    if (error.details) process.stderr.write(`${error.details.trimEnd()}\n`);
    process.stderr.write(`saga build: ${error.message}\n`);
    return 1;
  }
}
