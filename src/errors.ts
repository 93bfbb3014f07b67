/**
 * Errors with a stable `code`. Match on the code, not on the message: messages are sentences for people and may change.
 */
export class SagaError extends Error {
  /** What went wrong, in a form that never changes, for example `SAGA_BAD_OPTION`. */
  readonly code: string;

  constructor(code: string, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'SagaError';
    this.code = code;
  }
}
