/** All vLLM workers of one model, and the scheduler's view of them. */
import type { Worker } from '../scheduler/worker.js';
import type { DirectiveClient } from './directive-client.js';
import type { WorkerSetMetrics } from './metrics.js';
import type { ServerOptions, WorkerSetOptions } from './options.js';
import type { ServerCondition, VllmWorker } from './vllm-worker.js';

/** A server as the set sees it, whether it has workers or not. */
export interface ServerState {
  readonly url: string;
  readonly condition: ServerCondition;
  /** Why it has no workers, in words; `undefined` while it has. */
  readonly reason: string | undefined;
}

export declare class WorkerSet {
  constructor(options: WorkerSetOptions);
  /** Called when it is worth deciding again: KV events were applied, a worker came or went, a directive ended. */
  onChange: () => void;
  /** Carries out the scheduler's directives. */
  readonly directives: DirectiveClient;
  /** Workers that are not removed, by id. */
  get workers(): readonly VllmWorker[];
  get servers(): readonly ServerState[];
  start(): Promise<void>;
  of(worker: Worker): VllmWorker | undefined;
  add(server: ServerOptions): Promise<void>;
  drain(url: string): void;
  resume(url: string): void;
  remove(url: string): void;
  metrics(): WorkerSetMetrics;
  close(): Promise<void>;
}
