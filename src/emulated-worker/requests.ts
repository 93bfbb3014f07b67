/**
 * Bodies of requests: checked by hand, for they come from anywhere. What is refused is refused as vLLM does it: 400 with an error
 * object; unknown members are ignored.
 */
import type { Answer } from './answer.js';
import type { ChatMessage, ToolCall } from './chat-template.js';
import { badRequest, malformed } from './errors.js';

export type Body = Readonly<Record<string, unknown>>;

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A duration in a directive. */
export function isSeconds(value: unknown): value is number {
  return typeof value === 'number' && value >= 0 && value <= 1e7;
}

function wrong(name: string, expected: string): Error {
  const at = `body.${name}`;
  return malformed(`1 validation error:\n  {'loc': '${at}', 'msg': 'Input should be ${expected}'}`, at);
}

export function parseBody(bytes: Buffer): Body {
  let body: unknown;
  try {
    body = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw malformed(
      `1 validation error:\n  {'type': 'json_invalid', 'loc': 'body', 'msg': 'JSON decode error', 'ctx': ${JSON.stringify((error as Error).message)}}`,
      'body',
    );
  }
  if (!isObject(body))
    throw malformed(
      "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or object to extract fields from'}",
      'body',
    );
  return body;
}

export function optionalString(body: Body, name: string): string | undefined {
  const value = body[name];
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'string') throw wrong(name, 'a valid string');
  return value;
}

export function optionalInteger(body: Body, name: string): number | undefined {
  const value = body[name];
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'number' || !Number.isSafeInteger(value)) throw wrong(name, 'a valid integer');
  return value;
}

export function optionalBoolean(body: Body, name: string, otherwise: boolean): boolean {
  const value = body[name];
  if (value === undefined || value === null) return otherwise;
  if (typeof value !== 'boolean') throw wrong(name, 'a valid boolean');
  return value;
}

export function optionalObject(body: Body, name: string): Record<string, unknown> | undefined {
  const value = body[name];
  if (value === undefined || value === null) return undefined;
  if (!isObject(value)) throw wrong(name, 'a valid dictionary');
  return value;
}

export function optionalArray(body: Body, name: string): unknown[] | undefined {
  const value = body[name];
  if (value === undefined || value === null) return undefined;
  if (!Array.isArray(value)) throw wrong(name, 'a valid list');
  return value as unknown[];
}

/** What all generating routes have in common. */
export interface CommonFields {
  stream: boolean;
  includeUsage: boolean;
  continuousUsage: boolean;
  maxTokens: number | undefined;
  priority: number | undefined;
  cacheSalt: string | undefined;
  sessionId: string | undefined;
  requestId: string | undefined;
  returnTokenIds: boolean;
  ignoreEnd: boolean;
  transferParams: Record<string, unknown> | undefined;
  hints: Record<string, unknown> | undefined;
  answer: Answer | undefined;
  /** The answer's tokens. */
  script: readonly number[] | undefined;
}

export function commonFields(body: Body, maxTokens: number | undefined): CommonFields {
  const n = optionalInteger(body, 'n') ?? 1;
  if (n !== 1) throw badRequest('This worker gives one answer to a request: n must be 1.', 'n');
  for (const name of ['logprobs', 'top_logprobs', 'prompt_logprobs', 'echo', 'use_beam_search'])
    if (body[name] !== undefined && body[name] !== null && body[name] !== false && body[name] !== 0)
      throw badRequest(`This worker does not emulate ${name}.`, name);
  if (maxTokens !== undefined && maxTokens < 1)
    throw badRequest(
      `max_tokens must be at least 1, got ${maxTokens}. (parameter=max_tokens, value=${maxTokens})`,
      'max_tokens',
    );
  const stream = optionalBoolean(body, 'stream', false);
  const streamOptions = optionalObject(body, 'stream_options');
  const xargs = optionalObject(body, 'vllm_xargs');
  const cacheSalt = optionalString(body, 'cache_salt');
  if (cacheSalt === '')
    throw badRequest(
      "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)",
      'cache_salt',
    );
  const xargsSession = xargs?.session_id;
  return {
    stream,
    includeUsage: streamOptions !== undefined && optionalBoolean(streamOptions, 'include_usage', false),
    continuousUsage: streamOptions !== undefined && optionalBoolean(streamOptions, 'continuous_usage_stats', false),
    maxTokens,
    priority: optionalInteger(body, 'priority'),
    cacheSalt,
    sessionId: optionalString(body, 'session_id') ?? (typeof xargsSession === 'string' ? xargsSession : undefined),
    requestId: optionalString(body, 'request_id'),
    returnTokenIds: optionalBoolean(body, 'return_token_ids', false),
    ignoreEnd: optionalBoolean(body, 'ignore_eos', false),
    transferParams: optionalObject(body, 'kv_transfer_params'),
    hints: optionalObject(body, 'kv_hints'),
    answer: answerOf(xargs?.saga_answer),
    script: scriptOf(xargs?.saga_script),
  };
}

/** The answer that a request brings along as token ids: a list, or text such as `5,6,7`. */
function scriptOf(given: unknown): readonly number[] | undefined {
  if (given === undefined || given === null) return undefined;
  const ids: unknown = typeof given === 'string' ? given.split(',').map(Number) : given;
  if (!Array.isArray(ids) || ids.length === 0 || !ids.every((id) => Number.isInteger(id) && id >= 0 && id < 2 ** 32))
    throw malformed('vllm_xargs.saga_script must be token ids: a list, or text such as "5,6,7"', 'vllm_xargs');
  return ids as number[];
}

/** The answer that a request brings along. */
function answerOf(given: unknown): Answer | undefined {
  if (given === undefined || given === null) return undefined;
  if (typeof given !== 'string') throw malformed('vllm_xargs.saga_answer must be JSON in a string', 'vllm_xargs');
  let value: unknown;
  try {
    value = JSON.parse(given);
  } catch (error) {
    throw malformed(`vllm_xargs.saga_answer is not JSON: ${(error as Error).message}`, 'vllm_xargs');
  }
  try {
    return checkAnswer(value);
  } catch (error) {
    throw malformed(`vllm_xargs.saga_answer: ${(error as Error).message}`, 'vllm_xargs');
  }
}

/** @throws TypeError where it is no answer */
export function checkAnswer(value: unknown): Answer {
  if (!isObject(value)) throw new TypeError('an answer is an object such as {"content": "yes"}');
  const answer: Answer = {};
  const { content, toolCalls, outputTokens, stop } = value;
  if (content !== undefined) {
    if (typeof content !== 'string') throw new TypeError('content must be a string');
    answer.content = content;
  }
  if (toolCalls !== undefined) {
    if (!Array.isArray(toolCalls)) throw new TypeError('toolCalls must be a list');
    answer.toolCalls = toolCalls.map((call: unknown) => {
      if (!isObject(call) || typeof call.name !== 'string')
        throw new TypeError('a tool call is an object such as {"name": "ls", "arguments": {}}');
      return { name: call.name, arguments: call.arguments };
    });
  }
  if (outputTokens !== undefined) {
    if (typeof outputTokens !== 'number' || !Number.isSafeInteger(outputTokens) || outputTokens < 1)
      throw new TypeError('outputTokens must be a whole number from 1');
    answer.outputTokens = outputTokens;
  }
  if (stop !== undefined) {
    if (stop !== 'stop' && stop !== 'length') throw new TypeError('stop must be "stop" or "length"');
    answer.stop = stop;
  }
  return answer;
}

/** A prompt as text or ids. */
export function promptOf(body: Body): string | number[] {
  const { prompt } = body;
  if (typeof prompt === 'string') return prompt;
  if (prompt === undefined || prompt === null)
    throw badRequest('Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)', 'prompt');
  if (!Array.isArray(prompt)) throw wrong('prompt', 'a string, or a list of token ids');
  if (prompt.length === 1 && (Array.isArray(prompt[0]) || typeof prompt[0] === 'string'))
    return promptOf({ prompt: prompt[0] as unknown });
  if (prompt.length > 1 && (Array.isArray(prompt[0]) || typeof prompt[0] === 'string'))
    throw badRequest('This worker takes one prompt a request.', 'prompt');
  return idsOf(prompt, 'prompt');
}

/** Token ids. */
export function idsOf(list: readonly unknown[], name: string): number[] {
  for (const id of list)
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= 2 ** 32)
      throw wrong(name, 'a list of token ids from 0 to 4294967295');
  return list as number[];
}

/** Messages of `/v1/chat/completions` and `/tokenize`. */
export function chatMessages(body: Body): ChatMessage[] {
  const { messages } = body;
  if (messages === undefined)
    throw malformed(
      "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required'}",
      'body.messages',
    );
  if (!Array.isArray(messages)) throw wrong('messages', 'a valid list');
  if (messages.length === 0)
    throw badRequest('Cannot apply chat template to an empty conversation. Provide at least one message.');
  return messages.map((message: unknown, at) => {
    if (!isObject(message)) throw wrong(`messages.${at}`, 'a valid dictionary');
    const { role } = message;
    const calls = optionalArray(message, 'tool_calls') ?? [];
    return {
      role: roleOf(role, at),
      content: contentText(message.content, `messages.${at}.content`),
      toolCalls: calls.map((call, i) => toolCallOf(call, `messages.${at}.tool_calls.${i}`)),
    };
  });
}

function roleOf(role: unknown, at: number): ChatMessage['role'] {
  switch (role) {
    case 'system':
    case 'developer':
      return 'system';
    case 'user':
    case 'assistant':
    case 'tool':
      return role;
    default:
      throw wrong(`messages.${at}.role`, "'system', 'developer', 'user', 'assistant' or 'tool'");
  }
}

function toolCallOf(call: unknown, name: string): ToolCall {
  const inner = isObject(call) ? call.function : undefined;
  if (!isObject(inner) || typeof inner.name !== 'string')
    throw wrong(name, 'a tool call such as {"function": {"name": "ls"}}');
  const given = inner.arguments;
  return { name: inner.name, arguments: typeof given === 'string' ? given : JSON.stringify(given ?? {}) };
}

/** Text, or parts of text. */
export function contentText(content: unknown, name: string): string {
  if (content === undefined || content === null) return '';
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) throw wrong(name, 'a string or a list of parts');
  let text = '';
  for (const part of content as unknown[]) {
    if (typeof part === 'string') text += part;
    else if (isObject(part) && typeof part.text === 'string') text += part.text;
    else if (isObject(part) && typeof part.refusal === 'string') text += part.refusal;
    else throw badRequest('At most 0 image(s) may be provided in one prompt: this worker takes text.', name);
  }
  return text;
}

/** Messages of `/v1/messages`. */
export function anthropicMessages(body: Body): ChatMessage[] {
  const { messages, system } = body;
  if (!Array.isArray(messages)) throw wrong('messages', 'a valid list');
  const out: ChatMessage[] = [];
  if (system !== undefined && system !== null)
    out.push({ role: 'system', content: contentText(system, 'system'), toolCalls: [] });
  (messages as unknown[]).forEach((message, at) => {
    if (!isObject(message)) throw wrong(`messages.${at}`, 'a valid dictionary');
    const role = message.role;
    if (role !== 'user' && role !== 'assistant') throw wrong(`messages.${at}.role`, "'user' or 'assistant'");
    const { content } = message;
    if (!Array.isArray(content)) {
      out.push({ role, content: contentText(content, `messages.${at}.content`), toolCalls: [] });
      return;
    }
    let text = '';
    let texts = 0;
    const toolCalls: ToolCall[] = [];
    for (const part of content as unknown[]) {
      if (!isObject(part)) throw wrong(`messages.${at}.content`, 'a list of content blocks');
      if (part.type === 'tool_use') {
        if (typeof part.name !== 'string') throw wrong(`messages.${at}.content`, 'a tool use with a name');
        toolCalls.push({ name: part.name, arguments: JSON.stringify(part.input ?? {}) });
      } else if (part.type === 'tool_result') {
        out.push({ role: 'tool', content: contentText(part.content, `messages.${at}.content`), toolCalls: [] });
      } else if (part.type !== 'thinking' && part.type !== 'redacted_thinking') {
        text += contentText([part], `messages.${at}.content`);
        texts++;
      }
    }
    if (texts > 0 || toolCalls.length > 0) out.push({ role, content: text, toolCalls });
  });
  return out;
}

/** Items of `/v1/responses`. Calls that follow each other are one message of the assistant. */
export function responsesMessages(body: Body): ChatMessage[] {
  const out: ChatMessage[] = [];
  const instructions = optionalString(body, 'instructions');
  if (instructions !== undefined) out.push({ role: 'system', content: instructions, toolCalls: [] });
  const { input } = body;
  if (typeof input === 'string') return [...out, { role: 'user', content: input, toolCalls: [] }];
  if (!Array.isArray(input)) throw wrong('input', 'a string or a list of items');
  (input as unknown[]).forEach((item, at) => {
    if (!isObject(item)) throw wrong(`input.${at}`, 'a valid dictionary');
    switch (item.type ?? 'message') {
      case 'message':
        out.push({
          role: roleOf(item.role, at),
          content: contentText(item.content, `input.${at}.content`),
          toolCalls: [],
        });
        break;
      case 'function_call': {
        if (typeof item.name !== 'string' || typeof item.arguments !== 'string')
          throw wrong(`input.${at}`, 'a function call with name and arguments');
        let last = out.at(-1);
        if (last?.role !== 'assistant') out.push((last = { role: 'assistant', content: '', toolCalls: [] }));
        last.toolCalls.push({ name: item.name, arguments: item.arguments });
        break;
      }
      case 'function_call_output':
        out.push({ role: 'tool', content: contentText(item.output, `input.${at}.output`), toolCalls: [] });
        break;
      case 'reasoning':
        break;
      default:
        throw badRequest(`This worker does not know items of type ${String(item.type)}.`, 'input');
    }
  });
  return out;
}
