/**
 * What is known of conversations: the tokens and block hashes of their messages, found by the messages themselves.
 *
 * A **line** is one conversation that grows: a `PromptChain` and, for each number of messages at which a prompt ended, how many tokens those were (a
 * **mark**). Marks are found by a hash over the bytes of what the prompt is made of, so a conversation finds its line whatever its client
 * says of itself, and one that goes on from an earlier point forks it. All lines together hold at most so many tokens; the line unused for longest goes first.
 */
import type { PromptChain } from '../../prompt-chain.js';

/** A point of a line at which a prompt ended. */
export interface Mark {
  readonly line: Line;
  /** Tokens up to there. */
  readonly tokens: number;
}

/** One conversation. */
export class Line {
  readonly chain: PromptChain;
  /** Its marks by key, in the order in which they came. */
  readonly marks = new Map<string, number>();
  /** Tokens of its messages; behind them may stand what asks for the answer. */
  tokens = 0;
  /** Whether going on from a mark was compared with doing everything anew. */
  verified = false;

  constructor(chain: PromptChain) {
    this.chain = chain;
  }
}

const mostMarks = 512;

/** All lines of a model. */
export class Lines {
  readonly #byKey = new Map<string, Mark>();
  /** In the order of use, the oldest first. */
  readonly #lines = new Set<Line>();
  readonly #mostTokens: number;
  #tokens = 0;

  constructor(mostTokens: number) {
    this.#mostTokens = mostTokens;
  }

  get size(): number {
    return this.#lines.size;
  }

  get tokens(): number {
    return this.#tokens;
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
  resized(line: Line, before: number): void {
    this.#tokens += line.chain.length - before;
    for (const oldest of this.#lines) {
      if (this.#tokens <= this.#mostTokens || this.#lines.size === 1) break;
      if (oldest !== line) this.#forget(oldest);
    }
  }

  #forget(line: Line): void {
    this.#lines.delete(line);
    this.#tokens -= line.chain.length;
    for (const [key] of line.marks) if (this.#byKey.get(key)?.line === line) this.#byKey.delete(key);
    line.chain.close();
  }

  close(): void {
    for (const line of this.#lines) line.chain.close();
    this.#lines.clear();
    this.#byKey.clear();
    this.#tokens = 0;
  }
}
