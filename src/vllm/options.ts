/**
 * What the adapters of vLLM servers are told: servers, how more of them are found, and how they are watched. Checked here, before
 * anything is connected; a message never repeats a key.
 */
import { checkInteger, checkOneOf, checkOptions, checkText, describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';
import type { PrefetchPrompt } from './prefetch.js';
import type { Call } from '../scheduler/call.js';
import type { Scheduler } from '../scheduler/scheduler.js';
import { nativeAlgorithm, type HashAlgorithm } from '../hasher.js';

/** Where log lines go; pino's loggers fit. */
export interface Logger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

/** What a worker does of a request. Only `both` is supported: a prompt's blocks must be where its answer is made. */
export type ServerRole = 'both' | 'prefill' | 'decode';

/** A vLLM server: one base URL. Each of its data-parallel ranks is a worker. */
export interface ServerOptions {
  /** `http://127.0.0.1:8000`, without `/v1`. Names the server: two cannot have the same. */
  url: string;
  /** For its HTTP routes, sent as a bearer token. */
  apiKey?: string;
  /** Rank r listens on the ports of {@link events}, {@link replay} and {@link directives} plus r. 1 to 256, default 1. */
  dataParallelRanks?: number;
  /** Of its KV events, `tcp://127.0.0.1:5557` or `ipc://...`. Default: none; what its workers hold is not known then. */
  events?: string;
  /**
   * Listen at {@link events} instead of connecting there: for servers whose publisher connects. Servers with the same endpoint must
   * have topics of their own. Default `false`.
   */
  eventsBind?: boolean;
  /** Where missed events are asked for, `tcp://127.0.0.1:5558`. Default: none; a gap costs what is known of the worker. */
  replay?: string;
  /** Only events whose topic begins so. Default: all. */
  topic?: string;
  /** Of the directive channel, see docs/directives.md, `tcp://127.0.0.1:5757`. Default: none; directives are refused. */
  directives?: string;
  /** Signs directives and their answers, at least 16 bytes. */
  directiveKey?: string;
  /** KV blocks of a rank. Default: `num_gpu_blocks` of its /metrics. */
  blocks?: number;
  /** Tokens of a block. Default: those of the scheduler. A server that reports another number is refused. */
  blockTokens?: number;
  /** Default `both`; anything else is refused. */
  role?: ServerRole;
}

/** A server list that is told. */
export interface StaticDiscovery {
  type: 'static';
  servers: readonly ServerOptions[];
}

/** What found servers have in common. Their URL is made of the address that was found, and so are the endpoints. */
export interface FoundServer extends Omit<ServerOptions, 'url' | 'events' | 'replay' | 'directives'> {
  /** Default `http`. */
  scheme?: 'http' | 'https';
  /** Ports at the address that was found. Default: none, as for {@link ServerOptions}. */
  eventsPort?: number;
  replayPort?: number;
  directivesPort?: number;
}

/** Servers behind a DNS name, asked for again every {@link everySeconds}. */
export interface DnsDiscovery {
  type: 'dns';
  host: string;
  /** Of HTTP. With `SRV` the answer has it. */
  port?: number;
  /** Default `A`. */
  record?: 'A' | 'AAAA' | 'SRV';
  /** 1 to 3,600, default 10. */
  everySeconds?: number;
  server?: FoundServer;
}

/** Ready endpoints of a Kubernetes service, by its EndpointSlices. */
export interface KubernetesDiscovery {
  type: 'kubernetes';
  service: string;
  /** Default: that of the service account. */
  namespace?: string;
  /** Name or number of the port of HTTP. Default: the first port of the slice. */
  port?: string | number;
  server?: FoundServer;
  /** Of the API server. Default: `https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT`. */
  apiServer?: string;
  /** Folder of `token`, `ca.crt` and `namespace`. Default: `/var/run/secrets/kubernetes.io/serviceaccount`. */
  serviceAccount?: string;
  /** After so long everything is listed anew, whatever the watch said. 10 to 86,400, default 300. */
  resyncSeconds?: number;
}

export type DiscoverOptions = StaticDiscovery | DnsDiscovery | KubernetesDiscovery;

/** How the scheduler's keys come about, see `KvEventSource`. */
export type EventHash =
  | { algorithm: 'saga' }
  | {
      algorithm: Exclude<HashAlgorithm, 'saga'>;
      /** `PYTHONHASHSEED`. */
      seed: string;
      /** As of `BlockHasher`: `true` for vLLM 0.32 and 0.33. Default `false`. */
      taggedKeys?: boolean;
    };

/** A call, or its id where it is forgotten already. */
export type CallReference = Pick<Call, 'id'>;

export interface WorkerSetOptions {
  scheduler: Scheduler;
  /** As the servers call it. */
  model: string;
  servers?: readonly ServerOptions[];
  discover?: DiscoverOptions;
  /** Default `saga`: any engine's. */
  hash?: EventHash;
  /** The parity probe of each worker that comes. Default `true`. */
  probe?: boolean;
  /** Between two health checks, 0.05 to 3,600. Default 5. */
  healthSeconds?: number;
  /** Between two readings of /metrics, 0.05 to 3,600; 0: never. Default 1. */
  loadSeconds?: number;
  /** Scheduler seconds a second. Default 1. */
  timeScale?: number;
  /** The `X-Request-Id` by which a worker knows a call. Default `saga-` and the call's id. */
  requestIdOf?: (call: CallReference) => string | undefined;
  /** The thread number that `saga.call` gave a call; drops name it where it is known. Default: none. */
  threadOf?: (call: CallReference) => number | undefined;
  /**
   * The prompt of a call that has ended: for requests that bring its blocks ahead of the next one (the directives `prefetch` and
   * `migrate`). Default: none; those directives are refused then.
   */
  promptOf?: (call: CallReference) => PrefetchPrompt | undefined;
  /** Such requests at one time on a worker, 0 to 64; 0: none. Default 2. */
  prefetchRequests?: number;
  /** Default: nothing is logged. */
  log?: Logger;
}

const silent = (): void => {};
/** Logs nothing. */
export const noLog: Logger = { debug: silent, info: silent, warn: silent, error: silent };

const roles = ['both', 'prefill', 'decode'] as const;
const serverOptionNames = [
  'url',
  'apiKey',
  'dataParallelRanks',
  'events',
  'eventsBind',
  'replay',
  'topic',
  'directives',
  'directiveKey',
  'blocks',
  'blockTokens',
  'role',
] as const satisfies readonly (keyof ServerOptions)[];

/** Without user, password, query and fragment: what may be shown. */
export function shownUrl(text: string): string {
  try {
    const { protocol, host, pathname } = new URL(text);
    return `${protocol}//${host}${pathname}`;
  } catch {
    return 'a text that is no URL';
  }
}

/** The base URL without a slash at its end. */
export function checkUrl(name: string, value: unknown): string {
  const text = checkText(name, value, 2048);
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new SagaArgumentError(`${name} must be a URL, like http://127.0.0.1:8000`);
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:')
    throw new SagaArgumentError(`${name} must begin with http:// or https://, got ${describe(shownUrl(text))}`);
  if (url.username !== '' || url.password !== '')
    throw new SagaArgumentError(`${name} must not have a user or password in it; there is apiKey for that`);
  if (url.search !== '' || url.hash !== '')
    throw new SagaArgumentError(
      `${name} must have no query and no fragment, got one behind ${describe(shownUrl(text))}`,
    );
  return url.origin + url.pathname.replace(/\/+$/, '');
}

/** An endpoint of ZeroMQ. `bind` allows `*` as its host. */
export function checkEndpoint(name: string, value: unknown, bind = false): string {
  const text = checkText(name, value, 1024);
  const tcp = /^tcp:\/\/(\[[0-9a-fA-F:.%\w]+\]|[\w.-]+|\*):(\d{1,5})$/.exec(text);
  const port = Number(tcp?.[2] ?? 0);
  if (tcp && port >= 1 && port <= 65_535 && (bind || tcp[1] !== '*')) return text;
  // A path of a Unix socket has at most 107 bytes.
  if (/^ipc:\/\/[^\0]+$/.test(text) && Buffer.byteLength(text) <= 113) return text;
  throw new SagaArgumentError(`${name} must be like tcp://127.0.0.1:5557 or ipc:///run/events, got ${describe(text)}`);
}

/** The endpoint of a data-parallel rank: its port plus the rank. */
export function endpointOfRank(endpoint: string, rank: number): string {
  if (rank === 0) return endpoint;
  return endpoint.replace(/:(\d+)$/, (_, port: string) => `:${Number(port) + rank}`);
}

/** A copy that is checked, its `url` without a slash at its end. */
export function checkServer(name: string, given: ServerOptions): ServerOptions {
  checkOptions(given);
  for (const key of Object.keys(given)) {
    if (!(serverOptionNames as readonly string[]).includes(key))
      throw new SagaArgumentError(`${name} has no option ${describe(key)}; it has ${serverOptionNames.join(', ')}`);
  }
  const server: ServerOptions = { ...given, url: checkUrl(`${name}.url`, given.url) };
  const ranks = checkInteger(`${name}.dataParallelRanks`, given.dataParallelRanks ?? 1, 1, 256);
  if (given.apiKey !== undefined && !/^[\x21-\x7e]{1,4096}$/.test(given.apiKey))
    throw new SagaArgumentError(`${name}.apiKey must be 1 to 4096 printable characters without spaces`);
  if (given.directiveKey !== undefined && Buffer.byteLength(given.directiveKey) < 16)
    throw new SagaArgumentError(`${name}.directiveKey must have at least 16 bytes`);
  for (const key of ['events', 'replay', 'directives'] as const) {
    const endpoint = given[key];
    if (endpoint === undefined) continue;
    checkEndpoint(`${name}.${key}`, endpoint, key === 'events' && given.eventsBind === true);
    if (ranks > 1) {
      if (!endpoint.startsWith('tcp:'))
        throw new SagaArgumentError(`${name}.${key} must be a tcp endpoint where dataParallelRanks is above 1`);
      checkEndpoint(`${name}.${key}`, endpointOfRank(endpoint, ranks - 1), true);
    }
  }
  if (given.replay !== undefined && given.events === undefined)
    throw new SagaArgumentError(`${name}.replay is of no use without ${name}.events`);
  if (given.topic !== undefined) checkText(`${name}.topic`, given.topic, 256);
  if (given.blocks !== undefined) checkInteger(`${name}.blocks`, given.blocks, 1, 2 ** 32 - 1);
  if (given.blockTokens !== undefined) checkInteger(`${name}.blockTokens`, given.blockTokens, 1, 4096);
  checkOneOf(`${name}.role`, given.role ?? 'both', roles);
  if (given.role !== undefined && given.role !== 'both') {
    throw new SagaArgumentError(
      `${name}.role is ${given.role}: servers that only prefill or only decode are not supported, their blocks do not stay where ` +
        'the calls are',
    );
  }
  return server;
}

/** Publishers that connect to one endpoint are told apart by their topics. @throws SagaArgumentError */
export function checkTopics(servers: readonly ServerOptions[]): void {
  const bound = servers.filter(({ eventsBind }) => eventsBind === true);
  for (const [i, { events, topic = '' }] of bound.entries()) {
    const other = bound.slice(i + 1).find((server) => server.events === events);
    const { topic: others = '' } = other ?? {};
    if (other !== undefined && (topic.startsWith(others) || others.startsWith(topic)))
      throw new SagaArgumentError(
        `two servers are bound to ${events}: they must have topics of which none begins with the other`,
      );
  }
}

/** A number that may have a fraction. */
export function checkSeconds(name: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !(value >= least && value <= most))
    throw new SagaArgumentError(`${name} must be a number from ${least} to ${most}, got ${describe(value)}`);
  return value;
}

/** {@link WorkerSetOptions} with its defaults. */
export interface CheckedOptions {
  readonly scheduler: Scheduler;
  readonly model: string;
  readonly servers: readonly ServerOptions[];
  readonly discover: DiscoverOptions | undefined;
  readonly hash: EventHash;
  readonly probe: boolean;
  readonly healthSeconds: number;
  readonly loadSeconds: number;
  readonly timeScale: number;
  readonly requestIdOf: (call: CallReference) => string | undefined;
  readonly threadOf: (call: CallReference) => number | undefined;
  readonly promptOf: (call: CallReference) => PrefetchPrompt | undefined;
  readonly prefetchRequests: number;
  readonly log: Logger;
}

const setOptionNames = [
  'scheduler',
  'model',
  'servers',
  'discover',
  'hash',
  'probe',
  'healthSeconds',
  'loadSeconds',
  'timeScale',
  'requestIdOf',
  'threadOf',
  'promptOf',
  'prefetchRequests',
  'log',
] as const satisfies readonly (keyof WorkerSetOptions)[];

export function checkWorkerSet(given: WorkerSetOptions): CheckedOptions {
  checkOptions(given);
  for (const key of Object.keys(given)) {
    if (!(setOptionNames as readonly string[]).includes(key))
      throw new SagaArgumentError(`there is no option ${describe(key)}; there are ${setOptionNames.join(', ')}`);
  }
  if (typeof (given.scheduler as Partial<Scheduler> | undefined)?.addWorker !== 'function')
    throw new SagaArgumentError(`scheduler must be a Scheduler, got ${describe(given.scheduler)}`);
  const hash = given.hash ?? { algorithm: 'saga' };
  checkOneOf('hash.algorithm', hash.algorithm, ['saga', 'sha256_cbor', 'xxhash_cbor']);
  if (hash.algorithm !== 'saga') {
    checkText('hash.seed', hash.seed, 64);
    nativeAlgorithm(1, hash.taggedKeys);
  }
  const servers = (given.servers ?? []).map((server, i) => checkServer(`servers[${i}]`, server));
  const urls = new Set(servers.map((server) => server.url));
  if (urls.size < servers.length) throw new SagaArgumentError('two servers have the same url');
  checkTopics(servers);
  return {
    scheduler: given.scheduler,
    model: checkText('model', given.model, 1024),
    servers,
    discover: given.discover,
    hash,
    probe: given.probe ?? true,
    healthSeconds: checkSeconds('healthSeconds', given.healthSeconds ?? 5, 0.05, 3600),
    loadSeconds: given.loadSeconds === 0 ? 0 : checkSeconds('loadSeconds', given.loadSeconds ?? 1, 0.05, 3600),
    timeScale: checkSeconds('timeScale', given.timeScale ?? 1, 1e-6, 1e9),
    requestIdOf: given.requestIdOf ?? ((call) => `saga-${call.id}`),
    threadOf: given.threadOf ?? (() => undefined),
    promptOf: given.promptOf ?? (() => undefined),
    prefetchRequests: checkInteger('prefetchRequests', given.prefetchRequests ?? 2, 0, 64),
    log: given.log ?? noLog,
  };
}
