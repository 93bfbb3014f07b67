/** A model that computes says the same with SAGA deciding what is evicted as without: float32, greedy, one request at a time. */
import { expect, inject, it } from 'vitest';
import { complete, dumpPool, randomOf, randomTokens, resetPrefixCache } from './client.js';
import { Recorder } from './events.js';
import { cpuPoolBlocks, serverIn } from './servers.js';

const folder = inject('vllmServers');
const requests = 120;

it('answers are identical, token by token, while both pools evict', async () => {
  const stock = await serverIn(folder, 'cpu');
  const saga = await serverIn(folder, 'cpuPolicy');
  for (const server of [stock, saga]) expect(await resetPrefixCache(server)).toBe(true);
  const recorders = [new Recorder(stock.events), new Recorder(saga.events)];
  const random = randomOf(21);
  const system = randomTokens(random, 200);
  const lines = Array.from({ length: 10 }, () => [...system]);
  const cached = { stock: 0, saga: 0, differ: 0 };
  try {
    for (let at = 0; at < requests; ++at) {
      const line = random(lines.length);
      let prompt = lines[line] as number[];
      if (prompt.length > 1500) prompt = [...system];
      prompt.push(...randomTokens(random, 20 + random(120)));
      const body = { max_tokens: 12, temperature: 0, ignore_eos: true };
      const envelope = {
        protocol_version: '0.1',
        message_id: `identical-${at}`,
        actions: [
          {
            action_id: '0',
            action_type: 'saga.call',
            action_version: '1.0',
            payload: { thread: line, prompt_kind: at % 2 === 0 ? 'tool' : 'user', expected_seconds: 1 + (line % 5) },
          },
        ],
      };
      const theirs = await complete(stock, prompt, body);
      const own = await complete(saga, prompt, { ...body, kv_transfer_params: { saga: envelope } });
      expect([theirs.status, own.status]).toEqual([200, 200]);
      expect(theirs.tokens).toHaveLength(12);
      expect({ at, tokens: own.tokens }).toEqual({ at, tokens: theirs.tokens });
      cached.stock += theirs.cachedTokens;
      cached.saga += own.cachedTokens;
      if (theirs.cachedTokens !== own.cachedTokens) ++cached.differ;
      lines[line] = [...prompt, ...own.tokens];
    }
    for (const server of [stock, saga]) expect((await dumpPool(server)).total).toBeGreaterThan(cpuPoolBlocks / 2);
    for (const { events } of recorders)
      expect(events.filter(({ type }) => type === 'removed').length).toBeGreaterThan(cpuPoolBlocks / 2);
    expect(cached.stock).toBeGreaterThan(requests * 100);
    expect(cached.saga).toBeGreaterThan(requests * 100);
    // The orders are different ones: it is not the same engine twice.
    expect(cached.differ).toBeGreaterThan(0);
    console.log(`identical answers; cached tokens: ${cached.stock} without, ${cached.saga} with SAGA`);
  } finally {
    for (const recorder of recorders) recorder.close();
  }
});
