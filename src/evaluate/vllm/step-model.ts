/**
 * The step times of `a100-tp4` for servers that sleep instead of computing, and for the scheduler in front of them.
 *
 * The figures are those of `native/core/sim/data/step_time.inc` (a test compares them). **Grain**: one token stands for `grain` tokens
 * and one step for as many steps, as `native/core/sim/step_time.hpp` defines it, so that prompts and answers a quarter as long take
 * the time of whole ones.
 */
import type { StepSeconds } from '../../scheduler/options.js';

/** Milliseconds of a step by its tokens. */
export const a100StepMilliseconds: readonly (readonly [tokens: number, milliseconds: number])[] = [
  [1, 27.8],
  [16, 36.2],
  [64, 37.4],
  [128, 42.3],
  [256, 65.0],
  [512, 110.5],
  [1024, 221.0],
  [2048, 391.1],
  [4096, 761.3],
];
/** Milliseconds for a pair of tokens that prefill compares, and for a token of context that a decoding call reads. */
export const a100AttentionMilliseconds = { pair: 4.7e-6, context: 7.8e-5 } as const;

/** As `python/vllm_testing/step_time.py` takes it, in seconds. */
export interface ServerStepModel {
  per_context_token: number;
  per_prefill_pair: number;
  by_tokens: [tokens: number, seconds: number][];
}

export function serverStepModel(grain: number): ServerStepModel {
  return {
    per_context_token: (a100AttentionMilliseconds.context * grain * grain) / 1000,
    per_prefill_pair: (a100AttentionMilliseconds.pair * grain * grain) / 1000,
    by_tokens: a100StepMilliseconds.map(([tokens, milliseconds]) => [tokens, (milliseconds * grain) / 1000]),
  };
}

/** The slopes that the simulator's scheduler starts from: between 1 and 32 decoding calls, and chunks of 256 to 1,024 tokens. */
export function schedulerStepSeconds(grain: number): Required<StepSeconds> {
  const model = serverStepModel(grain);
  const at = (tokens: number): number => interpolated(model.by_tokens, tokens);
  return {
    base: at(1),
    perCall: (at(32) - at(1)) / 31,
    perContextToken: model.per_context_token,
    perPrefillToken: (at(1024) - at(256)) / 768,
    perPrefillPair: model.per_prefill_pair,
  };
}

function interpolated(table: readonly (readonly [number, number])[], tokens: number): number {
  const after = Math.max(
    1,
    table.findIndex(([most]) => tokens <= most),
  );
  const [[low, begin], [high, end]] = [table[after - 1], table[after]] as [[number, number], [number, number]];
  return begin + ((end - begin) * (tokens - low)) / (high - low);
}
