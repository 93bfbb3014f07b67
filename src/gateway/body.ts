/** Bodies of requests: read within bounds, then outlined. */
import type { IncomingMessage } from 'node:http';
import { SagaError } from '../errors.js';
import type { JsonOutline } from '../json-outline.js';
import { MalformedJsonError, type JsonMember, type OutlineResult } from '../json-outline.js';
import type { Deadline, Deadlines } from './deadlines.js';
import { GatewayError } from './errors.js';

/** Bytes of requests that are held at one time, over all connections. */
export class HeldBytes {
  readonly most: number;
  now = 0;

  constructor(most: number) {
    this.most = most;
  }

  take(bytes: number): void {
    if (this.now + bytes > this.most) {
      throw new GatewayError('queue_full', 'the gateway holds as many bytes of requests as it may; try again', {
        retryAfter: 1,
        closes: true,
      });
    }
    this.now += bytes;
  }

  give(bytes: number): void {
    this.now -= bytes;
  }
}

/** Of one body, and of all. */
export interface BodyLimits {
  readonly maxBodyBytes: number;
  readonly bodySeconds: number;
  readonly held: HeldBytes;
  readonly deadlines: Deadlines;
}

/**
 * Reads a body. What was taken of `held` is the caller's to give back: the length of the result; where this throws, nothing.
 *
 * @throws GatewayError for one that is too large, encoded, or does not arrive in time
 */
export async function readBody(request: IncomingMessage, limits: BodyLimits): Promise<Buffer> {
  const { maxBodyBytes } = limits;
  const encoding = request.headers['content-encoding'];
  if (encoding !== undefined && encoding !== 'identity')
    throw new GatewayError('unsupported_media_type', 'the body must come without content-encoding', { closes: true });
  const length = request.headers['content-length'];
  if (length !== undefined && Number(length) > maxBodyBytes) throw tooLarge(maxBodyBytes);
  if (request.readableEnded || request.destroyed)
    throw new Error('the body was read before the gateway got the request: no body parser may stand before it');
  return await new Promise<Buffer>((resolve, reject) => {
    new BodyReader(request, limits, resolve, reject);
  });
}

/** One body on its way. Its listeners stay: to take them away costs more than to let them hear what does not matter any more. */
class BodyReader {
  readonly #limits: BodyLimits;
  readonly #resolve: (body: Buffer) => void;
  readonly #reject: (error: GatewayError) => void;
  readonly #deadline: Deadline;
  #chunks: Buffer[] = [];
  #bytes = 0;
  #done = false;

  constructor(
    request: IncomingMessage,
    limits: BodyLimits,
    resolve: (body: Buffer) => void,
    reject: (error: GatewayError) => void,
  ) {
    this.#limits = limits;
    this.#resolve = resolve;
    this.#reject = reject;
    const { bodySeconds, deadlines } = limits;
    this.#deadline = deadlines.begin(bodySeconds, () => {
      this.#fail('request_timeout', `the body did not arrive within ${bodySeconds} seconds`);
    });
    const onGone = (): void => {
      this.#fail('request_timeout', 'the connection closed before the body was complete');
    };
    request.on('data', (chunk: Buffer) => {
      this.#take(chunk);
    });
    request.on('end', () => {
      this.#end();
    });
    request.on('close', onGone);
    request.on('error', onGone);
  }

  #take(chunk: Buffer): void {
    if (this.#done) return;
    const { held, maxBodyBytes } = this.#limits;
    try {
      if (this.#bytes + chunk.length > maxBodyBytes) throw tooLarge(maxBodyBytes);
      held.take(chunk.length);
    } catch (error) {
      this.#refuse(error as GatewayError);
      return;
    }
    this.#bytes += chunk.length;
    this.#chunks.push(chunk);
  }

  #end(): void {
    if (this.#done) return;
    const chunks = this.#chunks;
    this.#stop();
    this.#resolve(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks, this.#bytes));
  }

  #fail(code: 'request_timeout', message: string): void {
    if (!this.#done) this.#refuse(new GatewayError(code, message, { closes: true }));
  }

  #refuse(error: GatewayError): void {
    this.#stop();
    this.#limits.held.give(this.#bytes);
    this.#reject(error);
  }

  #stop(): void {
    this.#done = true;
    this.#chunks = [];
    this.#deadline.end();
  }
}

function tooLarge(most: number): GatewayError {
  return new GatewayError('body_too_large', `the body must have at most ${most} bytes`, { closes: true });
}

/** @throws GatewayError unless the body is said to be JSON */
export function checkJson(request: IncomingMessage): void {
  const type = request.headers['content-type'];
  if (type === undefined || !/^application\/(?:[\w.+-]+\+)?json\s*(?:;|$)/i.test(type)) {
    const got = type === undefined ? 'none' : JSON.stringify(type.slice(0, 60));
    throw new GatewayError('unsupported_media_type', `content-type must be application/json, got ${got}`, {
      closes: true,
    });
  }
}

/** Arrays of requests whose elements matter. */
const elementsOf = ['messages', 'input', 'prompt', 'tools'] as const;

/** A request's body: its bytes, and where its members are. */
export class Body {
  readonly bytes: Buffer;
  readonly outline: OutlineResult;

  private constructor(bytes: Buffer, outline: OutlineResult) {
    this.bytes = bytes;
    this.outline = outline;
  }

  /** @throws GatewayError for what is not a JSON object */
  static of(bytes: Buffer, scanner: JsonOutline): Body {
    let outline: OutlineResult;
    try {
      outline = scanner.scan(bytes, elementsOf);
    } catch (error) {
      if (error instanceof MalformedJsonError) throw new GatewayError('malformed_json', error.message);
      if (error instanceof SagaError) throw new GatewayError('invalid_request', error.message);
      throw error;
    }
    if (outline.type !== 'object')
      throw new GatewayError('malformed_json', `the body must be a JSON object, got ${article(outline.type)}`);
    return new Body(bytes, outline);
  }

  member(name: string): JsonMember | undefined {
    return this.outline.member(name);
  }

  /** The value of a member; for small ones. `undefined` where there is none, or null. */
  value(name: string): unknown {
    const member = this.outline.member(name);
    if (member === undefined || member.type === 'null') return undefined;
    return JSON.parse(this.bytes.toString('utf8', member.start, member.end));
  }

  /** @throws GatewayError where it is there and no string, or longer than `most` */
  text(name: string, most = 1024): string | undefined {
    const member = this.outline.member(name);
    if (member === undefined || member.type === 'null') return undefined;
    if (member.type !== 'string')
      throw new GatewayError('invalid_request', `${name} must be a string, got ${article(member.type)}`, {
        param: name,
      });
    // Each byte of a string is at most six of its JSON.
    if (member.end - member.start > 6 * most + 2)
      throw new GatewayError('invalid_request', `${name} must have at most ${most} bytes`, { param: name });
    return this.value(name) as string;
  }

  /** @throws GatewayError where it is there and no boolean */
  flag(name: string): boolean | undefined {
    const member = this.outline.member(name);
    if (member === undefined || member.type === 'null') return undefined;
    if (member.type !== 'true' && member.type !== 'false')
      throw new GatewayError('invalid_request', `${name} must be true or false, got ${article(member.type)}`, {
        param: name,
      });
    return member.type === 'true';
  }

  /** @throws GatewayError where it is there and no integer from `least` to `most` */
  integer(name: string, least: number, most: number): number | undefined {
    const member = this.outline.member(name);
    if (member === undefined || member.type === 'null') return undefined;
    const value = member.type === 'number' ? (this.value(name) as number) : Number.NaN;
    if (!Number.isInteger(value) || value < least || value > most)
      throw new GatewayError('invalid_request', `${name} must be an integer from ${least} to ${most}`, { param: name });
    return value;
  }

  /** @throws GatewayError where it is there and no object, or has over 64 KiB */
  object(name: string): Record<string, unknown> | undefined {
    const member = this.outline.member(name);
    if (member === undefined || member.type === 'null') return undefined;
    if (member.type !== 'object' || member.end - member.start > 65_536)
      throw new GatewayError('invalid_request', `${name} must be an object of at most 64 KiB`, { param: name });
    return this.value(name) as Record<string, unknown>;
  }
}

function article(type: string): string {
  return type === 'true' || type === 'false' || type === 'null'
    ? type
    : type === 'array' || type === 'object'
      ? `an ${type}`
      : `a ${type}`;
}
