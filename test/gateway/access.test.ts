/** Who may do what: keys, tenants, and what of keys is told to whom. */
import { connect } from 'node:net';
import { Writable } from 'node:stream';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import { Gateway } from '../../src/gateway/gateway.js';
import { Tenants } from '../../src/gateway/identity.js';
import { FakeWorker, get, json, leftovers, nothingLeft, post, range, serve, until, type Script } from './helpers.js';

const bearer = (key: string): Record<string, string> => ({ authorization: `Bearer ${key}` });

describe('keys', () => {
  it('are asked for before the body is read', async () => {
    const worker = await FakeWorker.start(json({}));
    const serving = await serve([worker], { apiKeys: ['right'] });
    for (const header of [
      '',
      'authorization: Bearer wrong\r\n',
      'x-api-key: wrong\r\n',
      'authorization: Basic right\r\n',
    ]) {
      const socket = connect(serving.port, '127.0.0.1');
      let text = '';
      socket.on('data', (data: Buffer) => (text += data.toString()));
      // The body is never sent.
      socket.write(
        `POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${header}content-length: 1000000\r\n\r\n`,
      );
      await until('the answer is there', () => text.includes('}}'), 1000);
      expect(text).toMatch(/^HTTP\/1\.1 401 /);
      expect(text).toContain('"type":"authentication_error"');
      expect(text).toMatch(/connection: close/i);
      socket.destroy();
    }
    expect(leftovers(serving)).toEqual(nothingLeft);
    expect(worker.requests).toEqual([]);
  });

  it('are taken in both headers, and every route but those of probes needs one', async () => {
    const worker = await FakeWorker.start(json({ ok: 1 }));
    const { url } = await serve([worker], { apiKeys: ['one', 'two'] });
    for (const headers of [bearer('one'), { 'x-api-key': 'two' }, { authorization: 'bearer   two' }])
      expect((await post(url, '/v1/completions', { prompt: [1] }, headers)).status).toBe(200);
    expect((await get(url, '/healthz')).status).toBe(200);
    expect((await get(url, '/readyz')).json()).toEqual({ ready: true });
    expect((await get(url, '/readyz', bearer('one'))).json()).toHaveProperty('degraded');
    for (const path of [
      '/v1/models',
      '/v1/models/m',
      '/metrics',
      '/saga/workers',
      '/saga/workflows',
      '/saga/explain/m.0',
      '/v1/responses/x',
      '/nothing',
    ]) {
      const answer = await get(url, path);
      expect([path, answer.status, answer.json().error.code]).toEqual([path, 401, 'invalid_api_key']);
    }
    for (const path of ['/saga/select', '/saga/select_and_reserve', '/saga/release', '/v1/embeddings'])
      expect((await post(url, path, {})).status).toBe(401);
  });

  it('are compared as digests of one length, each of them every time', () => {
    const tenants = new Tenants({ apiKeys: ['a', 'b'.repeat(500)], tenants: [{ name: 't', apiKeys: ['c'] }] });
    expect(tenants.closed).toBe(true);
    expect(tenants.of(bearer('a')).name).toBe('default');
    expect(tenants.of(bearer('b'.repeat(500))).name).toBe('default');
    expect(tenants.of(bearer('c')).name).toBe('t');
    for (const key of ['', 'A', 'a ', 'b', 'bb', '\u0000', 'c'.repeat(9)])
      if (key.trim() !== 'a') expect(() => tenants.of(bearer(key))).toThrow(/key/);
  });

  it('are needed at an address that others can reach', async () => {
    const config = { models: [{ name: 'm' }], probe: false };
    for (const host of ['0.0.0.0', '::', '192.168.1.5', 'example.org', '127.0.0.1.evil.org']) {
      await expect(Gateway.start({ ...config, host })).rejects.toThrow(/set apiKeys, or insecure/);
      await expect(Gateway.check({ ...config, host })).rejects.toThrow(/set apiKeys, or insecure/);
      await Gateway.check({ ...config, host, insecure: true });
      await Gateway.check({ ...config, host, apiKeys: ['k'] });
    }
    for (const host of ['127.0.0.1', 'localhost', '::1', '127.9.9.9']) await Gateway.check({ ...config, host });
  });
});

describe('tenants', () => {
  it('are told apart by their keys, and see their own workflows only', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const { url, pool } = await serve([worker], {
      tenants: [
        { name: 'red', apiKeys: ['r'] },
        { name: 'blue', apiKeys: ['b'] },
      ],
    });
    const prompt = range(1, 200);
    const call = async (key: string, headers: Record<string, string> = {}): Promise<string> =>
      (await post(url, '/v1/completions', { model: 'm', prompt }, { ...bearer(key), ...headers })).headers.get(
        'x-saga-call',
      ) ?? '';
    const red = await call('r');
    await call('b');
    await call('r', { 'x-saga-session-id': 'same' });
    await call('b', { 'x-saga-session-id': 'same' });
    // Equal prompts, equal names: never one workflow.
    expect([...pool.sessions.values()].map(({ tenant }) => tenant.name).sort()).toEqual(['blue', 'blue', 'red', 'red']);
    const listed = (await get(url, '/saga/workflows', bearer('r'))).json().workflows as { tenant: string }[];
    expect(listed.map(({ tenant }) => tenant)).toEqual(['red', 'red']);
    expect((await get(url, `/saga/explain/${red}`, bearer('r'))).status).toBe(200);
    expect((await get(url, `/saga/explain/${red}`, bearer('b'))).status).toBe(404);
  });

  it('are named by a header only where that is trusted, and never over a key', async () => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const names = async (config: object, headers: Record<string, string>): Promise<string[]> => {
      const { url, pool } = await serve([worker], config);
      expect((await post(url, '/v1/completions', { prompt: [1] }, headers)).status).toBe(200);
      return [...pool.sessions.values()].map(({ tenant }) => tenant.name);
    };
    const header = { 'x-saga-tenant': 'green' };
    expect(await names({}, header)).toEqual(['default']);
    expect(await names({ trustTenantHeader: true }, header)).toEqual(['green']);
    expect(await names({ trustTenantHeader: true }, { 'x-llm-d-inference-fairness-id': 'f' })).toEqual(['f']);
    const keyed = { trustTenantHeader: true, apiKeys: ['d'], tenants: [{ name: 'red', apiKeys: ['r'] }] };
    expect(await names(keyed, { ...header, ...bearer('r') })).toEqual(['red']);
    expect(await names(keyed, { ...header, ...bearer('d') })).toEqual(['green']);
  });

  it('that nobody configured are at most so many', () => {
    const tenants = new Tenants({ trustTenantHeader: true });
    const known = range(0, 60).map((i) => tenants.of({ 'x-saga-tenant': `t${i}` }));
    expect(known.map(({ name }) => name)).toEqual(range(0, 60).map((i) => `t${i}`));
    expect(() => tenants.of({ 'x-saga-tenant': 't60' })).toThrow(expect.objectContaining({ code: 'too_many_tenants' }));
    expect(tenants.of({ 'x-saga-tenant': 't7' })).toBe(known[7]);
    expect(tenants.of({ 'x-saga-tenant': 'x'.repeat(300) }).name).toBe('default');
  });
});

describe('secrets', () => {
  it('never reach the log, an error or a state, whatever goes wrong', async () => {
    let text = '';
    const sink = new Writable({
      write(chunk: Buffer, _encoding, done) {
        text += chunk.toString();
        done();
      },
    });
    const log = pino({ level: 'trace' }, sink);
    const scripts: Script[] = [
      json({ choices: [] }),
      json({ error: 'no' }, 503),
      (request) => void request.socket.resetAndDestroy(),
      (_request, response) => {
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        response.write('data: {"choices":[{}]}\n\n', () => response.destroy());
      },
      (request) => void request.socket.end('rubbish\r\n\r\n'),
    ];
    const worker = await FakeWorker.start(json({}));
    const { gateway, url } = await serve([{ url: worker.url, apiKey: 'SECRET-worker' }], {
      log,
      apiKeys: ['SECRET-client'],
      tenants: [{ name: 't', apiKeys: ['SECRET-tenant'], cacheSalt: 'SECRET-salt' }],
      firstByteSeconds: 1,
    });
    let told = '';
    for (const script of scripts) {
      worker.script = script;
      for (const key of ['SECRET-client', 'SECRET-tenant', 'SECRET-wrong'])
        for (const path of ['/v1/completions', '/v1/embeddings', '/saga/select', '/saga/none?key=SECRET-query'])
          await post(url, path, { model: 'm', prompt: [1, 2], token_ids: [1] }, bearer(key)).then(
            (answer) => {
              told += answer.text + JSON.stringify([...answer.headers]);
            },
            () => undefined,
          );
    }
    // The failure of the gateway itself.
    const prepare = [...gateway.pools.values()][0];
    if (prepare !== undefined) prepare.submit = () => Promise.reject(new Error('broken within'));
    told += (await post(url, '/v1/completions', { prompt: [1] }, bearer('SECRET-client'))).text;
    for (const path of ['/readyz', '/metrics', '/saga/workers', '/saga/workflows'])
      told += (await get(url, path, bearer('SECRET-tenant'))).text;
    expect(text).toContain('broken within');
    expect(text.split('\n').length).toBeGreaterThan(30);
    expect(told).not.toContain('broken within');
    // The salt is the tenant's own: its selections need it.
    expect(told.replaceAll('"cache_salt":"SECRET-salt"', '')).not.toContain('SECRET');
    expect(text).not.toContain('SECRET');
    expect(worker.requests.length).toBeGreaterThan(5);
    for (const { headers, body } of worker.requests) {
      expect(headers.authorization).toBe('Bearer SECRET-worker');
      expect(JSON.stringify(headers) + body).not.toMatch(/SECRET-(client|tenant|wrong)/);
    }
  });
});
