/** The emulated worker over HTTP and ZeroMQ. */
import { createHmac } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { decode as unpack } from '@msgpack/msgpack';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Dealer, Subscriber } from 'zeromq';
import { EmulatedWorker, type EmulatedWorkerOptions } from '../../src/emulated-worker/index.js';
import { range } from './helpers.js';

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0)) await one.close();
});

async function start(options: EmulatedWorkerOptions = {}): Promise<EmulatedWorker> {
  const worker = await EmulatedWorker.start({ timeScale: Infinity, blocks: 1000, ...options });
  open.push(worker);
  return worker;
}

async function post(
  worker: EmulatedWorker,
  path: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; text: string; json: () => Answer; headers: Headers }> {
  const response = await fetch(worker.url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
  const text = await response.text();
  return { status: response.status, text, json: () => JSON.parse(text) as Answer, headers: response.headers };
}

/** What stands in a stream, without what differs from run to run. */
function plain(text: string): string {
  return text
    .replace(/chatcmpl-tool-[0-9a-f]{16}/g, 'chatcmpl-tool-ID')
    .replace(/"created":\d+/g, '"created":0')
    .replace(/"created_at":\d+/g, '"created_at":0')
    .replace(/(msg|fc|call)_[0-9a-f]{16}/g, '$1_ID');
}

/** Members of answers that the tests look at, of all routes. */
interface Answer {
  choices: {
    finish_reason: string;
    message: { content: string; tool_calls: { function: object }[] };
    token_ids: number[];
  }[];
  usage: { completion_tokens: number; prompt_tokens_details: { cached_tokens: number } };
  prompt_token_ids: number[];
  token_ids: number[];
  tokens: number[];
  content: { input: object }[];
  stop_reason: string;
  output: { content: { text: string }[] }[];
  error: object;
  data: object[];
}

/** An event of `/v1/responses`. */
interface ResponseEvent {
  type: string;
  sequence_number: number;
  response: Answer;
}

interface Event {
  type: string;
  block_hashes: bigint[];
  session_id?: string;
}

interface Batch {
  topic: string;
  sequence: number;
  payload: Buffer;
}

/** A subscriber, and the batches it has received. */
async function subscribe(
  worker: EmulatedWorker,
): Promise<{ batches: Batch[]; until: (count: number) => Promise<void> }> {
  const socket = new Subscriber({ linger: 0 });
  open.push(socket);
  socket.connect(worker.events!);
  socket.subscribe();
  const batches: Batch[] = [];
  void (async () => {
    try {
      for await (const [topic, sequence, payload] of socket)
        batches.push({ topic: topic!.toString(), sequence: Number(sequence!.readBigUInt64BE()), payload: payload! });
    } catch {
      // closed
    }
  })();
  await delay(100); // A subscription takes effect some time after connecting.
  return {
    batches,
    until: async (count) => {
      for (let tries = 0; batches.length < count && tries < 300; tries++) await delay(10);
      expect(batches.length).toBe(count);
    },
  };
}

async function replay(worker: EmulatedWorker, from: number): Promise<Batch[]> {
  const socket = new Dealer({ linger: 0, receiveTimeout: 3000 });
  socket.connect(worker.replay!);
  const start = Buffer.alloc(8);
  start.writeBigUInt64BE(BigInt(from));
  await socket.send([Buffer.alloc(0), start]);
  const batches: Batch[] = [];
  for (;;) {
    const [delimiter, topic, sequence, payload] = await socket.receive();
    expect(delimiter!.length).toBe(0);
    if (sequence!.readBigUInt64BE() === 2n ** 64n - 1n) {
      expect([topic!.length, payload!.length]).toEqual([0, 0]);
      break;
    }
    batches.push({ topic: topic!.toString(), sequence: Number(sequence!.readBigUInt64BE()), payload: payload! });
  }
  socket.close();
  return batches;
}

const head = '{"id":"chatcmpl-r1","object":"chat.completion.chunk","created":0,"model":"emulated","choices":[';
const chunk = (delta: string, rest = '"finish_reason":null', last = ''): string =>
  `data: ${head}{"index":0,"delta":${delta},"logprobs":null,${rest},"token_ids":null${last}}],"kv_transfer_params":null}\n\n`;

describe('streams', () => {
  const tools = [{ type: 'function', function: { name: 'ls', parameters: {} } }];
  const script = (): { content: string; toolCalls: { name: string; arguments: unknown }[] } => ({
    content: 'Hé!',
    toolCalls: [{ name: 'ls', arguments: { p: '/"' } }],
  });

  it('a chat with a tool call, chunk by chunk', async () => {
    const worker = await start({ script });
    const body = {
      model: 'emulated',
      messages: [{ role: 'user', content: 'hi' }],
      tools,
      stream: true,
      stream_options: { include_usage: true },
    };
    const answer = await post(worker, '/v1/chat/completions', body, { 'X-Request-Id': 'r1' });
    expect(answer.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    expect(answer.headers.get('x-request-id')).toBe('r1');
    const prompt = 1 + 1 + 1 + Math.ceil(JSON.stringify(tools).length / 3) + 1 + 1 + 1 + 1 + 1;
    expect(plain(answer.text)).toBe(
      `data: ${head}{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}\n\n` +
        chunk('{"content":"Hé"}') +
        chunk('{"content":"!"}') +
        chunk('{"tool_calls":[{"id":"chatcmpl-tool-ID","type":"function","index":0,"function":{"name":"ls"}}]}') +
        chunk('{"tool_calls":[{"index":0,"function":{"arguments":"{\\"p"}}]}') +
        chunk('{"tool_calls":[{"index":0,"function":{"arguments":"\\":\\""}}]}') +
        chunk('{"tool_calls":[{"index":0,"function":{"arguments":"/\\\\\\""}}]}') +
        chunk('{"tool_calls":[{"index":0,"function":{"arguments":"\\"}"}}]}') +
        chunk('{}', '"finish_reason":"tool_calls","stop_reason":null', ',"weight_versions":null') +
        `data: ${head.replace('"choices":[', '"choices":[]')},"usage":{"prompt_tokens":${prompt},"total_tokens":${prompt + 11},"completion_tokens":11,"prompt_tokens_details":{"cached_tokens":0,"created_cache_tokens":${prompt - (prompt % 16)}}},"system_fingerprint":"vllm-0.33.0-emulated"}\n\n` +
        'data: [DONE]\n\n',
    );
  });

  it('the same as one object, and its tokens are those of the next prompt', async () => {
    const worker = await start({ script });
    const messages = [{ role: 'user', content: 'hi' }] as object[];
    const first = await post(worker, '/v1/chat/completions', { messages, tools, return_token_ids: true });
    const { choices, usage, prompt_token_ids: prompt } = first.json();
    expect(choices[0]!.finish_reason).toBe('tool_calls');
    expect(choices[0]!.message.content).toBe('Hé!');
    expect(choices[0]!.message.tool_calls[0]!.function).toEqual({ name: 'ls', arguments: '{"p":"/\\""}' });
    expect(usage.completion_tokens).toBe(choices[0]!.token_ids.length);
    const next = await post(worker, '/v1/chat/completions/render', {
      messages: [...messages, choices[0]!.message, { role: 'tool', content: 'a b', tool_call_id: 'x' }],
      tools,
    });
    const tokens = next.json().token_ids;
    expect(tokens.slice(0, prompt.length + choices[0]!.token_ids.length)).toEqual([
      ...prompt,
      ...choices[0]!.token_ids,
    ]);
    const tokenized = await post(worker, '/tokenize', { messages, tools });
    expect(tokenized.json().tokens).toEqual(prompt);
  });

  it('a completion of ids', async () => {
    const worker = await start();
    const answer = await post(
      worker,
      '/v1/completions',
      {
        prompt: [[5, 6, 7]],
        max_tokens: 1,
        stream: true,
        return_token_ids: true,
        vllm_xargs: { saga_answer: '{"content":"ab"}' },
      },
      { 'X-Request-Id': 'r2' },
    );
    expect(plain(answer.text)).toBe(
      'data: {"id":"cmpl-r2","object":"text_completion","created":0,"model":"emulated","choices":[{"index":0,"text":"ab","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":[5,6,7],"token_ids":[25202],"weight_versions":null}],"kv_transfer_params":null}\n\ndata: [DONE]\n\n',
    );
  });

  it('messages as Anthropic has them', async () => {
    const worker = await start({ script });
    const body = { max_tokens: 50, messages: [{ role: 'user', content: 'hi' }], stream: true };
    const answer = await post(worker, '/v1/messages', body, { 'X-Request-Id': 'r1' });
    const events = plain(answer.text)
      .split('\n\n')
      .filter((text) => text !== '');
    expect(events).toEqual([
      'event: message_start\ndata: {"type":"message_start","message":{"id":"chatcmpl-r1","type":"message","role":"assistant","content":[],"model":"emulated","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":0}}}',
      'event: content_block_start\ndata: {"type":"content_block_start","content_block":{"type":"text","text":""},"index":0}',
      'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"Hé"},"index":0}',
      'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"!"},"index":0}',
      'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}',
      'event: content_block_start\ndata: {"type":"content_block_start","content_block":{"type":"tool_use","id":"chatcmpl-tool-ID","name":"ls","input":{}},"index":1}',
      'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{\\"p"},"index":1}',
      'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"\\":\\""},"index":1}',
      'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"/\\\\\\""},"index":1}',
      'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"\\"}"},"index":1}',
      'event: content_block_stop\ndata: {"type":"content_block_stop","index":1}',
      'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":5,"output_tokens":11,"cache_creation_input_tokens":0,"cache_read_input_tokens":0}}',
      'event: message_stop\ndata: {"type":"message_stop"}',
    ]);
    const whole = (await post(worker, '/v1/messages', { ...body, stream: false })).json();
    expect(whole.content[1]!.input).toEqual({ p: '/"' });
    expect(whole.stop_reason).toBe('tool_use');
  });

  it('responses, in the order of their events', async () => {
    const worker = await start({ script });
    const answer = await post(worker, '/v1/responses', { input: 'hi', stream: true });
    const events = answer.text
      .split('\n\n')
      .filter((text) => text !== '')
      .map((text) => JSON.parse(text.split('\ndata: ')[1]!) as ResponseEvent);
    expect(events.map((event) => event.type.replace('response.', ''))).toEqual([
      'created',
      'in_progress',
      'output_item.added',
      'content_part.added',
      'output_text.delta',
      'output_text.delta',
      'output_text.done',
      'content_part.done',
      'output_item.done',
      'output_item.added',
      'function_call_arguments.delta',
      'function_call_arguments.delta',
      'function_call_arguments.delta',
      'function_call_arguments.delta',
      'function_call_arguments.done',
      'output_item.done',
      'completed',
    ]);
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, i) => i));
    const { response } = events.at(-1)!;
    expect(response.output[0]!.content[0]!.text).toBe('Hé!');
    expect(response.output[1]).toMatchObject({ type: 'function_call', name: 'ls', arguments: '{"p":"/\\""}' });
    expect(response.usage).toMatchObject({ input_tokens: 5, output_tokens: 11 });
    const whole = (await post(worker, '/v1/responses', { input: 'hi' })).json();
    expect(plain(JSON.stringify(whole.output))).toBe(plain(JSON.stringify(response.output)));
  });
});

describe('refusals', () => {
  const cases: [string, string, unknown, number, string, string | null][] = [
    ['malformed JSON', '/v1/chat/completions', '{"messages":', 400, 'Bad Request', 'body'],
    ['no object', '/v1/completions', '[1]', 400, 'Bad Request', 'body'],
    ['no messages', '/v1/chat/completions', {}, 400, 'Bad Request', 'body.messages'],
    ['an empty conversation', '/v1/chat/completions', { messages: [] }, 400, 'BadRequestError', null],
    ['messages of a wrong type', '/v1/chat/completions', { messages: 'hi' }, 400, 'Bad Request', 'body.messages'],
    [
      'messages of a wrong type',
      '/v1/messages',
      { messages: 'hi', max_tokens: 1 },
      400,
      'Bad Request',
      'body.messages',
    ],
    ['a role', '/v1/chat/completions', { messages: [{ role: 'x' }] }, 400, 'Bad Request', 'body.messages.0.role'],
    ['unknown model', '/v1/completions', { model: 'x', prompt: 'a' }, 404, 'NotFoundError', 'model'],
    ['too long a prompt', '/v1/completions', { prompt: Array(65).fill(1) }, 400, 'BadRequestError', 'input_tokens'],
    ['no room for an answer', '/v1/completions', { prompt: Array(64).fill(1) }, 400, 'BadRequestError', 'max_tokens'],
    ['too long an answer', '/v1/completions', { prompt: 'a', max_tokens: 65 }, 400, 'BadRequestError', 'max_tokens'],
    ['token ids that are none', '/v1/completions', { prompt: [1, 'a'] }, 400, 'Bad Request', 'body.prompt'],
    ['n', '/v1/completions', { prompt: 'a', n: 2 }, 400, 'BadRequestError', 'n'],
    ['max_tokens, a text', '/v1/completions', { prompt: 'a', max_tokens: 'b' }, 400, 'Bad Request', 'body.max_tokens'],
    ['no max_tokens', '/v1/completions', { prompt: 'a', max_tokens: 0 }, 400, 'BadRequestError', 'max_tokens'],
    ['an empty salt', '/v1/completions', { prompt: 'a', cache_salt: '' }, 400, 'BadRequestError', 'cache_salt'],
    ['an empty prompt', '/v1/completions', { prompt: '' }, 400, 'BadRequestError', 'prompt'],
    [
      'a script that is none',
      '/v1/completions',
      { prompt: 'a', vllm_xargs: { saga_answer: '{' } },
      400,
      'Bad Request',
      'vllm_xargs',
    ],
    ['too long a body', '/v1/completions', { prompt: 'a'.repeat(3000) }, 413, 'Request Entity Too Large', null],
  ];
  it.each(cases)('%s', async (_, path, body, status, type, param) => {
    const worker = await start({ maxModelTokens: 64, maxBodyBytes: 2000 });
    const answer = await post(worker, path, body);
    expect(answer.status).toBe(status);
    const { error } = answer.json();
    expect(Object.keys(error)).toEqual(['message', 'type', 'param', 'code']);
    expect(error).toMatchObject({ type, param, code: status });
    expect(worker.engines[0]!.openCalls).toBe(0);
  });
});

describe('refusals of other shapes', () => {
  it('of routes', async () => {
    const worker = await start();
    for (const path of ['/v1/nothing', '/toString']) {
      const answer = await post(worker, path, {});
      expect([answer.status, answer.text]).toEqual([404, '{"detail":"Not Found"}']);
    }
    const answer = await fetch(`${worker.url}/v1/completions`);
    expect([answer.status, await answer.text()]).toEqual([405, '{"detail":"Method Not Allowed"}']);
    const typed = await post(worker, '/v1/completions', '{}', { 'content-type': 'text/plain' });
    expect(typed.status).toBe(400);
  });

  it("of Anthropic's routes", async () => {
    const worker = await start({ model: 'm' });
    const answer = await post(worker, '/v1/messages', { model: 'x', messages: [], max_tokens: 2 });
    expect([answer.status, answer.text]).toEqual([
      404,
      '{"type":"error","error":{"type":"not_found_error","message":"The model `x` does not exist. Valid aliases: m."}}',
    ]);
  });

  it('an answer ends where the context does', async () => {
    const worker = await start({ maxModelTokens: 64 });
    const answer = await post(worker, '/v1/completions', { prompt: Array(60).fill(1) });
    expect(answer.json().usage.completion_tokens).toBe(4);
  });
});

describe('events', () => {
  const path = process.env.SAGA_VLLM_CAPTURES ?? new URL('../../../shared/vllm/', import.meta.url).pathname;
  const file = `${path}/vllm-0.33.0-server-capture.log`;

  it('are those of vLLM 0.33.0 for the same requests', async () => {
    const worker = await start({
      blocks: 1100,
      maxModelTokens: 256,
      eventsPort: 0,
      topic: 'kv',
      model: 'tiny',
      taggedKeys: true,
    });
    const subscriber = await subscribe(worker);
    const prompt = [...range(10, 36)];
    const complete = async (more: object): Promise<number> => {
      const answer = await post(worker, '/v1/completions', { prompt, max_tokens: 2, ...more });
      return answer.json().usage.prompt_tokens_details.cached_tokens;
    };
    expect(await complete({})).toBe(0);
    expect(await complete({})).toBe(32);
    expect(await complete({ cache_salt: 'tenant-a' })).toBe(0);
    expect(await complete({ prompt: [...range(110, 36)], session_id: 'wf-1' })).toBe(0);
    expect(await complete({ prompt: [...range(1000, 81)] })).toBe(0);
    expect((await post(worker, '/reset_prefix_cache', '')).json()).toEqual({ success: true });
    expect(await complete({})).toBe(0);
    await subscriber.until(5);
    const { batches } = subscriber;
    expect(batches.map((batch) => [batch.topic, batch.sequence])).toEqual([0, 1, 2, 3, 4].map((n) => ['kv', n]));
    const events = batches.map(({ payload }) => (unpack(payload, { useBigInt64: true }) as [number, Event[]])[1]);
    expect(events.map((batch) => batch.map((event) => event.type))).toEqual([
      ['BlockStored'],
      ['BlockStored'],
      ['BlockStored'],
      ['BlockStored'],
      ['AllBlocksCleared', 'BlockStored'],
    ]);
    expect(events.map((batch) => batch.at(-1)!.block_hashes[0])).toEqual([
      3636722646677031407n,
      16014397371320633522n,
      18384901124652134645n,
      17507053300047258101n,
      3636722646677031407n,
    ]);
    expect(events[2]![0]!.session_id).toBe('wf-1');
    if (!existsSync(file)) return;
    // Decoded: 0.33.0 writes the heads of these maps two bytes longer than it need.
    const read = (payload: Uint8Array): unknown[] => (unpack(payload, { useBigInt64: true }) as unknown[]).slice(1);
    const theirs = [...readFileSync(file, 'utf8').matchAll(/^ {3}hex ([0-9a-f]+)$/gm)].map((found) =>
      read(Buffer.from(found[1]!, 'hex')),
    );
    const ours = batches.map(({ payload }) => read(payload));
    expect(ours).toEqual(theirs);
  });

  it('can be replayed after a gap', async () => {
    const worker = await start({ eventsPort: 0, topic: 'kv' });
    const subscriber = await subscribe(worker);
    const complete = (first: number): Promise<unknown> =>
      post(worker, '/v1/completions', { prompt: [...range(first, 20)], max_tokens: 1 });
    await complete(100);
    worker.dropEvents(2);
    for (const first of [200, 300, 400]) await complete(first);
    await subscriber.until(2);
    expect(subscriber.batches.map((batch) => batch.sequence)).toEqual([0, 3]);
    const all = await replay(worker, 0);
    expect(all.map((batch) => batch.sequence)).toEqual([0, 1, 2, 3]);
    expect(all[3]!.payload.equals(subscriber.batches[1]!.payload)).toBe(true);
    expect((await replay(worker, 2)).map((batch) => batch.sequence)).toEqual([2, 3]);
    worker.pauseEvents();
    await complete(500);
    await delay(50);
    expect(subscriber.batches.length).toBe(2);
    worker.resumeEvents();
    await subscriber.until(3);
  });

  it('begin anew after a restart', async () => {
    const worker = await start({ eventsPort: 0, timeScale: 10 });
    const subscriber = await subscribe(worker);
    const body = { prompt: [...range(1, 20)], max_tokens: 1 };
    await post(worker, '/v1/completions', body);
    await subscriber.until(1);
    const slow = fetch(`${worker.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...body, max_tokens: 10_000, stream: true }),
    }).then((response) => response.text());
    slow.catch(() => undefined);
    await expect.poll(() => worker.engines[0]!.openCalls).toBe(1);
    worker.restart();
    await expect(slow).rejects.toThrow();
    expect((await post(worker, '/v1/completions', body)).json().usage.prompt_tokens_details.cached_tokens).toBe(0);
    await expect.poll(() => subscriber.batches.at(-1)!.sequence).toBe(0);
    expect((await replay(worker, 0)).map((batch) => batch.sequence)).toEqual([0]);
  });
});

describe('the server', () => {
  it('frees the blocks of a client that goes away', async () => {
    const worker = await start({ timeScale: 10 });
    const [engine] = worker.engines;
    const request = httpRequest(`${worker.url}/v1/completions`, { method: 'POST' });
    request.on('error', () => undefined);
    request.end(JSON.stringify({ prompt: [...range(1, 100)], max_tokens: 10_000, stream: true }));
    await new Promise<void>((resolve) => request.on('response', (response) => response.once('data', () => resolve())));
    expect(engine!.runningCalls).toBe(1);
    expect(engine!.freeBlocks).toBeLessThan(999);
    request.destroy();
    await expect.poll(() => engine!.freeBlocks).toBe(999);
    expect(engine!.runningCalls).toBe(0);
    expect(engine!.counters.finished.abort).toBe(1);
    const metrics = await (await fetch(`${worker.url}/metrics`)).text();
    expect(metrics).toContain(
      'vllm:request_success_total{engine="0",model_name="emulated",finished_reason="abort"} 1\n',
    );
  });

  it('reports what it does', async () => {
    const worker = await start({ dataParallelRanks: 2, model: 'm' });
    const body = { prompt: [...range(1, 33)], max_tokens: 2 };
    for (const rank of ['1', '1']) await post(worker, '/v1/completions', body, { 'X-data-parallel-rank': rank });
    const metrics = await (await fetch(`${worker.url}/metrics`)).text();
    for (const line of [
      '# TYPE vllm:num_requests_running gauge',
      'vllm:num_requests_running{engine="1",model_name="m"} 0',
      'vllm:num_requests_waiting{engine="0",model_name="m"} 0',
      'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0',
      '# TYPE vllm:prefix_cache_queries_total counter',
      'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 0',
      'vllm:prefix_cache_queries_total{engine="1",model_name="m"} 66',
      'vllm:prefix_cache_hits_total{engine="1",model_name="m"} 32',
      'vllm:prompt_tokens_total{engine="1",model_name="m"} 66',
      'vllm:generation_tokens_total{engine="1",model_name="m"} 4',
      'vllm:request_success_total{engine="1",model_name="m",finished_reason="length"} 2',
      'saga_emulated:steps_total{engine="1",model_name="m"} 4',
    ])
      expect(metrics.split('\n')).toContain(line);
    expect(metrics).toMatch(
      /vllm:cache_config_info\{block_size="16",.*num_gpu_blocks="1000",.*prefix_caching_hash_algo="sha256_cbor"\} 1\.0/,
    );
    expect(((await (await fetch(`${worker.url}/v1/models`)).json()) as Answer).data[0]).toMatchObject({
      id: 'm',
      owned_by: 'vllm',
    });
    expect((await fetch(`${worker.url}/health`)).status).toBe(200);
    const loaded = await post(worker, '/v1/completions', body, { 'endpoint-load-metrics-format': 'TEXT' });
    expect(loaded.headers.get('endpoint-load-metrics')).toBe(
      'TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0',
    );
    const text = 'naïve 😀 text';
    const { tokens } = (await post(worker, '/tokenize', { prompt: text })).json();
    expect((await post(worker, '/detokenize', { tokens })).json()).toEqual({ prompt: text });
  });

  it('takes the modelled time', async () => {
    const worker = await start({
      timeScale: 4,
      stepSeconds: { base: 0.02, perCall: 1e-9, perContextToken: 1e-12, perPrefillToken: 1e-9, perPrefillPair: 1e-12 },
    });
    const before = performance.now();
    await post(worker, '/v1/completions', { prompt: 'a', max_tokens: 40 });
    const passed = performance.now() - before;
    expect(worker.engines[0]!.counters.busySeconds).toBeCloseTo(0.8, 3);
    // 40 steps of 5 ms. Late timers do not add up.
    expect(passed).toBeGreaterThan(195);
    expect(passed).toBeLessThan(400);
  });
});

describe('directives', () => {
  const key = '0123456789abcdef';

  function channel(worker: EmulatedWorker): (envelope: object, sign?: string) => Promise<object[]> {
    const socket = new Dealer({ linger: 0, receiveTimeout: 300 });
    open.push(socket);
    socket.connect(worker.directives!);
    return async (envelope, sign = key) => {
      const text = Buffer.from(JSON.stringify({ protocol_version: '0.1', time: Date.now() / 1000, ...envelope }));
      await socket.send([text, createHmac('sha256', sign).update(text).digest()]);
      const outcomes: object[] = [];
      for (;;) {
        let frames: Buffer[];
        try {
          frames = await socket.receive();
        } catch {
          return outcomes;
        }
        expect(frames[1]!.equals(createHmac('sha256', key).update(frames[0]!).digest())).toBe(true);
        outcomes.push(...(JSON.parse(frames[0]!.toString()) as { outcomes: object[] }).outcomes);
      }
    };
  }

  it('keep, release and evict blocks', async () => {
    const worker = await start({ blocks: 21, blockTokens: 4, directivesPort: 0, directiveKey: key, leaseBudget: 0.5 });
    const ask = channel(worker);
    const complete = async (first: number, more: object = {}): Promise<number> =>
      (await post(worker, '/v1/completions', { prompt: [...range(first, 12)], max_tokens: 1, ...more })).json().usage
        .prompt_tokens_details.cached_tokens;
    const action = (type: string, payload: object): object => ({
      actions: [{ action_id: 'a', action_type: type, action_version: '1.0', payload }],
    });
    const target = { token_ids: [...range(100, 12)] };
    await complete(100);
    const [status] = await ask({ message_id: 's', ...action('saga.status', {}) });
    expect(status).toMatchObject({ status: 'applied', strength: 'leases', block_size: 4, leases: 0 });
    const retain = { message_id: 'r', ...action('kv.retain', { claim_id: 'c', target, ttl_seconds: 60, value: 1 }) };
    expect(await ask(retain)).toEqual([{ action_id: 'a', status: 'pending' }]);
    // An idle engine does nothing; its next step does.
    await complete(200);
    expect(await ask({ message_id: 's2', ...action('saga.status', {}) })).toMatchObject([
      { action_id: 'a', status: 'applied', blocks: 3, missing: 0 },
      { leases: 1, leased_blocks: 3 },
    ]);
    // Seen before: answered as before.
    expect(await ask(retain)).toEqual([{ action_id: 'a', status: 'applied', blocks: 3, missing: 0 }]);
    for (let first = 1000; first < 2000; first += 100) await complete(first);
    expect(await complete(100)).toBe(8);
    expect(await ask({ message_id: 'x', ...action('kv.release', { claim_id: 'c' }) })).toEqual([
      { action_id: 'a', status: 'pending' },
    ]);
    await complete(3000);
    expect(await ask({ message_id: 'e', ...action('kv.evict', { target, mode: 'now' }) })).toEqual([
      { action_id: 'a', status: 'released' },
      { action_id: 'a', status: 'released' },
      { action_id: 'a', status: 'pending' },
    ]);
    expect(await complete(100)).toBe(0);
    expect(await ask({ message_id: 'p', ...action('kv.prefetch', {}) })).toMatchObject([
      { status: 'applied', blocks: 3 },
      { status: 'refused', reason: 'synthetic_request' },
    ]);
    expect(await ask({ message_id: 'w', epoch: 1, ...action('kv.release', { claim_id: 'c' }) })).toMatchObject([
      { status: 'refused', reason: 'epoch' },
    ]);
    expect(await ask({ message_id: 'u', ...action('kv.other', {}) })).toMatchObject([
      { status: 'refused', reason: 'unknown_action' },
    ]);
    expect(await ask({ message_id: 'f', ...action('saga.status', {}) }, 'not the key at all')).toEqual([]);
    expect(await ask({ message_id: 'o', time: 1, ...action('saga.status', {}) })).toEqual([]);
    expect(worker.engines[0]!.verify()).toBe(true);
  });

  it.each(['lru', 'saga'] as const)('tell the policy %s which threads come back', async (eviction) => {
    const saga = eviction === 'saga';
    const worker = await start({
      blocks: 7,
      blockTokens: 4,
      maxModelTokens: 20,
      directivesPort: 0,
      directiveKey: key,
      eviction,
    });
    const ask = channel(worker);
    let messages = 0;
    const envelope = (type: string, payload: object): object => ({
      protocol_version: '0.1',
      message_id: `m${messages++}`,
      actions: [{ action_id: 'a', action_type: type, action_version: '1.0', payload }],
    });
    const complete = async (thread: number, expected?: number): Promise<number> => {
      const call = { thread, prompt_kind: 'tool', expected_seconds: expected ?? null };
      const body = { prompt: [...range(100 * thread, 12)], max_tokens: 1 };
      const params = { kv_transfer_params: { saga: envelope('saga.call', call) } };
      const answer = await post(worker, '/v1/completions', { ...body, ...params });
      return answer.json().usage.prompt_tokens_details.cached_tokens;
    };
    const [status] = await ask(envelope('saga.status', {}));
    expect(status).toMatchObject({ strength: saga ? 'policy' : 'leases' });
    await complete(1, 2);
    await complete(2);
    const ended = { thread: 2, stop_reason: 'end_turn', tool_class: 0, session_end: true };
    const refused = (reason: string): object[] => [{ action_id: 'a', status: 'refused', reason }];
    expect(await ask(envelope('saga.ended', ended))).toEqual(
      saga ? [{ action_id: 'a', status: 'applied' }] : refused('unsupported'),
    );
    if (saga) {
      for (const wrong of [{ thread: -1 }, { stop_reason: 'other' }, { tool_class: 5 }, { expected_seconds: -1 }])
        expect(await ask(envelope('saga.ended', { ...ended, ...wrong }))).toEqual(refused('malformed'));
      expect(await ask(envelope('saga.ended', { ...ended, thread: 77 }))).toEqual(refused('not_resident'));
    }
    await complete(3);
    // A prompt of whole blocks hits all but the last.
    expect(await complete(1)).toBe(saga ? 8 : 0);
    expect(worker.engines[0]!.verify()).toBe(true);
  });

  it('ride on requests: on arrival or when that has ended, for a part of a chain, once on either way', async () => {
    const worker = await start({ blocks: 41, blockTokens: 4, directivesPort: 0, leaseBudget: 1 });
    const [engine] = worker.engines;
    const socket = new Dealer({ linger: 0, receiveTimeout: 300 });
    open.push(socket);
    socket.connect(worker.directives!);
    const envelope = (id: string, ...actions: [type: string, payload: object][]): object => ({
      protocol_version: '0.1',
      message_id: id,
      actions: actions.map(([type, payload], i) => ({
        action_id: String(i),
        action_type: type,
        action_version: '1.0',
        payload,
      })),
    });
    const ask = async (given: object): Promise<object[]> => {
      await socket.send(JSON.stringify(given));
      const [frame] = await socket.receive();
      return (JSON.parse(frame!.toString()) as { outcomes: object[] }).outcomes;
    };
    const complete = async (first: number, count: number, more: object = {}, name = ''): Promise<number> =>
      (
        await post(
          worker,
          '/v1/completions',
          { prompt: [...range(first, count)], max_tokens: 1, ...more },
          name === '' ? {} : { 'X-Request-Id': name },
        )
      ).json().usage.prompt_tokens_details.cached_tokens;
    expect(await ask(envelope('s', ['saga.status', {}]))).toMatchObject([
      {
        request_members: ['kv_transfer_params', 'kv_hints'],
        request_actions: ['saga.call', 'saga.ended', 'kv.retain', 'kv.release', 'kv.evict'],
      },
    ]);
    // Its own blocks, which are there only when it has run; not the first two.
    const target = { request_id: 'kept', from_block: 2 };
    const retain = envelope(
      'r',
      ['kv.retain', { claim_id: 'c', target, ttl_seconds: 60, at: 'end' }],
      ['kv.evict', { target: { ...target, from_block: 5 }, mode: 'now' }],
      ['kv.prefetch', { at: 'end' }],
      ['kv.evict', { target: { ...target, from_block: -1 } }],
    );
    await complete(100, 20, { kv_hints: retain }, 'kept');
    await vi.waitFor(() => expect(engine!.leasedBlocks).toBe(3));
    const outcomes = [
      { action_id: '0', status: 'applied', blocks: 3, missing: 0 },
      { action_id: '1', status: 'refused', reason: 'not_resident', missing: 0 },
      { action_id: '2', status: 'refused', reason: 'malformed' },
      { action_id: '3', status: 'refused', reason: 'malformed' },
    ];
    // The same message over the channel is answered, not carried out again; on a request, neither.
    expect(await ask(retain)).toEqual(outcomes);
    await complete(500, 4, { kv_transfer_params: { saga: retain } });
    expect([engine!.leases.size, engine!.leasedBlocks]).toEqual([1, 3]);
    // A request has an end, the channel has none.
    expect(await ask(envelope('x', ['kv.release', { claim_id: 'c', at: 'end' }]))).toEqual([
      { action_id: '0', status: 'refused', reason: 'unsupported' },
    ]);
    await complete(600, 4, { kv_hints: envelope('y', ['kv.release', { claim_id: 'c', at: 'end' }]) });
    await vi.waitFor(() => expect(engine!.leases.size).toBe(0));
    // The next victims are those behind the shared beginning, though others are older.
    await complete(2000, 40);
    const evict = { target: { request_id: 'last', from_block: 5 }, mode: 'first', at: 'end' };
    await complete(100, 40, { kv_hints: envelope('e', ['kv.evict', evict]) }, 'last');
    await complete(9000, 88);
    expect(await complete(2000, 40)).toBe(36);
    expect(await complete(100, 40)).toBe(20);
    expect(engine!.verify()).toBe(true);
  });

  it('that wait for a request are carried out when its client goes, too', async () => {
    const worker = await start({
      blocks: 101,
      timeScale: 1,
      stepSeconds: { base: 0.005, perCall: 1e-9, perContextToken: 1e-12, perPrefillToken: 1e-9, perPrefillPair: 1e-12 },
    });
    const [engine] = worker.engines;
    const abort = new AbortController();
    const hints = {
      protocol_version: '0.1',
      message_id: 'm',
      actions: [
        {
          action_id: '0',
          action_type: 'kv.evict',
          action_version: '1.0',
          payload: { target: { token_ids: [...range(1, 32)] }, mode: 'now', at: 'end' },
        },
      ],
    };
    const prompt = [...range(1, 33)];
    const body = { model: worker.options.model, prompt, max_tokens: 1000, stream: true, kv_hints: hints };
    const request = fetch(`${worker.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      signal: abort.signal,
    }).catch(() => undefined);
    await request;
    const { hashes } = engine!.resident(engine!.hashesOf(Uint32Array.from(prompt), {}));
    expect(hashes.length).toBe(2);
    abort.abort();
    await vi.waitFor(() => expect(engine!.openCalls).toBe(0));
    await post(worker, '/v1/completions', { prompt: [...range(500, 4)], max_tokens: 2 });
    expect(engine!.resident(hashes)).toEqual({ hashes: new BigUint64Array(), missing: 2 });
  });

  it('give way to memory', async () => {
    const worker = await start({ blocks: 11, blockTokens: 4, maxModelTokens: 40, leaseBudget: 1 });
    const saga = {
      protocol_version: '0.1',
      message_id: 'm',
      actions: [
        {
          action_id: 'a',
          action_type: 'kv.retain',
          action_version: '1.0',
          payload: { claim_id: 'c', target: { token_ids: [...range(1, 16)] }, ttl_seconds: 60 },
        },
      ],
    };
    await post(worker, '/v1/completions', { prompt: [...range(1, 16)], max_tokens: 1 });
    await post(worker, '/v1/completions', { prompt: [...range(50, 4)], max_tokens: 1, kv_transfer_params: { saga } });
    const [engine] = worker.engines;
    expect(engine!.leasedBlocks).toBe(4);
    await post(worker, '/v1/completions', { prompt: [...range(100, 36)], max_tokens: 2 });
    expect(engine!.leasedBlocks).toBe(0);
    expect(engine!.verify()).toBe(true);
  });
});
