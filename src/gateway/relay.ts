/**
 * A worker's answer on its way to the client, chunk by chunk, and everything that can end it.
 *
 *     connecting, head     until the first byte: at most `firstByteSeconds`; nothing was sent to the client, another worker can be tried
 *     passing              at most `chunkSeconds` between two chunks
 *     paused               the client does not read: at most as long; the worker is not read either, so nothing piles up
 *     complete | failed | given up
 *
 * The head goes to the client with the first byte behind it: an engine sends its head before it has computed anything, and may still die.
 */
import type { ServerResponse } from 'node:http';
import type { AnswerReader } from './answer.js';
import type { CallSignal } from './call-signal.js';
import { GatewayError } from './errors.js';
import type { Upstream, UpstreamCall, UpstreamRequest } from './upstream.js';

export interface RelayOptions {
  request: UpstreamRequest;
  response: ServerResponse;
  /** Gives the answer up, with its reason. */
  signal: CallSignal;
  firstByteSeconds: number;
  chunkSeconds: number;
  /** The head is there; the headers can be changed. What it returns reads the answer. */
  head(status: number, headers: Record<string, string | string[]>): AnswerReader | undefined;
  /** The first byte is there. */
  firstByte(): void;
  /** Is given what makes the worker fail from outside, as long as nothing of its answer was sent. */
  failable?(fail: (failure: WorkerFailure) => void): void;
}

/** Why a worker's answer was not passed: another one may do better. */
export class WorkerFailure extends Error {}

/** It did not begin in time. */
export class LateWorker extends WorkerFailure {}

/**
 * Passes one worker's answer on.
 *
 * @returns the failure of a worker of whose answer nothing was sent; `undefined`: the answer is complete
 * @throws GatewayError where it broke off or took too long; the signal's reason
 */
export async function relay(upstream: Upstream, options: RelayOptions): Promise<WorkerFailure | undefined> {
  const { request, response, signal, firstByteSeconds, chunkSeconds } = options;
  return await new Promise((resolve, reject) => {
    let call: UpstreamCall | undefined = undefined;
    let reader: AnswerReader | undefined;
    let head: { status: number; headers: Record<string, string | string[]> } | undefined;
    let begun = false;
    let paused = false;
    const stop = (): void => {
      clearTimeout(timer);
      signal.unlisten(onAbort);
      response.off('drain', onDrain);
    };
    const giveUp = (error: Error): void => {
      stop();
      call?.abort(error);
      reject(error);
    };
    const failOver = (failure: WorkerFailure): void => {
      if (begun) return;
      stop();
      call?.abort(failure);
      resolve(failure);
    };
    const onAbort = (): void => {
      giveUp(signal.reason as Error);
    };
    const onDrain = (): void => {
      if (!paused) return;
      paused = false;
      timer.refresh();
      call?.resume();
    };
    let timer = setTimeout(() => {
      failOver(new LateWorker(`no answer began within ${firstByteSeconds} seconds`));
    }, firstByteSeconds * 1000);
    const begin = (): void => {
      if (begun || head === undefined) return;
      begun = true;
      clearTimeout(timer);
      timer = setTimeout(() => {
        const who = paused ? 'the client read' : 'the worker sent';
        giveUp(new GatewayError('deadline_exceeded', `${who} nothing for ${chunkSeconds} seconds`));
      }, chunkSeconds * 1000);
      response.writeHead(head.status, head.headers);
    };
    signal.listen(onAbort);
    response.on('drain', onDrain);
    call = upstream.send(request, {
      head: (status, headers) => {
        if (status === 502 || status === 503) {
          stop();
          call?.abort(new Error('another worker is tried'));
          resolve(new WorkerFailure(`the worker answered with status ${status}`));
          return;
        }
        head = { status, headers };
        reader = options.head(status, headers);
      },
      data: (chunk) => {
        if (begun) timer.refresh();
        else {
          begin();
          options.firstByte();
        }
        const passed = reader === undefined ? chunk : reader.push(chunk);
        if (passed === undefined || passed.length === 0 || response.write(passed)) return true;
        paused = true;
        return false;
      },
      end: () => {
        begin();
        stop();
        const rest = reader?.end();
        if (rest !== undefined) response.write(rest);
        response.end();
        dropUnread(response, chunkSeconds);
        resolve(undefined);
      },
      failed: (error) => {
        stop();
        if (begun) reject(new GatewayError('worker_lost', 'the worker broke off its answer', { cause: error }));
        else resolve(new WorkerFailure('the worker could not be reached or broke off', { cause: error }));
      },
    });
    if (signal.aborted) onAbort();
    else options.failable?.(failOver);
  });
}

/** A client that does not read the end of its answer holds it no longer than it may hold up a chunk. */
function dropUnread(response: ServerResponse, seconds: number): void {
  if (response.writableFinished || response.destroyed) return;
  const timer = setTimeout(() => response.destroy(), seconds * 1000).unref();
  response.once('close', () => {
    clearTimeout(timer);
  });
}
