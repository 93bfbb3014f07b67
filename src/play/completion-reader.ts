/** Reads an answer of `/v1/completions`, streamed or whole: what was used, or the error in it. */

export interface CompletionFacts {
  promptTokens: number | undefined;
  outputTokens: number | undefined;
  cachedTokens: number | undefined;
  /** In words; also where a stream ended before its end. */
  error: string | undefined;
}

/** What an event without a word of interest is told by, without decoding it. */
const words = ['"usage":{', '"usage": {', '"error"', '[DONE]'].map((text) => Buffer.from(text));
const endOfEvent = Buffer.from('\n\n');

export class CompletionReader {
  readonly #streamed: boolean;
  readonly #facts: CompletionFacts = {
    promptTokens: undefined,
    outputTokens: undefined,
    cachedTokens: undefined,
    error: undefined,
  };
  #held: Buffer[] = [];
  #done = false;

  constructor(streamed: boolean) {
    this.#streamed = streamed;
  }

  push(chunk: Buffer): void {
    if (!this.#streamed) {
      this.#held.push(chunk);
      return;
    }
    const end = chunk.lastIndexOf(endOfEvent);
    if (end < 0) {
      this.#held.push(chunk);
      return;
    }
    const whole = Buffer.concat([...this.#held, chunk.subarray(0, end)]);
    this.#held = end + 2 < chunk.length ? [chunk.subarray(end + 2)] : [];
    if (!words.some((word) => whole.includes(word))) return;
    for (const event of whole.toString('utf8').split('\n\n')) this.#event(event);
  }

  end(): CompletionFacts {
    if (this.#streamed) {
      if (!this.#done) this.#facts.error ??= 'the stream broke off';
    } else this.#read(Buffer.concat(this.#held).toString('utf8'));
    return this.#facts;
  }

  #event(event: string): void {
    if (!event.startsWith('data: ')) return;
    const data = event.slice(6);
    if (data.trim() === '[DONE]') this.#done = true;
    else if (data.includes('"usage"') || data.includes('"error"')) this.#read(data);
  }

  #read(text: string): void {
    let value: Record<string, unknown>;
    try {
      value = JSON.parse(text) as Record<string, unknown>;
    } catch {
      this.#facts.error ??= `the answer is not JSON: ${text.slice(0, 200)}`;
      return;
    }
    const error = value['error'] as { message?: unknown } | undefined;
    if (error !== undefined && error !== null)
      this.#facts.error ??= typeof error.message === 'string' ? error.message : JSON.stringify(error);
    const usage = value['usage'] as Record<string, unknown> | null | undefined;
    if (usage === undefined || usage === null) return;
    const details = usage['prompt_tokens_details'] as Record<string, unknown> | null | undefined;
    this.#facts.promptTokens = count(usage['prompt_tokens']) ?? this.#facts.promptTokens;
    this.#facts.outputTokens = count(usage['completion_tokens']) ?? this.#facts.outputTokens;
    this.#facts.cachedTokens = count(details?.['cached_tokens']) ?? this.#facts.cachedTokens;
  }
}

function count(value: unknown): number | undefined {
  return typeof value === 'number' && value >= 0 ? value : undefined;
}
