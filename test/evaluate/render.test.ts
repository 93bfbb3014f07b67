import { describe, expect, it } from 'vitest';
import { renderBars, type BarChart, type BarPanel } from '../../src/evaluate/bar-chart.js';
import { checkSection, withSection } from '../../src/evaluate/document.js';
import { cellText, chartSvg, durationText, reportMarkdown, reportText } from '../../src/evaluate/render.js';
import { goalOf, outcomeOf, type FinishedReport } from '../../src/evaluate/report.js';

const report: FinishedReport = {
  table: 'example',
  title: 'An example',
  setup: { seeds: '42, 123' },
  goals: [
    goalOf('speed', 'at least', 1.5, { mean: 1.6, interval: [1.4, 1.8] }, { digits: 2 }),
    goalOf('loss', 'at most', 0.05, 0.07, { percent: true, digits: 1 }),
    goalOf('unknown', 'at most', 1, null),
  ],
  grids: [
    {
      title: 'Figures',
      columns: [
        { key: 'system', head: 'system' },
        { key: 'share', head: 'share', percent: true, digits: 1 },
        { key: 'tokens', head: 'tokens', scaled: true },
        { key: 'seconds', head: 'seconds', digits: 1 },
      ],
      rows: [
        { system: 'one|two', share: 0.1234, tokens: 1_994_000, seconds: { mean: 1234.56, interval: null } },
        { system: 'three', share: null, tokens: 10, seconds: { mean: 2, interval: [1, 3] } },
      ],
    },
  ],
  notes: ['A note.'],
  chart: {
    kind: 'bars',
    chart: {
      title: 'An <example>',
      subtitle: 'sub',
      panels: [
        {
          title: 'panel',
          xTitle: 'seconds',
          digits: 1,
          reference: { name: 'ideal', value: 1 },
          bars: [
            { label: 'a', value: 2, interval: [1, 3] },
            { label: 'ours', value: 4, ours: true },
            { label: 'missing', value: Number.NaN },
          ],
        },
      ],
    },
  },
  command: 'saga evaluate example',
  date: '2026-01-31',
  machine: 'a machine',
  seconds: 65.4,
};

describe('text', () => {
  it('shows the goals, the figures and how they were made', () => {
    expect(reportText(report)).toBe(`example: An example
===================
seeds    42, 123
machine  a machine
date     2026-01-31
command  saga evaluate example
took     1 min 5 s

Goals

goal     wanted    measured           outcome
-------  --------  -----------------  ------------
speed    >= 1.50   1.60 [1.40, 1.80]  met
loss     <= 5.0 %  7.0 %              missed
unknown  <= 1.000  -                  not measured

Figures

system   share %  tokens         seconds
-------  -------  ------  --------------
one|two     12.3  1.99 M         1,234.6
three          -      10  2.0 [1.0, 3.0]

- A note.
`);
  });

  it('separates groups of rows, and only them', () => {
    const rows = ['x', 'x', 'y'].map((mix, load) => ({ mix, load }));
    const columns = [
      { key: 'mix', head: 'mix' },
      { key: 'load', head: 'load', digits: 0 },
    ];
    const text = reportText({ ...report, goals: [], grids: [{ title: 'Grid', columns, rows }], notes: [] });
    expect(text.slice(text.indexOf('Grid'))).toBe(`Grid

mix  load
---  ----
x       0
x       1

y       2
`);
  });
});

describe('markdown', () => {
  it('is tables whose figures stand to the right, the chart and the set-up', () => {
    expect(reportMarkdown(report, 'images/x.svg')).toBe(`**Goals**

| goal | wanted | measured | outcome |
|---|---|---|---|
| speed | >= 1.50 | 1.60 [1.40, 1.80] | met |
| loss | <= 5.0 % | 7.0 % | missed |
| unknown | <= 1.000 | - | not measured |

**Figures**

| system | share % | tokens | seconds |
|---|---:|---:|---:|
| one\\|two | 12.3 | 1.99 M | 1,234.6 |
| three | - | 10 | 2.0 [1.0, 3.0] |

![An example](images/x.svg)

- A note.

seeds: 42, 123; machine: a machine; date: 2026-01-31; command: \`saga evaluate example\`; took: 1 min 5 s
`);
  });
});

describe('cells and durations', () => {
  it('show what is no number as nothing', () => {
    expect(cellText(Number.NaN, { key: '', head: '' })).toBe('-');
    expect(cellText(undefined, { key: '', head: '' })).toBe('-');
    expect(cellText(0.5, { key: '', head: '' })).toBe('0.50');
  });

  it('are in seconds below a minute', () => {
    expect([0.4, 59.4, 59.6, 3600].map(durationText)).toEqual(['0 s', '59 s', '1 min 0 s', '60 min 0 s']);
  });
});

describe('goals', () => {
  it('are met at the bound itself', () => {
    expect(outcomeOf(goalOf('', 'at least', 1.2, 1.2))).toBe('met');
    expect(outcomeOf(goalOf('', 'at least', 1.2, 1.19))).toBe('missed');
    expect(outcomeOf(goalOf('', 'at most', 0.5, 0.5))).toBe('met');
    expect(outcomeOf(goalOf('', 'at most', 0.5, 0.51))).toBe('missed');
    expect(outcomeOf(goalOf('', 'at most', 0.5, Number.NaN))).toBe('not measured');
  });
});

describe('bars', () => {
  it('are as long as their values, with intervals, and leave out what is no number', () => {
    const svg = chartSvg(report);
    // Room of 704 for values from 0 to 4, from x = 240.
    expect(svg).toContain('<rect x="240" y="113" width="352" height="14" fill="#0072b2"/>');
    expect(svg).toContain('<rect x="240" y="133" width="704" height="14" fill="#d55e00"/>');
    expect(svg).toContain('M416 120H768');
    expect(svg).toContain('An &lt;example&gt;');
    expect(svg).not.toContain('missing');
    expect(svg).not.toMatch(/NaN|Infinity/);
  });

  it('go to the left where they are below 0', () => {
    const svg = renderBars({
      title: '',
      subtitle: '',
      panels: [
        {
          title: '',
          xTitle: '',
          digits: 0,
          bars: [
            { label: 'a', value: -1 },
            { label: 'b', value: 1 },
          ],
        },
      ],
    });
    expect(svg).toContain('<rect x="240" y="113" width="352" height="14"');
    expect(svg).toContain('<rect x="592" y="133" width="352" height="14"');
  });
});

describe('panels of bars', () => {
  const panelOf = (value: number): BarPanel => ({ title: '', xTitle: '', digits: 0, bars: [{ label: '', value }] });
  const widthsOf = (chart: Pick<BarChart, 'sameScale'>): (string | undefined)[] =>
    [
      ...renderBars({ title: '', subtitle: '', panels: [panelOf(1), panelOf(4)], ...chart }).matchAll(
        /width="([\d.]+)" height="14"/g,
      ),
    ].map(([, width]) => width);

  it('have a scale each, or one', () => {
    expect(widthsOf({})).toEqual(['704', '704']);
    expect(widthsOf({ sameScale: true })).toEqual(['176', '704']);
  });
});

describe('the document', () => {
  const document = 'before\n<!-- evaluate a: begin -->\nold\n<!-- evaluate a: end -->\nafter\n';

  it('keeps everything but the section', () => {
    const once = withSection(document, 'a', '\nnew\nlines\n');
    expect(once).toBe('before\n<!-- evaluate a: begin -->\nnew\nlines\n<!-- evaluate a: end -->\nafter\n');
    expect(withSection(once, 'a', 'new\nlines')).toBe(once);
  });

  it('must have the marks, in their order', () => {
    expect(() => checkSection(document, 'b')).toThrow('<!-- evaluate b: begin -->');
    expect(() => checkSection('<!-- evaluate a: end --> <!-- evaluate a: begin -->', 'a')).toThrow('expected');
    expect(() => checkSection(document, 'a')).not.toThrow();
  });
});
