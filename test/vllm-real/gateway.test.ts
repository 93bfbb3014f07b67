/**
 * Chat through the gateway on a real server, with its real chat template, tokenizer and tool parser: streaming, tools, and what the
 * gateway says of a prompt is what the server counts, whether it tokenises itself or asks.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, describe, expect, inject, it } from 'vitest';
import { Gateway } from '../../src/gateway/index.js';
import { resetPrefixCache } from './client.js';
import { serverIn, type RealServer } from './servers.js';

const folder = inject('vllmServers');
const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

interface Message {
  role: string;
  content: string | null;
  tool_calls?: { id: string; type: 'function'; function: { name: string; arguments: string } }[];
  tool_call_id?: string;
}

interface ChatAnswer {
  choices: { message: Message; finish_reason: string }[];
  usage: { prompt_tokens: number; prompt_tokens_details: { cached_tokens: number } | null };
}

interface Chunk {
  choices: {
    delta: Partial<Message> & { tool_calls?: { function?: { name?: string; arguments?: string } }[] };
    finish_reason: string | null;
  }[];
  usage?: { prompt_tokens: number } | null;
}

const tools = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      description: 'Get the weather of a city',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  },
];
const toolCall = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>';

class Front {
  readonly url: string;

  private constructor(
    port: number,
    readonly server: RealServer,
  ) {
    this.url = `http://127.0.0.1:${port}`;
  }

  static async start(tokenizer: 'local' | 'worker'): Promise<Front> {
    const server = await serverIn(folder, 'plain');
    expect(await resetPrefixCache(server)).toBe(true);
    const gateway = await Gateway.start({
      port: 0,
      models: [
        {
          name: 'chat',
          upstreamName: server.model,
          servers: [{ url: server.url, events: server.events, replay: server.replay }],
          ...(tokenizer === 'local' ? { tokenizer: server.model_folder } : {}),
        },
      ],
    });
    closing.push(() => gateway.close());
    const { port } = await gateway.listen();
    return new Front(port, server);
  }

  async post(body: object, path = '/v1/chat/completions', url = this.url): Promise<Response> {
    const response = await fetch(url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-saga-session-id': 'conversation' },
      body: JSON.stringify(body),
    });
    if (response.status !== 200) throw new Error(`${response.status}: ${await response.text()}`);
    return response;
  }

  async chat(messages: readonly Message[], more: object = {}): Promise<ChatAnswer> {
    return (await (await this.post({ model: 'chat', messages, ...more })).json()) as ChatAnswer;
  }

  /** Chunks of a streamed answer, without the last, `[DONE]`. */
  async stream(messages: readonly Message[], more: object = {}): Promise<Chunk[]> {
    const response = await this.post({ model: 'chat', messages, stream: true, ...more });
    expect(response.headers.get('content-type')).toMatch(/^text\/event-stream/);
    const lines = (await response.text()).split('\n\n').filter((line) => line.startsWith('data: '));
    expect(lines.at(-1)).toBe('data: [DONE]');
    return lines.slice(0, -1).map((line) => JSON.parse(line.slice(6)) as Chunk);
  }

  /** A counter of /metrics, over all labels. */
  async counter(name: string): Promise<number> {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    const found = [...text.matchAll(new RegExp(`^saga[:_]${name}(?:_total)?(?:\\{[^}]*\\})? (\\S+)$`, 'gm'))];
    if (found.length === 0) throw new Error(`no metric ${name}`);
    return found.reduce((sum, [, value]) => sum + Number(value), 0);
  }

  async get(path: string): Promise<unknown> {
    return (await fetch(this.url + path)).json();
  }
}

const question: Message = { role: 'user', content: 'What is the weather in Paris?' };

describe.each(['local', 'worker'] as const)('chat, tokens made by the %s tokenizer', (tokenizer) => {
  it('of ten turns: tokens and cached tokens are those that the server counts', async () => {
    const front = await Front.start(tokenizer);
    const messages: Message[] = [
      { role: 'system', content: 'You are a careful assistant. Answer in full sentences and say why. '.repeat(12) },
    ];
    const turns: { counted: number; predicted: number; reported: number }[] = [];
    const expected: typeof turns = [];
    for (let turn = 0; turn < 10; ++turn) {
      messages.push({
        role: 'user',
        content: `Question ${turn}: what comes after ${turn * 37}? `.repeat(1 + (turn % 4)),
      });
      const before = {
        counted: await front.counter('prompt_tokens'),
        predicted: await front.counter('prefix_cache_hits_predicted'),
        reported: await front.counter('prefix_cache_hits'),
      };
      const { usage, choices } = await front.chat(messages, { max_tokens: 40 + 7 * turn });
      const content = choices[0]?.message.content ?? '';
      expect(content.length).toBeGreaterThan(40);
      messages.push({ role: 'assistant', content });
      turns.push({
        counted: (await front.counter('prompt_tokens')) - before.counted,
        predicted: (await front.counter('prefix_cache_hits_predicted')) - before.predicted,
        reported: (await front.counter('prefix_cache_hits')) - before.reported,
      });
      const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
      expected.push({ counted: usage.prompt_tokens, predicted: cached, reported: cached });
      // The next turn is decided on what the events of this one tell.
      await delay(150);
    }
    expect(turns).toEqual(expected);
    expect(expected.at(-1)?.reported).toBeGreaterThan(600);
    expect(await front.counter('prompt_token_mismatches')).toBe(0);
    const tokenized = await front.counter('prompt_tokens_tokenized');
    const all = expected.reduce((sum, { counted }) => sum + counted, 0);
    if (tokenizer === 'local') expect(tokenized).toBeLessThan(all / 2);
    else expect(tokenized).toBe(all);
    // The same conversation as the server itself tokenises it.
    const direct = (await (
      await front.post({ model: front.server.model, messages: messages.slice(0, -1) }, '/tokenize', front.server.url)
    ).json()) as { count: number };
    expect(expected.at(-1)?.counted).toBe(direct.count);
    expect(await front.get('/readyz')).toMatchObject({ ready: true, degraded: [] });
  });

  it('streams, and tells usage only to who asks', async () => {
    const front = await Front.start(tokenizer);
    const say = 'It is sunny in Paris.';
    const chunks = await front.stream([question], { max_tokens: 60, vllm_xargs: { saga_say: say } });
    expect(chunks.map(({ choices }) => choices[0]?.delta.content ?? '').join('')).toBe(say);
    expect(chunks.length).toBeGreaterThan(1);
    expect(chunks.at(-1)?.choices[0]?.finish_reason).toBe('stop');
    expect(chunks.filter(({ usage }) => usage)).toEqual([]);
    const told = await front.stream([question], {
      max_tokens: 60,
      vllm_xargs: { saga_say: say },
      stream_options: { include_usage: true },
    });
    expect(told.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: expect.any(Number) as number } });
    expect(await front.counter('prompt_token_mismatches')).toBe(0);
  });

  it('passes tool calls and their results, streamed and not', async () => {
    const front = await Front.start(tokenizer);
    const asked = await front.chat([question], { tools, max_tokens: 100, vllm_xargs: { saga_say: toolCall } });
    const [choice] = asked.choices;
    expect(choice?.finish_reason).toBe('tool_calls');
    const [call] = choice?.message.tool_calls ?? [];
    expect(call?.function.name).toBe('get_weather');
    expect(JSON.parse(call?.function.arguments ?? '')).toEqual({ city: 'Paris' });
    await delay(150);
    const messages: Message[] = [
      question,
      choice?.message as Message,
      { role: 'tool', tool_call_id: call?.id ?? '', content: 'sunny, 25 degrees' },
    ];
    const answered = await front.chat(messages, { tools, max_tokens: 60, vllm_xargs: { saga_say: 'It is sunny.' } });
    expect(answered.choices[0]).toMatchObject({ finish_reason: 'stop', message: { content: 'It is sunny.' } });
    const { prompt_tokens: before } = asked.usage;
    expect(answered.usage.prompt_tokens_details?.cached_tokens).toBeGreaterThanOrEqual(
      Math.floor(before / 16) * 16 - 16,
    );
    messages.push(answered.choices[0]?.message as Message, { role: 'user', content: 'And tomorrow?' });
    const chunks = await front.stream(messages, { tools, max_tokens: 100, vllm_xargs: { saga_say: toolCall } });
    const parts = chunks.flatMap(({ choices }) => choices[0]?.delta.tool_calls ?? []);
    expect(parts.map((part) => part.function?.name ?? '').join('')).toBe('get_weather');
    expect(JSON.parse(parts.map((part) => part.function?.arguments ?? '').join(''))).toEqual({ city: 'Paris' });
    expect(chunks.flatMap(({ choices }) => choices[0]?.finish_reason ?? [])).toEqual(['tool_calls']);
    expect(await front.counter('prompt_token_mismatches')).toBe(0);
    expect(await front.get('/saga/workflows')).toMatchObject({
      workflows: [{ name: expect.stringContaining('conversation') as string, calls: 3, toolRuns: true }],
    });
  });
});
