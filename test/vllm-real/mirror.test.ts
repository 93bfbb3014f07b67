/**
 * What SAGA knows of a worker equals the engine's own block pool, copy by copy: after thousands of mixed requests in a pool that
 * evicts, with messages that are lost on the way, a cache that is reset, and an engine that begins anew.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, describe, expect, inject, it } from 'vitest';
import { BlockHasher, Scheduler } from '../../src/index.js';
import { WorkerSet, chainSaltOf, type EventHash, type Logger, type VllmWorker } from '../../src/vllm/index.js';
import {
  complete,
  dumpPool,
  randomOf,
  randomTokens,
  requestCount,
  resetPrefixCache,
  until,
  type PoolDump,
  type Random,
} from './client.js';
import { Recorder, Relay } from './events.js';
import { cpuPoolBlocks, hashSeeds, poolBlocks, serverIn, type RealServer, type ServerName } from './servers.js';

const folder = inject('vllmServers');
const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

interface Prompt {
  tokens: number[];
  salt: string | undefined;
}

/** Prompts of a tree: shared beginnings, random ends. Few are unlike all others, and some are long. */
class Prompts {
  readonly #trunks: number[][];

  constructor(
    seed: number,
    private readonly blockTokens: number,
    private readonly most: number,
  ) {
    const random = randomOf(seed);
    this.#trunks = Array.from({ length: 24 }, () => randomTokens(random, blockTokens * 6));
  }

  next(random: Random): Prompt {
    const size = this.blockTokens;
    const tokens: number[] = [];
    for (let depth = random(5); depth > 0 && tokens.length < this.most / 2; --depth) {
      const trunk = this.#trunks[depth * 4 + random(4)] as number[];
      tokens.push(...trunk.slice(0, size * (1 + random(6))));
    }
    tokens.push(...randomTokens(random, 1 + random(random(20) === 0 ? this.most / 3 : 2 * size)));
    return { tokens: tokens.slice(0, this.most - 64), salt: random(4) === 0 ? `tenant-${random(3)}` : undefined };
  }
}

/** `count` mixed requests, 16 at a time; `disturb` is called before each. */
async function traffic(
  server: RealServer,
  prompts: Prompts,
  seed: number,
  count: number,
  disturb: (random: Random) => void,
): Promise<{ sent: Prompt[]; answered: number; aborted: number; failed: string[] }> {
  const random = randomOf(seed);
  const result = { sent: [] as Prompt[], answered: 0, aborted: 0, failed: [] as string[] };
  let begun = 0;
  const client = async (): Promise<void> => {
    while (begun++ < count) {
      const prompt = prompts.next(random);
      result.sent.push(prompt);
      disturb(random);
      const gone = random(12) === 0;
      const more = {
        max_tokens: gone ? 60 : 1 + random(random(4) === 0 ? 40 : 3),
        ...(prompt.salt === undefined ? {} : { cache_salt: prompt.salt }),
        ...(random(3) === 0 ? { session_id: `session-${random(40)}` } : {}),
        ...(gone ? { stream: true } : {}),
      };
      const controller = new AbortController();
      const timer = gone ? setTimeout(() => controller.abort(), 1 + random(60)) : undefined;
      for (let tries = 0; ; ++tries) {
        try {
          const { status } = await complete(server, prompt.tokens, more, { signal: controller.signal });
          if (status === 200) ++result.answered;
          else result.failed.push(`status ${status}`);
        } catch (error) {
          // A server may close a connection that it holds to be idle while a request is on its way there.
          if (controller.signal.aborted) ++result.aborted;
          else if (tries < 2) continue;
          else result.failed.push(String((error as Error).cause ?? error));
        }
        break;
      }
      clearTimeout(timer);
    }
  };
  await Promise.all(Array.from({ length: 16 }, client));
  return result;
}

/** One follower of the server, behind the relay. */
interface View {
  hash: EventHash;
  scheduler: Scheduler;
  set: WorkerSet;
}

async function follow(server: RealServer, events: string, hash: EventHash, blockTokens: number): Promise<View> {
  const scheduler = new Scheduler({ maxWorkers: 8, policy: 'affinity', blockTokens });
  closing.push(() => scheduler.close());
  const log: Logger = { debug: ignore, info: ignore, warn: tell, error: tell };
  const set = new WorkerSet(
    {
      scheduler,
      model: server.model,
      servers: [{ url: server.url, events, replay: server.replay }],
      hash,
      loadSeconds: 0,
      healthSeconds: 1,
      log,
    },
    { replay: { idleMs: 2000, coolMs: 500, spacingMs: 20, settleMs: 100, auditMs: 500 } },
  );
  closing.push(() => set.close());
  await set.start();
  return { hash, scheduler, set };
}

const ignore = (): void => {};
const tell = (fields: object, message: string): void => console.error(message, JSON.stringify(fields));

function only(set: WorkerSet): VllmWorker {
  const [worker, ...others] = set.workers;
  if (worker === undefined || others.length > 0) throw new Error(`the set has ${set.workers.length} workers`);
  return worker;
}

/** The view of `view` is the pool of `dump`, as soon as what is on its way has come. */
async function compare(view: View, dump: PoolDump, recorder: Recorder, blockTokens: number): Promise<void> {
  const worker = only(view.set);
  const source = view.set.sourceOf(worker);
  if (source === undefined) throw new Error('the worker has no source');
  const difference = (): string[] => {
    const found = [...worker.degraded];
    const { blocks, copies, namelessBlocks } = source.stats();
    if (blocks !== dump.copies.size) found.push(`${blocks} blocks, not ${dump.copies.size}`);
    if (copies !== dump.total) found.push(`${copies} copies, not ${dump.total}`);
    if (namelessBlocks > 0) found.push(`${namelessBlocks} blocks without a name`);
    for (const [hash, count] of dump.copies) {
      const key = view.hash.algorithm === 'saga' ? ownKey(recorder, hash, blockTokens) : hash;
      const known = source.copies(key);
      if (known !== count) found.push(`${known} of ${count} copies of ${hash.toString(16)}`);
    }
    return found;
  };
  await until('everything is known', () => recorder.has(dump) && difference().length === 0).catch(() => undefined);
  expect(difference()).toEqual([]);
  expect(source.verify()).toBe(true);
}

/** SAGA's key of the block that the engine knows by this hash. */
function ownKey(recorder: Recorder, hash: bigint, blockTokens: number): bigint {
  const { tokens, salt } = recorder.chainOf(hash);
  const chain = new BlockHasher({
    blockTokens,
    salt: chainSaltOf(salt === undefined ? {} : { cacheSalt: salt }),
  }).update(Uint32Array.from(tokens));
  return chain.at(-1) as bigint;
}

/** What the scheduler would find of prompts: as many leading blocks as the pool holds. */
function compareMatches(
  view: View,
  dump: PoolDump,
  sent: readonly Prompt[],
  seed: string,
  blockTokens: number,
): number {
  let held = 0;
  const { worker } = only(view.set);
  const hasher = new BlockHasher({ algorithm: 'sha256_cbor', blockTokens, hashSeed: seed, taggedKeys: true });
  for (const { tokens, salt } of sent.slice(-400)) {
    const prompt = Uint32Array.from(tokens);
    const keys = salt === undefined ? {} : { cacheSalt: salt };
    const engine = hasher.reset(keys).update(prompt);
    let expected = engine.findIndex((hash) => !dump.copies.has(hash));
    if (expected < 0) expected = engine.length;
    const chain = view.hash.algorithm === 'saga' ? view.scheduler.hash(prompt, chainSaltOf(keys)) : engine;
    expect(view.scheduler.match(chain)[3 * worker.id]).toBe(expected);
    held += expected;
  }
  return held;
}

interface Case {
  name: ServerName;
  blocks: number;
  blockTokens: number;
  most: number;
  /** The engine is killed on the way. */
  restart: boolean;
  form: 'bytes' | 'integers';
}

const cases: Case[] = [
  { name: 'plain', blocks: poolBlocks, blockTokens: 16, most: 4000, restart: true, form: 'integers' },
  { name: 'policy', blocks: poolBlocks, blockTokens: 16, most: 4000, restart: false, form: 'bytes' },
  { name: 'cpuPolicy', blocks: cpuPoolBlocks, blockTokens: 32, most: 1000, restart: false, form: 'integers' },
];

describe.each(cases)('of the server $name', ({ name, blocks, blockTokens, most, restart, form }) => {
  it('the view equals the pool', async () => {
    const server = await serverIn(folder, name);
    const seed = hashSeeds[name];
    expect(await resetPrefixCache(server)).toBe(true);
    const recorder = new Recorder(server.events);
    closing.push(() => recorder.close());
    const relay = await Relay.start(server.events);
    closing.push(() => relay.close());
    await delay(500);
    const views = [
      await follow(server, relay.endpoint, { algorithm: 'saga' }, blockTokens),
      await follow(server, relay.endpoint, { algorithm: 'sha256_cbor', seed, taggedKeys: true }, blockTokens),
    ];
    const prompts = new Prompts(11, blockTokens, most);
    const lose = (random: Random): void => {
      if (random(60) === 0) relay.drop(1 + random(4));
    };
    const check = async (sent: readonly Prompt[]): Promise<void> => {
      relay.drop(0);
      // What was lost last shows with the next batch.
      await complete(server, randomTokens(randomOf(sent.length), 2 * blockTokens));
      const dump = await dumpPool(server);
      for (const view of views) await compare(view, dump, recorder, blockTokens);
      if (sent.length > 0) {
        expect(dump.total).toBeGreaterThan(blocks / 2);
        for (const view of views) expect(compareMatches(view, dump, sent, seed, blockTokens)).toBeGreaterThan(100);
      }
    };
    // Their probes are in the pool.
    await check([]);

    const first = await traffic(server, prompts, 1, Math.ceil(requestCount / 2), lose);
    expect(first.failed).toEqual([]);
    await check(first.sent);
    expect(relay.lost).toBeGreaterThan(requestCount / 500);

    expect(await resetPrefixCache(server)).toBe(true);
    await check([]);

    let third = Math.floor(requestCount / 4);
    const second = await traffic(server, prompts, 2, third, lose);
    expect(second.failed).toEqual([]);
    await check(second.sent);

    if (restart) {
      // The engine goes amid traffic, and comes back.
      const dying = traffic(server, prompts, 3, 200, lose);
      await delay(100);
      process.kill(-server.pid, 'SIGKILL');
      third -= 200;
      await dying;
      await until('the loss is seen', () => views.every(({ set }) => set.workers.length === 0), 60_000);
      await serverIn(folder, name);
      await until('it is back', () => views.every(({ set }) => set.workers[0]?.condition === 'ready'), 60_000);
    }
    const last = await traffic(server, prompts, 4, third, lose);
    expect(last.failed).toEqual([]);
    await check(last.sent);

    expect(recorder.forms[form]).toBeGreaterThan(0);
    expect(recorder.forms[form === 'bytes' ? 'integers' : 'bytes']).toBe(0);
    for (const { set } of views) {
      const metrics = set.metrics();
      const events = metrics.workers[0]?.events;
      expect(events).toMatchObject({ resets: 0, malformed: 0, unknownRemovals: 0 });
      expect(events?.gaps).toBeGreaterThan(0);
      expect(metrics.servers[0]).toMatchObject(restart ? { joined: 2, lost: 1 } : { joined: 1, lost: 0 });
    }
    console.log(
      `${name}: ${relay.passed} batches, ${relay.lost} lost; answered ${first.answered + second.answered + last.answered}, ` +
        `aborted ${first.aborted + second.aborted + last.aborted}`,
    );
  });
});
