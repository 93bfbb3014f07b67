/**
 * The document that holds the tables: each between two marks, so that one can be made anew without the others.
 */
import { SagaError } from '../errors.js';

/** The marks around a table's section. */
export function marksOf(table: string): readonly [begin: string, end: string] {
  return [`<!-- evaluate ${table}: begin -->`, `<!-- evaluate ${table}: end -->`];
}

/** The document with a table's section replaced; everything outside of its marks stays as it is. */
export function withSection(document: string, table: string, section: string): string {
  const [from, to] = placeOf(document, table);
  return `${document.slice(0, from)}\n${section.trim()}\n${document.slice(to)}`;
}

/**
 * Finds out before the long part whether a table has its place in the document.
 *
 * @throws SagaError `SAGA_ERR_OPTION` where a mark is missing
 */
export function checkSection(document: string, table: string): void {
  placeOf(document, table);
}

function placeOf(document: string, table: string): [from: number, to: number] {
  const [begin, end] = marksOf(table);
  const from = document.indexOf(begin);
  const to = document.indexOf(end, from);
  if (from < 0 || to < 0) {
    throw new SagaError('SAGA_ERR_OPTION', `expected evaluation.md to have the lines "${begin}" and "${end}"`);
  }
  return [from + begin.length, to];
}
