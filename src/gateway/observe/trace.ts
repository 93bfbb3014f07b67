/** Spans by the OpenTelemetry API: nothing happens unless the process registers an SDK. */
import type { IncomingMessage } from 'node:http';
import { ProxyTracerProvider, SpanKind, SpanStatusCode, context, propagation, trace } from '@opentelemetry/api';
import type { GatewayError } from '../errors.js';

/** The span of a request. */
export interface RequestSpan {
  /** Is told what is found out on the way; `undefined`: nobody listens. */
  readonly set: ((attributes: Readonly<Record<string, string | number | boolean | undefined>>) => void) | undefined;
  failed(error: GatewayError): void;
  /** For a request that is part of it; `undefined` where nothing is registered that writes them. */
  headers(): Record<string, string> | undefined;
  end(status: number): void;
}

const tracer = trace.getTracer('saga-scheduler');
/** What stands where no SDK is registered. */
const nobody = new ProxyTracerProvider().getDelegate();
const noSpan: RequestSpan = { set: undefined, failed() {}, headers: () => undefined, end() {} };

function isRegistered(): boolean {
  const provider = trace.getTracerProvider();
  if (provider instanceof ProxyTracerProvider && provider.getDelegate() === nobody)
    // A propagator without a tracer passes on what the client sent.
    return propagation.fields().length > 0;
  return true;
}

export function startSpan(request: IncomingMessage, path: string): RequestSpan {
  if (!isRegistered()) return noSpan;
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
