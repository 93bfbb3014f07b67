/**
 * Answers on the wire, streamed and whole, member for member as vLLM writes them. A stream's chunks share all but their delta, so
 * that is all that is made for each token.
 */
import { randomBytes } from 'node:crypto';
import type { AnswerReader, Delta } from './answer.js';

/** What a request's answer is written with. */
export interface AnswerContext {
  id: string;
  model: string;
  /** Unix seconds. */
  created: number;
  promptTokens: number;
  cachedTokens: number;
  /** Of the prompt's full blocks, those that were not cached; `null` where vLLM does not tell. */
  createdTokens: number | null;
  completionTokens: number;
  includeUsage: boolean;
  continuousUsage: boolean;
  /** `prompt_tokens_details`. */
  details: boolean;
  /** With `return_token_ids`. */
  promptTokenIds: Uint32Array | undefined;
  /** Whether the request has tools, so that the answer goes through a tool parser. */
  parsed: boolean;
  reader: AnswerReader;
}

export type Finish = 'stop' | 'length';

/** Writes one answer. */
export interface AnswerFormat {
  /** What goes before the first token. */
  begin(): string;
  /** What a token brings; empty where it brings nothing. `finish` with the last. */
  token(delta: Delta | undefined, id: number, finish: Finish | undefined): string;
  /** What goes after the last token. */
  end(finish: Finish): string;
  /** The whole answer, for a request without `stream`. */
  whole(finish: Finish, ids: Uint32Array): string;
}

export const done = 'data: [DONE]\n\n';

export function hexId(): string {
  return randomBytes(8).toString('hex');
}

/** Names the server's configuration. */
const fingerprint = 'vllm-0.33.0-emulated';

/** Usage as in final chunks, without members that are null, or as in whole answers with them. */
function usageOf(context: AnswerContext, sparse: boolean): Record<string, unknown> {
  const { promptTokens, completionTokens, cachedTokens, createdTokens, details } = context;
  const usage = {
    prompt_tokens: promptTokens,
    total_tokens: promptTokens + completionTokens,
    completion_tokens: completionTokens,
  };
  if (sparse) {
    if (!details) return usage;
    const created = createdTokens === null ? {} : { created_cache_tokens: createdTokens };
    return { ...usage, prompt_tokens_details: { cached_tokens: cachedTokens, ...created } };
  }
  return {
    ...usage,
    prompt_tokens_details: details
      ? { cached_tokens: cachedTokens, created_cache_tokens: createdTokens, multimodal_tokens: null }
      : null,
    completion_tokens_details: null,
  };
}

function continuous(context: AnswerContext, more = ''): string {
  if (!context.continuousUsage) return '';
  const { promptTokens, completionTokens } = context;
  return `,"usage":{"prompt_tokens":${promptTokens},"total_tokens":${promptTokens + completionTokens},"completion_tokens":${completionTokens}${more}}`;
}

/** What stands behind the choices and the usage of every chunk with tokens. */
const chunkEnd = ',"kv_transfer_params":null}\n\n';

/** Last members of a whole answer. */
const wholeEnd = { kv_transfer_params: null, ec_transfer_params: null, metrics: null };

/** `/v1/chat/completions`. */
export class ChatFormat implements AnswerFormat {
  readonly #context: AnswerContext;
  readonly #head: string;
  readonly #toolIds: string[] = [];

  constructor(context: AnswerContext) {
    this.#context = context;
    const { id, created, model } = context;
    this.#head = `data: {"id":${JSON.stringify(id)},"object":"chat.completion.chunk","created":${created},"model":${JSON.stringify(model)},"choices":[`;
  }

  begin(): string {
    const { promptTokenIds } = this.#context;
    const ids = promptTokenIds === undefined ? 'null' : `[${promptTokenIds.join(',')}]`;
    const usage = this.#context.continuousUsage
      ? `,"usage":{"prompt_tokens":${this.#context.promptTokens},"total_tokens":${this.#context.promptTokens},"completion_tokens":0,"completion_tokens_details":null}`
      : '';
    return `${this.#head}{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]${usage},"prompt_token_ids":${ids},"prompt_text":null}\n\n`;
  }

  token(delta: Delta | undefined, id: number, finish: Finish | undefined): string {
    const { promptTokenIds, parsed } = this.#context;
    let text: string;
    if (delta === undefined) {
      // A tool parser says nothing of a marker; without one it is an empty text.
      if (parsed && finish === undefined && promptTokenIds === undefined) return '';
      text = parsed ? '{}' : '{"content":""}';
    } else {
      text = this.#delta(delta);
    }
    const ids = promptTokenIds === undefined ? 'null' : `[${id}]`;
    const usage = continuous(this.#context, ',"completion_tokens_details":null');
    if (finish === undefined)
      return `${this.#head}{"index":0,"delta":${text},"logprobs":null,"finish_reason":null,"token_ids":${ids}}]${usage}${chunkEnd}`;
    return `${this.#head}{"index":0,"delta":${text},"logprobs":null,"finish_reason":"${this.#reason(finish)}","stop_reason":null,"token_ids":${ids},"weight_versions":null}]${usage}${chunkEnd}`;
  }

  end(): string {
    const { id, created, model, includeUsage } = this.#context;
    if (!includeUsage) return done;
    const usage = JSON.stringify(usageOf(this.#context, true));
    return `data: {"id":${JSON.stringify(id)},"object":"chat.completion.chunk","created":${created},"model":${JSON.stringify(model)},"choices":[],"usage":${usage},"system_fingerprint":"${fingerprint}"}\n\n${done}`;
  }

  whole(finish: Finish, ids: Uint32Array): string {
    const { id, created, model, reader, promptTokenIds } = this.#context;
    const calls = reader.toolCalls.map((call) => ({ id: toolCallId(), type: 'function', function: call }));
    return JSON.stringify({
      id,
      object: 'chat.completion',
      created,
      model,
      choices: [
        {
          index: 0,
          message: {
            role: 'assistant',
            content: calls.length > 0 && reader.content === '' ? null : reader.content,
            refusal: null,
            annotations: null,
            audio: null,
            function_call: null,
            ...(calls.length === 0 ? {} : { tool_calls: calls }),
            reasoning: null,
          },
          logprobs: null,
          finish_reason: this.#reason(finish),
          stop_reason: null,
          token_ids: promptTokenIds === undefined ? null : Array.from(ids),
          routed_experts: null,
          weight_versions: null,
        },
      ],
      service_tier: null,
      system_fingerprint: fingerprint,
      usage: usageOf(this.#context, false),
      prompt_logprobs: null,
      prompt_token_ids: promptTokenIds === undefined ? null : Array.from(promptTokenIds),
      prompt_text: null,
      ...wholeEnd,
    });
  }

  #delta(delta: Delta): string {
    switch (delta.kind) {
      case 'text':
        return `{"content":${JSON.stringify(delta.text)}}`;
      case 'tool':
        this.#toolIds[delta.index] = toolCallId();
        return `{"tool_calls":[{"id":"${this.#toolIds[delta.index]}","type":"function","index":${delta.index},"function":{"name":${JSON.stringify(delta.name)}}}]}`;
      case 'arguments':
        return `{"tool_calls":[{"index":${delta.index},"function":{"arguments":${JSON.stringify(delta.text)}}}]}`;
    }
  }

  #reason(finish: Finish): string {
    return finish === 'stop' && this.#context.reader.toolCalls.length > 0 ? 'tool_calls' : finish;
  }
}

function toolCallId(): string {
  return `chatcmpl-tool-${hexId()}`;
}

/** `/v1/completions`. */
export class CompletionFormat implements AnswerFormat {
  readonly #context: AnswerContext;
  readonly #head: string;
  #first = true;

  constructor(context: AnswerContext) {
    this.#context = context;
    const { id, created, model } = context;
    this.#head = `data: {"id":${JSON.stringify(id)},"object":"text_completion","created":${created},"model":${JSON.stringify(model)},"choices":[`;
  }

  begin(): string {
    return '';
  }

  token(delta: Delta | undefined, id: number, finish: Finish | undefined): string {
    const { promptTokenIds } = this.#context;
    const text = delta === undefined || delta.kind === 'tool' ? '' : delta.text;
    const ids = promptTokenIds === undefined ? 'null' : `[${id}]`;
    const prompt = promptTokenIds !== undefined && this.#first ? `[${promptTokenIds.join(',')}]` : 'null';
    this.#first = false;
    const reason = finish === undefined ? 'null' : `"${finish}"`;
    return `${this.#head}{"index":0,"text":${JSON.stringify(text)},"logprobs":null,"finish_reason":${reason},"stop_reason":null,"prompt_token_ids":${prompt},"token_ids":${ids},"weight_versions":null}]${continuous(this.#context)}${chunkEnd}`;
  }

  end(): string {
    const { id, created, model, includeUsage } = this.#context;
    if (!includeUsage) return done;
    const usage = JSON.stringify(usageOf(this.#context, true));
    return `data: {"id":${JSON.stringify(id)},"object":"text_completion","created":${created},"model":${JSON.stringify(model)},"choices":[],"usage":${usage},"system_fingerprint":"${fingerprint}"}\n\n${done}`;
  }

  whole(finish: Finish, ids: Uint32Array): string {
    const { id, created, model, reader, promptTokenIds } = this.#context;
    return JSON.stringify({
      id,
      object: 'text_completion',
      created,
      model,
      choices: [
        {
          index: 0,
          text: reader.content + reader.toolCalls.map((call) => call.arguments).join(''),
          logprobs: null,
          finish_reason: finish,
          stop_reason: null,
          token_ids: promptTokenIds === undefined ? null : Array.from(ids),
          prompt_logprobs: null,
          prompt_token_ids: promptTokenIds === undefined ? null : Array.from(promptTokenIds),
          routed_experts: null,
          weight_versions: null,
        },
      ],
      service_tier: null,
      system_fingerprint: fingerprint,
      usage: usageOf(this.#context, false),
      ...wholeEnd,
    });
  }
}

/** `/v1/messages`, Anthropic's. vLLM makes it of chat chunks, and ends it without `[DONE]`. */
export class MessagesFormat implements AnswerFormat {
  readonly #context: AnswerContext;
  #block = -1;
  #kind: 'none' | 'text' | 'tool_use' = 'none';

  constructor(context: AnswerContext) {
    this.#context = context;
  }

  begin(): string {
    const { id, model, promptTokens } = this.#context;
    return event('message_start', {
      type: 'message_start',
      message: {
        id,
        type: 'message',
        role: 'assistant',
        content: [],
        model,
        stop_reason: null,
        stop_sequence: null,
        usage: { input_tokens: promptTokens, output_tokens: 0 },
      },
    });
  }

  token(delta: Delta | undefined): string {
    if (delta === undefined) return '';
    switch (delta.kind) {
      case 'text': {
        const start = this.#kind === 'text' ? '' : this.#start('text', { type: 'text', text: '' });
        return `${start}event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":${JSON.stringify(delta.text)}},"index":${this.#block}}\n\n`;
      }
      case 'tool':
        return this.#start('tool_use', { type: 'tool_use', id: toolCallId(), name: delta.name, input: {} });
      case 'arguments':
        return `event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":${JSON.stringify(delta.text)}},"index":${this.#block}}\n\n`;
    }
  }

  end(finish: Finish): string {
    return (
      this.#stop() +
      event('message_delta', {
        type: 'message_delta',
        delta: { stop_reason: this.#reason(finish), stop_sequence: null },
        usage: this.#usage(),
      }) +
      event('message_stop', { type: 'message_stop' })
    );
  }

  whole(finish: Finish): string {
    const { id, model, reader } = this.#context;
    const content: Record<string, unknown>[] = [];
    if (reader.content !== '' || reader.toolCalls.length === 0) content.push({ type: 'text', text: reader.content });
    for (const call of reader.toolCalls)
      content.push({ type: 'tool_use', id: toolCallId(), name: call.name, input: jsonOr(call.arguments) });
    return JSON.stringify({
      id,
      type: 'message',
      role: 'assistant',
      content,
      model,
      stop_reason: this.#reason(finish),
      usage: this.#usage(),
    });
  }

  /** Tokens of the prompt are counted by what the cache did with them. */
  #usage(): Record<string, number> {
    const { promptTokens, completionTokens, cachedTokens, createdTokens, details } = this.#context;
    if (!details) return { input_tokens: promptTokens, output_tokens: completionTokens };
    const created = createdTokens ?? 0;
    return {
      input_tokens: promptTokens - cachedTokens - created,
      output_tokens: completionTokens,
      cache_creation_input_tokens: created,
      cache_read_input_tokens: cachedTokens,
    };
  }

  #start(kind: 'text' | 'tool_use', block: Record<string, unknown>): string {
    const before = this.#stop();
    this.#kind = kind;
    this.#block++;
    return (
      before + event('content_block_start', { type: 'content_block_start', content_block: block, index: this.#block })
    );
  }

  #stop(): string {
    if (this.#kind === 'none') return '';
    this.#kind = 'none';
    return event('content_block_stop', { type: 'content_block_stop', index: this.#block });
  }

  #reason(finish: Finish): string {
    if (finish === 'length') return 'max_tokens';
    return this.#context.reader.toolCalls.length > 0 ? 'tool_use' : 'end_turn';
  }
}

function jsonOr(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return {};
  }
}

function event(name: string, data: unknown): string {
  return `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
}

/** `/v1/responses`: the events of one text message, then those of each function call. */
export class ResponsesFormat implements AnswerFormat {
  readonly #context: AnswerContext;
  readonly #request: Readonly<Record<string, unknown>>;
  #number = 0;
  readonly #output: Record<string, unknown>[] = [];
  #open: 'none' | 'text' | 'call' = 'none';
  #item = '';
  #text = '';
  #status = 'completed';

  constructor(context: AnswerContext, request: Readonly<Record<string, unknown>>) {
    this.#context = context;
    this.#request = request;
  }

  begin(): string {
    const response = this.#response('in_progress', []);
    return this.#event('response.created', { response }) + this.#event('response.in_progress', { response });
  }

  token(delta: Delta | undefined): string {
    if (delta === undefined) return '';
    const at = this.#output.length;
    switch (delta.kind) {
      case 'text': {
        let before = '';
        if (this.#open !== 'text') {
          before = this.#close();
          this.#open = 'text';
          this.#item = `msg_${hexId()}`;
          this.#text = '';
          before += this.#event('response.output_item.added', {
            output_index: at,
            item: {
              id: this.#item,
              content: [],
              role: 'assistant',
              status: 'in_progress',
              type: 'message',
              phase: null,
            },
          });
          before += this.#event('response.content_part.added', {
            item_id: this.#item,
            output_index: at,
            content_index: 0,
            part: { annotations: [], text: '', type: 'output_text', logprobs: [] },
          });
        }
        this.#text += delta.text;
        return `${before}event: response.output_text.delta\ndata: {"content_index":0,"delta":${JSON.stringify(delta.text)},"item_id":"${this.#item}","logprobs":[],"output_index":${at},"sequence_number":${this.#number++},"type":"response.output_text.delta"}\n\n`;
      }
      case 'tool': {
        const before = this.#close();
        this.#open = 'call';
        this.#item = `fc_${hexId()}`;
        return (
          before +
          this.#event('response.output_item.added', {
            output_index: this.#output.length,
            item: this.#call(delta.index, 'in_progress', ''),
          })
        );
      }
      case 'arguments':
        return this.#event('response.function_call_arguments.delta', {
          item_id: this.#item,
          output_index: at,
          delta: delta.text,
        });
    }
  }

  end(finish: Finish): string {
    const status = finish === 'length' ? 'incomplete' : 'completed';
    this.#status = status;
    const before = this.#close();
    return before + this.#event(`response.${status}`, { response: this.#response(status, this.#output) });
  }

  whole(finish: Finish): string {
    const { reader } = this.#context;
    this.#status = finish === 'length' ? 'incomplete' : 'completed';
    const output: Record<string, unknown>[] = [];
    if (reader.content !== '' || reader.toolCalls.length === 0) {
      this.#item = `msg_${hexId()}`;
      this.#text = reader.content;
      output.push(this.#message());
    }
    reader.toolCalls.forEach((call, index) => {
      this.#item = `fc_${hexId()}`;
      output.push(this.#call(index, 'completed', call.arguments));
    });
    return JSON.stringify(this.#response(this.#status, output));
  }

  #close(): string {
    const at = this.#output.length;
    const { reader } = this.#context;
    if (this.#open === 'text') {
      const item = this.#message();
      const [part] = item.content as unknown[];
      this.#output.push(item);
      this.#open = 'none';
      return (
        this.#event('response.output_text.done', {
          item_id: this.#item,
          output_index: at,
          content_index: 0,
          text: this.#text,
          logprobs: [],
        }) +
        this.#event('response.content_part.done', {
          item_id: this.#item,
          output_index: at,
          content_index: 0,
          part,
        }) +
        this.#event('response.output_item.done', { output_index: at, item })
      );
    }
    if (this.#open === 'call') {
      // The reader may have begun the next call already.
      const index = this.#output.filter((item) => item.type === 'function_call').length;
      const args = reader.toolCalls[index]?.arguments ?? '';
      const item = this.#call(index, 'completed', args);
      this.#output.push(item);
      this.#open = 'none';
      return (
        this.#event('response.function_call_arguments.done', {
          item_id: this.#item,
          output_index: at,
          arguments: args,
        }) + this.#event('response.output_item.done', { output_index: at, item })
      );
    }
    return '';
  }

  #message(): Record<string, unknown> {
    return {
      id: this.#item,
      content: [{ annotations: [], text: this.#text, type: 'output_text', logprobs: null }],
      role: 'assistant',
      status: this.#status,
      type: 'message',
      phase: null,
    };
  }

  #call(index: number, status: string, args: string): Record<string, unknown> {
    const { name } = this.#context.reader.toolCalls[index] as { name: string };
    return {
      id: this.#item,
      type: 'function_call',
      status,
      call_id: `call_${this.#item.slice(3)}`,
      name,
      arguments: args,
    };
  }

  #response(status: string, output: readonly unknown[]): Record<string, unknown> {
    const { id, created, model, promptTokens, cachedTokens, createdTokens, completionTokens } = this.#context;
    const { instructions, tools, tool_choice, max_output_tokens, metadata } = this.#request;
    return {
      id,
      object: 'response',
      created_at: created,
      status,
      incomplete_details: status === 'incomplete' ? { reason: 'max_output_tokens' } : null,
      instructions: instructions ?? null,
      metadata: metadata ?? null,
      model,
      output,
      parallel_tool_calls: true,
      tool_choice: tool_choice ?? 'auto',
      tools: tools ?? [],
      max_output_tokens: max_output_tokens ?? null,
      usage:
        status === 'in_progress'
          ? null
          : {
              input_tokens: promptTokens,
              input_tokens_details: { cached_tokens: cachedTokens, cache_write_tokens: createdTokens ?? 0 },
              output_tokens: completionTokens,
              output_tokens_details: { reasoning_tokens: 0 },
              total_tokens: promptTokens + completionTokens,
            },
    };
  }

  #event(type: string, data: Record<string, unknown>): string {
    return event(type, { ...data, sequence_number: this.#number++, type });
  }
}
