/**
 * Writes an answer to its client. What comes within one turn of the event loop goes as one chunk of HTTP in one write: `ServerResponse.write`
 * makes four of each piece, which is most of what a stream of small pieces costs.
 *
 * The response is told of nothing but its head and its end. Where it is not plain node:http with chunks at the head of its connection, as
 * behind a middleware that compresses, in a pipeline or with a length that is known, everything goes through it.
 */
import { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** More than this is not copied into one buffer. */
const mostCopiedBytes = 16_384;
/** So much is not held until the turn ends. */
const mostHeldBytes = 65_536;
const lineEnd = Buffer.from('\r\n');

export class AnswerWriter {
  readonly #response: ServerResponse;
  readonly #drained: () => void;
  /** Where chunks are written to; `undefined`: through the response. */
  readonly #socket: Socket | undefined;
  readonly #onDrain = (): void => {
    this.#full = false;
    this.#drained();
  };
  #pieces: Buffer[] = [];
  #bytes = 0;
  #due = false;
  #begun = false;
  #full = false;

  /**
   * The head of the response was given by `writeHead`, and nothing of it was sent.
   *
   * @param drained what was not taken at once has been
   */
  constructor(response: ServerResponse, drained: () => void) {
    this.#response = response;
    this.#drained = drained;
    const { socket } = response;
    const plain =
      response.chunkedEncoding &&
      response.write === ServerResponse.prototype.write &&
      response.end === ServerResponse.prototype.end;
    // A response gets its socket when those before it on the connection have ended.
    this.#socket = plain && socket !== null ? socket : undefined;
  }

  /** The client has not taken all there is. */
  get full(): boolean {
    return this.#full;
  }

  /** `false`: no more until it has drained. */
  write(piece: Buffer): boolean {
    if (this.#socket === undefined) {
      if (!this.#response.write(piece)) this.#fill(this.#response);
      return !this.#full;
    }
    this.#pieces.push(piece);
    this.#bytes += piece.length;
    if (this.#bytes >= mostHeldBytes) {
      this.#flush();
    } else if (!this.#due) {
      this.#due = true;
      process.nextTick(AnswerWriter.#flushDue, this);
    }
    return !this.#full;
  }

  end(): void {
    if (this.#pieces.length > 0) {
      // What is left and the end are one write.
      this.#socket?.cork();
      this.#flush();
    }
    this.#response.end();
    this.close();
  }

  /** Nothing more is written. */
  close(): void {
    this.#pieces = [];
    if (this.#full) (this.#socket ?? this.#response).off('drain', this.#onDrain);
  }

  static #flushDue(this: void, writer: AnswerWriter): void {
    writer.#due = false;
    writer.#flush();
  }

  #flush(): void {
    const pieces = this.#pieces;
    const socket = this.#socket;
    if (pieces.length === 0 || socket === undefined) return;
    const bytes = this.#bytes;
    this.#pieces = [];
    this.#bytes = 0;
    if (socket.destroyed) return;
    const begins = !this.#begun;
    const copied = bytes <= mostCopiedBytes;
    if (begins || !copied) socket.cork();
    if (begins) {
      this.#begun = true;
      this.#response.flushHeaders();
    }
    const size = `${bytes.toString(16)}\r\n`;
    let taken: boolean;
    if (copied) {
      const chunk = Buffer.allocUnsafe(size.length + bytes + 2);
      let at = chunk.write(size, 'latin1');
      for (const piece of pieces) at += piece.copy(chunk, at);
      chunk[at] = 0x0d;
      chunk[at + 1] = 0x0a;
      taken = socket.write(chunk);
    } else {
      socket.write(size, 'latin1');
      for (const piece of pieces) socket.write(piece);
      taken = socket.write(lineEnd);
    }
    if (begins || !copied) socket.uncork();
    // What was corked counts until it has gone.
    if (!taken && socket.writableNeedDrain) this.#fill(socket);
  }

  #fill(from: Socket | ServerResponse): void {
    if (this.#full) return;
    this.#full = true;
    from.once('drain', this.#onDrain);
  }
}
