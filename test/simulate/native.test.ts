/** The simulations on the addon itself: against the independent cache model of these tests, and against published figures. */
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { simulate } from '../../src/cli/simulate.js';
import { Scheduler } from '../../src/scheduler.js';
import type { ClusterHardware } from '../../src/simulate/backend.js';
import { nativeBackend } from '../../src/simulate/native-backend.js';
import { enginePolicies, type ClusterPolicy, type RawOptions } from '../../src/simulate/options.js';
import type { CacheReport, ClusterReport } from '../../src/simulate/run.js';
import { generateAgentSessions } from '../../src/workload/agent-workload.js';
import { noGraph, type WorkloadColumns } from '../../src/workload/columns.js';
import { withHints } from '../../src/workload/hints.js';
import { generateTasks, paperWorkloads } from '../../src/workload/paper-workloads.js';
import { closedLoop } from '../../src/workload/schedule.js';
import { pathOf } from '../workload/helpers.js';
import { lruHitRate, pagesOf } from '../workload/reference-cache.js';
import { rememberingStreams } from './fakes.js';

async function jsonOf(raw: RawOptions): Promise<string> {
  const streams = rememberingStreams();
  const code = await simulate({ ...raw, json: true }, undefined, streams);
  expect(streams.texts.err.includes('saga simulate: ') ? streams.texts.err : '').toBe('');
  expect(code).toBe(0);
  return streams.texts.out;
}

const traces = fileURLToPath(new URL('../../../shared/traces/', import.meta.url));
const present = existsSync(traces);
if (!present) console.warn('The recorded traces (../shared/traces) are not here: hit rates on them are not compared.');

describe('cache mode on the addon', () => {
  it('agrees with an independent model of LRU, and nothing beats the optimum', async () => {
    const raw = { workload: 'agent', tasks: '40', live: '8', model: 'atomic', cacheShares: '2,5,20' };
    const report = JSON.parse(await jsonOf(raw)) as CacheReport;
    const workload = generateAgentSessions({ sessions: 40 }).arrange();
    const { requests, distinct } = pagesOf(workload, closedLoop(workload, { live: 8 }), 512);
    expect(report.distinctPages).toBe(distinct);
    for (const row of report.results) {
      expect(row.beladyRatio).toBeGreaterThanOrEqual(1);
      if (row.policy === 'lru') expect(row.prefixHitRate).toBeCloseTo(lruHitRate(requests, row.cachePages), 12);
    }
  });

  it('gives the same bytes twice', async () => {
    const raw = { workload: 'agent', tasks: '30', cacheShares: '2,10' };
    expect(await jsonOf(raw)).toBe(await jsonOf(raw));
  });

  it('lets policies use what clients tell, and nothing else change', async () => {
    const raw = {
      workload: 'agent',
      tasks: '60',
      live: '16',
      cacheShares: '2,5',
      policies: 'lru,wa-lru,saga-paper,saga',
    };
    const missesOf = async (hints: string): Promise<Record<string, number>> => {
      const report = JSON.parse(await jsonOf({ ...raw, hints })) as CacheReport;
      return Object.fromEntries(
        report.results.filter((row) => row.cacheShare === 5).map((row) => [row.policy, row.missedPages]),
      );
    };
    const [none, end, tool] = [await missesOf('none'), await missesOf('end'), await missesOf('end+tool')];
    expect([end['lru'], tool['lru']]).toEqual([none['lru'], none['lru']]);
    expect([tool['wa-lru'], tool['saga-paper']]).toEqual([end['wa-lru'], end['saga-paper']]); // they know no durations
    for (const policy of ['wa-lru', 'saga-paper', 'saga']) expect(end[policy]).toBeLessThan(none[policy] ?? 0);
    expect(tool['saga']).toBeLessThan(end['saga'] ?? 0);
  });

  it('times the policy alone and alike for all', async () => {
    const raw = { workload: 'agent', tasks: '30', cacheShares: '5', policies: 'ttl', timing: true };
    const report = JSON.parse(await jsonOf(raw)) as CacheReport;
    expect(report.results.map((row) => row.policy)).toEqual(['lru', 'ttl']);
    for (const row of report.results) expect(row.decisionNanoseconds).toBeGreaterThan(0);
  });

  it('refuses hints that do not fit the schedule', () => {
    const workload = generateAgentSessions({ sessions: 3 }).arrange();
    const schedule = withHints(workload, closedLoop(workload), 'end+tool');
    expect(() => nativeBackend.openCache(workload, 512, { ...schedule, sessionEnd: Uint8Array.of(1) })).toThrow();
    expect(() => nativeBackend.openCache(workload, 512, { ...schedule, declaredGap: Float64Array.of(1) })).toThrow();
  });
});

describe('cluster mode on the addon', () => {
  it('searches the saturation rate and runs every task to completion; round robin hits least', async () => {
    const raw = { mode: 'cluster', workload: 'multi-tenant', tasks: '120', workers: '2', load: '0.9' };
    const report = JSON.parse(await jsonOf(raw)) as ClusterReport;
    for (const row of report.results) {
      expect([row.policy, row.tasksCompleted]).toEqual([row.policy, 120]);
      expect(row.stateDigest === null).toBe(!enginePolicies.includes(row.policy));
    }
    expect(report.saturationTasksPerSecond).toBeGreaterThan(0);
    const [roundRobin, ...others] = report.results.slice(0, 4).map((row) => row.prefixHitRate);
    for (const other of others) expect(other).toBeGreaterThan(roundRobin ?? 1);
    for (const row of report.results) {
      expect(row.taskCompletionSeconds.mean).toBeGreaterThanOrEqual(row.idealSeconds * 0.999);
    }
  });

  it('gives the same bytes twice', async () => {
    const raw = { mode: 'cluster', workload: 'web-arena', tasks: '40', workers: '2', rate: '0.5', seed: '3' };
    const first = await jsonOf(raw);
    expect(await jsonOf(raw)).toBe(first);
    expect(await jsonOf({ ...raw, seed: '4' })).not.toBe(first);
  });

  it('writes a journal from which the same state is rebuilt', async () => {
    const journal = pathOf('run.journal');
    const raw = {
      mode: 'cluster',
      workload: 'web-arena',
      tasks: '20',
      workers: '2',
      live: '8',
      policies: 'ttl',
      journal,
    };
    const report = JSON.parse(await jsonOf(raw)) as ClusterReport;
    const { digest } = Scheduler.replay(readFileSync(journal));
    expect(digest.toString(16).padStart(16, '0')).toBe(report.results[0]?.stateDigest);
  });

  it('gives the completion time of each task when asked, and takes parameters by name', async () => {
    const workload = generateTasks({ classes: paperWorkloads['web-arena'], tasks: 12 });
    const cluster = nativeBackend.openCluster(workload, {
      ...{ workers: 2, hardware: 'a100-tp4', pageTokens: 16, kvTokens: 448_000, maxSequences: 256, stepTokens: 2048 },
      ...{ hostTierTokens: 0, linkBytesPerSecond: 25e9 },
    });
    const run = { policy: 'kv-router', seed: 1, rate: 0, live: 12 } as const;
    const plain = await cluster.run(run);
    expect(plain.taskSeconds).toBeUndefined();
    expect(plain.stateDigest).toBeNull();
    const asked = await cluster.run({ ...run, taskSeconds: true });
    const seconds = [...(asked.taskSeconds ?? [])].sort((a, b) => a - b);
    expect(seconds.length).toBe(12);
    expect(seconds.reduce((sum, one) => sum + one, 0) / 12).toBeCloseTo(asked.taskCompletionSeconds.mean, 9);
    expect(seconds[5]).toBeCloseTo(asked.taskCompletionSeconds.p50, 9);
    // Only the load counts when what is cached is worth nothing and threads are bound to no worker: fewer hits.
    const unbound = { sessionAffinitySeconds: 0, queueThreshold: 0 };
    const seeing = await cluster.run({ ...run, parameters: unbound });
    const blind = await cluster.run({ ...run, parameters: { ...unbound, deviceCredit: 0 } });
    expect(blind.prefixHitRate).toBeLessThan(seeing.prefixHitRate);
    await expect(cluster.run({ ...run, parameters: { credit: 1 } })).rejects.toThrow(/parameters .*kv-router/);
    await expect(cluster.run({ ...run, parameters: { deviceCredit: Infinity } })).rejects.toThrow(/deviceCredit/);
    await expect(cluster.run({ ...run, without: ['stealing'] })).rejects.toThrow(/parts of kv-router/);
  });

  it('hands declared graphs and weights to policies that use them, and only where they are told', async () => {
    const workload = generateTasks({ classes: paperWorkloads['multi-tenant'], tasks: 60 });
    const hardware: ClusterHardware = {
      ...{ workers: 2, hardware: 'a100-tp4', pageTokens: 16, kvTokens: 200_000, maxSequences: 16, stepTokens: 2048 },
      ...{ hostTierTokens: 0, linkBytesPerSecond: 25e9 },
    };
    const played = async (
      policy: ClusterPolicy,
      hints: 'none' | 'graph',
      changes: Partial<WorkloadColumns> = {},
    ): Promise<Float64Array> => {
      const cluster = nativeBackend.openCluster({ ...workload, ...changes }, hardware);
      const { taskSeconds } = await cluster.run({ policy, hints, seed: 1, rate: 0, live: 60, taskSeconds: true });
      return taskSeconds ?? new Float64Array();
    };
    const graphless = { graphs: [], taskGraph: new Uint32Array(60).fill(noGraph) };
    const told = await played('saga-paper', 'graph');
    expect(await played('saga-paper', 'graph')).toEqual(told);
    expect(await played('saga-paper', 'none')).not.toEqual(told);
    expect(await played('saga-paper', 'graph', graphless)).not.toEqual(told);
    expect(await played('saga-paper', 'none', graphless)).toEqual(await played('saga-paper', 'none'));
    expect(await played('saga-paper', 'graph', { tenantWeight: new Float64Array(10).fill(1) })).not.toEqual(told);
    expect(await played('affinity', 'graph')).toEqual(await played('affinity', 'none', graphless));
    const refused = (changes: Partial<WorkloadColumns>): unknown =>
      nativeBackend.openCluster({ ...workload, ...changes }, hardware);
    expect(() => refused({ tenantWeight: Float64Array.of(0) })).toThrow(/the workload is not valid/);
    expect(() => refused({ taskGraph: new Uint32Array(60).fill(3) })).toThrow(/the workload is not valid/);
    expect(() => refused({ taskGraph: new Uint32Array(59) })).toThrow(/the workload is not valid/);
  });

  it('says when no rate of arrival saturates the cluster', async () => {
    const streams = rememberingStreams();
    const raw = { mode: 'cluster', workload: 'web-arena', tasks: '3', workers: '8', load: '1' };
    expect(await simulate(raw, undefined, streams)).toBe(2);
    expect(streams.texts.err).toMatch(/saga simulate: expected more than 3 tasks on 8 workers[^\n]*\.\n$/);
  });

  it('plays the agent workload at a pressure', async () => {
    const raw = {
      mode: 'cluster',
      workload: 'agent',
      tasks: '30',
      workers: '2',
      pressure: '0.5',
      policies: 'affinity',
    };
    const report = JSON.parse(await jsonOf(raw)) as ClusterReport;
    expect(report.results[0]).toMatchObject({
      policy: 'affinity',
      load: null,
      tasksCompleted: 30,
      sloAttainmentPaper: null,
    });
    expect(report.results[0]?.liveTasks).toBeGreaterThan(1);
  });
});

describe.skipIf(!present)('the recorded traces on the addon', () => {
  // Prefix hit rates published with the traces.
  const published: [file: string, raw: RawOptions, lru: number[], belady: number[]][] = [
    [
      'claude-code-v6/requests.jsonl',
      { live: '32', cacheShares: '0.25,0.5,1,2,5' },
      [0.2987, 0.5867, 0.802, 0.9059, 0.9455],
      [0.5579, 0.7526, 0.8813, 0.9398, 0.9571],
    ],
    [
      'claude-code-v6/requests.jsonl',
      { live: '128', cacheShares: '0.5,1,2,5,10,25' },
      [0.1588, 0.3793, 0.6852, 0.8725, 0.9342, 0.9557],
      [0.4785, 0.6682, 0.8235, 0.9297, 0.9547, 0.9585],
    ],
    [
      'mooncake-conversation/requests.jsonl',
      { cacheShares: '1,5,10,25,50' },
      [0.0432, 0.1055, 0.1986, 0.2951, 0.3366],
      [0.1825, 0.323, 0.3409, 0.3409, 0.3409],
    ],
  ];

  it.each(published)('%s %o: LRU and the optimum hit as published', async (file, raw, lru, belady) => {
    const options = { ...raw, trace: `${traces}${file}`, model: 'atomic', policies: 'lru,belady' };
    const report = JSON.parse(await jsonOf(options)) as CacheReport;
    const ratesOf = (policy: string): number[] =>
      report.results.filter((row) => row.policy === policy).map((row) => Number(row.prefixHitRate.toFixed(4)));
    expect(ratesOf('lru')).toEqual(lru);
    expect(ratesOf('belady')).toEqual(belady);
  });

  it('the pinned model gives the published ratios of LRU, in pages and in cost', async () => {
    const options = { trace: `${traces}claude-code-v6/requests.jsonl`, policies: 'lru', cacheShares: '1,1.5,2,3,5' };
    const report = JSON.parse(await jsonOf(options)) as CacheReport;
    [1.389, 1.599, 1.542, 1.447, 1.266].forEach((ratio, at) =>
      expect(report.results[at]?.beladyRatio).toBeCloseTo(ratio, 2),
    );
    [1.357, 1.55, 1.498, 1.407, 1.244].forEach((ratio, at) =>
      expect(report.results[at]?.costRatio).toBeCloseTo(ratio, 2),
    );
  });

  // Of another implementation, so only the means over the sizes are near enough to be compared.
  it.each([
    ['none', { 'wa-lru': 2.18, ttl: 1.45, 'saga-paper': 1.8 }],
    ['end', { 'wa-lru': 1.5, 'saga-paper': 1.45 }],
  ])('the pinned model gives the published ratios of the paper’s policies, told: %s', async (hints, published) => {
    const policies = Object.keys(published).join(',');
    const raw = { trace: `${traces}claude-code-v6/requests.jsonl`, policies, hints, cacheShares: '1,1.5,2,3,5' };
    const report = JSON.parse(await jsonOf(raw)) as CacheReport;
    for (const [policy, ratio] of Object.entries(published)) {
      const logs = report.results.filter((row) => row.policy === policy).map((row) => Math.log(row.beladyRatio));
      expect(logs.length).toBe(5);
      expect(Math.abs(Math.exp(logs.reduce((sum, one) => sum + one, 0) / 5) - ratio)).toBeLessThan(0.015);
    }
  });
});
