/**
 * `saga simulate`: plays a trace or a generated workload under one or more policies.
 *
 * Standard output holds the table, or with `--json` one JSON object and nothing else; progress and notes go to standard error.
 * Exit code 0: done. 2: an option or the input cannot be used, with one sentence that says what was expected. 1: anything else.
 */
import { accessSync, constants, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Command } from 'commander';
import { SagaError } from '../errors.js';
import type { SimulationBackend } from '../simulate/backend.js';
import { openInput } from '../simulate/input.js';
import {
  cachePolicies,
  clusterPolicies,
  enginePolicies,
  optionError,
  parseSimulateOptions,
  policyParts,
  type RawOptions,
} from '../simulate/options.js';
import { chartOf } from '../simulate/plot.js';
import { ProgressDisplay, type Environment, type ProgressStream } from '../simulate/progress.js';
import { simulateCache, simulateCluster, type CacheReport, type ClusterReport } from '../simulate/run.js';
import { tableOf } from '../simulate/table.js';

/** Where the command writes; tests put their own in its place. */
export interface SimulateStreams {
  out: { write(text: string): unknown };
  err: ProgressStream;
  environment: Environment;
}

const processStreams: SimulateStreams = { out: process.stdout, err: process.stderr, environment: process.env };

/** Malformed lines that are reported one by one; the rest are only counted. */
const reportedLines = 10;

/** Codes of what the user gave: they end in exit code 2. */
export const userMistakes = new Set<string>([
  'SAGA_ERR_OPTION',
  'SAGA_ERR_INVALID_ARGUMENT',
  'SAGA_ERR_TRACE_UNREADABLE',
  'SAGA_ERR_TRACE_FORMAT',
  'SAGA_ERR_TRACE_MALFORMED',
  'SAGA_ERR_TRACE_EMPTY',
]);

/**
 * Runs the command.
 *
 * @param raw - options by name in camel case, values as texts; `json` and `timing` are flags
 * @param openBackend - loads the native side; called only when the options and the input are good
 * @returns the exit code
 */
export async function simulate(
  raw: RawOptions,
  openBackend: () => Promise<SimulationBackend> = loadNative,
  streams: SimulateStreams = processStreams,
): Promise<number> {
  try {
    await run(raw, openBackend, streams);
    return 0;
  } catch (error) {
    if (!(error instanceof SagaError)) throw error;
    streams.err.write(`saga simulate: ${error.message.replace(/\s*\n\s*/g, ' ').replace(/\.?$/, '.')}\n`);
    return userMistakes.has(error.code) ? 2 : 1;
  }
}

async function loadNative(): Promise<SimulationBackend> {
  const { nativeBackend } = await import('../simulate/native-backend.js');
  return nativeBackend;
}

async function run(
  { json, plot, ...raw }: RawOptions,
  openBackend: () => Promise<SimulationBackend>,
  streams: SimulateStreams,
): Promise<void> {
  const options = parseSimulateOptions(raw);
  if (typeof plot === 'string') checkWritable('--plot', plot);
  if (options.mode === 'cluster' && options.journal !== undefined) checkWritable('--journal', options.journal);
  const progress = new ProgressDisplay(streams.err, streams.environment);

  let reported = 0;
  const input = await openInput(options, ({ file, line, reason }) => {
    if (reported++ < reportedLines) progress.note(`saga simulate: ${file}:${line}: ${reason}; skipped`);
  });
  if (input.malformedLines > reportedLines) {
    progress.note(`saga simulate: ${input.malformedLines} malformed lines skipped in all`);
  }
  progress.note(`saga: ${input.description}`);

  const backend = await openBackend();
  const report: CacheReport | ClusterReport =
    options.mode === 'cache'
      ? await simulateCache(input.workload, options, backend, progress)
      : await simulateCluster(input.workload, options, backend, progress);
  if (report.schema === 'saga.simulate.cluster/1' && report.tasksTooLarge > 0) {
    progress.note(
      `saga simulate: ${report.tasksTooLarge} tasks left out: a call of theirs does not fit into the KV room of a worker`,
    );
  }

  // The result first: a chart that cannot be written must not cost it.
  streams.out.write(json === true ? `${JSON.stringify(report, null, 2)}\n` : `${tableOf(report)}\n`);
  if (typeof plot === 'string') {
    try {
      writeFileSync(plot, chartOf(report));
    } catch (error) {
      throw optionError(`expected --plot to name a file that can be written: ${(error as Error).message}`);
    }
    if (json === true) progress.note(`saga: chart written to ${plot}`);
    else streams.out.write(`\nChart written to ${plot}\n`);
  }
}

/** Finds out before the long part whether a file can be written at the end. */
export function checkWritable(option: string, path: string): void {
  try {
    if (path === '') throw new Error('it is empty');
    const present = statSync(path, { throwIfNoEntry: false });
    if (present?.isDirectory() === true) throw new Error('it is a directory');
    accessSync(present === undefined ? dirname(path) : path, constants.W_OK);
  } catch (error) {
    throw optionError(
      `expected ${option} to name a file that can be written, not "${path}": ${(error as Error).message}`,
    );
  }
}

const examples = `
Examples:
  One shared cache, a generated agent workload, all policies, with a chart:
    saga simulate --workload agent --plot cache.svg
  A trace of sessions, 128 of them live, LRU against the offline optimum:
    saga simulate --trace requests.jsonl --live 128 --cache-shares 0.5,1,2 --policies lru,belady
  A trace with arrival times but no call durations:
    saga simulate --trace mooncake.jsonl --model atomic --cache-tokens 1000000,5000000 --json
  What telling the end of sessions is worth to a policy:
    saga simulate --trace requests.jsonl --cache-shares 1,2,5 --policies lru,saga-paper --hints end
  A cluster at half, nine tenths and more than its saturation:
    saga simulate --mode cluster --workers 16 --hardware a100-tp4 --workload swe-bench --load 0.5,0.9,1.1

What is measured is explained with each field in the package's types (CacheResultRow, ClusterResultRow).`;

/** Adds `saga simulate` to the program. */
export function registerSimulate(program: Command): void {
  program
    .command('simulate')
    .description('replay a trace or a generated workload under one or more policies')
    .option('--mode <mode>', 'cache (one shared cache) or cluster (workers, batching, queueing, time); default cache')
    .optionsGroup('Input:')
    .option('--trace <file>', 'request lines, Mooncake lines, a session document or a directory of them')
    .option('--workload <name>', 'generated: agent, and in cluster mode also swe-bench, web-arena, multi-tenant')
    .option('--tasks <n>', 'so many tasks; default 2000 (multi-tenant 1000, cache mode 445), or all of a trace')
    .option('--seed <n>', 'of whatever is drawn; default 42')
    .option('--gap-cap <seconds>', 'longest gap between calls that is kept; default 1800')
    .option('--order-salt <n>', 'play the sessions in another order')
    .option('--on-bad-line <what>', 'fail or skip (and count) at a malformed line; default fail')
    .optionsGroup('Both modes:')
    .option(
      '--policies <list>',
      `cache: ${cachePolicies.join(',')}; cluster: ${clusterPolicies.join(',')}; default all`,
    )
    .option('--live <n>', 'cache: sessions live at once, default 32; cluster: closed loop of n tasks')
    .option(
      '--hints <level>',
      'what clients tell. cache: none, end (of a thread), end+tool (how long its tool takes, exactly) or end+tool-noisy (within ' +
        'a factor e^0.5), default none; cluster: none or graph (declared graphs, and that a task is over), default graph for ' +
        'generated workloads, none for traces',
    )
    .option('--page-tokens <n>', 'tokens of a page; default 512 in cache mode, 16 in cluster mode')
    .option('--json', 'print one JSON object instead of the table')
    .option('--plot <file>', 'write a chart (SVG)')
    .optionsGroup('Cache mode:')
    .option(
      '--model <model>',
      'pinned (a running call keeps its pages) or atomic (a call is an instant); default pinned',
    )
    .option('--cache-tokens <list>', 'cache sizes in tokens')
    .option('--cache-shares <list>', 'cache sizes in per cent of the distinct pages; default 0.25,0.5,1,2,5')
    .option('--first <percent>', 'only the first so many per cent of the requests (cold start)')
    .option('--timing', 'measure the time in the policy a requested page; lru is always among the policies')
    .optionsGroup('Cluster mode:')
    .option('--workers <n>', 'default 16')
    .option('--hardware <name>', 'a100-tp4, a100-tp8, h100-tp4 or h100-tp8; default a100-tp4')
    .option('--load <list>', 'arrivals as multiples of the rate at which affinity takes 3 times the ideal time')
    .option('--rate <tasks per second>', 'arrivals at this rate')
    .option('--pressure <x>', 'closed loop whose contexts fill the KV room x times')
    .option('--saturation <policies>', 'search the saturation rate of these policies too')
    .option('--kv-tokens <n>', 'KV room of a worker; default 448000 (tp4), 1327000 (tp8)')
    .option('--max-sequences <n>', 'calls in one step; default 256')
    .option('--step-tokens <n>', 'tokens in one step; default 2048')
    .option('--host-tier-tokens <n>', 'pages in host memory a worker; default 0 (off)')
    .option('--link-gigabytes <n>', 'bandwidth of each link in GB/s; default 25')
    .option('--without <parts>', `take parts out of saga-paper and saga: ${policyParts.join(',')}`)
    .option(
      '--journal <file>',
      `write the scheduling engine's journal (one load, one policy of ${enginePolicies.join(', ')})`,
    )
    .addHelpText('after', examples)
    .action(async (options: RawOptions) => {
      process.exitCode = await simulate(options);
    });
}
