/** What is read of answers while they pass, and what is passed of them. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AnswerReader, type AnswerFacts, type Endpoint } from '../../src/gateway/answer.js';

interface Fixture {
  endpoint: Endpoint;
  name: string;
  events: string[];
  /** Index of the event that only brings usage. */
  usage?: number;
  facts: Partial<AnswerFacts>;
}

const data = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const event = (name: string, value: object): string => `event: ${name}\ndata: ${JSON.stringify(value)}\n\n`;

const fixtures: Fixture[] = [
  {
    endpoint: 'chat',
    name: 'chat with text, its usage in an event of its own',
    events: [
      'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n',
      'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Grüße, \\"usage\\": {"},"finish_reason":null}]}\n\n',
      'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop","stop_reason":null}]}\n\n',
      'data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":21,"total_tokens":28,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":16}}}\n\n',
      'data: [DONE]\n\n',
    ],
    usage: 3,
    facts: { stop: 'end-turn', tools: [], outputTokens: 7, promptTokens: 21, cachedTokens: 16, id: 'chatcmpl-1' },
  },
  {
    endpoint: 'chat',
    name: 'chat with two tool calls, carriage returns, spaces in its JSON',
    events: [
      ': ping\r\n\r\n',
      'data: {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "web_search", "arguments": ""}}]}}]}\r\n\r\n',
      'data: {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]}\r\n\r\n',
      'data: {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"name": "read_file"}}]}}]}\r\n\r\n',
      'data: {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}\r\n\r\n',
      'data: {"id": "c", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}}\r\n\r\n',
      'data: [DONE]\r\n\r\n',
    ],
    usage: 5,
    facts: { stop: 'tool-use', tools: ['web_search', 'read_file'], outputTokens: 9, promptTokens: 5 },
  },
  {
    endpoint: 'completions',
    name: 'a completion that was cut off',
    events: [
      data({ id: 'cmpl-2', choices: [{ index: 0, text: 'a\n\nb', finish_reason: null }] }),
      data({ id: 'cmpl-2', choices: [{ index: 0, text: 'c', finish_reason: 'length' }] }),
      data({ id: 'cmpl-2', choices: [], usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 } }),
      'data: [DONE]\n\n',
    ],
    usage: 2,
    facts: { stop: undefined, tools: [], outputTokens: 2, promptTokens: 3, cachedTokens: undefined, id: 'cmpl-2' },
  },
  {
    endpoint: 'responses',
    name: 'a response that calls a tool',
    events: [
      event('response.created', { type: 'response.created', response: { id: 'resp_1', status: 'in_progress' } }),
      event('response.output_item.added', {
        type: 'response.output_item.added',
        item: { type: 'function_call', name: 'bash', arguments: '' },
      }),
      event('response.output_text.delta', { type: 'response.output_text.delta', delta: 'x' }),
      event('response.completed', {
        type: 'response.completed',
        response: {
          id: 'resp_1',
          status: 'completed',
          output: [{ type: 'function_call', name: 'bash' }],
          usage: { input_tokens: 40, output_tokens: 4, input_tokens_details: { cached_tokens: 32 } },
        },
      }),
    ],
    facts: { stop: 'tool-use', tools: ['bash'], outputTokens: 4, promptTokens: 40, cachedTokens: 32, id: 'resp_1' },
  },
  {
    endpoint: 'messages',
    name: 'a message that uses a tool',
    events: [
      event('message_start', {
        type: 'message_start',
        message: {
          id: 'msg_1',
          content: [],
          usage: { input_tokens: 10, cache_read_input_tokens: 48, output_tokens: 0 },
        },
      }),
      event('content_block_start', {
        type: 'content_block_start',
        content_block: { type: 'tool_use', id: 't', name: 'Edit', input: {} },
      }),
      event('content_block_delta', { type: 'content_block_delta', delta: { partial_json: '{}' } }),
      event('message_delta', {
        type: 'message_delta',
        delta: { stop_reason: 'tool_use' },
        usage: { output_tokens: 12 },
      }),
      event('message_stop', { type: 'message_stop' }),
    ],
    facts: { stop: 'tool-use', tools: ['Edit'], outputTokens: 12, promptTokens: 58, cachedTokens: 48, id: 'msg_1' },
  },
];

/** Passes a text in chunks that end at these bytes. */
function pass(reader: AnswerReader, bytes: Buffer, cuts: readonly number[]): Buffer {
  const passed: Buffer[] = [];
  const keep = (chunk: Buffer | undefined): void => {
    // What comes out is not changed by what comes later.
    if (chunk !== undefined) passed.push(Buffer.from(chunk));
  };
  let from = 0;
  for (const to of [...new Set(cuts)].sort((a, b) => a - b).concat(bytes.length)) {
    if (to <= from || to > bytes.length) continue;
    keep(reader.push(bytes.subarray(from, to)));
    from = to;
  }
  keep(reader.end());
  return Buffer.concat(passed);
}

describe.each(fixtures)('$name', ({ endpoint, events, usage, facts }) => {
  const whole = Buffer.from(events.join(''));
  const without = Buffer.from(events.filter((_, i) => i !== usage).join(''));

  it('is passed as it is and understood, wherever it is cut in two', () => {
    for (let at = 0; at <= whole.length; ++at) {
      const reader = new AnswerReader(endpoint, { streamed: true, dropUsage: false });
      expect(pass(reader, whole, [at]).equals(whole), `cut at ${at}`).toBe(true);
      expect(reader.facts, `cut at ${at}`).toMatchObject(facts);
      expect(reader.facts.unread).toBe(0);
    }
  });

  it('is passed without the event of its usage, wherever it is cut in two', () => {
    for (let at = 0; at <= whole.length; ++at) {
      const reader = new AnswerReader(endpoint, { streamed: true, dropUsage: true });
      expect(pass(reader, whole, [at]).toString(), `cut at ${at}`).toBe(without.toString());
      expect(reader.facts).toMatchObject(facts);
    }
  });

  it('gives the same in any chunks', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(whole.length), { maxLength: 60 }), fc.boolean(), (cuts, dropUsage) => {
        const reader = new AnswerReader(endpoint, { streamed: true, dropUsage });
        expect(pass(reader, whole, cuts).equals(dropUsage ? without : whole)).toBe(true);
        expect(reader.facts).toMatchObject(facts);
      }),
      { numRuns: 200, seed: 7 },
    );
  });

  it('is passed byte by byte, no event later than its last byte', () => {
    const reader = new AnswerReader(endpoint, { streamed: true, dropUsage: true });
    let passed = '';
    let due = '';
    let from = 0;
    for (const [i, text] of events.entries()) {
      const bytes = Buffer.from(text);
      for (let at = 0; at < bytes.length; ++at) passed += (reader.push(bytes.subarray(at, at + 1)) ?? '').toString();
      if (i !== usage) due += text;
      expect(passed).toBe(due);
      from += bytes.length;
    }
    expect(from).toBe(whole.length);
    expect(reader.end()).toBeUndefined();
    expect(reader.facts).toMatchObject(facts);
  });
});

describe('an answer that is no stream', () => {
  it.each<[Endpoint, unknown, Partial<AnswerFacts>]>([
    [
      'chat',
      {
        id: 'c',
        choices: [{ message: { tool_calls: [{ function: { name: 'ls' } }] }, finish_reason: 'stop' }],
        usage: { prompt_tokens: 9, completion_tokens: 3, prompt_tokens_details: null },
      },
      { stop: 'tool-use', tools: ['ls'], promptTokens: 9, outputTokens: 3, cachedTokens: undefined, id: 'c' },
    ],
    [
      'completions',
      { id: 'x', choices: [{ text: 'a', finish_reason: 'stop' }], usage: { prompt_tokens: 1, completion_tokens: 1 } },
      { stop: 'end-turn', tools: [], outputTokens: 1 },
    ],
    [
      'responses',
      {
        id: 'resp_2',
        status: 'completed',
        output: [{ type: 'message' }, { type: 'function_call', name: 'grep' }],
        usage: { input_tokens: 2, output_tokens: 1 },
      },
      { stop: 'tool-use', tools: ['grep'], promptTokens: 2, id: 'resp_2' },
    ],
    [
      'messages',
      {
        id: 'msg',
        content: [{ type: 'text' }, { type: 'tool_use', name: 'Bash' }],
        stop_reason: 'end_turn',
        usage: { input_tokens: 2, output_tokens: 1 },
      },
      { stop: 'tool-use', tools: ['Bash'], promptTokens: 2, outputTokens: 1 },
    ],
  ])('of %s is read when it is complete', (endpoint, value, facts) => {
    const bytes = Buffer.from(JSON.stringify(value));
    const reader = new AnswerReader(endpoint, { streamed: false, dropUsage: true });
    expect(pass(reader, bytes, [3, 20, 21]).equals(bytes)).toBe(true);
    expect(reader.facts).toMatchObject(facts);
  });

  it('passes whatever it is', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), fc.boolean(), fc.boolean(), (given, streamed, dropUsage) => {
        for (const endpoint of ['chat', 'completions', 'responses', 'messages'] as const) {
          const bytes = Buffer.from(given);
          expect(pass(new AnswerReader(endpoint, { streamed, dropUsage }), bytes, [10, 50]).equals(bytes)).toBe(true);
        }
      }),
      { numRuns: 200, seed: 3 },
    );
  });

  it('counts what cannot be read, and passes it', () => {
    const reader = new AnswerReader('chat', { streamed: true, dropUsage: true });
    const text = 'data: {"finish_reason":"stop\n\ndata: {"usage":{"completion_tokens":-1},"choices":[{}]}\n\n';
    expect(pass(reader, Buffer.from(text), [])).toEqual(Buffer.from(text));
    expect(reader.facts).toMatchObject({ unread: 1, outputTokens: undefined });
  });
});

describe('an event of more than 8 MiB', () => {
  const large = Buffer.from(`data: {"usage":{"a":"${'x'.repeat(9 * 2 ** 20)}"}}\n\n`);
  const after = Buffer.from('data: {"choices":[],"usage":{"completion_tokens":1}}\n\n');

  it.each([true, false])('passes unread, nothing is lost (dropUsage %s)', (dropUsage) => {
    const reader = new AnswerReader('chat', { streamed: true, dropUsage });
    const bytes = Buffer.concat([large.subarray(0, -2), Buffer.from('\n\n'), after]);
    const cuts = Array.from({ length: Math.ceil(bytes.length / 65_536) }, (_, i) => i * 65_536);
    const passed = pass(reader, bytes, cuts);
    expect(passed.equals(bytes)).toBe(true);
    expect(reader.facts.unread).toBe(1);
  });

  it.each([true, false])('passes unread where it begins behind another one (dropUsage %s)', (dropUsage) => {
    const reader = new AnswerReader('chat', { streamed: true, dropUsage });
    const first = Buffer.from('data: {"choices":[{}]}\n\n');
    const passed = pass(reader, Buffer.concat([first, large.subarray(0, -2)]), []);
    expect(passed.equals(Buffer.concat([first, large.subarray(0, -2)]))).toBe(true);
    expect(reader.facts.unread).toBe(1);
  });
});
