/** Small parts: settings and what they refuse, texts of metrics, drift, trust, envelopes, and what loading the package loads. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Scheduler } from '../../src/index.js';
import { Drift } from '../../src/vllm/drift.js';
import { answerOf, endedPayload, framesOf, targetPayload } from '../../src/vllm/envelope.js';
import { WorkerSet, type ServerOptions, type VllmWorker } from '../../src/vllm/index.js';
import { readLoadHeader, readMetrics } from '../../src/vllm/metrics-text.js';
import { checkServer, endpointOfRank } from '../../src/vllm/options.js';
import { Doubts } from '../../src/vllm/trust.js';

describe('settings of a server', () => {
  const check = (server: object): ServerOptions => checkServer('server', server as ServerOptions);

  it('a URL loses its slash, everything else is kept', () => {
    const server = {
      url: 'https://vllm.example:8443/base/',
      apiKey: 'secret',
      dataParallelRanks: 2,
      events: 'tcp://10.0.0.1:5557',
      replay: 'tcp://[::1]:5558',
      directives: 'tcp://host-1.example:5757',
    };
    expect(check(server)).toEqual({ ...server, url: 'https://vllm.example:8443/base' });
    expect(endpointOfRank('tcp://[::1]:5558', 3)).toBe('tcp://[::1]:5561');
    expect(check({ url: 'http://a', events: 'ipc:///run/vllm/events' }).events).toBe('ipc:///run/vllm/events');
    expect(check({ url: 'http://a', events: 'tcp://*:5557', eventsBind: true }).eventsBind).toBe(true);
  });

  it.each([
    [{ url: 'ftp://a' }, /server.url must begin with http/],
    [{ url: 'file:///etc/passwd' }, /server.url must begin with http/],
    [{ url: 'http://user:hunter2@a' }, /must not have a user or password/],
    [{ url: 'http://a/?key=hunter2' }, /no query/],
    [{ url: 'hunter2' }, /must be a URL/],
    [{ url: 'http://a', events: 'http://a:1' }, /server.events must be like tcp/],
    [{ url: 'http://a', events: 'tcp://a:0' }, /server.events/],
    [{ url: 'http://a', events: 'tcp://*:5557' }, /server.events/],
    [{ url: 'http://a', events: 'inproc://x' }, /server.events/],
    [{ url: 'http://a', events: 'tcp://a:65535', dataParallelRanks: 2 }, /server.events/],
    [{ url: 'http://a', events: 'ipc:///x', dataParallelRanks: 2 }, /must be a tcp endpoint/],
    [{ url: 'http://a', replay: 'tcp://a:1' }, /of no use without server.events/],
    [{ url: 'http://a', apiKey: 'hunter2 with spaces' }, /server.apiKey must be/],
    [{ url: 'http://a', apiKey: 'hunter2\r\nx-evil: 1' }, /server.apiKey must be/],
    [{ url: 'http://a', directiveKey: 'hunter2' }, /at least 16 bytes/],
    [{ url: 'http://a', role: 'decode' }, /only prefill or only decode are not supported/],
    [{ url: 'http://a', dataParallelRanks: 0 }, /dataParallelRanks/],
    [{ url: 'http://a', key: 'hunter2' }, /has no option "key"/],
  ])('%j is refused', (server, message) => {
    expect(() => check(server)).toThrow(message);
    try {
      check(server);
    } catch (error) {
      // Whatever might be a secret is in no message.
      expect((error as Error).message).not.toContain('hunter2');
    }
  });

  it('two servers of one URL, and options that there are not', () => {
    using scheduler = new Scheduler({ maxWorkers: 2 });
    const twice = [{ url: 'http://a' }, { url: 'http://a/' }];
    expect(() => new WorkerSet({ scheduler, model: 'm', servers: twice })).toThrow(/same url/);
    const bound = { events: 'tcp://*:5557', eventsBind: true };
    const central = (a: string, b: string): object => ({
      scheduler,
      model: 'm',
      servers: [
        { url: 'http://a', ...bound, topic: a },
        { url: 'http://b', ...bound, topic: b },
      ],
    });
    expect(() => new WorkerSet(central('kv@a', 'kv@') as never)).toThrow(/none begins with the other/);
    expect(() => new WorkerSet(central('kv@a', 'kv@b') as never)).not.toThrow();
    expect(() => new WorkerSet({ scheduler, model: 'm', server: [] } as never)).toThrow(/no option "server"/);
    expect(() => new WorkerSet({ scheduler, model: 'm', healthSeconds: 0 })).toThrow(/healthSeconds/);
  });
});

describe('texts of metrics', () => {
  it('what is needed, by rank', () => {
    const text = `# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 4.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0"} 1.25e-1
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1100",odd="a \\"b\\", c=\\n\\\\}"} 1.0
vllm:kv_cache_usage_perc{engine="x"} 0.5
vllm:num_requests_waiting{engine="1"} NaN
process_cpu_seconds_total 1.0`;
    const ranks = readMetrics(text);
    expect(ranks.get(0)).toEqual({
      running: 3,
      waiting: 2,
      usage: 0.125,
      cache: { block_size: '16', engine: '0', num_gpu_blocks: '1100', odd: 'a "b", c=\n\\}' },
    });
    expect(ranks.get(1)).toEqual({ running: 4, waiting: undefined, usage: undefined, cache: undefined });
    expect(ranks.size).toBe(2);
    expect(readMetrics('vllm:num_requests_running 5').get(0)?.running).toBe(5);
  });

  it('never throws, and keeps within ranks', () => {
    const word = fc.constantFrom(
      'vllm:kv_cache_usage_perc',
      '{',
      '}',
      'engine="',
      '"',
      '999',
      '\\',
      ',',
      '=',
      ' ',
      '\n',
      '1e400',
      '-1',
    );
    fc.assert(
      fc.property(fc.array(word, { maxLength: 40 }), (words) => {
        for (const [rank, { usage = 0 }] of readMetrics(words.join('')))
          expect(rank < 256 && usage >= 0 && Number.isFinite(usage)).toBe(true);
      }),
      { numRuns: 500, seed: 3 },
    );
  });

  it('the load header, as text and as JSON', () => {
    expect(
      readLoadHeader('TEXT named_metrics.num_requests_waiting=2.0, named_metrics.kv_cache_usage_perc=0.25'),
    ).toEqual({
      waiting: 2,
      usage: 0.25,
    });
    expect(readLoadHeader('JSON {"named_metrics": {"num_requests_waiting": 2, "kv_cache_usage_perc": 0.25}}')).toEqual({
      waiting: 2,
      usage: 0.25,
    });
    expect(readLoadHeader('BIN x')).toEqual({ waiting: undefined, usage: undefined });
  });
});

describe('drift', () => {
  it('warns above 0.2, and no longer below 0.1; a block is no error, and surprises are none', () => {
    const drift = new Drift(16);
    for (let n = 0; n < 40; ++n) drift.observe(1000, 984);
    for (let n = 0; n < 40; ++n) drift.observe(0, 5000);
    expect(drift).toMatchObject({ drift: 0, warning: false, factor: 1, observations: 80 });
    expect(drift.surprise).toBeGreaterThan(0.8);
    for (let n = 0; n < 4; ++n) expect(drift.observe(1000, 0)).toBe(false);
    expect(drift.drift).toBeLessThan(0.2);
    expect(drift.observe(1000, 0)).toBe(true);
    expect(drift.warning).toBe(true);
    expect(drift.factor).toBe(0.75);
    let still = 0;
    while (drift.warning && still < 100) {
      drift.observe(1000, 1000);
      ++still;
    }
    expect(drift.drift).toBeLessThan(0.1);
    expect(still).toBeGreaterThan(10);
    expect(drift.factor).toBe(1);
  });

  it('ignores what is no number, and says nothing before 20 answers', () => {
    const drift = new Drift(16);
    expect([drift.observe(NaN, 1), drift.observe(1, -1), drift.observe(Infinity, 1)]).toEqual([false, false, false]);
    for (let n = 0; n < 19; ++n) drift.observe(1000, 0);
    expect([drift.observations, drift.warning]).toEqual([19, false]);
    drift.observe(1000, 0);
    expect(drift.warning).toBe(true);
  });
});

describe('doubts', () => {
  it('multiply, are told apart, and go', () => {
    const doubts = new Doubts();
    expect([doubts.trust, doubts.words]).toEqual([1, []]);
    expect(doubts.set('source', { words: 'b', factor: 0.5 })).toBe(true);
    expect(doubts.set('events', { words: 'a', factor: 0.5 })).toBe(true);
    expect(doubts.set('events', { words: 'a', factor: 0.5 })).toBe(false);
    expect([doubts.trust, doubts.words]).toEqual([0.25, ['events: a', 'source: b']]);
    expect(doubts.set('events', undefined)).toBe(true);
    expect(doubts.set('events', undefined)).toBe(false);
    expect(doubts.trust).toBe(0.5);
  });
});

describe('messages', () => {
  const message = { messageId: 'm', epoch: 3, expiresIn: 30, time: 1.5, actions: [] };

  it('are as docs/directives.md has them, with a signature behind', () => {
    expect(framesOf({ ...message, epoch: undefined }, undefined).map(String)).toEqual([
      '{"protocol_version":"0.1","message_id":"m","expires_in":30,"time":1.5,"actions":[]}',
    ]);
    const [body, signature] = framesOf(message, 'k');
    expect(JSON.parse(String(body))).toMatchObject({ epoch: 3 });
    // echo -n '<body>' | openssl dgst -sha256 -hmac k
    expect(signature?.toString('hex')).toBe('dd40bd8145254eeb3f24a5d12972231879ec8263b2127e66ca9245a936df38e5');
  });

  it('targets and ends of calls', () => {
    expect(targetPayload({ hashes: ['aa'] })).toEqual({ hashes: ['aa'] });
    expect(targetPayload({ requestId: 'r' })).toEqual({ request_id: 'r' });
    expect(targetPayload({ thread: 0 })).toEqual({ thread: 0 });
    expect(targetPayload({ tokenIds: Uint32Array.of(1, 2), cacheSalt: 's', loraName: '' })).toEqual({
      token_ids: [1, 2],
      cache_salt: 's',
    });
    const worker = {} as VllmWorker;
    expect(endedPayload({ worker, thread: 4, stop: 'tool-use', tool: 'web-api', expectedSeconds: 2 })).toEqual({
      thread: 4,
      stop_reason: 'tool_use',
      tool_class: 3,
      session_end: false,
      expected_seconds: 2,
    });
    expect(endedPayload({ worker, thread: 4, stop: 'unknown', sessionEnd: true })).toEqual({
      thread: 4,
      tool_class: 0,
      session_end: true,
    });
  });

  it('whatever comes is an answer, unsigned or malformed', () => {
    const key = fc.constantFrom(undefined, 'key');
    const frames = fc.array(
      fc.oneof(
        fc.uint8Array({ maxLength: 40 }),
        fc.json().map((text) => Buffer.from(text)),
        fc
          .record({ message_id: fc.string(), outcomes: fc.array(fc.object()) })
          .map((one) => Buffer.from(JSON.stringify(one))),
      ),
      { maxLength: 3 },
    );
    fc.assert(
      fc.property(frames, key, (given, secret) => {
        const answer = answerOf(given, secret);
        if (typeof answer !== 'string') expect(secret).toBeUndefined();
      }),
      { numRuns: 1000, seed: 9 },
    );
  });
});

describe('what is loaded', () => {
  const root = fileURLToPath(new URL('../../', import.meta.url));
  const loadedBy = (entry: string): string[] => {
    const program = `
      import { createRequire } from 'node:module';
      const require = createRequire(process.cwd() + '/package.json');
      require(${JSON.stringify(entry)});
      const files = Object.keys(require.cache);
      console.log(JSON.stringify(['zeromq', 'undici'].filter((name) => files.some((file) => file.includes('/node_modules/' + name + '/')))));
    `;
    const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
      cwd: root,
      encoding: 'utf8',
    });
    expect([status, stderr]).toEqual([0, '']);
    return JSON.parse(stdout) as string[];
  };

  it('ZeroMQ and undici only with saga-scheduler/vllm', () => {
    expect(loadedBy('saga-scheduler')).toEqual([]);
    expect(loadedBy('saga-scheduler/simulate')).toEqual([]);
    expect(loadedBy('saga-scheduler/graph')).toEqual([]);
    expect(loadedBy('saga-scheduler/vllm')).toEqual(['zeromq', 'undici']);
  });
});
