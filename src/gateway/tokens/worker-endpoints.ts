/** Asks a worker what a request's tokens are: by `/tokenize`, or by the render endpoints of servers that have them. */
import { request as send } from 'undici';
import { JsonOutline, tokenIds } from '../../json-outline.js';
import type { VllmWorker } from '../../vllm/index.js';
import type { Body } from '../body.js';

const outline = new JsonOutline();
const waitSeconds = 30;
const mostAnswerBytes = 64 * 2 ** 20;

/** Members of a chat request that change its prompt; `/tokenize` knows them by the same names. */
const chatMembers = [
  'messages',
  'tools',
  'chat_template',
  'chat_template_kwargs',
  'add_generation_prompt',
  'continue_final_message',
  'add_special_tokens',
  'mm_processor_kwargs',
] as const;

/** Ids of a chat's prompt. `undefined`: the worker cannot say. */
export async function tokenizeChat(
  worker: VllmWorker,
  model: string,
  body: Body,
  signal: AbortSignal,
): Promise<Uint32Array | undefined> {
  const pieces: Buffer[] = [Buffer.from(`{"model":${JSON.stringify(model)}`)];
  for (const name of chatMembers) {
    const member = body.member(name);
    if (member === undefined || member.type === 'null') continue;
    pieces.push(Buffer.from(`,"${name}":`), body.bytes.subarray(member.start, member.end));
  }
  pieces.push(Buffer.from('}'));
  return await ask(worker, '/tokenize', Buffer.concat(pieces), 'tokens', signal);
}

/** Ids of a text. */
export async function tokenizeText(
  worker: VllmWorker,
  model: string,
  text: string,
  special: boolean,
  signal: AbortSignal,
): Promise<Uint32Array | undefined> {
  const body = JSON.stringify({ model, prompt: text, add_special_tokens: special });
  return await ask(worker, '/tokenize', Buffer.from(body), 'tokens', signal);
}

/** Ids of a request's prompt as the server itself makes them; `path` of the endpoint. Needs a server with `--enable-scale-out`. */
export async function render(
  worker: VllmWorker,
  path: string,
  bytes: Buffer,
  signal: AbortSignal,
): Promise<Uint32Array | undefined> {
  return await ask(worker, `${path}/render`, bytes, 'token_ids', signal);
}

async function ask(
  worker: VllmWorker,
  path: string,
  body: Buffer,
  member: string,
  signal: AbortSignal,
): Promise<Uint32Array | undefined> {
  let answer: Buffer;
  try {
    const response = await send(worker.origin + worker.path + path, {
      method: 'POST',
      headers: { ...worker.headers, 'content-type': 'application/json' },
      body,
      signal,
      headersTimeout: waitSeconds * 1000,
      bodyTimeout: waitSeconds * 1000,
    });
    if (response.statusCode !== 200) {
      await response.body.dump();
      return undefined;
    }
    const chunks: Buffer[] = [];
    let bytes = 0;
    for await (const chunk of response.body as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      if (bytes > mostAnswerBytes) return undefined;
      chunks.push(chunk);
    }
    answer = Buffer.concat(chunks, bytes);
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof Error) return undefined;
    throw error;
  }
  try {
    const found = outline.scan(answer, []);
    const elements = found.elements(member);
    const range = found.member(member);
    if (elements === undefined || range === undefined) return undefined;
    const ids = new Uint32Array(elements.count);
    return ids.subarray(0, tokenIds(answer, range.start, range.end, ids));
  } catch {
    return undefined;
  }
}
