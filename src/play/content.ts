/**
 * The tokens of a workload's prompts and answers, made from its columns as they are needed: the same for the same workload and
 * seed, whoever asks and in whichever order.
 *
 * Block ids cover the front of a prompt: equal ids are equal tokens, other ids are other tokens. What lies behind the last id, and the
 * answer, is the content of the next call of the thread at those positions where that call *continues* this one (it has all of its
 * blocks in front and at least the tokens of its prompt and answer); else it is the call's own. So a worker that is told what to
 * answer caches answers as the simulator does (native/core/evict/page_tree.hpp, cluster mode).
 *
 * Costs: O(calls + runs) to make, O(tokens) for each prompt; nothing is kept of a prompt.
 */
import type { WorkloadColumns } from '../workload/columns.js';

/** Ids from `low` to `high`, the latter excluded. */
export interface TokenRange {
  readonly low: number;
  readonly high: number;
}

const noCall = 0xffff_ffff;

export class WorkloadContent {
  readonly columns: WorkloadColumns;
  readonly #seed: number;
  readonly #low: number;
  readonly #count: number;
  /** Per call: the call that continues it, or {@link noCall}. */
  readonly #next: Uint32Array;
  /** Per call: the call that it continues. */
  readonly #previous: Uint32Array;

  constructor(columns: WorkloadColumns, seed: number, range: TokenRange) {
    this.columns = columns;
    this.#seed = seed >>> 0;
    this.#low = range.low;
    this.#count = range.high - range.low;
    this.#next = nextCalls(columns);
    this.#previous = new Uint32Array(this.#next.length).fill(noCall);
    this.#next.forEach((next, call) => {
      if (next !== noCall) this.#previous[next] = call;
    });
  }

  /** The call that this one continues: all of its prompt is at the front of this one's. */
  previous(call: number): number | undefined {
    const before = this.#previous[call] as number;
    return before === noCall ? undefined : before;
  }

  /** Whether a call continues this one. */
  continued(call: number): boolean {
    return this.#next[call] !== noCall;
  }

  /** The prompt of a call, from position `from` on. */
  prompt(call: number, from = 0): Uint32Array {
    const tokens = new Uint32Array((this.columns.promptTokens[call] as number) - from);
    this.#fill(call, from, tokens);
    return tokens;
  }

  /** What the model is to answer. */
  answer(call: number): Uint32Array {
    const tokens = new Uint32Array(this.columns.outputTokens[call] as number);
    this.#fill(call, this.columns.promptTokens[call] as number, tokens);
    return tokens;
  }

  /** Tokens of prompt and answer from position `from` on. */
  #fill(call: number, from: number, into: Uint32Array): void {
    const end = from + into.length;
    let source = call;
    let at = this.#ofBlocks(source, from, from, into);
    for (let next = this.#next[source] as number; at < end && next !== noCall; next = this.#next[source] as number) {
      source = next;
      at = this.#ofBlocks(source, at, from, into);
    }
    // Behind the blocks of the last call of the line: its own. Ids of blocks stay below 2^53, so this is no block.
    for (; at < end; ++at) into[at - from] = this.#token(source, 0x8000_0000, at);
  }

  /** Tokens at positions from `at` on that block ids cover; returns the first position that they do not. */
  #ofBlocks(call: number, at: number, origin: number, into: Uint32Array): number {
    const { blockTokens, callFirstRun, runFirstId, runLength } = this.columns;
    const end = origin + into.length;
    let begin = 0;
    for (let run = callFirstRun[call] as number; run < (callFirstRun[call + 1] as number) && at < end; ++run) {
      const blocks = runLength[run] as number;
      const runEnd = begin + blocks * blockTokens;
      const firstId = runFirstId[run] as number;
      for (; at < runEnd && at < end; ++at) {
        const offset = at - begin;
        const id = firstId + Math.floor(offset / blockTokens);
        into[at - origin] = this.#token(id >>> 0, Math.floor(id / 0x1_0000_0000), offset % blockTokens);
      }
      begin = runEnd;
    }
    return at;
  }

  #token(low: number, high: number, position: number): number {
    let mixed = Math.imul(low ^ this.#seed, 0x9e3779b1) ^ Math.imul(high + 0x7f4a7c15, 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 15) ^ Math.imul(position + 1, 0xc2b2ae35), 0x2c1b3c6d);
    mixed = Math.imul(mixed ^ (mixed >>> 12), 0x297a2d39);
    mixed ^= mixed >>> 15;
    return this.#low + ((mixed >>> 0) % this.#count);
  }
}

function nextCalls(columns: WorkloadColumns): Uint32Array {
  const calls = columns.promptTokens.length;
  const next = new Uint32Array(calls).fill(noCall);
  const lastOfThread = new Map<number, number>();
  for (let call = 0; call < calls; ++call) {
    const thread = columns.callThread[call] as number;
    const before = lastOfThread.get(thread);
    if (before !== undefined && continues(columns, before, call)) next[before] = call;
    lastOfThread.set(thread, call);
  }
  return next;
}

function continues(columns: WorkloadColumns, call: number, next: number): boolean {
  const { promptTokens, outputTokens, callFirstRun, runFirstId, runLength } = columns;
  if ((promptTokens[next] as number) < (promptTokens[call] as number) + (outputTokens[call] as number)) return false;
  let [a, b] = [callFirstRun[call] as number, callFirstRun[next] as number];
  const [aEnd, bEnd] = [callFirstRun[call + 1] as number, callFirstRun[next + 1] as number];
  let [aOffset, bOffset] = [0, 0];
  while (a < aEnd) {
    if (b === bEnd || (runFirstId[a] as number) + aOffset !== (runFirstId[b] as number) + bOffset) return false;
    const step = Math.min((runLength[a] as number) - aOffset, (runLength[b] as number) - bOffset);
    aOffset += step;
    bOffset += step;
    if (aOffset === runLength[a]) [a, aOffset] = [a + 1, 0];
    if (bOffset === runLength[b]) [b, bOffset] = [b + 1, 0];
  }
  return true;
}
