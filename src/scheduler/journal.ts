/** What a journal gives when it is replayed. */
import native from '../native.cjs';
import { SagaCapacityError, SagaJournalError, errorOfStatus } from '../errors.js';

/** What a journal gave. */
export interface ReplayResult {
  /** Fingerprint of the rebuilt state; equals {@link Scheduler.digest} of the scheduler that wrote the journal. */
  digest: bigint;
  /** Events applied. */
  events: number;
  /** Recorded decisions that came out again, byte for byte. */
  decisions: number;
}

/** The outcome of a replay, or its error. `result`: status, events, decisions, good bytes. */
export function replayed(digest: bigint | number, result: Float64Array): ReplayResult {
  const [status = 0, events = 0, decisions = 0, goodBytes = 0] = result;
  if (status === 0 && typeof digest !== 'number') return { digest, events, decisions };
  const message = `${native.statusText(status)}; ${events} events and the first ${goodBytes} bytes are good`;
  const error = errorOfStatus(status, message);
  throw error instanceof SagaCapacityError ? error : new SagaJournalError(error.code, message);
}
