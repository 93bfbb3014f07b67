/** The gateway as a part of other programs, and `Gateway.check`. */
import { execFile } from 'node:child_process';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { createRequire } from 'node:module';
import fastify from 'fastify';
import { describe, expect, it } from 'vitest';
import type { GatewayConfig } from '../../src/gateway/config.js';
import { Gateway } from '../../src/gateway/gateway.js';
import { emulated, FakeWorker, opened, post, range } from './helpers.js';

/** The part of Express that is used: it brings no types. */
interface Application {
  get(path: string, handler: (request: unknown, response: { send(text: string): unknown }) => void): void;
  use(handler: unknown): Application;
  listen(port: number, host: string): Server;
}
const express = createRequire(import.meta.url)('express') as (() => Application) & { json(): unknown };

const run = promisify(execFile);
const root = fileURLToPath(new URL('../../', import.meta.url));

async function gatewayOf(url: string): Promise<Gateway> {
  const gateway = await Gateway.start({ models: [{ name: 'm', servers: [{ url }] }], probe: false });
  opened({ close: () => gateway.close({ graceSeconds: 0 }) });
  return gateway;
}

/** It serves calls, streams and errors at this address. */
async function works(url: string): Promise<void> {
  const body = { model: 'm', prompt: range(1, 40), max_tokens: 3 };
  const whole = await post(url, '/v1/completions', body);
  expect([whole.status, whole.json().usage.completion_tokens]).toEqual([200, 3]);
  const stream = await post(url, '/v1/completions', { ...body, stream: true });
  expect(stream.text).toMatch(/^data: \{[\s\S]*data: \[DONE\]\n\n$/);
  const wrong = await post(url, '/v1/completions', '{');
  expect([wrong.status, wrong.json().error.code]).toEqual([400, 'malformed_json']);
  const large = await post(url, '/v1/completions', { prompt: 'x'.repeat(40 * 2 ** 20) });
  expect([large.status, large.json().error.code]).toEqual([413, 'body_too_large']);
  expect((await post(url, '/v1/completions', body)).status).toBe(200);
}

describe('the handler', () => {
  it('serves within node:http, beside other routes', async () => {
    const gateway = await gatewayOf((await emulated()).url);
    const server = createServer((request, response) => {
      if (request.url === '/mine') response.end('mine');
      else gateway.handler(request, response);
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    opened({ close: () => server.close() });
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    await works(url);
    expect(await (await fetch(`${url}/mine`)).text()).toBe('mine');
    expect((await fetch(`${url}/other`)).status).toBe(404);
  });

  it('serves within Express', async () => {
    const gateway = await gatewayOf((await emulated()).url);
    const app = express();
    app.get('/mine', (_request, response) => void response.send('mine'));
    app.use(gateway.handler);
    const server = app.listen(0, '127.0.0.1');
    await new Promise((resolve) => server.once('listening', resolve));
    opened({ close: () => server.close() });
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    await works(url);
    expect(await (await fetch(`${url}/mine`)).text()).toBe('mine');
  });

  it('says in the log when a body parser of Express stands before it', async () => {
    const errors: object[] = [];
    const worker = await emulated();
    const gateway = await Gateway.start({
      models: [{ name: 'm', servers: [{ url: worker.url }] }],
      probe: false,
      log: { debug() {}, info() {}, warn() {}, error: (fields) => void errors.push(fields) },
    });
    opened({ close: () => gateway.close({ graceSeconds: 0 }) });
    const app = express().use(express.json()).use(gateway.handler);
    const server = app.listen(0, '127.0.0.1');
    await new Promise((resolve) => server.once('listening', resolve));
    opened({ close: () => server.close() });
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const answer = await post(url, '/v1/completions', { model: 'm', prompt: [1] });
    expect([answer.status, answer.json().error.code]).toEqual([500, 'internal_error']);
    expect(errors).toMatchObject([{ err: { message: expect.stringMatching(/no body parser/) as string } }]);
  });

  it('serves within Fastify', async () => {
    const gateway = await gatewayOf((await emulated()).url);
    const app = fastify();
    app.get('/mine', () => 'mine');
    await app.register((scope, _options, done) => {
      // The gateway reads bodies itself.
      scope.removeAllContentTypeParsers();
      scope.addContentTypeParser('*', (_request, _payload, ready) => {
        ready(null);
      });
      scope.all('/v1/*', (request, reply) => {
        reply.hijack();
        gateway.handler(request.raw, reply.raw);
      });
      done();
    });
    const url = await app.listen({ port: 0, host: '127.0.0.1' });
    opened(app);
    await works(url);
    expect(await (await fetch(`${url}/mine`)).text()).toBe('mine');
  });

  it('ends calls when the server around it breaks their connections', async () => {
    const worker = await FakeWorker.start((request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: {}\n\n');
      request.resume();
    });
    const gateway = await gatewayOf(worker.url);
    const server = createServer(gateway.handler);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const answer = await fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"prompt":[1],"stream":true}',
    });
    expect(answer.status).toBe(200);
    answer.text().catch(() => undefined);
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    await gateway.close({ graceSeconds: 5 });
    expect(gateway.heldBytes).toBe(0);
  });
});

describe('Gateway.check', () => {
  const model = { name: 'm', servers: [{ url: 'http://127.0.0.1:1' }] };

  it('connects to nothing', async () => {
    const worker = await FakeWorker.start(() => undefined);
    let connections = 0;
    worker.server.on('connection', () => connections++);
    await Gateway.check({ models: [{ name: 'm', servers: [{ url: worker.url }] }] });
    expect(connections).toBe(0);
  });

  it.each<[string, GatewayConfig, RegExp]>([
    ['no models', { models: [] }, /models must have at least one/],
    ['a model twice', { models: [model, model] }, /model m is there twice/],
    [
      'an alias that is a model',
      { models: [{ ...model, aliases: { n: null } }, { name: 'n' }] },
      /model n is there twice/,
    ],
    [
      'an alias twice',
      {
        models: [
          { ...model, aliases: { n: null } },
          { name: 'o', aliases: { n: null } },
        ],
      },
      /model n is there twice/,
    ],
    ['a URL that is none', { models: [{ name: 'm', servers: [{ url: 'nothing' }] }] }, /url must be/],
    ['a URL of another scheme', { models: [{ name: 'm', servers: [{ url: 'ftp://a' }] }] }, /url must be/],
    [
      'a server twice',
      { models: [{ name: 'm', servers: [...model.servers, ...model.servers] }] },
      /two servers have the same url/,
    ],
    ['a folder without a tokenizer', { models: [{ ...model, tokenizer: root }] }, /must have tokenizer\.json/],
    ['a block size of nothing', { models: [{ ...model, blockTokens: 0 }] }, /blockTokens must be/],
    ['a policy that is none', { models: [{ ...model, policy: 'best' as 'saga' }] }, /policy must be/],
  ])('refuses %s', async (_, config, message) => {
    await expect(Gateway.check(config)).rejects.toThrow(message);
    await expect(Gateway.check(config)).rejects.toMatchObject({ name: expect.stringMatching(/^Saga/) as string });
  });
});

describe('the package', () => {
  it.each(['saga-scheduler', 'saga-scheduler/graph'])('%s loads neither ZeroMQ nor an HTTP client', async (name) => {
    const script = `
      import { register } from 'node:module';
      import { createRequire } from 'node:module';
      const hooks = 'export async function load(url, context, next) { process._rawDebug(url); return next(url, context); }';
      register('data:text/javascript,' + encodeURIComponent(hooks));
      await import(${JSON.stringify(name)});
      const require = createRequire(import.meta.url);
      for (const one of Object.keys(require.cache)) process._rawDebug(one);
      const native = process.report.getReport().sharedObjects.filter((one) => /zeromq/.test(one));
      process._rawDebug(native.join(' '));
    `;
    const { stderr } = await run(process.execPath, ['--input-type=module', '-e', script], { cwd: root });
    expect(stderr).toContain('dist/esm/');
    expect(stderr).not.toMatch(/node_modules\/(zeromq|undici|prom-client|pino|yaml|@huggingface)/);
  });

  it('the same for require', async () => {
    const script = `require('saga-scheduler'); console.log(Object.keys(require.cache).join('\\n'));`;
    const { stdout } = await run(process.execPath, ['-e', script], { cwd: root });
    expect(stdout).toContain('dist/cjs/');
    expect(stdout).not.toMatch(/node_modules\/(zeromq|undici|prom-client|pino|yaml|@huggingface)/);
  });
});
