/**
 * Reads an answer while it passes: why it ended, which tools it calls, what it used, its id.
 *
 * Of a stream nearly every event is forwarded as it came, after a search for a few words; only events with one of them are parsed.
 * Where the gateway asked for usage and the client did not, the event that brings it is taken out. An event that a chunk cuts in two
 * is then held until its rest is there; otherwise nothing is ever held back.
 *
 * Whatever a worker sends, the answer passes: what cannot be read is counted as not known.
 */
export type Endpoint = 'chat' | 'completions' | 'responses' | 'messages';

/** What a scheduler wants to know of an answer. */
export interface AnswerFacts {
  /** `tool-use` and `end-turn` as the scheduler's; undefined where it was cut off or nobody said. */
  stop: 'tool-use' | 'end-turn' | undefined;
  /** Names of the tools called, in order, at most 16. */
  tools: string[];
  outputTokens: number | undefined;
  promptTokens: number | undefined;
  cachedTokens: number | undefined;
  /** Of the answer; `/v1/responses` can be continued by it. */
  id: string | undefined;
  /** Events that could not be read. */
  unread: number;
}

const newline = 0x0a;
const carriageReturn = 0x0d;
const space = 0x20;
const nothing: Buffer = Buffer.alloc(0);
const mostTools = 16;
/** Of an event, or of an answer that is no stream. What is longer passes unread. */
const mostReadBytes = 8 * 2 ** 20;

/** Words of events that say something. One expression over the bytes as characters: a search of the bytes for each word costs four times as much. */
const words: Readonly<Record<Endpoint, RegExp>> = {
  chat: /"(?:finish_reason": ?"|usage": ?\{|name")/g,
  completions: /"(?:finish_reason": ?"|usage": ?\{)/g,
  responses: /response\.(?:created|completed|incomplete|output_item\.added)/g,
  messages: /message_start|message_delta|content_block_start/g,
};

/** Reads one answer; `streamed` is known when its head is there. */
export class AnswerReader {
  readonly facts: AnswerFacts = {
    stop: undefined,
    tools: [],
    outputTokens: undefined,
    promptTokens: undefined,
    cachedTokens: undefined,
    id: undefined,
    unread: 0,
  };
  readonly #endpoint: Endpoint;
  readonly #words: RegExp;
  readonly #streamed: boolean;
  readonly #dropUsage: boolean;
  /** Of a stream: the event that is not complete; else all there is. */
  #held = nothing;
  #heldBytes = 0;
  /** Too large to be read: the rest passes. */
  #blind = false;

  /** `dropUsage`: the event that only brings usage was asked for by the gateway alone. */
  constructor(endpoint: Endpoint, options: { streamed: boolean; dropUsage: boolean }) {
    this.#endpoint = endpoint;
    this.#words = words[endpoint];
    this.#streamed = options.streamed;
    this.#dropUsage = options.dropUsage && options.streamed;
  }

  /** What is to be forwarded for a chunk: the chunk itself, less, or nothing yet. */
  push(chunk: Buffer): Buffer | undefined {
    if (this.#blind) return chunk;
    if (!this.#streamed) {
      this.#hold(chunk);
      return chunk;
    }
    const end = this.#endOfEvents(chunk);
    if (this.#heldBytes === 0 && end === chunk.length) {
      // Whole events, as nearly always.
      return this.#events(chunk);
    }
    let passed: Buffer | undefined;
    if (end > 0) {
      const whole = this.#heldBytes === 0 ? chunk.subarray(0, end) : this.#join(chunk.subarray(0, end));
      passed = this.#events(whole);
    }
    if (end < chunk.length) this.#hold(chunk.subarray(end));
    if (!this.#dropUsage) return chunk;
    if (!this.#blind) return passed;
    // It will not be read: what was held back for that goes first.
    const rest = this.#join(nothing);
    return passed === undefined ? rest : Buffer.concat([passed, rest]);
  }

  /** The answer is complete: what was held back, if there is any. */
  end(): Buffer | undefined {
    if (this.#blind || this.#heldBytes === 0) return undefined;
    const rest = this.#join(nothing);
    if (!this.#streamed) {
      this.#read(rest.toString('utf8'));
      return undefined;
    }
    const passed = this.#events(rest);
    return this.#dropUsage ? passed : undefined;
  }

  #hold(chunk: Buffer): void {
    const bytes = this.#heldBytes + chunk.length;
    if (bytes > this.#held.length) {
      // Twice as much each time: an answer may come in the smallest of pieces.
      const room = Buffer.allocUnsafe(Math.max(bytes, 2 * this.#held.length));
      this.#held.copy(room, 0, 0, this.#heldBytes);
      this.#held = room;
    }
    chunk.copy(this.#held, this.#heldBytes);
    this.#heldBytes = bytes;
    if (bytes <= mostReadBytes) return;
    this.#blind = true;
    this.facts.unread += 1;
    if (!this.#dropUsage) this.#join(nothing);
  }

  /** What is held with `chunk` behind it; nothing is held then. */
  #join(chunk: Buffer): Buffer {
    const held = this.#held.subarray(0, this.#heldBytes);
    this.#held = nothing;
    this.#heldBytes = 0;
    return chunk.length === 0 ? held : Buffer.concat([held, chunk]);
  }

  /** Where the last whole event of a chunk ends: behind its empty line; 0 if none ends here. */
  #endOfEvents(chunk: Buffer): number {
    const { length } = chunk;
    if (length >= 2 && chunk[length - 1] === newline && chunk[length - 2] === newline) return length;
    for (let at = chunk.lastIndexOf(newline); at >= 0; at = at === 0 ? -1 : chunk.lastIndexOf(newline, at - 1)) {
      // The line before may have come with the chunk before.
      let before = at - 1;
      if (this.#byte(chunk, before) === carriageReturn) before -= 1;
      if (this.#byte(chunk, before) === newline) return at + 1;
    }
    return 0;
  }

  /** Of a chunk or, where `at` is negative, of what is held before it. */
  #byte(chunk: Buffer, at: number): number | undefined {
    return at >= 0 ? chunk[at] : this.#heldBytes + at >= 0 ? this.#held[this.#heldBytes + at] : undefined;
  }

  /** Reads those of some whole events that say something; returns them without those to be taken out. */
  #events(whole: Buffer): Buffer | undefined {
    // A character for each byte: places in one are places in the other.
    const text = whole.toString('latin1');
    const words = this.#words;
    let kept: Buffer[] | undefined;
    let from = 0;
    words.lastIndex = 0;
    while (words.test(text)) {
      const within = words.lastIndex - 1;
      const start = startOfEvent(text, within);
      const end = endOfEvent(text, within);
      if (this.#read(dataOf(whole, text, start, end)) && this.#dropUsage) {
        kept ??= [];
        if (start > from) kept.push(whole.subarray(from, start));
        from = end;
      }
      words.lastIndex = end;
    }
    if (kept === undefined) return whole;
    if (from < whole.length) kept.push(whole.subarray(from));
    return kept.length < 2 ? kept[0] : Buffer.concat(kept);
  }

  /** Whether the event brings usage and nothing else. */
  #read(json: string): boolean {
    if (!json.startsWith('{')) return false;
    try {
      return this.#facts(JSON.parse(json) as Json);
    } catch {
      this.facts.unread += 1;
      return false;
    }
  }

  #facts(value: Json): boolean {
    switch (this.#endpoint) {
      case 'chat':
      case 'completions':
        return this.#ofChoices(value);
      case 'responses':
        return this.#ofResponse(value);
      case 'messages':
        return this.#ofMessage(value);
    }
  }

  #ofChoices(value: Json): boolean {
    const { facts } = this;
    facts.id ??= text(value['id']);
    const usage = record(value['usage']);
    if (usage !== undefined) {
      facts.outputTokens = count(usage['completion_tokens']) ?? facts.outputTokens;
      facts.promptTokens = count(usage['prompt_tokens']) ?? facts.promptTokens;
      facts.cachedTokens = count(record(usage['prompt_tokens_details'])?.['cached_tokens']) ?? facts.cachedTokens;
    }
    const choices = list(value['choices']);
    for (const choice of choices.map(record)) {
      const calls = record(choice?.['delta'] ?? choice?.['message'])?.['tool_calls'];
      for (const call of list(calls)) this.#tool(record(record(call)?.['function'])?.['name']);
      const reason = text(choice?.['finish_reason']);
      if (reason !== undefined) this.#stopped(reason);
    }
    return usage !== undefined && choices.length === 0;
  }

  #ofResponse(value: Json): boolean {
    const { facts } = this;
    const type = text(value['type']);
    if (type === 'response.output_item.added') {
      const item = record(value['item']);
      if (item?.['type'] === 'function_call') this.#tool(item['name']);
      return false;
    }
    // An event holds the response; an answer that is no stream is it.
    const streamed = record(value['response']);
    const response = streamed ?? value;
    facts.id ??= text(response['id']);
    const usage = record(response['usage']);
    facts.outputTokens = count(usage?.['output_tokens']) ?? facts.outputTokens;
    facts.promptTokens = count(usage?.['input_tokens']) ?? facts.promptTokens;
    facts.cachedTokens = count(record(usage?.['input_tokens_details'])?.['cached_tokens']) ?? facts.cachedTokens;
    if (streamed === undefined) {
      for (const item of list(value['output']).map(record))
        if (item?.['type'] === 'function_call') this.#tool(item['name']);
    }
    if (response['status'] === 'completed') this.#stopped(facts.tools.length > 0 ? 'tool_calls' : 'stop');
    return false;
  }

  #ofMessage(value: Json): boolean {
    const { facts } = this;
    const block = record(value['content_block']);
    if (block?.['type'] === 'tool_use') this.#tool(block['name']);
    const message = record(value['message']) ?? value;
    facts.id ??= text(message['id']);
    for (const item of list(message['content']).map(record))
      if (item?.['type'] === 'tool_use') this.#tool(item['name']);
    const usage = record(value['usage']) ?? record(message['usage']);
    facts.outputTokens = count(usage?.['output_tokens']) ?? facts.outputTokens;
    facts.cachedTokens = count(usage?.['cache_read_input_tokens']) ?? facts.cachedTokens;
    const read = count(usage?.['input_tokens']);
    if (read !== undefined) facts.promptTokens = read + (facts.cachedTokens ?? 0);
    const reason = text(record(value['delta'])?.['stop_reason']) ?? text(message['stop_reason']);
    if (reason !== undefined) this.#stopped(reason);
    return false;
  }

  #tool(name: unknown): void {
    const { tools } = this.facts;
    if (typeof name === 'string' && name !== '' && tools.length < mostTools) tools.push(name.slice(0, 256));
  }

  #stopped(reason: string): void {
    if (reason === 'tool_calls' || reason === 'tool_use' || reason === 'function_call') this.facts.stop = 'tool-use';
    // Some templates end a turn that calls tools with `stop`.
    else if (reason === 'stop' || reason === 'end_turn' || reason === 'stop_sequence')
      this.facts.stop = this.facts.tools.length > 0 ? 'tool-use' : 'end-turn';
  }
}

type Json = Record<string, unknown>;

function record(value: unknown): Json | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : undefined;
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? (value as unknown[]) : [];
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

function count(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : undefined;
}

/** Whether the line that ends with the newline at `at` is empty. */
function isBlank(text: string, at: number): boolean {
  const before = text.charCodeAt(at - 1) === carriageReturn ? at - 2 : at - 1;
  return before >= 0 && text.charCodeAt(before) === newline;
}

/** Where the event begins that has the byte `within`, which is none of an empty line. */
function startOfEvent(text: string, within: number): number {
  for (let at = text.lastIndexOf('\n', within); at > 0; at = text.lastIndexOf('\n', at - 1))
    if (isBlank(text, at)) return at + 1;
  return 0;
}

/** Where it ends: behind its empty line. */
function endOfEvent(text: string, within: number): number {
  for (let at = text.indexOf('\n', within); at >= 0; at = text.indexOf('\n', at + 1))
    if (isBlank(text, at)) return at + 1;
  return text.length;
}

/** The data of an event: what its `data:` lines hold, as a rule one. */
function dataOf(whole: Buffer, text: string, start: number, end: number): string {
  let data = '';
  for (let from = start; from < end;) {
    const at = text.indexOf('\n', from);
    const next = at < 0 || at >= end ? end : at + 1;
    if (text.startsWith('data:', from)) {
      const begin = text.charCodeAt(from + 5) === space ? from + 6 : from + 5;
      let stop = at < 0 ? end : next - 1;
      if (text.charCodeAt(stop - 1) === carriageReturn) stop -= 1;
      if (stop > begin) data += whole.toString('utf8', begin, stop);
    }
    from = next;
  }
  return data;
}
