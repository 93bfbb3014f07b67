/**
 * The `agent` workload: sessions of a coding agent, drawn so that their statistics lie close to those of real ones
 * (`agent-calibration.ts`): calls of a session, prompts that grow and now and then begin anew, answers, durations, gaps by
 * stop reason, heads shared between sessions, forked and repeated conversations, a few sub-agents. Blocks are of 64 tokens.
 *
 * It stands in for a trace where there is none. What it does not have: correlation between gaps of one session, tool names,
 * and any relation between the content of a tool's result and what follows.
 *
 * The result is a {@link RequestLog}, as the trace readers make one, so that sessions are merged and linked by the same rules.
 * Session n is the same however many follow it.
 */
import { SagaError } from '../errors.js';
import * as calibration from './agent-calibration.js';
import { promptKindNumber, stopReasonNumber, toolClassNumber } from './columns.js';
import { Random, drawQuantiles, type Quantiles } from './random.js';
import { RequestLog } from './request-log.js';

/** How {@link generateAgentSessions} draws. */
export interface AgentWorkloadOptions {
  /** Number of sessions. Default 445, as many as the calibration was made on. */
  sessions?: number;
  /** Default 42. */
  seed?: number;
}

/** Tokens of a block id. */
export const agentBlockTokens = 64;

const stopValues: Record<calibration.Stop, number> = {
  toolUse: stopReasonNumber.toolUse,
  endTurn: stopReasonNumber.endTurn,
  unknown: stopReasonNumber.unknown,
};

/** Earlier prompts that can be forked or repeated: the newest of each are kept. */
const rememberedPrompts = 512;

/** Branches of a conversation that can be taken up again. */
const rememberedBranches = 4;

/**
 * Draws sessions.
 *
 * @throws SagaError `SAGA_ERR_OPTION` for a number of sessions that is not whole and positive
 */
export function generateAgentSessions(options: AgentWorkloadOptions = {}): RequestLog {
  const sessions = options.sessions ?? 445;
  if (!Number.isInteger(sessions) || sessions < 1) {
    throw new SagaError('SAGA_ERR_OPTION', `expected a whole number of sessions, at least 1, not ${sessions}`);
  }
  const root = new Random(options.seed ?? 42);
  const log = new RequestLog(agentBlockTokens);
  const world = new World();
  for (let session = 0; session < sessions; ++session) {
    drawSession(log, world, `agent-${String(session).padStart(6, '0')}`, root.fork(session));
  }
  return log;
}

/** A prompt: its tokens, and the runs of ids of its full blocks. */
class Prompt {
  private constructor(
    readonly tokens: number,
    private readonly firstIds: readonly number[],
    private readonly lengths: readonly number[],
  ) {}

  static readonly empty = new Prompt(0, [], []);

  /** The leading `tokens` of this prompt, as far as it reaches. */
  prefix(tokens: number): Prompt {
    if (tokens >= this.tokens) return this;
    let room = Math.floor(tokens / agentBlockTokens);
    const firstIds: number[] = [];
    const lengths: number[] = [];
    for (let run = 0; run < this.lengths.length && room > 0; ++run) {
      const length = Math.min(room, this.lengths[run] as number);
      firstIds.push(this.firstIds[run] as number);
      lengths.push(length);
      room -= length;
    }
    return new Prompt(tokens, firstIds, lengths);
  }

  /** This prompt and `tokens` of content that no other prompt has. */
  grown(tokens: number, world: World): Prompt {
    const total = this.tokens + tokens;
    const blocks = Math.floor(total / agentBlockTokens) - Math.floor(this.tokens / agentBlockTokens);
    if (blocks === 0) return new Prompt(total, this.firstIds, this.lengths);
    const firstId = world.newIds(blocks);
    const last = this.lengths.length - 1;
    if (last >= 0 && (this.firstIds[last] as number) + (this.lengths[last] as number) === firstId) {
      const lengths = this.lengths.slice();
      lengths[last] = (lengths[last] as number) + blocks;
      return new Prompt(total, this.firstIds, lengths);
    }
    return new Prompt(total, [...this.firstIds, firstId], [...this.lengths, blocks]);
  }

  addTo(log: RequestLog): void {
    for (let run = 0; run < this.lengths.length; ++run)
      log.addRun(this.firstIds[run] as number, this.lengths[run] as number);
  }
}

/** A branch of the tree of heads. */
class Head {
  readonly children: Head[] = [];
  members = 0;
  /** First prompts of sessions under this head that can be repeated. */
  readonly starts: Prompt[] = [];
  constructor(readonly prompt: Prompt) {}
}

/** What sessions have in common: ids given out, heads, prompts of earlier sessions. */
class World {
  private nextId = 0;
  private readonly heads = new Head(Prompt.empty);
  private readonly earlier: Prompt[] = [];
  private remembered = 0;
  private subAgentHead: Prompt | undefined;

  newIds(count: number): number {
    const first = this.nextId;
    this.nextId += count;
    return first;
  }

  /** Walks down the tree of heads, opening branches on the way. */
  drawHead(random: Random): Head {
    let head = this.heads;
    for (const level of calibration.headLevels) {
      ++head.members;
      const chosen = random.weighted([...head.children.map((child) => child.members), level.concentration]);
      let child = head.children[chosen];
      if (child === undefined) {
        const end = Math.round(drawQuantiles(random, level.endTokens));
        child = new Head(head.prompt.grown(Math.max(agentBlockTokens, end - head.prompt.tokens), this));
        head.children.push(child);
      }
      head = child;
    }
    ++head.members;
    return head;
  }

  remember(prompt: Prompt): void {
    this.earlier[this.remembered++ % rememberedPrompts] = prompt;
  }

  anyEarlier(random: Random): Prompt | undefined {
    return this.earlier.length === 0 ? undefined : this.earlier[random.integer(0, this.earlier.length - 1)];
  }

  headOfSubAgents(): Prompt {
    this.subAgentHead ??= Prompt.empty.grown(calibration.subAgents.headTokens, this);
    return this.subAgentHead;
  }
}

/** One agent on its way through a session. */
class Agent {
  private number = 0;
  constructor(
    private readonly log: RequestLog,
    private readonly session: string,
    private readonly name: string,
    private readonly random: Random,
  ) {}

  /** Records a call and returns its duration. */
  call(prompt: Prompt, time: number, gap: number, kind: number, stop: calibration.Stop): number {
    const outputTokens = Math.max(1, Math.round(drawQuantiles(this.random, calibration.outputTokens[stop])));
    const { baseSeconds, secondsPerToken, sigma } = calibration.callDuration;
    const drawn = (baseSeconds + secondsPerToken * outputTokens) * this.random.logNormal(0, sigma);
    const seconds = Math.round(drawn * 100) / 100;
    this.log.add({
      session: this.session,
      agent: this.name,
      number: this.number++,
      time,
      promptTokens: prompt.tokens,
      outputTokens,
      seconds,
      gapSeconds: gap,
      promptKind: kind,
      stopReason: stopValues[stop],
      toolClass: toolClassNumber.none,
    });
    prompt.addTo(this.log);
    return seconds;
  }
}

function drawCount(random: Random, quantiles: Quantiles): number {
  return Math.max(1, Math.round(drawQuantiles(random, quantiles)));
}

function drawTokens(random: Random, quantiles: Quantiles): number {
  return Math.max(0, Math.round(drawQuantiles(random, quantiles, agentBlockTokens)));
}

/** The first prompt of a session. */
function drawStart(random: Random, world: World, large: boolean): Prompt {
  const drawn = drawQuantiles(random, large ? calibration.largeStartTokens : calibration.smallStartTokens);
  const wanted = Math.min(calibration.longestPromptTokens, Math.round(drawn));
  if (large && random.chance(calibration.forkedStartShare)) {
    const origin = world.anyEarlier(random);
    if (origin !== undefined && origin.tokens > agentBlockTokens) {
      const kept = origin.prefix(wanted);
      const room = calibration.longestPromptTokens - kept.tokens;
      return kept.grown(Math.min(room, drawTokens(random, calibration.growthTokens.later)), world);
    }
  }
  const head = world.drawHead(random);
  if (!large && random.chance(calibration.repeatedStartShare) && head.starts.length > 0) {
    return head.starts[random.integer(0, head.starts.length - 1)] as Prompt;
  }
  const shared = head.prompt.prefix(wanted - agentBlockTokens);
  const start = shared.grown(wanted - shared.tokens, world);
  if (!large) head.starts.push(start);
  return start;
}

function drawSession(log: RequestLog, world: World, name: string, random: Random): void {
  const large = random.chance(calibration.largeStartShare);
  const calls = drawCount(random, large ? calibration.callsOfLargeStart : calibration.callsOfSmallStart);
  let prompt = drawStart(random, world, large);
  const usual = drawQuantiles(random, calibration.contextLimitTokens);
  const limit = Math.min(calibration.longestPromptTokens, Math.max(usual, prompt.tokens * 1.05));
  const main = new Agent(log, name, 'main', random);
  const spawnAt = drawSpawns(random, calls);

  let branches = [prompt]; // the current one first, then by recency
  let stop: calibration.Stop = 'toolUse';
  let step = 'extend' as (typeof calibration.stepKinds)[number];
  let time = 0;
  let gap = 0;
  let kind: number = promptKindNumber.start;
  for (let call = 0; call < calls; ++call) {
    let busyUntil = 0;
    if (call > 0) {
      const brings = random.chance(calibration.toolPromptShare[stop]) ? 'tool' : 'user';
      kind = brings === 'tool' ? promptKindNumber.tool : promptKindNumber.user;
      gap = Math.round(drawQuantiles(random, calibration.gapSeconds[stop][brings]));
      const spawned = stop === 'toolUse' ? (spawnAt.get(call) ?? 0) : 0;
      for (let agent = 0; agent < spawned; ++agent) {
        busyUntil = Math.max(busyUntil, drawSubAgent(log, world, name, `agent-${call}-${agent}`, random, time));
      }
      gap = Math.max(gap, Math.ceil(busyUntil - time));
      time += gap;
      step = calibration.stepKinds[random.weighted(calibration.stepTransitions[step])] as typeof step;
      if (step === 'return' && branches.length === 1) step = 'fresh'; // the other branch has to begin first
      const growth = calibration.growthTokens[call <= calibration.earlySteps ? 'early' : 'later'];
      prompt = nextPrompt(random, world, branches, step, growth, limit);
      if (step === 'extend') branches[0] = prompt;
      else
        branches = [prompt, ...branches.filter((_, at) => step !== 'return' || at !== 1)].slice(0, rememberedBranches);
      const last = call === calls - 1;
      const next = calibration.stops[random.weighted(calibration.stopTransitions[stop])] as calibration.Stop;
      stop = !last ? next : random.chance(calibration.lastStopEndTurnShare) ? 'endTurn' : 'toolUse';
    }
    time += main.call(prompt, time, gap, kind, stop);
  }
  world.remember(prompt);
}

function nextPrompt(
  random: Random,
  world: World,
  branches: readonly Prompt[],
  step: (typeof calibration.stepKinds)[number],
  growth: Quantiles,
  limit: number,
): Prompt {
  const current = branches[0] as Prompt;
  if (step === 'return') {
    const taken = branches[1] as Prompt;
    const next = taken.grown(drawTokens(random, calibration.returnTokens), world);
    if (next.tokens <= limit) return next;
    return taken;
  }
  let full = false;
  if (step === 'extend') {
    const next = current.grown(drawTokens(random, growth), world);
    if (next.tokens <= limit) return next;
    full = true;
  }
  const ratio = drawQuantiles(random, full ? calibration.compactedRatio : calibration.freshRatio);
  const wanted = Math.max(agentBlockTokens, Math.round(Math.min(limit, current.tokens * ratio)));
  const kept = current.prefix(Math.min(drawTokens(random, calibration.freshKeptTokens), wanted));
  return kept.grown(wanted - kept.tokens, world);
}

/** Calls before which sub-agents run, and how many at once. */
function drawSpawns(random: Random, calls: number): Map<number, number> {
  const spawns = new Map<number, number>();
  if (calls < 2 || !random.chance(calibration.subAgents.sessionShare)) return spawns;
  const { low, high } = calibration.subAgents.perSession;
  let left = random.integer(low, high);
  while (left > 0) {
    const together = Math.min(left, random.integer(1, calibration.subAgents.atOnce));
    spawns.set(random.integer(1, calls - 1), together);
    left -= together;
  }
  return spawns;
}

/** Draws a sub-agent that starts at `time`; returns the end of its last call. */
function drawSubAgent(
  log: RequestLog,
  world: World,
  session: string,
  name: string,
  random: Random,
  start: number,
): number {
  const agent = new Agent(log, session, name, random);
  const calls = drawCount(random, calibration.subAgents.calls);
  const head = world.headOfSubAgents();
  let prompt = head.grown(
    Math.max(1, Math.round(drawQuantiles(random, calibration.subAgents.startTokens)) - head.tokens),
    world,
  );
  let time = start;
  for (let call = 0; call < calls; ++call) {
    let gap = 0;
    if (call > 0) {
      gap = Math.min(60, Math.round(drawQuantiles(random, calibration.gapSeconds.toolUse.tool)));
      prompt = prompt.grown(drawTokens(random, calibration.growthTokens.early), world);
    }
    time += gap;
    const stop = call === calls - 1 ? 'endTurn' : 'toolUse';
    time += agent.call(prompt, time, gap, call === 0 ? promptKindNumber.start : promptKindNumber.tool, stop);
  }
  return time;
}
