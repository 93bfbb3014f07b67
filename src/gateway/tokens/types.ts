/** How a request becomes a prompt of tokens: the border between `call.ts` and what tokenises. */
import type { PromptChain } from '../../prompt-chain.js';
import type { VllmWorker } from '../../vllm/index.js';
import type { Endpoint } from '../answer.js';
import type { Body } from '../body.js';
import type { CallSignal } from '../call-signal.js';

/** A conversation whose tokens are remembered. */
export interface PromptLine {
  /** Closed when there was no more room for it. */
  readonly chain: PromptChain;
  readonly cacheSalt: string | undefined;
  readonly loraName: string | undefined;
}

export interface PromptRequest {
  /** `ids`: nothing but `token_ids`. */
  endpoint: Endpoint | 'ids';
  body: Body;
  /** Enter the hashes of blocks, so prompts with other ones share nothing. */
  cacheSalt: string | undefined;
  loraName: string | undefined;
  /** The workflow's name, where its client gives one: finds its last prompt at once. */
  workflow: string | undefined;
  /** A worker that may be asked to render; `undefined`: none is ready. */
  worker: VllmWorker | undefined;
  signal: CallSignal;
}

export interface Prompt {
  /** At least 1; an estimate where `source` is `unknown`. */
  promptTokens: number;
  /** Hashes of its full blocks; a copy. Empty where `source` is `unknown`. */
  chain: BigUint64Array;
  /** Who made tokens of it: nobody had to, the worker's endpoint, the local tokenizer. `unknown`: nobody could; it is scheduled by load alone. */
  source: 'ids' | 'worker' | 'local' | 'unknown';
  /** Tokens that were made for this request; the rest was known from the requests before. */
  tokenizedTokens: number;
  /** Blocks that were hashed for this request. */
  hashedBlocks: number;
  /** Where its tokens are, until the next prompt of the line; `undefined`: they are not kept. */
  line: PromptLine | undefined;
}

export interface PromptSource {
  /** @throws GatewayError `prompt_too_long`, `invalid_request` for a prompt that is no text and no list of ids */
  prepare(request: PromptRequest): Promise<Prompt>;
  /** The worker reports how many tokens the prompt has. */
  counted(prompt: Prompt, reported: number): void;
  close(): void;
}
