/**
 * Reads traces: streams of requests recorded elsewhere.
 *
 * | format | told by | what it gives |
 * |---|---|---|
 * | request lines | `sid` | sessions with tool and human gaps, call durations, sub-agents |
 * | Mooncake lines | `timestamp` with `hash_ids` | single requests with arrival times |
 * | session documents | `requests` | as request lines; one JSON document a file or a line, or a directory of them |
 *
 * A file is read in pieces and nothing but columns is kept, so memory is bounded by the number of requests and runs (a session
 * document is parsed whole, one at a time). What is malformed is reported with file, line and reason; it is fatal or skipped
 * and counted, as the caller says.
 */
import { readdir, readFile, stat, open } from 'node:fs/promises';
import { join } from 'node:path';
import { SagaError } from '../errors.js';
import {
  promptKindNumber,
  stopReasonNumber,
  toolClassNumber,
  firstTasks,
  WorkloadBuilder,
  type WorkloadColumns,
} from './columns.js';
import { forEachLine, unreadable } from './lines.js';
import { RequestLog, type ArrangeOptions } from './request-log.js';
import {
  checkBlocks,
  isId,
  longestText,
  mooncakeBlockTokens,
  requestLineBlockTokens,
  stopReasonOf,
  type TraceReader,
} from './trace-format.js';
import {
  Malformed,
  array,
  integer,
  number,
  object,
  optionalNumber,
  optionalText,
  text,
  type JsonObject,
} from './json-fields.js';
import { SessionDocuments } from './session-document.js';

/** Format of a trace. */
export type TraceFormat = 'request-lines' | 'mooncake' | 'session-documents';

/** A line or document that could not be used. */
export interface MalformedInput {
  file: string;
  /** Line number from 1; for a document of several lines the line on which it starts. */
  line: number;
  reason: string;
}

/** How a trace is read. */
export interface ReadTraceOptions {
  /** What a malformed line or document does: `fail` (default) ends reading with `SAGA_ERR_TRACE_MALFORMED`; `skip` drops and counts it. */
  onError?: 'skip' | 'fail';
  /** Called for each malformed line or document that is skipped. */
  onMalformed?: (report: MalformedInput) => void;
}

/** A trace that was read; {@link Trace.workload} makes tasks of it. */
export class Trace {
  constructor(
    readonly format: TraceFormat,
    /** Tokens of a block id. */
    readonly blockTokens: number,
    /** Requests kept. */
    readonly requests: number,
    /** Requests left out because their session is marked as a copy of another (`dup`). */
    readonly copies: number,
    /** Malformed lines or documents that were skipped. */
    readonly malformed: number,
    private readonly source: RequestLog | WorkloadColumns,
  ) {}

  /** Whether requests have arrival times, at which cache mode plays them. */
  get hasArrivals(): boolean {
    return !(this.source instanceof RequestLog);
  }

  /** Tasks in the order in which they are played; gap cap and order do not apply to a trace with arrival times. */
  workload(options: ArrangeOptions = {}): WorkloadColumns {
    if (this.source instanceof RequestLog) return this.source.arrange(options);
    return options.limit === undefined ? this.source : firstTasks(this.source, options.limit);
  }
}

/**
 * Reads a trace file, or a directory of session documents (its files ending in `.json`, in the order of their names).
 *
 * @throws SagaError `SAGA_ERR_TRACE_UNREADABLE` (no such file, no permission), `SAGA_ERR_TRACE_FORMAT` (none of the formats),
 * `SAGA_ERR_TRACE_MALFORMED` (with `onError: 'fail'`), `SAGA_ERR_TRACE_EMPTY` (no request in it)
 */
export async function readTrace(path: string, options: ReadTraceOptions = {}): Promise<Trace> {
  const files = await filesOf(path);
  const format = await formatOf(files);
  const reader =
    format === 'mooncake'
      ? new MooncakeLines()
      : format === 'request-lines'
        ? new RequestLines()
        : new SessionDocuments();
  let malformed = 0;
  const guarded = (file: string, line: number, use: () => void): void => {
    try {
      use();
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      if ((options.onError ?? 'fail') === 'fail') {
        throw new SagaError('SAGA_ERR_TRACE_MALFORMED', `${file}:${line}: ${error.message}`, { cause: error });
      }
      ++malformed;
      options.onMalformed?.({ file, line, reason: error.message });
    }
  };
  for (const file of files) {
    if (format === 'session-documents' && !(await hasDocumentLines(file))) {
      const content = await readText(file);
      guarded(file, 1, () => reader.add(parseJson(content)));
      continue;
    }
    await forEachLine(file, (line, lineNumber) => {
      if (line.trim() !== '') guarded(file, lineNumber, () => reader.add(parseJson(line)));
    });
  }
  if (reader.requests === 0) {
    throw new SagaError(
      'SAGA_ERR_TRACE_EMPTY',
      `expected at least one request in ${path}, found none${malformed > 0 ? ` (${malformed} malformed lines skipped)` : ''}`,
    );
  }
  return new Trace(format, reader.blockTokens, reader.requests, reader.copies, malformed, reader.finish());
}

async function filesOf(path: string): Promise<string[]> {
  try {
    if (!(await stat(path)).isDirectory()) return [path];
    const names = (await readdir(path)).filter((name) => name.endsWith('.json')).sort();
    if (names.length > 0) return names.map((name) => join(path, name));
  } catch (error) {
    throw unreadable(path, error);
  }
  throw new SagaError(
    'SAGA_ERR_TRACE_EMPTY',
    `expected session documents (*.json) in the directory ${path}, found none`,
  );
}

async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    throw unreadable(file, error);
  }
}

/** Characters of a file from which its format is told. */
const headBytes = 1 << 16;

async function headOf(file: string): Promise<string> {
  try {
    const handle = await open(file, 'r');
    try {
      const buffer = Buffer.alloc(headBytes);
      const { bytesRead } = await handle.read(buffer, 0, headBytes, 0);
      return buffer.toString('utf8', 0, bytesRead);
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw unreadable(file, error);
  }
}

/** The format, told by the first line that has the marks of one. */
async function formatOf(files: readonly string[]): Promise<TraceFormat> {
  let anything = false;
  for (const file of files) {
    const head = await headOf(file);
    if (head.trim() === '') continue;
    anything = true;
    // A document of several lines has its marks somewhere in the head; lines have them in each line.
    for (const line of head.split('\n')) {
      if (/"sid"\s*:/.test(line)) return 'request-lines';
      if (/"(requests|hash_id_scope|tool_tokens|system_tokens)"\s*:/.test(line)) return 'session-documents';
      if (/"timestamp"\s*:/.test(line) && /"(hash_ids|input_length)"\s*:/.test(line)) return 'mooncake';
    }
  }
  if (!anything)
    throw new SagaError('SAGA_ERR_TRACE_EMPTY', `expected at least one request in ${files[0]}, found none`);
  throw new SagaError(
    'SAGA_ERR_TRACE_FORMAT',
    `expected request lines (with "sid"), Mooncake lines (with "timestamp" and "hash_ids") or session documents (with "requests") in ${files[0]}`,
  );
}

/** Whether a file holds one session document a line, rather than one over several lines. */
async function hasDocumentLines(file: string): Promise<boolean> {
  const head = (await headOf(file)).trimStart();
  const end = head.indexOf('\n');
  return end < 0 || head.slice(0, end).trimEnd().endsWith('}');
}

function parseJson(content: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (error) {
    throw new Malformed(`expected JSON: ${(error as Error).message}`);
  }
  return object(value, 'the line');
}

const kinds: Record<string, number> = {
  start: promptKindNumber.start,
  tool: promptKindNumber.tool,
  user: promptKindNumber.user,
};

/** Request lines: one JSON object a line with `sid aid k t in out llm_s gap_s gap_kind stop h`, and `dup` on copies. */
class RequestLines implements TraceReader {
  readonly blockTokens = requestLineBlockTokens;
  copies = 0;
  private readonly log = new RequestLog(requestLineBlockTokens);

  get requests(): number {
    return this.log.length;
  }

  add(row: JsonObject): void {
    if (row['dup'] !== undefined && row['dup'] !== null && row['dup'] !== false && row['dup'] !== '') {
      ++this.copies;
      return;
    }
    const session = text(row, 'sid');
    const agent = text(row, 'aid');
    const callNumber = integer(row, 'k', 0, 0xffff_ffff);
    const time = number(row, 't', 0);
    const promptTokens = integer(row, 'in', 1, longestText);
    const outputTokens = Math.max(1, integer(row, 'out', 0, longestText));
    const seconds = optionalNumber(row, 'llm_s', 0) ?? Number.NaN;
    const gapSeconds = number(row, 'gap_s', 0);
    const kind = kinds[text(row, 'gap_kind')];
    if (kind === undefined) throw new Malformed('expected "gap_kind" to be "start", "tool" or "user"');
    const stopReason = stopReasonOf(optionalText(row, 'stop') ?? '');
    const runs = array(row, 'h');
    let blocks = 0;
    for (const run of runs) {
      if (!Array.isArray(run) || run.length !== 2 || !isId(run[0]) || !isCount(run[1])) {
        throw new Malformed('expected "h" to be runs [first id, length] of whole numbers, length at least 1');
      }
      blocks += run[1];
    }
    checkBlocks(blocks, promptTokens, this.blockTokens, 'h');
    this.log.add({
      session,
      agent,
      number: callNumber,
      time,
      promptTokens,
      outputTokens,
      seconds,
      gapSeconds,
      promptKind: kind,
      stopReason,
      toolClass: toolClassNumber.none,
    });
    for (const run of runs) this.log.addRun((run as [number, number])[0], (run as [number, number])[1]);
  }

  finish(): RequestLog {
    return this.log;
  }
}

/** Mooncake lines: `timestamp` (ms), `input_length`, `output_length`, `hash_ids` of 512-token blocks. Each is a task of one call. */
class MooncakeLines implements TraceReader {
  readonly blockTokens = mooncakeBlockTokens;
  readonly copies = 0;
  private readonly builder = new WorkloadBuilder(mooncakeBlockTokens, ['request']);

  get requests(): number {
    return this.builder.calls;
  }

  add(row: JsonObject): void {
    const timestamp = number(row, 'timestamp', 0);
    const promptTokens = integer(row, 'input_length', 1, longestText);
    const outputTokens = Math.max(1, integer(row, 'output_length', 0, longestText));
    const ids = array(row, 'hash_ids');
    for (const id of ids)
      if (!isId(id)) throw new Malformed('expected "hash_ids" to be whole numbers from 0 to 2^53 - 1');
    checkBlocks(ids.length, promptTokens, this.blockTokens, 'hash_ids');
    this.builder.beginTask({
      name: '',
      tenant: 0,
      taskClass: 0,
      expectedSeconds: 0,
      weight: 1,
      arrival: Math.round(timestamp * 1000),
    });
    this.builder.addCall({
      thread: this.builder.calls,
      promptTokens,
      outputTokens,
      promptKind: promptKindNumber.start,
      stopReason: stopReasonNumber.endTurn,
      toolClass: toolClassNumber.none,
      seconds: Number.NaN,
      time: 0,
      gapSeconds: 0,
      number: 0,
      main: true,
    });
    for (const id of ids) this.builder.addRun(id as number, 1);
  }

  finish(): WorkloadColumns {
    return this.builder.finish();
  }
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 1 && value <= 0xffff_ffff;
}
