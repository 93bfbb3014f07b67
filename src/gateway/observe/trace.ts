/** Spans by the OpenTelemetry API: nothing happens unless the process registers an SDK. */
import type { IncomingMessage } from 'node:http';
import { SpanKind, SpanStatusCode, context, propagation, trace } from '@opentelemetry/api';
import type { GatewayError } from '../errors.js';

/** The span of a request. */
export interface RequestSpan {
  /** What is found out on the way. */
  set(attributes: Readonly<Record<string, string | number | boolean | undefined>>): void;
  failed(error: GatewayError): void;
  /** For a request that is part of it; `undefined` where nothing is registered that writes them. */
  headers(): Record<string, string> | undefined;
  end(status: number): void;
}

const tracer = trace.getTracer('saga-scheduler');

export function startSpan(request: IncomingMessage, path: string): RequestSpan {
  const parent = propagation.extract(context.active(), request.headers);
  const span = tracer.startSpan(
    `${request.method ?? 'GET'} ${path}`,
    { kind: SpanKind.SERVER, attributes: { 'http.request.method': request.method ?? 'GET', 'url.path': path } },
    parent,
  );
  return {
    set(attributes) {
      for (const [name, value] of Object.entries(attributes)) if (value !== undefined) span.setAttribute(name, value);
    },
    headers() {
      const carrier: Record<string, string> = {};
      propagation.inject(trace.setSpan(parent, span), carrier);
      return Object.keys(carrier).length === 0 ? undefined : carrier;
    },
    failed(error) {
      span.setStatus({ code: SpanStatusCode.ERROR, message: error.code });
    },
    end(status) {
      span.setAttribute('http.response.status_code', status);
      span.end();
    },
  };
}
