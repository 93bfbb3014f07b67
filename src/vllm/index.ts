/**
 * vLLM servers as the workers of a scheduler: their KV events, health, load and directives.
 *
 * `WorkerSet` does it all; `KvEventSource` alone decodes events that somebody else receives. Nothing of the package's main entry
 * point needs this one, or what it stands on (ZeroMQ, undici).
 *
 * @packageDocumentation
 */
export {
  KvEventSource,
  chainSaltOf,
  kvBatchRank,
  type KvEventCounts,
  type KvEventReport,
  type KvEventSourceOptions,
  type KvEventStats,
} from './kv-event-source.js';
export type {
  CallReference,
  DiscoverOptions,
  DnsDiscovery,
  EventHash,
  FoundServer,
  KubernetesDiscovery,
  Logger,
  ServerOptions,
  ServerRole,
  StaticDiscovery,
  WorkerSetOptions,
} from './options.js';
export type {
  DirectiveMetrics,
  DirectiveStatus,
  EventMetrics,
  ServerMetrics,
  WorkerMetrics,
  WorkerSetMetrics,
} from './metrics.js';
export {
  VllmWorker,
  workerRoutes,
  type RequestDirectives,
  type ServerCondition,
  type WorkerCondition,
  type WorkerFeatures,
  type WorkerRoute,
} from './vllm-worker.js';
export type { PrefetchPrompt } from './prefetch.js';
export type { Expectation } from './expectation.js';
export { DirectiveClient } from './directive-client.js';
export type { DirectiveOutcome, DirectiveStatusReport, DirectiveTarget, EndedCall } from './envelope.js';
export { WorkerSet, type ServerState } from './worker-set.js';
