/**
 * Messages of the directive channel, as docs/directives.md has them: making and signing them, checking and reading answers. No I/O.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import { stopReasons, toolClasses, type StopReason, type ToolClass } from '../scheduler/vocabulary.js';
import { directiveStatuses, type DirectiveStatus } from './metrics.js';
import type { RequestDirectives, VllmWorker } from './vllm-worker.js';

/** Longest message, either way. */
export const mostMessageBytes = 2 ** 20;
const mostOutcomes = 4096;
const signatureBytes = 32;

/** Which blocks a directive is about. */
export type DirectiveTarget =
  /** The engine's own block hashes in hex, a chain from its root. */
  | { hashes: readonly string[] }
  /** The full blocks of a prompt. */
  | { tokenIds: ArrayLike<number>; cacheSalt?: string; loraName?: string }
  /** What a request uses that runs or has just ended; without so many leading blocks, which are others' too. */
  | { requestId: string; fromBlock?: number }
  /** The newest call of a thread, as `saga.call` named it. */
  | { thread: number };

/** What became of a directive. */
export interface DirectiveOutcome {
  /** `pending` only where it is asked for while it lasts. */
  status: DirectiveStatus;
  /** As the worker says, see docs/directives.md; by this side: `unreachable`, `queue` (too many are open), `no answer`, `lost`. */
  reason?: string;
  blocks?: number;
  missing?: number;
}

/** Of the engine behind the channel. */
export interface DirectiveStatusReport extends DirectiveOutcome {
  strength?: 'policy' | 'leases' | 'none';
  strengthReason?: string;
  vllmVersion?: string;
  connectorVersion?: string;
  blockSize?: number;
  /** What it takes from requests. */
  requestDirectives: RequestDirectives | undefined;
  /** All further members, as they came. */
  fields: Readonly<Record<string, unknown>>;
}

/** A call has ended: what comes next of its thread. */
export interface EndedCall {
  /** Where it ran. */
  worker: VllmWorker;
  /** As `saga.call` named it. */
  thread: number;
  stop: StopReason;
  tool?: ToolClass;
  /** Nothing follows. */
  sessionEnd?: boolean;
  /** Until the thread's next call, in scheduler time. */
  expectedSeconds?: number;
}

/** An action as it is sent. */
export interface Action {
  action_id: string;
  action_type: string;
  action_version: '1.0';
  payload: Readonly<Record<string, unknown>>;
}

/** One outcome of an answer. */
export interface AnsweredAction {
  actionId: string;
  outcome: DirectiveOutcome;
  fields: Readonly<Record<string, unknown>>;
}

export interface Answer {
  messageId: string;
  epoch: number | undefined;
  outcomes: AnsweredAction[];
}

export function targetPayload(target: DirectiveTarget): Record<string, unknown> {
  if ('hashes' in target) return { hashes: [...target.hashes] };
  if ('requestId' in target) {
    const { requestId, fromBlock = 0 } = target;
    return { request_id: requestId, ...(fromBlock === 0 ? {} : { from_block: fromBlock }) };
  }
  if ('thread' in target) return { thread: target.thread };
  const { tokenIds, cacheSalt, loraName } = target;
  return {
    token_ids: Array.from(tokenIds),
    ...(cacheSalt === undefined || cacheSalt === '' ? {} : { cache_salt: cacheSalt }),
    ...(loraName === undefined || loraName === '' ? {} : { lora_name: loraName }),
  };
}

export function endedPayload(call: EndedCall): Record<string, unknown> {
  return {
    thread: call.thread,
    ...(call.stop === 'unknown' ? {} : { stop_reason: stopWords[stopReasons.indexOf(call.stop)] }),
    tool_class: toolClasses.indexOf(call.tool ?? 'none'),
    session_end: call.sessionEnd ?? false,
    ...(call.expectedSeconds === undefined ? {} : { expected_seconds: call.expectedSeconds }),
  };
}
const stopWords = ['', 'tool_use', 'end_turn'];

function signatureOf(body: Uint8Array, key: string): Buffer {
  return createHmac('sha256', key).update(body).digest();
}

/** The frames of a message. */
export function framesOf(
  message: {
    messageId: string;
    epoch: number | undefined;
    expiresIn: number;
    time: number;
    actions: readonly Action[];
  },
  key: string | undefined,
): Buffer[] {
  const body = Buffer.from(
    JSON.stringify({
      protocol_version: '0.1',
      message_id: message.messageId,
      ...(message.epoch === undefined ? {} : { epoch: message.epoch }),
      expires_in: message.expiresIn,
      time: message.time,
      actions: message.actions,
    }),
  );
  return key === undefined ? [body] : [body, signatureOf(body, key)];
}

/** An answer, or what is wrong with it. */
export function answerOf(frames: readonly Uint8Array[], key: string | undefined): Answer | 'unsigned' | 'malformed' {
  const [body, signature] = frames;
  if (body === undefined || body.length > mostMessageBytes) return 'malformed';
  if (key !== undefined) {
    if (frames.length !== 2 || signature?.length !== signatureBytes) return 'unsigned';
    if (!timingSafeEqual(signature, signatureOf(body, key))) return 'unsigned';
  }
  let given: unknown;
  try {
    given = JSON.parse(Buffer.from(body.buffer, body.byteOffset, body.length).toString('utf8'));
  } catch {
    return 'malformed';
  }
  if (!isObject(given) || !isText(given.message_id) || !Array.isArray(given.outcomes)) return 'malformed';
  if (given.outcomes.length > mostOutcomes) return 'malformed';
  const outcomes: AnsweredAction[] = [];
  for (const one of given.outcomes as unknown[]) {
    if (!isObject(one) || !isText(one.action_id)) return 'malformed';
    if (!directiveStatuses.includes(one.status as DirectiveStatus)) return 'malformed';
    outcomes.push({
      actionId: one.action_id,
      outcome: {
        status: one.status as DirectiveStatus,
        ...(isText(one.reason) ? { reason: one.reason } : {}),
        ...(isCount(one.blocks) ? { blocks: one.blocks } : {}),
        ...(isCount(one.missing) ? { missing: one.missing } : {}),
      },
      fields: one,
    });
  }
  return { messageId: given.message_id, epoch: isCount(given.epoch) ? given.epoch : undefined, outcomes };
}

/** The answer to `saga.status`. Its members lie beside those of every outcome, or under `state`. */
export function statusReport(
  outcome: DirectiveOutcome,
  fields: Readonly<Record<string, unknown>>,
): DirectiveStatusReport {
  const state = isObject(fields.state) ? fields.state : fields;
  const strength = (['policy', 'leases', 'none'] as const).find((one) => one === state.strength);
  return {
    ...outcome,
    ...(strength === undefined ? {} : { strength }),
    ...(strength !== undefined && isText(state.reason) ? { strengthReason: state.reason } : {}),
    ...(isText(state.vllm_version) ? { vllmVersion: state.vllm_version } : {}),
    ...(isText(state.connector_version) ? { connectorVersion: state.connector_version } : {}),
    ...(isCount(state.block_size) ? { blockSize: state.block_size } : {}),
    requestDirectives: strength === undefined || strength === 'none' ? undefined : requestDirectivesOf(state),
    fields: state,
  };
}

/** As `saga.status` tells. Of the members that are read the first one that is known here. */
function requestDirectivesOf(state: Readonly<Record<string, unknown>>): RequestDirectives | undefined {
  const { request_members: members, request_actions: types } = state;
  if (!Array.isArray(members) || !Array.isArray(types)) return undefined;
  const member = (['kv_hints', 'kv_transfer_params'] as const).find((one) => members.includes(one));
  const known = (types as unknown[]).filter((type) => isText(type));
  return member === undefined || known.length === 0 ? undefined : { member, types: new Set(known) };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value.length <= 1024;
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}
