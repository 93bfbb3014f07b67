/** Tokens and block hashes of prompts: what is made for each, and that it is right. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { Prompt } from '../../src/gateway/tokens/types.js';
import { BlockHasher } from '../../src/hasher.js';
import { chainSaltOf } from '../../src/vllm/index.js';
import { FakeWorker, emulated, json, post, range, serve, until, type Script, type Serving } from './helpers.js';

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

/** The printable characters by which byte-level tokenizers write bytes. */
function byteCharacters(): string[] {
  const plain = [...range(0x21, 94), ...range(0xa1, 12), ...range(0xae, 82)];
  let next = 256;
  return range(0, 256).map((byte) => String.fromCodePoint(plain.includes(byte) ? byte : next++));
}

const specials = ['<|im_start|>', '<|im_end|>'];
const chatml =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** A model's folder: a token is a byte, or one of the specials. */
function folder(template: string): string {
  const path = mkdtempSync(join(tmpdir(), 'saga-tokenizer-'));
  folders.push(path);
  const characters = byteCharacters();
  writeFileSync(
    join(path, 'tokenizer.json'),
    JSON.stringify({
      version: '1.0',
      added_tokens: specials.map((content, i) => ({ id: 256 + i, content, special: true, normalized: false })),
      normalizer: null,
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
      post_processor: null,
      decoder: { type: 'ByteLevel' },
      model: { type: 'BPE', vocab: Object.fromEntries(characters.map((one, i) => [one, i])), merges: [] },
    }),
  );
  writeFileSync(
    join(path, 'tokenizer_config.json'),
    JSON.stringify({ tokenizer_class: 'PreTrainedTokenizerFast', chat_template: template, eos_token: '<|im_end|>' }),
  );
  return path;
}

/** What that folder makes of a text, written anew. */
function tokensOf(text: string): number[] {
  return text
    .split(/(<\|im_start\|>|<\|im_end\|>)/)
    .flatMap((part) => (specials.includes(part) ? [256 + specials.indexOf(part)] : [...Buffer.from(part)]));
}

interface Message {
  role: string;
  content: string;
}

const rendered = (messages: readonly Message[]): string =>
  messages.map(({ role, content }) => `<|im_start|>${role}\n${content}<|im_end|>\n`).join('') +
  '<|im_start|>assistant\n';

const chainOf = (tokens: readonly number[], keys: { cacheSalt?: string; loraName?: string } = {}): bigint[] => [
  ...new BlockHasher({ blockTokens: 16, salt: chainSaltOf(keys) }).update(Uint32Array.from(tokens)),
];

const echo: Script = json({ choices: [] });

/** Prompts as they are submitted. */
function submitted({ pool }: Serving): Prompt[] {
  const prompts: Prompt[] = [];
  const submit = pool.submit.bind(pool);
  pool.submit = (request) => {
    prompts.push(request.prompt);
    return submit(request);
  };
  return prompts;
}

async function chat({ url }: Serving, messages: readonly Message[], more: object = {}): Promise<void> {
  const answer = await post(url, '/v1/chat/completions', { model: 'm', messages, ...more });
  expect(answer.status).toBe(200);
}

const text = (seed: number, bytes: number): string =>
  Array.from({ length: bytes }, (_, i) => 'abc dé fghij klm\n<'[(seed * 7 + i * (1 + (seed % 5))) % 18]).join('');

describe("a conversation by the model's own template", () => {
  it('of 50 turns has the hashes of the whole each time, and makes tokens of what is new only', async () => {
    const serving = await serve([await FakeWorker.start(echo)], {}, { tokenizer: folder(chatml) });
    const prompts = submitted(serving);
    const messages: Message[] = [{ role: 'system', content: text(1, 3000) }];
    const made: number[] = [];
    for (let turn = 0; turn < 50; ++turn) {
      const before = messages.length;
      if (turn > 0) messages.push({ role: 'assistant', content: text(3 * turn, 80 + turn) });
      messages.push({ role: 'user', content: text(3 * turn + 1, 60 + ((turn * 13) % 50)) });
      const { tokenizedTokens } = serving.pool.counters;
      await chat(serving, messages);
      const whole = tokensOf(rendered(messages));
      const prompt = prompts[turn] as Prompt;
      expect([prompt.source, prompt.promptTokens]).toEqual(['local', whole.length]);
      expect([...prompt.chain]).toEqual(chainOf(whole));
      const fresh = tokensOf(rendered(messages.slice(before))).length;
      made.push(serving.pool.counters.tokenizedTokens - tokenizedTokens);
      if (turn > 0) {
        expect(prompt.tokenizedTokens).toBe(fresh);
        // And what asks for an answer, whose tokens are replaced by the next turn.
        expect(prompt.hashedBlocks).toBeLessThanOrEqual(Math.ceil((fresh + 11) / 16) + 1);
      }
    }
    // The second and third turn are compared with the whole.
    expect(made.slice(3).every((tokens) => tokens < 400)).toBe(true);
    expect(serving.pool.counters).toMatchObject({ promptsRemade: 0, promptsBySource: { local: 50 } });
    // Without names: the lineage has it as one workflow.
    expect(serving.pool.sessions.size).toBe(1);
  });

  it('that forks keeps both lines', async () => {
    const serving = await serve([await FakeWorker.start(echo)], {}, { tokenizer: folder(chatml) });
    const prompts = submitted(serving);
    const stem: Message[] = [
      { role: 'system', content: text(5, 600) },
      { role: 'user', content: text(6, 300) },
    ];
    const lines = range(0, 4).map(() => [...stem]);
    await chat(serving, stem);
    for (let turn = 0; turn < 6; ++turn) {
      for (const [i, line] of lines.entries()) {
        line.push({ role: 'assistant', content: text(i, 50) }, { role: 'user', content: text(100 * i + turn, 90) });
        await chat(serving, line);
        const whole = tokensOf(rendered(line));
        const prompt = prompts.at(-1) as Prompt;
        expect([...prompt.chain]).toEqual(chainOf(whole));
        expect(prompt.tokenizedTokens).toBe(tokensOf(rendered(line.slice(-2))).length);
      }
    }
    // The same prompt again, and one from an earlier point.
    await chat(serving, lines[2] as Message[]);
    expect([...(prompts.at(-1) as Prompt).chain]).toEqual(chainOf(tokensOf(rendered(lines[2] as Message[]))));
    await chat(serving, stem);
    expect([...(prompts.at(-1) as Prompt).chain]).toEqual(chainOf(tokensOf(rendered(stem))));
    expect((prompts.at(-1) as Prompt).tokenizedTokens).toBeLessThan(20);
    expect(serving.pool.counters.promptsRemade).toBe(0);
  });

  it('shares nothing with that of another salt, adapter or set of tools', async () => {
    const serving = await serve(
      [await FakeWorker.start(echo)],
      {},
      { tokenizer: folder(chatml), aliases: { tuned: 'lora' } },
    );
    const prompts = submitted(serving);
    const messages: Message[] = [{ role: 'user', content: text(9, 400) }];
    const whole = tokensOf(rendered(messages));
    await chat(serving, messages);
    await chat(serving, messages, { cache_salt: 's' });
    await chat(serving, messages, { model: 'tuned' });
    await chat(serving, messages, { tools: [{ type: 'function', function: { name: 'f' } }] });
    expect(prompts.map(({ chain }) => [...chain])).toEqual([
      chainOf(whole),
      chainOf(whole, { cacheSalt: 's' }),
      chainOf(whole, { loraName: 'lora' }),
      chainOf(whole),
    ]);
    expect(prompts.every(({ tokenizedTokens }) => tokenizedTokens === whole.length)).toBe(true);
  });

  it.each([
    ['marks the last message', chatml.replace("'<|im_start|>' +", "'<|im_start|>' + ('now ' if loop.last else '') +")],
    ['numbers them', chatml.replace("message['content']", "loop.index|string + message['content']")],
    [
      'shortens what is old',
      chatml.replace("message['content']", "(message['content'] if loop.index0 >= messages|length - 3 else '')"),
    ],
  ])('whose template %s is made anew each time, which is counted', async (_, template) => {
    const path = folder(template);
    const serving = await serve([await FakeWorker.start(echo)], {}, { tokenizer: path });
    const prompts = submitted(serving);
    const messages: Message[] = [];
    for (let turn = 0; turn < 8; ++turn) {
      messages.push({ role: 'user', content: text(turn, 100) }, { role: 'assistant', content: text(turn + 50, 40) });
      await chat(serving, messages);
      // The same in a gateway that has not seen the turns before.
      const alone = await serve([await FakeWorker.start(echo)], {}, { tokenizer: path });
      const [fresh] = [submitted(alone)];
      await chat(alone, messages);
      expect([turn, ...(prompts[turn] as Prompt).chain]).toEqual([turn, ...(fresh[0] as Prompt).chain]);
    }
    expect(serving.pool.counters.promptsRemade).toBeGreaterThanOrEqual(5);
    expect(serving.pool.counters.tokenizedTokens).toBeGreaterThan(2000);
  });

  it('of which the worker counts other tokens three times is left to the worker', async () => {
    const worker = await FakeWorker.start(json({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 1 } }));
    const serving = await serve([worker], {}, { tokenizer: folder(chatml) });
    const messages: Message[] = [{ role: 'user', content: 'a'.repeat(300) }];
    for (let turn = 0; turn < 5; ++turn) {
      await chat(serving, messages);
      messages.push({ role: 'assistant', content: 'b' }, { role: 'user', content: `c${turn}` });
    }
    expect(serving.pool.counters).toMatchObject({
      promptTokenMismatches: 3,
      promptsRemade: 0,
      promptsBySource: { local: 3, unknown: 2 },
    });
    // Another conversation is made here as before.
    await chat(serving, [{ role: 'user', content: 'another one' }]);
    expect(serving.pool.counters.promptsBySource).toMatchObject({ local: 4, unknown: 2 });
    expect(await (await fetch(`${serving.url}/readyz`)).text()).toContain('workers count other tokens');
    expect(serving.log.lines.filter((line) => line.includes('the worker counts other tokens')).length).toBe(1);
  });

  it('with what no template takes is left to the worker', async () => {
    const serving = await serve(
      [await FakeWorker.start(echo)],
      {},
      { tokenizer: folder(`{{ raise_exception('no') }}${chatml}`) },
    );
    await chat(serving, [{ role: 'user', content: 'x' }]);
    expect(serving.pool.counters.promptsBySource).toMatchObject({ unknown: 1, local: 0 });
    const image = [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:' } }] }];
    await chat(serving, image as unknown as Message[]);
    expect(serving.pool.counters.promptsBySource).toMatchObject({ unknown: 2, local: 0 });
  });
});

describe('prompts that are ids', () => {
  it('have the hashes of the whole, and are hashed from where they are new', async () => {
    const serving = await serve([await FakeWorker.start(echo)]);
    const prompts = submitted(serving);
    let ids = range(1, 5000);
    for (let turn = 0; turn < 12; ++turn) {
      const answer = await post(serving.url, '/v1/completions', { model: 'm', prompt: ids });
      expect(answer.status).toBe(200);
      const prompt = prompts[turn] as Prompt;
      expect([prompt.source, prompt.promptTokens, prompt.tokenizedTokens]).toEqual(['ids', ids.length, 0]);
      expect([...prompt.chain]).toEqual(chainOf(ids));
      expect(prompt.hashedBlocks).toBeLessThanOrEqual(turn === 0 ? 313 : 12);
      ids = [...ids, ...range(10_000 * turn, 150)];
    }
    // One that is shorter, one that differs in the middle.
    for (const other of [ids.slice(0, 3000), ids.with(2000, 7)]) {
      await post(serving.url, '/v1/completions', { model: 'm', prompt: other });
      expect([...(prompts.at(-1) as Prompt).chain]).toEqual(chainOf(other));
    }
  });
});

describe('tokens by the worker', () => {
  it('predict what the engine finds in its cache, for all endpoints', async () => {
    const worker = await emulated({ eventsPort: 0 });
    const serving = await serve([worker]);
    const long = 'The quick brown fox jumps over the lazy dog. '.repeat(20);
    const requests: [string, object][] = [
      ['/v1/completions', { prompt: long, max_tokens: 2 }],
      ['/v1/chat/completions', { messages: [{ role: 'user', content: `chat ${long}` }], max_tokens: 2 }],
    ];
    for (const [path, body] of requests) {
      const { predictedTokens, cachedTokens } = serving.pool.counters;
      const blocks = serving.pool.scheduler.stats().holderBlocks;
      expect((await post(serving.url, path, { model: 'm', ...body })).status).toBe(200);
      await until('its blocks are known', () => serving.pool.scheduler.stats().holderBlocks > blocks + 15);
      expect((await post(serving.url, path, { model: 'm', ...body })).status).toBe(200);
      expect([path, serving.pool.counters.cachedTokens - cachedTokens > 250]).toEqual([path, true]);
      expect(serving.pool.counters.predictedTokens - predictedTokens).toBe(
        serving.pool.counters.cachedTokens - cachedTokens,
      );
    }
    expect(serving.pool.counters).toMatchObject({
      promptsBySource: { worker: 4, unknown: 0 },
      promptTokenMismatches: 0,
    });
    // Those for which it has no endpoint are placed by load.
    await post(serving.url, '/v1/responses', { model: 'm', input: long, max_output_tokens: 1 });
    await post(serving.url, '/v1/messages', { model: 'm', messages: [{ role: 'user', content: long }], max_tokens: 1 });
    expect(serving.pool.counters).toMatchObject({ finished: 6, promptsBySource: { worker: 4, unknown: 2 } });
  });
});

describe("the engine's own keys", () => {
  it('of prompts with a salt are written in the way that is set', async () => {
    const model = { hashAlgorithm: 'sha256_cbor', hashSeed: '0' } as const;
    const chains: bigint[][] = [];
    for (const hashTaggedKeys of [true, false]) {
      const serving = await serve([await FakeWorker.start(echo)], {}, { ...model, hashTaggedKeys });
      const prompts = submitted(serving);
      const body = { model: 'm', prompt: range(10, 36), max_tokens: 1, cache_salt: 'tenant-a' };
      expect((await post(serving.url, '/v1/completions', body)).status).toBe(200);
      chains.push([...(prompts[0] as Prompt).chain]);
    }
    // As vLLM 0.33.0 names the blocks of this prompt.
    expect(chains[0]).toEqual([16014397371320633522n, 14626754679705080051n]);
    const bare = new BlockHasher({ algorithm: 'sha256_cbor' }).reset({ cacheSalt: 'tenant-a' });
    expect(chains[1]).toEqual([...bare.update(Uint32Array.from(range(10, 36)))]);
  });
});
