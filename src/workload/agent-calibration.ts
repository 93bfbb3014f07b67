/**
 * What the `agent` workload is calibrated to: quantiles and transition counts measured on the trace set `claude-code-v6`,
 * real sessions of a coding agent (445 sessions, 26,444 requests; github.com/callanjfox/kv-cache-tester, commit 7647c82d,
 * Apache-2.0, copies removed and double sends merged). Numbers only; no content of the trace is in them.
 *
 * Tokens and seconds as recorded; a block is 64 tokens. "Start small / large": the first prompt of a session below 32,000
 * tokens (a fresh conversation) or not (a resumed or forked one).
 */
import type { Quantiles } from './random.js';

/** Share of sessions that start with a large prompt (138 of 445). */
export const largeStartShare = 0.31;

/** Main-agent calls of a session that starts small. */
export const callsOfSmallStart: Quantiles = [
  [0, 3], [0.01, 4], [0.05, 6], [0.1, 7], [0.25, 19], [0.5, 61], [0.75, 96], [0.9, 145], [0.95, 169], [0.99, 215], [1, 336],
]; // prettier-ignore

/** Main-agent calls of a session that starts large. */
export const callsOfLargeStart: Quantiles = [
  [0, 3], [0.05, 4], [0.1, 5], [0.25, 11], [0.5, 30], [0.75, 57], [0.9, 92], [0.95, 105], [0.98, 144], [1, 167],
]; // prettier-ignore

/** First prompt of a session that starts small, tokens. */
export const smallStartTokens: Quantiles = [
  [0, 6_697], [0.01, 9_031], [0.05, 11_974], [0.1, 12_276], [0.25, 14_487], [0.5, 18_445], [0.75, 19_961], [0.9, 21_408],
  [0.95, 23_861], [0.98, 26_270], [1, 30_874],
]; // prettier-ignore

/** First prompt of a session that starts large, tokens. */
export const largeStartTokens: Quantiles = [
  [0, 32_755], [0.05, 36_207], [0.1, 40_479], [0.25, 60_118], [0.5, 79_920], [0.75, 115_199], [0.9, 156_689], [0.95, 219_724],
  [0.99, 358_314], [1, 509_308],
]; // prettier-ignore

/** Share of small starts whose first prompt repeats that of an earlier session with the same head. */
export const repeatedStartShare = 0.1;

/** Share of large starts that go on from the prompt of an earlier session. */
export const forkedStartShare = 0.13;

/**
 * Heads (tool definitions, system prompt, project instructions) that sessions share form a tree. At each level a session
 * joins a known branch in proportion to how many did, or opens a new one with the weight `concentration`; `end` is where the
 * level's shared tokens end. 30, 130 and 213 branches are seen at 20, 150 and 230 blocks in 445 sessions.
 */
export const headLevels: readonly { concentration: number; endTokens: Quantiles }[] = [
  { concentration: 3.5, endTokens: [[0, 64], [0.1, 1_280], [1, 3_200]] }, // prettier-ignore
  { concentration: 1.6, endTokens: [[0, 5_700], [0.3, 8_900], [1, 11_000]] }, // prettier-ignore
  { concentration: 0.5, endTokens: [[0, 13_500], [0.5, 15_100], [0.9, 16_500], [1, 20_000]] }, // prettier-ignore
];

/** Steps of a session that count as early: contexts grow faster while the agent reads itself in. */
export const earlySteps = 10;

/** Tokens that a call adds to the prompt of the one before when it simply goes on. */
export const growthTokens: Readonly<Record<'early' | 'later', Quantiles>> = {
  early: [
    [0, 0], [0.01, 96], [0.05, 147], [0.1, 183], [0.25, 361], [0.5, 895], [0.75, 3_268], [0.9, 8_726], [0.95, 15_324],
    [0.98, 31_002], [0.99, 40_434], [0.995, 55_872], [1, 170_242],
  ],
  later: [
    [0, 0], [0.01, 98], [0.05, 152], [0.1, 191], [0.25, 326], [0.5, 667], [0.75, 1_678], [0.9, 4_028], [0.95, 6_205],
    [0.98, 9_652], [0.99, 13_689], [0.995, 17_133], [1, 124_633],
  ],
}; // prettier-ignore

/** Kinds of step: the conversation goes on, an earlier branch of it is taken up again, or a new branch begins. */
export const stepKinds = ['extend', 'return', 'fresh'] as const;

/**
 * Counts of step kinds after a step of each kind: branches come in bursts. New branches also come from compaction, and where
 * an earlier branch is wanted and there is none; so fewer of them are drawn after `extend` than the 399 that were counted.
 */
export const stepTransitions: Readonly<Record<(typeof stepKinds)[number], readonly [number, number, number]>> = {
  extend: [22_217, 297, 20],
  return: [317, 1_193, 23],
  fresh: [442, 76, 169],
};

/** Tokens added to an earlier branch when it is taken up again. */
export const returnTokens: Quantiles = [[0, 0], [0.35, 0], [0.5, 384], [0.75, 2_944], [0.9, 15_936], [0.95, 45_888], [1, 133_824]]; // prettier-ignore

/** Leading tokens that a new branch keeps of the prompt before it. */
export const freshKeptTokens: Quantiles = [
  [0, 0], [0.05, 0], [0.1, 2_496], [0.25, 8_704], [0.5, 14_656], [0.75, 15_424], [0.9, 17_664], [0.95, 38_272], [1, 153_792],
]; // prettier-ignore

/** Tokens of the first prompt of a new branch, as a multiple of the prompt before it (mostly the same prompt, rewritten). */
export const freshRatio: Quantiles = [
  [0, 0.11], [0.05, 0.18], [0.1, 0.27], [0.25, 0.65], [0.35, 0.97], [0.5, 1.003], [0.75, 1.057], [0.9, 1.347], [0.95, 2.223],
  [1, 9.371],
]; // prettier-ignore

/** The same where the prompt has reached the limit of the context (compaction). */
export const compactedRatio: Quantiles = [[0, 0.135], [0.1, 0.163], [0.25, 0.212], [0.5, 0.585], [0.75, 0.872], [1, 1]]; // prettier-ignore

/** Context at which a session is compacted, tokens. */
export const contextLimitTokens: Quantiles = [
  [0, 120_000], [0.25, 150_000], [0.5, 156_000], [0.85, 172_000], [0.95, 200_000], [1, 530_000],
]; // prettier-ignore

/**
 * Longest prompt that is drawn: 0.1 % of the recorded ones are longer, up to 526,123 tokens, but do not fit into the KV room of
 * a four-GPU worker.
 */
export const longestPromptTokens = 400_000;

/** Stop reasons, in the order of the counts below. */
export const stops = ['toolUse', 'endTurn', 'unknown'] as const;

/** Name of a stop reason. */
export type Stop = (typeof stops)[number];

/** Counts of the stop reason of a call after the stop reason of the call before. */
export const stopTransitions: Readonly<Record<Stop, readonly [number, number, number]>> = {
  toolUse: [22_494, 914, 376],
  endTurn: [806, 239, 18],
  unknown: [387, 37, 307],
};

/** Share of sessions whose last recorded answer ended its turn. */
export const lastStopEndTurnShare = 0.3;

/** Share of calls whose prompt brings a tool result, by the stop reason before. */
export const toolPromptShare: Readonly<Record<Stop, number>> = {
  toolUse: 22_840 / 23_784,
  endTurn: 213 / 1_063,
  unknown: 494 / 731,
};

/** Tokens of the answer by stop reason. */
export const outputTokens: Readonly<Record<Stop, Quantiles>> = {
  toolUse: [
    [0, 35], [0.01, 70], [0.05, 93], [0.1, 110], [0.25, 141], [0.5, 211], [0.75, 391], [0.9, 834], [0.95, 1_408],
    [0.98, 2_481], [0.99, 3_643], [0.995, 5_327], [1, 13_736],
  ],
  endTurn: [
    [0, 2], [0.01, 15], [0.05, 32], [0.1, 57], [0.25, 204], [0.5, 442], [0.75, 710], [0.9, 1_839], [0.95, 2_723],
    [0.99, 4_242], [1, 10_012],
  ],
  unknown: [[0, 1], [0.05, 76], [0.1, 96], [0.25, 152], [0.5, 225], [0.75, 304], [0.9, 708], [0.95, 1_519], [1, 3_403]],
}; // prettier-ignore

/** Duration of a call: (base + perToken x answer) x log-normal(0, sigma). */
export const callDuration = { baseSeconds: 1.7, secondsPerToken: 0.0162, sigma: 0.29 } as const;

/** Client time before a call by the stop reason before it and what its prompt brings, seconds. */
export const gapSeconds: Readonly<Record<Stop, Readonly<Record<'tool' | 'user', Quantiles>>>> = {
  toolUse: {
    tool: [
      [0, 0], [0.486, 0], [0.487, 1], [0.655, 1], [0.7, 2], [0.75, 5], [0.8, 11], [0.85, 30], [0.9, 82], [0.95, 169],
      [0.97, 300], [0.98, 515], [0.99, 957], [0.995, 2_354], [1, 37_410],
    ],
    user: [
      [0, 0], [0.1, 0], [0.25, 35], [0.5, 52], [0.6, 66], [0.7, 91], [0.75, 107], [0.8, 130], [0.85, 170], [0.9, 235],
      [0.95, 322], [0.98, 640], [0.99, 1_218], [1, 10_788],
    ],
  },
  endTurn: {
    tool: [
      [0, 0], [0.25, 0], [0.5, 155], [0.6, 403], [0.7, 1_464], [0.75, 1_900], [0.8, 2_822], [0.85, 6_203], [0.9, 19_515],
      [0.95, 71_876], [1, 929_407],
    ],
    user: [
      [0, 0], [0.1, 0], [0.25, 8], [0.5, 146], [0.6, 234], [0.7, 415], [0.75, 591], [0.8, 804], [0.85, 1_129], [0.9, 1_928],
      [0.95, 2_961], [0.98, 7_247], [0.99, 12_368], [1, 96_664],
    ],
  },
  unknown: {
    tool: [[0, 0], [1, 0]],
    user: [[0, 0], [0.93, 0], [0.95, 1], [0.99, 4], [1, 7]],
  },
}; // prettier-ignore

/** Sub-agents: 40 in 14 of 445 sessions, 421 calls, at most 3 at once, most of them exploring on a smaller model. */
export const subAgents = {
  sessionShare: 14 / 445,
  perSession: { low: 1, high: 5 },
  atOnce: 3,
  calls: [[0, 2], [0.25, 6], [0.5, 9], [0.75, 14], [1, 27]] as Quantiles, // prettier-ignore
  startTokens: [[0, 8_000], [0.5, 10_900], [1, 14_000]] as Quantiles, // prettier-ignore
  /** Shared by all sub-agents. */
  headTokens: 6_720,
} as const;
