/**
 * Errors with a stable `code`. Match on the code, not on the message: messages are sentences for people and may change.
 *
 * `instanceof` works across copies of the package (an application may load the ESM and the CommonJS build): it compares a
 * registered symbol, not the prototype.
 */

/** Every code that the library uses, with the condition it stands for. */
export type SagaErrorCode =
  /** A value outside its stated range or of the wrong type. */
  | 'SAGA_ERR_INVALID_ARGUMENT'
  /** No such worker, workflow or call, or it has ended. */
  | 'SAGA_ERR_NOT_FOUND'
  /** A bound fixed at construction is reached; nothing was changed. */
  | 'SAGA_ERR_FULL'
  /** The object exists, but the event does not fit its state. */
  | 'SAGA_ERR_WRONG_STATE'
  /** `now` lies before an event that was applied already. */
  | 'SAGA_ERR_TIME_REVERSED'
  /** The journal buffer is full: read it first. */
  | 'SAGA_ERR_JOURNAL_FULL'
  /** Not a journal, or cut off or damaged. */
  | 'SAGA_ERR_JOURNAL_CORRUPT'
  /** The replay decided otherwise than the journal says. */
  | 'SAGA_ERR_JOURNAL_MISMATCH'
  /** Memory ran out. A scheduler that met it within an event refuses all later ones: rebuild it from its journal. */
  | 'SAGA_ERR_OUT_OF_MEMORY'
  /** Made by, or asking for, another version of the format or the interface. */
  | 'SAGA_ERR_VERSION_MISMATCH'
  /** Fewer free blocks than the operation needs in all; nothing was changed. Free, swap out or wait. */
  | 'SAGA_ERR_OUT_OF_BLOCKS'
  /** Some blocks of the sequence are not in GPU memory: swap it in first. */
  | 'SAGA_ERR_NOT_RESIDENT'
  /** A plan of the sequence is neither committed nor aborted. */
  | 'SAGA_ERR_BUSY'
  /** No worker is active, so a call cannot be placed now. */
  | 'SAGA_ERR_NO_WORKER'
  /** The scheduler holds a call back: it waits for room, or for its blocks. A later `decide` places it. */
  | 'SAGA_ERR_HELD'
  /** There is no native binary for this platform, or it does not load. */
  | 'SAGA_ERR_NATIVE_MISSING'
  /** The object was closed. */
  | 'SAGA_ERR_CLOSED'
  /** An option of a simulation, a generator or the command line cannot be used, or not with this workload. */
  | 'SAGA_ERR_OPTION'
  /** A trace cannot be read: no such file, no permission. */
  | 'SAGA_ERR_TRACE_UNREADABLE'
  /** A trace is in none of the formats that are known. */
  | 'SAGA_ERR_TRACE_FORMAT'
  /** A line or document of a trace is malformed; the message names file, line and reason. */
  | 'SAGA_ERR_TRACE_MALFORMED'
  /** There is no request in a trace. */
  | 'SAGA_ERR_TRACE_EMPTY';

const marker = Symbol.for('saga-scheduler.error');

/** Base class of every error that the library throws on purpose; the codes `SAGA_ERR_OPTION` and `SAGA_ERR_TRACE_..` come as this class. */
export class SagaError extends Error {
  /** What went wrong, in a form that never changes. */
  readonly code: SagaErrorCode;

  constructor(code: SagaErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
    Object.defineProperty(this, marker, { value: kindsOf(new.target), enumerable: false });
  }

  /** Whether a value is an error of this class, made by whichever copy of the package. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    const kinds = (value as Record<symbol, unknown> | null | undefined)?.[marker];
    return Array.isArray(kinds) && kinds.includes(this.name);
  }
}

/** Names of a class and its ancestors up to SagaError. */
function kindsOf(kind: unknown): string[] {
  const kinds: string[] = [];
  for (
    let at = kind as { name: string } | null;
    at && at.name !== 'Error' && at.name !== '';
    at = Object.getPrototypeOf(at) as { name: string } | null
  ) {
    kinds.push(at.name);
  }
  return kinds;
}

/** A value that you passed is wrong: `SAGA_ERR_INVALID_ARGUMENT`. */
export class SagaArgumentError extends SagaError {
  constructor(message: string, options?: { cause?: unknown }) {
    super('SAGA_ERR_INVALID_ARGUMENT', message, options);
  }
}

/** The event does not fit what is there: not found, wrong state, time reversed, not resident, busy, no worker, held, closed. */
export class SagaStateError extends SagaError {}

/**
 * A bound fixed at construction is reached: `SAGA_ERR_FULL`, `SAGA_ERR_JOURNAL_FULL`, `SAGA_ERR_OUT_OF_MEMORY`; or blocks are
 * short: `SAGA_ERR_OUT_OF_BLOCKS`.
 */
export class SagaCapacityError extends SagaError {}

/** A journal cannot be used: corrupt, another version, or the replay differs. */
export class SagaJournalError extends SagaError {}

/** The native binary is missing or does not load: `SAGA_ERR_NATIVE_MISSING`. */
export class SagaNativeError extends SagaError {}

/** Statuses of the C interface (`saga_status_t`) by number. */
const statusCodes = [
  'SAGA_OK',
  'SAGA_ERR_INVALID_ARGUMENT',
  'SAGA_ERR_NOT_FOUND',
  'SAGA_ERR_FULL',
  'SAGA_ERR_WRONG_STATE',
  'SAGA_ERR_TIME_REVERSED',
  'SAGA_ERR_JOURNAL_FULL',
  'SAGA_ERR_JOURNAL_CORRUPT',
  'SAGA_ERR_JOURNAL_MISMATCH',
  'SAGA_ERR_OUT_OF_MEMORY',
  'SAGA_ERR_VERSION_MISMATCH',
  'SAGA_ERR_OUT_OF_BLOCKS',
  'SAGA_ERR_NOT_RESIDENT',
  'SAGA_ERR_BUSY',
] as const;

/**
 * The error for a status of the C interface.
 *
 * @internal
 */
export function errorOfStatus(status: number, message: string): SagaError {
  const code = statusCodes[status];
  switch (code) {
    case undefined:
    case 'SAGA_OK':
    case 'SAGA_ERR_INVALID_ARGUMENT':
      return new SagaArgumentError(message);
    case 'SAGA_ERR_FULL':
    case 'SAGA_ERR_JOURNAL_FULL':
    case 'SAGA_ERR_OUT_OF_MEMORY':
    case 'SAGA_ERR_OUT_OF_BLOCKS':
      return new SagaCapacityError(code, message);
    case 'SAGA_ERR_JOURNAL_CORRUPT':
    case 'SAGA_ERR_JOURNAL_MISMATCH':
    case 'SAGA_ERR_VERSION_MISMATCH':
      return new SagaJournalError(code, message);
    default:
      return new SagaStateError(code, message);
  }
}
