/** `/saga/...`, `/metrics`, `/healthz` and `/readyz`. */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { FakeWorker, emulated, get, json, leftovers, nothingLeft, post, range, serve, until } from './helpers.js';

describe('/saga/select', () => {
  it('says where a prompt is held, and reserves nothing', async () => {
    const workers = [await emulated({ eventsPort: 0 }), await emulated({ eventsPort: 0 })];
    const serving = await serve(workers);
    // So long that to compute it elsewhere costs more than any difference between workers.
    const prompt = range(1, 20_000);
    const call = await post(serving.url, '/v1/completions', { model: 'm', prompt, max_tokens: 1 });
    expect(call.status).toBe(200);
    const known = (): number => serving.pool.scheduler.stats().holderBlocks;
    await until('its blocks are known', () => known() >= 1250);
    const explained = await get(serving.url, `/saga/explain/${call.headers.get('x-saga-call') ?? ''}`);
    const { worker: holderId } = (explained.json() as unknown as { receipt: { worker: number } }).receipt;
    const holder = serving.pool.workers.workers.find(({ worker }) => worker.id === holderId);
    for (let i = 0; i < 3; ++i) {
      const answer = await post(serving.url, '/saga/select', { model: 'm', token_ids: prompt });
      expect(answer.status).toBe(200);
      expect(answer.json()).toMatchObject({
        call: expect.stringMatching(/^m\.\d+$/) as string,
        worker: { id: holder?.worker.id, url: holder?.server.url },
        predicted_cached_tokens: 19_984,
        receipt: { prompt_blocks: 1250, matched_blocks: { gpu: 1250 }, active_workers: 2 },
      });
      expect(answer.json()).not.toHaveProperty('reservation');
      expect(answer.json()).not.toHaveProperty('cache_salt');
    }
    expect(leftovers(serving)).toEqual(nothingLeft);
  });

  it('tells ranks, priority and the salt of the tenant', async () => {
    const worker = await emulated({ eventsPort: 0, dataParallelRanks: 2 });
    const { url } = await serve(
      [{ url: worker.url, dataParallelRanks: 2 }],
      { tenants: [{ name: 't', apiKeys: ['k'], cacheSalt: 's' }] },
      { priority: true },
    );
    const answer = await post(
      url,
      '/saga/select',
      { token_ids: range(1, 20), cache_salt: 'own' },
      { 'x-api-key': 'k' },
    );
    expect(answer.json()).toMatchObject({
      worker: { url: worker.url, data_parallel_rank: expect.any(Number) as unknown },
      cache_salt: 's\nown',
      priority: expect.any(Number) as unknown,
    });
  });

  it.each<[string, object, string | null]>([
    ['no ids', {}, 'token_ids'],
    ['text', { token_ids: 'text' }, 'token_ids'],
    ['no id at all', { token_ids: [] }, 'token_ids'],
    ['ids below 0', { token_ids: [3, -3] }, 'token_ids'],
    ['texts', { token_ids: ['1'] }, 'token_ids'],
    ['ids and lists', { token_ids: [1, [2]] }, 'token_ids'],
    ['an object', { token_ids: { 0: 1 } }, 'token_ids'],
    ['a time that is too long', { token_ids: [1], ttl_seconds: 9999 }, 'ttl_seconds'],
    ['a time that is too short', { token_ids: [1], ttl_seconds: 0 }, 'ttl_seconds'],
  ])('refuses %s', async (_, body, param) => {
    const serving = await serve([await FakeWorker.start(json({}))]);
    const answer = await post(serving.url, '/saga/select_and_reserve', { model: 'm', ...body });
    expect([answer.status, answer.json().error]).toMatchObject([400, { code: 'invalid_request', param }]);
    expect(leftovers(serving)).toEqual(nothingLeft);
  });
});

describe('a reservation', () => {
  it('counts as a call until it is released, once', async () => {
    const serving = await serve([await FakeWorker.start(json({}))]);
    const { url, pool } = serving;
    const headers = { 'x-saga-session-id': 's' };
    const reserved = await post(url, '/saga/select_and_reserve', { model: 'm', token_ids: range(1, 64) }, headers);
    expect(reserved.json()).toMatchObject({ expires_in: 600, worker: { id: 0 } });
    expect(leftovers(serving)).toEqual({ ...nothingLeft, openCalls: 1, sessionCalls: 1 });
    const { reservation } = reserved.json() as { reservation: string };
    const release = { reservation, output_tokens: 9, cached_tokens: 16, stop_reason: 'tool_use', tool: 'bash' };
    expect((await post(url, '/saga/release', release)).json()).toEqual({ released: true });
    expect(leftovers(serving)).toEqual(nothingLeft);
    expect(pool.counters).toMatchObject({ finished: 1, outputTokens: 9, cachedTokens: 16 });
    expect([...pool.sessions.values()].map(({ tools }) => tools.size)).toEqual([1]);
    const again = await post(url, '/saga/release', release);
    expect([again.status, again.json().error.code]).toEqual([404, 'not_found']);
  });

  it('expires by itself', async () => {
    const serving = await serve([await FakeWorker.start(json({}))]);
    const body = { model: 'm', token_ids: range(1, 64), ttl_seconds: 1 };
    const { reservation } = (await post(serving.url, '/saga/select_and_reserve', body)).json();
    expect(leftovers(serving).openCalls).toBe(1);
    await delay(1050);
    expect(leftovers(serving)).toEqual(nothingLeft);
    expect((await post(serving.url, '/saga/release', { reservation })).status).toBe(404);
    expect(serving.pool.counters.cancelled).toBe(1);
  });

  it('is released by its tenant alone, as cancelled where it says so', async () => {
    const serving = await serve([await FakeWorker.start(json({}))], {
      tenants: [
        { name: 'a', apiKeys: ['a'] },
        { name: 'b', apiKeys: ['b'] },
      ],
    });
    const body = { model: 'm', token_ids: range(1, 64) };
    const { reservation } = (await post(serving.url, '/saga/select_and_reserve', body, { 'x-api-key': 'a' })).json();
    const release = { reservation, cancelled: true };
    expect((await post(serving.url, '/saga/release', release, { 'x-api-key': 'b' })).status).toBe(404);
    for (const wrong of [{}, { reservation: 5 }, { reservation, stop_reason: 'x' }, { reservation, output_tokens: -1 }])
      expect((await post(serving.url, '/saga/release', wrong, { 'x-api-key': 'a' })).status).toBe(400);
    expect((await post(serving.url, '/saga/release', release, { 'x-api-key': 'a' })).status).toBe(200);
    expect(serving.pool.counters).toMatchObject({ cancelled: 1, finished: 0 });
    expect(leftovers(serving)).toEqual(nothingLeft);
  });

  it('ends with the gateway', async () => {
    const serving = await serve([await FakeWorker.start(json({}))]);
    await post(serving.url, '/saga/select_and_reserve', { model: 'm', token_ids: [1, 2] });
    await serving.gateway.close({ graceSeconds: 0 });
    expect([...serving.pool.sessions.values()].every(({ openCalls }) => openCalls === 0)).toBe(true);
  });
});

describe('a workflow that nobody goes on with', () => {
  it('is closed after some time, and its line is a new one then', async () => {
    const worker = await emulated({ eventsPort: 0 });
    const serving = await serve([worker], { workflowIdleSeconds: 0.2 });
    const ask = (from: number): Promise<unknown> =>
      post(serving.url, '/v1/completions', { model: 'm', prompt: range(from, 100), max_tokens: 1 });
    await ask(1);
    await ask(1000);
    expect(serving.pool.sessions.size).toBe(2);
    expect(serving.pool.scheduler.stats().workflows).toBe(2);
    await until('both are closed', () => serving.pool.sessions.size === 0);
    expect(serving.pool.scheduler.stats().workflows).toBe(0);
    await ask(1);
    expect(serving.pool.counters.lineage).toMatchObject({ new: 3, continued: 0 });
  });
});

describe('what the gateway tells', () => {
  it('/saga/explain: why a call went where it did', async () => {
    const { url } = await serve([await emulated({ eventsPort: 0 }), await emulated({ eventsPort: 0 })]);
    const answer = await post(url, '/v1/completions', { model: 'm', prompt: range(1, 100), max_tokens: 2 });
    const name = answer.headers.get('x-saga-call') ?? '';
    const told = await get(url, `/saga/explain/${name}`);
    expect(told.status).toBe(200);
    expect(told.json()).toMatchObject({
      call: name,
      promptTokens: 100,
      state: 'ended',
      receipt: { worker: expect.any(Number) as unknown, promptBlocks: 6 },
    });
    expect(told.json().explanation).toMatch(/worker \d/);
    for (const wrong of ['m.99999', 'n.0', 'm', '.', 'm.-1', 'm.1e3', '%'])
      expect([wrong, (await get(url, `/saga/explain/${wrong}`)).status]).toEqual([wrong, 404]);
  });

  it('/saga/workers: each with its condition and load', async () => {
    const worker = await emulated({ eventsPort: 0 });
    const { url } = await serve([worker]);
    expect((await get(url, '/saga/workers')).json().workers).toMatchObject([
      { model: 'm', id: 0, url: worker.url, rank: 0, condition: 'ready', degraded: [], openCalls: 0, blocks: 4000 },
    ]);
  });

  it('/healthz and /readyz: what is not as it should be', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const serving = await serve([worker, { url: 'http://127.0.0.1:1' }]);
    expect((await get(serving.url, '/healthz')).json()).toEqual({ status: 'ok' });
    const ready = await get(serving.url, '/readyz');
    expect(ready.status).toBe(200);
    expect(ready.json()).toMatchObject({
      ready: true,
      models: [{ model: 'm', readyWorkers: 1, workers: 1, waitingCalls: 0 }],
    });
    expect(ready.json().degraded).toEqual(
      expect.arrayContaining([
        'model m: server http://127.0.0.1:1 is connecting',
        `${worker.url} rank 0: events: no endpoint is configured`,
      ]),
    );
    await post(serving.url, '/v1/completions', { model: 'm', prompt: { no: 'prompt' } });
    expect((await get(serving.url, '/readyz')).json().degraded).toContain(
      'model m: 1 prompts could not be made into tokens; they were placed by load alone',
    );
    serving.pool.workers.drain(worker.url);
    const drained = await get(serving.url, '/readyz');
    expect([drained.status, drained.json().ready]).toEqual([503, false]);
    expect(drained.json().degraded).toContain('model m: no worker is ready');
  });
});

interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

/** Prometheus text format; every line must be understood. */
function samplesOf(text: string): { samples: Sample[]; types: Map<string, string>; helps: Map<string, string> } {
  const samples: Sample[] = [];
  const types = new Map<string, string>();
  const helps = new Map<string, string>();
  for (const line of text.split('\n')) {
    if (line === '') continue;
    const comment = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line);
    if (comment !== null) {
      (comment[1] === 'TYPE' ? types : helps).set(comment[2] as string, comment[3] as string);
      continue;
    }
    const sample = /^([a-zA-Z_:][\w:]*)(?:\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)$/.exec(line);
    expect(sample, line).not.toBeNull();
    const labels: Record<string, string> = Object.fromEntries(
      [...(sample?.[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, k, v]): [string, string] => [
        k ?? '',
        v ?? '',
      ]),
    );
    const value = sample?.[3] === '+Inf' ? Infinity : Number(sample?.[3]);
    expect(Number.isNaN(value), line).toBe(false);
    samples.push({ name: sample?.[1] as string, labels, value });
  }
  return { samples, types, helps };
}

describe('/metrics', () => {
  it('counts calls, tokens, blocks and errors, in the format of Prometheus', async () => {
    const worker = await emulated({ eventsPort: 0 });
    const { url } = await serve([worker]);
    const prompt = range(1, 100);
    for (let i = 0; i < 3; ++i) await post(url, '/v1/completions', { model: 'm', prompt, max_tokens: 4 });
    await post(url, '/v1/completions', { model: 'x' });
    const answer = await get(url, '/metrics');
    expect(answer.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/);
    const { samples, types, helps } = samplesOf(answer.text);
    const value = (name: string, labels: Record<string, string> = {}): number | undefined =>
      samples.find((one) => one.name === name && Object.entries(labels).every(([k, v]) => one.labels[k] === v))?.value;
    const model = { model_name: 'm' };
    expect({
      requests: value('saga:requests_total', { ...model, endpoint: 'completions', tenant: 'default', status: '200' }),
      success: value('saga:request_success_total', model),
      prompt: value('saga:prompt_tokens_total', model),
      generated: value('saga:generation_tokens_total', model),
      hits: value('saga:prefix_cache_hits_total', model),
      tokenized: value('saga:prompt_tokens_tokenized_total', model),
      running: value('saga:num_requests_running', model),
      waiting: value('saga:num_requests_waiting', model),
      ready: value('saga:worker_ready', { engine: '0', url: worker.url }),
      error: value('saga:errors_total', { code: 'model_not_found' }),
      first: value('saga:time_to_first_token_seconds_count', model),
      whole: value('saga:e2e_request_latency_seconds_count', { ...model, endpoint: 'completions' }),
    }).toEqual({
      requests: 3,
      success: 3,
      prompt: 300,
      generated: 12,
      hits: 192,
      tokenized: 0,
      running: 0,
      waiting: 0,
      ready: 1,
      error: 1,
      first: 3,
      whole: 3,
    });
    expect(value('saga:kv_event_frames_total', { engine: '0' })).toBeGreaterThan(0);
    for (const name of types.keys()) expect(name).toMatch(/^saga:[a-z0-9_]+$/);

    // Each of them is in the documentation, and no others are.
    const document = readFileSync(new URL('../../docs/gateway.md', import.meta.url), 'utf8');
    const table = /<!-- metrics -->([\s\S]*?)<!-- end of metrics -->/.exec(document)?.[1] ?? '';
    const documented = [...table.matchAll(/^\| `(saga:\w+)` \| (\w+) \| (.*?) \|$/gm)].map(([, ...columns]) => columns);
    expect(documented).toEqual([...types].map(([name, type]) => [name, type, helps.get(name)]));
  });
});
