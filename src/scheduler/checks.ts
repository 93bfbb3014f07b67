/** Checks that the classes of the scheduler share, and its errors. They run before anything is changed. */
import native from '../native.cjs';
import { checkInteger, describe } from '../check.js';
import { SagaArgumentError, errorOfStatus, type SagaError } from '../errors.js';

export const twoTo32 = 2 ** 32;
const twoTo64 = 2n ** 64n;
/** Most tokens of a prompt. */
export const mostTokens = 2 ** 31;
const mostHashes = 2 ** 24;

export type Writable<T> = { -readonly [Key in keyof T]: T[Key] };

/** The error for a negative answer of the native side: what was wanted, and why not. */
export function refused(answer: number, what: string): SagaError {
  return errorOfStatus(-answer, `${what} (${native.statusText(-answer)})`);
}

export function checkHashes(name: string, value: unknown): BigUint64Array {
  if (!(value instanceof BigUint64Array))
    throw new SagaArgumentError(`${name} must be a BigUint64Array of block hashes, got ${describe(value)}`);
  if (value.length > mostHashes)
    throw new SagaArgumentError(`${name} must have at most ${mostHashes} hashes, got ${value.length}`);
  return value;
}

export function checkHash(name: string, value: unknown): bigint {
  if (typeof value !== 'bigint' || value < 0n || value >= twoTo64)
    throw new SagaArgumentError(`${name} must be a bigint from 0n to 2n ** 64n - 1n, got ${describe(value)}`);
  return value;
}

export function checkTokens(tokens: unknown): Uint32Array {
  if (tokens instanceof Uint32Array) return tokens;
  if (!Array.isArray(tokens))
    throw new SagaArgumentError(`tokens must be a Uint32Array or an array of token ids, got ${describe(tokens)}`);
  const ids = new Uint32Array(tokens.length);
  for (let i = 0; i < ids.length; ++i) ids[i] = checkInteger('a token id', tokens[i], 0, twoTo32 - 1);
  return ids;
}
