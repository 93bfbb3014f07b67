/**
 * Starts the servers of these tests, two at a time, and ends them. It fails, and skips nothing, where an environment or libsaga is
 * missing.
 *
 * SAGA_VLLM_SERVERS names a folder of servers that somebody else runs by {@link startServers}: then nothing is started.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import type { TestProject } from 'vitest/node';
import { plans, stateFile, type RealServer, type ServerName, type ServerPlan } from './servers.js';

declare module 'vitest' {
  interface ProvidedContext {
    /** Folder of the servers' state files. */
    vllmServers: string;
  }
}

const root = resolve(import.meta.dirname, '../..');

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const given = process.env.SAGA_VLLM_SERVERS;
  if (given) {
    project.provide('vllmServers', resolve(given));
    return () => Promise.resolve();
  }
  const folder = mkdtempSync(join(tmpdir(), 'saga-vllm-servers-'));
  const stop = await startServers(folder, Object.keys(plans) as ServerName[]);
  project.provide('vllmServers', folder);
  return async () => {
    await stop();
    rmSync(folder, { recursive: true, force: true });
  };
}

/** Resolves when all are ready, with what ends them. */
export async function startServers(folder: string, names: readonly ServerName[]): Promise<() => Promise<void>> {
  for (const env of new Set(names.map((name) => plans[name].env))) {
    const found = spawnSync(process.execPath, [join(root, 'scripts/vllm.mjs'), 'python', env], { encoding: 'utf8' });
    if (found.status !== 0) throw new Error(found.stderr.trim());
  }
  const library = sharedLibrary();
  const running: Supervised[] = [];
  const stop = async (): Promise<void> => {
    await Promise.all(running.map((server) => server.stop()));
  };
  const waiting = [...names];
  const next = async (): Promise<void> => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      for (let attempt = 0; ; ++attempt) {
        const server = new Supervised(folder, name, library, await freePorts(4));
        try {
          await server.start();
          running.push(server);
          break;
        } catch (error) {
          // Somebody may have taken one of its ports.
          await server.stop();
          if (attempt > 0) throw error;
        }
      }
    }
  };
  try {
    // Starting a server keeps a core busy.
    await Promise.all([next(), next()]);
  } catch (error) {
    await stop();
    throw error;
  }
  return stop;
}

/** libsaga for the connector: SAGA_LIBRARY, or built. */
function sharedLibrary(): string {
  if (process.env.SAGA_LIBRARY) return resolve(process.env.SAGA_LIBRARY);
  const build = join(root, 'build-shared');
  const steps = [
    ['-S', root, '-B', build, '-DBUILD_SHARED_LIBS=ON', '-DCMAKE_BUILD_TYPE=Release'],
    ['--build', build, '--parallel', process.env.SAGA_JOBS ?? '2'],
  ];
  for (const step of steps) {
    const result = spawnSync('cmake', step, { encoding: 'utf8' });
    if (result.status !== 0) throw new Error(`libsaga cannot be built: ${result.error?.message ?? result.stderr}`);
  }
  const library = join(build, 'libsaga.so');
  if (!existsSync(library)) throw new Error(`${library} was not built`);
  return library;
}

/** One server: when it ends by itself it is started again at the same ports. */
class Supervised {
  readonly #arguments: string[];
  readonly #state: string;
  readonly #library: string;
  readonly #directives: string | undefined;
  #launcher: ChildProcess | undefined;
  #ended: Promise<void> = Promise.resolve();
  #stopping = false;

  constructor(folder: string, name: ServerName, library: string, ports: readonly number[]) {
    const plan: ServerPlan = plans[name];
    const [port, events, replay, directives] = ports.map(String) as [string, string, string, string];
    this.#state = stateFile(folder, name);
    this.#library = library;
    const [own, passed] = splitAt(plan.arguments, '--');
    this.#arguments = ['--env', plan.env, '--port', port, '--events-port', events, '--replay-port', replay, ...own];
    this.#arguments.push('--until', 'stdin', '--work-folder', join(folder, name), '--log-level', 'INFO');
    if (plan.connector !== undefined) {
      this.#directives = `tcp://127.0.0.1:${directives}`;
      const connector = {
        kv_connector: 'SagaConnector',
        kv_connector_module_path: 'saga_vllm.connector',
        kv_role: 'kv_producer',
        kv_connector_extra_config: { ...plan.connector, directive_endpoint: this.#directives },
      };
      this.#arguments.push('--connector', JSON.stringify(connector), '--python-path', join(root, 'python/saga_vllm'));
    }
    this.#arguments.push(...passed);
  }

  async start(): Promise<void> {
    const launcher = spawn('python3', ['-m', 'vllm_testing.server', ...this.#arguments], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: {
        ...process.env,
        SAGA_LIBRARY: this.#library,
        PYTHONPATH: [join(root, 'python'), process.env.PYTHONPATH].filter(Boolean).join(delimiter),
      },
    });
    this.#launcher = launcher;
    this.#ended = new Promise((resolveEnd) =>
      launcher.once('close', () => {
        rmSync(this.#state, { force: true });
        resolveEnd();
      }),
    );
    const line = await new Promise<string>((resolveLine, reject) => {
      createInterface(launcher.stdout).once('line', resolveLine);
      launcher.once('error', reject);
      launcher.once('close', (status) => reject(new Error(`a server ended with status ${status}`)));
    });
    const said = JSON.parse(line) as RealServer & { ready: boolean; error?: string };
    if (!said.ready) throw new Error(`a server did not become ready: ${said.error}`);
    const state: RealServer = this.#directives === undefined ? said : { ...said, directives: this.#directives };
    writeFileSync(`${this.#state}.tmp`, JSON.stringify(state));
    renameSync(`${this.#state}.tmp`, this.#state);
    launcher.once('close', () => {
      if (!this.#stopping) this.start().catch((error: unknown) => console.error(error));
    });
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#launcher?.stdin?.end();
    await this.#ended;
  }
}

function splitAt(list: readonly string[], separator: string): [string[], string[]] {
  const at = list.indexOf(separator);
  return at < 0 ? [[...list], []] : [list.slice(0, at), list.slice(at)];
}

/** Ports that nobody listened at a moment ago. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      await new Promise<void>((listening, reject) => {
        server.once('error', reject).listen(0, '127.0.0.1', listening);
      });
      return server;
    }),
  );
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((closed) => server.close(closed))));
  return ports;
}
