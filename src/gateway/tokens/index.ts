/**
 * Makes tokens of requests, and hashes of their blocks, doing only what the requests before have not done.
 *
 *   ids              read from the body natively; hashed from the first block that differs from the last prompt that began alike
 *   chat, local      the template of the model's own folder renders the messages that are new, behind those that are known; the text is tokenised by
 *                    the folder's tokenizer, or by a worker where the folder has none: then too only what is new
 *   chat, worker     the worker's /tokenize, the whole conversation
 *   completions      a text: the local tokenizer or the worker's, the whole text
 *   others           the worker's render endpoint, the whole prompt
 *
 * Rendering only what is new is right for templates that put messages one behind the other; some rewrite earlier turns. The first time that a
 * line goes on it is done both ways and compared; where the results differ, this model's prompts are made anew each time from then on, which is
 * counted and logged. A line of which the worker counts other tokens three times in a row is left to the worker.
 *
 * Workers are asked in turn, and a second one where the first cannot say. Conversations with pictures and the like have unknown tokens.
 */
import { hash64, tokenIds, withMembers } from '../../json-outline.js';
import { PromptChain, type PromptChainOptions } from '../../prompt-chain.js';
import { chainSaltOf, type VllmWorker, type WorkerRoute } from '../../vllm/index.js';
import { SagaError } from '../../errors.js';
import type { Body } from '../body.js';
import { GatewayError } from '../errors.js';
import type { ModelPool } from '../model-pool.js';
import { Line, Lines, type Mark } from './lines.js';
import { LocalTokenizer, type ChatMessage, type TemplateArguments } from './template.js';
import type { Prompt, PromptRequest, PromptSource } from './types.js';
import { render, tokenizeChat, tokenizeText } from './worker-endpoints.js';

/** What the lines of a model may hold: 400 conversations of 128,000 tokens, or 8,192 short ones. */
const mostLines = { bytes: 256 * 2 ** 20, lines: 8192 };
const defaultMostTokens = 2 ** 20;
/** Leading ids by which prompts of ids find each other. */
const leadingIds = 256;
/** Prompts of ids with fewer, of no named workflow, get no line: 256 blocks are hashed in 10 microseconds. */
const leastLineTokens = 4096;
const mostScratchChains = 64;
/** In a row; after so many a line's prompts are the worker's to make. */
const mostMismatches = 3;
/** Messages at the beginning of a conversation that new ones are rendered behind. */
const headMessages = 2;

/** The prompt source of a model. */
export function createPromptSource(pool: ModelPool): PromptSource {
  return new Prompts(pool);
}

class Prompts implements PromptSource {
  readonly #pool: ModelPool;
  readonly #model: string;
  readonly #most: number;
  readonly #lines = new Lines(mostLines);
  readonly #local: LocalTokenizer | undefined;
  /** Templates that rewrite earlier turns switch this off. */
  #incremental = true;
  /** Of prompts made here. */
  readonly #lineOf = new WeakMap<Prompt, Line>();
  /** Whose turn it is to be asked. */
  #turn = 0;
  #room = new Uint32Array(4096);
  readonly #scratch = new Map<string, PromptChain>();

  constructor(pool: ModelPool) {
    this.#pool = pool;
    this.#model = pool.config.upstreamName ?? pool.config.name;
    this.#most = pool.config.maxPromptTokens ?? defaultMostTokens;
    this.#local = pool.config.tokenizer === undefined ? undefined : new LocalTokenizer(pool.config.tokenizer);
  }

  async prepare(request: PromptRequest): Promise<Prompt> {
    const { endpoint, body } = request;
    if (endpoint === 'ids') return this.#ofIds(request, 'token_ids');
    if (endpoint === 'completions') {
      const elements = body.outline.elements('prompt');
      if (elements?.type === 'number') return this.#ofIds(request, 'prompt');
      const text = this.#textOf(body);
      if (text === undefined) return unknown(body);
      const ids = await this.#encode(text, true, request);
      return ids === undefined ? unknown(body) : this.#anew(request, ids.tokens, ids.source);
    }
    if (endpoint === 'chat') {
      if (body.outline.elements('messages')?.listed !== true)
        throw new GatewayError('invalid_request', 'messages is needed: an array of messages', { param: 'messages' });
      if (this.#local?.renders === true) {
        const made = await this.#chat(request, this.#local);
        if (made !== undefined) return made;
      }
    }
    // What is no text has hashes of its own in the engine's blocks: placeholders would name blocks of other pictures.
    if (hasMedia(body, endpoint === 'responses' ? 'input' : 'messages')) return unknown(body);
    const tokens = await this.#byWorker(request);
    return tokens === undefined ? unknown(body) : this.#anew(request, tokens, 'worker');
  }

  counted(prompt: Prompt, reported: number): void {
    if (prompt.source === 'unknown') return;
    const differs = prompt.promptTokens !== reported;
    const line = this.#lineOf.get(prompt);
    this.#pool.mismatchedPrompts.add(differs);
    if (line !== undefined) line.mismatches = differs ? line.mismatches + 1 : 0;
    if (!differs) return;
    this.#pool.counters.promptTokenMismatches += 1;
    if (line?.mismatches === mostMismatches)
      this.#pool.log.warn(
        { model: this.#pool.name, own: prompt.promptTokens, reported },
        'the worker counts other tokens: it makes those of this conversation itself from now on',
      );
  }

  /** Tokens of what is not rendered here. */
  async #byWorker(request: PromptRequest): Promise<Uint32Array | undefined> {
    const { endpoint, body, loraName, signal } = request;
    const rendered = (path: string, route: WorkerRoute): Promise<Uint32Array | undefined> => {
      const own = { model: loraName ?? this.#model, kv_transfer_params: undefined, kv_hints: undefined };
      const bytes = Buffer.concat(withMembers(body.bytes, body.outline, own));
      return this.#ask(request, route, (worker) => render(worker, path, bytes, signal.signal));
    };
    if (endpoint === 'responses') return await rendered('/v1/responses', 'responses');
    if (endpoint === 'messages') return await rendered('/v1/messages', 'messages');
    // /tokenize does not know all that a chat can bring.
    const whole = renderedOnly.some((name) => body.member(name) !== undefined)
      ? await rendered('/v1/chat/completions', 'chatRender')
      : undefined;
    return (
      whole ??
      (await this.#ask(request, 'tokenize', (worker) => tokenizeChat(worker, this.#model, body, signal.signal)))
    );
  }

  /** Asks the ready workers in turn; a second one where the first does not know. */
  async #ask(
    request: PromptRequest,
    route: WorkerRoute,
    use: (worker: VllmWorker) => Promise<Uint32Array | undefined>,
  ): Promise<Uint32Array | undefined> {
    if (request.worker === undefined) return undefined;
    const ready = this.#pool.workers.workers.filter(
      ({ condition, features }) => condition === 'ready' && features.routes[route] !== false,
    );
    const first = this.#turn++;
    for (let i = 0; i < Math.min(2, ready.length); ++i) {
      const tokens = await use(ready[(first + i) % ready.length] as VllmWorker);
      if (tokens !== undefined) return tokens;
    }
    return undefined;
  }

  close(): void {
    this.#lines.close();
    for (const chain of this.#scratch.values()) chain.close();
    this.#scratch.clear();
  }

  /** A prompt of ids, in the body. */
  #ofIds(request: PromptRequest, name: string): Prompt {
    const { body } = request;
    const { count } = body.outline.elements(name) as { count: number };
    const member = body.member(name) as { start: number; end: number };
    if (count === 0)
      throw new GatewayError('invalid_request', `${name} must have at least one token id`, { param: name });
    this.#checkLength(count);
    const tokens = body.outline.ids(name) ?? this.#idsOf(body, member, count, name);
    // No line is of so few, and nobody's.
    if (count < leadingIds && request.workflow === undefined) return this.#scratched(request, tokens);
    // Conversations of ids begin alike for as long as they last.
    const lead = tokens.subarray(0, leadingIds);
    const name64 = hash64(new Uint8Array(lead.buffer, lead.byteOffset, lead.byteLength));
    const key = `ids ${request.workflow ?? ''} ${name64} ${this.#root(request)}`;
    const mark = this.#lines.find(key);
    // A short prompt of nobody that is known costs less to hash again than to remember.
    if (mark === undefined && count < leastLineTokens && request.workflow === undefined) {
      return this.#scratched(request, tokens);
    }
    const line = mark?.line ?? new Line(this.#newChain(request), request);
    const { hashedBlocks } = line.chain.update(tokens);
    this.#lines.mark(line, key, count);
    this.#lines.resized(line);
    return { promptTokens: count, chain: line.chain.chain, source: 'ids', tokenizedTokens: 0, hashedBlocks, line };
  }

  /** Ids that the scanner of the body has not read: too many for it, or it has read another body since, or they are none. */
  #idsOf(body: Body, member: { start: number; end: number }, count: number, name: string): Uint32Array {
    if (this.#room.length < count) this.#room = new Uint32Array(2 ** Math.ceil(Math.log2(count)));
    try {
      return this.#room.subarray(0, tokenIds(body.bytes, member.start, member.end, this.#room));
    } catch (error) {
      if (error instanceof SagaError) throw new GatewayError('invalid_request', error.message, { param: name });
      throw error;
    }
  }

  /** A prompt of ids that is not remembered. */
  #scratched(request: PromptRequest, tokens: Uint32Array): Prompt {
    const chain = this.#scratchChain(request);
    const { hashedBlocks } = chain.update(tokens);
    const hashes = chain.chain;
    return {
      promptTokens: tokens.length,
      chain: hashes,
      source: 'ids',
      tokenizedTokens: 0,
      hashedBlocks,
      line: undefined,
    };
  }

  /** A chat by the model's own template; `undefined`: it does not render these messages. */
  async #chat(request: PromptRequest, local: LocalTokenizer): Promise<Prompt | undefined> {
    const { body } = request;
    const keys = this.#keysOf(request);
    const given = argumentsOf(body);
    if (given === undefined) return undefined;
    const count = keys.length;
    const [known, mark] = this.#longest(keys);
    if (mark !== undefined && mark.line.mismatches >= mostMismatches) return undefined;
    try {
      if (mark !== undefined && this.#incremental) {
        const tail = this.#tail(body, local, given, known);
        if (tail !== undefined) {
          const tokens = await this.#encode(tail.messages + tail.prompt, false, request);
          const own = tail.prompt === '' ? tokens : await this.#encode(tail.messages, false, request);
          if (tokens === undefined || own === undefined) return undefined;
          if (mark.line.verified || (await this.#verify(request, local, given, mark, known, tokens.tokens)))
            return this.#extended(mark, keys[count - 1] as string, own.tokens.length, tokens);
        }
      }
      const messages = messagesOf(body, 0);
      if (messages === undefined) return undefined;
      if (mark !== undefined) this.#pool.counters.promptsRemade += 1;
      const text = local.render(messages, { ...given, add_generation_prompt: false });
      const whole = local.render(messages, given);
      // What asks for the answer stands behind the messages, or there is no telling them apart.
      const ask = whole.startsWith(text) ? whole.slice(text.length) : undefined;
      const tokens = await this.#encode(whole, false, request);
      if (tokens === undefined) return undefined;
      if (ask === undefined || !local.beginsApart(ask)) return this.#anew(request, tokens.tokens, tokens.source);
      const asking = ask === '' ? 0 : ((await this.#encode(ask, false, request))?.tokens.length ?? 0);
      this.#checkLength(tokens.tokens.length);
      const line = new Line(this.#newChain(request), request);
      const { hashedBlocks } = line.chain.update(tokens.tokens);
      const chain = line.chain.chain;
      const promptTokens = tokens.tokens.length;
      this.#lines.mark(line, keys[count - 1] as string, promptTokens - asking);
      this.#lines.resized(line);
      const prompt: Prompt = {
        promptTokens,
        chain,
        source: tokens.source,
        tokenizedTokens: promptTokens,
        hashedBlocks,
        line,
      };
      this.#lineOf.set(prompt, line);
      return prompt;
    } catch (error) {
      if (error instanceof GatewayError) throw error;
      request.signal.throwIfAborted();
      // A template refuses messages by throwing; the worker will say so to the client.
      return undefined;
    }
  }

  /** Goes on from a mark: in place where the line ends there, else on a line of its own. */
  #extended(
    mark: Mark,
    key: string,
    messageTokens: number,
    tail: { tokens: Uint32Array; source: 'worker' | 'local' },
  ): Prompt {
    const promptTokens = mark.tokens + tail.tokens.length;
    this.#checkLength(promptTokens);
    let { line } = mark;
    if (line.tokens === mark.tokens) {
      line.chain.truncate(mark.tokens);
    } else {
      const { verified, mismatches } = line;
      line = new Line(line.chain.fork(mark.tokens), line);
      line.verified = verified;
      line.mismatches = mismatches;
    }
    const { hashedBlocks } = line.chain.append(tail.tokens);
    const chain = line.chain.chain;
    this.#lines.mark(line, key, mark.tokens + messageTokens);
    this.#lines.resized(line);
    const prompt: Prompt = {
      promptTokens,
      chain,
      source: tail.source,
      tokenizedTokens: tail.tokens.length,
      hashedBlocks,
      line,
    };
    this.#lineOf.set(prompt, line);
    return prompt;
  }

  /** What stands behind the first `known` messages; `undefined`: it cannot be told from what is before. */
  #tail(
    body: Body,
    local: LocalTokenizer,
    given: TemplateArguments,
    known: number,
  ): { messages: string; prompt: string } | undefined {
    const head = messagesOf(body, 0, Math.min(known, headMessages));
    const fresh = messagesOf(body, known);
    if (head === undefined || fresh === undefined) return undefined;
    const without = { ...given, add_generation_prompt: false };
    const before = local.render(head, without);
    const messages = local.render([...head, ...fresh], without);
    const whole = local.render([...head, ...fresh], given);
    if (!messages.startsWith(before) || !whole.startsWith(messages)) return undefined;
    const tail = { messages: messages.slice(before.length), prompt: whole.slice(messages.length) };
    return local.beginsApart(tail.messages) && local.beginsApart(tail.prompt) ? tail : undefined;
  }

  /** Whether the line's tokens with these behind are those of the whole prompt. */
  async #verify(
    request: PromptRequest,
    local: LocalTokenizer,
    given: TemplateArguments,
    mark: Mark,
    known: number,
    tail: Uint32Array,
  ): Promise<boolean> {
    const messages = messagesOf(request.body, 0);
    const whole =
      messages === undefined ? undefined : await this.#encode(local.render(messages, given), false, request);
    if (whole === undefined) return false;
    this.#pool.counters.tokenizedTokens += whole.tokens.length;
    const had = new Uint32Array(mark.line.chain.length);
    mark.line.chain.tokensInto(had);
    const made = new Uint32Array(mark.tokens + tail.length);
    made.set(had.subarray(0, mark.tokens));
    made.set(tail, mark.tokens);
    if (Buffer.compare(Buffer.from(made.buffer), Buffer.from(whole.tokens.slice().buffer)) === 0) {
      // Behind all messages that were known, new ones are rendered as in the whole: that shows nothing yet.
      mark.line.verified = known > headMessages;
      return true;
    }
    this.#rewritten('its chat template rewrites earlier turns');
    return false;
  }

  #rewritten(why: string): void {
    if (!this.#incremental) return;
    this.#incremental = false;
    this.#pool.log.warn({ model: this.#pool.name, why }, 'whole prompts are made into tokens for every call');
  }

  /** All is new. */
  #anew(request: PromptRequest, tokens: Uint32Array, source: 'worker' | 'local'): Prompt {
    if (tokens.length === 0) return unknown(request.body);
    this.#checkLength(tokens.length);
    const chain = this.#newChain(request);
    const { hashedBlocks } = chain.update(tokens);
    const hashes = chain.chain;
    chain.close();
    const { length } = tokens;
    return { promptTokens: length, chain: hashes, source, tokenizedTokens: length, hashedBlocks, line: undefined };
  }

  async #encode(
    text: string,
    special: boolean,
    request: PromptRequest,
  ): Promise<{ tokens: Uint32Array; source: 'worker' | 'local' } | undefined> {
    if (text === '') return { tokens: new Uint32Array(), source: 'local' };
    if (this.#local?.tokenizes === true) return { tokens: this.#local.encode(text, { special }), source: 'local' };
    const tokens = await this.#ask(request, 'tokenize', (worker) =>
      tokenizeText(worker, this.#model, text, special, request.signal.signal),
    );
    return tokens === undefined ? undefined : { tokens, source: 'worker' };
  }

  #textOf(body: Body): string | undefined {
    const prompt = body.member('prompt');
    if (prompt?.type === 'string') return body.value('prompt') as string;
    const elements = body.outline.elements('prompt');
    // Several prompts in one request are several sequences; one in a list is one.
    if (elements?.type !== 'string' || elements.count !== 1) return undefined;
    const { start, end } = elements.at(0);
    return JSON.parse(body.bytes.toString('utf8', start, end)) as string;
  }

  /** For each number of messages the key of a prompt of so many. */
  #keysOf(request: PromptRequest): string[] {
    const { body } = request;
    const elements = body.outline.elements('messages') as {
      count: number;
      start(i: number): number;
      end(i: number): number;
    };
    const constant = ['tools', 'chat_template', 'chat_template_kwargs', 'reasoning_effort', 'documents']
      .map((name) => {
        const member = body.member(name);
        return member === undefined ? '' : hash64(body.bytes.subarray(member.start, member.end)).toString(36);
      })
      .join(' ');
    const keys: string[] = [];
    const state = Buffer.alloc(16);
    let key = hash64(Buffer.from(`${constant}\n${this.#root(request)}`));
    for (let i = 0; i < elements.count; ++i) {
      state.writeBigUInt64LE(key, 0);
      state.writeBigUInt64LE(hash64(body.bytes.subarray(elements.start(i), elements.end(i))), 8);
      key = hash64(state);
      keys.push(`chat ${key.toString(36)}`);
    }
    return keys;
  }

  /** The mark with the most messages, and their number. */
  #longest(keys: readonly string[]): [number, Mark | undefined] {
    for (let count = keys.length; count > 0; --count) {
      const mark = this.#lines.find(keys[count - 1] as string);
      if (mark !== undefined) return [count, mark];
    }
    return [0, undefined];
  }

  #checkLength(tokens: number): void {
    if (tokens > this.#most)
      throw new GatewayError('prompt_too_long', `the prompt has ${tokens} tokens; the most is ${this.#most}`);
  }

  #root({ cacheSalt, loraName }: PromptRequest): string {
    return cacheSalt === undefined && loraName === undefined ? '' : JSON.stringify([cacheSalt, loraName]);
  }

  /** For prompts that are not remembered: one for each way to begin a chain. */
  #scratchChain(request: PromptRequest): PromptChain {
    const root = this.#root(request);
    const known = this.#scratch.get(root);
    if (known !== undefined) return known;
    if (this.#scratch.size === mostScratchChains) {
      const [oldest, chain] = this.#scratch.entries().next().value as [string, PromptChain];
      chain.close();
      this.#scratch.delete(oldest);
    }
    const made = this.#newChain(request);
    this.#scratch.set(root, made);
    return made;
  }

  #newChain({ cacheSalt, loraName }: PromptRequest): PromptChain {
    const { hashAlgorithm: algorithm = 'saga', hashSeed = '0', hashTaggedKeys: taggedKeys = false } = this.#pool.config;
    const keys = {
      ...(cacheSalt === undefined ? {} : { cacheSalt }),
      ...(loraName === undefined ? {} : { loraName }),
    };
    const options: PromptChainOptions =
      algorithm === 'saga' ? { salt: chainSaltOf(keys) } : { algorithm, hashSeed, taggedKeys, ...keys };
    return new PromptChain({ ...options, blockTokens: this.#pool.scheduler.blockTokens, maxTokens: this.#most });
  }
}

/** Nobody knows its tokens: it is placed by load, with an estimate of its length. */
function unknown(body: Body): Prompt {
  return {
    promptTokens: Math.max(1, Math.ceil(body.bytes.length / 4)),
    chain: new BigUint64Array(),
    source: 'unknown',
    tokenizedTokens: 0,
    hashedBlocks: 0,
    line: undefined,
  };
}

/** Members of a chat that change its prompt in ways known to the server alone. */
const renderedOnly = ['documents', 'reasoning_effort', 'truncate_prompt_tokens', 'mm_processor_kwargs'] as const;

const media =
  /"type"\s*:\s*"(?:(?:input_)?(?:image|audio|video|file)|(?:image|audio|video)_(?:url|embeds|pil)|document)"/;

/** Whether a conversation has parts that are no text. */
function hasMedia(body: Body, name: string): boolean {
  const member = body.member(name);
  return member?.type === 'array' && media.test(body.bytes.toString('latin1', member.start, member.end));
}

/** Messages as a template wants them; `undefined` where one has content that is no text. */
function messagesOf(body: Body, from: number, to?: number): ChatMessage[] | undefined {
  const elements = body.outline.elements('messages');
  if (elements === undefined) return undefined;
  const messages: ChatMessage[] = [];
  for (let i = from; i < (to ?? elements.count); ++i) {
    const message = plainMessage(JSON.parse(body.bytes.toString('utf8', elements.start(i), elements.end(i))));
    if (message === undefined) return undefined;
    messages.push(message);
  }
  return messages;
}

/** As the engine hands messages to its template: text parts as one text, arguments of tool calls as an object. */
function plainMessage(given: unknown): ChatMessage | undefined {
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return undefined;
  const message = { ...(given as Record<string, unknown>) };
  const { content, tool_calls: calls } = message;
  if (Array.isArray(content)) {
    const texts = content.map((part: unknown) => {
      const { type, text } = part as { type?: unknown; text?: unknown };
      return type === 'text' && typeof text === 'string' ? text : undefined;
    });
    if (texts.includes(undefined)) return undefined;
    message['content'] = texts.join('\n');
  }
  if (Array.isArray(calls)) {
    message['tool_calls'] = calls.map((call: unknown) => {
      const { function: called, ...rest } = call as { function?: { arguments?: unknown } };
      if (typeof called?.arguments !== 'string') return call;
      try {
        return { ...rest, function: { ...called, arguments: JSON.parse(called.arguments || '{}') as unknown } };
      } catch {
        return call;
      }
    });
  }
  return message;
}

/** What else the template is given; `undefined` where the request brings a template of its own. */
function argumentsOf(body: Body): TemplateArguments | undefined {
  if (body.member('chat_template') !== undefined || body.flag('continue_final_message') === true) return undefined;
  if (renderedOnly.some((name) => body.member(name) !== undefined) || body.flag('add_special_tokens') === true)
    return undefined;
  const tools = body.value('tools');
  return {
    add_generation_prompt: body.flag('add_generation_prompt') ?? true,
    ...(Array.isArray(tools) && tools.length > 0 ? { tools } : {}),
    ...body.object('chat_template_kwargs'),
  };
}
