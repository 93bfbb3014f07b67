/** What a gateway is configured with; `settings.ts` has the names, defaults and descriptions by which a file, flags or the environment set it. */
import type { HashAlgorithm } from '../hasher.js';
import type { SchedulerPart, SchedulingPolicy } from '../scheduler.js';
import type { StepSeconds } from '../scheduler/options.js';
import type { DiscoverOptions, Logger, ServerOptions } from '../vllm/index.js';

/** A model and the servers that have it. */
export interface ModelConfig {
  /** As clients call it. */
  name: string;
  /** As the servers call it. Default: `name`. */
  upstreamName?: string;
  /** Other names by which clients call it, such as those of LoRA adapters: name to `loraName`; `null`: just another name. */
  aliases?: Readonly<Record<string, string | null>>;
  servers?: readonly ServerOptions[];
  discover?: DiscoverOptions;
  /** Tokens of a KV block. Default 16. */
  blockTokens?: number;
  /** How blocks are named; see docs/vllm.md. Default `saga`. */
  hashAlgorithm?: HashAlgorithm;
  /** PYTHONHASHSEED of the engines, for an algorithm of vLLM. */
  hashSeed?: string;
  /** Whether the engines write cache salts into hashes with their kind, for an algorithm of vLLM: 0.32 and 0.33 do. Default false. */
  hashTaggedKeys?: boolean;
  /** Folder with `tokenizer.json` and a chat template: then text is tokenised here, and only what is new. Default: the workers' endpoints. */
  tokenizer?: string;
  /** Default `saga`. */
  policy?: SchedulingPolicy;
  /** Parts of `saga` switched off, `stealing` always; `eviction` where the workers evict by themselves. */
  without?: readonly SchedulerPart[];
  /** Requests that bring blocks ahead of a return, at one time on a worker; 0: none. Default 2. */
  prefetchRequests?: number;
  /** Whether decisions about a call ride on its request where the worker's connector reads them. Default true. */
  kvHints?: boolean;
  stepSeconds?: StepSeconds;
  kvBytesPerToken?: number;
  /** Whether the servers run with `--scheduling-policy priority`. Default false: then `priority` is not sent. */
  priority?: boolean;
  /** Longest prompt in tokens. Default 2^20. */
  maxPromptTokens?: number;
}

export interface TenantConfig {
  name: string;
  /** Keys by which it is known. */
  apiKeys?: readonly string[];
  /** Of its fair share. Default 1. */
  weight?: number;
  /** Its own name space in the workers' prefix caches (`cache_salt`). Default: shared by all tenants without one. */
  cacheSalt?: string;
}

export interface GatewayConfig {
  models: readonly ModelConfig[];
  /** Default 127.0.0.1. */
  host?: string;
  /** Default 8080; 0: any free one. */
  port?: number;
  /** Keys that clients may use, besides those of tenants. None at all: nobody is asked, which needs a loopback `host` or `insecure`. */
  apiKeys?: readonly string[];
  /** Keys for `/metrics`, `/saga/workers` and the workflows of all tenants, besides everything else. Default: `apiKeys`. */
  adminKeys?: readonly string[];
  insecure?: boolean;
  tenants?: readonly TenantConfig[];
  /** Whether `X-SAGA-Tenant` names the tenant of a request whose key belongs to none. Default false. */
  trustTenantHeader?: boolean;
  /** Whether each tenant that only the header names has a salt of its own. Default true. */
  saltTenants?: boolean;
  /** From it the salts of such tenants are made. Default: random at each start. */
  tenantSecret?: string;
  /** Whether clients may send `priority`, `X-Vllm-Priority` and `kv_transfer_params` (never orders to the connector). Default false. */
  trustClientParameters?: boolean;
  /** Bytes of a request. Default 32 MiB. */
  maxBodyBytes?: number;
  /** Bytes of all requests that are being read or wait. Default 1 GiB. */
  maxHeldBytes?: number;
  /** Most calls open at one time, a model. Default 8,192. */
  maxCalls?: number;
  /** Most connections of clients at one time; further ones are dropped. Default 16,384. */
  maxConnections?: number;
  /** Seconds for a request's headers to arrive. Default 20. */
  headerSeconds?: number;
  /** Seconds for a request's body to arrive. Default 30. */
  bodySeconds?: number;
  /** Seconds that a call may wait for its worker. Default 120. */
  queueSeconds?: number;
  /** Seconds without a call after which a workflow counts as done. Default 900. */
  workflowIdleSeconds?: number;
  /** Seconds from a worker getting a call to its first byte. Default 600. */
  firstByteSeconds?: number;
  /** Seconds between two chunks of an answer, and for a client that does not read. Default 300. */
  chunkSeconds?: number;
  /** Seconds for a whole call. Default 3,600. */
  deadlineSeconds?: number;
  /** Further workers tried when one fails before its first byte. Default 2. */
  retries?: number;
  /** Seconds in everything that is scheduled are this many times shorter: for emulated workers. Default 1. */
  timeScale?: number;
  /** Start-up parity probe. Default true. */
  probe?: boolean;
  log?: Logger;
}
