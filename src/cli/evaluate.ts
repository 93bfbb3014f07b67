/**
 * `saga evaluate`: makes the tables of docs/evaluation.md.
 *
 * Standard output holds the tables; progress and notes go to standard error. Exit code 0: all tables are made, whatever became
 * of their goals. 2: an option cannot be used, with one sentence that says what was expected. 1: anything else.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { SagaError } from '../errors.js';
import { checkSection, withSection } from '../evaluate/document.js';
import {
  evaluate as runTables,
  fullSize,
  machineText,
  quickSize,
  type EvaluateOptions,
  type Surroundings,
} from '../evaluate/evaluate.js';
import { chartSvg, reportMarkdown, reportText } from '../evaluate/render.js';
import { outcomeOf, type FinishedReport } from '../evaluate/report.js';
import { publishedSeeds, type Table } from '../evaluate/table.js';
import { tables } from '../evaluate/tables/index.js';
import type { SimulationBackend } from '../simulate/backend.js';
import { optionError } from '../simulate/options.js';
import { ProgressDisplay } from '../simulate/progress.js';
import { layOut } from '../simulate/table.js';
import { checkWritable, userMistakes, type SimulateStreams } from './simulate.js';

/** Options as commander gives them. */
export interface RawEvaluateOptions {
  list?: boolean;
  quick?: boolean;
  traces?: string;
  seeds?: string;
  tasks?: string;
  json?: string;
  markdown?: boolean;
  charts?: string;
  write?: string;
  runs?: string;
  timeScale?: string;
}

/** What tests put their own in the place of. */
export interface EvaluateHost extends SimulateStreams {
  openBackend: () => Promise<SimulationBackend>;
  machine: string;
  date: string;
  now: () => number;
  checkout: string;
}

function processHost(): EvaluateHost {
  return {
    out: process.stdout,
    err: process.stderr,
    environment: process.env,
    openBackend: async () => (await import('../simulate/native-backend.js')).nativeBackend,
    machine: machineText(),
    date: new Date().toISOString().slice(0, 10),
    now: () => performance.now(),
    checkout: fileURLToPath(new URL('../../../', import.meta.url)),
  };
}

/**
 * Runs the command.
 *
 * @param names - tables to make; none: all
 * @returns the exit code
 */
export async function evaluate(
  names: readonly string[],
  raw: RawEvaluateOptions,
  host: EvaluateHost = processHost(),
): Promise<number> {
  try {
    return await run(names, raw, host);
  } catch (error) {
    if (!(error instanceof SagaError)) throw error;
    complain(host, error.message);
    return userMistakes.has(error.code) ? 2 : 1;
  }
}

function complain(host: EvaluateHost, message: string): void {
  host.err.write(`saga evaluate: ${message.replace(/\s*\n\s*/g, ' ').replace(/\.?$/, '.')}\n`);
}

async function run(names: readonly string[], raw: RawEvaluateOptions, host: EvaluateHost): Promise<number> {
  if (raw.list === true) {
    host.out.write(`${listText()}\n`);
    return 0;
  }
  const options = optionsOf(names, raw);
  const document = raw.write === undefined ? undefined : join(raw.write, 'evaluation.md');
  if (document !== undefined) {
    const text = contentOf(document);
    for (const { name } of options.tables) checkSection(text, name);
    checkWritable('--write', document);
  }
  if (raw.json !== undefined) checkWritable('--json', raw.json);

  const surroundings: Surroundings = { ...host, command: commandOf(names, raw) };
  const progress = new ProgressDisplay(host.err, host.environment);
  const reports: FinishedReport[] = [];
  const failures = await runTables(options, await host.openBackend(), progress, surroundings, (report) => {
    reports.push(report);
    // Each table is kept as soon as it is there.
    host.out.write(
      raw.markdown === true
        ? `## ${report.title}\n\n${reportMarkdown(report, undefined)}\n`
        : `${reportText(report)}\n`,
    );
    if (raw.json !== undefined) writeFileSync(raw.json, jsonOf(reports));
    if (raw.charts !== undefined) writeChart(raw.charts, report);
    if (document !== undefined && raw.write !== undefined) {
      const chart = writeChart(join(raw.write, 'images'), report);
      writeFileSync(
        document,
        withSection(contentOf(document), report.table, reportMarkdown(report, `images/${chart}`)),
      );
    }
  });
  for (const { table, error } of failures) complain(host, `${table}: ${error.message}`);
  progress.note(summaryOf(reports));
  return failures.length === 0 ? 0 : 1;
}

function optionsOf(names: readonly string[], raw: RawEvaluateOptions): EvaluateOptions {
  const chosen = names.map((name): Table => {
    const table = tables.find((one) => one.name === name);
    if (table === undefined) {
      throw optionError(
        `expected a table that --list names (${tables.map((one) => one.name).join(', ')}), not "${name}"`,
      );
    }
    return table;
  });
  const quick = raw.quick === true;
  const size = quick ? quickSize : fullSize;
  return {
    tables: tables.filter((table) => (chosen.length === 0 ? table.onlyByName !== true : chosen.includes(table))),
    quick,
    seeds: wholeNumber('--seeds', raw.seeds, 1, publishedSeeds.length) ?? size.seeds,
    tasks: wholeNumber('--tasks', raw.tasks, 1, 1_000_000) ?? size.tasks,
    traces: raw.traces,
    runs: raw.runs,
    timeScale: wholeNumber('--time-scale', raw.timeScale, 1, 1000),
  };
}

function wholeNumber(option: string, text: string | undefined, low: number, high: number): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < low || value > high) {
    throw optionError(`expected ${option} to be a whole number from ${low} to ${high}, not "${text}"`);
  }
  return value;
}

/** The command without the paths of this machine. */
function commandOf(names: readonly string[], raw: RawEvaluateOptions): string {
  return [
    'saga evaluate',
    ...names,
    ...(raw.quick === true ? ['--quick'] : []),
    ...(raw.seeds === undefined ? [] : [`--seeds ${raw.seeds}`]),
    ...(raw.tasks === undefined ? [] : [`--tasks ${raw.tasks}`]),
    ...(raw.traces === undefined ? [] : ['--traces DIR']),
    ...(raw.timeScale === undefined ? [] : [`--time-scale ${raw.timeScale}`]),
  ].join(' ');
}

function listText(): string {
  const rows = tables.map(({ name, shows, minutes }) => [name, `${minutes} min`, shows]);
  const columns = [
    { head: 'table', right: false },
    { head: 'full', right: true },
    { head: 'what it shows', right: false },
  ];
  const total = tables.reduce((sum, { minutes, onlyByName }) => sum + (onlyByName === true ? 0 : minutes), 0);
  const named = tables.flatMap(({ name, onlyByName }) => (onlyByName === true ? [name] : []));
  return [
    layOut(columns, rows).replace(/\n\n/g, '\n'),
    '',
    `All of them: about ${total} min on two cores; runs that tables share are made once. With --quick: under 3 min.`,
    `Only by name, because they need what is no part of this package: ${named.join(', ')}.`,
  ].join('\n');
}

function contentOf(document: string): string {
  try {
    return readFileSync(document, 'utf8');
  } catch (error) {
    throw optionError(`expected --write to name a folder with evaluation.md: ${(error as Error).message}`);
  }
}

/** Writes the chart of a report; its file name. */
function writeChart(folder: string, report: FinishedReport): string {
  const name = `evaluate-${report.table}.svg`;
  try {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, name), chartSvg(report));
  } catch (error) {
    throw optionError(`expected a folder that charts can be written to: ${(error as Error).message}`);
  }
  return name;
}

function jsonOf(reports: readonly FinishedReport[]): string {
  const tablesOfReports = reports.map(({ chart: _chart, goals, ...rest }) => ({
    ...rest,
    goals: goals.map((goal) => ({ ...goal, outcome: outcomeOf(goal) })),
  }));
  return `${JSON.stringify({ schema: 'saga.evaluate/1', tables: tablesOfReports }, null, 2)}\n`;
}

function summaryOf(reports: readonly FinishedReport[]): string {
  const outcomes = reports.flatMap(({ goals }) => goals.map(outcomeOf));
  const count = (outcome: string): number => outcomes.filter((one) => one === outcome).length;
  return `saga evaluate: ${reports.length} tables; goals: ${count('met')} met, ${count('missed')} missed, ${count('not measured')} not measured`;
}

const examples = `
Examples:
  What there is, and what it costs:
    saga evaluate --list
  Does every table work? Two loads, one seed, a small cluster:
    saga evaluate --quick
  The goals, as in docs/evaluation.md:
    saga evaluate completion
  Everything anew, into the document:
    saga evaluate --traces traces --write docs
  On real engines (docs/evaluation.md says what has to be installed), kept run by run:
    saga evaluate vllm --traces traces --runs vllm-runs --write docs`;

/** Adds `saga evaluate` to the program. */
export function registerEvaluate(program: Command): void {
  program
    .command('evaluate')
    .description('make the tables of docs/evaluation.md: every system, the goals, confidence intervals')
    .argument('[tables...]', 'tables by name; default all')
    .option('--list', 'name the tables, what they show and what they cost')
    .option('--quick', 'one seed, two loads, a small cluster: that every table works, not what the figures are')
    .option('--traces <dir>', 'folder with claude-code-v6 and mooncake-conversation; without it sessions are generated')
    .option('--seeds <n>', `the first so many of the published seeds; default ${fullSize.seeds}`)
    .option('--tasks <n>', `tasks of a generated workload; default ${fullSize.tasks}`)
    .option('--json <file>', 'write all figures to a file')
    .option('--markdown', 'print markdown')
    .option('--charts <dir>', 'write a chart (SVG) of each table into a folder')
    .option(
      '--time-scale <n>',
      'vllm: time runs so many times faster; less for a slower machine; default 8, with --quick 16',
    )
    .option('--runs <dir>', 'vllm: keep each run in this folder, and take from it what is there already')
    .option('--write <dir>', 'put the tables and charts into evaluation.md and images/ of this folder')
    .addHelpText('after', examples)
    .action(async (names: string[], options: RawEvaluateOptions) => {
      process.exitCode = await evaluate(names, options);
    });
}
