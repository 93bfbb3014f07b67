/** Answers as they are written to clients, and deadlines. */
import { createServer, type ServerResponse } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { AnswerWriter } from '../../src/gateway/answer-writer.js';
import { Deadlines } from '../../src/gateway/deadlines.js';

/** What a client gets of an answer, byte for byte behind its head. */
async function answered(answer: (response: ServerResponse) => Promise<void>): Promise<string> {
  const server = createServer((_request, response) => void answer(response));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
  socket.write('GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n');
  let text = '';
  socket.setEncoding('latin1').on('data', (chunk: string) => (text += chunk));
  await new Promise((resolve) => socket.once('close', resolve));
  server.close();
  return text.slice(text.indexOf('\r\n\r\n') + 4);
}

describe('an answer', () => {
  it('has one chunk for the pieces of a turn', async () => {
    const body = await answered(async (response) => {
      response.writeHead(200);
      const writer = new AnswerWriter(response, () => undefined);
      writer.write(Buffer.from('ab'));
      writer.write(Buffer.from('cd'));
      await delay(5);
      writer.write(Buffer.from('e'));
      writer.end();
    });
    expect(body).toBe('4\r\nabcd\r\n1\r\ne\r\n0\r\n\r\n');
  });

  it('with a length goes through its response, and so does one whose writing somebody has changed', async () => {
    const whole = await answered((response) => {
      response.writeHead(200, { 'content-length': 3 });
      const writer = new AnswerWriter(response, () => undefined);
      writer.write(Buffer.from('abc'));
      writer.end();
      return Promise.resolve();
    });
    expect(whole).toBe('abc');
    const changed = await answered((response) => {
      const write = response.write.bind(response);
      response.write = ((piece: Buffer) => write(piece.toString().toUpperCase())) as never;
      response.writeHead(200);
      const writer = new AnswerWriter(response, () => undefined);
      writer.write(Buffer.from('abc'));
      writer.end();
      return Promise.resolve();
    });
    expect(changed).toBe('3\r\nABC\r\n0\r\n\r\n');
  });

  it('is held back while its client does not read, and all of it arrives', async () => {
    const piece = Buffer.alloc(100_000, 'x');
    let held = 0;
    const body = await answered(async (response) => {
      response.writeHead(200);
      let go: () => void = () => undefined;
      const writer = new AnswerWriter(response, () => {
        go();
      });
      for (let i = 0; i < 50; ++i) {
        const drained = new Promise<void>((resolve) => (go = resolve));
        if (writer.write(piece)) continue;
        held += 1;
        expect(writer.full).toBe(true);
        await drained;
      }
      writer.end();
    });
    expect(held).toBeGreaterThan(0);
    expect(body.split('x').length - 1).toBe(50 * piece.length);
    expect(body.endsWith('0\r\n\r\n')).toBe(true);
  });
});

describe('deadlines', () => {
  it('are told when they have passed, once, and not before', async () => {
    const deadlines = new Deadlines(0.1);
    const begun = performance.now();
    let told = 0;
    let after = 0;
    deadlines.begin(0.1, () => {
      told += 1;
      after = performance.now() - begun;
    });
    const ended = deadlines.begin(0.1, () => (told += 100));
    ended.end();
    await delay(400);
    expect(told).toBe(1);
    expect(after).toBeGreaterThanOrEqual(100);
  });

  it('that are put off begin anew; one that has passed can end others, and begin again', async () => {
    const deadlines = new Deadlines(0.1);
    const told: string[] = [];
    const late = deadlines.begin(0.1, () => told.push('late'));
    const until = performance.now() + 250;
    while (performance.now() < until) {
      late.putOff();
      await delay(5);
    }
    expect(told).toEqual([]);
    const first = deadlines.begin(0.1, () => {
      told.push('first');
      second.end();
      if (told.filter((each) => each === 'first').length < 2) deadlines.again(first, 0.1);
    });
    const second = deadlines.begin(0.1, () => told.push('second'));
    await delay(600);
    expect(told.filter((each) => each !== 'late')).toEqual(['first', 'first']);
    expect(told).toContain('late');
  });
});
