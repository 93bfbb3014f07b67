/**
 * Fields of parsed JSON, checked: each function returns the value or throws {@link Malformed} with what was expected.
 */

/** A JSON object whose fields are not checked yet. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** A piece of input that is not what its format says. The trace reader adds file and line. */
export class Malformed extends Error {}

export function object(value: unknown, what: string): JsonObject {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new Malformed(`expected ${what} to be a JSON object`);
  return value as JsonObject;
}

export function text(from: JsonObject, field: string): string {
  const value = from[field];
  if (typeof value !== 'string' || value === '') throw new Malformed(`expected "${field}" to be a non-empty string`);
  return value;
}

export function optionalText(from: JsonObject, field: string): string | undefined {
  const value = from[field];
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'string') throw new Malformed(`expected "${field}" to be a string`);
  return value;
}

export function number(from: JsonObject, field: string, lowest: number): number {
  const value = from[field];
  if (typeof value !== 'number' || !Number.isFinite(value) || value < lowest) {
    throw new Malformed(`expected "${field}" to be a number of at least ${lowest}`);
  }
  return value;
}

export function optionalNumber(from: JsonObject, field: string, lowest: number): number | undefined {
  const value = from[field];
  return value === undefined || value === null ? undefined : number(from, field, lowest);
}

export function integer(from: JsonObject, field: string, lowest: number, highest: number): number {
  const value = from[field];
  if (typeof value !== 'number' || !Number.isInteger(value) || value < lowest || value > highest) {
    throw new Malformed(`expected "${field}" to be a whole number from ${lowest} to ${highest}`);
  }
  return value;
}

export function array(from: JsonObject, field: string): readonly unknown[] {
  const value = from[field];
  if (!Array.isArray(value)) throw new Malformed(`expected "${field}" to be an array`);
  return value;
}
