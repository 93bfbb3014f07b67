/**
 * Where things are in the JSON body of a request, for a gateway that forwards megabytes and changes a few members.
 *
 * `JSON.parse` of a long conversation makes a value of every message. An outline passes over the bytes once, checks all of them, and
 * says where the members of the top-level object and the elements of chosen arrays are. What is small is then parsed from its
 * range, and what is large is never made into anything.
 *
 * @internal
 */
import native from './native.cjs';
import { checkInteger, checkOptions, checkText, describe } from './check.js';
import { SagaArgumentError, SagaCapacityError, errorOfStatus } from './errors.js';

const types = ['object', 'array', 'string', 'number', 'true', 'false', 'null'] as const;

export type JsonType = (typeof types)[number];

/** Bytes `[start, end)` of the body that are one value. */
export interface JsonRange {
  start: number;
  end: number;
  type: JsonType;
}

/** A member of the top-level object; its range is that of the value. */
export interface JsonMember extends JsonRange {
  /** The name's own range, within its quotes. */
  nameStart: number;
  nameEnd: number;
}

/** The elements of an array that is a member of the top-level object. */
export interface JsonElements {
  readonly count: number;
  /** The type that all elements have; `mixed` where they differ, `undefined` of an empty array. */
  readonly type: JsonType | 'mixed' | undefined;
  /** Whether {@link JsonElements.at} can be asked: the name was in `elementsOf`, and the first element is no number. */
  readonly listed: boolean;
  at(index: number): JsonRange;
  /** The start of element `index`, and the end: without an object. */
  start(index: number): number;
  end(index: number): number;
}

export interface JsonOutlineOptions {
  /** Most members of a top-level object, 1 to 4,096. Default 256. */
  maxMembers?: number;
  /** Most elements listed, of all arrays of a body together, 1 to 2^24. Default 2^17. */
  maxElements?: number;
}

/** A body is not JSON as RFC 8259 has it, or names a member twice, or is nested too deep. */
export class MalformedJsonError extends SagaArgumentError {
  /** Byte that is wrong; the size of the body where that ends too early. */
  readonly position: number;
  /** What should have been there, such as `a value`. */
  readonly expected: string;

  constructor(position: number, expected: string) {
    super(`malformed JSON at byte ${position}: expected ${expected}`);
    this.position = position;
    this.expected = expected;
  }
}

const memberWords = 8;
const elementWords = 3;
const nameEscaped = 0x100;
const arrayOfIds = 0x200;
const none = 2 ** 32 - 1;
const mostNames = 64;
/** Token ids that are read as a body is scanned, all arrays together: 8 MiB. More are read by a pass of their own. */
const mostIds = 2 ** 21;

/**
 * Scans bodies. Costs 0.1 to 1 ms a MB (`bench/RESULTS.md`), some 2 microseconds a body, and memory by the largest body seen.
 *
 * Accepted is what `JSON.parse` accepts of well-formed UTF-8 without a byte order mark, with two bounds: at most 1,024 levels, and no
 * name twice in the top-level object, however it is escaped: two readers of such a body could take different values of it.
 */
export class JsonOutline {
  readonly maxMembers: number;
  readonly maxElements: number;
  readonly #header = new Uint32Array(7);
  #members: Uint32Array;
  #elements: Uint32Array;
  /** Of the last body. */
  #ids = new Uint32Array(1024);
  #scans = 0;
  /** The names of the last scan, which are mostly those of the next. */
  #elementsOf: readonly string[] = [];
  #names: Names = encodeNames([]);

  constructor(options: JsonOutlineOptions = {}) {
    checkOptions(options);
    this.maxMembers = checkInteger('maxMembers', options.maxMembers ?? 256, 1, 4096);
    this.maxElements = checkInteger('maxElements', options.maxElements ?? 2 ** 17, 1, 2 ** 24);
    this.#members = new Uint32Array(Math.min(this.maxMembers, 64) * memberWords);
    this.#elements = new Uint32Array(Math.min(this.maxElements, 1024) * elementWords);
  }

  /**
   * @param body less than 4 GiB
   * @param elementsOf names of arrays in the top-level object whose elements are wanted, at most 64. Arrays that begin with a
   * number are not listed
   * @returns an outline of its own, which stays as it is while the body does; only {@link OutlineResult.ids} is there until the next scan
   * @throws MalformedJsonError for a body that is wrong
   * @throws SagaCapacityError `SAGA_ERR_FULL` for more members or elements than the maximum
   */
  scan(body: Uint8Array, elementsOf: readonly string[] = []): OutlineResult {
    checkBytes('body', body);
    if (body.length >= none) throw new SagaArgumentError(`body must have less than 4 GiB, got ${body.length} bytes`);
    if (!isSame(elementsOf, this.#elementsOf)) {
      this.#names = encodeNames(elementsOf);
      this.#elementsOf = [...elementsOf];
    }
    const { texts, ends } = this.#names;
    const scan = ++this.#scans;
    for (;;) {
      const status = native.jsonScan(body, texts, ends, this.#header, this.#members, this.#elements, this.#ids);
      const [error = 0, position = 0, , , , memberCount = 0, elementCount = 0] = this.#header;
      if (status >= 0) {
        if (error !== 0) throw new MalformedJsonError(position, native.jsonErrorText(error));
        const ids = this.#ids;
        // For the next one: bodies of ids are mostly followed by others of about as many.
        if (status > ids.length && ids.length < mostIds)
          this.#ids = new Uint32Array(Math.min(mostIds, 2 ** Math.ceil(Math.log2(status))));
        return new OutlineResult(
          body,
          this.#header,
          this.#members.slice(0, memberCount * memberWords),
          this.#elements.slice(0, elementCount * elementWords),
          () => (this.#scans === scan ? ids : undefined),
        );
      }
      const grown = this.#grow(memberCount, elementCount);
      if (!grown) throw errorOfStatus(-status, `the body could not be scanned (${native.statusText(-status)})`);
    }
  }

  /** Makes room for so many; false where there was enough. */
  #grow(memberCount: number, elementCount: number): boolean {
    if (memberCount > this.maxMembers)
      throw new SagaCapacityError('SAGA_ERR_FULL', `the body has ${memberCount} members, over ${this.maxMembers}`);
    if (elementCount > this.maxElements)
      throw new SagaCapacityError('SAGA_ERR_FULL', `the body has ${elementCount} elements, over ${this.maxElements}`);
    const before = this.#members.length + this.#elements.length;
    this.#members = withRoom(this.#members, memberCount * memberWords, this.maxMembers * memberWords);
    this.#elements = withRoom(this.#elements, elementCount * elementWords, this.maxElements * elementWords);
    return this.#members.length + this.#elements.length > before;
  }
}

/** What {@link JsonOutline.scan} found. */
export class OutlineResult {
  /** Of the body as a whole; only an `object` has members. */
  readonly type: JsonType;
  /** Range of that value, without white space around it. */
  readonly start: number;
  readonly end: number;
  /** Bytes of the body. */
  readonly bodyLength: number;
  readonly #members: Uint32Array;
  readonly #elements: Uint32Array;
  readonly #ids: () => Uint32Array | undefined;
  readonly #at = new Map<string, number>();

  /** @internal `ids`: those that were read, while they are there. */
  constructor(
    body: Uint8Array,
    header: Uint32Array,
    members: Uint32Array,
    elements: Uint32Array,
    ids: () => Uint32Array | undefined,
  ) {
    const [, , type = 0, start = 0, end = 0] = header;
    this.type = typeOf(type);
    this.start = start;
    this.end = end;
    this.bodyLength = body.length;
    this.#members = members;
    this.#elements = elements;
    this.#ids = ids;
    const text = bufferOf(body);
    for (let at = 0; at < members.length; at += memberWords) {
      const name = text.toString('utf8', members[at], members[at + 1]);
      const escaped = ((members[at + 4] as number) & nameEscaped) !== 0;
      this.#at.set(escaped ? (JSON.parse(`"${name}"`) as string) : name, at);
    }
  }

  /** Whether there is no member. */
  get isEmpty(): boolean {
    return this.#at.size === 0;
  }

  /** Names of the members, in the order of the body. */
  names(): string[] {
    return [...this.#at.keys()];
  }

  /** Where a member is; `undefined` where there is none. Names count as they are after unescaping. */
  member(name: string): JsonMember | undefined {
    const at = this.#at.get(name);
    if (at === undefined) return undefined;
    const words = this.#members;
    return {
      nameStart: words[at] as number,
      nameEnd: words[at + 1] as number,
      start: words[at + 2] as number,
      end: words[at + 3] as number,
      type: typeOf((words[at + 4] as number) & 0xff),
    };
  }

  /** The elements of a member that is an array; `undefined` where it is none. */
  elements(name: string): JsonElements | undefined {
    const at = this.#at.get(name);
    if (at === undefined) return undefined;
    const type = this.#members[at + 4] as number;
    const count = this.#members[at + 5] as number;
    const first = this.#members[at + 6] as number;
    if (typeOf(type & 0xff) !== 'array') return undefined;
    const listed = first !== none && (type & arrayOfIds) === 0;
    const own = listed ? this.#elements.subarray(first * elementWords, (first + count) * elementWords) : undefined;
    const word = (index: number, which: number): number => {
      if (own === undefined)
        throw new SagaArgumentError(
          `elements of ${describe(name)} are not listed: it was not asked for, or has numbers`,
        );
      return own[checkInteger('index', index, 0, count - 1) * elementWords + which] as number;
    };
    return {
      count,
      type: typeOfAll(type >>> 16),
      listed,
      at: (index) => ({ start: word(index, 0), end: word(index, 1), type: typeOf(word(index, 2)) }),
      start: (index) => word(index, 0),
      end: (index) => word(index, 1),
    };
  }

  /**
   * The token ids of a member that is an array of nothing else. They lie in memory of the scanner: look at them before it scans again.
   *
   * @returns `undefined` where it is no such array, or they are not there any more or were too many: {@link tokenIds} reads it, or
   * says what is wrong
   */
  ids(name: string): Uint32Array | undefined {
    const at = this.#at.get(name);
    if (at === undefined || ((this.#members[at + 4] as number) & arrayOfIds) === 0) return undefined;
    const first = this.#members[at + 6] as number;
    return this.#ids()?.subarray(first, first + (this.#members[at + 5] as number));
  }
}

/**
 * Reads the array of token ids that is `body[start, end)`; {@link OutlineResult.ids} mostly has them already.
 *
 * @param out receives the ids; must have room for all
 * @returns their number
 * @throws MalformedJsonError where something is no integer from 0 to 2^32 - 1 in plain digits
 * @throws SagaCapacityError `SAGA_ERR_FULL` where `out` is too short
 */
export function tokenIds(body: Uint8Array, start: number, end: number, out: Uint32Array | Int32Array): number {
  checkBytes('body', body);
  checkInteger('end', end, 0, body.length);
  checkInteger('start', start, 0, end);
  if (!(out instanceof Uint32Array || out instanceof Int32Array))
    throw new SagaArgumentError(`out must be a Uint32Array or an Int32Array, got ${describe(out)}`);
  const status = native.jsonTokenIds(body, start, end, out, idsResult);
  const [error = 0, position = 0, count = 0] = idsResult;
  if (status === 0 && error === 0) return count;
  if (status === 0) throw new MalformedJsonError(position, native.jsonErrorText(error));
  throw errorOfStatus(-status, `${count} token ids into room for ${out.length} (${native.statusText(-status)})`);
}

const idsResult = new Uint32Array(3);

/** How many leading bytes two bodies share, at the speed of memory. */
export function commonPrefix(a: Uint8Array, b: Uint8Array): number {
  return native.commonPrefix(checkBytes('a', a), checkBytes('b', b));
}

/** A hash of the bytes, equal on every machine (XXH3). Not for bytes whose author gains by a collision. */
export function hash64(bytes: Uint8Array): bigint {
  return native.hashBytes(checkBytes('bytes', bytes));
}

/**
 * The body with members put in right behind its opening brace: pieces to send one after another. Those that have the bytes of the
 * body are views of it.
 *
 * @param members text of one or more members, such as `"priority":3`; a comma at its end is allowed. It is not checked, nor is it
 * whether the body has such a member ({@link withMembers} replaces)
 */
export function insertMembers(body: Uint8Array, outline: OutlineResult, members: string): Buffer[] {
  const bytes = checkObject(body, outline);
  const text = checkText('members', members).replace(/,\s*$/, '');
  return inserted(bytes, outline, text);
}

function inserted(bytes: Buffer, outline: OutlineResult, text: string): Buffer[] {
  if (text === '') return [bytes];
  const behind = outline.start + 1;
  const comma = outline.isEmpty ? '' : ',';
  return [bytes.subarray(0, behind), Buffer.from(text + comma), bytes.subarray(behind)];
}

/**
 * The body with other members: pieces to send one after another. A member that it has is replaced where it stands, one that it has
 * not is put in behind the opening brace, and one given as `undefined` is left out. Those pieces that have the bytes of the body
 * are views of it.
 *
 * @param members by name, with values that `JSON.stringify` takes
 */
export function withMembers(
  body: Uint8Array,
  outline: OutlineResult,
  members: Readonly<Record<string, unknown>>,
): Buffer[] {
  const bytes = checkObject(body, outline);
  const names = Object.keys(members);
  if (names.every((name) => outline.member(name) === undefined)) {
    // Nothing is replaced, as mostly.
    const text = names.map((name) => textOf(name, members[name])).filter((each) => each !== undefined);
    return inserted(bytes, outline, text.join(','));
  }
  const texts = new Map(names.map((name) => [name, textOf(name, members[name])]));
  const added = [...texts].filter(([name, text]) => text !== undefined && outline.member(name) === undefined);
  const pieces = new Pieces();
  pieces.bytes(bytes.subarray(0, outline.start + 1));
  for (const [, text] of added) pieces.member(text as string);
  // Neighbours that stay are one run of the body, with the commas between them.
  let run: { start: number; end: number } | undefined;
  const flush = (): void => {
    if (run !== undefined) pieces.member(bytes.subarray(run.start, run.end));
    run = undefined;
  };
  for (const name of outline.names()) {
    const { nameStart, end } = outline.member(name) as JsonMember;
    if (texts.has(name)) {
      flush();
      const text = texts.get(name);
      if (text !== undefined) pieces.member(text);
    } else {
      run = { start: run?.start ?? nameStart - 1, end };
    }
  }
  flush();
  pieces.bytes(bytes.subarray(outline.end - 1));
  return pieces.all();
}

/** Collects pieces; texts that follow each other become one. */
class Pieces {
  readonly #pieces: Buffer[] = [];
  #text = '';
  #members = 0;

  member(piece: Buffer | string): void {
    if (this.#members++ !== 0) this.#text += ',';
    if (typeof piece === 'string') this.#text += piece;
    else this.bytes(piece);
  }

  bytes(piece: Buffer): void {
    this.#endText();
    this.#pieces.push(piece);
  }

  all(): Buffer[] {
    this.#endText();
    return this.#pieces;
  }

  #endText(): void {
    if (this.#text !== '') this.#pieces.push(Buffer.from(this.#text));
    this.#text = '';
  }
}

interface Names {
  texts: Uint8Array;
  ends: Uint32Array;
}

function isSame(a: readonly string[], b: readonly string[]): boolean {
  return Array.isArray(a) && a.length === b.length && a.every((name, i) => name === b[i]);
}

function encodeNames(names: readonly string[]): Names {
  if (!Array.isArray(names) || names.length > mostNames)
    throw new SagaArgumentError(`elementsOf must be an array of at most ${mostNames} names, got ${describe(names)}`);
  const texts = names.map((name) => Buffer.from(checkText('a name in elementsOf', name)));
  let end = 0;
  return { texts: Buffer.concat(texts), ends: Uint32Array.from(texts, (text) => (end += text.length)) };
}

/** The member as text, or `undefined` where it is to be left out. */
function textOf(name: string, value: unknown): string | undefined {
  if (value === undefined) return undefined;
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch (cause) {
    throw new SagaArgumentError(`member ${describe(name)} must have a value that JSON can express`, { cause });
  }
  if (text === undefined)
    throw new SagaArgumentError(
      `member ${describe(name)} must have a value that JSON can express, got ${describe(value)}`,
    );
  return `${JSON.stringify(name)}:${text}`;
}

function checkObject(body: Uint8Array, outline: OutlineResult): Buffer {
  checkBytes('body', body);
  if (!(outline instanceof OutlineResult) || outline.type !== 'object')
    throw new SagaArgumentError('outline must be that of a body which is an object');
  if (outline.bodyLength !== body.length)
    throw new SagaArgumentError(`outline is of a body of ${outline.bodyLength} bytes, not of ${body.length}`);
  return bufferOf(body);
}

function checkBytes(name: string, bytes: Uint8Array): Uint8Array {
  if (!(bytes instanceof Uint8Array))
    throw new SagaArgumentError(`${name} must be a Uint8Array, got ${describe(bytes)}`);
  return bytes;
}

function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

function withRoom(words: Uint32Array, needed: number, most: number): Uint32Array {
  return needed <= words.length ? words : new Uint32Array(Math.min(most, Math.max(needed, 2 * words.length)));
}

function typeOf(number: number): JsonType {
  return types[number - 1] as JsonType;
}

/** Of a set of types, bit by number. */
function typeOfAll(set: number): JsonType | 'mixed' | undefined {
  if (set === 0) return undefined;
  return (set & (set - 1)) === 0 ? typeOf(31 - Math.clz32(set)) : 'mixed';
}
