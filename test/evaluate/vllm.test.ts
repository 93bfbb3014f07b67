import { mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { evaluate, type EvaluateHost } from '../../src/cli/evaluate.js';
import type { ClusterOutcome } from '../../src/evaluate/laboratory.js';
import { recomputedTokens } from '../../src/evaluate/tables/vllm.js';
import { addedCounters, readCounters } from '../../src/evaluate/vllm/counters.js';
import { KeptRuns, type MeasuredRun } from '../../src/evaluate/vllm/measure.js';
import { VllmInstallation } from '../../src/evaluate/vllm/servers.js';
import { measuredSystems, setupOf } from '../../src/evaluate/vllm/setup.js';
import {
  a100AttentionMilliseconds,
  a100StepMilliseconds,
  schedulerStepSeconds,
  serverStepModel,
} from '../../src/evaluate/vllm/step-model.js';
import { callCount, selectTasks, taskCount } from '../../src/workload/columns.js';
import { generateTasks, paperWorkloads } from '../../src/workload/paper-workloads.js';
import { fakeBackend, rememberingStreams } from '../simulate/fakes.js';

describe('step times', () => {
  it("are the simulator's", () => {
    const data = readFileSync(new URL('../../native/core/sim/data/step_time.inc', import.meta.url), 'utf8');
    const row = (macro: string): number[] =>
      (new RegExp(`^${macro}\\(kA100Tp4, (.*)\\)$`, 'm').exec(data)?.[1] ?? '').split(',').map(Number);
    expect(a100StepMilliseconds.map(([, milliseconds]) => milliseconds)).toEqual(row('SAGA_STEP_SUMS'));
    const heads = /^\/\/ +n: +(.*)$/m.exec(data)?.[1] ?? '';
    expect(a100StepMilliseconds.map(([tokens]) => tokens)).toEqual(heads.trim().split(/ +/).map(Number));
    const [, , pair, , context] = row('SAGA_STEP_DEFAULT');
    expect(a100AttentionMilliseconds).toEqual({ pair, context });
  });

  it('are those of four steps where a token stands for four', () => {
    const model = serverStepModel(4);
    const [fewest, shortest] = model.by_tokens[0] as [number, number];
    const [most, longest] = model.by_tokens.at(-1) as [number, number];
    expect([fewest, most]).toEqual([1, 4096]);
    expect(shortest).toBeCloseTo(0.1112, 12);
    expect(longest).toBeCloseTo(3.0452, 12);
    expect(model.per_context_token).toBeCloseTo(16 * 7.8e-8, 15);
    expect(model.per_prefill_pair).toBeCloseTo(16 * 4.7e-9, 17);
    const costs = schedulerStepSeconds(1);
    expect(costs.base).toBeCloseTo(0.0278, 12);
    // (36.6 - 27.8) / 31 and (221 - 65) / 768 milliseconds.
    expect(costs.perCall).toBeCloseTo(0.0088 / 31, 12);
    expect(costs.perPrefillToken).toBeCloseTo(0.156 / 768, 12);
  });
});

describe('counters', () => {
  const text = (hits: number): string =>
    [
      '# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.',
      'vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 4800.0',
      'vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.7e+09',
      `vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} ${hits}`,
      'vllm:prefix_cache_hits_total{engine="1",model_name="tiny"} 16',
      'vllm:prompt_tokens_total{engine="0"} 4900',
      'vllm:prompt_tokens_by_source_total{engine="0"} 7',
      'vllm:generation_tokens_total 300.0',
      'vllm:num_preemptions_total{engine="0"} 2.0',
      'vllm:request_queue_time_seconds_bucket{engine="0",le="0.3"} 4.0',
      'vllm:request_queue_time_seconds_sum{engine="0"} 1.5',
      'vllm:request_queue_time_seconds_count{engine="0"} 4.0',
      'vllm:request_inference_time_seconds_sum{engine="0"} 12.25',
    ].join('\n');

  it('are summed over labels, and what a run added over servers', () => {
    expect(readCounters(text(1600))).toEqual({
      queries: 4800,
      hits: 1616,
      promptTokens: 4900,
      generationTokens: 300,
      preemptions: 2,
      queueSeconds: 1.5,
      inferenceSeconds: 12.25,
    });
    const before = [readCounters(text(0)), readCounters(text(10))];
    const after = [readCounters(text(160)), readCounters(text(26))];
    expect(addedCounters(before, after)).toMatchObject({ queries: 0, hits: 176 });
  });

  it('are never silently 0', () => {
    expect(() => readCounters(text(1).replaceAll('num_preemptions', 'preemptions'))).toThrow(
      '/metrics has no counter vllm:num_preemptions',
    );
  });
});

describe('what is played', () => {
  it('is four times as short as the class of tasks, and declares nothing', async () => {
    const setup = setupOf(true, undefined, 8);
    expect(setup.systems.map(({ letter }) => letter)).toEqual(['c', 'd']);
    const [{ source }] = setup.workloads as [(typeof setup.workloads)[number]];
    const tasks = await source.open();
    expect([tasks.blockTokens, tasks.graphs.length, taskCount(tasks)]).toEqual([16, 0, 32]);
    // Answers of 100 to 500 tokens, prompts of 2,000 to 4,000 at first.
    for (const tokens of tasks.outputTokens) expect(tokens).toBeGreaterThanOrEqual(25);
    for (const tokens of tasks.outputTokens) expect(tokens).toBeLessThanOrEqual(125);
    for (let task = 0; task < taskCount(tasks); ++task) {
      const first = tasks.promptTokens[tasks.taskFirstCall[task] as number] as number;
      expect(first).toBeGreaterThanOrEqual(500);
      expect(first).toBeLessThanOrEqual(1000);
    }
  });

  it('leaves recorded sessions out where there are none', () => {
    expect(setupOf(false, undefined, 8).workloads.map(({ name }) => name)).toEqual(['swe-bench']);
    expect(setupOf(false, 'traces', 8).workloads.map(({ name }) => name)).toEqual(['swe-bench', 'claude-code-v6']);
  });

  it('has the first calls of each task, as they were', () => {
    const whole = generateTasks({ classes: paperWorkloads['swe-bench'], tasks: 5, seed: 3 });
    const cut = selectTasks(whole, () => true, 2);
    if (cut === undefined) throw new Error('nothing is left');
    expect(taskCount(cut)).toBe(5);
    expect(callCount(cut)).toBeLessThan(callCount(whole));
    for (let task = 0; task < 5; ++task) {
      const [from, to] = [whole.taskFirstCall[task] as number, whole.taskFirstCall[task + 1] as number];
      const begin = cut.taskFirstCall[task] as number;
      expect((cut.taskFirstCall[task + 1] as number) - begin).toBe(Math.min(2, to - from));
      for (let call = 0; call < Math.min(2, to - from); ++call) {
        expect(cut.promptTokens[begin + call]).toBe(whole.promptTokens[from + call]);
        expect(cut.toolClass[begin + call]).toBe(whole.toolClass[from + call]);
      }
    }
  });
});

describe('runs', () => {
  const run = { prefilledTokens: 1000 } as MeasuredRun;

  it('are kept by all that matters', () => {
    const folder = mkdtempSync(join(tmpdir(), 'saga-runs-'));
    const kept = new KeptRuns(folder);
    expect(kept.get('a', { rate: 1 })).toBeUndefined();
    kept.put('a', { rate: 1 }, run);
    expect(new KeptRuns(folder).get('a', { rate: 1 })).toEqual(run);
    expect(kept.get('a', { rate: 2 })).toBeUndefined();
    expect(kept.get('b', { rate: 1 })).toBeUndefined();
    const nowhere = new KeptRuns(undefined);
    nowhere.put('a', {}, run);
    expect(nowhere.get('a', {})).toBeUndefined();
  });

  it('compute again what somebody had computed before', () => {
    const predicted = { prefilledTokens: 900, regeneratedTokens: 300 } as ClusterOutcome;
    expect(recomputedTokens(run, predicted)).toBe(400);
    expect(recomputedTokens({ ...run, prefilledTokens: 500 }, predicted)).toBe(0);
  });
});

describe('the command', () => {
  const runWith = async (checkout: string, environment: NodeJS.ProcessEnv): Promise<{ code: number; err: string }> => {
    const streams = rememberingStreams();
    const host: EvaluateHost = {
      ...streams,
      environment,
      openBackend: () => Promise.resolve(fakeBackend()),
      checkout,
      machine: '',
      date: '',
      now: () => 0,
    };
    return { code: await evaluate(['vllm'], {}, host), err: streams.texts.err };
  };
  const root = join(import.meta.dirname, '..', '..');

  it('says what has to be installed', async () => {
    const empty = mkdtempSync(join(tmpdir(), 'saga-no-vllm-'));
    const elsewhere = await runWith(empty, {});
    expect([elsewhere.code, elsewhere.err]).toEqual([
      1,
      expect.stringContaining('expected a checkout of the repository'),
    ]);
    const without = await runWith(root, { ...process.env, SAGA_VLLM_HOME: empty });
    expect([without.code, without.err]).toEqual([1, expect.stringContaining('node scripts/vllm.mjs install')]);
    expect(() => new VllmInstallation(empty, {}).library()).toThrow('cmake');
  });

  it('measures SAGA without what vLLM workers cannot do, in the simulator too', () => {
    const saga = measuredSystems.find(({ policy }) => policy === 'saga');
    expect(saga?.simulated).toMatchObject({ policy: 'saga', without: ['stealing', 'prefetch'] });
    expect(measuredSystems.filter(({ connector }) => connector)).toEqual([saga]);
  });
});
