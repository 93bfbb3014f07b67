/**
 * Options of `saga simulate`: from texts, as a command line gives them, to checked values.
 *
 * Every mistake is a {@link SagaError} with the code `SAGA_ERR_OPTION` and one sentence that says what was expected. Options of
 * the other mode are mistakes too: what is silently ignored is believed to have had an effect.
 */
import { SagaError } from '../errors.js';
import { cacheHints, type CacheHints } from '../workload/hints.js';

/** What is simulated: one shared cache, or a cluster of workers in time. */
export const modes = ['cache', 'cluster'] as const;
/** One of {@link modes}. */
export type Mode = (typeof modes)[number];

/**
 * Eviction policies of cache mode. `lru`: vLLM's order. `lru-prefix`, `wa-lru`, `ttl`, `saga-paper`: of the SAGA paper.
 * `saga`: this project's. `belady`: the offline optimum.
 */
export const cachePolicies = ['lru', 'lru-prefix', 'wa-lru', 'ttl', 'saga-paper', 'saga', 'belady'] as const;
/** One of {@link cachePolicies}. */
export type CachePolicy = (typeof cachePolicies)[number];

/**
 * Policies of cluster mode, in the order of the C interface. The first four place by themselves or by affinity and evict by LRU,
 * WA-LRU or times to live; `kv-router`, `continuum`, `thunder-agent` and `kv-flow` are schedulers of others; `saga-paper` is SAGA
 * as its paper describes it, `saga` this project's.
 */
export const clusterPolicies = [
  'round-robin',
  'affinity',
  'wa-lru',
  'ttl',
  'kv-router',
  'continuum',
  'thunder-agent',
  'kv-flow',
  'saga-paper',
  'saga',
] as const;
/** One of {@link clusterPolicies}. */
export type ClusterPolicy = (typeof clusterPolicies)[number];

/**
 * Policies that run through the scheduling engine, which has a state digest and can keep a journal. `saga` does not where workers
 * have host memory: they tell no events of it.
 */
export const enginePolicies: readonly ClusterPolicy[] = ['round-robin', 'affinity', 'wa-lru', 'ttl', 'saga'];

/** Whether runs of a policy go through the engine. */
export function runsThroughEngine(policy: ClusterPolicy, hostTierTokens: number): boolean {
  return enginePolicies.includes(policy) && (policy !== 'saga' || hostTierTokens === 0);
}

/** Parts of a scheduler that can be taken out, in the order of the C interface. */
export const policyParts = [
  'prediction',
  'eviction',
  'affinity',
  'stealing',
  'prefetch',
  'admission',
  'fairness',
  'ttl',
] as const;
/** One of {@link policyParts}. */
export type PolicyPart = (typeof policyParts)[number];

/** The parts that a policy has; those not named have none. */
export const partsOfPolicy: Readonly<Partial<Record<ClusterPolicy, readonly PolicyPart[]>>> = {
  'saga-paper': policyParts.filter((part) => part !== 'admission'), // the paper has none
  saga: policyParts,
};

/**
 * Parameters of cluster policies by name, each at its number in the C interface. What they mean, and their defaults, stands in
 * the header of the policy (`native/core/sim/`, `native/core/place/`). Policies not named have none.
 */
export const policyParameters: Readonly<Partial<Record<ClusterPolicy, readonly string[]>>> = {
  'kv-router': [
    'prefillScale',
    'temperature',
    'queueThreshold',
    'queueOrder',
    'sessionAffinitySeconds',
    'deviceCredit',
    'hostCredit',
  ],
  continuum: ['memoryWeight', 'queueWeight', 'longestTtlSeconds', 'coldTtlSeconds'],
  'thunder-agent': [
    'pauseThreshold',
    'pauseTarget',
    'hysteresis',
    'halfLifeSeconds',
    'tickSeconds',
    'resumeOrder',
    'timeLimitSeconds',
  ],
  'kv-flow': ['routing'],
  'saga-paper': ['theta', 'queueStrategy', 'idleSeconds', 'mostImbalance', 'dispatchDepth', 'preemptionSeconds'],
};

/** What clients of a cluster tell: nothing, or the declared graph of a task when it arrives, and that a task is over. */
export const clusterHints = ['none', 'graph'] as const;
/** One of {@link clusterHints}. */
export type ClusterHints = (typeof clusterHints)[number];

/**
 * Evaluation models of cache mode. `atomic`: a call is an instant. `pinned`: it runs from start to end, and nobody can evict
 * its pages meanwhile.
 */
export const cacheModels = ['atomic', 'pinned'] as const;
/** One of {@link cacheModels}. */
export type CacheModel = (typeof cacheModels)[number];

/** Machines of cluster mode: GPU and tensor parallelism of a worker. */
export const hardwareNames = ['a100-tp4', 'a100-tp8', 'h100-tp4', 'h100-tp8'] as const;
/** One of {@link hardwareNames}. */
export type Hardware = (typeof hardwareNames)[number];

/** Generated workloads. */
export const workloadNames = ['swe-bench', 'web-arena', 'multi-tenant', 'agent'] as const;
/** One of {@link workloadNames}. */
export type WorkloadName = (typeof workloadNames)[number];

/** KV room of a worker in tokens: 80 GB GPUs at 0.9 of their memory, a 70B model in bf16. */
export const defaultKvTokens: Readonly<Record<Hardware, number>> = {
  'a100-tp4': 448_000,
  'a100-tp8': 1_327_000,
  'h100-tp4': 448_000,
  'h100-tp8': 1_327_000,
};

/** Where the calls come from. */
export interface InputOptions {
  /** Trace file or directory; undefined with `workload`. */
  trace: string | undefined;
  workload: WorkloadName | undefined;
  /** Seed of the generator and of whatever else is drawn. Default 42. */
  seed: number;
  /** Number of tasks; undefined: the default of the workload, or all of a trace. */
  tasks: number | undefined;
  /** Longest gap kept, seconds. Default 1,800. */
  gapCapSeconds: number;
  /** Another order of sessions; undefined: the order of the SHA-256 of their names. */
  orderSalt: number | undefined;
  onBadLine: 'skip' | 'fail';
}

/** A percentage as it was given; `text` is exact. */
export interface Percentage {
  readonly text: string;
  readonly value: number;
}

/** Checked options of cache mode. */
export interface CacheOptions extends InputOptions {
  mode: 'cache';
  policies: CachePolicy[];
  /** Sessions live at once; undefined: 32 for sessions, none for a trace with arrival times. */
  live: number | undefined;
  model: CacheModel;
  /** Cache sizes in tokens; undefined with `cacheShares`. */
  cacheTokens: number[] | undefined;
  /** Cache sizes in per cent of the distinct pages of the whole input. */
  cacheShares: Percentage[] | undefined;
  pageTokens: number;
  /** Only the first so many per cent of the merged requests; undefined: all. */
  first: Percentage | undefined;
  /** What clients tell. Default none. */
  hints: CacheHints;
  timing: boolean;
}

/** How tasks arrive in cluster mode. */
export type Arrivals =
  /** Open loop, multiples of the rate at which `affinity` saturates. */
  | { kind: 'load'; loads: number[] }
  /** Open loop, tasks a second. */
  | { kind: 'rate'; tasksPerSecond: number }
  /** Closed loop: so many tasks live. */
  | { kind: 'live'; tasks: number }
  /** Closed loop: as many tasks live as fill the KV room so many times. */
  | { kind: 'pressure'; pressure: number };

/** Checked options of cluster mode. */
export interface ClusterOptions extends InputOptions {
  mode: 'cluster';
  policies: ClusterPolicy[];
  workers: number;
  hardware: Hardware;
  arrivals: Arrivals;
  /** Policies whose saturation rate is searched for besides. */
  saturation: ClusterPolicy[];
  pageTokens: number;
  kvTokens: number;
  maxSequences: number;
  stepTokens: number;
  /** Host memory for pages a worker, in tokens; 0: no host tier. */
  hostTierTokens: number;
  linkGigabytesPerSecond: number;
  /** What clients tell; undefined: graphs where the workload is generated or declares some. */
  hints: ClusterHints | undefined;
  /** Parts taken out of the policies that have them. */
  without: PolicyPart[];
  /** File for the engine's journal; only with one policy and one load. */
  journal: string | undefined;
}

/** Checked options. */
export type SimulateOptions = CacheOptions | ClusterOptions;

/** Names of the options with a value, by mode. Flags stand apart. */
const commonNames = [
  'mode',
  'trace',
  'workload',
  'policies',
  'seed',
  'tasks',
  'gapCap',
  'orderSalt',
  'onBadLine',
  'live',
  'pageTokens',
  'hints',
];
const cacheNames = ['model', 'cacheTokens', 'cacheShares', 'first', 'timing'];
const clusterNames = [
  'workers',
  'hardware',
  'load',
  'rate',
  'pressure',
  'saturation',
  'kvTokens',
  'maxSequences',
  'stepTokens',
  'hostTierTokens',
  'linkGigabytes',
  'without',
  'journal',
];

/** Options as texts by name in camel case; undefined where not given. `timing` is a flag. */
export type RawOptions = Readonly<Record<string, string | boolean | undefined>>;

/** An option that cannot be used. */
export function optionError(message: string): SagaError {
  return new SagaError('SAGA_ERR_OPTION', message);
}

/**
 * Checks the options.
 *
 * @throws SagaError `SAGA_ERR_OPTION`
 */
export function parseSimulateOptions(raw: RawOptions): SimulateOptions {
  const mode = oneOf('mode', textOf(raw, 'mode') ?? 'cache', modes);
  const unknown = Object.keys(raw).find((name) => ![...commonNames, ...cacheNames, ...clusterNames].includes(name));
  if (unknown !== undefined) throw optionError(`expected a known option, not ${flag(unknown)}`);
  const foreign = (mode === 'cache' ? clusterNames : cacheNames).find((name) => raw[name] !== undefined);
  if (foreign !== undefined) {
    throw optionError(
      `expected no ${flag(foreign)} with --mode ${mode}: it belongs to --mode ${mode === 'cache' ? 'cluster' : 'cache'}`,
    );
  }
  const input = parseInput(raw, mode);
  return mode === 'cache' ? parseCache(raw, input) : parseCluster(raw, input);
}

function parseInput(raw: RawOptions, mode: Mode): InputOptions {
  const trace = textOf(raw, 'trace');
  const given = textOf(raw, 'workload');
  if ((trace === undefined) === (given === undefined)) {
    throw optionError('expected either --trace FILE or --workload NAME');
  }
  const workload =
    given === undefined ? undefined : oneOf('workload', given, mode === 'cache' ? (['agent'] as const) : workloadNames);
  if (workload !== undefined && raw['onBadLine'] !== undefined) {
    throw optionError('expected no --on-bad-line with --workload: only a trace has lines');
  }
  if (workload !== undefined && workload !== 'agent' && raw['orderSalt'] !== undefined) {
    throw optionError(`expected no --order-salt with --workload ${workload}: its tasks come in the order drawn`);
  }
  return {
    trace,
    workload,
    seed: integerOf(raw, 'seed', 0, Number.MAX_SAFE_INTEGER) ?? 42,
    tasks: integerOf(raw, 'tasks', 1, 10_000_000),
    gapCapSeconds: numberOf(raw, 'gapCap', 0, 1e7) ?? 1800,
    orderSalt: integerOf(raw, 'orderSalt', 0, Number.MAX_SAFE_INTEGER),
    onBadLine: oneOf('onBadLine', textOf(raw, 'onBadLine') ?? 'fail', ['skip', 'fail'] as const),
  };
}

function parseCache(raw: RawOptions, input: InputOptions): CacheOptions {
  const tokens = listOf(raw, 'cacheTokens')?.map((text) =>
    wholeNumber('cacheTokens', text, 1, Number.MAX_SAFE_INTEGER),
  );
  const shares = listOf(raw, 'cacheShares')?.map((text) => percentage('cacheShares', text));
  if (tokens !== undefined && shares !== undefined) {
    throw optionError('expected either --cache-tokens N,.. or --cache-shares PERCENT,.., not both');
  }
  const first = textOf(raw, 'first');
  const pageTokens = integerOf(raw, 'pageTokens', 1, 1 << 20) ?? 512;
  const tooSmall = tokens?.find((size) => size < pageTokens);
  if (tooSmall !== undefined) {
    throw optionError(`expected a cache of at least one page (${pageTokens} tokens), not --cache-tokens ${tooSmall}`);
  }
  const timing = raw['timing'] === true;
  const policies = policiesOf(raw, 'policies', cachePolicies) ?? [...cachePolicies];
  return {
    ...input,
    mode: 'cache',
    // A time says little without that of LRU on the same machine at the same moment.
    policies: timing && !policies.includes('lru') ? ['lru', ...policies] : policies,
    live: integerOf(raw, 'live', 1, 10_000_000),
    model: oneOf('model', textOf(raw, 'model') ?? 'pinned', cacheModels),
    cacheTokens: tokens,
    cacheShares:
      tokens === undefined ? (shares ?? defaultShares.map((text) => percentage('cacheShares', text))) : undefined,
    pageTokens,
    first: first === undefined ? undefined : percentage('first', first),
    hints: oneOf('hints', textOf(raw, 'hints') ?? 'none', cacheHints),
    timing,
  };
}

const defaultShares = ['0.25', '0.5', '1', '2', '5'];

function parseCluster(raw: RawOptions, input: InputOptions): ClusterOptions {
  const hardware = oneOf('hardware', textOf(raw, 'hardware') ?? 'a100-tp4', hardwareNames);
  const kvTokens = integerOf(raw, 'kvTokens', 1, 2 ** 32) ?? defaultKvTokens[hardware];
  const pageTokens = integerOf(raw, 'pageTokens', 1, 1 << 20) ?? 16;
  if (kvTokens < pageTokens)
    throw optionError(`expected a KV room of at least one page (${pageTokens} tokens), not --kv-tokens ${kvTokens}`);
  const maxSequences = integerOf(raw, 'maxSequences', 1, 65_536) ?? 256;
  const stepTokens = integerOf(raw, 'stepTokens', 1, 1 << 24) ?? 2048;
  if (stepTokens < maxSequences) {
    throw optionError(
      `expected --step-tokens to be at least the ${maxSequences} sequences of a step, not ${stepTokens}`,
    );
  }
  const policies = policiesOf(raw, 'policies', clusterPolicies) ?? [...clusterPolicies];
  const arrivals = parseArrivals(raw);
  const journal = textOf(raw, 'journal');
  if (journal !== undefined && policies.length * (arrivals.kind === 'load' ? arrivals.loads.length : 1) > 1) {
    throw optionError('expected one policy and one load with --journal FILE: it holds the events of one run');
  }
  const hostTierTokens = integerOf(raw, 'hostTierTokens', 0, 2 ** 40) ?? 0;
  const withoutEngine = policies.find((policy) => !runsThroughEngine(policy, hostTierTokens));
  if (journal !== undefined && withoutEngine !== undefined) {
    throw optionError(
      `expected --policies ${alternatives(enginePolicies)} with --journal FILE, not ${withoutEngine}${hostTierTokens > 0 && enginePolicies.includes(withoutEngine) ? ' with a host tier' : ''}: it does not run through the engine`,
    );
  }
  const hints = textOf(raw, 'hints');
  const without = policiesOf(raw, 'without', policyParts) ?? [];
  const saturation = policiesOf(raw, 'saturation', clusterPolicies) ?? [];
  for (const part of without) {
    if (![...policies, ...saturation].some((policy) => partsOfPolicy[policy]?.includes(part) === true)) {
      throw optionError(
        `expected a policy that has ${part} (${alternatives(policiesWith(part))}) with --without ${part}`,
      );
    }
  }
  return {
    ...input,
    mode: 'cluster',
    policies,
    workers: integerOf(raw, 'workers', 1, 1024) ?? 16,
    hardware,
    arrivals,
    saturation,
    pageTokens,
    kvTokens,
    maxSequences,
    stepTokens,
    hostTierTokens,
    linkGigabytesPerSecond: numberOf(raw, 'linkGigabytes', 0.001, 10_000) ?? 25,
    hints: hints === undefined ? undefined : oneOf('hints', hints, clusterHints),
    without,
    journal,
  };
}

function policiesWith(part: PolicyPart): ClusterPolicy[] {
  return clusterPolicies.filter((policy) => partsOfPolicy[policy]?.includes(part) === true);
}

function parseArrivals(raw: RawOptions): Arrivals {
  const names = ['load', 'rate', 'live', 'pressure'].filter((name) => raw[name] !== undefined);
  if (names.length !== 1) {
    throw optionError(
      'expected exactly one of --load X,.., --rate TASKS_PER_SECOND, --live N and --pressure X with --mode cluster',
    );
  }
  switch (names[0]) {
    case 'load':
      return { kind: 'load', loads: (listOf(raw, 'load') ?? []).map((text) => positiveNumber('load', text, 1000)) };
    case 'rate':
      return { kind: 'rate', tasksPerSecond: numberOf(raw, 'rate', 1e-8, 1e6) as number };
    case 'live':
      return { kind: 'live', tasks: integerOf(raw, 'live', 1, 10_000_000) as number };
    default:
      return { kind: 'pressure', pressure: positiveNumber('pressure', textOf(raw, 'pressure') as string, 1e6) };
  }
}

/** `cacheShares` -> `--cache-shares`. */
export function flag(name: string): string {
  return `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}

function textOf(raw: RawOptions, name: string): string | undefined {
  const value = raw[name];
  if (value === undefined) return undefined;
  if (typeof value !== 'string' || value.trim() === '') throw optionError(`expected a value after ${flag(name)}`);
  return value.trim();
}

function oneOf<T extends string>(name: string, text: string, allowed: readonly T[]): T {
  const found = allowed.find((one) => one === text);
  if (found === undefined) throw optionError(`expected ${flag(name)} to be ${alternatives(allowed)}, not "${text}"`);
  return found;
}

function alternatives(words: readonly string[]): string {
  if (words.length === 1) return words[0] as string;
  return `${words.slice(0, -1).join(', ')} or ${words[words.length - 1] as string}`;
}

function listOf(raw: RawOptions, name: string): string[] | undefined {
  const text = textOf(raw, name);
  if (text === undefined) return undefined;
  const items = text.split(',').map((item) => item.trim());
  if (items.includes('')) throw optionError(`expected ${flag(name)} to be a list separated by commas, not "${text}"`);
  return items;
}

function policiesOf<T extends string>(raw: RawOptions, name: string, allowed: readonly T[]): T[] | undefined {
  const items = listOf(raw, name)?.map((item) => oneOf(name, item, allowed));
  return items === undefined ? undefined : [...new Set(items)];
}

function wholeNumber(name: string, text: string, low: number, high: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < low || value > high) {
    throw optionError(`expected ${flag(name)} to be a whole number from ${low} to ${high}, not "${text}"`);
  }
  return value;
}

function integerOf(raw: RawOptions, name: string, low: number, high: number): number | undefined {
  const text = textOf(raw, name);
  return text === undefined ? undefined : wholeNumber(name, text, low, high);
}

const decimal = /^(\d+(\.\d*)?|\.\d+)$/;

function numberOf(raw: RawOptions, name: string, low: number, high: number): number | undefined {
  const text = textOf(raw, name);
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!decimal.test(text) || value < low || value > high) {
    throw optionError(`expected ${flag(name)} to be a number from ${low} to ${high}, not "${text}"`);
  }
  return value;
}

function positiveNumber(name: string, text: string, high: number): number {
  const value = Number(text);
  if (!decimal.test(text) || value <= 0 || value > high) {
    throw optionError(`expected ${flag(name)} to be a number above 0 and at most ${high}, not "${text}"`);
  }
  return value;
}

function percentage(name: string, text: string): Percentage {
  const value = Number(text);
  if (!decimal.test(text) || value <= 0 || value > 100) {
    throw optionError(`expected ${flag(name)} to be per cent above 0 and at most 100, not "${text}"`);
  }
  return { text, value };
}

/** A percentage of a count, rounded down, without the error of binary fractions. */
export function shareOf(count: number, share: Percentage): number {
  const [whole = '', fraction = ''] = share.text.split('.');
  const scaled = BigInt(count) * BigInt(`${whole}${fraction}` || '0');
  return Number(scaled / (100n * 10n ** BigInt(fraction.length)));
}
