import { describe, expect, it } from 'vitest';
import * as calibration from '../../src/workload/agent-calibration.js';
import { generateAgentSessions } from '../../src/workload/agent-workload.js';
import {
  firstTasks,
  noGraph,
  selectTasks,
  stopReasonNumber,
  toolClassNumber,
  type WorkloadColumns,
} from '../../src/workload/columns.js';
import {
  generateTasks,
  paperToolLatencies,
  paperWorkloads,
  toolLogNormal,
} from '../../src/workload/paper-workloads.js';
import { Random, drawQuantiles } from '../../src/workload/random.js';
import { closedLoop } from '../../src/workload/schedule.js';
import { summarize, workloadStatistics } from '../../src/workload/statistics.js';
import { predecessorsOf, runsOf } from './helpers.js';
import { infiniteHitRate, lruHitRate, pagesOf } from './reference-cache.js';

/** Relative distance. */
function off(value: number, wanted: number): number {
  return Math.abs(value - wanted) / wanted;
}

describe('random numbers', () => {
  it('repeat with the seed, and differ between seeds and between forks', () => {
    const draw = (random: Random): number[] => Array.from({ length: 5 }, () => random.uint32());
    expect(draw(new Random(7))).toEqual(draw(new Random(7)));
    const streams = [new Random(7), new Random(8), new Random(7).fork(0), new Random(7).fork(1), new Random(2 ** 52)];
    expect(new Set(streams.flatMap(draw)).size).toBe(25);
  });

  it('have the means and spreads of their distributions', () => {
    const random = new Random(1);
    const sample = (draw: () => number): { mean: number; deviation: number } => {
      const values = Array.from({ length: 50_000 }, draw);
      const { mean } = summarize(values);
      return { mean, deviation: Math.sqrt(summarize(values.map((value) => (value - mean) ** 2)).mean) };
    };
    const uniform = sample(() => random.uniform());
    expect([off(uniform.mean, 0.5), off(uniform.deviation, Math.sqrt(1 / 12))].every((one) => one < 0.01)).toBe(true);
    const normal = sample(() => random.normal());
    expect(Math.abs(normal.mean)).toBeLessThan(0.02);
    expect(off(normal.deviation, 1)).toBeLessThan(0.02);
    for (const shape of [0.5, 2, 18.5]) {
      const gamma = sample(() => random.gamma(shape, 3));
      expect(off(gamma.mean, shape * 3)).toBeLessThan(0.03);
      expect(off(gamma.deviation, Math.sqrt(shape) * 3)).toBeLessThan(0.04);
    }
    expect(off(sample(() => random.exponential(4)).mean, 4)).toBeLessThan(0.03);
    expect(off(sample(() => random.logNormal(0, 0.5)).mean, Math.exp(0.125))).toBeLessThan(0.02);
    const counts = [0, 0, 0];
    for (let draw = 0; draw < 30_000; ++draw) {
      const index = random.weighted([1, 0, 2]);
      counts[index] = (counts[index] ?? 0) + 1;
    }
    expect(counts[1]).toBe(0);
    expect(off(counts[2] ?? 0, 20_000)).toBeLessThan(0.03);
  });

  it('follow given quantiles', () => {
    const random = new Random(3);
    const table = [[0, 0], [0.5, 10], [0.9, 100], [1, 1000]] as const; // prettier-ignore
    const sorted = Array.from({ length: 40_000 }, () => drawQuantiles(random, table)).sort((a, b) => a - b);
    expect(off(sorted[20_000] ?? 0, 10)).toBeLessThan(0.05);
    expect(off(sorted[36_000] ?? 0, 100)).toBeLessThan(0.1);
    expect(sorted[0]).toBeGreaterThanOrEqual(0);
    expect(sorted[39_999]).toBeLessThanOrEqual(1000);
  });
});

describe('workloads of the paper', () => {
  const generate = (name: keyof typeof paperWorkloads, tasks: number, seed = 42): WorkloadColumns =>
    generateTasks({ classes: paperWorkloads[name], tasks, seed });

  it('repeat with the seed; task n does not depend on how many follow', () => {
    expect(generate('swe-bench', 50)).toEqual(generate('swe-bench', 50));
    expect(generate('swe-bench', 50, 1).promptTokens).not.toEqual(generate('swe-bench', 50, 2).promptTokens);
    const short = generate('multi-tenant', 20);
    const long = generate('multi-tenant', 40);
    const calls = short.promptTokens.length;
    expect(long.promptTokens.subarray(0, calls)).toEqual(short.promptTokens);
    expect(long.predecessorGap.subarray(0, short.predecessorGap.length)).toEqual(short.predecessorGap);
  });

  it('grow each prompt by the answer and the observation, and share no block', () => {
    const workload = generate('web-arena', 30);
    let used = 0;
    for (let task = 0; task < 30; ++task) {
      const first = workload.taskFirstCall[task] ?? 0;
      const last = (workload.taskFirstCall[task + 1] ?? 0) - 1;
      const growth = (workload.promptTokens[first + 1] ?? 0) - (workload.promptTokens[first] ?? 0);
      for (let call = first; call <= last; ++call) {
        const prompt = workload.promptTokens[call] ?? 0;
        if (call > first) expect(prompt - (workload.promptTokens[call - 1] ?? 0)).toBe(growth);
        expect(runsOf(workload, call)).toEqual([[used, Math.floor(prompt / 16)]]);
        expect(predecessorsOf(workload, call).map(([before]) => before)).toEqual(call === first ? [] : [call - 1]);
        expect(workload.stopReason[call]).toBe(call === last ? stopReasonNumber.endTurn : stopReasonNumber.toolUse);
        expect(workload.toolClass[call] === toolClassNumber.none).toBe(call === last);
      }
      used += Math.floor((workload.promptTokens[last] ?? 0) / 16);
    }
  });

  it('have the stated steps, prompts, answers, tools and expected times', () => {
    for (const [name, meanSteps, prompt, output, expected, toolSeconds] of [
      // Gamma(2, 18.5) clipped to 150 and Gamma(2, 9) to 80 lose less than 1 % of their means.
      ['swe-bench', 37, 3000, 300, 200, 0.47],
      ['web-arena', 18, 6000, 125, 80, 1.12],
    ] as const) {
      const workload = generate(name, 3000);
      const statistics = workloadStatistics(workload);
      expect(off(statistics.callsPerTask.mean, meanSteps)).toBeLessThan(0.04);
      expect(off(statistics.firstPromptTokens.mean, prompt)).toBeLessThan(0.02);
      const firstAnswers = Array.from(
        workload.taskFirstCall.subarray(0, 3000),
        (call) => workload.outputTokens[call] ?? 0,
      );
      expect(off(summarize(firstAnswers).mean, output)).toBeLessThan(0.02);
      expect(new Set(workload.taskExpected)).toEqual(new Set([expected * 1e6]));
      expect(off(summarize(workload.predecessorGap).mean / 1e6, toolSeconds)).toBeLessThan(0.06);
      const tools = [1, 2, 3, 4].map((tool) => workload.toolClass.filter((one) => one === tool).length);
      const all = tools.reduce((sum, one) => sum + one, 0);
      paperWorkloads[name][0]?.toolMix.forEach((share, tool) => {
        expect(Math.abs((tools[tool] ?? 0) / all - share)).toBeLessThan(0.01);
      });
    }
  });

  it('keep the ratio of the tenants’ rates in the multi-tenant mix', () => {
    const workload = generate('multi-tenant', 9200);
    expect(workload.classNames).toEqual(['heavy', 'medium', 'light']);
    const counts = Array.from(
      { length: 10 },
      (_, tenant) => workload.taskTenant.filter((one) => one === tenant).length,
    );
    // 3 tenants at 16, 4 at 8, 3 at 4 tasks a minute: 92 in all.
    [16, 16, 16, 8, 8, 8, 8, 4, 4, 4].forEach((rate, tenant) =>
      expect(off(counts[tenant] ?? 0, rate * 100)).toBeLessThan(0.12),
    );
    const weights = workload.taskTenant.map((_, task) => workload.taskWeight[task] ?? 0);
    workload.taskTenant.forEach((tenant, task) => expect(weights[task]).toBe(tenant < 3 ? 3 : tenant < 7 ? 2 : 1));
  });

  it('declare an agent graph for each class, of the class’s means and not of what its tasks draw', () => {
    const workload = generate('web-arena', 3);
    expect([...workload.taskGraph]).toEqual([0, 0, 0]);
    expect(workload.graphs.length).toBe(1);
    const columns = workload.graphs[0]?.toColumns();
    // Code, files, web, database: answers of 50 to 200 tokens, observations Gamma(2, 400), log-normal times.
    const means = [0.622, 0.0916, 1.4202, 0.252];
    [0.05, 0.15, 0.75, 0.05].forEach((share, at) => {
      expect([...(columns?.steps.subarray(4 * at, 4 * at + 3) ?? [])]).toEqual([at + 1, 125, 800]);
      expect(columns?.steps[4 * at + 3]).toBeCloseTo(means[at] ?? 0, 3);
      expect(columns?.start[at]).toBeCloseTo(share, 12);
      for (let from = 0; from < 4; ++from) {
        const edge = columns?.edges.subarray(3 * (4 * from + at), 3 * (4 * from + at) + 3) ?? [];
        expect([edge[0], edge[1]]).toEqual([from, at]);
        expect(edge[2]).toBeCloseTo((share * 17) / 18, 12); // 18 steps in the mean
      }
    });
    expect([...(columns?.totals ?? [])]).toEqual([6000, 18, 80]);
    expect(workload.graphs[0]?.impliedCalls()).toBeCloseTo(18, 9);
    expect(generate('web-arena', 5, 99).graphs[0]?.toJSON()).toEqual(workload.graphs[0]?.toJSON());

    const tenants = generate('multi-tenant', 200);
    expect(tenants.graphs.map((graph) => graph.name)).toEqual(['heavy', 'medium', 'light']);
    expect(tenants.graphs.map((graph) => graph.steps.map((step) => step.tool))).toEqual(
      Array(3).fill(['code-execution', 'web-api']), // a tool that the mix has not is no step
    );
    expect([...tenants.taskGraph]).toEqual([...tenants.taskClass]);
    expect([...tenants.tenantWeight]).toEqual([3, 3, 3, 2, 2, 2, 2, 1, 1, 1]);
  });

  it('draw tool times through P50 and P95, or with a wanted variation at the same mean', () => {
    const code = paperToolLatencies[0] ?? { p50: 0, p95: 0 };
    const { mu, sigma } = toolLogNormal(code);
    expect(Math.exp(mu)).toBeCloseTo(180, 6);
    expect(Math.exp(mu + 1.6448536269514722 * sigma)).toBeCloseTo(2400, 6);
    expect(sigma).toBeCloseTo(1.575, 3);
    const varied = toolLogNormal(code, 0.5);
    expect(Math.exp(varied.mu + varied.sigma ** 2 / 2)).toBeCloseTo(Math.exp(mu + sigma ** 2 / 2), 6);
    expect(Math.sqrt(Math.exp(varied.sigma ** 2) - 1)).toBeCloseTo(0.5, 9);
  });

  it('refuse a number of tasks that is none', () => {
    for (const tasks of [0, 1.5, Number.NaN]) expect(() => generate('swe-bench', tasks)).toThrow(/number of tasks/);
  });
});

describe('a selection of tasks', () => {
  it('renumbers calls and threads, and says when nothing is left', () => {
    const workload = generateTasks({ classes: paperWorkloads['swe-bench'], tasks: 6 });
    const odd = selectTasks(workload, (task) => task % 2 === 1);
    expect(odd?.taskTenant.length).toBe(3);
    const first = workload.taskFirstCall[3] ?? 0;
    const at = odd?.taskFirstCall[1] ?? 0;
    expect(odd?.promptTokens[at]).toBe(workload.promptTokens[first]);
    expect(odd?.callThread[at]).toBe(1);
    expect(odd && predecessorsOf(odd, at + 1)[0]?.[0]).toBe(at);
    expect(odd && runsOf(odd, at)).toEqual(runsOf(workload, first));
    expect(odd?.graphs).toBe(workload.graphs);
    expect([...(odd?.taskGraph ?? [])]).toEqual([0, 0, 0]);
    expect([...(odd?.tenantWeight ?? [])]).toEqual([1]);
    expect(firstTasks(workload, 2)).toMatchObject({ graphs: workload.graphs, taskGraph: Uint32Array.of(0, 0) });
    expect(selectTasks(workload, () => true)).toBe(workload);
    expect(selectTasks(workload, () => false)).toBeUndefined();
  });
});

describe('the agent workload', () => {
  it('repeats with the seed; session n does not depend on how many follow', () => {
    const some = generateAgentSessions({ sessions: 12 }).arrange();
    expect(generateAgentSessions({ sessions: 12 }).arrange()).toEqual(some);
    const more = generateAgentSessions({ sessions: 24 }).arrange();
    const callsOf = (workload: WorkloadColumns, name: string): Uint32Array => {
      const task = workload.taskNames.indexOf(name);
      return workload.promptTokens.subarray(workload.taskFirstCall[task], workload.taskFirstCall[task + 1]);
    };
    for (const name of some.taskNames) expect(callsOf(more, name)).toEqual(callsOf(some, name));
    expect(generateAgentSessions({ sessions: 12, seed: 1 }).arrange().promptTokens).not.toEqual(some.promptTokens);
  });

  it('declares nothing', () => {
    const workload = generateAgentSessions({ sessions: 3 }).arrange();
    expect(workload.graphs).toEqual([]);
    expect(new Set(workload.taskGraph)).toEqual(new Set([noGraph]));
    expect([...workload.tenantWeight]).toEqual([1]);
  });

  it('fills each prompt with blocks and stays below the longest prompt', () => {
    const workload = generateAgentSessions({ sessions: 100 }).arrange();
    workload.promptTokens.forEach((tokens, call) => {
      const blocks = runsOf(workload, call).reduce((sum, [, length]) => sum + length, 0);
      expect(blocks).toBe(Math.floor(tokens / 64));
      expect(tokens).toBeLessThanOrEqual(calibration.longestPromptTokens);
    });
  });

  // Statistics of 445 recorded sessions (claude-code-v6) and how far the generated ones may be off: by a factor, for
  // quantiles of a few seconds by a second. Three seeds, so that it is not one lucky draw.
  it.each([42, 1, 2])('has the statistics of recorded sessions (seed %i)', (seed) => {
    const workload = generateAgentSessions({ seed }).arrange();
    const statistics = workloadStatistics(workload);
    const near = (value: number, recorded: number, bound: number): void => {
      expect(Math.abs(Math.log(value / recorded))).toBeLessThan(Math.log(1 + bound));
    };
    near(statistics.calls, 26_444, 0.1);
    near(statistics.callsPerTask.p50, 48, 0.15);
    near(statistics.callsPerTask.p90, 136, 0.15);
    expect(Math.abs(statistics.callsPerTask.p10 - 6)).toBeLessThanOrEqual(1);
    near(statistics.firstPromptTokens.p50, 19_643, 0.05);
    near(statistics.firstPromptTokens.p90, 103_451, 0.2);
    near(statistics.promptTokens.p10, 36_134, 0.3);
    near(statistics.promptTokens.p50, 89_557, 0.15);
    near(statistics.promptTokens.p90, 142_118, 0.1);
    near(statistics.promptTokens.mean, 91_079, 0.1);
    near(statistics.outputTokens.p10, 109, 0.05);
    near(statistics.outputTokens.p50, 216, 0.05);
    near(statistics.outputTokens.p90, 865, 0.1);
    near(statistics.callSeconds.p10, 3.09, 0.1);
    near(statistics.callSeconds.p50, 5.53, 0.05);
    near(statistics.callSeconds.p90, 16.71, 0.1);
    near(statistics.callSeconds.mean, 9.05, 0.1);
    expect(statistics.toolGapSeconds.p10).toBe(0);
    expect(Math.abs(statistics.toolGapSeconds.p50 - 1)).toBeLessThanOrEqual(1);
    near(statistics.toolGapSeconds.p90, 85, 0.15);
    near(statistics.toolGapSeconds.p95, 180, 0.15);
    near(statistics.userGapSeconds.p50, 54, 0.2);
    near(statistics.userGapSeconds.p90, 714, 0.25);
    near(statistics.userGapSeconds.p95, 1778, 0.35);
  });

  it('is shared and cached as recorded sessions are', () => {
    const workload = generateAgentSessions().arrange();
    const schedule = closedLoop(workload, { live: 32 });
    const taskOfCall = new Uint32Array(workload.promptTokens.length);
    workload.taskNames.forEach((_, task) => {
      taskOfCall.fill(task, workload.taskFirstCall[task], workload.taskFirstCall[task + 1]);
    });
    const { requests, distinct } = pagesOf(workload, schedule, 512);
    expect(off(distinct, 194_523)).toBeLessThan(0.1);
    const infinite = infiniteHitRate(
      requests,
      Uint32Array.from(schedule.call, (call) => taskOfCall[call] ?? 0),
    );
    expect(Math.abs(infinite.rate - 0.9585)).toBeLessThan(0.01);
    expect(Math.abs(infinite.other - 0.188)).toBeLessThan(0.09); // pages that another session brought
    expect(Math.abs(lruHitRate(requests, Math.floor(distinct * 0.01)) - 0.802)).toBeLessThan(0.04);
    expect(Math.abs(lruHitRate(requests, Math.floor(distinct * 0.02)) - 0.9059)).toBeLessThan(0.02);

    // The part of a session's first prompt that an earlier session had: recorded p50 68 %, p90 100 %.
    const pagesOfCall = new Map(Array.from(schedule.call, (call, at) => [call, requests[at] ?? new Uint32Array()]));
    const seen = new Set<number>();
    const shared = workload.taskNames.map((_, task) => {
      const first = workload.taskFirstCall[task] ?? 0;
      const pages = pagesOfCall.get(first) ?? new Uint32Array();
      const known = pages.findIndex((page) => !seen.has(page));
      for (let call = first; call < (workload.taskFirstCall[task + 1] ?? 0); ++call) {
        pagesOfCall.get(call)?.forEach((page) => seen.add(page));
      }
      return known < 0 ? 1 : known / pages.length;
    });
    expect(Math.abs(summarize(shared).p50 - 0.68)).toBeLessThan(0.1);
    expect(summarize(shared).p90).toBeGreaterThan(0.95);
  });

  it('has sub-agents that the parent waits for', () => {
    const workload = generateAgentSessions({ sessions: 300 }).arrange();
    const ofSubAgents = workload.callMain.filter((main) => main === 0).length;
    expect(ofSubAgents).toBeGreaterThan(20);
    expect(ofSubAgents / workload.callMain.length).toBeLessThan(0.05);
    const joins = Array.from(workload.callMain, (_, call) => predecessorsOf(workload, call)).filter(
      (some) => some.length > 1,
    );
    expect(joins.length).toBeGreaterThan(2);
    expect(joins.every((some) => some.slice(1).every(([, gap]) => gap === 0))).toBe(true);
  });
});
