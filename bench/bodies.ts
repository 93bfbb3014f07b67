/**
 * What a gateway does with the body of a long conversation: find where things are in it, read token ids, compare it with the one
 * before, and hash what is new of its prompt. `JSON.parse` stands beside it.
 */
import { PromptChain } from '../dist/esm/index.js';
import { JsonOutline, commonPrefix, hash64, tokenIds, withMembers } from '../dist/esm/json-outline.js';
import { measure, type Measurement } from './measure.js';

const prose = 'The agent reads the file, finds the function that is wrong, and says what it would change. ';
const code = 'if (node === undefined) {\n    return { name: "none", at: table["first"] };\n  }\n';
const cyrillic = 'Агент читает файл и находит функцию, которая неверна. ';
const chinese = '代理读取文件，找到错误的函数，并说明它会改变什么。';

/** A chat request of about a megabyte: messages of some 2,000 characters, made of `text`. */
function chatBody(text: string): Uint8Array {
  const content = text.repeat(Math.ceil(2000 / text.length));
  const size = Buffer.byteLength(JSON.stringify(content)) + 40;
  const messages = Array.from({ length: Math.ceil(1e6 / size) }, (_, i) => ({
    role: i % 2 === 0 ? 'user' : 'assistant',
    content: `${i} ${content}`,
  }));
  return Buffer.from(JSON.stringify({ model: 'm', messages, max_tokens: 1000, temperature: 0.7, stream: true }));
}

function outlines(): Measurement[] {
  const outline = new JsonOutline();
  const wanted = ['messages', 'input', 'prompt', 'tools', 'token_ids'];
  const texts = { prose, 'prose and code': prose + code, 'Cyrillic text': cyrillic, 'Chinese text': chinese };
  return Object.entries(texts).flatMap(([name, text]) => {
    const body = chatBody(text);
    const megabytes = body.length / 1e6;
    const found = outline.scan(body, wanted).elements('messages');
    const { messages } = JSON.parse(Buffer.from(body).toString()) as { messages: unknown[] };
    if (found?.count !== messages.length) throw new Error('the outline and JSON.parse differ');
    return [
      measure('bodies', `outline, chat of ${name}`, 'MB', megabytes, () => outline.scan(body, wanted), 500),
      measure(
        'bodies',
        `JSON.parse and UTF-8, chat of ${name}`,
        'MB',
        megabytes,
        () => JSON.parse(Buffer.from(body.buffer, body.byteOffset, body.length).toString()) as unknown,
        200,
      ),
    ];
  });
}

function bytes(): Measurement[] {
  const body = chatBody(prose + code);
  const same = Uint8Array.from(body);
  const megabytes = body.length / 1e6;
  const outline = new JsonOutline().scan(body);
  const scanner = new JsonOutline();
  const small = Buffer.from('{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true}');
  const wanted = ['messages'];
  return [
    measure('bodies', 'outline of 70 bytes', 'body', 1, () => scanner.scan(small, wanted)),
    measure('bodies', 'common prefix of two equal bodies', 'MB', megabytes, () => commonPrefix(body, same), 500),
    measure('bodies', 'hash of a body', 'MB', megabytes, () => hash64(body), 500),
    measure('bodies', 'two members changed (withMembers)', 'body', 1, () =>
      withMembers(body, outline, { priority: 3, stream_options: { include_usage: true } }),
    ),
  ];
}

const tokensOf = (count: number): Uint32Array => Uint32Array.from({ length: count }, (_, i) => (i * 7919) % 152_000);

function prompts(): Measurement[] {
  const ids = tokensOf(24_576);
  const body = Buffer.from(`{"prompt":[${ids.join(',')}]}`);
  const room = new Uint32Array(ids.length);
  const outline = new JsonOutline();
  const { start, end } = outline.scan(body).member('prompt') ?? { start: 0, end: 0 };
  if (tokenIds(body, start, end, room) !== ids.length || room.some((id, i) => id !== ids[i]))
    throw new Error('the token ids differ');
  // Two prompts of 100,000 tokens that differ in their last block: each update hashes one.
  const one = tokensOf(100_000);
  const other = one.slice();
  other[other.length - 1] = 1;
  const out = new BigUint64Array(6250);
  const results = [
    measure('prompts', '24,576 token ids read', 'body', 1, () => tokenIds(body, start, end, room), 2000),
    measure('prompts', 'the same body, outline', 'body', 1, () => outline.scan(body), 2000),
  ];
  for (const algorithm of ['saga', 'sha256_cbor', 'xxhash_cbor'] as const) {
    const chain = new PromptChain({ algorithm });
    chain.update(one);
    const before = chain.stats().tokensHashed;
    let at = 0;
    results.push(
      measure(
        'prompts',
        `100,000 tokens, the last block differs, ${algorithm}`,
        'update',
        1,
        () => chain.update(++at % 2 === 0 ? one : other),
        2000,
      ),
    );
    if (chain.stats().tokensHashed - before !== at * 16) throw new Error('more than one block was hashed');
    results.push(
      measure(
        'prompts',
        `100,000 tokens, nothing is common, ${algorithm}`,
        'update',
        1,
        () => {
          chain.truncate(0);
          chain.update(one);
        },
        50,
      ),
    );
  }
  const chain = new PromptChain();
  chain.update(one);
  const last = one.subarray(-16);
  results.push(
    measure('prompts', 'a block appended to 100,000 tokens, and taken away', 'append', 1, () => {
      chain.append(last);
      chain.truncate(one.length);
    }),
    measure('prompts', '6,250 hashes copied', 'chain', 1, () => chain.chainInto(out)),
    measure('prompts', 'fork of 100,000 tokens', 'fork', 1, () => chain.fork().close(), 2000),
  );
  return results;
}

export const bodies = (): Measurement[] => [...outlines(), ...bytes(), ...prompts()];
