import { describe, expect, it } from 'vitest';
import { axisTicks, chartOf, logTicks } from '../../src/simulate/plot.js';
import { ProgressDisplay } from '../../src/simulate/progress.js';
import type { CacheReport, ClusterReport, ClusterResultRow } from '../../src/simulate/run.js';
import { layOut, tokensText } from '../../src/simulate/table.js';

/** Checks that every element is closed in order; returns the names of the elements. */
function elementsOf(svg: string): string[] {
  const open: string[] = [];
  const names: string[] = [];
  const rest = svg.replace(
    /<(\/?)([a-z]+)((?:\s[a-zA-Z][a-zA-Z0-9:-]*="[^"<]*")*)\s*(\/?)>/g,
    (_, closing: string, name: string, _attributes, empty: string) => {
      names.push(name);
      if (closing === '/') expect(open.pop()).toBe(name);
      else if (empty === '') open.push(name);
      return '';
    },
  );
  expect(open).toEqual([]);
  expect(rest).not.toMatch(/[<>]/);
  expect(rest).not.toMatch(/&(?!amp;|lt;|gt;|quot;)/);
  return names;
}

const cacheReport: CacheReport = {
  schema: 'saga.simulate.cache/1',
  options: { trace: 'some/<odd> & "name".jsonl', workload: null, pageTokens: 512, model: 'pinned' },
  requests: 10,
  distinctPages: 1000,
  results: [1, 2].flatMap((size) =>
    (['lru', 'belady'] as const).map((policy) => ({
      policy,
      cachePages: size * 10,
      cacheShare: size,
      requestedPages: 100,
      missedPages: 20,
      evictedPages: 5,
      prefixHitRate: 0.8,
      beladyRatio: policy === 'lru' ? 1.5 : 1,
      costRatio: 1,
    })),
  ),
};

function clusterRow(policy: ClusterResultRow['policy'], load: number, mean: number): ClusterResultRow {
  const distribution = { mean, p50: mean, p95: mean * 2, p99: mean * 3 };
  return {
    policy,
    load,
    rateTasksPerSecond: load,
    liveTasks: null,
    tasksCompleted: 5,
    taskCompletionSeconds: distribution,
    taskCompletionSecondsWithoutGaps: distribution,
    idealSeconds: 50,
    prefixHitRate: 0.5,
    capacityPages: 100,
    requestedPages: 100,
    missedPages: 50,
    evictedPages: 10,
    beladyRatio: 1.2,
    costRatio: 1.1,
    regeneratedTokens: 1,
    memoryUtilization: 0.5,
    sloAttainment: 1,
    sloAttainmentPaper: 1,
    throughputTokensPerSecond: 10,
    outputTokens: 100,
    preemptions: 0,
    preemptedTokens: 0,
    prefilledTokens: 0,
    loadedTokens: 0,
    copiedPages: 0,
    heldCalls: 0,
    steals: 0,
    leases: { granted: 0, refused: 0, expired: 0, released: 0, revoked: 0 },
    stateDigest: '0',
  };
}

function clusterReport(results: ClusterResultRow[]): ClusterReport {
  return {
    schema: 'saga.simulate.cluster/1',
    options: { workload: 'swe-bench', trace: null, workers: 16, hardware: 'a100-tp4' },
    requests: 10,
    tasks: 5,
    tasksTooLarge: 0,
    saturationTasksPerSecond: 1,
    saturationByPolicy: {},
    results,
  };
}

describe('charts', () => {
  it('are well-formed, stand alone, and draw a line and a marker for each policy and size', () => {
    const svg = chartOf(cacheReport);
    const names = elementsOf(svg);
    // Two policies with the hit rate, one (the optimum is the axis) with the ratio.
    expect(names.filter((name) => name === 'polyline').length).toBe(3);
    expect(svg).toContain('&lt;odd&gt; &amp; &quot;name&quot;.jsonl');
    expect(svg).not.toMatch(/https?:(?!\/\/www\.w3\.org\/2000\/svg)|<script|@import|NaN|Infinity|undefined/);
    for (const label of ['5.12 K (1 %)', '10.2 K (2 %)', 'lru', 'belady', 'Prefix hit rate'])
      expect(svg).toContain(label);
  });

  it('draw bars where there is one size or load, and a logarithmic axis where times differ tenfold', () => {
    const single = chartOf(clusterReport([clusterRow('affinity', 1, 120), clusterRow('ttl', 1, 100)]));
    expect(elementsOf(single).filter((name) => name === 'polyline')).toEqual([]);
    expect(single).not.toContain('log scale');
    const wide = chartOf(
      clusterReport(
        [0.5, 1].flatMap((load) => [clusterRow('affinity', load, 100), clusterRow('round-robin', load, 5000)]),
      ),
    );
    elementsOf(wide);
    expect(wide).toContain('seconds (log scale)');
  });

  it('survive results that are zero or missing', () => {
    const svg = chartOf(clusterReport([clusterRow('affinity', 1, 0), clusterRow('ttl', 2, 0)]));
    elementsOf(svg);
    expect(svg).not.toContain('NaN');
  });

  it('have round steps on their axes', () => {
    expect(axisTicks(0, 100)).toEqual([0, 20, 40, 60, 80, 100]);
    expect(axisTicks(1, 2.4)).toEqual([1, 1.5, 2, 2.5]);
    expect(logTicks(333, 7355)).toEqual([200, 500, 1000, 2000, 5000, 10_000]);
  });
});

describe('tables', () => {
  it('align text to the left and numbers to the right, and separate groups', () => {
    const columns = [
      { head: 'load', right: true },
      { head: 'policy', right: false },
      { head: 's', right: true },
    ];
    expect(layOut(columns, [['1', 'lru', '10.5'], ['1', 'wa-lru', '9'], ['2', 'lru', '7']]).split('\n')).toEqual([
      'load  policy     s',
      '----  ------  ----',
      '   1  lru     10.5',
      '   1  wa-lru     9',
      '',
      '   2  lru        7',
    ]); // prettier-ignore
  });

  it('give tokens to three figures', () => {
    expect([999, 1000, 448_000, 1_990_000, 24_900_000, 3e9].map(tokensText)).toEqual([
      '999',
      '1.00 K',
      '448 K',
      '1.99 M',
      '24.9 M',
      '3.00 G',
    ]);
  });
});

describe('progress', () => {
  const streamOf = (isTTY: boolean): { text: string; isTTY: boolean; columns: number; write(text: string): void } => ({
    text: '',
    isTTY,
    columns: 70,
    write(text: string) {
      this.text += text;
    },
  });

  it('redraws one line on a terminal and clears it', () => {
    const stream = streamOf(true);
    const display = new ProgressDisplay(stream);
    display.begin('replaying', 4);
    display.advance(1);
    display.advance(1);
    display.note('a note');
    display.advance(4);
    display.end();
    expect(stream.text).not.toContain('\n\r\n');
    expect(stream.text.split('\n').length).toBe(2); // the note alone ends a line
    expect(stream.text).toContain(`\rreplaying [${'#'.repeat(8)}${'-'.repeat(22)}]  25 %`);
    expect(stream.text).toContain(`[${'#'.repeat(30)}] 100 %`);
    expect(stream.text.endsWith(' \r')).toBe(true);
  });

  it('writes plain lines elsewhere, with NO_COLOR, and on a dumb terminal', () => {
    for (const [isTTY, environment] of [[false, {}], [true, { NO_COLOR: '1' }], [true, { TERM: 'dumb' }]] as const) {
      const stream = streamOf(isTTY);
      const display = new ProgressDisplay(stream, environment);
      display.begin('replaying', 4);
      for (const done of [0.5, 1, 1.5, 2, 4]) display.advance(done);
      display.end();
      display.begin('searching', undefined);
      for (const runs of [3, 10, 12]) display.advance(runs);
      expect(stream.text.split('\n')).toEqual([
        'saga: replaying (4 runs)',
        'saga: replaying: 25 %',
        'saga: replaying: 50 %',
        'saga: replaying: 100 %',
        'saga: searching',
        'saga: searching: 10 runs',
        '',
      ]);
    }
  }); // prettier-ignore
});
