/**
 * What a table of the evaluation is made of: grids of figures, goals, and a chart. Plain data, the same in `--json`, on a
 * terminal and in `docs/evaluation.md`.
 */
import type { Chart } from '../simulate/plot.js';
import type { BarChart } from './bar-chart.js';
import type { Estimate } from './statistics.js';

/** A cell: text, a figure, a figure with its confidence interval, or nothing. */
export type Cell = string | number | Estimate | null;

/** A column of a grid. */
export interface Column {
  /** Name of the field in the rows. */
  key: string;
  head: string;
  /** Decimals of figures; default 2. */
  digits?: number;
  /** Figures are shares and are shown in per cent. */
  percent?: boolean;
  /** Large figures are shown as `1.99 M`. */
  scaled?: boolean;
}

/** Figures under heads. */
export interface Grid {
  title: string;
  columns: Column[];
  rows: Record<string, Cell>[];
}

/** A figure that the project sets itself, and what came out. */
export interface Goal {
  name: string;
  bound: 'at least' | 'at most';
  wanted: number;
  /** null: not measured in this run. */
  measured: number | null;
  interval: readonly [low: number, high: number] | null;
  digits: number;
  percent: boolean;
}

/** Whether a goal is met by the measured figure. The interval is shown beside it and decides nothing. */
export function outcomeOf(goal: Goal): 'met' | 'missed' | 'not measured' {
  if (goal.measured === null || Number.isNaN(goal.measured)) return 'not measured';
  const met = goal.bound === 'at least' ? goal.measured >= goal.wanted : goal.measured <= goal.wanted;
  return met ? 'met' : 'missed';
}

/** A goal that a figure meets or misses. */
export function goalOf(
  name: string,
  bound: Goal['bound'],
  wanted: number,
  measured: Estimate | number | null,
  { digits = 3, percent = false }: { digits?: number; percent?: boolean } = {},
): Goal {
  const estimate = typeof measured === 'number' ? { mean: measured, interval: null } : measured;
  return {
    name,
    bound,
    wanted,
    measured: estimate?.mean ?? null,
    interval: estimate?.interval ?? null,
    digits,
    percent,
  };
}

/** Lines by load, or bars by system. */
export type TableChart = { kind: 'lines'; chart: Chart } | { kind: 'bars'; chart: BarChart };

/** What a table found. */
export interface TableReport {
  /** Its name on the command line. */
  table: string;
  title: string;
  /** What was played, in one line each: `tasks`, `seeds`, `cluster`. */
  setup: Record<string, string>;
  grids: Grid[];
  goals: Goal[];
  /** Sentences that a reader of the figures needs. */
  notes: string[];
  chart: TableChart;
}

/** A report with what the command adds. */
export interface FinishedReport extends TableReport {
  command: string;
  date: string;
  machine: string;
  /** Wall-clock time of the table. */
  seconds: number;
}
