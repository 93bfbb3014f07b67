/**
 * The start-up probe of a worker: does what we predict of its cache come true?
 *
 * A prompt of three blocks with random tokens and a cache salt of its own is sent as token ids, for one token of answer; it disturbs
 * nobody's blocks. Then the worker must hold its blocks under the keys that we compute (**key**), and the same prompt once more must
 * report the cached tokens that vLLM's rule predicts: whole blocks of all but the last token (**cached**).
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { parsedJson, type HttpAnswer, type Server } from './server.js';

const probeBlocks = 3;

/** What a probe found. */
export interface ProbeResult {
  /**
   * - `passed`
   * - `failed`: a prediction was wrong
   * - `salted`: it was wrong of prompts with a cache salt alone
   * - `unproven`: it could not be carried through
   */
  outcome: 'passed' | 'failed' | 'salted' | 'unproven';
  /** In words; empty if it passed. */
  words: string;
  /** `undefined`: not seen. */
  promptTokensDetails: boolean | undefined;
  /** `false`: it was refused. */
  priority: false | undefined;
}

export interface ProbeOptions {
  server: Server;
  model: string;
  headers: Readonly<Record<string, string>>;
  blockTokens: number;
  /** Leading blocks of a prompt that the worker holds, as its events tell; `undefined`: there are no events. */
  held: ((tokens: Uint32Array, cacheSalt: string | undefined) => number) | undefined;
  /** As `held`, by keys with salts in the other form (`taggedKeys`); `undefined`: keys are not the engine's own. */
  heldOtherwise: ((tokens: Uint32Array, cacheSalt: string) => number) | undefined;
  /** For each request. */
  requestMs: number;
  /** Until the event of the first one is there. */
  eventMs: number;
  signal: AbortSignal;
}

export async function probe(options: ProbeOptions): Promise<ProbeResult> {
  const { server, model, headers, blockTokens, held, requestMs, signal } = options;
  // One token more than whole blocks: exactly those are cached, and hit.
  const count = probeBlocks * blockTokens;
  const tokens = Uint32Array.from(randomBytes(count + 1), (byte) => 32 + (byte % 64));
  const cacheSalt = `saga-probe-${randomBytes(9).toString('base64url')}`;
  const body = { model, prompt: [...tokens], max_tokens: 1, temperature: 0, cache_salt: cacheSalt };
  const result = { promptTokensDetails: undefined, priority: undefined } as Pick<
    ProbeResult,
    'promptTokensDetails' | 'priority'
  >;
  const complete = (more: object = {}): Promise<HttpAnswer> =>
    server.send('POST', '/v1/completions', { ms: requestMs, signal, headers, body: { ...body, ...more } });
  let again: HttpAnswer;
  let words = '';
  let saltOnly = false;
  try {
    const first = await complete();
    if (first.status !== 200)
      return { ...result, outcome: 'unproven', words: `the probe was answered with ${first.status}` };
    if (held !== undefined) {
      const blocks = await arrived(options, tokens, cacheSalt);
      if (blocks < probeBlocks)
        words = `of the probe's ${probeBlocks} blocks ${blocks} came with its events under the expected key`;
      if (blocks === 0 && options.heldOtherwise?.(tokens, cacheSalt) === probeBlocks) {
        saltOnly = true;
        words =
          'prompts with a cache salt are found under keys of the other form: change taggedKeys (hash_tagged_keys)';
      } else if (blocks === 0) {
        // Versions of vLLM differ in how a salt enters keys, and some tell nothing of it. So without a salt: its tokens are
        // random, nobody will ask for these blocks.
        const plain = tokens.slice().reverse();
        await complete({ prompt: [...plain], cache_salt: undefined });
        saltOnly = (await arrived(options, plain, undefined)) === probeBlocks;
        if (saltOnly) words = 'prompts with a cache salt are not found under their keys in this version of vLLM';
      }
    }
    // A server that takes a priority may ignore it all the same; one that refuses it does not schedule by it.
    again = await complete({ priority: 1 });
    if (again.status === 400) {
      result.priority = false;
      again = await complete();
    }
  } catch (error) {
    signal.throwIfAborted();
    return { ...result, outcome: 'unproven', words: `the probe was not answered: ${(error as Error).name}` };
  }
  if (again.status !== 200)
    return { ...result, outcome: 'unproven', words: `the probe's repeat was answered with ${again.status}` };
  const cached = cachedTokens(again.body);
  result.promptTokensDetails = cached !== undefined;
  if (cached !== undefined && cached !== count) {
    const found = `the probe's repeat reports ${cached} cached tokens, not ${count}`;
    words = words === '' ? found : `${words}; ${found}`;
    saltOnly = false;
  }
  return { ...result, outcome: words === '' ? 'passed' : saltOnly ? 'salted' : 'failed', words };
}

/** Waits for the blocks of a prompt to be told of. */
async function arrived(options: ProbeOptions, tokens: Uint32Array, cacheSalt: string | undefined): Promise<number> {
  const { held, eventMs, signal } = options;
  const until = performance.now() + eventMs;
  for (;;) {
    const blocks = held?.(tokens, cacheSalt) ?? 0;
    if (blocks >= probeBlocks || performance.now() >= until) return blocks;
    await delay(10, undefined, { signal });
  }
}

function cachedTokens(body: string): number | undefined {
  const usage = (
    parsedJson(body) as { usage?: { prompt_tokens_details?: { cached_tokens?: unknown } | null } } | undefined
  )?.usage;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  return typeof cached === 'number' ? cached : undefined;
}
