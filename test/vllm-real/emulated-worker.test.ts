/**
 * The emulated worker against vLLM's own scheduler: the same requests one after another find the same cached tokens and make the same
 * events, and concurrent ones the same totals within 1 %.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, describe, expect, inject, it } from 'vitest';
import { EmulatedWorker } from '../../src/emulated-worker/index.js';
import { complete, randomOf, randomTokens, requestCount, resetPrefixCache, until, type Completion } from './client.js';
import { Recorder } from './events.js';
import { hashSeeds, poolBlocks, serverIn, type RealServer } from './servers.js';

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

/** One request of the plan: the conversation it goes on with, and what is new. */
interface Turn {
  line: number;
  /** The line begins anew. */
  fresh: boolean;
  added: number[];
  answerTokens: number;
  salt: string | undefined;
}

const lines = 24;

/** Conversations that go on up to a length, some of them from a common beginning; together they do not fit. */
function planOf(seed: number, count: number, longest: number): Turn[] {
  const random = randomOf(seed);
  const system = Array.from({ length: 3 }, () => randomTokens(random, 200));
  const lengths = new Array<number>(lines).fill(Infinity);
  return Array.from({ length: count }, (): Turn => {
    const line = random(lines);
    const answerTokens = 1 + random(random(3) === 0 ? 50 : 6);
    const fresh = (lengths[line] as number) > longest;
    const added = [...(fresh ? (system[random(3)] as number[]) : []), ...randomTokens(random, 1 + random(150))];
    lengths[line] = (fresh ? 0 : (lengths[line] as number)) + added.length + answerTokens;
    return { line, fresh, added, answerTokens, salt: line % 4 === 0 ? `tenant-${line % 8}` : undefined };
  });
}

async function start(): Promise<{ real: RealServer; emulated: EmulatedWorker }> {
  const real = await serverIn(inject('vllmServers'), 'plain');
  expect(await resetPrefixCache(real)).toBe(true);
  // What a reset left to be told.
  await complete(real, [7, 8, 9]);
  const emulated = await EmulatedWorker.start({
    eventsPort: 0,
    blocks: poolBlocks,
    maxModelTokens: 8192,
    maxSequences: 64,
    tokenBudget: 2048,
    hashSeed: hashSeeds.plain,
    taggedKeys: true,
    timeScale: Infinity,
  });
  closing.push(() => emulated.close());
  return { real, emulated };
}

const moreOf = (turn: Turn, answer: readonly number[] | undefined): Record<string, unknown> => ({
  max_tokens: turn.answerTokens,
  ignore_eos: true,
  ...(turn.salt === undefined ? {} : { cache_salt: turn.salt }),
  ...(answer === undefined ? {} : { vllm_xargs: { saga_script: answer } }),
});

function changesOf(recorder: Recorder): string[] {
  return recorder.events.flatMap((event) => {
    if (event.type === 'cleared') return ['cleared'];
    return event.hashes.map((hash) => `${event.type} ${hash.toString(16)}`);
  });
}

describe('the emulated worker and vLLM', () => {
  it('find the same and tell the same, one request after another', async () => {
    const { real, emulated } = await start();
    const worker = { url: emulated.url, model: emulated.options.model };
    const recorders = [new Recorder(real.events), new Recorder(emulated.events as string)] as const;
    closing.push(() => recorders.forEach((recorder) => recorder.close()));
    await delay(500);
    for (const to of [real, worker]) await complete(to, randomTokens(randomOf(77), 17));
    expect(await resetPrefixCache(real)).toBe(true);
    expect(emulated.engines[0]?.resetPrefixCache()).toBe(true);
    for (const to of [real, worker]) await complete(to, [7, 8, 9]);
    await until('both are empty', () => recorders.every(({ events }) => events.at(-1)?.type === 'cleared'));
    const from = recorders.map(changesOf).map(({ length }) => length) as [number, number];

    const prompts: number[][] = Array.from({ length: lines }, () => []);
    const different: string[] = [];
    let cached = 0;
    const plan = planOf(3, Math.ceil(requestCount / 4), 2500);
    for (const [at, turn] of plan.entries()) {
      const prompt = [...(turn.fresh ? [] : (prompts[turn.line] as number[])), ...turn.added];
      const own = await complete(worker, prompt, moreOf(turn, undefined));
      const theirs = await complete(real, prompt, moreOf(turn, own.tokens));
      expect([own.status, theirs.status]).toEqual([200, 200]);
      expect(theirs.tokens).toEqual(own.tokens);
      if (own.cachedTokens !== theirs.cachedTokens)
        different.push(`request ${at} of ${prompt.length} tokens: ${own.cachedTokens}, vLLM ${theirs.cachedTokens}`);
      cached += theirs.cachedTokens;
      prompts[turn.line] = [...prompt, ...own.tokens];
    }
    expect(different).toEqual([]);
    expect(cached).toBeGreaterThan(plan.length * 200);

    const last = randomTokens(randomOf(78), 17);
    for (const to of [real, worker]) await complete(to, last);
    await until('all events are there', () =>
      recorders.every(({ events }) => {
        const end = events.at(-1);
        return end?.type === 'stored' && end.tokens[0] === last[0];
      }),
    );
    const [theirs, own] = recorders.map((recorder, i) => changesOf(recorder).slice(from[i])) as [string[], string[]];
    expect(theirs.filter((change) => change.startsWith('removed')).length).toBeGreaterThan(poolBlocks);
    const first = theirs.findIndex((change, i) => change !== own[i]);
    expect({ first, theirs: theirs.slice(first, first + 5), own: own.slice(first, first + 5) }).toEqual({
      first: -1,
      theirs: [],
      own: [],
    });
    expect(own.length).toBe(theirs.length);
    console.log(
      `${plan.length} requests, ${cached} tokens cached, ${theirs.length} blocks stored and removed: the same`,
    );
  });

  it('find the same in all, 8 requests at a time', async () => {
    const { real, emulated } = await start();
    const worker = { url: emulated.url, model: emulated.options.model };
    // 8 at a time do fit as a rule: else what one evicts of the others would depend on which of them answers first.
    const plan = planOf(4, Math.ceil(requestCount / 4), 1600);
    /**
     * Each line's turns one after another, 8 lines at a time: a turn of each, together, and the next when all have answered. Without
     * that, how fast the client happens to go on with one line would decide what the others evict of it.
     */
    const play = async (to: { url: string; model: string }, answers: Map<Turn, number[]>): Promise<number> => {
      let cached = 0;
      const prompts: number[][] = Array.from({ length: lines }, () => []);
      const take = async (turn: Turn): Promise<void> => {
        const prompt = [...(turn.fresh ? [] : (prompts[turn.line] as number[])), ...turn.added];
        const answer: Completion = await complete(to, prompt, moreOf(turn, answers.get(turn)));
        expect(answer.status).toBe(200);
        answers.set(turn, answer.tokens);
        cached += answer.cachedTokens;
        prompts[turn.line] = [...prompt, ...answer.tokens];
      };
      const waiting = Array.from({ length: lines }, (_, line) => plan.filter((turn) => turn.line === line));
      let active = waiting.splice(0, 8);
      while (active.length > 0) {
        await Promise.all(active.map((turns) => take(turns.shift() as Turn)));
        active = active.filter(({ length }) => length > 0);
        active.push(...waiting.splice(0, 8 - active.length));
      }
      return cached;
    };
    const answers = new Map<Turn, number[]>();
    const own = await play(worker, answers);
    const theirs = await play(real, answers);
    console.log(`8 at a time: ${own} tokens cached, vLLM ${theirs}`);
    expect(Math.abs(own - theirs)).toBeLessThanOrEqual(0.01 * theirs);
  });
});
