/**
 * The tokenizer of the emulated model: no vocabulary file, the same on every machine, and reversible.
 *
 * A token is a marker of the chat template, or one to three bytes of UTF-8. Text is packed from the left, whole characters up to
 * three bytes a token (a character of four bytes takes two tokens), so a text that grows changes its last token at most.
 *
 * | ids | meaning |
 * |---|---|
 * | 0 to 15 | {@link markers}; text never becomes one of them |
 * | 16 to 271 | one byte |
 * | 272 to 65,807 | two bytes, the first is the high one |
 * | 65,808 to 16,843,023 | three bytes |
 */

/** Markers of the chat template by name. */
export const markers = {
  unknown: 0,
  begin: 1,
  end: 2,
  system: 3,
  user: 4,
  assistant: 5,
  tool: 6,
  tools: 8,
  toolCall: 9,
  toolArguments: 10,
  toolCallEnd: 11,
} as const;

const markerTexts: readonly string[] = [
  '<|unknown|>',
  '<|begin|>',
  '<|end|>',
  '<|system|>',
  '<|user|>',
  '<|assistant|>',
  '<|tool|>',
  '<|reserved_7|>',
  '<|tools|>',
  '<|tool_call|>',
  '<|tool_arguments|>',
  '<|tool_call_end|>',
  '<|reserved_12|>',
  '<|reserved_13|>',
  '<|reserved_14|>',
  '<|reserved_15|>',
];
const firstOfOne = markerTexts.length;
const firstOfTwo = firstOfOne + 2 ** 8;
const firstOfThree = firstOfTwo + 2 ** 16;

/** Number of ids: all are below. */
export const vocabularySize: number = firstOfThree + 2 ** 24;

/** Appends the tokens of a text. O(bytes). */
export function encodeInto(text: string, out: number[]): void {
  const bytes = Buffer.from(text, 'utf8');
  const length = bytes.length;
  let at = 0;
  while (at < length) {
    let size = 0;
    // Whole characters while they fit.
    while (at + size < length) {
      const lead = bytes[at + size] as number;
      const character = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
      if (size + character > 3) break;
      size += character;
    }
    if (size === 0) {
      out.push(idOf(bytes, at, 3), idOf(bytes, at + 3, 1));
      at += 4;
    } else {
      out.push(idOf(bytes, at, size));
      at += size;
    }
  }
}

function idOf(bytes: Uint8Array, at: number, size: number): number {
  const [a = 0, b = 0, c = 0] = bytes.subarray(at, at + size);
  if (size === 1) return firstOfOne + a;
  if (size === 2) return firstOfTwo + a * 256 + b;
  return firstOfThree + a * 65536 + b * 256 + c;
}

/** The tokens of a text. */
export function encode(text: string): number[] {
  const out: number[] = [];
  encodeInto(text, out);
  return out;
}

/** The bytes of one token; a marker has none unless `withMarkers`. Ids outside the vocabulary are `unknown`. */
export function bytesOf(id: number, withMarkers = false): Buffer {
  if (id < firstOfOne || id >= vocabularySize)
    return Buffer.from(withMarkers ? (markerTexts[id] ?? (markerTexts[0] as string)) : '', 'utf8');
  if (id < firstOfTwo) return Buffer.of(id - firstOfOne);
  if (id < firstOfThree) return Buffer.of((id - firstOfTwo) >> 8, (id - firstOfTwo) & 255);
  const packed = id - firstOfThree;
  return Buffer.of(packed >> 16, (packed >> 8) & 255, packed & 255);
}

/** The text of tokens. Bytes that are no UTF-8 become U+FFFD. */
export function decode(ids: ArrayLike<number>, withMarkers = false): string {
  const parts: Buffer[] = [];
  for (let i = 0; i < ids.length; i++) parts.push(bytesOf(ids[i] as number, withMarkers));
  return Buffer.concat(parts).toString('utf8');
}

/** What one token is called where strings of tokens are wanted. */
export function tokenText(id: number): string {
  return bytesOf(id, true).toString('utf8');
}

/**
 * Pseudo-random tokens for an answer: a space and two letters each. The same for the same seed.
 *
 * @param seed any 32-bit number, e.g. of the prompt
 */
export function randomWords(seed: number, count: number, out: number[]): void {
  let state = (seed ^ 0x9e3779b9) >>> 0;
  for (let i = 0; i < count; i++) {
    // The mixing function of splitmix32.
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    mixed = (mixed ^ (mixed >>> 15)) >>> 0;
    const first = 97 + (mixed % 26);
    const second = 97 + ((mixed >>> 8) % 26);
    out.push(firstOfThree + 0x20 * 65536 + first * 256 + second);
  }
}

/** A 32-bit fingerprint of tokens (FNV-1a): the seed of their answer. */
export function fingerprint(tokens: ArrayLike<number>): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < tokens.length; i++) hash = Math.imul(hash ^ (tokens[i] as number), 0x01000193);
  return hash >>> 0;
}
