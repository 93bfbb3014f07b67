/**
 * Reads a declared graph off a compiled LangGraph.js graph, by the drawing that the graph gives of itself (`getGraph()`).
 *
 * A LangGraph node is a function; a step here is a model call. So nodes that are tools become what the steps before them call,
 * nodes that do neither (hooks, the borders of subgraphs) are passed through, and every other node is taken to be one model
 * call. A drawing has no probabilities: edges out of a node share evenly, unless told. It does not say what a function does,
 * nor how many copies a `Send` starts; `options` are for that.
 *
 * Nothing of LangGraph is imported: whatever has the shape of a drawing will do, also the JSON that LangGraph for Python and
 * LangGraph servers give.
 *
 * Costs: nodes times (nodes + edges).
 */
import { checkOneOf, describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';
import { AgentGraph, mostSeconds, mostTokens, type AgentEdge, type AgentStepJSON } from './agent-graph.js';
import { below, checkArray, checkFields, checkNumber, checkObject, type Fields } from './fields.js';
import { classifyTool, defaultsOf, toolClasses, unknownTool, type StepDefaults, type ToolClass } from './tool-class.js';

/** What a LangGraph node does: one model call, a tool, or neither. */
export type LangGraphNodeKind = 'call' | 'tool' | 'pass';

/** Means of a node, where they are known: tokens of a call's answer; tokens and time of a tool. */
export interface LangGraphEstimate {
  /** Of a call: tokens of its answer. */
  readonly outputTokens?: number;
  /** Of a tool: tokens that its result adds to the next prompt. */
  readonly observationTokens?: number;
  /** Of a tool: how long it takes. */
  readonly gapSeconds?: number;
}

/** What the drawing does not tell. Nodes go by their ids in it; nodes of a subgraph by `subgraph:node`. */
export interface LangGraphOptions {
  /** Class of a tool by its name, or of a tool node by its id; a node named here is a tool. Default: {@link classifyTool}. */
  readonly tools?: Readonly<Record<string, ToolClass>>;
  /** What nodes do, where the rules of the importer are not right. */
  readonly kinds?: Readonly<Record<string, LangGraphNodeKind>>;
  /**
   * Probabilities of what follows a node, by source and target; `__start__` and `__end__` are nodes as well. Targets of the
   * drawing that are not named share the rest evenly. A target need not be in the drawing: `{ work: { work: 0.8, join: 0.2 } }`
   * stands for five copies of `work`, one after the other.
   */
  readonly probabilities?: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** Means by node id, and of tools also by their names. */
  readonly estimates?: Readonly<Record<string, LangGraphEstimate>>;
  /** Name of the class of tasks. */
  readonly name?: string;
  /** Tokens of a task's first prompt. */
  readonly firstPromptTokens?: number;
  /** Mean number of calls of a task, if it was measured. */
  readonly expectedCalls?: number;
  /** Mean time of a task on a quiet cluster in seconds, tools included. */
  readonly expectedSeconds?: number;
}

/** A compiled LangGraph.js graph, as far as it is looked at. */
export interface LangGraphLike {
  getGraph?(): unknown;
  getGraphAsync?(): Promise<unknown>;
}

interface DrawnNode {
  readonly id: string;
  readonly data: Fields;
  readonly metadata: Fields;
}

interface DrawnEdge {
  readonly source: string;
  readonly target: string;
  readonly conditional: boolean;
}

interface Drawing {
  readonly nodes: Map<string, DrawnNode>;
  readonly edges: DrawnEdge[];
}

/** What comes behind a node, up to the next call or the end: by the class of the tool on the way, and where it leads. */
interface Outcome {
  readonly tool: ToolClass;
  /** Id of a call node, or `__end__`. */
  readonly target: string;
  readonly probability: number;
  readonly observationTokens: number;
  readonly gapSeconds: number;
}

const startId = '__start__';
const endId = '__end__';
/** Subgraphs within subgraphs; more is a cycle. */
const mostDepth = 16;
const mostNodes = 1024;
const rounding = 1e-9;

const optionFields = [
  'tools',
  'kinds',
  'probabilities',
  'estimates',
  'name',
  'firstPromptTokens',
  'expectedCalls',
  'expectedSeconds',
] as const;
const nodeKinds: readonly LangGraphNodeKind[] = ['call', 'tool', 'pass'];

/** Ids of nodes that run tools by custom. */
const toolNodeName = /^(?:(?:call|run|execute)_?)?tools?_?(?:node)?$|^action$/i;
/** Ids of nodes that LangChain's prebuilt agents put around their calls. */
const hookName = /(?:^|\.)(?:(?:pre|post)_model_hook|(?:before|after)_(?:agent|model))$/;

/**
 * Imports a compiled LangGraph.js graph.
 *
 * @param compiled what `StateGraph.compile()` or `createReactAgent()` gave; or a drawing, as `getGraph()` gives it
 * @throws SagaArgumentError for what is no such graph, for options that name nothing in it, and where a task could not end
 */
export function fromLangGraph(compiled: LangGraphLike | object, options: LangGraphOptions = {}): AgentGraph {
  const given = compiledOf(compiled);
  const drawing = typeof given['getGraph'] === 'function' ? (given as LangGraphLike).getGraph?.() : given;
  if (drawing instanceof Promise) {
    // Its failure is not the point: the caller is told to use the other function.
    drawing.catch(() => undefined);
    throw new SagaArgumentError('the graph draws itself asynchronously: use fromLangGraphAsync');
  }
  return importDrawing(drawing, options);
}

/** {@link fromLangGraph} for graphs that draw themselves asynchronously (`getGraphAsync`), as those on a server do. */
export async function fromLangGraphAsync(
  compiled: LangGraphLike | object,
  options: LangGraphOptions = {},
): Promise<AgentGraph> {
  const given = compiledOf(compiled);
  if (typeof given['getGraphAsync'] !== 'function') return fromLangGraph(compiled, options);
  return importDrawing(await (given as LangGraphLike).getGraphAsync?.(), options);
}

/** The graph itself; agents of the package `langchain` hold theirs in `graph`. */
function compiledOf(compiled: unknown): Fields {
  const given = checkObject('the graph', compiled);
  const draws = (one: Fields): boolean =>
    typeof one['getGraph'] === 'function' || typeof one['getGraphAsync'] === 'function';
  if (draws(given)) return given;
  const inner = given['graph'];
  if (typeof inner === 'object' && inner !== null && draws(inner as Fields)) return inner as Fields;
  if (typeof given['compile'] === 'function') throw new SagaArgumentError('the graph must be compiled: call compile()');
  if ('nodes' in given && 'edges' in given) return given;
  throw new SagaArgumentError(
    `the graph must be a compiled LangGraph.js graph (getGraph) or its drawing (nodes and edges), got ${describe(compiled)}`,
  );
}

function importDrawing(given: unknown, options: LangGraphOptions): AgentGraph {
  checkFields('options', options, optionFields, []);
  const drawing: Drawing = { nodes: new Map(), edges: [] };
  readDrawing(given, '', 0, drawing);
  if (!drawing.nodes.has(startId)) throw new SagaArgumentError(`the drawing must have a node ${startId}`);
  serializeDiamonds(drawing);
  return new Importer(drawing, options).graph();
}

/** Adds a drawing to another, with a prefix before the ids, and the subgraphs in it. */
function readDrawing(given: unknown, prefix: string, depth: number, into: Drawing): void {
  if (depth > mostDepth) throw new SagaArgumentError(`subgraphs must be nested at most ${mostDepth} deep`);
  const drawing = checkObject('the drawing', given);
  const nodes = drawing['nodes'];
  const listed: readonly (readonly [unknown, unknown])[] = Array.isArray(nodes)
    ? nodes.map((node: unknown) => [(node as Fields | null)?.['id'], node])
    : Object.entries(checkObject('nodes', nodes));

  const subgraphs = new Set<string>();
  for (const [key, value] of listed) {
    const path = `nodes[${describe(key)}]`;
    const node = checkObject(path, value);
    const id = prefix + idOf(`${path}.id`, node['id'] ?? key);
    if (into.nodes.has(id)) throw new SagaArgumentError(`${path}.id must be unique, got ${describe(id)}`);
    const data = fieldsOf(node['data']);
    if (isCompiled(data)) {
      subgraphs.add(id);
      readDrawing((data as LangGraphLike).getGraph?.(), `${id}:`, depth + 1, into);
      continue;
    }
    into.nodes.set(id, { id, data, metadata: fieldsOf(node['metadata']) });
    if (into.nodes.size > mostNodes) throw new SagaArgumentError(`the drawing must have at most ${mostNodes} nodes`);
  }

  // Where a node of a subgraph leads nowhere, the subgraph ends, and its end may be missing in the drawing.
  const last = prefix + endId;
  if (prefix !== '' && !into.nodes.has(last)) into.nodes.set(last, { id: last, data: {}, metadata: {} });

  const end = (id: string, border: string): string => (subgraphs.has(id) ? `${id}:${border}` : id);
  checkArray('edges', drawing['edges'], 0, mostNodes ** 2).forEach((value, at) => {
    const edge = checkObject(`edges[${at}]`, value);
    const source = end(prefix + idOf(`edges[${at}].source`, edge['source']), endId);
    const target = end(prefix + idOf(`edges[${at}].target`, edge['target']), startId);
    for (const [field, id] of [['source', source] as const, ['target', target] as const]) {
      if (into.nodes.has(id)) continue;
      throw new SagaArgumentError(`edges[${at}].${field} must be a node of the drawing, got ${describe(id)}`);
    }
    into.edges.push({ source, target, conditional: edge['conditional'] === true });
  });
}

function idOf(path: string, value: unknown): string {
  if (typeof value === 'string' && value !== '') return value;
  if (typeof value === 'number') return String(value);
  throw new SagaArgumentError(`${path} must be a string that is not empty, got ${describe(value)}`);
}

function fieldsOf(value: unknown): Fields {
  return typeof value === 'object' && value !== null ? (value as Fields) : {};
}

function isCompiled(data: Fields): boolean {
  return typeof data['getGraph'] === 'function' && typeof data['attachNode'] === 'function';
}

/** Whether this is the end of the graph or of a subgraph. */
function isEnd(id: string): boolean {
  return /(?:^|:)__end__$/.test(id);
}

/** Whether this is the border of the graph or of a subgraph. */
function isBorder(id: string): boolean {
  return /(?:^|:)__(?:start|end)__$/.test(id);
}

/**
 * Nodes that run side by side and meet again cannot be probabilities of a chain: both come. Where several unconditional edges
 * leave a node and each leads over one node to the same place, the nodes are put in a row, which keeps the number of calls.
 */
function serializeDiamonds({ nodes, edges }: Drawing): void {
  let leaving = groups(edges, (edge) => edge.source);
  for (const source of nodes.keys()) {
    const outgoing = leaving.get(source) ?? [];
    const branches = [...new Set(outgoing.map((edge) => edge.target))];
    if (branches.length < 2 || outgoing.some((edge) => edge.conditional)) continue;
    const behind = branches.flatMap((branch) => leaving.get(branch) ?? []);
    const meeting = behind[0]?.target;
    const simple =
      meeting !== undefined &&
      behind.every((edge, at) => edge.source === branches[at] && edge.target === meeting && !edge.conditional) &&
      behind.length === branches.length &&
      !branches.some((branch) => isBorder(branch)) &&
      edges.filter((edge) => branches.includes(edge.target)).length === branches.length;
    if (!simple) continue;
    const replaced = new Set([...outgoing, ...behind]);
    const row = [source, ...branches, meeting];
    const kept = edges.filter((edge) => !replaced.has(edge));
    edges.length = 0;
    for (const edge of kept) edges.push(edge);
    for (let at = 1; at < row.length; ++at) {
      edges.push({ source: row[at - 1] as string, target: row[at] as string, conditional: false });
    }
    leaving = groups(edges, (edge) => edge.source);
  }
}

function groups<T>(values: readonly T[], keyOf: (value: T) => string): Map<string, T[]> {
  const grouped = new Map<string, T[]>();
  for (const value of values) {
    const key = keyOf(value);
    const group = grouped.get(key);
    if (group) group.push(value);
    else grouped.set(key, [value]);
  }
  return grouped;
}

class Importer {
  readonly #nodes: ReadonlyMap<string, DrawnNode>;
  readonly #options: LangGraphOptions;
  readonly #next = new Map<string, ReadonlyMap<string, number>>();
  readonly #behind = new Map<string, readonly Outcome[]>();
  readonly #kinds = new Map<string, LangGraphNodeKind>();

  constructor(drawing: Drawing, options: LangGraphOptions) {
    this.#nodes = drawing.nodes;
    this.#options = options;
    this.#checkOptions();
    for (const node of drawing.nodes.values()) this.#kinds.set(node.id, this.#kindOf(node));
    const outgoing = groups(drawing.edges, (edge) => edge.source);
    for (const id of drawing.nodes.keys()) {
      this.#next.set(id, this.#shares(id, outgoing.get(id) ?? []));
    }
  }

  graph(): AgentGraph {
    const reached = this.#reachedCalls();
    if (reached.length === 0)
      throw new SagaArgumentError('the drawing must have a node that is a model call, got none');
    const split = new Map(reached.map((id) => [id, this.#split(id)]));
    const steps: AgentStepJSON[] = [];
    const edges: AgentEdge[] = [];
    /** Spreads what arrives at a node over its steps, and adds up. */
    const spread = (outcomes: readonly Outcome[], total: number): Map<string, number> => {
      const shares = new Map<string, number>();
      for (const { target, probability } of outcomes) {
        for (const { step, share } of split.get(target) ?? []) {
          shares.set(step.name, (shares.get(step.name) ?? 0) + (probability / total) * share);
        }
      }
      return shares;
    };
    for (const kinds of split.values()) {
      for (const { step, outcomes, mass, goesOn } of kinds) {
        steps.push(step);
        for (const [to, share] of spread(outcomes, mass)) {
          edges.push({ from: step.name, to, probability: Math.min(1, share * goesOn) });
        }
      }
    }
    const first = this.#outcomesOf(startId).filter(({ target }) => target !== endId);
    const start = Object.fromEntries(spread(first, massOf(first)));
    const { name, firstPromptTokens, expectedCalls, expectedSeconds } = this.#options;
    try {
      return AgentGraph.fromJSON({ name, steps, edges, start, firstPromptTokens, expectedCalls, expectedSeconds });
    } catch (cause) {
      if (!(cause instanceof SagaArgumentError) || !cause.message.startsWith('edges must leave a way')) throw cause;
      throw new SagaArgumentError(`${cause.message}; tell the probability of ${endId} in probabilities`, { cause });
    }
  }

  /** Options that name nothing in the drawing are mistakes. */
  #checkOptions(): void {
    const { tools = {}, kinds = {}, probabilities = {}, estimates = {} } = this.#options;
    const ids = new Set([...this.#nodes.keys(), endId]);
    const toolNames = new Set([...this.#nodes.values()].flatMap((node) => toolNamesOf(node)));
    const checkKnown = (path: string, id: string, known: readonly ReadonlySet<string>[], what: string): void => {
      if (known.some((names) => names.has(id))) return;
      throw new SagaArgumentError(
        `${path} must name ${what} of the graph; its nodes are ${[...this.#nodes.keys()].join(', ')}`,
      );
    };
    for (const [name, tool] of Object.entries(checkObject('tools', tools))) {
      checkKnown(below('tools', name), name, [ids, toolNames], 'a tool or a node');
      checkOneOf(below('tools', name), tool, toolClasses);
    }
    for (const [id, kind] of Object.entries(checkObject('kinds', kinds))) {
      checkKnown(below('kinds', id), id, [ids], 'a node');
      checkOneOf(below('kinds', id), kind, nodeKinds);
    }
    for (const [source, targets] of Object.entries(checkObject('probabilities', probabilities))) {
      const path = below('probabilities', source);
      checkKnown(path, source, [ids], 'a node');
      for (const [target, share] of Object.entries(checkObject(path, targets))) {
        checkKnown(below(path, target), target, [ids], 'a node');
        checkNumber(below(path, target), share, 0, 1);
      }
    }
    for (const [name, estimate] of Object.entries(checkObject('estimates', estimates))) {
      const path = below('estimates', name);
      checkKnown(path, name, [ids, toolNames], 'a node or a tool');
      const fields = checkFields(path, estimate, ['outputTokens', 'observationTokens', 'gapSeconds'], []);
      for (const [field, value] of Object.entries(fields)) {
        if (value !== undefined)
          checkNumber(`${path}.${field}`, value, 0, field === 'gapSeconds' ? mostSeconds : mostTokens);
      }
    }
  }

  #kindOf(node: DrawnNode): LangGraphNodeKind {
    if (isBorder(node.id)) return 'pass';
    const told = own(this.#options.kinds, node.id);
    if (told !== undefined) return told;
    if (own(this.#options.tools, node.id) !== undefined) return 'tool';
    const last = lastPart(node.id);
    if (toolNamesOf(node).length > 0 || isToolNode(node.data) || toolNodeName.test(last)) return 'tool';
    return hookName.test(last) ? 'pass' : 'call';
  }

  /** Probability of each target. */
  #shares(source: string, edges: readonly DrawnEdge[]): ReadonlyMap<string, number> {
    // Beside an edge that is always taken, one to the end ends nothing.
    const goesOn = edges.some((edge) => !edge.conditional && !isEnd(edge.target));
    const drawn = new Set(edges.map((edge) => edge.target).filter((target) => !goesOn || !isEnd(target)));
    const told = Object.entries(own(this.#options.probabilities, source) ?? {});
    const shares = new Map<string, number>(told);
    const untold = [...drawn].filter((target) => !shares.has(target));
    const rest = 1 - told.reduce((sum, [, share]) => sum + share, 0);
    const path = below('probabilities', source);
    if (rest < -rounding) throw new SagaArgumentError(`${path} must sum to at most 1, got ${1 - rest}`);
    if (untold.length === 0 && told.length > 0 && rest > rounding) {
      throw new SagaArgumentError(`${path} must sum to 1, got ${1 - rest}: no other edge leaves the node`);
    }
    for (const target of untold) shares.set(target, Math.max(0, rest) / untold.length);
    // Nothing follows: here ends the subgraph that the node is in, or the task.
    if (shares.size === 0) {
      const end = source.slice(0, source.lastIndexOf(':') + 1) + endId;
      shares.set(this.#nodes.has(end) && end !== source ? end : endId, 1);
    }
    return shares;
  }

  /** Ids of the calls that a task can come to, in the order of the drawing. */
  #reachedCalls(): string[] {
    const reached = new Set<string>();
    const open = [startId];
    for (let at = open.pop(); at !== undefined; at = open.pop()) {
      for (const { target, probability } of this.#outcomesOf(at)) {
        if (target === endId || probability === 0 || reached.has(target)) continue;
        reached.add(target);
        open.push(target);
      }
    }
    return [...this.#nodes.keys()].filter((id) => reached.has(id));
  }

  /** What follows a node, up to the next call or the end. */
  #outcomesOf(id: string): readonly Outcome[] {
    return merge([...(this.#next.get(id) ?? [])].flatMap(([target, share]) => this.#arrive(target, share, [id])));
  }

  /** What it comes to when a node is reached with this probability. */
  #arrive(id: string, share: number, path: readonly string[]): Outcome[] {
    if (share === 0) return [];
    if (id === endId || this.#kinds.get(id) === 'call') {
      return [{ tool: 'none', target: id, probability: share, observationTokens: 0, gapSeconds: 0 }];
    }
    return this.#passThrough(id, path).map((outcome) => ({ ...outcome, probability: outcome.probability * share }));
  }

  /** Outcomes of a node that is no call, with the tool that it is. */
  #passThrough(id: string, path: readonly string[]): readonly Outcome[] {
    const known = this.#behind.get(id);
    if (known) return known;
    if (path.includes(id)) {
      const cycle = [...path.slice(path.indexOf(id)), id];
      throw new SagaArgumentError(`the drawing must not have a cycle without a model call, got ${cycle.join(' -> ')}`);
    }
    const next = [...(this.#next.get(id) ?? [[endId, 1] as const])];
    const behind = next.flatMap(([target, share]) => this.#arrive(target, share, [...path, id]));
    const node = this.#nodes.get(id);
    const outcomes = merge(
      node === undefined || this.#kinds.get(id) === 'pass'
        ? behind
        : this.#toolsOf(node).flatMap((tool) => callTool(tool, behind)),
    );
    this.#behind.set(id, outcomes);
    return outcomes;
  }

  /** The tools of a node with their shares. */
  #toolsOf(node: DrawnNode): Tool[] {
    const { tools: classes, estimates } = this.#options;
    const told = own(classes, node.id);
    const names = told === undefined ? toolNamesOf(node) : [];
    if (names.length === 0) {
      const tool = told ?? classifyTool(lastPart(node.id));
      return [{ ...usualOf(tool), ...estimateOf(estimates, node.id), tool, share: 1 }];
    }
    return names.map((name) => {
      const tool = own(classes, name) ?? classifyTool(name);
      const estimate = { ...estimateOf(estimates, node.id), ...estimateOf(estimates, name) };
      return { ...usualOf(tool), ...estimate, tool, share: 1 / names.length };
    });
  }

  /**
   * The steps of a call node: one for each class of tool that its answer calls, since a step has one. Each is taken with the
   * share of its class, and ends the task as often as the node does.
   */
  #split(id: string): Split[] {
    const all = this.#outcomesOf(id);
    const going = all.filter(({ target }) => target !== endId);
    const total = massOf(all);
    const counted = going.length > 0 ? going : all;
    const goesOn = going.length > 0 ? massOf(going) / total : 0;
    const kinds = toolClasses.filter((tool) => counted.some((outcome) => outcome.tool === tool));
    const outputTokens = own(this.#options.estimates, id)?.outputTokens ?? defaultsOf('none').outputTokens;
    return kinds.map((tool) => {
      const outcomes = counted.filter((outcome) => outcome.tool === tool);
      const mass = massOf(outcomes);
      const mean = (of: (outcome: Outcome) => number): number =>
        outcomes.reduce((sum, outcome) => sum + of(outcome) * outcome.probability, 0) / mass;
      return {
        step: {
          name: kinds.length === 1 ? id : `${id} (${tool})`,
          tool,
          outputTokens,
          observationTokens: mean((outcome) => outcome.observationTokens),
          gapSeconds: mean((outcome) => outcome.gapSeconds),
        },
        share: mass / massOf(counted),
        outcomes,
        mass,
        goesOn,
      };
    });
  }
}

interface Tool {
  readonly tool: ToolClass;
  readonly share: number;
  readonly observationTokens: number;
  readonly gapSeconds: number;
}

/** A step of a call node: `share` of its visits, `goesOn` the probability that another call follows. */
interface Split {
  readonly step: AgentStepJSON;
  readonly share: number;
  readonly outcomes: readonly Outcome[];
  readonly mass: number;
  readonly goesOn: number;
}

/** Outcomes with a tool before them; of several tools in a row the first gives the class, and what they bring adds up. */
function callTool(tool: Tool, behind: readonly Outcome[]): Outcome[] {
  return behind.map((outcome) => ({
    tool: tool.tool,
    target: outcome.target,
    probability: outcome.probability * tool.share,
    observationTokens: outcome.observationTokens + tool.observationTokens,
    gapSeconds: outcome.gapSeconds + tool.gapSeconds,
  }));
}

/** Joins outcomes with the same tool and target; what they bring is the mean. */
function merge(outcomes: readonly Outcome[]): readonly Outcome[] {
  const merged = new Map<string, Outcome>();
  for (const outcome of outcomes) {
    const key = `${outcome.tool} ${outcome.target}`;
    const before = merged.get(key);
    if (!before) {
      merged.set(key, outcome);
      continue;
    }
    const probability = before.probability + outcome.probability;
    const mean = (a: number, b: number): number => (a * before.probability + b * outcome.probability) / probability;
    merged.set(key, {
      ...before,
      probability,
      observationTokens: mean(before.observationTokens, outcome.observationTokens),
      gapSeconds: mean(before.gapSeconds, outcome.gapSeconds),
    });
  }
  return [...merged.values()];
}

function massOf(outcomes: readonly Outcome[]): number {
  return outcomes.reduce((sum, outcome) => sum + outcome.probability, 0);
}

/** Names of the tools that a node holds: LangGraph writes them into the drawing, older ones leave them on the node's data. */
function toolNamesOf({ data, metadata }: DrawnNode): string[] {
  const listed = metadata['__tools'] ?? data['tools'];
  if (!Array.isArray(listed)) return [];
  return (listed as unknown[]).flatMap((tool) => {
    const name = typeof tool === 'string' ? tool : fieldsOf(tool)['name'];
    return typeof name === 'string' ? [name] : [];
  });
}

/** By the class's name in LangChain's serialization: `lc_id` of a runnable, `id` in JSON. */
function isToolNode(data: Fields): boolean {
  const id = data['lc_id'] ?? data['id'];
  return Array.isArray(id) && id.at(-1) === 'ToolNode';
}

/** The id of a node within its subgraph. */
function lastPart(id: string): string {
  return id.slice(id.lastIndexOf(':') + 1);
}

function usualOf(tool: ToolClass): StepDefaults {
  return tool === 'none' ? unknownTool : defaultsOf(tool);
}

/** What is told about a name; fields that are undefined do not hide a default. */
function estimateOf(estimates: LangGraphOptions['estimates'], name: string): LangGraphEstimate {
  return Object.fromEntries(Object.entries(own(estimates, name) ?? {}).filter(([, value]) => value !== undefined));
}

/** An own property: options are looked up by names from outside. */
function own<T>(table: Readonly<Record<string, T>> | undefined, key: string): T | undefined {
  return table && Object.hasOwn(table, key) ? table[key] : undefined;
}
