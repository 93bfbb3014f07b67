/**
 * The comparison on real engines: vLLM servers whose executors sleep the step times of A100s, behind SAGA's gateway, and beside each
 * run what the simulator predicts for it.
 */
import { SagaError } from '../../errors.js';
import { distributionOf } from '../../play/index.js';
import type { WorkloadColumns } from '../../workload/columns.js';
import type { BarPanel } from '../bar-chart.js';
import { goalOf, type Cell, type Goal, type Grid } from '../report.js';
import { geometricMean } from '../statistics.js';
import { clusterText, publishedSeeds, type ClusterOutcome, type Context, type Table } from '../table.js';
import { KeptRuns, measure, type MeasuredRun } from '../vllm/measure.js';
import { ServerSet, VllmInstallation } from '../vllm/servers.js';
import { grain, seed, setupOf, type MeasuredSystem, type VllmSetup } from '../vllm/setup.js';
import { serverStepModel } from '../vllm/step-model.js';

/** Steps of about 20 ms and more on two cores; lateness says whether that was enough. A quick run is to be quick. */
const usualTimeScale = { full: 8, quick: 16 } as const;

/** Steps that are later than this, of the wall time, are flagged. */
const mostLate = 0.05;

/** By which measured and simulated figures may differ. */
const agreement = 0.1;

/**
 * Which call finds room first decides what is evicted, and that which call finds room next: runs of overloaded pools are chaotic. How far
 * apart the simulator's own outcomes are with tasks that arrive a little closer together or further apart says what a prediction of
 * one run can be worth.
 */
const nearbyRates = [0.97, 0.98, 0.99, 0.995, 1.005, 1.01, 1.02, 1.03];

/** A run, and the same in the simulator. */
interface Pair {
  workload: string;
  load: number;
  system: MeasuredSystem;
  measured: MeasuredRun;
  /** Tokens of all prompts. */
  promptTokens: number;
  simulated: ClusterOutcome;
  /** Mean completion times without gaps that the simulator has at this rate and at {@link nearbyRates}, the least and the most. */
  nearby: readonly [least: number, most: number];
  /** The same at this rate in other orders of arrival. */
  reordered: readonly [least: number, most: number];
}

/** `saga evaluate vllm` */
export const vllmTable: Table = {
  name: 'vllm',
  title: 'Measured on real engines',
  shows: 'four vLLM servers with modelled GPUs: 0.15.1 and 0.33.0 behind affinity, round robin and SAGA, three loads',
  minutes: 90,
  onlyByName: true,
  async run(context) {
    const setup = setupOf(
      context.quick,
      context.traces,
      context.timeScale ?? usualTimeScale[context.quick ? 'quick' : 'full'],
    );
    // Before anything is simulated or started: is everything there?
    const installation = new VllmInstallation(context.checkout, context.environment);
    for (const { environment, connector } of setup.systems) {
      installation.python(environment);
      if (connector) installation.library();
    }
    const simulation = await simulated(context, setup);
    const { rates } = simulation;
    const pairs = await measured(context, installation, setup, simulation);
    // A long measurement shows its failures; a quick run is a test.
    const failed = pairs.find(({ measured: { errors } }) => errors > 0);
    if (context.quick && failed !== undefined)
      throw new SagaError(
        'SAGA_ERR_WRONG_STATE',
        `calls failed under ${failed.system.title}: ${failed.measured.reasons.join('; ')}`,
      );
    return {
      table: 'vllm',
      title: this.title,
      setup: {
        workloads: setup.workloads
          .map(({ name, text }) => {
            const one = pairs.find(({ workload }) => workload === name) as Pair;
            const rate = rates.get(name) as number;
            return `${text} (${one.measured.tasks} tasks, ${one.measured.calls} calls; load 1: ${(60 * rate).toFixed(2)} tasks a minute)`;
          })
          .join('; '),
        servers: `${clusterText(setup.cluster)} (${setup.blocks} blocks), ${setup.cluster.stepTokens} tokens a step; vLLM ${[...new Set(pairs.map(({ measured: { versions } }) => versions))].join(' and ')}`,
        'time scale': `${setup.timeScale}; one token stands for ${grain}, one step for ${grain} steps`,
        seed: String(seed),
      },
      goals: goalsOf(setup, pairs),
      grids: setup.workloads.map(({ name }) => gridOf(name, pairs)),
      notes: notesOf(context, pairs),
      chart: {
        kind: 'bars',
        chart: {
          title: this.title,
          subtitle: `Mean completion time without gaps at load ${setup.loads[0] as number}`,
          panels: setup.workloads.map(({ name }) => panelOf(name, setup.loads[0] as number, pairs)),
        },
      },
    };
  },
};

/** The tasks that fit, the rate of load 1, and every run in the simulator: as it is played, and with other arrivals. */
interface Simulation {
  played: Map<string, WorkloadColumns>;
  rates: Map<string, number>;
  outcomes: Map<string, Outcomes>;
}

interface Outcomes {
  own: ClusterOutcome;
  nearby: ClusterOutcome[];
  reordered: ClusterOutcome[];
}

async function simulated(
  { laboratory, quick }: Context,
  { workloads, cluster, systems, loads }: VllmSetup,
): Promise<Simulation> {
  const played: Simulation['played'] = new Map();
  const rates: Simulation['rates'] = new Map();
  const outcomes: Simulation['outcomes'] = new Map();
  const own = { factor: 1, order: seed };
  const nearby = quick ? [] : nearbyRates.map((factor) => ({ factor, order: seed }));
  const reordered = quick ? [] : publishedSeeds.filter((one) => one !== seed).map((order) => ({ factor: 1, order }));
  const variants = [own, ...nearby, ...reordered];
  const reference = { name: 'affinity', policy: 'affinity' } as const;
  for (const { name, source } of workloads) {
    played.set(name, await laboratory.played(source, cluster));
    const [rate] = await laboratory.saturations('vllm', [{ workload: source, cluster, seed, system: reference }]);
    rates.set(name, rate as number);
    const cells = loads.flatMap((load) => systems.map((system) => ({ load, system })));
    const results = await laboratory.cluster(
      'vllm',
      cells.flatMap(({ load, system }) =>
        variants.map(({ factor, order }) => ({
          workload: source,
          cluster: { ...cluster, wholePrompts: system.wholePrompts },
          system: system.simulated,
          arrivals: { rate: factor * load * (rate as number) },
          seed: order,
        })),
      ),
    );
    cells.forEach(({ load, system }, index) => {
      const [exact, ...others] = results.slice(index * variants.length, (index + 1) * variants.length);
      outcomes.set(keyOf(name, load, system), {
        own: exact as ClusterOutcome,
        nearby: others.slice(0, nearby.length),
        reordered: others.slice(nearby.length),
      });
    });
  }
  return { played, rates, outcomes };
}

function keyOf(workload: string, load: number, system: MeasuredSystem): string {
  return `${workload}-${load}-${system.letter}`;
}

/** Every run on servers; those of a kind stay up for all their runs. */
async function measured(
  context: Context,
  installation: VllmInstallation,
  setup: VllmSetup,
  { played, rates, outcomes }: Simulation,
): Promise<Pair[]> {
  const { systems, workloads, loads, cluster, timeScale } = setup;
  const kept = new KeptRuns(context.runs);
  const pairs: Pair[] = [];
  // The goal is about the last of them: they are played first.
  for (const group of groupsOf(systems).reverse()) {
    const [{ environment, connector }] = group as [MeasuredSystem];
    let set: ServerSet | undefined;
    try {
      for (const { name, source } of workloads) {
        // What a connector has learned from one workload it should not know of the next.
        if (connector) {
          await set?.close();
          set = undefined;
        }
        for (const load of loads) {
          for (const system of group) {
            const key = keyOf(name, load, system);
            const rate = load * (rates.get(name) as number);
            const identity = {
              source: source.key.replace(/\S*\//g, ''),
              cluster,
              timeScale,
              rate,
              system: key,
              form: 2,
            };
            let run = kept.get(key, identity);
            if (run === undefined) {
              if (set === undefined) {
                context.note(`saga evaluate: vllm: starting ${cluster.workers} servers for ${system.title}`);
                set = await ServerSet.start(installation, {
                  environment,
                  connector,
                  servers: cluster.workers,
                  blocks: setup.blocks,
                  maxSequences: cluster.maxSequences,
                  stepTokens: cluster.stepTokens,
                  stepModel: JSON.stringify(serverStepModel(grain)),
                  timeScale,
                });
              }
              run = await measure(set, system, played.get(name) as WorkloadColumns, rate, timeScale);
              kept.put(key, identity, run);
            }
            const predicted = outcomes.get(key) as Outcomes;
            const pair: Pair = {
              workload: name,
              load,
              system,
              measured: run,
              promptTokens: (played.get(name) as WorkloadColumns).promptTokens.reduce((sum, tokens) => sum + tokens, 0),
              simulated: predicted.own,
              nearby: extremes([predicted.own, ...predicted.nearby]),
              reordered: extremes([predicted.own, ...predicted.reordered]),
            };
            pairs.push(pair);
            context.note(`saga evaluate: vllm: ${lineOf(pair)}`);
          }
        }
      }
    } finally {
      await set?.close();
    }
  }
  return pairs;
}

/** Of mean completion times without gaps. */
function extremes(outcomes: readonly ClusterOutcome[]): [least: number, most: number] {
  const seconds = outcomes.map(({ taskCompletionSecondsWithoutGaps: { mean } }) => mean);
  return [Math.min(...seconds), Math.max(...seconds)];
}

/** Systems that can use the same servers. */
function groupsOf(systems: readonly MeasuredSystem[]): MeasuredSystem[][] {
  const groups = new Map<string, MeasuredSystem[]>();
  for (const system of systems) {
    const key = `${system.environment} ${String(system.connector)}`;
    groups.set(key, [...(groups.get(key) ?? []), system]);
  }
  return [...groups.values()];
}

function lineOf({ workload, load, system, measured: run, simulated: predicted }: Pair): string {
  return [
    `${workload} at ${load}, ${system.title}:`,
    `${run.withoutGapsMean.toFixed(0)} s without gaps (simulated ${predicted.taskCompletionSecondsWithoutGaps.mean.toFixed(0)} s),`,
    `hits ${(100 * hitRate(run)).toFixed(1)} % (${(100 * predicted.prefixHitRate).toFixed(1)} %),`,
    `held ${run.heldSeconds.toFixed(0)} s, between ${run.betweenSeconds.toFixed(0)} s, late ${(100 * run.lateShare).toFixed(1)} %, errors ${run.errors}, ${run.wallSeconds.toFixed(0)} s of wall time`,
    ...run.reasons.map((reason) => `; ${reason}`),
    ...run.warnings.map((warning) => `; ${warning}`),
  ].join(' ');
}

function hitRate({ hits, queries }: MeasuredRun): number {
  return queries === 0 ? 0 : hits / queries;
}

function predictedSeconds({ simulated: predicted }: Pair): number {
  return predicted.taskCompletionSecondsWithoutGaps.mean;
}

function difference(pair: Pair): number {
  return pair.measured.withoutGapsMean / predictedSeconds(pair) - 1;
}

/** Prompt tokens computed besides those that were computed for the first time, which the simulator counts. */
export function recomputedTokens(run: MeasuredRun, predicted: ClusterOutcome): number {
  return Math.max(0, run.prefilledTokens - (predicted.prefilledTokens - predicted.regeneratedTokens));
}

function goalsOf({ workloads, loads }: VllmSetup, pairs: readonly Pair[]): Goal[] {
  const top = loads[0] as number;
  const at = (name: string, letter: string): Pair | undefined =>
    pairs.find(({ workload, load, system }) => workload === name && load === top && system.letter === letter);
  const ratios = workloads.map(({ name }) => {
    const [reference, ours] = [at(name, 'c'), at(name, 'd')];
    return reference === undefined || ours === undefined
      ? null
      : reference.measured.withoutGapsMean / ours.measured.withoutGapsMean;
  });
  const whole = ratios.every((ratio) => ratio !== null) ? geometricMean(ratios) : null;
  return [
    ...workloads.map(({ name }, index) =>
      goalOf(`completion time without gaps, (c) / (d), ${name}, load ${top}`, 'at least', 1.3, ratios[index] ?? null),
    ),
    goalOf(`completion time without gaps, (c) / (d), load ${top}, geometric mean`, 'at least', 1.3, whole),
    goalOf(
      'completion time without gaps, measured against simulated, largest difference',
      'at most',
      agreement,
      Math.max(...pairs.map((pair) => Math.abs(difference(pair)))),
      { percent: true, digits: 1 },
    ),
    goalOf(
      'calls that failed',
      'at most',
      0,
      pairs.reduce((sum, pair) => sum + pair.measured.errors, 0),
      { digits: 0 },
    ),
  ];
}

function gridOf(name: string, pairs: readonly Pair[]): Grid {
  const own = pairs
    .filter(({ workload }) => workload === name)
    .sort((left, right) => left.load - right.load || (left.system.letter < right.system.letter ? -1 : 1));
  return {
    title: `${name}: measured, and what the simulator predicts`,
    columns: [
      { key: 'load', head: 'load', digits: 1 },
      { key: 'system', head: 'system' },
      { key: 'completion', head: 'mean s', digits: 0 },
      { key: 'seconds', head: 'without gaps s', digits: 0 },
      { key: 'p95', head: 'p95 s', digits: 0 },
      { key: 'ratio', head: '(c) / it', digits: 3 },
      { key: 'predicted', head: 'simulated s', digits: 0 },
      { key: 'difference', head: 'difference', percent: true, digits: 1 },
      { key: 'least', head: 'nearby, least s', digits: 0 },
      { key: 'most', head: 'most s', digits: 0 },
      { key: 'hits', head: 'hit rate', percent: true, digits: 1 },
      { key: 'predictedHits', head: 'simulated', percent: true, digits: 1 },
      { key: 'prefilled', head: 'prompt tokens computed', scaled: true },
      { key: 'recomputed', head: 'of them again', scaled: true },
      { key: 'predictedRecomputed', head: 'simulated', scaled: true },
      { key: 'preemptions', head: 'preemptions', digits: 0 },
      { key: 'busy', head: 'GPU-busy s', digits: 0 },
      { key: 'held', head: 'held s', digits: 0 },
      { key: 'between', head: 'between s', digits: 0 },
      { key: 'late', head: 'late', percent: true, digits: 1 },
    ],
    rows: own.map((pair): Record<string, Cell> => {
      const { load, system, measured: run, simulated: predicted } = pair;
      const reference = own.find((one) => one.load === load && one.system.letter === 'c');
      return {
        load,
        system: `(${system.letter}) ${system.title}`,
        completion: run.completionMean,
        seconds: run.withoutGapsMean,
        p95: run.completionP95,
        ratio: reference === undefined ? null : reference.measured.withoutGapsMean / run.withoutGapsMean,
        predicted: predictedSeconds(pair),
        difference: difference(pair),
        least: pair.nearby[0],
        most: pair.nearby[1],
        hits: hitRate(run),
        predictedHits: predicted.prefixHitRate,
        prefilled: run.prefilledTokens,
        recomputed: recomputedTokens(run, predicted),
        predictedRecomputed: predicted.regeneratedTokens,
        preemptions: run.preemptions,
        busy: run.busySeconds,
        held: run.heldSeconds,
        between: run.betweenSeconds,
        late: run.lateShare,
      };
    }),
  };
}

function panelOf(name: string, top: number, pairs: readonly Pair[]): BarPanel {
  const own = pairs.filter(({ workload, load }) => workload === name && load === top);
  return {
    title: name,
    xTitle: 'seconds',
    digits: 0,
    bars: [...own]
      .sort((left, right) => (left.system.letter < right.system.letter ? -1 : 1))
      .flatMap((pair) => [
        {
          label: `(${pair.system.letter}) ${pair.system.title}`,
          value: pair.measured.withoutGapsMean,
          ours: pair.system.connector,
        },
        { label: 'simulated', value: predictedSeconds(pair), ours: pair.system.connector },
      ]),
  };
}

function notesOf(context: Context, pairs: readonly Pair[]): string[] {
  const apart = pairs.filter((pair) => Math.abs(difference(pair)) > agreement);
  // An engine that asks its cache again with every attempt to schedule a call.
  const repeated = pairs.filter(({ measured: { queries }, promptTokens }) => queries > 1.1 * promptTokens);
  const outside = (range: 'nearby' | 'reordered'): Pair[] =>
    pairs.filter(
      (pair) => pair.measured.withoutGapsMean < pair[range][0] || pair.measured.withoutGapsMean > pair[range][1],
    );
  const late = pairs.filter(({ measured: { lateShare } }) => lateShare > mostLate);
  const failed = pairs.filter(({ measured: { errors } }) => errors > 0);
  const walls = distributionOf(pairs.map(({ measured: { wallSeconds } }) => wallSeconds));
  const name = ({ workload, load, system }: Pair): string => `${workload} at ${load} (${system.letter})`;
  /** How many lie within a range, and by how much the others do not. */
  const within = (range: 'nearby' | 'reordered'): string => {
    const others = outside(range).map((pair) => {
      const { withoutGapsMean } = pair.measured;
      const [least, most] = pair[range];
      const by = withoutGapsMean < least ? 1 - withoutGapsMean / least : withoutGapsMean / most - 1;
      return `${name(pair)} by ${(100 * by).toFixed(1)} %`;
    });
    const all = `${pairs.length - others.length} of ${pairs.length} measured times lie in between`;
    return `${all}${others.length === 0 ? '' : `, not ${others.join(', ')}`}.`;
  };
  return [
    'Seconds are those of the workload: wall time times the time scale. Tokens are those that were played.',
    'Hit rates are those of the engines (`vllm:prefix_cache_hits` / `_queries`); prompt tokens computed are those of the executors. "Of them again": less those that the simulator computes for the first time.',
    ...(repeated.length === 0
      ? []
      : [
          `Engines that ask their cache anew with every attempt to schedule a call count it as often, so that their hit rate says little: ${repeated
            .map((pair) => `${name(pair)} ${(pair.measured.queries / pair.promptTokens).toFixed(1)} times`)
            .join(', ')}. Prompt tokens computed can be compared.`,
        ]),
    'Held: seconds that the calls of a task waited in the gateway. Between: seconds in which they were neither there nor in an engine: HTTP, JSON and waiting for the processor, multiplied by the time scale. The simulator has none of them.',
    'Late: wall time by which steps ended late because the machine was busy, over wall time times servers. Client, gateway and servers share the machine.',
    ...(context.quick
      ? []
      : [
          `Nearby: what the simulator says of the same tasks at this rate and at ${nearbyRates.length} others within 3 % of it. ${within('nearby')}`,
          `In ${publishedSeeds.length} orders of arrival at this rate, the published seeds, the simulator's times spread further: ${within('reordered')}`,
        ]),
    ...(apart.length === 0
      ? []
      : [
          `More than ${100 * agreement} % from what the simulator says of this very rate: ${apart.map(name).join(', ')}.`,
        ]),
    `A run took ${walls.mean.toFixed(0)} s of wall time, the longest ${walls.max.toFixed(0)} s.`,
    ...(context.traces === undefined && !context.quick
      ? ['No --traces were given: recorded sessions are left out.']
      : []),
    ...(late.length === 0
      ? []
      : [`Steps were more than ${100 * mostLate} % late, so that times are too long: ${late.map(name).join(', ')}.`]),
    ...(failed.length === 0 ? [] : [`Calls failed: ${failed.map(name).join(', ')}.`]),
  ];
}
