/**
 * Requests of sessions in the order in which they were read, before they are arranged into tasks.
 *
 * Trace readers and the `agent` generator append here; {@link RequestLog.arrange} then puts the sessions in the order in which
 * they are played and links the calls of each. Only columns are kept (about 90 bytes a request and 12 a run), so that a trace
 * is read in memory bounded by what it says, not by how it is written.
 */
import { createHash } from 'node:crypto';
import { GrowableColumn, WorkloadBuilder, type CallFields, type WorkloadColumns } from './columns.js';

/** One request of a session. */
export interface SessionRequest {
  /** Session. */
  session: string;
  /** Agent within the session: `main` or a sub-agent. */
  agent: string;
  /** Number within its agent, from 0. */
  number: number;
  /** Recorded start, seconds from the start of the session. */
  time: number;
  promptTokens: number;
  outputTokens: number;
  /** Duration in seconds; NaN where none was recorded. */
  seconds: number;
  /** Client time before the call, seconds. */
  gapSeconds: number;
  promptKind: number;
  stopReason: number;
  toolClass: number;
}

/** How {@link RequestLog.arrange} builds tasks. */
export interface ArrangeOptions {
  /** Longest gap kept, in seconds. Default 1,800. */
  gapCapSeconds?: number;
  /** Sessions are played in the order of the SHA-256 of their name followed by this salt. Default: no salt. */
  orderSalt?: string;
  /** Only the first sessions in that order. Default: all. */
  limit?: number;
}

const mainAgent = 'main';

/** Compares strings by code point (the order of their UTF-8 bytes). */
export function compareText(left: string, right: string): number {
  return Buffer.compare(Buffer.from(left), Buffer.from(right));
}

/** Names in the order of the SHA-256 of name + salt: fixed, and unrelated to anything the names say. */
export function shuffledByHash(names: readonly string[], salt: string): number[] {
  const digests = names.map((name) =>
    createHash('sha256')
      .update(name + salt)
      .digest('hex'),
  );
  return names
    .map((_, index) => index)
    .sort((left, right) => {
      const [a, b] = [digests[left] as string, digests[right] as string];
      return a < b ? -1 : a > b ? 1 : left - right;
    });
}

/** Sessions and their requests, append-only. */
export class RequestLog {
  private readonly sessionNumbers = new Map<string, number>();
  private readonly agentNumbers = new Map<string, number>();
  private readonly session = new GrowableColumn(Uint32Array);
  private readonly agent = new GrowableColumn(Uint32Array);
  private readonly number = new GrowableColumn(Uint32Array);
  private readonly time = new GrowableColumn(Float64Array);
  private readonly promptTokens = new GrowableColumn(Uint32Array);
  private readonly outputTokens = new GrowableColumn(Uint32Array);
  private readonly seconds = new GrowableColumn(Float64Array);
  private readonly gapSeconds = new GrowableColumn(Float64Array);
  private readonly promptKind = new GrowableColumn(Uint8Array);
  private readonly stopReason = new GrowableColumn(Uint8Array);
  private readonly toolClass = new GrowableColumn(Uint8Array);
  private readonly firstRun = new GrowableColumn(Uint32Array);
  private readonly runFirstId = new GrowableColumn(Float64Array);
  private readonly runLength = new GrowableColumn(Uint32Array);

  constructor(private readonly blockTokens: number) {
    this.agentNumbers.set(mainAgent, 0);
  }

  /** Requests so far. */
  get length(): number {
    return this.session.length;
  }

  /** Sessions so far. */
  get sessions(): number {
    return this.sessionNumbers.size;
  }

  /** Whether a session of this name was seen. */
  hasSession(name: string): boolean {
    return this.sessionNumbers.has(name);
  }

  /** Appends a request; its blocks follow through {@link addRun}. */
  add(request: SessionRequest): void {
    this.session.push(numberOf(this.sessionNumbers, request.session));
    this.agent.push(numberOf(this.agentNumbers, request.agent));
    this.number.push(request.number);
    this.time.push(request.time);
    this.promptTokens.push(request.promptTokens);
    this.outputTokens.push(request.outputTokens);
    this.seconds.push(request.seconds);
    this.gapSeconds.push(request.gapSeconds);
    this.promptKind.push(request.promptKind);
    this.stopReason.push(request.stopReason);
    this.toolClass.push(request.toolClass);
    this.firstRun.push(this.runLength.length);
  }

  /** Blocks of the newest request, behind those already added: ids `firstId` to `firstId + length - 1`. */
  addRun(firstId: number, length: number): void {
    this.runFirstId.push(firstId);
    this.runLength.push(length);
  }

  /**
   * Tasks out of sessions.
   *
   * Sessions come in the order of the SHA-256 of their names. The requests of a session are taken in the order (recorded
   * time, main agent first, number). A main-agent call follows the main-agent call before it after its own gap, and waits
   * for each sub-agent's latest call recorded between the two (gap 0). The first call of a sub-agent follows the main-agent
   * call before it after its own gap, each later one the sub-agent's call before. Calls of a sub-agent recorded before any
   * main-agent call count as the main agent's.
   */
  arrange(options: ArrangeOptions = {}): WorkloadColumns {
    const gapCap = options.gapCapSeconds ?? 1800;
    const names = [...this.sessionNumbers.keys()];
    const rowsOfSession: number[][] = names.map(() => []);
    for (let row = 0; row < this.length; ++row) (rowsOfSession[this.session.at(row)] as number[]).push(row);

    const builder = new WorkloadBuilder(this.blockTokens, ['session']);
    let threads = 0;
    const order = shuffledByHash(names, options.orderSalt ?? '').slice(0, options.limit);
    for (const session of order) {
      const rows = rowsOfSession[session] as number[];
      rows.sort(
        (a, b) =>
          this.time.at(a) - this.time.at(b) ||
          Math.min(this.agent.at(a), 1) - Math.min(this.agent.at(b), 1) ||
          this.number.at(a) - this.number.at(b) ||
          a - b,
      );
      builder.beginTask({
        name: names[session] as string,
        tenant: 0,
        taskClass: 0,
        expectedSeconds: 0,
        weight: 1,
        arrival: Number.NaN,
      });
      threads += this.arrangeSession(builder, rows, threads, gapCap);
    }
    return builder.finish();
  }

  /** Adds the calls of one session; returns how many threads it has. */
  private arrangeSession(
    builder: WorkloadBuilder,
    rows: readonly number[],
    firstThread: number,
    gapCap: number,
  ): number {
    const threads = new Map<number, number>();
    const lastOfSubAgent = new Map<number, number>();
    const awaited = new Map<number, number>(); // sub-agent -> its latest call since the main agent's latest
    let lastMain: number | undefined;
    for (const row of rows) {
      const agent = this.agent.at(row);
      const asMain = agent === 0 || lastMain === undefined;
      const call = builder.addCall(this.callFields(row, firstThread + numberOf(threads, agent)));
      const gap = Math.min(this.gapSeconds.at(row), gapCap);
      if (asMain) {
        if (lastMain !== undefined) builder.addPredecessor(lastMain, gap);
        for (const waited of [...awaited.values()].sort((a, b) => a - b)) builder.addPredecessor(waited, 0);
        awaited.clear();
        lastMain = call;
      } else {
        builder.addPredecessor(lastOfSubAgent.get(agent) ?? (lastMain as number), gap);
        lastOfSubAgent.set(agent, call);
        awaited.set(agent, call);
      }
      const end = row + 1 < this.length ? this.firstRun.at(row + 1) : this.runLength.length;
      for (let run = this.firstRun.at(row); run < end; ++run) {
        builder.addRun(this.runFirstId.at(run), this.runLength.at(run));
      }
    }
    return threads.size;
  }

  private callFields(row: number, thread: number): CallFields {
    return {
      thread,
      promptTokens: this.promptTokens.at(row),
      outputTokens: this.outputTokens.at(row),
      promptKind: this.promptKind.at(row),
      stopReason: this.stopReason.at(row),
      toolClass: this.toolClass.at(row),
      seconds: this.seconds.at(row),
      time: this.time.at(row),
      gapSeconds: this.gapSeconds.at(row),
      number: this.number.at(row),
      main: this.agent.at(row) === 0,
    };
  }
}

function numberOf<K>(numbers: Map<K, number>, key: K): number {
  let number = numbers.get(key);
  if (number === undefined) numbers.set(key, (number = numbers.size));
  return number;
}
