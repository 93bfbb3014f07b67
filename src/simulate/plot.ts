/**
 * Reports as charts: one SVG file that stands alone (no script, no font to load), two panels, one line a policy.
 *
 * Cache mode: hit rate, and misses as a multiple of the optimum's, by cache size. Cluster mode: mean and 95th percentile of the
 * task completion time by load. With a single size or load, bars instead of lines.
 */
import type { CacheReport, ClusterReport } from './run.js';
import { tokensText } from './table.js';

/** A line of a chart, or a colour of its bars. */
export interface Series {
  name: string;
  /** A value for each place on the x axis. */
  values: readonly number[];
}

/** One of the plots of a chart. */
export interface Panel {
  title: string;
  yTitle: string;
  series: readonly Series[];
  /** A dotted line across, with its name. */
  reference?: { name: string; value: number };
  /** Lowest value of the y axis; below 0 never. `log`: a logarithmic axis where the values differ by a factor of 10 or more. */
  floor: number | 'log';
}

/** A chart: panels side by side that share the x axis and the legend. */
export interface Chart {
  title: string;
  subtitle: string;
  xTitle: string;
  xLabels: readonly string[];
  panels: readonly Panel[];
}

/**
 * Colours that colour-blind people can tell apart (Okabe and Ito), and that stand out on white. With ten series each has a
 * colour of its own; dashes and markers help where two colours are near each other.
 */
const colours = [
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#cc79a7',
  '#444444',
  '#56b4e9',
  '#e69f00',
  '#7a5c00',
  '#882255',
  '#000000',
];
const dashes = ['', '7 4', '2 3', '9 3 2 3', '', '5 2', '3 5', '12 3', '6 2 2 2', ''];
const markers = [
  'circle',
  'square',
  'diamond',
  'triangle',
  'circle',
  'diamond',
  'triangle',
  'square',
  'circle',
  'square',
] as const;

const size = { width: 1040, height: 470 } as const;
const frame = { top: 92, bottom: 96, left: 72, gap: 84, right: 28 } as const;

/** The chart of a report as the text of an SVG file. */
export function chartOf(report: CacheReport | ClusterReport): string {
  return render(report.schema === 'saga.simulate.cache/1' ? cacheChart(report) : clusterChart(report));
}

function cacheChart(report: CacheReport): Chart {
  const pageTokens = Number(report.options['pageTokens']);
  const sizes = [...new Set(report.results.map((row) => row.cachePages))];
  const policies = [...new Set(report.results.map((row) => row.policy))];
  const valuesOf = (value: (row: CacheReport['results'][number]) => number): Series[] =>
    policies.map((policy) => ({
      name: policy,
      values: sizes.map((pages) => {
        const row = report.results.find((one) => one.policy === policy && one.cachePages === pages);
        return row === undefined ? Number.NaN : value(row);
      }),
    }));
  return {
    title: 'Prefix cache by size and eviction policy',
    subtitle: `${inputText(report)}: ${report.requests.toLocaleString('en-US')} requests, ${String(report.options['model'])} model`,
    xTitle: 'cache size, tokens (share of the distinct pages)',
    xLabels: sizes.map((pages) => {
      const share = report.results.find((row) => row.cachePages === pages)?.cacheShare;
      return `${tokensText(pages * pageTokens)}${share === undefined || share === null ? '' : ` (${share} %)`}`;
    }),
    panels: [
      {
        title: 'Prefix hit rate',
        yTitle: 'pages hit, % of pages asked for',
        series: valuesOf((row) => 100 * row.prefixHitRate),
        floor: 0,
      },
      {
        title: 'Misses against the offline optimum',
        yTitle: 'missed pages / those of the optimum',
        series: valuesOf((row) => row.beladyRatio).filter((series) => series.name !== 'belady'),
        reference: { name: 'optimum', value: 1 },
        floor: 1,
      },
    ],
  };
}

function clusterChart(report: ClusterReport): Chart {
  const policies = [...new Set(report.results.map((row) => row.policy))];
  const points = [...new Set(report.results.map((row) => row.load ?? row.rateTasksPerSecond ?? row.liveTasks ?? 0))];
  const first = report.results[0];
  const at = (row: ClusterReport['results'][number]): number =>
    row.load ?? row.rateTasksPerSecond ?? row.liveTasks ?? 0;
  const valuesOf = (value: (row: ClusterReport['results'][number]) => number): Series[] =>
    policies.map((policy) => ({
      name: policy,
      values: points.map((point) => {
        const row = report.results.find((one) => one.policy === policy && at(one) === point);
        return row === undefined ? Number.NaN : value(row);
      }),
    }));
  const reference = { name: 'ideal', value: first?.idealSeconds ?? 0 };
  const saturation = report.saturationTasksPerSecond;
  return {
    title: 'Task completion time by load and policy',
    subtitle: `${inputText(report)}: ${report.tasks.toLocaleString('en-US')} tasks on ${String(report.options['workers'])} workers, ${String(report.options['hardware'])}`,
    xTitle:
      saturation !== null
        ? `load (1 = ${saturation.toPrecision(3)} tasks/s, where affinity takes 3 times the ideal)`
        : typeof first?.liveTasks === 'number'
          ? 'live tasks'
          : 'tasks a second',
    xLabels: points.map(String),
    panels: [
      {
        title: 'Mean',
        yTitle: 'seconds',
        series: valuesOf((row) => row.taskCompletionSeconds.mean),
        reference,
        floor: 'log',
      },
      {
        title: '95th percentile',
        yTitle: 'seconds',
        series: valuesOf((row) => row.taskCompletionSeconds.p95),
        floor: 'log',
      },
    ],
  };
}

function inputText(report: CacheReport | ClusterReport): string {
  const { trace, workload } = report.options;
  return typeof workload === 'string' ? `workload ${workload}` : String(trace).split(/[\\/]/).slice(-2).join('/');
}

/** Steps of an axis: 1, 2 or 5 times a power of ten, about five of them. */
export function axisTicks(low: number, high: number): number[] {
  const span = Math.max(high - low, 1e-9);
  const rough = span / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
  const ticks: number[] = [];
  for (let tick = Math.floor(low / step + 1e-9) * step; tick < high + step * 0.999; tick += step) {
    ticks.push(Number(tick.toPrecision(12)));
  }
  return ticks;
}

/** Steps of a logarithmic axis: 1, 2 and 5 times powers of ten that enclose the values. */
export function logTicks(low: number, high: number): number[] {
  const ticks: number[] = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    for (const factor of [1, 2, 5, 10]) {
      const tick = Number((factor * power).toPrecision(12));
      if (tick > (ticks[ticks.length - 1] ?? 0)) ticks.push(tick);
    }
  }
  const first = ticks.findLastIndex((tick) => tick <= low);
  const last = ticks.findIndex((tick) => tick >= high);
  return ticks.slice(Math.max(0, first), last + 1);
}

/** A chart as the text of an SVG file. */
export function render(chart: Chart): string {
  const width = (size.width - frame.left - frame.right - frame.gap * (chart.panels.length - 1)) / chart.panels.length;
  const height = size.height - frame.top - frame.bottom;
  const names = [...new Set(chart.panels.flatMap((panel) => panel.series.map((series) => series.name)))];
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${size.width}" height="${size.height}" viewBox="0 0 ${size.width} ${size.height}" role="img" font-family="system-ui, 'Segoe UI', Helvetica, Arial, sans-serif" font-size="12">`,
    `<title>${escape(chart.title)}</title>`,
    `<rect width="${size.width}" height="${size.height}" fill="#ffffff"/>`,
    text(frame.left - 44, 32, chart.title, 'font-size="18" font-weight="600" fill="#1a1a1a"'),
    text(frame.left - 44, 52, chart.subtitle, 'fill="#555555"'),
  ];
  chart.panels.forEach((panel, index) => {
    parts.push(...renderPanel(chart, panel, names, frame.left + index * (width + frame.gap), frame.top, width, height));
  });
  parts.push(text(size.width / 2, size.height - 46, chart.xTitle, 'text-anchor="middle" fill="#333333"'));
  parts.push(...renderLegend(names), '</svg>');
  return `${parts.join('\n')}\n`;
}

function renderLegend(names: readonly string[]): string[] {
  const widthOf = (name: string): number => 48 + name.length * 7.5;
  const rows: string[][] = [[]];
  let used = 0;
  for (const name of names) {
    used += widthOf(name);
    if (used > size.width - 40) {
      rows.push([]);
      used = widthOf(name);
    }
    rows[rows.length - 1]?.push(name);
  }
  return rows.flatMap((row, index) => {
    let x = (size.width - row.reduce((sum, name) => sum + widthOf(name), 0)) / 2;
    const y = size.height - (rows.length === 1 ? 20 : 8 + 18 * (rows.length - 1 - index));
    return row.flatMap((name) => {
      const from = x;
      x += widthOf(name);
      const style = names.indexOf(name);
      return [
        `<line x1="${round(from)}" y1="${y - 4}" x2="${round(from + 28)}" y2="${y - 4}" ${stroke(style)}/>`,
        marker(style, from + 14, y - 4),
        text(from + 34, y, name, 'fill="#1a1a1a"'),
      ];
    });
  });
}

function renderPanel(
  chart: Chart,
  panel: Panel,
  names: readonly string[],
  left: number,
  top: number,
  width: number,
  height: number,
): string[] {
  const values = [...panel.series.flatMap((series) => series.values), panel.reference?.value ?? Number.NaN].filter(
    Number.isFinite,
  );
  const lowest = Math.min(...values);
  const highest = Math.max(...values);
  const logarithmic = panel.floor === 'log' && chart.xLabels.length > 1 && lowest > 0 && highest >= 10 * lowest;
  const floor = panel.floor === 'log' ? 0 : panel.floor;
  const ticks = logarithmic ? logTicks(lowest, highest) : axisTicks(floor, Math.max(floor + 1e-6, highest));
  const low = ticks[0] ?? 0;
  const high = ticks[ticks.length - 1] ?? 1;
  const scale = (value: number): number => (logarithmic ? Math.log(value) : value);
  const y = (value: number): number =>
    top + height - ((scale(value) - scale(low)) / (scale(high) - scale(low))) * height;
  const slot = width / chart.xLabels.length;
  const x = (place: number): number => left + slot * (place + 0.5);
  const parts = [text(left, top - 12, panel.title, 'font-size="13" font-weight="600" fill="#1a1a1a"')];
  for (const tick of ticks) {
    parts.push(
      `<line x1="${round(left)}" y1="${round(y(tick))}" x2="${round(left + width)}" y2="${round(y(tick))}" stroke="#e3e3e3"/>`,
      text(left - 8, y(tick) + 4, tick.toLocaleString('en-US'), 'text-anchor="end" fill="#333333"'),
    );
  }
  parts.push(
    `<path d="M${round(left)} ${round(top)}V${round(top + height)}H${round(left + width)}" fill="none" stroke="#555555"/>`,
    `<text transform="translate(${round(left - 54)} ${round(top + height / 2)}) rotate(-90)" text-anchor="middle" fill="#333333">${escape(`${panel.yTitle}${logarithmic ? ' (log scale)' : ''}`)}</text>`,
  );
  chart.xLabels.forEach((label, place) => {
    parts.push(
      `<line x1="${round(x(place))}" y1="${round(top + height)}" x2="${round(x(place))}" y2="${round(top + height + 5)}" stroke="#555555"/>`,
      text(x(place), top + height + 19, label, 'text-anchor="middle" font-size="11" fill="#333333"'),
    );
  });
  if (panel.reference !== undefined) {
    const at = round(y(panel.reference.value));
    parts.push(
      `<line x1="${round(left)}" y1="${at}" x2="${round(left + width)}" y2="${at}" stroke="#777777" stroke-dasharray="2 4"/>`,
      text(left + width, at - 5, panel.reference.name, 'text-anchor="end" font-size="11" fill="#666666"'),
    );
  }
  panel.series.forEach((series, index) => {
    const colour = names.indexOf(series.name);
    if (chart.xLabels.length === 1) {
      const bar = slot / (panel.series.length + 2);
      const value = series.values[0] ?? Number.NaN;
      if (!Number.isFinite(value)) return;
      const from = left + bar * (index + 1);
      parts.push(
        `<rect x="${round(from + bar * 0.12)}" y="${round(y(value))}" width="${round(bar * 0.76)}" height="${round(y(low) - y(value))}" fill="${colourOf(colour)}"/>`,
        text(from + bar / 2, y(value) - 5, tickText(value), 'text-anchor="middle" font-size="11" fill="#333333"'),
      );
      return;
    }
    const points = series.values.flatMap((value, place) =>
      Number.isFinite(value) ? [[x(place), y(value)] as const] : [],
    );
    parts.push(
      `<polyline points="${points.map(([px, py]) => `${round(px)},${round(py)}`).join(' ')}" fill="none" ${stroke(colour)}/>`,
      ...points.map(([px, py]) => marker(colour, px, py)),
    );
  });
  return parts;
}

function colourOf(index: number): string {
  return colours[index % colours.length] as string;
}

function stroke(index: number): string {
  const dash = dashes[index % dashes.length] as string;
  return `stroke="${colourOf(index)}" stroke-width="2"${dash === '' ? '' : ` stroke-dasharray="${dash}"`}`;
}

function marker(index: number, x: number, y: number): string {
  const fill = `fill="${colourOf(index)}"`;
  switch (markers[index % markers.length]) {
    case 'square':
      return `<rect x="${round(x - 3.5)}" y="${round(y - 3.5)}" width="7" height="7" ${fill}/>`;
    case 'diamond':
      return `<path d="M${round(x)} ${round(y - 5)}l5 5l-5 5l-5 -5z" ${fill}/>`;
    case 'triangle':
      return `<path d="M${round(x)} ${round(y - 5)}l5 9h-10z" ${fill}/>`;
    default:
      return `<circle cx="${round(x)}" cy="${round(y)}" r="4" ${fill}/>`;
  }
}

function text(x: number, y: number, content: string, attributes: string): string {
  return `<text x="${round(x)}" y="${round(y)}" ${attributes}>${escape(content)}</text>`;
}

function tickText(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

function escape(content: string): string {
  // Characters that XML does not allow at all cannot be escaped either.
  // eslint-disable-next-line no-control-regex
  const allowed = content.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, '?');
  return allowed.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');
}
