/**
 * What is known of conversations: the tokens and block hashes of their messages, found by the messages themselves.
 *
 * A **line** is one conversation that grows: a `PromptChain` and, for each number of messages at which a prompt ended, how many tokens those were (a
 * **mark**). Marks are found by a hash over the bytes of what the prompt is made of, so a conversation finds its line whatever its client
 * says of itself, and one that goes on from an earlier point forks it. All lines together hold at most so many bytes and are at most so many, as a chain has a
 * fixed cost of some 26 KB however short it is; the line unused for longest goes first.
 */
import type { PromptChain } from '../../prompt-chain.js';
import type { PromptLine } from './types.js';

/** A point of a line at which a prompt ended. */
export interface Mark {
  readonly line: Line;
  /** Tokens up to there. */
  readonly tokens: number;
}

/** One conversation. */
export class Line implements PromptLine {
  readonly chain: PromptChain;
  readonly cacheSalt: string | undefined;
  readonly loraName: string | undefined;
  /** Its marks by key, in the order in which they came. */
  readonly marks = new Map<string, number>();
  /** Tokens of its messages; behind them may stand what asks for the answer. */
  tokens = 0;
  /** Whether going on from a mark was compared with doing everything anew. */
  verified = false;
  /** Prompts in a row of which the worker counted other tokens. */
  mismatches = 0;
  /** What it was last counted with. */
  bytes = 0;

  constructor(chain: PromptChain, of: Partial<Pick<PromptLine, 'cacheSalt' | 'loraName'>> = {}) {
    this.chain = chain;
    this.cacheSalt = of.cacheSalt;
    this.loraName = of.loraName;
  }
}

const mostMarks = 512;
/** A mark in two maps with its key. */
const markBytes = 256;

/** All lines of a model. */
export class Lines {
  readonly #byKey = new Map<string, Mark>();
  /** In the order of use, the oldest first. */
  readonly #lines = new Set<Line>();
  readonly #mostBytes: number;
  readonly #mostLines: number;
  #bytes = 0;

  constructor(most: { bytes: number; lines: number }) {
    this.#mostBytes = most.bytes;
    this.#mostLines = most.lines;
  }

  get size(): number {
    return this.#lines.size;
  }

  get bytes(): number {
    return this.#bytes;
  }

  find(key: string): Mark | undefined {
    return this.#byKey.get(key);
  }

  /** The line now has so many tokens in its chain, and its messages up to `tokens` have this key. */
  mark(line: Line, key: string, tokens: number): void {
    this.#lines.delete(line);
    this.#lines.add(line);
    line.tokens = tokens;
    const known = this.#byKey.get(key);
    if (known !== undefined) known.line.marks.delete(key);
    line.marks.set(key, tokens);
    this.#byKey.set(key, { line, tokens });
    if (line.marks.size > mostMarks) {
      const [oldest] = line.marks.keys();
      line.marks.delete(oldest as string);
      this.#byKey.delete(oldest as string);
    }
  }

  /** Counts what a line's chain has come to hold, and makes room for it. */
  resized(line: Line): void {
    const bytes = line.chain.stats().memoryBytes + line.marks.size * markBytes;
    this.#bytes += bytes - line.bytes;
    line.bytes = bytes;
    for (const oldest of this.#lines) {
      const fits = this.#bytes <= this.#mostBytes && this.#lines.size <= this.#mostLines;
      if (fits || this.#lines.size === 1) break;
      if (oldest !== line) this.#forget(oldest);
    }
  }

  #forget(line: Line): void {
    this.#lines.delete(line);
    this.#bytes -= line.bytes;
    for (const [key] of line.marks) if (this.#byKey.get(key)?.line === line) this.#byKey.delete(key);
    line.chain.close();
  }

  close(): void {
    for (const line of this.#lines) line.chain.close();
    this.#lines.clear();
    this.#byKey.clear();
    this.#bytes = 0;
  }
}
