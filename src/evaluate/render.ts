/**
 * Reports for people: aligned text for a terminal, markdown for a document, SVG for a chart.
 */
import { render } from '../simulate/plot.js';
import { layOut, tokensText } from '../simulate/table.js';
import { renderBars } from './bar-chart.js';
import {
  outcomeOf,
  type Cell,
  type Column,
  type FinishedReport,
  type Goal,
  type Grid,
  type TableReport,
} from './report.js';

/** The chart of a report as the text of an SVG file. */
export function chartSvg(report: TableReport): string {
  return report.chart.kind === 'lines' ? render(report.chart.chart) : renderBars(report.chart.chart);
}

/** A cell as it is shown: `12.3`, `12.3 [11.9, 12.7]`, `-` for nothing. */
export function cellText(cell: Cell | undefined, column: Column): string {
  if (cell === null || cell === undefined) return '-';
  if (typeof cell === 'string') return cell;
  const figure = (value: number): string => figureText(value, column);
  if (typeof cell === 'number') return figure(cell);
  if (cell.interval === null) return figure(cell.mean);
  return `${figure(cell.mean)} [${figure(cell.interval[0])}, ${figure(cell.interval[1])}]`;
}

function figureText(
  value: number,
  { digits = 2, percent = false, scaled = false }: Omit<Column, 'key' | 'head'>,
): string {
  if (!Number.isFinite(value)) return '-';
  if (scaled) return tokensText(Math.round(value));
  return (percent ? 100 * value : value).toLocaleString('en-US', {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

/** Whether a column holds figures, which stand to the right. */
function holdsFigures(grid: Grid, key: string): boolean {
  return grid.rows.some((row) => row[key] !== null && typeof row[key] !== 'string' && row[key] !== undefined);
}

function headOf(column: Column): string {
  return column.percent === true && !column.head.includes('%') ? `${column.head} %` : column.head;
}

const goalColumns: Column[] = [
  { key: 'goal', head: 'goal' },
  { key: 'wanted', head: 'wanted' },
  { key: 'measured', head: 'measured' },
  { key: 'outcome', head: 'outcome' },
];

function goalGrid(goals: readonly Goal[]): Grid {
  return {
    title: 'Goals',
    columns: goalColumns,
    rows: goals.map((goal) => {
      const column = { key: '', head: '', digits: goal.digits, percent: goal.percent };
      const unit = goal.percent ? ' %' : '';
      const measured =
        goal.measured === null ? '-' : `${cellText({ mean: goal.measured, interval: goal.interval }, column)}${unit}`;
      return {
        goal: goal.name,
        wanted: `${goal.bound === 'at least' ? '>=' : '<='} ${cellText(goal.wanted, column)}${unit}`,
        measured,
        outcome: outcomeOf(goal),
      };
    }),
  };
}

function gridsOf(report: TableReport): Grid[] {
  return report.goals.length === 0 ? report.grids : [goalGrid(report.goals), ...report.grids];
}

function setupOf(report: FinishedReport): [name: string, value: string][] {
  return [
    ...Object.entries(report.setup),
    ['machine', report.machine],
    ['date', report.date],
    ['command', report.command],
    ['took', durationText(report.seconds)],
  ];
}

/** Seconds as `48 s` or `3 min 5 s`. */
export function durationText(seconds: number): string {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** A report for a terminal. */
export function reportText(report: FinishedReport): string {
  const parts = [`${report.table}: ${report.title}`, '='.repeat(report.table.length + 2 + report.title.length)];
  const setup = setupOf(report);
  const nameWidth = Math.max(...setup.map(([name]) => name.length));
  parts.push(...setup.map(([name, value]) => `${name.padEnd(nameWidth)}  ${value}`));
  for (const grid of gridsOf(report)) {
    const columns = grid.columns.map((column) => ({ head: headOf(column), right: holdsFigures(grid, column.key) }));
    const rows = grid.rows.map((row) => grid.columns.map((column) => cellText(row[column.key], column)));
    parts.push('', grid.title, '', compact(layOut(columns, rows), rows));
  }
  if (report.notes.length > 0) parts.push('', ...report.notes.map((note) => `- ${note}`));
  return `${parts.join('\n')}\n`;
}

/** {@link layOut} separates rows whose first cells differ; where all do, that only stretches the grid. */
function compact(laidOut: string, rows: readonly (readonly string[])[]): string {
  const grouped = rows.some((row, index) => index > 0 && row[0] === rows[index - 1]?.[0]);
  return grouped ? laidOut : laidOut.replace(/\n\n/g, '\n');
}

/** A report as a section of a document, without its heading; `chart` is the path of its chart there. */
export function reportMarkdown(report: FinishedReport, chart: string | undefined): string {
  const parts: string[] = [];
  for (const grid of gridsOf(report)) {
    parts.push(`**${escapeMarkdown(grid.title)}**`, '', ...markdownGrid(grid), '');
  }
  if (chart !== undefined) parts.push(`![${escapeMarkdown(report.title)}](${chart})`, '');
  if (report.notes.length > 0) parts.push(...report.notes.map((note) => `- ${escapeMarkdown(note)}`), '');
  parts.push(
    setupOf(report)
      .map(([name, value]) => `${name}: ${name === 'command' ? `\`${value}\`` : escapeMarkdown(value)}`)
      .join('; '),
  );
  return `${parts.join('\n')}\n`;
}

function markdownGrid(grid: Grid): string[] {
  const line = (cells: readonly string[]): string => `| ${cells.map(escapeMarkdown).join(' | ')} |`;
  return [
    line(grid.columns.map(headOf)),
    `|${grid.columns.map((column) => (holdsFigures(grid, column.key) ? '---:' : '---')).join('|')}|`,
    ...grid.rows.map((row) => line(grid.columns.map((column) => cellText(row[column.key], column)))),
  ];
}

function escapeMarkdown(content: string): string {
  return content.replace(/\|/g, '\\|').replace(/\s*\n\s*/g, ' ');
}
