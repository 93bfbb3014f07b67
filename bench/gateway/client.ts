/** The client's side: requests over kept-open connections, timed. */
import { Agent, request as open, type ClientRequest } from 'node:http';

const agent = new Agent({ keepAlive: true, maxSockets: Infinity });

/** Of an answer that was read to its end. */
export interface Answer {
  status: number;
  /** Milliseconds to the first byte of the body, and to the last. */
  firstByte: number;
  end: number;
  chunks: number;
  body: string;
}

export function post(url: string, body: string | Buffer, keep = false): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const begun = performance.now();
    const sent = send(url, body, (status, chunk, ended) => {
      if (chunk !== undefined) {
        answer.firstByte ||= performance.now() - begun;
        answer.chunks += 1;
        if (keep) answer.body += chunk.toString();
      }
      if (ended) {
        answer.status = status;
        answer.end = performance.now() - begun;
        resolve(answer);
      }
    });
    const answer: Answer = { status: 0, firstByte: 0, end: 0, chunks: 0, body: '' };
    sent.on('error', reject);
  });
}

function send(
  url: string,
  body: string | Buffer,
  on: (status: number, chunk: Buffer | undefined, ended: boolean) => void,
): ClientRequest {
  const sent = open(
    url,
    {
      method: 'POST',
      agent,
      headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
    },
    (response) => {
      response.on('data', (chunk: Buffer) => {
        on(response.statusCode ?? 0, chunk, false);
      });
      response.on('end', () => {
        on(response.statusCode ?? 0, undefined, true);
      });
    },
  );
  sent.end(body);
  return sent;
}

/** The value that a share of all lie below. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}
