/**
 * Horizontal bars with confidence intervals: one SVG file that stands alone (no script, no font to load). Charts of lines are
 * those of `simulate/plot.ts`.
 */

/** One bar. */
export interface Bar {
  label: string;
  value: number;
  interval?: readonly [low: number, high: number] | null;
  /** Drawn in the colour of what is ours. */
  ours?: boolean;
}

/** Bars under one scale. */
export interface BarPanel {
  title: string;
  xTitle: string;
  bars: readonly Bar[];
  /** A dotted line upright, with its name. */
  reference?: { name: string; value: number };
  /** Decimals of the figures behind the bars. */
  digits: number;
}

/** Panels below each other. */
export interface BarChart {
  title: string;
  subtitle: string;
  panels: readonly BarPanel[];
  /** All panels have one scale, so that bars compare from panel to panel. Default: each its own. */
  sameScale?: boolean;
}

interface Scale {
  lowest: number;
  highest: number;
}

const width = 1040;
const frame = { top: 76, left: 240, right: 96, bottom: 20 } as const;
const panelHead = 34;
const panelFoot = 44;
const barHeight = 20;
const colours = { ours: '#d55e00', other: '#0072b2' } as const;

/** A chart of bars as the text of an SVG file. Bars that are no number are left out. */
export function renderBars(chart: BarChart): string {
  const panels = chart.panels.map((panel) => ({
    ...panel,
    bars: panel.bars.filter((bar) => Number.isFinite(bar.value)),
  }));
  const heights = panels.map((panel) => panelHead + panel.bars.length * barHeight + panelFoot);
  const height = frame.top + heights.reduce((sum, one) => sum + one, 0) + frame.bottom;
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" font-family="system-ui, 'Segoe UI', Helvetica, Arial, sans-serif" font-size="12">`,
    `<title>${escape(chart.title)}</title>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    text(28, 32, chart.title, 'font-size="18" font-weight="600" fill="#1a1a1a"'),
    text(28, 52, chart.subtitle, 'fill="#555555"'),
  ];
  let top: number = frame.top;
  const common = scaleOf(panels);
  panels.forEach((panel, index) => {
    parts.push(...renderPanel(panel, top, chart.sameScale === true ? common : scaleOf([panel])));
    top += heights[index] ?? 0;
  });
  parts.push('</svg>');
  return `${parts.join('\n')}\n`;
}

/** From the lowest to the highest of all values and intervals; 0 is always in it. */
function scaleOf(panels: readonly BarPanel[]): Scale {
  const values = panels.flatMap(({ bars, reference }) => [
    ...(reference === undefined ? [] : [reference.value]),
    ...bars.flatMap(({ value, interval }) => [value, ...(interval ?? [])]),
  ]);
  return { lowest: Math.min(0, ...values), highest: Math.max(1e-9, ...values) };
}

function renderPanel(panel: BarPanel, top: number, { lowest, highest }: Scale): string[] {
  const room = width - frame.left - frame.right;
  const x = (value: number): number => frame.left + ((value - lowest) / (highest - lowest)) * room;
  const first = top + panelHead;
  const bottom = first + panel.bars.length * barHeight;
  const parts = [
    text(28, top + 18, panel.title, 'font-size="13" font-weight="600" fill="#1a1a1a"'),
    `<line x1="${round(x(0))}" y1="${first - 4}" x2="${round(x(0))}" y2="${bottom + 4}" stroke="#555555"/>`,
    text(frame.left + room / 2, bottom + 22, panel.xTitle, 'text-anchor="middle" fill="#333333"'),
  ];
  panel.bars.forEach((bar, index) => {
    const y = first + index * barHeight;
    const from = Math.min(x(0), x(bar.value));
    const length = Math.abs(x(bar.value) - x(0));
    parts.push(
      text(frame.left - 10, y + 14, bar.label, 'text-anchor="end" fill="#1a1a1a"'),
      `<rect x="${round(from)}" y="${y + 3}" width="${round(length)}" height="${barHeight - 6}" fill="${bar.ours === true ? colours.ours : colours.other}"/>`,
    );
    let end = x(Math.max(0, bar.value));
    if (bar.interval) {
      const [low, high] = bar.interval;
      const middle = y + barHeight / 2;
      end = Math.max(end, x(high));
      parts.push(
        `<path d="M${round(x(low))} ${middle}H${round(x(high))}M${round(x(low))} ${middle - 4}v8M${round(x(high))} ${middle - 4}v8" fill="none" stroke="#1a1a1a"/>`,
      );
    }
    parts.push(text(end + 6, y + 14, bar.value.toFixed(panel.digits), 'font-size="11" fill="#333333"'));
  });
  if (panel.reference !== undefined) {
    const at = round(x(panel.reference.value));
    parts.push(
      `<line x1="${at}" y1="${first - 4}" x2="${at}" y2="${bottom + 4}" stroke="#777777" stroke-dasharray="2 4"/>`,
      text(at, first - 8, panel.reference.name, 'text-anchor="middle" font-size="11" fill="#666666"'),
    );
  }
  return parts;
}

function text(x: number, y: number, content: string, attributes: string): string {
  return `<text x="${round(x)}" y="${round(y)}" ${attributes}>${escape(content)}</text>`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

function escape(content: string): string {
  return content.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');
}
