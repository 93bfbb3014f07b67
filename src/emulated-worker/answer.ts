/**
 * What the emulated model says: planned when a request comes, as tokens; read again token by token on the way out, as a server's
 * tool parser does.
 */
import { StringDecoder } from 'node:string_decoder';
import { encodeAnswer, type ToolCall } from './chat-template.js';
import { bytesOf, fingerprint, markers, randomWords } from './tokenizer.js';

/** An answer as a script gives it. All of it may be left out. */
export interface Answer {
  /** Text. Default: pseudo-random words, as many as {@link outputTokens} says; none where there are tool calls. */
  content?: string;
  /** Arguments as JSON text, or as a value that becomes JSON. */
  toolCalls?: { name: string; arguments?: unknown }[];
  /** At least so many tokens: pseudo-random words fill up the content. `max_tokens` cuts all the same. */
  outputTokens?: number;
  /** `length`: as if `max_tokens` had cut it here. Default `stop`. */
  stop?: 'stop' | 'length';
}

/** What a script sees of a request. */
export interface ScriptRequest {
  endpoint: 'completions' | 'chat' | 'responses' | 'messages';
  body: Readonly<Record<string, unknown>>;
  promptTokens: number;
  /** Text of the last message, or of the prompt; empty where that is a list of ids. */
  lastText: string;
}

/** What the model says to a request; `undefined`: its default answer. */
export type Script = (request: ScriptRequest) => Answer | undefined;

export interface PlannedAnswer {
  tokens: Uint32Array;
  finish: 'stop' | 'length';
}

/** Words of an answer that nothing bounds. */
const defaultWords = 64;

/**
 * The tokens of an answer, at least one.
 *
 * @param most `max_tokens`, or what the context leaves
 * @param bounded whether the client gave `max_tokens`: then the default answer has exactly so many
 */
export function planAnswer(
  answer: Answer | undefined,
  prompt: Uint32Array,
  most: number,
  bounded: boolean,
): PlannedAnswer {
  if (answer === undefined) {
    const tokens: number[] = [];
    const count = bounded ? most : Math.min(most, defaultWords);
    randomWords(fingerprint(prompt), count, tokens);
    if (bounded) return { tokens: Uint32Array.from(tokens), finish: 'length' };
    tokens[tokens.length - 1] = markers.end;
    return { tokens: Uint32Array.from(tokens), finish: 'stop' };
  }
  const calls: ToolCall[] = (answer.toolCalls ?? []).map(({ name, arguments: given }) => ({
    name,
    arguments: typeof given === 'string' ? given : JSON.stringify(given ?? {}),
  }));
  const content: number[] = [];
  encodeAnswer(answer.content ?? '', [], content);
  const rest: number[] = [];
  encodeAnswer('', calls, rest);
  if (answer.stop !== 'length') rest.push(markers.end);
  const wanted = answer.outputTokens ?? (answer.content === undefined && calls.length === 0 ? defaultWords : 0);
  const missing = Math.max(0, Math.min(wanted, most) - content.length - rest.length);
  randomWords(fingerprint(prompt), missing, content);
  const tokens = content.concat(rest);
  if (tokens.length === 0) tokens.push(markers.end);
  const cut = tokens.length > most;
  return {
    tokens: Uint32Array.from(cut ? tokens.slice(0, most) : tokens),
    finish: cut || answer.stop === 'length' ? 'length' : 'stop',
  };
}

/** An answer that is given as tokens: its end is a token of its own, where there is room for it. */
export function scriptedAnswer(script: readonly number[], most: number): PlannedAnswer {
  if (script.length >= most) return { tokens: Uint32Array.from(script.slice(0, most)), finish: 'length' };
  return { tokens: Uint32Array.from([...script, markers.end]), finish: 'stop' };
}

/** What a token brought. */
export type Delta =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'tool'; readonly index: number; readonly name: string }
  | { readonly kind: 'arguments'; readonly index: number; readonly text: string };

/** Reads an answer token by token. */
export class AnswerReader {
  content = '';
  readonly toolCalls: ToolCall[] = [];
  #decoder = new StringDecoder('utf8');
  #state: 'text' | 'name' | 'arguments' = 'text';
  #name = '';

  /** What the token adds; `undefined` for a marker, and for part of a character. */
  push(token: number): Delta | undefined {
    if (token < 16) return this.#marker(token);
    const text = this.#decoder.write(bytesOf(token));
    if (text === '') return undefined;
    switch (this.#state) {
      case 'text':
        this.content += text;
        return { kind: 'text', text };
      case 'name':
        this.#name += text;
        return undefined;
      case 'arguments': {
        const index = this.toolCalls.length - 1;
        (this.toolCalls[index] as ToolCall).arguments += text;
        return { kind: 'arguments', index, text };
      }
    }
  }

  #marker(token: number): Delta | undefined {
    switch (token) {
      case markers.toolCall:
        this.#state = 'name';
        this.#name = '';
        return undefined;
      case markers.toolArguments:
        if (this.#state !== 'name') return undefined;
        this.#state = 'arguments';
        this.toolCalls.push({ name: this.#name, arguments: '' });
        return { kind: 'tool', index: this.toolCalls.length - 1, name: this.#name };
      case markers.toolCallEnd:
        this.#state = 'text';
        return undefined;
      default:
        return undefined;
    }
  }
}
