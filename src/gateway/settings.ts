/**
 * Every setting of the gateway by name: its type, default and description. From these tables come the checks of the configuration file, the flags
 * and environment variables of `saga serve`, what `saga config` prints, and the tables of docs/gateway.md.
 *
 * A setting has one name, `max_body_bytes`: in the file so, as a flag `--max-body-bytes`, in the environment `SAGA_MAX_BODY_BYTES`. Flags go before the
 * environment, that before the file. `${NAME}` in a text of the file stands for an environment variable.
 */
import { readFileSync } from 'node:fs';
import { LineCounter, isMap, isScalar, isSeq, parseDocument, type Document, type Node } from 'yaml';
import { SagaError } from '../errors.js';
import { parts, policies } from '../scheduler/vocabulary.js';
import type { GatewayConfig } from './config.js';

/** How a value is written and checked. */
export type SettingType =
  | { kind: 'text'; most?: number }
  | { kind: 'integer'; least: number; most: number }
  | { kind: 'number'; least: number; most: number }
  | { kind: 'flag' }
  | { kind: 'one'; of: readonly string[] }
  | { kind: 'texts' }
  | { kind: 'some'; of: readonly string[] }
  | { kind: 'map'; values: 'text' | 'number' }
  | { kind: 'list'; of: readonly Setting[] }
  | { kind: 'group'; of: readonly Setting[] };

export interface Setting {
  /** As in the file. */
  name: string;
  type: SettingType;
  /** As documented; texts say what happens without it. */
  fallback: string;
  help: string;
  /** Never printed or logged. */
  secret?: boolean;
  /** The member of the configuration, where it is not the name in camel case. */
  member?: string;
  required?: boolean;
}

const seconds = (name: string, fallback: number, help: string): Setting => ({
  name,
  type: { kind: 'number', least: 0.001, most: 1e6 },
  fallback: String(fallback),
  help,
});

const serverSettings: readonly Setting[] = [
  { name: 'url', type: { kind: 'text' }, fallback: '', required: true, help: 'Base URL of the server, without `/v1`' },
  { name: 'api_key', type: { kind: 'text' }, fallback: 'none', secret: true, help: 'Key for requests to it' },
  {
    name: 'data_parallel_ranks',
    type: { kind: 'integer', least: 1, most: 256 },
    fallback: '1',
    help: 'Each rank is a worker; rank r listens on the ports below plus r',
  },
  {
    name: 'events',
    type: { kind: 'text' },
    fallback: 'none',
    help: 'Endpoint of its KV events. Without: what it caches is not known',
  },
  {
    name: 'events_bind',
    type: { kind: 'flag' },
    fallback: 'false',
    help: 'Listen at `events`, for servers whose publisher connects',
  },
  {
    name: 'replay',
    type: { kind: 'text' },
    fallback: 'none',
    help: 'Where missed events are asked for. Without: a gap costs what is known',
  },
  { name: 'topic', type: { kind: 'text' }, fallback: 'all', help: 'Only events whose topic begins so' },
  {
    name: 'directives',
    type: { kind: 'text' },
    fallback: 'none',
    help: 'Endpoint of its directive channel (docs/directives.md)',
  },
  { name: 'directive_key', type: { kind: 'text' }, fallback: 'none', secret: true, help: 'Signs directives' },
  {
    name: 'blocks',
    type: { kind: 'integer', least: 1, most: 2 ** 32 - 1 },
    fallback: 'as it reports',
    help: 'KV blocks of a rank',
  },
  {
    name: 'role',
    type: { kind: 'one', of: ['both', 'prefill', 'decode'] },
    fallback: 'both',
    help: 'Only `both` is supported: others are refused',
  },
];

const foundSettings: readonly Setting[] = [
  { name: 'scheme', type: { kind: 'one', of: ['http', 'https'] }, fallback: 'http', help: 'Of the URLs' },
  ...(['events', 'replay', 'directives'] as const).map((of): Setting => ({
    name: `${of}_port`,
    type: { kind: 'integer', least: 1, most: 65_535 },
    fallback: 'none',
    help: `Port of \`${of}\` at each address`,
  })),
  ...serverSettings.filter(({ name }) => !['url', 'events', 'events_bind', 'replay', 'directives'].includes(name)),
];

const discoverSettings: readonly Setting[] = [
  {
    name: 'type',
    type: { kind: 'one', of: ['dns', 'kubernetes'] },
    fallback: '',
    required: true,
    help: 'Where servers are found',
  },
  { name: 'host', type: { kind: 'text' }, fallback: '', help: 'dns: the name that is asked for' },
  { name: 'record', type: { kind: 'one', of: ['A', 'AAAA', 'SRV'] }, fallback: 'A', help: 'dns: what is asked for' },
  seconds('every_seconds', 10, 'dns: between two questions'),
  {
    name: 'service',
    type: { kind: 'text' },
    fallback: '',
    help: 'kubernetes: the service whose EndpointSlices are watched',
  },
  { name: 'namespace', type: { kind: 'text' }, fallback: "the pod's own", help: 'kubernetes' },
  {
    name: 'port',
    type: { kind: 'text' },
    fallback: 'the first',
    help: 'Number of the HTTP port; kubernetes: or its name',
  },
  { name: 'api_server', type: { kind: 'text' }, fallback: "the cluster's", help: 'kubernetes: URL of the API' },
  {
    name: 'service_account',
    type: { kind: 'text' },
    fallback: '/var/run/secrets/kubernetes.io/serviceaccount',
    help: 'kubernetes: folder of `token`, `ca.crt` and `namespace`',
  },
  seconds('resync_seconds', 300, 'kubernetes: everything is listed anew after so long'),
  {
    name: 'server',
    type: { kind: 'group', of: foundSettings },
    fallback: '',
    help: 'What all found servers have in common',
  },
];

const stepSettings: readonly Setting[] = [
  ['base', 'Seconds of a step'],
  ['per_call', 'for each call in it'],
  ['per_context_token', 'for each token of context of the calls that decode'],
  ['per_prefill_token', 'for each prompt token'],
  ['per_prefill_pair', 'for each pair of a prompt token and one before it'],
].map(([name, help]) => ({
  name: name as string,
  type: { kind: 'number', least: 1e-12, most: 1000 },
  fallback: 'of a 70B model on 4 A100',
  help: help as string,
}));

const modelSettings: readonly Setting[] = [
  { name: 'name', type: { kind: 'text' }, fallback: '', required: true, help: 'As clients call it' },
  { name: 'upstream_name', type: { kind: 'text' }, fallback: '`name`', help: 'As the servers call it' },
  {
    name: 'aliases',
    type: { kind: 'map', values: 'text' },
    fallback: 'none',
    help: 'Other names, such as of LoRA adapters: name to the name of the adapter at the servers; empty: just another name',
  },
  { name: 'servers', type: { kind: 'list', of: serverSettings }, fallback: 'none', help: 'Servers that have it' },
  {
    name: 'discover',
    type: { kind: 'group', of: discoverSettings },
    fallback: 'none',
    help: 'Where more of them are found',
  },
  {
    name: 'block_tokens',
    type: { kind: 'integer', least: 1, most: 4096 },
    fallback: '16',
    help: 'Tokens of a KV block: `--block-size`',
  },
  {
    name: 'hash_algorithm',
    type: { kind: 'one', of: ['saga', 'sha256_cbor', 'xxhash_cbor'] },
    fallback: 'saga',
    help: 'How blocks are named: `saga` fits every engine; the others are `--prefix-caching-hash-algo`, with `hash_seed`',
  },
  { name: 'hash_seed', type: { kind: 'text', most: 64 }, fallback: '0', help: 'PYTHONHASHSEED of the engines' },
  {
    name: 'hash_tagged_keys',
    type: { kind: 'flag' },
    fallback: 'false',
    help: 'The engines write cache salts into hashes with their kind: vLLM 0.32 and 0.33. With `saga` it means nothing',
  },
  {
    name: 'tokenizer',
    type: { kind: 'text' },
    fallback: "the workers' endpoints",
    help: 'Folder with `tokenizer.json` and `tokenizer_config.json`: text is tokenised here, and only what is new. With a chat template alone a worker tokenises, only what is new too; without a folder the whole conversation each time',
  },
  { name: 'policy', type: { kind: 'one', of: policies }, fallback: 'saga', help: 'How calls are placed' },
  {
    name: 'without',
    type: { kind: 'some', of: parts },
    fallback: 'stealing',
    help: 'Parts of `saga` switched off. vLLM workers cannot copy blocks between each other on order: `stealing` always is. Add `eviction` where the connector works with leases',
  },
  {
    name: 'prefetch_requests',
    type: { kind: 'integer', least: 0, most: 64 },
    fallback: '2',
    help: 'One-token requests at one time on a worker that bring the blocks of a workflow from host memory before it returns; 0: none. They need an offloading connector at the worker that tells of its tier',
  },
  {
    name: 'kv_hints',
    type: { kind: 'flag' },
    fallback: 'true',
    help: "Decisions about a call ride on its request, where the worker's connector says that it reads them",
  },
  {
    name: 'step_seconds',
    type: { kind: 'group', of: stepSettings },
    fallback: '70B on 4 A100',
    help: 'Step time of the workers, the first guess: it is learned',
  },
  {
    name: 'kv_bytes_per_token',
    type: { kind: 'integer', least: 1, most: 2 ** 30 },
    fallback: '327680',
    help: 'Size of the KV cache of a token',
  },
  {
    name: 'priority',
    type: { kind: 'flag' },
    fallback: 'false',
    help: 'The servers run with `--scheduling-policy priority`: send `priority`',
  },
  {
    name: 'max_prompt_tokens',
    type: { kind: 'integer', least: 1, most: 2 ** 27 },
    fallback: '1048576',
    help: 'Longest prompt',
  },
];

const tenantSettings: readonly Setting[] = [
  { name: 'name', type: { kind: 'text', most: 256 }, fallback: '', required: true, help: 'Of the tenant' },
  { name: 'api_keys', type: { kind: 'texts' }, fallback: 'none', secret: true, help: 'Keys by which it is known' },
  { name: 'weight', type: { kind: 'number', least: 1 / 1024, most: 1024 }, fallback: '1', help: 'Of its fair share' },
  {
    name: 'cache_salt',
    type: { kind: 'text' },
    fallback: 'none',
    secret: true,
    help: "Its own name space in the workers' prefix caches; keep it secret",
  },
];

/** All of them; those that are no list or group are flags and environment variables too. */
export const gatewaySettings: readonly Setting[] = [
  {
    name: 'host',
    type: { kind: 'text' },
    fallback: '127.0.0.1',
    help: 'Address to listen at; any but a loopback one needs `api_keys` or `insecure`',
  },
  {
    name: 'port',
    type: { kind: 'integer', least: 0, most: 65_535 },
    fallback: '8080',
    help: 'Port to listen at; 0: any free one',
  },
  {
    name: 'api_keys',
    type: { kind: 'texts' },
    fallback: 'none',
    secret: true,
    help: 'Keys that clients may use, besides those of tenants',
  },
  {
    name: 'admin_keys',
    type: { kind: 'texts' },
    fallback: '`api_keys`',
    secret: true,
    help: 'Keys for `/metrics`, `/saga/workers` and the workflows of all tenants, besides everything else',
  },
  { name: 'insecure', type: { kind: 'flag' }, fallback: 'false', help: 'Serve whoever comes, at any address' },
  {
    name: 'models',
    type: { kind: 'list', of: modelSettings },
    fallback: 'one, by flags',
    help: 'Models and their servers',
  },
  {
    name: 'tenants',
    type: { kind: 'list', of: tenantSettings },
    fallback: 'one, `default`',
    help: 'Who shares the workers',
  },
  {
    name: 'trust_tenant_header',
    type: { kind: 'flag' },
    fallback: 'false',
    help: "`X-SAGA-Tenant` (or llm-d's fairness id) names the tenant where the key belongs to none",
  },
  {
    name: 'salt_tenants',
    type: { kind: 'flag' },
    fallback: 'true',
    help: 'Each tenant that only the header names has a name space of its own in the prefix caches',
  },
  {
    name: 'tenant_secret',
    type: { kind: 'text' },
    fallback: 'random at each start',
    secret: true,
    help: 'From it their salts are made; the same one in all gateways before the same workers',
  },
  {
    name: 'trust_client_parameters',
    type: { kind: 'flag' },
    fallback: 'false',
    help: 'Clients may send `priority`, `X-Vllm-Priority` and `kv_transfer_params`; otherwise they are left out',
  },
  {
    name: 'max_body_bytes',
    type: { kind: 'integer', least: 1024, most: 2 ** 31 },
    fallback: '33554432',
    help: 'Size of a request',
  },
  {
    name: 'max_held_bytes',
    type: { kind: 'integer', least: 2 ** 20, most: 2 ** 40 },
    fallback: '1073741824',
    help: 'Size of all requests that are there at one time',
  },
  {
    name: 'max_calls',
    type: { kind: 'integer', least: 1, most: 2 ** 20 },
    fallback: '8192',
    help: 'Calls of a model that are open at one time; more are refused with 429',
  },
  {
    name: 'max_connections',
    type: { kind: 'integer', least: 1, most: 2 ** 20 },
    fallback: '16384',
    help: 'Connections of clients at one time; further ones are dropped',
  },
  seconds('header_seconds', 20, "For a request's headers to arrive"),
  seconds('body_seconds', 30, "For a request's body to arrive"),
  seconds('queue_seconds', 120, 'That a call may wait for a worker'),
  seconds('workflow_idle_seconds', 900, 'Without a call, after which a workflow counts as done'),
  seconds('first_byte_seconds', 600, 'For a worker to begin its answer'),
  seconds('chunk_seconds', 300, 'Between two chunks of an answer, and for a client that does not read'),
  seconds('deadline_seconds', 3600, 'For a whole call'),
  {
    name: 'retries',
    type: { kind: 'integer', least: 0, most: 16 },
    fallback: '2',
    help: 'Further workers tried when one fails before its first byte',
  },
  {
    name: 'probe',
    type: { kind: 'flag' },
    fallback: 'true',
    help: 'Probe at start-up whether block hashes and sizes are as expected',
  },
  {
    name: 'time_scale',
    type: { kind: 'number', least: 1e-6, most: 1e6 },
    fallback: '1',
    help: "The scheduler's seconds are so many times shorter: for emulated workers",
  },
  {
    name: 'log_level',
    type: { kind: 'one', of: ['debug', 'info', 'warn', 'error', 'silent'] },
    fallback: 'info',
    help: 'Of the log on standard error',
  },
];

/** Settings of one model and one server that `saga serve` takes as flags and from the environment, where the file has no `models`. */
export const quickSettings: readonly Setting[] = [
  { name: 'model', type: { kind: 'text' }, fallback: '', help: 'Name of the only model' },
  {
    name: 'servers',
    type: { kind: 'texts' },
    fallback: '',
    help: 'Its servers: `URL[,events=ENDPOINT][,replay=ENDPOINT][,directives=ENDPOINT][,blocks=N]`',
  },
  ...modelSettings.filter((setting) => isPlain(setting) && setting.name !== 'name'),
];

/** A configuration that cannot be used: every reason, each with its place. */
export class SettingsError extends SagaError {
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super('SAGA_ERR_OPTION', problems.join('\n'));
    this.problems = problems;
  }
}

export interface Configuration {
  config: GatewayConfig;
  logLevel: string;
}

/** What is known before the file is read: from flags and the environment, by the names of settings. */
export type GivenSettings = Readonly<Record<string, string | boolean | readonly string[] | undefined>>;

const mostProblems = 50;

/** Reads settings; collects every problem before it throws. */
class Reader {
  readonly problems: string[] = [];
  readonly #environment: NodeJS.ProcessEnv;
  #place: (node: unknown) => string = () => '';

  constructor(environment: NodeJS.ProcessEnv) {
    this.#environment = environment;
  }

  /** The members of a file that is a map of settings. */
  file(text: string, name: string): Record<string, unknown> {
    const lines = new LineCounter();
    const document: Document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
    this.#place = (node) => {
      const range = (node as { range?: [number, number, number] } | undefined)?.range;
      return range === undefined ? `${name}: ` : `${name}:${lines.linePos(range[0]).line}: `;
    };
    for (const { message, pos } of document.errors)
      this.problem(`${name}:${lines.linePos(pos[0]).line}: ${message.replace(/\s+/g, ' ')}`);
    if (this.problems.length > 0 || document.contents === null) return {};
    return this.group(document.contents, gatewaySettings, '');
  }

  problem(text: string): void {
    if (this.problems.length < mostProblems) this.problems.push(text);
  }

  group(node: Node | null, settings: readonly Setting[], path: string): Record<string, unknown> {
    const found: Record<string, unknown> = {};
    if (!isMap(node)) {
      this.#wrong(node, path, 'a map of settings');
      return found;
    }
    for (const pair of node.items) {
      const key = isScalar(pair.key) ? String(pair.key.value) : '';
      const setting = settings.find(({ name }) => name === key);
      if (setting === undefined) {
        const near = settings.map(({ name }) => name).filter((name) => alike(name, key));
        const hint = near.length > 0 ? `; did you mean ${near[0] as string}?` : '';
        this.problem(`${this.#place(pair.key)}${path}${key} is no setting${hint}`);
        continue;
      }
      const value = pair.value as Node | null;
      if (value === null || (isScalar(value) && value.value === null)) continue;
      const made = this.#value(value, setting, `${path}${key}`);
      if (made !== undefined) found[memberOf(setting)] = made;
    }
    for (const { name, required } of settings)
      if (required === true && !node.has(name)) this.problem(`${this.#place(node)}${path}${name} is needed`);
    return found;
  }

  #value(node: Node, setting: Setting, path: string): unknown {
    const { type } = setting;
    switch (type.kind) {
      case 'group':
        return this.group(node, type.of, `${path}.`);
      case 'list':
        if (!isSeq(node)) return this.#wrong(node, path, 'a list');
        return node.items.map((item, i) => this.group(item as Node, type.of, `${path}[${i}].`));
      case 'map': {
        if (!isMap(node)) return this.#wrong(node, path, 'a map');
        return Object.fromEntries(
          node.items.map(({ key, value }) => {
            const given = isScalar(value) ? value.value : null;
            return [textOf(isScalar(key) ? key.value : null), given === null || given === '' ? null : textOf(given)];
          }),
        );
      }
      case 'texts':
      case 'some': {
        const items = isSeq(node) ? (node.items as Node[]) : [node];
        const values = items.map((item, i) =>
          this.#scalar(item, { ...setting, type: itemType(type) }, `${path}[${i}]`),
        );
        return values.includes(undefined) ? undefined : values;
      }
      default:
        return this.#scalar(node, setting, path);
    }
  }

  #scalar(node: Node, setting: Setting, path: string): unknown {
    if (!isScalar(node)) return this.#wrong(node, path, expected(setting.type));
    const given = typeof node.value === 'string' ? this.#filledIn(node.value, node, path) : node.value;
    if (given === undefined) return undefined;
    // Keys and names that look like numbers are texts all the same.
    const text = setting.type.kind === 'text' && typeof given !== 'string' ? (node.source ?? textOf(given)) : given;
    const made = valueOf(text, setting.type);
    return made === undefined ? this.#wrong(node, path, expected(setting.type), setting.secret) : made;
  }

  #filledIn(text: string, node: Node, path: string): string | undefined {
    let missing: string | undefined;
    const filled = text.replace(/\$\{(\w+)\}/g, (_, name: string) => {
      const value = this.#environment[name];
      if (value === undefined) missing = name;
      return value ?? '';
    });
    if (missing === undefined) return filled;
    this.problem(`${this.#place(node)}${path} needs the environment variable ${missing}, which is not set`);
    return undefined;
  }

  #wrong(node: unknown, path: string, wanted: string, secret = false): undefined {
    const got = secret ? '' : isScalar(node) ? `, got ${JSON.stringify(node.value)}` : '';
    this.problem(`${this.#place(node)}${path === '' ? 'the file' : path.replace(/\.$/, '')} must be ${wanted}${got}`);
    return undefined;
  }
}

function textOf(value: unknown): string {
  return typeof value === 'string'
    ? value
    : typeof value === 'number' || typeof value === 'boolean'
      ? String(value)
      : '';
}

/** A flag's or variable's value, or a scalar's; `undefined`: wrong. */
function valueOf(given: unknown, type: SettingType): unknown {
  switch (type.kind) {
    case 'text':
      return typeof given === 'string' && given !== '' && Buffer.byteLength(given) <= (type.most ?? 4096)
        ? given
        : undefined;
    case 'flag':
      if (typeof given === 'boolean') return given;
      return given === 'true' || given === '1' ? true : given === 'false' || given === '0' ? false : undefined;
    case 'integer':
    case 'number': {
      const number = typeof given === 'string' && /^[-+\d.e]+$/i.test(given) ? Number(given) : given;
      if (typeof number !== 'number' || !(number >= type.least && number <= type.most)) return undefined;
      return type.kind === 'integer' && !Number.isInteger(number) ? undefined : number;
    }
    case 'one':
      return type.of.includes(given as string) ? given : undefined;
    default:
      return undefined;
  }
}

function itemType(type: SettingType): SettingType {
  return type.kind === 'some' ? { kind: 'one', of: type.of } : { kind: 'text' };
}

/** In a sentence that begins `must be`. */
export function expected(type: SettingType): string {
  switch (type.kind) {
    case 'text':
      return `a text of 1 to ${type.most ?? 4096} bytes`;
    case 'flag':
      return 'true or false';
    case 'integer':
      return `an integer from ${type.least} to ${type.most}`;
    case 'number':
      return `a number from ${type.least} to ${type.most}`;
    case 'one':
      return `one of ${type.of.join(', ')}`;
    case 'texts':
      return 'a text or a list of texts';
    case 'some':
      return `one or several of ${type.of.join(', ')}`;
    case 'map':
      return 'a map';
    case 'list':
      return 'a list';
    case 'group':
      return 'a map of settings';
  }
}

function memberOf({ name, member }: Setting): string {
  return member ?? name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
}

/** Whether a name is probably a slip of the other. */
function alike(a: string, b: string): boolean {
  const plain = (text: string): string => text.replace(/[-_]/g, '').toLowerCase();
  const [x, y] = [plain(a), plain(b)];
  return x === y || (y.length >= 4 && (x.startsWith(y) || y.startsWith(x)));
}

/** The name of a setting as an environment variable, and as a flag. */
export function variableOf(name: string): string {
  return `SAGA_${name.toUpperCase()}`;
}

export function flagOf(name: string): string {
  return `--${name.replaceAll('_', '-')}`;
}

/** Settings that are no list or group of others. */
export function isPlain({ type }: Setting): boolean {
  return type.kind !== 'list' && type.kind !== 'group' && type.kind !== 'map';
}

/**
 * The configuration from a file, the environment and flags.
 *
 * @param flags by the names of settings
 * @throws SettingsError with every problem
 */
export function readConfiguration(
  from: { file?: string; flags?: GivenSettings; environment?: NodeJS.ProcessEnv } = {},
): Configuration {
  const { flags = {}, environment = {} } = from;
  const reader = new Reader(environment);
  let members: Record<string, unknown> = {};
  if (from.file !== undefined) {
    let text: string | undefined;
    try {
      text = readFileSync(from.file, 'utf8');
    } catch (error) {
      reader.problem(`${from.file}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`);
    }
    if (text !== undefined) members = reader.file(text, from.file);
  }
  const given = (setting: Setting): unknown => {
    const variable = variableOf(setting.name);
    const [value, source] =
      flags[setting.name] !== undefined
        ? [flags[setting.name], flagOf(setting.name)]
        : [environment[variable], variable];
    if (value === undefined) return undefined;
    let made: unknown;
    if (setting.type.kind === 'texts' || setting.type.kind === 'some') {
      const separator = setting.name === 'servers' ? /\s+/ : /[\s,]+/;
      const texts =
        typeof value === 'string' ? value.split(separator).filter((item) => item !== '') : [...(value as string[])];
      const items = texts.map((item) => valueOf(item, itemType(setting.type)));
      made = items.includes(undefined) ? undefined : items;
    } else {
      made = valueOf(value, setting.type);
    }
    if (made === undefined) {
      const got = setting.secret === true ? '' : `, got ${JSON.stringify(value)}`;
      reader.problem(`${source} must be ${expected(setting.type)}${got}`);
    }
    return made;
  };
  for (const setting of gatewaySettings.filter(isPlain)) {
    const value = given(setting);
    if (value !== undefined) members[memberOf(setting)] = value;
  }
  const quick: Record<string, unknown> = {};
  for (const setting of quickSettings) {
    const value = given(setting);
    if (value !== undefined) quick[memberOf(setting)] = value;
  }
  if (Object.keys(quick).length > 0) {
    if (members['models'] !== undefined) {
      // What the environment says of one model does not concern a file that has its own.
      const flagged = quickSettings.find(({ name }) => flags[name] !== undefined);
      if (flagged !== undefined) reader.problem(`${flagOf(flagged.name)} cannot be used beside models in the file`);
    } else {
      const { model, servers, ...rest } = quick as { model?: string; servers?: string[] };
      if (model === undefined) reader.problem(`${flagOf('model')} is needed: the name of the model`);
      members['models'] = [
        { name: model ?? '', ...rest, servers: (servers ?? []).map((text) => serverOf(text, reader)) },
      ];
    }
  }
  const { logLevel = 'info', models, ...others } = members as { logLevel?: string; models?: unknown[] };
  if (models === undefined || models.length === 0)
    reader.problem('models is needed: at least one model with its servers, in the file or by --model and --servers');
  if (reader.problems.length > 0) throw new SettingsError(reader.problems);
  return { config: { ...others, models: (models ?? []).map(numericPort) } as unknown as GatewayConfig, logLevel };
}

/** A port that is a number is one: for DNS it must be. */
function numericPort(model: unknown): unknown {
  const { discover, ...rest } = model as { discover?: { port?: string } };
  if (discover === undefined) return rest;
  const { port } = discover;
  return {
    ...rest,
    discover: port !== undefined && /^\d+$/.test(port) ? { ...discover, port: Number(port) } : discover,
  };
}

/** `URL,events=ENDPOINT,...` */
function serverOf(text: string, reader: Reader): Record<string, unknown> {
  const [url, ...options] = text.split(',');
  const server: Record<string, unknown> = { url };
  for (const option of options) {
    const at = option.indexOf('=');
    const name = option.slice(0, Math.max(at, 0));
    const setting = serverSettings.find((known) => known.name === name && !known.required);
    const value = setting === undefined ? undefined : valueOf(option.slice(at + 1), setting.type);
    if (setting === undefined || value === undefined)
      reader.problem(
        `${flagOf('servers')}: ${name === '' ? JSON.stringify(option) : name} must be a setting of a server with its value`,
      );
    else server[memberOf(setting)] = value;
  }
  return server;
}

/** The configuration as text, without secrets: `saga config check` prints it. */
export function shownConfiguration({ config, logLevel }: Configuration): string {
  const secret = /^(?:apiKeys?|adminKeys|directiveKey|cacheSalt|tenantSecret)$/;
  return JSON.stringify(
    { ...config, logLevel },
    (name, value: unknown) =>
      secret.test(name) ? (Array.isArray(value) ? `${value.length} hidden` : 'hidden') : value,
    2,
  );
}

/** Every setting with its full name, in the order of the documentation. */
export function allSettings(
  settings: readonly Setting[] = gatewaySettings,
  prefix = '',
): { path: string; setting: Setting }[] {
  return settings.flatMap((setting) => {
    const { type } = setting;
    const path = prefix + setting.name;
    const inner =
      type.kind === 'list'
        ? allSettings(type.of, `${path}[].`)
        : type.kind === 'group'
          ? allSettings(type.of, `${path}.`)
          : [];
    return [{ path, setting }, ...inner];
  });
}
