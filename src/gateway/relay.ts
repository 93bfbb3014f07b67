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
import { AnswerWriter } from './answer-writer.js';
import type { AnswerReader } from './answer.js';
import type { CallSignal } from './call-signal.js';
import type { Deadline, Deadlines } from './deadlines.js';
import { GatewayError } from './errors.js';
import type { Upstream, UpstreamCall, UpstreamRequest, UpstreamSink } from './upstream.js';

export interface RelayOptions {
  request: UpstreamRequest;
  response: ServerResponse;
  /** Gives the answer up, with its reason. */
  signal: CallSignal;
  deadlines: Deadlines;
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
export function relay(upstream: Upstream, options: RelayOptions): Promise<WorkerFailure | undefined> {
  return new Promise((resolve, reject) => {
    new Relay(options, resolve, reject).send(upstream);
  });
}

/** One answer under way. */
class Relay implements UpstreamSink {
  readonly #options: RelayOptions;
  readonly #resolve: (failure: WorkerFailure | undefined) => void;
  readonly #reject: (error: Error) => void;
  readonly #deadline: Deadline;
  readonly #onAbort = (): void => {
    this.#giveUp(this.#options.signal.reason as Error);
  };
  #call: UpstreamCall | undefined;
  #reader: AnswerReader | undefined;
  #status = 0;
  #headers: Record<string, string | string[]> | undefined;
  /** There from the first byte on. */
  #writer: AnswerWriter | undefined;

  constructor(
    options: RelayOptions,
    resolve: (failure: WorkerFailure | undefined) => void,
    reject: (error: Error) => void,
  ) {
    this.#options = options;
    this.#resolve = resolve;
    this.#reject = reject;
    const { firstByteSeconds, deadlines } = options;
    this.#deadline = deadlines.begin(firstByteSeconds, () => {
      this.#late();
    });
  }

  send(upstream: Upstream): void {
    const { signal, request } = this.#options;
    signal.listen(this.#onAbort);
    this.#call = upstream.send(request, this);
    if (signal.aborted) this.#onAbort();
    else
      this.#options.failable?.((failure) => {
        this.#failOver(failure);
      });
  }

  head(status: number, headers: Record<string, string | string[]>): void {
    if (status === 502 || status === 503) {
      this.#stop();
      this.#call?.abort(new Error('another worker is tried'));
      this.#resolve(new WorkerFailure(`the worker answered with status ${status}`));
      return;
    }
    this.#status = status;
    this.#headers = headers;
    this.#reader = this.#options.head(status, headers);
  }

  data(chunk: Buffer): boolean {
    let writer = this.#writer;
    if (writer === undefined) {
      writer = this.#begin();
      if (writer === undefined) return true;
      this.#options.firstByte();
    } else {
      this.#deadline.putOff();
    }
    const passed = this.#reader === undefined ? chunk : this.#reader.push(chunk);
    if (passed === undefined || passed.length === 0) return true;
    return writer.write(passed);
  }

  end(): void {
    const writer = this.#writer ?? this.#begin();
    this.#stop();
    const rest = this.#reader?.end();
    if (rest !== undefined && rest.length > 0) writer?.write(rest);
    writer?.end();
    dropUnread(this.#options);
    this.#resolve(undefined);
  }

  failed(error: Error): void {
    const begun = this.#writer !== undefined;
    this.#stop();
    if (begun) this.#reject(new GatewayError('worker_lost', 'the worker broke off its answer', { cause: error }));
    else this.#resolve(new WorkerFailure('the worker could not be reached or broke off', { cause: error }));
  }

  #begin(): AnswerWriter | undefined {
    const headers = this.#headers;
    if (headers === undefined) return undefined;
    const { response, deadlines, chunkSeconds } = this.#options;
    response.writeHead(this.#status, headers);
    const writer = new AnswerWriter(response, () => {
      this.#deadline.putOff();
      this.#call?.resume();
    });
    this.#writer = writer;
    deadlines.again(this.#deadline, chunkSeconds);
    return writer;
  }

  #late(): void {
    const { firstByteSeconds, chunkSeconds } = this.#options;
    if (this.#writer === undefined) {
      this.#failOver(new LateWorker(`no answer began within ${firstByteSeconds} seconds`));
      return;
    }
    const who = this.#writer.full ? 'the client read' : 'the worker sent';
    this.#giveUp(new GatewayError('deadline_exceeded', `${who} nothing for ${chunkSeconds} seconds`));
  }

  #giveUp(error: Error): void {
    this.#stop();
    this.#writer?.close();
    this.#call?.abort(error);
    this.#reject(error);
  }

  #failOver(failure: WorkerFailure): void {
    if (this.#writer !== undefined) return;
    this.#stop();
    this.#call?.abort(failure);
    this.#resolve(failure);
  }

  #stop(): void {
    this.#deadline.end();
    this.#options.signal.unlisten(this.#onAbort);
  }
}

/** A client that does not read the end of its answer holds it no longer than it may hold up a chunk. */
function dropUnread({ response, deadlines, chunkSeconds }: RelayOptions): void {
  // What the operating system has taken is no longer the gateway's.
  if (response.writableFinished || response.destroyed || response.socket?.writableLength === 0) return;
  const deadline = deadlines.begin(chunkSeconds, () => response.destroy());
  response.once('close', () => {
    deadline.end();
  });
}
