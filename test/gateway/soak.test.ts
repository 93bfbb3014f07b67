/** Thousands of requests of all kinds: nothing of them stays. */
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { emulated, get, leftovers, nothingLeft, post, randomOf, range, serve, until } from './helpers.js';

it('3,000 requests of all kinds, many of them given up, leave nothing', { timeout: 180_000 }, async () => {
  const workers = [
    await emulated({ eventsPort: 0, blocks: 600 }),
    await emulated({ eventsPort: 0, blocks: 600, timeScale: 300 }),
  ];
  const serving = await serve(workers, { timeScale: 300, maxCalls: 512 });
  const { url, pool } = serving;
  const random = randomOf(11);
  const reservations: string[] = [];
  const statuses = new Map<string, number>();
  let inFlight = 0;

  const one = async (i: number): Promise<void> => {
    const gone = new AbortController();
    const session = {
      'x-saga-session-id': `s${random(40)}`,
      ...(random(8) === 0 ? { 'x-saga-session-final': '1' } : {}),
    };
    const stem = range(1000 * random(30), 64 + 16 * random(20));
    const stream = random(2) === 0;
    const send = async (path: string, body: unknown, headers: Record<string, string> = {}): Promise<void> => {
      const response = await fetch(url + path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: typeof body === 'string' ? body : JSON.stringify(body),
        signal: gone.signal,
      });
      const text = await response.text();
      statuses.set(`${path} ${response.status}`, (statuses.get(`${path} ${response.status}`) ?? 0) + 1);
      if (path.endsWith('reserve') && response.ok)
        reservations.push((JSON.parse(text) as { reservation: string }).reservation);
    };
    if (random(4) === 0)
      setTimeout(() => {
        gone.abort();
      }, random(40));
    try {
      switch (i % 10) {
        case 0:
          return await send(
            '/v1/chat/completions',
            { model: 'm', messages: [{ role: 'user', content: `hi ${i % 17}` }], max_tokens: 1 + random(20), stream },
            session,
          );
        case 1:
          return await send('/v1/messages', {
            model: 'm',
            messages: [{ role: 'user', content: `hi ${i % 17}` }],
            max_tokens: 1 + random(20),
            stream,
          });
        case 2:
          return await send('/v1/responses', { model: 'm', input: 'hello', max_output_tokens: 4, stream });
        case 3:
          return await send('/v1/completions', random(2) === 0 ? '{"model":' : { model: 'none', prompt: stem });
        case 4:
          return await send('/saga/select', { model: 'm', token_ids: stem });
        case 5:
          return await send(
            '/saga/select_and_reserve',
            { model: 'm', token_ids: stem, ttl_seconds: 1 + random(3) },
            session,
          );
        case 6: {
          const reservation = reservations.pop();
          return await send('/saga/release', { reservation: reservation ?? 'none' });
        }
        default:
          return await send(
            '/v1/completions',
            { model: 'm', prompt: stem, max_tokens: 1 + random(60), stream },
            random(2) === 0 ? session : {},
          );
      }
    } catch {
      if (!gone.signal.aborted) throw new Error(`request ${i} failed`);
      statuses.set('gone', (statuses.get('gone') ?? 0) + 1);
    }
  };

  const running: Promise<void>[] = [];
  for (let i = 0; i < 3000; ++i) {
    while (inFlight >= 48) await delay(1);
    ++inFlight;
    running.push(one(i).finally(() => --inFlight));
  }
  await Promise.all(running);
  for (const reservation of reservations.splice(0)) await post(url, '/saga/release', { reservation });
  await until(
    'nothing is left',
    () => JSON.stringify(leftovers(serving)) === JSON.stringify(nothingLeft),
    15_000,
  ).catch(() => expect(leftovers(serving)).toEqual(nothingLeft));

  expect(statuses.get('/v1/completions 200')).toBeGreaterThan(300);
  expect(statuses.get('gone')).toBeGreaterThan(50);
  expect([...statuses.keys()].filter((one) => / 5\d\d$/.test(one))).toEqual([]);
  const { counters } = pool;
  expect(counters.submitted).toBe(counters.finished + counters.cancelled);
  // Forty names, and lines of prompts that nobody named: the lineage forgets the oldest.
  expect(pool.sessions.size).toBeLessThanOrEqual(4096);
  expect(pool.scheduler.stats().workflows).toBe(pool.sessions.size);
  // Neither the workers nor their engines have calls left.
  for (const worker of workers) await until('the engine is idle', () => worker.engines[0]?.runningCalls === 0);
  expect((await get(url, '/readyz')).json().ready).toBe(true);
  const metrics = (await get(url, '/metrics')).text;
  expect(metrics).toMatch(/saga:num_requests_running\{model_name="m"\} 0/);
  expect(metrics.split('\n').length).toBeLessThan(1000);
  expect(serving.log.lines.filter((line) => /failed within|scheduling failed|could not be told/.test(line))).toEqual(
    [],
  );
});
