/** saga-scheduler/simulate: the same as the command line, called from code. */
import { beforeAll, describe, expect, it } from 'vitest';
import { simulate } from '../../src/cli/simulate.js';
import * as api from '../../src/simulate/index.js';
import {
  SagaError,
  callCount,
  chartOf,
  generateAgentSessions,
  generateTasks,
  paperWorkloads,
  readTrace,
  scheduleOf,
  simulateCache,
  simulateCluster,
  tableOf,
  taskCount,
  workloadStatistics,
  type CacheReport,
  type ClusterReport,
  type WorkloadColumns,
} from '../../src/simulate/index.js';
import type { RawOptions } from '../../src/simulate/options.js';
import { fileOf } from '../workload/helpers.js';
import { rememberingStreams } from './fakes.js';

let agents: WorkloadColumns;
beforeAll(() => {
  agents = generateAgentSessions({ sessions: 20, seed: 42 }).arrange();
});

async function commandLine<T>(raw: RawOptions): Promise<T> {
  const streams = rememberingStreams();
  expect(await simulate({ ...raw, json: true }, undefined, streams)).toBe(0);
  return JSON.parse(streams.texts.out) as T;
}

async function messageOf(run: Promise<unknown>): Promise<string> {
  const error: unknown = await run.catch((error: unknown) => error);
  if (!(error instanceof SagaError)) throw new Error(`expected a SagaError, got ${String(error)}`);
  expect(error.code).toBe('SAGA_ERR_OPTION');
  return error.message;
}

describe('the entry', () => {
  it('offers what is documented and no internals', () => {
    expect(Object.keys(api).sort()).toEqual([
      'AgentGraph',
      'SagaError',
      'cacheHints',
      'cacheModels',
      'cachePolicies',
      'callCount',
      'chartOf',
      'clusterHints',
      'clusterPolicies',
      'generateAgentSessions',
      'generateTasks',
      'hardwareNames',
      'noGraph',
      'paperToolLatencies',
      'paperWorkloads',
      'policyParts',
      'promptKindNumber',
      'readTrace',
      'scheduleOf',
      'simulateCache',
      'simulateCluster',
      'stopReasonNumber',
      'summarize',
      'tableOf',
      'taskCount',
      'toolClassNumber',
      'withHints',
      'workloadStatistics',
    ]);
  });
});

describe('simulateCache', () => {
  it('gives what the command line gives', async () => {
    const report = await simulateCache(agents, {
      policies: ['lru', 'ttl'],
      cacheShares: [0.5, 20],
      live: 4,
      first: 50,
    });
    const raw = { workload: 'agent', tasks: '20', policies: 'lru,ttl', cacheShares: '0.5,20', live: '4', first: '50' };
    const printed = await commandLine<CacheReport>(raw);
    expect(report).toEqual({ ...printed, options: { ...printed.options, workload: null, tasks: 20 } });
    expect(report.results.map(({ policy, cacheShare }) => [policy, cacheShare])).toEqual([
      ['lru', 0.5],
      ['ttl', 0.5],
      ['lru', 20],
      ['ttl', 20],
    ]);
    expect(tableOf(report)).toContain('lru');
    expect(chartOf(report)).toMatch(/^<svg [\s\S]*<\/svg>\n?$/);
  });

  it('has the defaults of the command line', async () => {
    const report = await simulateCache(agents);
    expect(report.options).toMatchObject({
      model: 'pinned',
      pageTokens: 512,
      live: 32,
      gapCap: 1800,
      timing: false,
      hints: 'none',
    });
    expect(report.results.length).toBe(5 * 7);
  });

  it('tells how it gets on', async () => {
    const heard: (string | number | undefined)[] = [];
    const progress = {
      begin: (label: string, total: number | undefined) => heard.push(label, total),
      advance: (done: number) => heard.push(done),
      end: () => heard.push('end'),
    };
    await simulateCache(agents, { policies: ['belady'], cacheTokens: [51_200, 512_000], progress });
    expect(heard.slice(0, 2)).toEqual(['replaying', 2]);
    expect(heard.slice(-2)).toEqual([2, 'end']);
  });

  it('plays a trace that it has read', async () => {
    // The fields that the entry's own documentation names, and no others.
    const line = (sid: string, k: number): string =>
      JSON.stringify({
        ...{ sid, aid: 'main', k, t: 10 * k, in: 640 * (k + 1), out: 10, llm_s: 2 },
        ...{ gap_s: 8 * k, gap_kind: k === 0 ? 'start' : 'tool', stop: 'tool_use', h: [[7, 10 * (k + 1)]] },
      });
    const path = fileOf('api.jsonl', `${line('a', 0)}\n${line('a', 1)}\n${line('b', 0)}\n${line('b', 1)}\n`);
    const trace = await readTrace(path);
    expect([trace.format, trace.requests, trace.blockTokens, trace.hasArrivals]).toEqual([
      'request-lines',
      4,
      64,
      false,
    ]);
    const workload = trace.workload();
    expect([taskCount(workload), callCount(workload), scheduleOf(workload).call.length]).toEqual([2, 4, 4]);
    expect(workloadStatistics(workload).promptTokens).toMatchObject({ count: 4, mean: 960, max: 1280 });
    const report = await simulateCache(workload, { pageTokens: 64, policies: ['lru'], cacheShares: [100] });
    // 20 distinct blocks, of which each is missed once: 60 asked for.
    expect(report).toMatchObject({ distinctPages: 20, requests: 4 });
    expect(report.results).toMatchObject([{ requestedPages: 60, missedPages: 20, beladyRatio: 1 }]);
  });

  it('refuses what does not fit, by the names that it has here', async () => {
    const given = { pageTokens: 100 };
    expect(await messageOf(simulateCache(agents, given))).toBe(
      'expected pageTokens to be a multiple or a divisor of the 64 tokens of a block of this input, not 100',
    );
    expect(await messageOf(simulateCache(agents, { cacheShares: [1e-7] }))).toMatch(
      /^expected a cache of at least one page, not cacheShares 0\.0000001 \(per cent of \d+ distinct pages\)$/,
    );
    expect(await messageOf(simulateCache(agents, { cacheShares: [101] }))).toBe(
      'expected cacheShares to be per cent above 0 and at most 100, not "101"',
    );
    expect(await messageOf(simulateCache(agents, { cacheShares: [] }))).toBe('expected a value after cacheShares');
    expect(await messageOf(simulateCache(agents, { policies: ['mru' as never] }))).toMatch(/^expected policies to be /);
    expect(await messageOf(simulateCache(agents, { trace: 'x' } as never))).toBe(
      'expected no trace: the workload is given',
    );
    expect(await messageOf(simulateCache(agents, { cacheTokens: [1000], cacheShares: [1] }))).toBe(
      'expected either cacheTokens N,.. or cacheShares PERCENT,.., not both',
    );
    expect(await messageOf(simulateCache(agents, null as never))).toBe('expected options to be an object');
    const tasks = generateTasks({ classes: paperWorkloads['swe-bench'], tasks: 2 });
    expect(await messageOf(simulateCache(tasks))).toMatch(
      /^expected model atomic with a trace that has no call durations/,
    );
  });
});

describe('simulateCluster', () => {
  it('gives what the command line gives', async () => {
    const workload = generateTasks({ classes: paperWorkloads['web-arena'], tasks: 30, seed: 7 });
    const report = await simulateCluster(workload, { workers: 2, rate: 0.5, policies: ['affinity'], seed: 7 });
    const raw = {
      mode: 'cluster',
      workload: 'web-arena',
      tasks: '30',
      workers: '2',
      rate: '0.5',
      policies: 'affinity',
    };
    const printed = await commandLine<ClusterReport>({ ...raw, seed: '7' });
    expect(report).toEqual({ ...printed, options: { ...printed.options, workload: null } });
    expect(report.results).toMatchObject([{ policy: 'affinity', tasksCompleted: 30, rateTasksPerSecond: 0.5 }]);
    expect(tableOf(report)).toContain('affinity');
  });

  it('refuses what does not fit', async () => {
    expect(await messageOf(simulateCluster(agents, {}))).toMatch(/^expected exactly one of load /);
    expect(await messageOf(simulateCluster(agents, { rate: 1, workers: 1.5 }))).toBe(
      'expected workers to be a whole number from 1 to 1024, not "1.5"',
    );
    expect(await messageOf(simulateCluster(agents, { rate: 1, live: 1 }))).toMatch(/^expected exactly one of load /);
    expect(await messageOf(simulateCluster(agents, { rate: 1, cacheShares: [1] } as never))).toMatch(
      /^expected no cacheShares with mode cluster/,
    );
    expect(await messageOf(simulateCluster(agents, { rate: 1, kvTokens: 1024 }))).toMatch(
      /^expected a KV room of at least \d+ tokens for the longest call, not 1024$/,
    );
    expect(await messageOf(simulateCluster(agents, undefined as never))).toBe('expected options to be an object');
  });
});
