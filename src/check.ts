import { SagaArgumentError } from './errors.js';

/**
 * Argument checks with messages that say what was expected.
 *
 * @internal
 */
export function checkInteger(name: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > most) {
    throw new SagaArgumentError(`${name} must be an integer from ${least} to ${most}, got ${describe(value)}`);
  }
  return value;
}

/** @internal */
export function checkOneOf<T extends string>(name: string, value: unknown, allowed: readonly T[]): number {
  const at = allowed.indexOf(value as T);
  if (at < 0) throw new SagaArgumentError(`${name} must be one of ${allowed.join(', ')}, got ${describe(value)}`);
  return at;
}

/** @internal */
export function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}...` : value);
  if (typeof value === 'object' && value !== null) return value.constructor?.name ?? 'an object';
  return String(value);
}
