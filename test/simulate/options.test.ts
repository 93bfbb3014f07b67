import { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { registerSimulate } from '../../src/cli/simulate.js';
import { SagaError } from '../../src/errors.js';
import { clusterPolicies, flag, parseSimulateOptions, shareOf, type RawOptions } from '../../src/simulate/options.js';

const refusals: [RawOptions, RegExp][] = [
  [{}, /either --trace FILE or --workload NAME/],
  [{ trace: 'x', workload: 'agent' }, /either --trace FILE or --workload NAME/],
  [{ mode: 'fast', trace: 'x' }, /--mode to be cache or cluster, not "fast"/],
  [{ workload: 'swe-bench' }, /--workload to be agent, not "swe-bench"/],
  [{ mode: 'cluster', workload: 'chat', load: '1' }, /swe-bench, web-arena, multi-tenant or agent, not "chat"/],
  [{ trace: 'x', policies: 'lru,mru' }, /lru, lru-prefix, wa-lru, ttl, saga-paper, saga or belady, not "mru"/],
  [{ trace: 'x', policies: 'affinity' }, /--policies to be lru/],
  [{ trace: 'x', policies: 'lru,,ttl' }, /separated by commas/],
  [{ trace: 'x', model: 'fixed' }, /--model to be atomic or pinned/],
  [{ trace: 'x', live: '0' }, /--live to be a whole number from 1/],
  [{ trace: 'x', live: '2.5' }, /--live to be a whole number/],
  [{ trace: 'x', seed: '-1' }, /--seed to be a whole number/],
  [{ trace: 'x', seed: '1e3' }, /--seed to be a whole number/],
  [{ trace: 'x', tasks: '0' }, /--tasks to be a whole number from 1/],
  [{ trace: 'x', orderSalt: 'pepper' }, /--order-salt to be a whole number/],
  [{ trace: 'x', gapCap: 'long' }, /--gap-cap to be a number/],
  [{ trace: 'x', onBadLine: 'warn' }, /--on-bad-line to be skip or fail/],
  [{ trace: 'x', pageTokens: '0' }, /--page-tokens to be a whole number from 1/],
  [{ trace: 'x', cacheTokens: '511' }, /at least one page \(512 tokens\), not --cache-tokens 511/],
  [{ trace: 'x', cacheTokens: '1000', cacheShares: '1' }, /either --cache-tokens N,.. or --cache-shares/],
  [{ trace: 'x', cacheShares: '0' }, /--cache-shares to be per cent above 0/],
  [{ trace: 'x', cacheShares: '101' }, /at most 100/],
  [{ trace: 'x', cacheShares: '1,x' }, /--cache-shares to be per cent/],
  [{ trace: 'x', first: '0' }, /--first to be per cent above 0/],
  [{ trace: ' ' }, /expected a value after --trace/],
  [{ trace: 'x', workers: '2' }, /no --workers with --mode cache: it belongs to --mode cluster/],
  [{ trace: 'x', load: '1' }, /no --load with --mode cache/],
  [{ mode: 'cluster', trace: 'x', load: '1', model: 'atomic' }, /no --model with --mode cluster/],
  [{ mode: 'cluster', trace: 'x', load: '1', timing: true }, /no --timing with --mode cluster/],
  [{ mode: 'cluster', trace: 'x' }, /exactly one of --load X,.., --rate/],
  [{ mode: 'cluster', trace: 'x', load: '1', live: '3' }, /exactly one of --load/],
  [{ mode: 'cluster', trace: 'x', load: '0.5,0' }, /--load to be a number above 0/],
  [{ workload: 'agent', onBadLine: 'skip' }, /no --on-bad-line with --workload/],
  [{ mode: 'cluster', workload: 'swe-bench', load: '1', orderSalt: '1' }, /no --order-salt with --workload swe-bench/],
  [{ mode: 'cluster', trace: 'x', rate: 'x' }, /--rate to be a number from 1e-8 to 1000000/],
  [{ mode: 'cluster', trace: 'x', pressure: '-1' }, /--pressure to be a number above 0/],
  [{ mode: 'cluster', trace: 'x', load: '1', hardware: 'b200' }, /a100-tp4, a100-tp8, h100-tp4 or h100-tp8/],
  [{ mode: 'cluster', trace: 'x', load: '1', workers: '0' }, /--workers to be a whole number from 1 to 1024/],
  [{ mode: 'cluster', trace: 'x', load: '1', saturation: 'lru' }, /--saturation to be round-robin/],
  [{ mode: 'cluster', trace: 'x', load: '1', kvTokens: '8' }, /KV room of at least one page \(16 tokens\)/],
  [{ mode: 'cluster', trace: 'x', load: '1', stepTokens: '100' }, /at least the 256 sequences/],
  [{ mode: 'cluster', trace: 'x', load: '1', journal: 'j' }, /one policy and one load with --journal/],
  [{ trace: 'x', hints: 'graph' }, /--hints to be none, end, end\+tool or end\+tool-noisy, not "graph"/],
  [{ mode: 'cluster', trace: 'x', load: '1', hints: 'end' }, /--hints to be none or graph, not "end"/],
  [{ trace: 'x', without: 'ttl' }, /no --without with --mode cache/],
  [
    { mode: 'cluster', trace: 'x', load: '1', policies: 'saga', without: 'luck' },
    /--without to be prediction, eviction, .* or ttl, not "luck"/,
  ],
  [
    { mode: 'cluster', trace: 'x', load: '1', policies: 'affinity,ttl', without: 'stealing' },
    /a policy that has stealing \(saga-paper or saga\) with --without stealing/,
  ],
  [
    { mode: 'cluster', trace: 'x', rate: '1', policies: 'kv-router', journal: 'j' },
    /--policies round-robin, affinity, wa-lru, ttl or saga with --journal FILE, not kv-router/,
  ],
  [{ trace: 'x', cacheSize: '1' }, /a known option, not --cache-size/],
];

describe('options of saga simulate', () => {
  it.each(refusals)('%o are refused', (raw, message) => {
    const thrown = ((): unknown => {
      try {
        return parseSimulateOptions(raw);
      } catch (error) {
        return error;
      }
    })();
    expect(thrown).toBeInstanceOf(SagaError);
    expect((thrown as SagaError).code).toBe('SAGA_ERR_OPTION');
    expect((thrown as SagaError).message).toMatch(/^expected [^\n]*$/);
    expect((thrown as SagaError).message).toMatch(message);
  });

  it('have the stated defaults in cache mode', () => {
    expect(parseSimulateOptions({ trace: 'x' })).toEqual({
      mode: 'cache',
      trace: 'x',
      workload: undefined,
      seed: 42,
      tasks: undefined,
      gapCapSeconds: 1800,
      orderSalt: undefined,
      onBadLine: 'fail',
      policies: ['lru', 'lru-prefix', 'wa-lru', 'ttl', 'saga-paper', 'saga', 'belady'],
      live: undefined,
      model: 'pinned',
      cacheTokens: undefined,
      cacheShares: ['0.25', '0.5', '1', '2', '5'].map((text) => ({ text, value: Number(text) })),
      pageTokens: 512,
      first: undefined,
      hints: 'none',
      timing: false,
    });
  });

  it('have the stated defaults in cluster mode', () => {
    expect(parseSimulateOptions({ mode: 'cluster', workload: 'web-arena', load: '0.5, 1' })).toEqual({
      mode: 'cluster',
      trace: undefined,
      workload: 'web-arena',
      seed: 42,
      tasks: undefined,
      gapCapSeconds: 1800,
      orderSalt: undefined,
      onBadLine: 'fail',
      policies: [...clusterPolicies],
      workers: 16,
      hardware: 'a100-tp4',
      arrivals: { kind: 'load', loads: [0.5, 1] },
      saturation: [],
      pageTokens: 16,
      kvTokens: 448_000,
      maxSequences: 256,
      stepTokens: 2048,
      hostTierTokens: 0,
      linkGigabytesPerSecond: 25,
      hints: undefined,
      without: [],
      journal: undefined,
    });
    const large = parseSimulateOptions({
      mode: 'cluster',
      trace: 'x',
      pressure: '1.5',
      hardware: 'h100-tp8',
      policies: 'ttl,ttl',
    });
    expect(large).toMatchObject({
      kvTokens: 1_327_000,
      policies: ['ttl'],
      arrivals: { kind: 'pressure', pressure: 1.5 },
    });
  });

  it('always time LRU beside the others', () => {
    expect(parseSimulateOptions({ trace: 'x', policies: 'ttl,belady', timing: true })).toMatchObject({
      policies: ['lru', 'ttl', 'belady'],
    });
    expect(parseSimulateOptions({ trace: 'x', policies: 'ttl,lru', timing: true })).toMatchObject({
      policies: ['ttl', 'lru'],
    });
  });

  it('take parts out of a policy that has them, also one whose saturation alone is searched for', () => {
    const raw = { mode: 'cluster', workload: 'web-arena', load: '1', without: 'stealing,ttl,stealing', hints: 'none' };
    expect(parseSimulateOptions({ ...raw, policies: 'affinity,saga' })).toMatchObject({
      without: ['stealing', 'ttl'],
      hints: 'none',
    });
    expect(parseSimulateOptions({ ...raw, policies: 'affinity', saturation: 'saga-paper' })).toMatchObject({
      without: ['stealing', 'ttl'],
    });
  });

  it('turn percentages into whole counts, rounded down, without binary fractions', () => {
    const share = (text: string): { text: string; value: number } => ({ text, value: Number(text) });
    expect(shareOf(194_523, share('0.25'))).toBe(486);
    expect(shareOf(194_523, share('5'))).toBe(9726);
    expect(shareOf(1000, share('0.7'))).toBe(7); // 1000 * (0.7 / 100) is 6.999...
    expect(shareOf(1000, share('.1'))).toBe(1);
    expect(shareOf(999, share('0.1'))).toBe(0);
    expect(shareOf(7, share('100.'))).toBe(7);
  });

  it('are named as on the command line', () => {
    expect([flag('cacheShares'), flag('hostTierTokens'), flag('live')]).toEqual([
      '--cache-shares',
      '--host-tier-tokens',
      '--live',
    ]);
  });
});

describe('the command line', () => {
  it('offers every option that is known, and no other', () => {
    const program = new Command();
    registerSimulate(program);
    const offered = program.commands[0]?.options.map((option) => option.attributeName()) ?? [];
    const complaint = (name: string): string => {
      try {
        parseSimulateOptions({ [name]: name === 'timing' ? true : 'x' });
        return '';
      } catch (error) {
        return (error as Error).message;
      }
    };
    const elsewhere = ['json', 'plot']; // taken by the command itself
    for (const name of offered.filter((one) => !elsewhere.includes(one)))
      expect(complaint(name)).not.toContain('a known option');
    expect(complaint('other')).toContain('a known option');
    expect([...offered].sort()).toEqual(
      [
        ...['mode', 'trace', 'workload', 'tasks', 'seed', 'gapCap', 'orderSalt', 'onBadLine', 'policies', 'live'],
        ...['pageTokens', 'json', 'plot', 'model', 'cacheTokens', 'cacheShares', 'first', 'timing'],
        ...['workers', 'hardware', 'load', 'rate', 'pressure', 'saturation', 'kvTokens', 'maxSequences', 'stepTokens'],
        ...['hostTierTokens', 'linkGigabytes', 'journal', 'hints', 'without'],
      ].sort(),
    );
  });
});
