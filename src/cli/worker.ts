/**
 * `saga worker`: an emulated worker, a vLLM server without a GPU as far as its clients can tell.
 */
import { readFileSync } from 'node:fs';
import { InvalidArgumentError, type Command } from 'commander';
import type { EmulatedWorkerOptions } from '../emulated-worker/index.js';

/** What `saga worker --json` prints when it listens. */
export interface WorkerReport {
  schema: 'saga.worker/1';
  url: string;
  model: string;
  /** ZeroMQ addresses; null where there is none. */
  events: string | null;
  replay: string | null;
  directives: string | null;
}

interface WorkerCommandOptions {
  host: string;
  port: number;
  eventsPort?: number;
  replayPort?: number;
  directivesPort?: number;
  directiveKey?: string;
  topic: string;
  model: string;
  adapter?: string[];
  blocks: number;
  blockSize: number;
  maxModelLen?: number;
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  dataParallelSize: number;
  hashAlgo: 'sha256_cbor' | 'xxhash_cbor';
  seed: string;
  taggedKeys?: boolean;
  wholeHashes?: boolean;
  priorityScheduling?: boolean;
  eviction: 'lru' | 'saga';
  timeScale: number;
  stepModel?: string;
  script?: string;
  json?: boolean;
}

function whole(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('expected a whole number.');
  return Number(text);
}

function scale(text: string): number {
  const value = text === 'infinity' || text === 'Infinity' ? Infinity : Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('expected a number above 0, or "infinity".');
  return value;
}

/** An error whose message is for the person at the terminal. */
class UsageError extends Error {}

async function optionsOf(given: WorkerCommandOptions): Promise<EmulatedWorkerOptions> {
  const options: EmulatedWorkerOptions = {
    host: given.host,
    port: given.port,
    eventsPort: given.eventsPort ?? null,
    directivesPort: given.directivesPort ?? null,
    topic: given.topic,
    model: given.model,
    adapters: given.adapter ?? [],
    blocks: given.blocks,
    blockTokens: given.blockSize,
    maxSequences: given.maxNumSeqs,
    tokenBudget: given.maxNumBatchedTokens,
    dataParallelRanks: given.dataParallelSize,
    hashAlgorithm: given.hashAlgo,
    hashSeed: given.seed,
    taggedKeys: given.taggedKeys ?? false,
    wholeHashes: given.wholeHashes ?? false,
    priorityScheduling: given.priorityScheduling ?? false,
    eviction: given.eviction,
    timeScale: given.timeScale,
  };
  if (given.replayPort !== undefined) options.replayPort = given.replayPort;
  if (given.directiveKey !== undefined) options.directiveKey = given.directiveKey;
  if (given.maxModelLen !== undefined) options.maxModelTokens = given.maxModelLen;
  if (given.stepModel !== undefined) options.stepSeconds = jsonOf('--step-model', given.stepModel) as object;
  if (given.script !== undefined) {
    const { scriptOf } = await import('../emulated-worker/script-file.js');
    let text: string;
    try {
      text = readFileSync(given.script, 'utf8');
    } catch (error) {
      throw new UsageError(`--script ${given.script} cannot be read: ${(error as Error).message}`);
    }
    try {
      options.script = scriptOf(jsonOf(`--script ${given.script}`, text));
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      throw new UsageError(`--script ${given.script}: ${error.message}`);
    }
  }
  return options;
}

function jsonOf(name: string, text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw new UsageError(`${name} is not JSON: ${(error as Error).message}`);
  }
}

async function run(given: WorkerCommandOptions): Promise<void> {
  // Loaded here, so that the other commands work where there is no binary.
  const { EmulatedWorker } = await import('../emulated-worker/index.js');
  const worker = await EmulatedWorker.start(await optionsOf(given));
  const report: WorkerReport = {
    schema: 'saga.worker/1',
    url: worker.url,
    model: worker.options.model,
    events: worker.events ?? null,
    replay: worker.replay ?? null,
    directives: worker.directives ?? null,
  };
  if (given.json === true) console.log(JSON.stringify(report));
  else {
    const also = (['events', 'replay', 'directives'] as const)
      .filter((name) => report[name] !== null)
      .map((name) => `, ${name} ${String(report[name])}`);
    console.log(`saga worker: ${report.model} at ${report.url}${also.join('')}`);
  }
  await new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
    // Forked by somebody who is gone.
    process.once('disconnect', () => resolve());
  });
  await worker.close();
}

/** Adds the command to the program. */
export function registerWorker(program: Command): void {
  program
    .command('worker')
    .description('a vLLM server without a GPU: for tests, demonstrations and capacity tests')
    .option('--host <address>', 'where everything listens', '127.0.0.1')
    .option('--port <n>', 'HTTP; 0: a free one', whole, 8000)
    .option('--events-port <n>', 'KV events over ZeroMQ; 0: a free one; default: none', whole)
    .option('--replay-port <n>', 'replay of events; default: a free one where there are events', whole)
    .option('--directives-port <n>', 'directives, see docs/directives.md; default: none', whole)
    .option('--directive-key <text>', 'signs directives; at least 16 bytes')
    .option('--topic <text>', 'first frame of event messages', '')
    .option('--model <name>', 'what it serves', 'emulated')
    .option('--adapter <names...>', 'LoRA adapters that requests may name instead')
    .option('--blocks <n>', 'KV blocks, one of which is never used', whole, 28_000)
    .option('--block-size <n>', 'tokens a block', whole, 16)
    .option('--max-model-len <n>', 'longest prompt and answer; default: 131072, or what the blocks hold', whole)
    .option('--max-num-seqs <n>', 'most calls running at one time', whole, 256)
    .option('--max-num-batched-tokens <n>', 'most tokens of a step', whole, 2048)
    .option('--data-parallel-size <n>', 'engines behind this server', whole, 1)
    .option('--hash-algo <name>', 'sha256_cbor or xxhash_cbor', 'sha256_cbor')
    .option('--seed <text>', 'PYTHONHASHSEED', '0')
    .option('--tagged-keys', 'hash salts and adapters with their names, as vLLM 0.33 does')
    .option('--whole-hashes', 'events carry whole hashes')
    .option('--priority-scheduling', 'by priority instead of first come, first served')
    .option('--eviction <name>', 'lru or saga', 'lru')
    .option('--time-scale <x>', 'how many times faster than modelled; infinity: no time passes', scale, 1)
    .option('--step-model <json>', 'seconds of a step, e.g. {"base":0.03,"perPrefillToken":0.0002}')
    .option('--script <file>', 'JSON: what the model says; see docs/emulated-worker.md')
    .option('--json', 'print one JSON object when it listens')
    .action(async (given: WorkerCommandOptions) => {
      try {
        await run(given);
      } catch (error) {
        const { SagaError } = await import('../errors.js');
        const known = error instanceof UsageError || error instanceof SagaError;
        const code = (error as NodeJS.ErrnoException).code;
        if (!known && code === undefined) throw error;
        console.error(`saga worker: ${(error as Error).message}`);
        process.exitCode = known ? 2 : 1;
      }
    });
}
