/**
 * Checks of what comes in as JSON: each names the path of the field that is wrong and says what was expected.
 */
import { describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';

/** @internal */
export type Fields = Readonly<Record<string, unknown>>;

/** @internal The longest name, in characters (code points). */
export const mostNameLength = 200;

/** @internal The path of a field below another: `edges[3].to`, `start["write code"]`. */
export function below(path: string, field: string): string {
  if (!/^[A-Za-z_$][\w$]*$/.test(field)) return `${path}[${describe(field)}]`;
  return path === '' ? field : `${path}.${field}`;
}

/** @internal An object with no field but these; fields that are undefined count as absent. */
export function checkFields(path: string, value: unknown, known: readonly string[], needed: readonly string[]): Fields {
  const fields = checkObject(path, value);
  for (const field of Object.keys(fields)) {
    if (!known.includes(field)) {
      throw new SagaArgumentError(`${below(path, field)} is not known; expected ${known.join(', ')}`);
    }
  }
  for (const field of needed) {
    if (fields[field] === undefined) throw new SagaArgumentError(`${below(path, field)} is missing`);
  }
  return fields;
}

/** @internal */
export function checkObject(path: string, value: unknown): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new SagaArgumentError(`${path === '' ? 'the value' : path} must be an object, got ${describe(value)}`);
  }
  return value as Fields;
}

/** @internal */
export function checkArray(path: string, value: unknown, least: number, most: number): readonly unknown[] {
  if (!Array.isArray(value)) throw new SagaArgumentError(`${path} must be an array, got ${describe(value)}`);
  if (value.length < least || value.length > most) {
    throw new SagaArgumentError(`${path} must have ${least} to ${most} entries, got ${value.length}`);
  }
  return value as readonly unknown[];
}

/** @internal A name: 1 to 200 characters. */
export function checkName(path: string, value: unknown): string {
  if (typeof value !== 'string') throw new SagaArgumentError(`${path} must be a string, got ${describe(value)}`);
  const length = value.length <= mostNameLength ? value.length : [...value].length;
  if (length < 1 || length > mostNameLength) {
    throw new SagaArgumentError(`${path} must have 1 to ${mostNameLength} characters, got ${length}`);
  }
  return value;
}

/** @internal */
export function checkString(path: string, value: unknown): string {
  if (typeof value !== 'string') throw new SagaArgumentError(`${path} must be a string, got ${describe(value)}`);
  return value;
}

/** @internal */
export function checkNumber(path: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !(value >= least && value <= most)) {
    throw new SagaArgumentError(`${path} must be a number from ${least} to ${most}, got ${describe(value)}`);
  }
  return value + 0; // -0 becomes 0
}
