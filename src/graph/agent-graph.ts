/**
 * A declared Agent Execution Graph (SAGA paper, section 3): what is known about a class of tasks before one of them runs.
 *
 * A **step** is a kind of model call: the tool that its answer calls, the length of the answer, what the tool's result adds to
 * the next prompt and how long it takes. An **edge** is the probability that one kind of step follows another; what the edges
 * of a step leave of 1 is the probability that the task ends with it. Every value is a mean over the class of tasks, never
 * what one task will do.
 *
 * Invariants: at least one step; names are unique; edges are sorted by the numbers of their steps, without repetition; the
 * probabilities of a step's edges sum to at most 1, those of the start to 1; the end is within reach of every step.
 */
import { checkOneOf, describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';
import { endlessStates, expectedSums, type Transition } from './chain.js';
import { below, checkArray, checkFields, checkName, checkNumber, checkObject, checkString } from './fields.js';
import { defaultsOf, toolClasses, type ToolClass } from './tool-class.js';

/** Most steps of a graph. */
export const mostSteps = 256;
/** Most tokens of an answer, an observation or a prompt. */
export const mostTokens = 2 ** 31;
/** Longest gap or task in seconds. */
export const mostSeconds = 1e9;
/** Most calls of a task in the mean. */
export const mostCalls = 1e9;
/** Probabilities that miss their sum by no more are taken to meet it. */
const rounding = 1e-9;

/** A kind of model call. */
export interface AgentStep {
  /** Unique in its graph. */
  readonly name: string;
  /** The tool that its answer calls. */
  readonly tool: ToolClass;
  /** Tokens of the answer. */
  readonly outputTokens: number;
  /** Tokens that the tool's result adds to the next prompt. */
  readonly observationTokens: number;
  /** Seconds from the answer to the next call: how long the tool takes. */
  readonly gapSeconds: number;
}

/** One kind of step follows another. */
export interface AgentEdge {
  readonly from: string;
  readonly to: string;
  /** 0 to 1. */
  readonly probability: number;
}

/** The JSON form, as `schema/agent-graph.schema.json` describes it. */
export interface AgentGraphJSON {
  /** Where the schema lies, for editors; not looked at. */
  readonly $schema?: string;
  readonly name?: string;
  readonly description?: string;
  /** At least one; the first is where a task starts, unless `start` says otherwise. */
  readonly steps: readonly AgentStepJSON[];
  readonly edges?: readonly AgentEdge[];
  /** Probability, by step, that a task starts with it; they sum to 1. */
  readonly start?: Readonly<Record<string, number>>;
  /** Tokens of a task's first prompt. */
  readonly firstPromptTokens?: number;
  /** Mean number of calls of a task, if it was measured. Default: what the edges imply. */
  readonly expectedCalls?: number;
  /** Mean time of a task on a quiet cluster in seconds, tools included. */
  readonly expectedSeconds?: number;
}

/** A step of the JSON form: all but the name may be left out; see {@link defaultsOf}. */
export interface AgentStepJSON extends Partial<AgentStep> {
  readonly name: string;
}

/** A step of {@link AgentGraph.define}. */
export interface StepDefinition<Name extends string = string> extends Partial<Omit<AgentStep, 'name'>> {
  /** What follows: one step for certain, or steps with their probabilities. The rest of 1 is the end. Default: the end. */
  readonly next?: Name | Readonly<Partial<Record<Name, number>>>;
}

/** What {@link AgentGraph.define} takes: steps by name. */
export interface GraphDefinition<Name extends string = string> extends Omit<
  AgentGraphJSON,
  '$schema' | 'steps' | 'edges' | 'start'
> {
  readonly steps: Readonly<Record<Name, StepDefinition<NoInfer<Name>>>>;
  /** Where a task starts: one step, or steps with their probabilities. Default: the first. */
  readonly start?: NoInfer<Name> | Readonly<Partial<Record<NoInfer<Name>, number>>>;
}

/** What is still to come after a call, in the mean. */
export interface Remaining {
  /** Calls. */
  readonly calls: number;
  /** Tokens of their answers. */
  readonly outputTokens: number;
  /** Tokens that tools add to their prompts. */
  readonly observationTokens: number;
  /** Seconds between calls, the gap before the next one included; the calls themselves are not in it. */
  readonly gapSeconds: number;
}

/** A graph as numbers, as it crosses the border. */
export interface AgentGraphColumns {
  /** Four numbers a step: the tool class's number (its place in {@link toolClasses}), output tokens, observation tokens, gap in seconds. */
  readonly steps: Float64Array;
  /** Three numbers an edge: from, to (numbers of steps), probability. Sorted by from and to. */
  readonly edges: Float64Array;
  /** Probability, per step, that a task starts with it. */
  readonly start: Float64Array;
  /** First prompt in tokens (0: not declared), expected calls (always told), expected seconds (0: not declared). */
  readonly totals: Float64Array;
}

const graphFields = [
  '$schema',
  'name',
  'description',
  'steps',
  'edges',
  'start',
  'firstPromptTokens',
  'expectedCalls',
  'expectedSeconds',
] as const;
const stepFields = ['name', 'tool', 'outputTokens', 'observationTokens', 'gapSeconds'] as const;
const edgeFields = ['from', 'to', 'probability'] as const;

/** A declared Agent Execution Graph; immutable. */
export class AgentGraph {
  readonly name: string | undefined;
  readonly description: string | undefined;
  /** In the order of their numbers. */
  readonly steps: readonly AgentStep[];
  /** Sorted by the numbers of their steps; those with probability 0 stay. */
  readonly edges: readonly AgentEdge[];
  /** Tokens of a task's first prompt; undefined: not declared. */
  readonly firstPromptTokens: number | undefined;
  /** Mean number of calls of a task as it was declared; undefined: the edges tell it. See {@link expectedCalls}. */
  readonly declaredCalls: number | undefined;
  /** Mean time of a task on a quiet cluster in seconds, tools included; undefined: not declared. */
  readonly expectedSeconds: number | undefined;

  readonly #numbers = new Map<string, number>();
  readonly #transitions: readonly Transition[];
  readonly #start: readonly number[];
  readonly #ends: readonly number[];
  #remaining: readonly Remaining[] | undefined;

  private constructor(value: unknown, stepPath: (at: number) => string) {
    const fields = checkFields('', value, graphFields, ['steps']);
    if (fields['$schema'] !== undefined) checkString('$schema', fields['$schema']);
    this.name = optional(fields['name'], (given) => checkName('name', given));
    this.description = optional(fields['description'], (given) => checkString('description', given));
    this.firstPromptTokens = optional(fields['firstPromptTokens'], (given) =>
      checkNumber('firstPromptTokens', given, 1, mostTokens),
    );
    this.declaredCalls = optional(fields['expectedCalls'], (given) =>
      checkNumber('expectedCalls', given, 1, mostCalls),
    );
    this.expectedSeconds = optional(fields['expectedSeconds'], (given) =>
      checkNumber('expectedSeconds', given, 0, mostSeconds),
    );

    this.steps = Object.freeze(
      checkArray('steps', fields['steps'], 1, mostSteps).map((step, at) => this.#addStep(stepPath(at), step, at)),
    );
    this.#transitions = this.#checkEdges(fields['edges'] === undefined ? [] : fields['edges']);
    this.edges = Object.freeze(
      this.#transitions.map(({ from, to, probability }) =>
        Object.freeze({ from: this.#step(from).name, to: this.#step(to).name, probability }),
      ),
    );
    this.#ends = this.#checkEnds();
    this.#start = this.#checkStart(fields['start']);
    Object.freeze(this);
  }

  /**
   * A graph from its JSON form.
   *
   * @param value parsed JSON
   * @throws SagaArgumentError with the path of the field that is wrong and what was expected
   */
  static fromJSON(value: unknown): AgentGraph {
    return new AgentGraph(value, (at) => `steps[${at}]`);
  }

  /**
   * A graph from its steps by name; what follows a step stands with it.
   *
   * @throws SagaArgumentError as {@link fromJSON}; also for names that are whole numbers, which JavaScript would reorder
   */
  static define<Name extends string>(definition: GraphDefinition<Name>): AgentGraph {
    const { steps, start, ...rest } = checkObject('', definition) as unknown as GraphDefinition;
    if ('edges' in rest) throw new SagaArgumentError('edges is not known; expected next in each step');
    const entries = Object.entries(checkObject('steps', steps)) as [string, StepDefinition][];
    const unordered = entries.find(([name]) => /^(0|[1-9]\d*)$/.test(name));
    if (unordered) {
      throw new SagaArgumentError(
        `${below('steps', unordered[0])} must not be a whole number: give it a name with a letter`,
      );
    }
    const names = new Set(entries.map(([name]) => name));
    const edges: AgentEdge[] = [];
    const written = entries.map(([name, given]) => {
      const path = below('steps', name);
      const { next, ...step } = checkObject(path, given) as StepDefinition;
      if ('name' in step) throw new SagaArgumentError(`${path}.name is not known; the step's key is its name`);
      for (const [to, probability] of shares(`${path}.next`, next, names)) {
        edges.push({ from: name, to, probability: checkNumber(below(`${path}.next`, to), probability, 0, 1) });
      }
      checkFields(path, step, stepFields.slice(1), []);
      return { ...step, name };
    });
    const started = start === undefined ? undefined : Object.fromEntries(shares('start', start, names));
    return new AgentGraph({ ...rest, steps: written, edges, start: started }, (at) =>
      below('steps', written[at]?.name ?? ''),
    );
  }

  /** The JSON form, with every default written out. `AgentGraph.fromJSON` of it is an equal graph. */
  toJSON(): AgentGraphJSON {
    const starts = this.#start.flatMap((share, at) => (share > 0 ? [[this.#step(at).name, share] as const] : []));
    return {
      ...(this.name === undefined ? {} : { name: this.name }),
      ...(this.description === undefined ? {} : { description: this.description }),
      steps: this.steps.map((step) => ({ ...step })),
      edges: this.edges.map((edge) => ({ ...edge })),
      start: Object.fromEntries(starts),
      ...(this.firstPromptTokens === undefined ? {} : { firstPromptTokens: this.firstPromptTokens }),
      ...(this.declaredCalls === undefined ? {} : { expectedCalls: this.declaredCalls }),
      ...(this.expectedSeconds === undefined ? {} : { expectedSeconds: this.expectedSeconds }),
    };
  }

  /**
   * The number of a step: its place in {@link steps}.
   *
   * @param what names the argument in the message
   * @throws SagaArgumentError if there is no such step
   */
  stepNumber(name: string, what = 'step'): number {
    const number = this.#numbers.get(name);
    if (number === undefined) throw new SagaArgumentError(`${what} must be a step of the graph, got ${describe(name)}`);
    return number;
  }

  /** Probability that a task starts with this step. */
  startProbability(step: string): number {
    return this.#start[this.stepNumber(step)] as number;
  }

  /** Probability that a task ends with this step: what its edges leave of 1. */
  endProbability(step: string): number {
    return this.#ends[this.stepNumber(step)] as number;
  }

  /** Mean number of calls of a task: as declared, otherwise what {@link impliedCalls} says. */
  expectedCalls(): number {
    return this.declaredCalls ?? this.impliedCalls();
  }

  /** Mean number of calls of a task by its start and edges. */
  impliedCalls(): number {
    return this.steps.reduce((sum, _, at) => {
      const share = this.#start[at] as number;
      return share > 0 ? sum + share * (1 + this.#expect(at).calls) : sum;
    }, 0);
  }

  /** What is still to come, in the mean, after a call of this kind, by the edges. The call itself is not in it. */
  expectedRemaining(step: string): Remaining {
    return this.#expect(this.stepNumber(step));
  }

  /** The graph as numbers, in new arrays. */
  toColumns(): AgentGraphColumns {
    return {
      steps: Float64Array.from(
        this.steps.flatMap((step) => [
          toolClasses.indexOf(step.tool),
          step.outputTokens,
          step.observationTokens,
          step.gapSeconds,
        ]),
      ),
      edges: Float64Array.from(this.#transitions.flatMap(({ from, to, probability }) => [from, to, probability])),
      start: Float64Array.from(this.#start),
      totals: Float64Array.of(this.firstPromptTokens ?? 0, this.expectedCalls(), this.expectedSeconds ?? 0),
    };
  }

  #step(at: number): AgentStep {
    return this.steps[at] as AgentStep;
  }

  #addStep(path: string, value: unknown, at: number): AgentStep {
    const fields = checkFields(path, value, stepFields, ['name']);
    const name = checkName(`${path}.name`, fields['name']);
    const earlier = this.#numbers.get(name);
    if (earlier !== undefined) {
      throw new SagaArgumentError(`${path}.name must be unique, got ${describe(name)}, the name of steps[${earlier}]`);
    }
    this.#numbers.set(name, at);
    const tool =
      optional(fields['tool'], (given) => toolClasses[checkOneOf(`${path}.tool`, given, toolClasses)]) ?? 'none';
    const usual = defaultsOf(tool);
    const number = (field: 'outputTokens' | 'observationTokens' | 'gapSeconds', most: number): number =>
      fields[field] === undefined ? usual[field] : checkNumber(`${path}.${field}`, fields[field], 0, most);
    return Object.freeze({
      name,
      tool,
      outputTokens: number('outputTokens', mostTokens),
      observationTokens: number('observationTokens', mostTokens),
      gapSeconds: number('gapSeconds', mostSeconds),
    });
  }

  #checkEdges(value: unknown): readonly Transition[] {
    const seen = new Map<number, string>();
    const transitions = checkArray('edges', value, 0, mostSteps ** 2).map((edge, at) => {
      const path = `edges[${at}]`;
      const fields = checkFields(path, edge, edgeFields, edgeFields);
      const from = this.stepNumber(checkName(`${path}.from`, fields['from']), `${path}.from`);
      const to = this.stepNumber(checkName(`${path}.to`, fields['to']), `${path}.to`);
      const probability = checkNumber(`${path}.probability`, fields['probability'], 0, 1);
      const earlier = seen.get(from * mostSteps + to);
      if (earlier !== undefined) {
        throw new SagaArgumentError(`${path} must join two steps that no other edge joins, as ${earlier} does already`);
      }
      seen.set(from * mostSteps + to, path);
      return { from, to, probability };
    });
    return transitions.sort((a, b) => a.from - b.from || a.to - b.to);
  }

  /** Probability of the end by step. */
  #checkEnds(): readonly number[] {
    const sums = new Array<number>(this.steps.length).fill(0);
    for (const { from, probability } of this.#transitions) sums[from] = (sums[from] as number) + probability;
    const ends = sums.map((sum, at) => {
      if (sum > 1 + rounding) {
        const { name } = this.#step(at);
        throw new SagaArgumentError(
          `edges from ${describe(name)} must have probabilities that sum to at most 1, got ${sum}`,
        );
      }
      return 1 - sum > rounding ? 1 - sum : 0;
    });
    const endless = endlessStates(
      ends.map((end) => end > 0),
      this.#transitions,
    );
    if (endless.length > 0) {
      const names = endless.slice(0, 5).map((at) => describe(this.#step(at).name));
      throw new SagaArgumentError(
        `edges must leave a way to the end: from ${names.join(', ')}${endless.length > 5 ? ', ...' : ''} a task never ends`,
      );
    }
    return ends;
  }

  /** Probability of the start by step. */
  #checkStart(value: unknown): readonly number[] {
    const start = new Array<number>(this.steps.length).fill(0);
    if (value === undefined) {
      start[0] = 1;
      return start;
    }
    let sum = 0;
    for (const [name, share] of Object.entries(checkObject('start', value))) {
      const path = below('start', name);
      const at = this.stepNumber(name, path);
      sum += start[at] = checkNumber(path, share, 0, 1);
    }
    if (Math.abs(sum - 1) > rounding) throw new SagaArgumentError(`start must sum to 1, got ${sum}`);
    return start;
  }

  #expect(at: number): Remaining {
    this.#remaining ??= this.#solve();
    return this.#remaining[at] as Remaining;
  }

  #solve(): readonly Remaining[] {
    const goesOn = this.#ends.map((end) => 1 - end);
    const columns = [
      this.steps.map(() => 1),
      this.steps.map((step) => step.outputTokens),
      this.steps.map((step, at) => step.observationTokens * (goesOn[at] as number)),
      this.steps.map((step, at) => step.gapSeconds * (goesOn[at] as number)),
    ];
    const [calls, output, observation, gap] = expectedSums(this.steps.length, this.#transitions, columns) as [
      number[],
      number[],
      number[],
      number[],
    ];
    // A call's own share is known, and taking it off must not leave a rounding error below zero.
    return this.steps.map((step, at) =>
      Object.freeze({
        calls: Math.max(0, (calls[at] as number) - 1),
        outputTokens: Math.max(0, (output[at] as number) - step.outputTokens),
        observationTokens: observation[at] as number,
        gapSeconds: gap[at] as number,
      }),
    );
  }
}

function optional<T>(given: unknown, check: (given: unknown) => T): T | undefined {
  return given === undefined ? undefined : check(given);
}

/** Steps with their probabilities, of one name or of an object; a probability that is undefined counts as absent. */
function shares(path: string, given: unknown, names: ReadonlySet<string>): [string, number][] {
  if (given === undefined) return [];
  const entries = (typeof given === 'string' ? [[given, 1]] : Object.entries(checkObject(path, given))) as [
    string,
    number | undefined,
  ][];
  for (const [name] of entries) {
    if (names.has(name)) continue;
    throw new SagaArgumentError(
      `${typeof given === 'string' ? path : below(path, name)} must be a step of the graph, got ${describe(name)}`,
    );
  }
  return entries.filter((entry): entry is [string, number] => entry[1] !== undefined);
}
