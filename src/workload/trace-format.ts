/**
 * What the trace formats share: the interface of a reader and the checks of the fields that all of them have.
 */
import { stopReasonNumber, type WorkloadColumns } from './columns.js';
import { Malformed, type JsonObject } from './json-fields.js';
import type { RequestLog } from './request-log.js';

/** Most tokens of a prompt or an answer that the simulation takes. */
export const longestText = 2 ** 28;

/** Tokens of a block id of request lines. */
export const requestLineBlockTokens = 64;
/** Tokens of a block id of a Mooncake trace. */
export const mooncakeBlockTokens = 512;

/** What {@link readTrace} needs of a format. */
export interface TraceReader {
  readonly blockTokens: number;
  /** Requests kept so far. */
  readonly requests: number;
  /** Requests left out as copies. */
  readonly copies: number;
  /** Takes one line or document. Throws {@link Malformed}, and then keeps nothing of it. */
  add(value: JsonObject): void;
  finish(): RequestLog | WorkloadColumns;
}

/** The stop reason of a recorded answer. */
export function stopReasonOf(stop: string): number {
  if (stop === 'tool_use') return stopReasonNumber.toolUse;
  if (stop === 'end_turn' || stop === 'end') return stopReasonNumber.endTurn;
  return stopReasonNumber.unknown;
}

/** Whether a value can be a block id. */
export function isId(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

/** A partial last block may have an id, so the blocks may reach up to one block beyond the prompt. */
export function checkBlocks(blocks: number, promptTokens: number, blockTokens: number, field: string): void {
  const room = Math.ceil(promptTokens / blockTokens);
  if (blocks > room)
    throw new Malformed(
      `expected at most ${room} blocks in "${field}" for ${promptTokens} prompt tokens, found ${blocks}`,
    );
}
