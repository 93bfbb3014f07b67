/** What an emulated worker is started with. */
import { checkInteger, checkOneOf, checkOptions, checkText, describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';
import type { StepSeconds } from '../scheduler.js';
import type { Script } from './answer.js';

export interface EmulatedWorkerOptions {
  /** Where everything listens. Default `127.0.0.1`. */
  host?: string;
  /** HTTP. Default 0: a free one. */
  port?: number;
  /** Default `emulated`. */
  model?: string;
  /** Names of LoRA adapters that requests may give instead of the model. Default: none. */
  adapters?: readonly string[];
  /** KV events over ZeroMQ; 0: a free port; `null` (default): none. Rank r listens on the port + r. */
  eventsPort?: number | null;
  /** Replay of events. Default: a free port where there are events. `null`: none. */
  replayPort?: number | null;
  /** Directives (docs/directives.md). Default `null`: none. */
  directivesPort?: number | null;
  /** At least 16 bytes; needed where {@link host} is not loopback. */
  directiveKey?: string;
  /** First frame of event messages. Default empty. */
  topic?: string;
  /** KV blocks as of `--num-gpu-blocks-override`: one of them is never used. At least 2. Default 28,000. */
  blocks?: number;
  /** Tokens a block. Default 16. */
  blockTokens?: number;
  /** Longest prompt and answer together. Default 131,072, or what the blocks hold. */
  maxModelTokens?: number;
  /** Most calls running at one time. Default 256. */
  maxSequences?: number;
  /** Most tokens of a step. Default 2,048. */
  tokenBudget?: number;
  /** Most calls at one time, waiting and running; beyond it 503. Default 2,048. */
  maxCalls?: number;
  /** Engines behind this server. Default 1. */
  dataParallelRanks?: number;
  /** As vLLM's `--prefix-caching-hash-algo`. Default `sha256_cbor`. */
  hashAlgorithm?: 'sha256_cbor' | 'xxhash_cbor';
  /** `PYTHONHASHSEED`. Default `0`. */
  hashSeed?: string;
  /**
   * Salts and adapters enter block hashes each with its kind, as in vLLM 0.32 and 0.33. Default `false`: bare, as in releases
   * before.
   */
  taggedKeys?: boolean;
  /** Events carry whole hashes, as with `VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0`. Default: their low 64 bits. */
  wholeHashes?: boolean;
  /** Default `true`. */
  prefixCaching?: boolean;
  /** As `--scheduling-policy priority`. Default `false`: first come, first served. */
  priorityScheduling?: boolean;
  /** Which cached blocks go first. `lru` (default) is vLLM's order; `saga` learns from calls and what `saga.ended` tells. */
  eviction?: 'lru' | 'saga';
  /** `prompt_tokens_details` in usage, as `--enable-prompt-tokens-details`. Default `true`. */
  promptTokensDetails?: boolean;
  /** `X-Request-Id` in answers, as `--enable-request-id-headers`. Default `true`. */
  requestIdHeaders?: boolean;
  /** Steps take so many times less than modelled; `Infinity`: no time at all. Default 1. */
  timeScale?: number;
  /** Seconds of a step; defaults as of the scheduler: a model of 70B parameters on four A100. */
  stepSeconds?: StepSeconds;
  /** What the model says. Default: pseudo-random words, the same for the same prompt. */
  script?: Script;
  /** Share of the blocks that leases may hold together, 0 to 1. Default 0.3. */
  leaseBudget?: number;
  /** Batches of events that can be replayed. Default 10,000. */
  bufferBatches?: number;
  /** Longest body of a request. Default 64 MiB. */
  maxBodyBytes?: number;
}

export type ResolvedOptions = Required<Omit<EmulatedWorkerOptions, 'stepSeconds' | 'directiveKey' | 'script'>> & {
  stepSeconds: Required<StepSeconds>;
  directiveKey: string | undefined;
  script: Script | undefined;
};

const stepDefaults: Readonly<Required<StepSeconds>> = {
  base: 28.6e-3,
  perCall: 0.3e-3,
  perContextToken: 7.8e-8,
  perPrefillToken: 0.178e-3,
  perPrefillPair: 4.7e-9,
};

const loopback = new Set(['127.0.0.1', 'localhost', '::1']);

/** @throws SagaArgumentError */
export function resolveOptions(options: EmulatedWorkerOptions): ResolvedOptions {
  checkOptions(options);
  const host = checkText('host', options.host ?? '127.0.0.1');
  const blocks = checkInteger('blocks', options.blocks ?? 28_000, 2, 2 ** 24);
  const blockTokens = checkInteger('blockTokens', options.blockTokens ?? 16, 1, 4096);
  const room = (blocks - 1) * blockTokens;
  const hashAlgorithm = options.hashAlgorithm ?? 'sha256_cbor';
  checkOneOf('hashAlgorithm', hashAlgorithm, ['sha256_cbor', 'xxhash_cbor']);
  const taggedKeys = options.taggedKeys ?? false;
  if (typeof taggedKeys !== 'boolean')
    throw new SagaArgumentError(`taggedKeys must be true or false, got ${describe(taggedKeys)}`);
  const eviction = options.eviction ?? 'lru';
  checkOneOf('eviction', eviction, ['lru', 'saga']);
  const timeScale = options.timeScale ?? 1;
  if (typeof timeScale !== 'number' || !(timeScale > 0))
    throw new SagaArgumentError(`timeScale must be a number above 0, got ${describe(timeScale)}`);
  const leaseBudget = options.leaseBudget ?? 0.3;
  if (typeof leaseBudget !== 'number' || !(leaseBudget >= 0 && leaseBudget <= 1))
    throw new SagaArgumentError(`leaseBudget must be a number from 0 to 1, got ${describe(leaseBudget)}`);
  const directivesPort = checkPort('directivesPort', options.directivesPort ?? null);
  const { directiveKey, script } = options;
  if (directiveKey !== undefined && Buffer.byteLength(checkText('directiveKey', directiveKey)) < 16)
    throw new SagaArgumentError('directiveKey must have at least 16 bytes');
  if (directivesPort !== null && directiveKey === undefined && !loopback.has(host))
    throw new SagaArgumentError(`directiveKey is needed where directives are taken at ${host}`);
  if (script !== undefined && typeof script !== 'function')
    throw new SagaArgumentError(`script must be a function, got ${describe(script)}`);
  const eventsPort = checkPort('eventsPort', options.eventsPort ?? null);
  const adapters = options.adapters ?? [];
  if (!Array.isArray(adapters)) throw new SagaArgumentError(`adapters must be an array, got ${describe(adapters)}`);
  for (const name of adapters) checkText('adapters', name, 1024);
  const ranks = checkInteger('dataParallelRanks', options.dataParallelRanks ?? 1, 1, 64);
  return {
    host,
    port: checkPort('port', options.port ?? 0) ?? 0,
    model: checkText('model', options.model ?? 'emulated', 1024),
    adapters: [...(adapters as string[])],
    eventsPort,
    replayPort:
      eventsPort === null ? null : checkPort('replayPort', options.replayPort === undefined ? 0 : options.replayPort),
    directivesPort,
    directiveKey,
    topic: checkText('topic', options.topic ?? '', 1024),
    blocks,
    blockTokens,
    maxModelTokens: checkInteger('maxModelTokens', options.maxModelTokens ?? Math.min(131_072, room), 1, room),
    maxSequences: checkInteger('maxSequences', options.maxSequences ?? 256, 1, 2 ** 14),
    tokenBudget: checkInteger('tokenBudget', options.tokenBudget ?? 2048, 1, 2 ** 20),
    maxCalls: checkInteger('maxCalls', options.maxCalls ?? 2048, 1, 2 ** 16),
    dataParallelRanks: ranks,
    hashAlgorithm,
    hashSeed: checkText('hashSeed', options.hashSeed ?? '0', 64),
    taggedKeys,
    wholeHashes: options.wholeHashes ?? false,
    prefixCaching: options.prefixCaching ?? true,
    priorityScheduling: options.priorityScheduling ?? false,
    eviction,
    promptTokensDetails: options.promptTokensDetails ?? true,
    requestIdHeaders: options.requestIdHeaders ?? true,
    timeScale,
    stepSeconds: stepSeconds(options.stepSeconds ?? {}),
    script,
    leaseBudget,
    bufferBatches: checkInteger('bufferBatches', options.bufferBatches ?? 10_000, 1, 2 ** 20),
    maxBodyBytes: checkInteger('maxBodyBytes', options.maxBodyBytes ?? 64 * 2 ** 20, 1, 2 ** 30),
  };
}

function checkPort(name: string, port: number | null): number | null {
  return port === null ? null : checkInteger(name, port, 0, 65_535);
}

function stepSeconds(given: StepSeconds): Required<StepSeconds> {
  checkOptions(given);
  const all = { ...stepDefaults, ...given };
  for (const [name, seconds] of Object.entries(all) as [string, unknown][]) {
    if (!Object.hasOwn(stepDefaults, name)) throw new SagaArgumentError(`stepSeconds has no member ${name}`);
    if (typeof seconds !== 'number' || !(seconds >= 0 && seconds <= 1000))
      throw new SagaArgumentError(`stepSeconds.${name} must be a number from 0 to 1000, got ${describe(seconds)}`);
  }
  return all;
}
