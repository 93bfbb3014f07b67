/**
 * The workers of a demonstration: emulated ones, each in a process of its own (`saga worker`), or servers that run already.
 *
 * Processes of their own, as real servers are: a worker that is busy then holds up nobody else. Each ends when this process does, whatever
 * the reason: they are forked, and end with their channel.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { request } from 'undici';
import type { ServerOptions } from '../vllm/index.js';

/** What a worker's `/metrics` say. Counters since it was started; NaN where it does not tell. */
export interface WorkerCounters {
  running: number;
  waiting: number;
  /** Share of its blocks that calls use. */
  usage: number;
  queriedTokens: number;
  cachedTokens: number;
  preemptions: number;
  /** Modelled; emulated workers only. */
  busySeconds: number;
  steps: number;
  /** By which steps were late, of this machine. */
  lateSeconds: number;
}

const counterNames: Readonly<Record<keyof WorkerCounters, string>> = {
  running: 'vllm:num_requests_running',
  waiting: 'vllm:num_requests_waiting',
  usage: 'vllm:kv_cache_usage_perc',
  queriedTokens: 'vllm:prefix_cache_queries_total',
  cachedTokens: 'vllm:prefix_cache_hits_total',
  preemptions: 'vllm:num_preemptions_total',
  busySeconds: 'saga_emulated:gpu_busy_seconds_total',
  steps: 'saga_emulated:steps_total',
  lateSeconds: 'saga_emulated:step_late_seconds_total',
};

/** Sums over the ranks of a server. */
export async function countersOf(url: string, signal?: AbortSignal): Promise<WorkerCounters> {
  const { body } = await request(`${url}/metrics`, signal === undefined ? {} : { signal });
  const text = await body.text();
  const counters = {} as WorkerCounters;
  for (const [member, name] of Object.entries(counterNames) as [keyof WorkerCounters, string][]) {
    let sum = NaN;
    for (const [, value] of text.matchAll(new RegExp(`^${name}(?:\\{[^\\n]*\\})? (\\S+)$`, 'gm')))
      sum = (Number.isNaN(sum) ? 0 : sum) + Number(value);
    counters[member] = sum;
  }
  return counters;
}

export interface EmulatedOptions {
  /** The file that is the command `saga`. */
  command: string;
  model: string;
  workers: number;
  /** KV room of each. */
  kvTokens: number;
  blockTokens: number;
  timeScale: number;
  /** With SAGA's eviction order and the channel for its directives. */
  saga: boolean;
}

/** Workers that were started, or found. */
export interface Workers {
  readonly servers: readonly ServerOptions[];
  close(): Promise<void>;
}

/** Starts emulated workers: empty caches. */
export async function startEmulated(options: EmulatedOptions): Promise<Workers> {
  const { command, model, kvTokens, blockTokens, timeScale, saga } = options;
  const args = ['worker', '--json', '--port', '0', '--events-port', '0', '--model', model];
  // One block is never used.
  args.push('--blocks', String(Math.floor(kvTokens / blockTokens) + 1), '--block-size', String(blockTokens));
  args.push('--time-scale', String(timeScale));
  if (saga) args.push('--eviction', 'saga', '--directives-port', '0');
  const children: ChildProcess[] = [];
  const workers: Workers & { servers: ServerOptions[] } = {
    servers: [],
    close: async () => {
      await Promise.all(children.map(end));
    },
  };
  try {
    workers.servers = await Promise.all(
      Array.from({ length: options.workers }, async () => {
        const child = fork(command, args, { stdio: ['ignore', 'pipe', 'inherit', 'ipc'], execArgv: [] });
        children.push(child);
        return await serverOf(child);
      }),
    );
  } catch (error) {
    await workers.close();
    throw error;
  }
  return workers;
}

/** What a worker says of itself when it listens. */
async function serverOf(child: ChildProcess): Promise<ServerOptions> {
  const line = await new Promise<string>((resolve, reject) => {
    let text = '';
    child.stdout?.on('data', (chunk: Buffer) => {
      text += chunk.toString('utf8');
      if (text.includes('\n')) resolve(text);
    });
    child.once('error', reject);
    child.once('exit', (code) => {
      reject(new Error(`an emulated worker ended with ${code ?? 'a signal'} before it listened`));
    });
  });
  const report = JSON.parse(line) as Record<'url' | 'events' | 'replay' | 'directives', string | null>;
  const server: ServerOptions = { url: report.url ?? '' };
  for (const member of ['events', 'replay', 'directives'] as const) {
    const value = report[member];
    if (value !== null) server[member] = value;
  }
  return server;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGTERM');
  const late = setTimeout(() => child.kill('SIGKILL'), 3000);
  await ended.catch(() => undefined);
  clearTimeout(late);
}
