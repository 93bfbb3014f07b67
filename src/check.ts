/**
 * Argument checks of the public classes, with messages that say what was expected. They run before anything is changed.
 */
import { SagaArgumentError } from './errors.js';

/** @internal */
export function checkInteger(name: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > most) {
    throw new SagaArgumentError(`${name} must be an integer from ${least} to ${most}, got ${describe(value)}`);
  }
  return value;
}

/** @internal The place of `value` in `allowed`. */
export function checkOneOf<T extends string>(name: string, value: unknown, allowed: readonly T[]): number {
  const at = allowed.indexOf(value as T);
  if (at < 0) throw new SagaArgumentError(`${name} must be one of ${allowed.join(', ')}, got ${describe(value)}`);
  return at;
}

/**
 * A string whose UTF-8 form is its own: half of a surrogate pair has none, and two different strings must not become one.
 *
 * @internal
 */
export function checkText(name: string, value: unknown, mostBytes = Infinity): string {
  if (typeof value !== 'string') throw new SagaArgumentError(`${name} must be a string, got ${describe(value)}`);
  if (/\p{Surrogate}/u.test(value)) {
    throw new SagaArgumentError(`${name} must be well-formed Unicode, got half of a surrogate pair`);
  }
  if (3 * value.length > mostBytes && Buffer.byteLength(value) > mostBytes) {
    throw new SagaArgumentError(`${name} must have at most ${mostBytes} bytes, got ${Buffer.byteLength(value)}`);
  }
  return value;
}

/** @internal An options argument; catches `place(5)` where `place({ now: 5 })` was meant. */
export function checkOptions(options: unknown): void {
  if (typeof options !== 'object' || options === null)
    throw new SagaArgumentError(`options must be an object, got ${describe(options)}`);
}

/** @internal A value in a message: short, and never the whole of something large. */
export function describe(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}...` : value);
    case 'bigint':
      return `${value}n`;
    case 'function':
      return 'a function';
    case 'object':
      return value === null ? 'null' : (value.constructor?.name ?? 'an object');
    default:
      return String(value);
  }
}
