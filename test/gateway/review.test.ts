/** What a client must not be able to do, and what the gateway must hold to in numbers. */
import { setTimeout as delay } from 'node:timers/promises';
import { connect } from 'node:net';
import { describe, expect, it } from 'vitest';
import { Line, Lines } from '../../src/gateway/tokens/lines.js';
import { PromptChain } from '../../src/prompt-chain.js';
import { FakeWorker, json, raw, serve } from './helpers.js';

describe('lines of conversations', () => {
  const chainOf = (tokens: number): PromptChain => {
    const chain = new PromptChain();
    chain.update(new Uint32Array(tokens).fill(7));
    return chain;
  };

  it('are bounded by the memory that they really take', () => {
    const most = { bytes: 2 ** 20, lines: 1000 };
    const lines = new Lines(most);
    for (let i = 0; i < 200; ++i) {
      const line = new Line(chainOf(16));
      lines.mark(line, `k${i}`, 16);
      lines.resized(line);
      expect(lines.size * line.chain.stats().memoryBytes).toBeLessThanOrEqual(most.bytes);
    }
    // A prompt of 16 tokens has a fixed cost far above its 80 bytes.
    expect(lines.size).toBeLessThan(60);
    expect(lines.size).toBeGreaterThan(10);
    expect(lines.find('k199')).toBeDefined();
    expect(lines.find('k0')).toBeUndefined();
    lines.close();
    expect([lines.size, lines.bytes]).toEqual([0, 0]);
  });

  it('are bounded in number', () => {
    const lines = new Lines({ bytes: 2 ** 30, lines: 5 });
    for (let i = 0; i < 20; ++i) {
      const line = new Line(chainOf(1));
      lines.mark(line, `k${i}`, 1);
      lines.resized(line);
    }
    expect(lines.size).toBe(5);
    lines.close();
  });
});

describe('a connection', () => {
  it('whose headers do not arrive is dropped', async () => {
    const worker = await FakeWorker.start(json({}));
    const { port } = await serve([worker], { headerSeconds: 0.2, apiKeys: ['k'] });
    const begun = performance.now();
    const answer = await raw(port, 'POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-slow: ', 3000);
    expect(answer).toMatch(/^HTTP\/1\.1 408 /);
    expect(performance.now() - begun).toBeLessThan(2500);
  });

  it('beyond max_connections is dropped', async () => {
    const worker = await FakeWorker.start(json({}));
    const { port } = await serve([worker], { maxConnections: 2 });
    const closed: number[] = [];
    const sockets = [0, 1, 2, 3].map((i) => {
      const socket = connect(port, '127.0.0.1');
      socket.on('error', () => undefined).on('close', () => closed.push(i));
      socket.resume();
      return socket;
    });
    await delay(300);
    expect(closed).toHaveLength(2);
    for (const socket of sockets) socket.destroy();
  });
});

describe('a path', () => {
  it.each([
    '/v1/chat/%63ompletions',
    '/v1/%63ompletions',
    '/v1/chat%2Fcompletions',
    '/v1/x/../completions',
    '/v1//completions',
    '/v1/./completions',
    '/v1/completions/',
    '/v1/completions\\x',
    '/v1/embeddings/%2e%2e/completions',
    '/v1/responses/../completions',
    '/v1/responses/x/%63ancel',
    '/%761/completions',
    '/saga/%77orkers',
  ])('%s that can be read in two ways is none', async (path) => {
    const worker = await FakeWorker.start(json({ choices: [] }));
    const { port } = await serve([worker]);
    const head =
      'HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 14\r\nconnection: close\r\n\r\n';
    const answer = await raw(port, `POST ${path} ${head}{"prompt":[1]}`);
    expect(answer).toMatch(/^HTTP\/1\.1 404 /);
    expect(answer).toContain('"code":"unknown_route"');
    expect(worker.requests).toEqual([]);
  });
});
