/**
 * The real vLLM servers of these tests. The set-up (setup.ts) starts them and starts again any that ends; each writes what it is to
 * a file that the tests read, so that one that was killed is found again when it is back.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

/** What the launcher says of a server that is ready (python/vllm_testing/README.md), and where directives go. */
export interface RealServer {
  url: string;
  events: string;
  replay: string;
  model: string;
  model_folder: string;
  log: string;
  version: string;
  /** Of its process group. */
  pid: number;
  /** `undefined`: it has no connector. */
  directives?: string;
}

/** How a server is started. */
export interface ServerPlan {
  env: 'latest' | 'cpu';
  arguments: readonly string[];
  /** With the connector saga_vllm, of these settings. */
  connector?: Readonly<Record<string, unknown>>;
}

/** Pools are small: these tests evict. */
export const poolBlocks = 768;
export const cpuPoolBlocks = 160;

const dumps = (kind: 'Async' | ''): string[] => [
  '--',
  '--disable-uvicorn-access-log',
  '--scheduler-cls',
  `vllm_testing.pool_dump.${kind}PoolDumpScheduler`,
];

export const plans = {
  /** vLLM as it is, with a tokenizer. Events carry 64-bit integers. */
  plain: {
    env: 'latest',
    arguments: [
      ...['--tokenizer', '--blocks', String(poolBlocks), '--max-model-len', '8192'],
      ...['--max-num-seqs', '64', '--max-num-batched-tokens', '2048', ...dumps('')],
      // The ids of the emulated worker's tokens.
      ...['--hf-overrides', JSON.stringify({ vocab_size: 2 ** 25 })],
    ],
  },
  /** With SAGA's connector deciding what goes. Events carry whole digests. */
  policy: {
    env: 'latest',
    connector: { strength: 'policy' },
    arguments: [
      ...['--byte-hashes', '--hash-seed', '7', '--blocks', String(poolBlocks), '--max-model-len', '12000'],
      ...['--max-num-seqs', '64', '--max-num-batched-tokens', '2048', ...dumps('')],
    ],
  },
  /** A model that computes, as it is. */
  cpu: {
    env: 'cpu',
    arguments: ['--blocks', String(cpuPoolBlocks), '--max-model-len', '2048', ...dumps('Async')],
  },
  /** The same model, with SAGA's connector deciding what goes. */
  cpuPolicy: {
    env: 'cpu',
    connector: { strength: 'policy' },
    arguments: ['--blocks', String(cpuPoolBlocks), '--max-model-len', '2048', ...dumps('Async')],
  },
} as const satisfies Record<string, ServerPlan>;

export type ServerName = keyof typeof plans;

/** `PYTHONHASHSEED` of each. */
export const hashSeeds: Readonly<Record<ServerName, string>> = { plain: '0', policy: '7', cpu: '0', cpuPolicy: '0' };

export const stateFile = (folder: string, name: ServerName): string => join(folder, `${name}.json`);

/** The server, once it is ready. */
export async function serverIn(folder: string, name: ServerName, seconds = 240): Promise<RealServer> {
  const path = stateFile(folder, name);
  const until = performance.now() + 1000 * seconds;
  while (!existsSync(path)) {
    if (performance.now() > until) throw new Error(`the server ${name} did not become ready`);
    await delay(100);
  }
  return JSON.parse(readFileSync(path, 'utf8')) as RealServer;
}
