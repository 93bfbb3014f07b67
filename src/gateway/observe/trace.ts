/** Spans of the OpenTelemetry API: nothing happens unless the host process registers an SDK. */
import type { IncomingMessage } from 'node:http';
import type { GatewayError } from '../errors.js';

export interface RequestSpan {
  failed(error: GatewayError): void;
  end(status: number): void;
}

export function startSpan(_request: IncomingMessage, _path: string): RequestSpan {
  return { failed() {}, end() {} };
}
