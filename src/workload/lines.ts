/**
 * Lines of a text file, read in pieces: memory is one piece and the longest line.
 */
import { createReadStream } from 'node:fs';
import { StringDecoder } from 'node:string_decoder';
import { SagaError } from '../errors.js';

/** Longest line that is read, in characters; a longer one is an error and not a reason to run out of memory. */
export const longestLine = 256 * 1024 * 1024;

/**
 * Calls `each` with every line (without its end) and its number from 1.
 *
 * @throws SagaError `SAGA_ERR_TRACE_UNREADABLE` when the file cannot be read or a line is longer than {@link longestLine}
 */
export async function forEachLine(path: string, each: (line: string, number: number) => void): Promise<void> {
  const decoder = new StringDecoder('utf8');
  const stream = createReadStream(path, { highWaterMark: 1 << 18 });
  let pieces: string[] = []; // of a line that is not complete yet
  let length = 0;
  let number = 0;
  const take = (text: string): void => {
    let from = 0;
    for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', from)) {
      let line = text.slice(from, at);
      if (pieces.length > 0) {
        line = pieces.join('') + line;
        pieces = [];
        length = 0;
      }
      from = at + 1;
      each(line.endsWith('\r') ? line.slice(0, -1) : line, ++number);
    }
    if (from < text.length) {
      pieces.push(text.slice(from));
      length += text.length - from;
      if (length > longestLine) {
        throw new SagaError(
          'SAGA_ERR_TRACE_UNREADABLE',
          `expected lines of at most ${longestLine} characters in ${path}`,
        );
      }
    }
  };
  try {
    for await (const chunk of stream) take(decoder.write(chunk as Buffer));
    take(decoder.end());
  } catch (error) {
    throw error instanceof Error && 'syscall' in error ? unreadable(path, error) : error;
  } finally {
    stream.destroy();
  }
  if (pieces.length > 0) each(pieces.join(''), ++number);
}

/** The error for a path that cannot be read. */
export function unreadable(path: string, cause: unknown): SagaError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new SagaError('SAGA_ERR_TRACE_UNREADABLE', `expected a readable trace at ${path}: ${reason}`, { cause });
}
