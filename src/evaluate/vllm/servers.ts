/**
 * vLLM servers without a GPU (`python/vllm_testing`): started together, two at a time, and ended together.
 *
 * A server is vLLM itself with an executor that sleeps as long as a step would take. It lives until its launcher's standard input is
 * closed, so none outlives this process.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { SagaError } from '../../errors.js';
import { readCounters, type EngineCounters } from './counters.js';

/** Environments of `scripts/vllm.mjs`. */
export type VllmEnvironment = 'latest' | 'baseline';

/** What all servers of a set have in common. */
export interface ServerSetOptions {
  environment: VllmEnvironment;
  /** With the connector `saga_vllm`, in policy strength, and priority scheduling. */
  connector: boolean;
  servers: number;
  /** KV blocks that requests can use. */
  blocks: number;
  maxSequences: number;
  stepTokens: number;
  /** JSON of the step model. */
  stepModel: string;
  timeScale: number;
}

/** A server that is ready. */
export interface VllmServer {
  url: string;
  events: string;
  replay: string;
  model: string;
  version: string;
  /** Of the connector. */
  directives: string | undefined;
  report: string;
}

/** What the executor has counted; see python/vllm_testing/fake_executor.py. */
export interface ExecutorReport {
  steps: number;
  /** GPU time, not scaled. */
  busy_seconds: number;
  /** Wall time by which steps were late. */
  late_seconds: number;
  prefill_tokens: number;
}

/** Tokens of a block of all servers here. */
export const blockTokens = 16;

/** Where things are: the checkout, the environments' interpreters, the library of the connector. */
export class VllmInstallation {
  readonly #folder: string;
  readonly #environment: NodeJS.ProcessEnv;

  /** @param folder - of the checkout */
  constructor(folder: string, environment: NodeJS.ProcessEnv) {
    this.#folder = folder;
    this.#environment = environment;
  }

  /** The interpreter of an environment. */
  python(name: VllmEnvironment): string {
    const script = join(this.#folder, 'scripts', 'vllm.mjs');
    if (!existsSync(script))
      throw missing('expected a checkout of the repository: the launcher of vLLM servers is no part of the package');
    const found = spawnSync(process.execPath, [script, 'python', name], { encoding: 'utf8', env: this.#environment });
    if (found.status !== 0)
      throw missing(
        `expected vLLM in the environment "${name}": install it with "node scripts/vllm.mjs install latest baseline" (14 GB)`,
      );
    return found.stdout.trim();
  }

  /** The native library that the connector loads. */
  library(): string {
    const candidates = [this.#environment.SAGA_LIBRARY, join(this.#folder, 'build-libsaga', 'libsaga.so')];
    const found = candidates.find((path): path is string => path !== undefined && path !== '' && existsSync(path));
    if (found === undefined)
      throw missing(
        'expected the library of the connector: build it with "cmake -S . -B build-libsaga -DCMAKE_BUILD_TYPE=Release ' +
          '-DBUILD_SHARED_LIBS=ON && cmake --build build-libsaga --target saga", or name one by SAGA_LIBRARY',
      );
    return found;
  }

  /** Starts one server; `place` says what of it is its own. */
  async start(options: ServerSetOptions, folder: string): Promise<{ server: VllmServer; process: ChildProcess }> {
    const python = join(this.#folder, 'python');
    const directives = options.connector ? `tcp://127.0.0.1:${await freePort()}` : undefined;
    const transfer = {
      kv_connector: 'SagaConnector',
      kv_connector_module_path: 'saga_vllm.connector',
      kv_role: 'kv_producer',
      kv_connector_extra_config: {
        strength: 'policy',
        directive_endpoint: directives,
        time_scale: options.timeScale,
      },
    };
    const child = spawn(
      this.python(options.environment),
      [
        ...['-m', 'vllm_testing.server', '--env', options.environment, '--until', 'stdin'],
        // vLLM keeps one block for itself.
        ...['--blocks', String(options.blocks + 1), '--block-size', String(blockTokens)],
        ...['--max-model-len', String(options.blocks * blockTokens)],
        ...['--max-num-seqs', String(options.maxSequences), '--max-num-batched-tokens', String(options.stepTokens)],
        ...['--step-model', options.stepModel, '--time-scale', String(options.timeScale)],
        ...['--work-folder', folder],
        ...(options.connector
          ? ['--connector', JSON.stringify(transfer), '--python-path', join(python, 'saga_vllm'), '--priority']
          : []),
        // First and last chunk of an answer: when they come is what is measured, and each chunk between costs CPU.
        ...['--', '--stream-interval', '1000000'],
      ],
      {
        cwd: python,
        stdio: ['pipe', 'pipe', 'pipe'],
        env: {
          ...this.#environment,
          PYTHONPATH: python,
          ...(options.connector ? { SAGA_LIBRARY: this.library() } : {}),
        },
      },
    );
    let complaints = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => (complaints = (complaints + text).slice(-2000)));
    const line = await new Promise<string | undefined>((resolve) => {
      createInterface(child.stdout).once('line', resolve);
      child.once('exit', () => resolve(undefined));
      child.once('error', () => resolve(undefined));
    });
    const ready = line === undefined ? { ready: false } : (JSON.parse(line) as VllmServer & { ready: boolean });
    if (!ready.ready) {
      child.kill();
      throw missing(
        `expected a vLLM server (${options.environment}) to start: ${complaints.trim().split('\n').at(-1) ?? ''}`,
      );
    }
    return { server: { ...(ready as VllmServer), directives }, process: child };
  }
}

/** Servers of one kind. */
export class ServerSet {
  readonly #processes: ChildProcess[];
  readonly #folder: string;

  private constructor(
    readonly servers: readonly VllmServer[],
    processes: ChildProcess[],
    folder: string,
  ) {
    this.#processes = processes;
    this.#folder = folder;
  }

  /** Starts all of them; each takes half a minute of CPU, so two at a time. */
  static async start(installation: VllmInstallation, options: ServerSetOptions): Promise<ServerSet> {
    const folder = mkdtempSync(join(tmpdir(), 'saga-evaluate-vllm-'));
    const started: { server: VllmServer; process: ChildProcess }[] = [];
    let next = 0;
    const lane = async (): Promise<void> => {
      while (next < options.servers) {
        const number = next++;
        started[number] = await installation.start(options, join(folder, String(number)));
      }
    };
    const lanes = await Promise.allSettled([lane(), lane()]);
    const set = new ServerSet(
      started.map(({ server }) => server),
      started.map(({ process }) => process),
      folder,
    );
    for (const { status, reason } of lanes as PromiseRejectedResult[]) {
      if (status !== 'rejected') continue;
      await set.close();
      throw reason;
    }
    return set;
  }

  /** Forgets every cached prefix. */
  async reset(): Promise<void> {
    for (const { url } of this.servers) {
      const { status } = await fetch(`${url}/reset_prefix_cache`, { method: 'POST' });
      if (status !== 200)
        throw new SagaError('SAGA_ERR_WRONG_STATE', `resetting the prefix cache of ${url}: status ${status}`);
    }
  }

  async counters(): Promise<EngineCounters[]> {
    return await Promise.all(
      this.servers.map(async ({ url }) => readCounters(await (await fetch(`${url}/metrics`)).text())),
    );
  }

  /** The executors write a report within 0.2 s of a change. */
  async reports(): Promise<ExecutorReport[]> {
    await new Promise((resolve) => setTimeout(resolve, 500));
    return this.servers.map(({ report }) => JSON.parse(readFileSync(report, 'utf8')) as ExecutorReport);
  }

  async close(): Promise<void> {
    await Promise.all(
      this.#processes.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const ended = new Promise((resolve) => child.once('exit', resolve));
        child.stdin?.end();
        await ended;
      }),
    );
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

async function freePort(): Promise<number> {
  return await new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

function missing(message: string): SagaError {
  return new SagaError('SAGA_ERR_OPTION', message);
}
