import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { simulate } from '../../src/cli/simulate.js';
import { SagaError } from '../../src/errors.js';
import type { RawOptions } from '../../src/simulate/options.js';
import { liveForPressure, type CacheReport, type ClusterReport } from '../../src/simulate/run.js';
import { generateTasks, paperWorkloads } from '../../src/workload/paper-workloads.js';
import { fileOf, pathOf, requestLine } from '../workload/helpers.js';
import { fakeBackend, rememberingStreams, type FakeBackend } from './fakes.js';

async function runWith(
  raw: RawOptions,
  backend: FakeBackend = fakeBackend(),
): Promise<{ code: number; out: string; err: string; backend: FakeBackend }> {
  const streams = rememberingStreams();
  const code = await simulate(raw, () => Promise.resolve(backend), streams);
  return { code, out: streams.texts.out, err: streams.texts.err, backend };
}

const sessions = fileOf(
  'sessions.jsonl',
  ['a', 'b', 'c', 'd']
    .flatMap((sid) => [0, 1, 2].map((k) => requestLine({ sid, k, t: 10 * k, h: [[0, 20 + k]] })))
    .join('\n'),
);
const arrivals = fileOf(
  'arrivals.jsonl',
  [0, 1000]
    .map((timestamp) => JSON.stringify({ timestamp, input_length: 1024, output_length: 5, hash_ids: [0, timestamp] }))
    .join('\n'),
);

describe('cache mode', () => {
  it('prints one JSON object with one result for each size and policy, in that order', async () => {
    const { code, out, backend } = await runWith({
      trace: sessions,
      cacheShares: '0.7,10',
      policies: 'lru,ttl',
      json: true,
    });
    expect(code).toBe(0);
    expect(out.endsWith('}\n')).toBe(true);
    const report = JSON.parse(out) as CacheReport;
    expect(Object.keys(report)).toEqual(['schema', 'options', 'requests', 'distinctPages', 'results']);
    expect(report.schema).toBe('saga.simulate.cache/1');
    expect(report.options).toEqual({
      mode: 'cache',
      trace: sessions,
      workload: null,
      seed: 42,
      tasks: 4,
      gapCap: 1800,
      orderSalt: null,
      onBadLine: 'fail',
      live: 32,
      model: 'pinned',
      cacheTokens: null,
      cacheShares: [0.7, 10],
      pageTokens: 512,
      first: null,
      hints: 'none',
      policies: ['lru', 'ttl'],
      timing: false,
    });
    expect(report.results.map((row) => [row.policy, row.cacheShare, row.cachePages])).toEqual([
      ['lru', 0.7, 7],
      ['ttl', 0.7, 7],
      ['lru', 10, 100],
      ['ttl', 10, 100],
    ]);
    expect(report.results[0]).toEqual({
      policy: 'lru',
      cachePages: 7,
      cacheShare: 0.7,
      requestedPages: 50_000,
      missedPages: 14_895,
      evictedPages: 14_888,
      prefixHitRate: (50_000 - 14_895) / 50_000,
      beladyRatio: 1.5,
      costRatio: 1.5,
    });
    // The optimum ran for the ratios although nobody listed it.
    expect(backend.cacheRuns.filter((run) => run.policy === 'belady').length).toBe(2);
    expect(backend.cacheRuns.every((run) => run.model === 'pinned' && !run.timing && run.requestLimit === 12)).toBe(
      true,
    );
    expect(backend.mostAtOnce).toBe(2);
  });

  it('writes the same bytes twice', async () => {
    const raw = { workload: 'agent', tasks: '5', json: true };
    expect((await runWith(raw)).out).toBe((await runWith(raw)).out);
  });

  it('takes sizes in tokens, all policies, a part of the requests, another order and timing', async () => {
    const raw = {
      trace: sessions,
      cacheTokens: '1024,5000',
      first: '50',
      orderSalt: '3',
      timing: true,
      json: true,
      model: 'atomic',
    };
    const { out, backend } = await runWith(raw);
    const report = JSON.parse(out) as CacheReport;
    expect(report.requests).toBe(6);
    expect(backend.cacheRuns.every((run) => run.requestLimit === 6 && run.timing && run.model === 'atomic')).toBe(true);
    expect(backend.opened[0]?.schedule.call.length).toBe(12); // the whole input stays known, for its distinct pages
    expect(report.results.map((row) => row.cachePages)).toEqual([
      ...Array<number>(7).fill(2),
      ...Array<number>(7).fill(9),
    ]);
    expect(report.results.every((row) => row.cacheShare === null && row.decisionNanoseconds === 12.5)).toBe(true);
    expect(backend.mostAtOnce).toBe(1); // times are those of a run that has the machine to itself
    expect(report.results[6]).toMatchObject({ policy: 'belady', beladyRatio: 1, costRatio: 1 });
  });

  it('tells the cache what clients would tell, and says so in the report', async () => {
    const told = await runWith({ trace: sessions, hints: 'end+tool', json: true, policies: 'lru', cacheShares: '1' });
    const schedule = told.backend.opened[0]?.schedule;
    // Four sessions of three calls; each but the last is followed by a tool's result (a gap of 0 s).
    expect(schedule?.sessionEnd?.reduce((sum, one) => sum + one, 0)).toBe(4);
    expect(schedule?.declaredGap?.filter((gap) => gap === 0).length).toBe(8);
    expect((JSON.parse(told.out) as CacheReport).options['hints']).toBe('end+tool');
    const silent = await runWith({ trace: sessions, json: true, policies: 'lru', cacheShares: '1' });
    expect(silent.backend.opened[0]?.schedule.sessionEnd).toBeUndefined();
    const single = await runWith({ trace: arrivals, model: 'atomic', hints: 'end', json: true });
    expect([single.code, single.out]).toEqual([2, '']);
    expect(single.err).toContain('expected --hints none with a trace of single requests');
  });

  it('plays a trace with arrival times at them', async () => {
    const { code, out, backend } = await runWith({
      trace: arrivals,
      model: 'atomic',
      json: true,
      policies: 'lru',
      cacheShares: '1',
    });
    expect(code).toBe(0);
    expect((JSON.parse(out) as CacheReport).options['live']).toBeNull();
    expect([...(backend.opened[0]?.schedule.start ?? [])]).toEqual([0, 1_000_000]);
  });

  it('prints a table with aligned columns, and progress as plain lines to standard error', async () => {
    const { out, err } = await runWith({ trace: sessions, cacheShares: '1', policies: 'lru,belady' });
    expect(out.split('\n')).toEqual([
      '12 requests, 50,000 pages of 512 tokens asked for, 1,000 distinct in the input',
      '',
      '       cache  pages  policy  hit rate %  misses / optimum  cost / optimum  missed pages  evicted pages',
      '------------  -----  ------  ----------  ----------------  --------------  ------------  -------------',
      '1 % = 5.12 K     10  lru          70.30             1.500           1.500        14,850         14,840',
      '1 % = 5.12 K     10  belady       80.20             1.000           1.000         9,900          9,890',
      '',
    ]);
    expect(err).not.toContain('\r');
    expect(err).toContain('saga: replaying (2 runs)');
    expect(err).toContain('saga: replaying: 100 %');
  });
});

describe('cluster mode', () => {
  const cluster = { mode: 'cluster', workload: 'swe-bench', tasks: '20' };

  it('searches the saturation rate and gives one result for each load and policy', async () => {
    const raw = {
      ...cluster,
      load: '0.5,1',
      policies: 'affinity,ttl',
      saturation: 'ttl',
      json: true,
      workers: '4',
      seed: '7',
    };
    const { code, out, backend } = await runWith(raw);
    expect(code).toBe(0);
    const report = JSON.parse(out) as ClusterReport;
    expect(Object.keys(report)).toEqual([
      'schema',
      'options',
      'requests',
      'tasks',
      'tasksTooLarge',
      'saturationTasksPerSecond',
      'saturationByPolicy',
      'results',
    ]);
    expect(report.schema).toBe('saga.simulate.cluster/1');
    expect(report.saturationTasksPerSecond).toBe(1);
    expect(report.saturationByPolicy).toEqual({ ttl: 2 / 1.5 });
    expect(backend.saturations).toEqual([
      { policy: 'affinity', seed: 7, hints: 'graph', without: [] },
      { policy: 'ttl', seed: 7, hints: 'graph', without: [] },
    ]);
    expect(report.results.map((row) => [row.load, row.policy, row.rateTasksPerSecond])).toEqual([
      [0.5, 'affinity', 0.5],
      [0.5, 'ttl', 0.5],
      [1, 'affinity', 1],
      [1, 'ttl', 1],
    ]);
    expect(report.results[0]).toEqual({
      policy: 'affinity',
      load: 0.5,
      rateTasksPerSecond: 0.5,
      liveTasks: null,
      tasksCompleted: 20,
      taskCompletionSeconds: { mean: 300, p50: 240, p95: 600, p99: 900 },
      idealSeconds: 100,
      taskCompletionSecondsWithoutGaps: { mean: 280, p50: 240, p95: 600, p99: 900 },
      prefixHitRate: 0.9,
      beladyRatio: 1.25,
      costRatio: 1.5,
      regeneratedTokens: 1_234_567,
      memoryUtilization: 0.5,
      sloAttainment: 0.75,
      sloAttainmentPaper: 0.25,
      throughputTokensPerSecond: 4321,
      capacityPages: 28_000,
      requestedPages: 5000,
      missedPages: 500,
      evictedPages: 100,
      outputTokens: 9999,
      preemptions: 3,
      preemptedTokens: 30,
      prefilledTokens: 12_345,
      loadedTokens: 16,
      copiedPages: 4,
      heldCalls: 6,
      steals: 2,
      leases: { granted: 5, refused: 1, expired: 2, released: 1, revoked: 1 },
      stateDigest: '00000000deadbeef',
    });
    expect(report.options).toMatchObject({ hints: 'graph', without: [], policies: ['affinity', 'ttl'] });
    expect(backend.clusters).toEqual([
      {
        workers: 4,
        hardware: 'a100-tp4',
        pageTokens: 16,
        kvTokens: 448_000,
        maxSequences: 256,
        stepTokens: 2048,
        hostTierTokens: 0,
        linkBytesPerSecond: 25e9,
      },
    ]);
    expect(backend.mostAtOnce).toBe(2);
  });

  it('takes a rate, a number of live tasks, or a pressure, and then searches nothing', async () => {
    const driven = { policy: 'ttl', seed: 42, hints: 'graph', without: [] };
    const rate = await runWith({
      ...cluster,
      rate: '0.25',
      json: true,
      policies: 'ttl',
      journal: pathOf('run.journal'),
    });
    expect(rate.backend.clusterRuns).toEqual([{ ...driven, rate: 0.25, live: 0, journal: pathOf('run.journal') }]);
    expect(rate.backend.saturations).toEqual([]);
    expect(JSON.parse(rate.out)).toMatchObject({
      saturationTasksPerSecond: null,
      results: [{ load: null, rateTasksPerSecond: 0.25, liveTasks: null }],
    });
    const live = await runWith({ ...cluster, live: '9', json: true, policies: 'ttl' });
    expect(live.backend.clusterRuns).toEqual([{ ...driven, rate: 0, live: 9 }]);
    const pressure = await runWith({ ...cluster, pressure: '2', workers: '2', json: true, policies: 'ttl' });
    const workload = generateTasks({ classes: paperWorkloads['swe-bench'], tasks: 20 });
    const contexts = Array.from(
      workload.promptTokens,
      (prompt, call) => prompt + (workload.outputTokens[call] ?? 0) / 2,
    );
    const mean = contexts.reduce((sum, one) => sum + one, 0) / contexts.length;
    expect(pressure.backend.clusterRuns[0]?.live).toBe(Math.round((2 * 2 * 448_000) / mean));
    expect(liveForPressure(workload, 10, 0.001)).toBe(1);
  });

  it('tells graphs of generated workloads but not of traces unless asked, and takes parts out where they are', async () => {
    const hintsOf = async (raw: RawOptions): Promise<unknown> => {
      const { out, backend } = await runWith({ mode: 'cluster', live: '2', policies: 'ttl', json: true, ...raw });
      const { options } = JSON.parse(out) as ClusterReport;
      expect(backend.clusterRuns.every((run) => run.hints === options['hints'])).toBe(true);
      return options['hints'];
    };
    expect(await hintsOf({ workload: 'web-arena', tasks: '5' })).toBe('graph');
    expect(await hintsOf({ workload: 'agent', tasks: '5' })).toBe('graph');
    expect(await hintsOf({ workload: 'web-arena', tasks: '5', hints: 'none' })).toBe('none');
    expect(await hintsOf({ trace: sessions })).toBe('none');
    expect(await hintsOf({ trace: sessions, hints: 'graph' })).toBe('graph');
    const { backend, out } = await runWith({
      ...cluster,
      rate: '1',
      policies: 'affinity,saga-paper,saga',
      without: 'stealing,ttl',
      json: true,
    });
    expect(backend.clusterRuns.map(({ policy, without }) => [policy, without])).toEqual([
      ['affinity', []],
      ['saga-paper', ['stealing', 'ttl']],
      ['saga', ['stealing', 'ttl']],
    ]);
    expect((JSON.parse(out) as ClusterReport).options['without']).toEqual(['stealing', 'ttl']);
  });

  it('leaves out tasks that no worker can hold, says so, and fails when none is left', async () => {
    const raw = { mode: 'cluster', trace: sessions, live: '2', policies: 'ttl', json: true };
    // Prompts have 20, 21 and 22 blocks of 64 tokens and 10 tokens more; answers 5.
    const all = await runWith({ ...raw, kvTokens: String(22 * 64 + 16) });
    expect((JSON.parse(all.out) as ClusterReport).tasksTooLarge).toBe(0);
    const none = await runWith({ ...raw, kvTokens: String(22 * 64) });
    expect([none.code, none.out]).toEqual([2, '']);
    expect(none.err).toContain('expected a KV room of at least 1422 tokens');
    expect((JSON.parse(all.out) as ClusterReport).results[0]?.sloAttainmentPaper).toBeNull(); // a trace expects nothing
  });

  it('prints a table', async () => {
    const { out } = await runWith({ ...cluster, load: '1', policies: 'affinity' });
    expect(out).toContain('load 1 = 1.000 tasks/s');
    expect(out).toMatch(/^ +1 +1\.000 +affinity +400\.0 +320\.0 +800\.0 +1200\.0 +4\.00 +90\.00 +1\.250 +1\.23 M/m);
  });
});

describe('what cannot be done', () => {
  const refusals: [string, RawOptions, RegExp][] = [
    ['a bad option', { trace: sessions, live: 'x' }, /expected --live to be a whole number/],
    ['a missing trace', { trace: pathOf('nowhere.jsonl') }, /expected a readable trace/],
    ['an empty trace', { trace: fileOf('void.jsonl', '\n') }, /expected at least one request/],
    ['an unknown format', { trace: fileOf('table.csv', 'a,b\n') }, /expected request lines/],
    [
      'a malformed line',
      { trace: fileOf('torn.jsonl', `${requestLine({ sid: 'a' })}\n{"sid":\n`) },
      /torn\.jsonl:2: expected JSON/,
    ],
    [
      'a cache below one page, in shares',
      { trace: sessions, cacheShares: '0.05' },
      /a cache of at least one page, not --cache-shares 0\.05/,
    ],
    ['a first part without a request', { trace: sessions, first: '1' }, /--first to leave at least one of 12 requests/],
    ['pinned without durations', { trace: arrivals }, /expected --model atomic/],
    ['live with arrival times', { trace: arrivals, model: 'atomic', live: '3' }, /expected no --live/],
    ['an order with arrival times', { trace: arrivals, model: 'atomic', orderSalt: '3' }, /expected no --order-salt/],
    ['pages that do not fit blocks', { trace: sessions, pageTokens: '100' }, /multiple or a divisor of the 64 tokens/],
    ['a chart in no folder', { trace: sessions, plot: pathOf('no/where.svg') }, /expected --plot to name a file/],
    ['a chart over a folder', { trace: sessions, plot: pathOf('taken') }, /expected --plot to name a file/],
  ];
  mkdirSync(pathOf('taken'));

  it.each(refusals)('%s ends in exit code 2 and one sentence', async (_, raw, message) => {
    const { code, out, err } = await runWith({ ...raw, json: true });
    expect([code, out]).toEqual([2, '']);
    const complaints = err.split('\n').filter((line) => line.startsWith('saga simulate: '));
    expect(complaints.length).toBe(1);
    expect(complaints[0]).toMatch(message);
    expect(complaints[0]).toMatch(/\.$/);
  });

  it('skips malformed lines when asked, and says which', async () => {
    const trace = fileOf('patched.jsonl', `${requestLine({ sid: 'a' })}\n${'{"sid":\n'.repeat(12)}`);
    const { code, out, err } = await runWith({
      trace,
      onBadLine: 'skip',
      json: true,
      policies: 'lru',
      cacheShares: '1',
    });
    expect([code, (JSON.parse(out) as CacheReport).requests]).toEqual([0, 1]);
    expect(err.match(/patched\.jsonl:\d+: expected JSON[^\n]*; skipped/g)?.length).toBe(10);
    expect(err).toContain('12 malformed lines skipped in all');
  });

  it('gives exit code 1 for what the native side cannot do, and passes on bugs', async () => {
    const failing = (error: Error): FakeBackend => ({
      ...fakeBackend(),
      openCache: () => {
        throw error;
      },
    });
    const raw = { trace: sessions, json: true };
    const memory = await runWith(raw, failing(new SagaError('SAGA_ERR_OUT_OF_MEMORY', 'no room')));
    expect([memory.code, memory.out]).toEqual([1, '']);
    expect(memory.err).toContain('saga simulate: no room.\n');
    await expect(runWith(raw, failing(new TypeError('a bug')))).rejects.toThrow('a bug');
  });
});

describe('--plot', () => {
  it('writes an SVG file beside the table or the JSON', async () => {
    const plot = pathOf('chart.svg');
    const { code, out } = await runWith({ trace: sessions, plot });
    expect(code).toBe(0);
    expect(out.trimEnd().endsWith(`Chart written to ${plot}`)).toBe(true);
    expect(readFileSync(plot, 'utf8')).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
    const other = pathOf('other.svg');
    const json = await runWith({ trace: sessions, plot: other, json: true });
    expect(() => JSON.parse(json.out) as unknown).not.toThrow();
    expect(existsSync(other)).toBe(true);
  });
});
