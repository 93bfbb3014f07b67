/** Outlines of JSON bodies: against JSON.parse on random and damaged texts, ranges, token ids, and bodies with other members. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { SagaError } from '../src/index.js';
import { SagaArgumentError, SagaCapacityError } from '../src/index.js';
import {
  JsonOutline,
  MalformedJsonError,
  commonPrefix,
  hash64,
  insertMembers,
  tokenIds,
  withMembers,
  type OutlineResult,
} from '../src/json-outline.js';

const bytes = (text: string): Buffer => Buffer.from(text);
const textOf = (pieces: Buffer[]): string => Buffer.concat(pieces).toString();
const outline = new JsonOutline();

function thrown(action: () => unknown): Error {
  try {
    action();
  } catch (error) {
    return error as Error;
  }
  throw new Error('nothing was thrown');
}

/** A small generator of its own: the same draws everywhere. */
function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const pick = <T>(random: (below: number) => number, from: readonly T[]): T => from[random(from.length)] as T;

/** A random JSON text with random white space, whose top-level object, if it is one, has no name twice. */
function randomText(random: (below: number) => number): string {
  const space = (): string => pick(random, ['', '', '', ' ', '\n', '\t \r']);
  const string = (): string => {
    const parts = [
      'a',
      'hello, world. ',
      'é',
      '€',
      '😀',
      '\\n',
      '\\"',
      '\\\\',
      '\\u00e9',
      '\\ud83d',
      '/',
      '[',
      '{',
      'x'.repeat(40),
    ];
    return `"${Array.from({ length: random(6) }, () => pick(random, parts)).join('')}"`;
  };
  const number = (): string => pick(random, ['0', '-0', '7', '12', '123456789', '-1.5', '2e10', '0.25E-3', '1e400']);
  const value = (depth: number): string => {
    const kind = random(depth > 4 ? 3 : 6);
    if (kind === 0) return string();
    if (kind === 1) return number();
    if (kind === 2) return pick(random, ['true', 'false', 'null']);
    if (kind < 5) return container('[', ']', () => value(depth + 1));
    return container(
      '{',
      '}',
      (i) => `"k${i}${depth === 0 ? '' : pick(random, ['', 'x'])}"${space()}:${space()}${value(depth + 1)}`,
    );
  };
  const container = (open: string, close: string, one: (i: number) => string): string => {
    const all = Array.from({ length: random(5) }, (_, i) => space() + one(i) + space());
    return open + (all.join(',') || space()) + close;
  };
  return space() + value(0) + space();
}

/** What JSON.parse makes of the bytes, if they are UTF-8; a byte order mark counts as what it is. */
function parsed(body: Uint8Array): { value: unknown } | undefined {
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body);
    return { value: JSON.parse(text) as unknown };
  } catch {
    return undefined;
  }
}

/** Whether it is accepted; `duplicate` where only that was wrong. */
function verdict(body: Uint8Array): boolean | 'duplicate' {
  try {
    outline.scan(body);
    return true;
  } catch (error) {
    if (!(error instanceof MalformedJsonError)) throw error;
    expect(error.position).toBeGreaterThanOrEqual(0);
    expect(error.position).toBeLessThanOrEqual(body.length);
    return error.expected === 'each name once' ? 'duplicate' : false;
  }
}

/** Each member's value, parsed from its range, as the top-level object that the ranges describe. */
function rebuilt(body: Buffer, found: OutlineResult): unknown {
  const at = (start: number, end: number): unknown => JSON.parse(body.toString('utf8', start, end));
  if (found.type !== 'object') return at(found.start, found.end);
  return Object.fromEntries(
    found.names().map((name) => {
      const member = found.member(name);
      const elements = found.elements(name);
      const value = at(member?.start ?? 0, member?.end ?? 0);
      expect(elements !== undefined).toBe(Array.isArray(value));
      if (elements?.listed !== true) return [name, value];
      return [name, Array.from({ length: elements.count }, (_, i) => at(elements.start(i), elements.end(i)))];
    }),
  );
}

describe('scan beside JSON.parse', () => {
  const names = ['k0', 'k1', 'k2', 'k3'];

  it('accepts every text that is JSON, and its ranges have the values', () => {
    const random = randomOf(1);
    for (let i = 0; i < 3000; ++i) {
      const text = randomText(random);
      const body = bytes(text);
      expect(parsed(body), text).toBeDefined();
      expect(rebuilt(body, outline.scan(body, names)), text).toEqual(JSON.parse(text));
    }
  });

  it('accepts a damaged text exactly when JSON.parse does', () => {
    const random = randomOf(2);
    const verdicts = { accepted: 0, refused: 0 };
    const interesting = Buffer.from('"\\{}[]:,-+.eE019tfn u/\n\t\0\x1f\x7f');
    for (let i = 0; i < 30_000; ++i) {
      const body = bytes(randomText(random));
      let damaged = body;
      for (let times = random(3); times >= 0; --times) {
        const at = random(damaged.length + 1);
        const byte = random(2) === 0 ? pick(random, [...interesting]) : random(256);
        const kind = random(4);
        const behind = kind === 0 ? at : at + 1; // put in, or in place of one
        if (kind === 3) damaged = damaged.subarray(0, at);
        else
          damaged = Buffer.concat([
            damaged.subarray(0, at),
            kind === 2 ? Buffer.of() : Buffer.of(byte),
            damaged.subarray(behind),
          ]);
      }
      const expected = parsed(damaged) !== undefined;
      const got = verdict(damaged);
      if (got !== 'duplicate') expect(got, damaged.toString('latin1')).toBe(expected);
      else expect(expected).toBe(true);
      ++verdicts[expected ? 'accepted' : 'refused'];
    }
    expect(verdicts.accepted).toBeGreaterThan(3000);
    expect(verdicts.refused).toBeGreaterThan(3000);
  });

  it('agrees on texts of one to four bytes out of those that matter', () => {
    const alphabet = Buffer.from('{}[]":,0-1.e\\t ');
    const count = alphabet.length;
    for (let length = 1; length <= 4; ++length) {
      const body = Buffer.alloc(length);
      for (let number = 0; number < count ** length; ++number) {
        for (let i = 0, rest = number; i < length; ++i, rest = Math.floor(rest / count))
          body[i] = alphabet[rest % count] as number;
        if ((parsed(body) !== undefined) !== verdict(body)) expect(body.toString()).toBe('alike');
      }
    }
  });

  it('refuses what JSON.parse takes in two cases only', () => {
    const nested = '['.repeat(1025) + ']'.repeat(1025);
    expect(parsed(bytes(nested))).toBeDefined();
    expect(thrown(() => outline.scan(bytes(nested))).message).toBe(
      'malformed JSON at byte 1024: expected at most 1024 levels of objects and arrays',
    );
    expect(verdict(bytes(nested.slice(1, -1)))).toBe(true);
    const twice = '{"model":1,"mod\\u0065l":2}';
    expect(thrown(() => outline.scan(bytes(twice))).message).toBe('malformed JSON at byte 12: expected each name once');
    expect(verdict(bytes('{"a":{"b":1,"b":2}}'))).toBe(true);
  });
});

describe('an outline', () => {
  const body = bytes(
    ' {"model":"m", "messages" : [{"role":"user"},"é" ,[1]], "prompt":[[1,2],[3]], "tools":[], "n":[1,"x"],\n"\\u0061b":null} ',
  );
  const found = outline.scan(body, ['messages', 'prompt', 'tools', 'n', 'missing']);
  const at = ({ start, end }: { start: number; end: number }): string => body.toString('utf8', start, end);

  it('says where members are', () => {
    expect([found.type, found.start, found.end, found.bodyLength]).toEqual(['object', 1, body.length - 1, body.length]);
    expect(found.names()).toEqual(['model', 'messages', 'prompt', 'tools', 'n', 'ab']);
    expect(found.member('model')).toEqual({ nameStart: 3, nameEnd: 8, start: 10, end: 13, type: 'string' });
    const escaped = found.member('ab');
    expect(escaped?.type).toBe('null');
    expect(body.toString('utf8', escaped?.nameStart, escaped?.nameEnd)).toBe('\\u0061b');
    expect(found.member('\\u0061b')).toBeUndefined();
    expect(found.member('role')).toBeUndefined();
  });

  it('says where elements are, and of which type', () => {
    const messages = found.elements('messages');
    expect([messages?.count, messages?.type, messages?.listed]).toEqual([3, 'mixed', true]);
    expect([0, 1, 2].map((i) => at(messages?.at(i) ?? { start: 0, end: 0 }))).toEqual([
      '{"role":"user"}',
      '"é"',
      '[1]',
    ]);
    expect(messages?.at(2)).toEqual({ start: messages?.start(2), end: messages?.end(2), type: 'array' });
    expect([found.elements('prompt')?.type, found.elements('prompt')?.count]).toEqual(['array', 2]);
    expect(at(found.elements('prompt')?.at(1) ?? { start: 0, end: 0 })).toBe('[3]');
    expect([found.elements('tools')?.type, found.elements('tools')?.count]).toEqual([undefined, 0]);
    expect(found.elements('model')).toBeUndefined();
    expect(found.elements('missing')).toBeUndefined();
    expect([found.elements('n')?.type, found.elements('n')?.count, found.elements('n')?.listed]).toEqual([
      'mixed',
      2,
      false,
    ]);
    expect(() => found.elements('n')?.at(0)).toThrow(SagaArgumentError);
    expect(() => messages?.at(3)).toThrow('index must be an integer from 0 to 2, got 3');
    expect(() => found.elements('tools')?.start(0)).toThrow(SagaArgumentError);
    const unasked = outline.scan(body).elements('messages');
    expect([unasked?.count, unasked?.type, unasked?.listed]).toEqual([3, 'mixed', false]);
  });

  it('stays as it is when others are made', () => {
    const other = new JsonOutline();
    const first = other.scan(bytes('{"a":[{}]}'), ['a']);
    other.scan(bytes('{"bbbbbbbb":[{"x":1},{}]}'), ['bbbbbbbb']);
    expect(first.member('a')).toEqual({ nameStart: 2, nameEnd: 3, start: 5, end: 9, type: 'array' });
    expect(first.elements('a')?.at(0)).toEqual({ start: 6, end: 8, type: 'object' });
  });

  it('looks at the names that it is given, not at the array', () => {
    const names = ['a'];
    expect(outline.scan(bytes('{"a":[{}],"b":[{}]}'), names).elements('b')?.listed).toBe(false);
    names[0] = 'b';
    expect(outline.scan(bytes('{"a":[{}],"b":[{}]}'), names).elements('b')?.listed).toBe(true);
  });

  it('grows up to its bounds', () => {
    const many = (members: number, elements: number): Buffer => {
      const object: Record<string, unknown> = { list: Array.from({ length: elements }, () => '') };
      for (let i = 1; i < members; ++i) object[`m${i}`] = i;
      return bytes(JSON.stringify(object));
    };
    const bounded = new JsonOutline({ maxMembers: 300, maxElements: 5000 });
    const largest = bounded.scan(many(300, 5000), ['list']);
    expect([largest.names().length, largest.elements('list')?.count]).toEqual([300, 5000]);
    expect(largest.elements('list')?.end(4999)).toBe((largest.member('list')?.end ?? 0) - 1);
    for (const [members, elements] of [
      [301, 1],
      [1, 5001],
    ] as const) {
      const error = thrown(() => bounded.scan(many(members, elements), ['list']));
      expect(error).toBeInstanceOf(SagaCapacityError);
      expect((error as SagaError).code).toBe('SAGA_ERR_FULL');
    }
    // A name that is there twice is found behind the first room, too.
    const twice = many(200, 1).toString().replace('"m199"', '"m150"');
    expect(verdict(bytes(twice))).toBe('duplicate');
  });

  it('refuses wrong arguments', () => {
    expect(() => outline.scan('{}' as never)).toThrow('body must be a Uint8Array, got "{}"');
    expect(() => outline.scan(bytes('{}'), 'a' as never)).toThrow(SagaArgumentError);
    expect(() => outline.scan(bytes('{}'), [1] as never)).toThrow('a name in elementsOf must be a string, got 1');
    expect(() => outline.scan(bytes('{}'), Array<string>(65).fill('a'))).toThrow(SagaArgumentError);
    expect(() => new JsonOutline({ maxMembers: 4097 })).toThrow(SagaArgumentError);
    expect(() => new JsonOutline({ maxElements: 0 })).toThrow(SagaArgumentError);
    const malformed = thrown(() => outline.scan(bytes('{"a":1,}')));
    expect(malformed).toBeInstanceOf(MalformedJsonError);
    expect(malformed).toBeInstanceOf(SagaArgumentError);
    expect({ ...malformed }).toMatchObject({
      code: 'SAGA_ERR_INVALID_ARGUMENT',
      position: 7,
      expected: 'a name in quotes',
    });
  });
});

describe('tokenIds', () => {
  it('reads a member, and a list within a list', () => {
    const ids = Array.from({ length: 24_576 }, (_, i) => (i * 7919) % 152_000);
    const body = bytes(JSON.stringify({ model: 'm', prompt: ids, batch: [[1, 2], [4294967295]] }));
    const found = outline.scan(body, ['batch']);
    const { start = 0, end = 0 } = found.member('prompt') ?? {};
    const out = new Uint32Array(30_000);
    expect(tokenIds(body, start, end, out)).toBe(24_576);
    expect([...out.subarray(0, 24_576)]).toEqual(ids);
    expect([found.elements('prompt')?.type, found.elements('prompt')?.count]).toEqual(['number', 24_576]);
    const last = found.elements('batch')?.at(1) ?? { start: 0, end: 0 };
    const signed = new Int32Array(1);
    expect([tokenIds(body, last.start, last.end, signed), signed[0]]).toEqual([1, -1]);
  });

  it('refuses what are no ids, with the place in the body, and too little room', () => {
    const body = bytes('{"p":[1,-2,3]}');
    const out = new Uint32Array(2);
    expect(thrown(() => tokenIds(body, 5, 13, out))).toMatchObject({
      message: 'malformed JSON at byte 8: expected a token id, an integer from 0 to 4294967295',
      position: 8,
    });
    const full = thrown(() => tokenIds(bytes('[1,2,3]'), 0, 7, out));
    expect(full).toMatchObject({ code: 'SAGA_ERR_FULL', message: expect.stringContaining('3 token ids') as string });
    expect(() => tokenIds(body, 5, 15, out)).toThrow('end must be an integer from 0 to 14, got 15');
    expect(() => tokenIds(body, 6, 5, out)).toThrow(SagaArgumentError);
    expect(() => tokenIds(body, 5, 13, [] as never)).toThrow(SagaArgumentError);
  });
});

describe('ids of an outline', () => {
  /** With room from the first scan on. */
  const roomy = (): JsonOutline => {
    const scanner = new JsonOutline();
    scanner.scan(bytes(`{"a":[${'1,'.repeat(5000)}1]}`));
    return scanner;
  };

  it('are there until the next scan, once there is room for so many', () => {
    const scanner = new JsonOutline();
    const ids = Array.from({ length: 24_576 }, (_, i) => (i * 7919) % 152_000);
    const body = bytes(
      JSON.stringify({ model: 'm', stop: [7, 8], prompt: ids, other: [1, 2.5], texts: ['1'], none: [] }),
    );
    expect(scanner.scan(body).ids('prompt')).toBeUndefined();
    const found = scanner.scan(body, ['texts', 'prompt']);
    expect(Array.from(found.ids('prompt') ?? [])).toEqual(ids);
    expect(Array.from(found.ids('stop') ?? [])).toEqual([7, 8]);
    for (const name of ['model', 'other', 'texts', 'none', 'missing']) expect(found.ids(name)).toBeUndefined();
    expect([found.elements('prompt')?.listed, found.elements('prompt')?.count]).toEqual([false, 24_576]);
    expect(() => found.elements('prompt')?.at(0)).toThrow('are not listed');
    expect(found.elements('texts')?.listed).toBe(true);
    const next = scanner.scan(bytes('{"prompt":[3]}'));
    expect(found.ids('prompt')).toBeUndefined();
    expect([...(next.ids('prompt') ?? [])]).toEqual([3]);
    expect(() => scanner.scan(bytes('{'))).toThrow(MalformedJsonError);
    expect(next.ids('prompt')).toBeUndefined();
  });

  it('are what JSON.parse makes of any list, and lists are refused where it refuses them', () => {
    const scanner = roomy();
    const space = fc.constantFrom('', '', '', '', ' ', ' ', '\n', '\t ', '\r\n');
    const number = fc.oneof(
      { weight: 30, arbitrary: fc.integer({ min: 0, max: 151_999 }).map(String) },
      { weight: 4, arbitrary: fc.integer({ min: 0, max: 2 ** 32 - 1 }).map(String) },
      {
        weight: 1,
        arbitrary: fc.constantFrom(
          '-1',
          '-0',
          '01',
          '1.0',
          '1e2',
          '1E+2',
          '0e0',
          '1.',
          '.5',
          '4294967296',
          '9'.repeat(25),
          '"1"',
          '[1]',
          'null',
          'x',
          '',
        ),
      },
    );
    const list = fc
      .tuple(space, fc.array(fc.tuple(number, space), { maxLength: 200 }), fc.constantFrom(',', ',', ', '))
      .map(([first, items, separator]) => `[${first}${items.map(([one, blank]) => one + blank).join(separator)}]`);
    const cut = fc.option(fc.nat(1500), { freq: 5, nil: undefined });
    let accepted = 0;
    let refused = 0;
    fc.assert(
      fc.property(list, cut, (array, size) => {
        const text = `{"n":${array},"m":1}`.slice(0, size);
        let parsed: { n?: unknown[] } | undefined;
        try {
          parsed = JSON.parse(text) as { n?: unknown[] };
        } catch {
          refused += 1;
          expect(() => scanner.scan(bytes(text))).toThrow(MalformedJsonError);
          return;
        }
        const found = scanner.scan(bytes(text));
        const values = parsed.n ?? [];
        expect(found.elements('n')?.count).toBe(values.length);
        const plain = array
          .replace(/[[\]\s]/g, '')
          .split(',')
          .every((one) => /^(?:0|[1-9]\d*)$/.test(one) && Number(one) < 2 ** 32);
        const isIds = plain && values.every((one) => typeof one === 'number');
        const ids = found.ids('n');
        expect(ids === undefined ? undefined : Array.from(ids)).toEqual(isIds ? values : undefined);
        accepted += isIds ? 1 : 0;
      }),
      { numRuns: 1500, seed: 5 },
    );
    expect(Math.min(accepted, refused)).toBeGreaterThan(200);
  });
});

describe('bodies with other members', () => {
  const changed = (text: string, members: Record<string, unknown>): string => {
    const body = bytes(text);
    return textOf(withMembers(body, outline.scan(body), members));
  };

  it('are put in behind the opening brace', () => {
    const inserted = (text: string, members: string): string => {
      const body = bytes(text);
      return textOf(insertMembers(body, outline.scan(body), members));
    };
    expect(inserted('{"a":1}', '"priority":3,')).toBe('{"priority":3,"a":1}');
    expect(inserted(' {\n "a":1}', '"x":1,"y":2')).toBe(' {"x":1,"y":2,\n "a":1}');
    expect(inserted('{ }', '"x":1, ')).toBe('{"x":1 }');
    expect(inserted('{}', '')).toBe('{}');
  });

  it('keep every byte of what is not changed', () => {
    expect(changed('{"a":1.0,"b":"\\u0061"}', { c: [1] })).toBe('{"c":[1],"a":1.0,"b":"\\u0061"}');
    expect(changed(' { "a" : 1 , "b" : 2 , "c" : 3 } ', { b: 'x' })).toBe(' {"a" : 1,"b":"x","c" : 3} ');
    expect(changed('{"a":1,"b":2,"c":3}', { a: undefined })).toBe('{"b":2,"c":3}');
    expect(changed('{"a":1,"b":2,"c":3}', { c: undefined, b: undefined })).toBe('{"a":1}');
    expect(changed('{"a":1}', { a: undefined })).toBe('{}');
    expect(changed('{"a":1}', { a: undefined, x: null, y: undefined })).toBe('{"x":null}');
    expect(changed('{}', { x: 1, 'ü"': 2 })).toBe('{"x":1,"ü\\"":2}');
    expect(changed('{}', {})).toBe('{}');
    expect(changed('{"priorit\\u0079":9,"z":1}', { priority: 3 })).toBe('{"priority":3,"z":1}');
  });

  it('are what the same change of the parsed object gives, from views of the body', () => {
    const random = randomOf(3);
    let objects = 0;
    for (let i = 0; i < 3000; ++i) {
      const text = randomText(random);
      const body = bytes(text);
      const found = outline.scan(body);
      if (found.type !== 'object') continue;
      ++objects;
      const members = Object.fromEntries(
        Array.from({ length: random(4) }, () => [
          `k${random(6)}`,
          pick<unknown>(random, [undefined, 3, { a: [1] }, 'é', null]),
        ]),
      );
      const expected = { ...(JSON.parse(text) as object), ...members };
      const pieces = withMembers(body, found, members);
      const kept = Object.entries(expected).filter(([, value]) => value !== undefined);
      expect(JSON.parse(textOf(pieces)), text).toEqual(Object.fromEntries(kept));
      expect(verdict(Buffer.concat(pieces))).toBe(true);
    }
    expect(objects).toBeGreaterThan(300);
    const large = bytes(JSON.stringify({ messages: ['x'.repeat(100_000)] }));
    const [, , view] = withMembers(large, outline.scan(large), { priority: 1 });
    expect(view?.buffer).toBe(large.buffer);
    expect(view?.length).toBeGreaterThan(100_000);
  });

  it('refuse what cannot be', () => {
    const body = bytes('{"a":1}');
    const found = outline.scan(body);
    expect(() => withMembers(bytes('{"a":12}'), found, {})).toThrow('outline is of a body of 7 bytes, not of 8');
    expect(() => withMembers(bytes('[1]'), outline.scan(bytes('[1]')), {})).toThrow(SagaArgumentError);
    expect(() => withMembers(body, {} as never, {})).toThrow(SagaArgumentError);
    expect(() => withMembers(body, found, { f: () => 1 })).toThrow(
      'must have a value that JSON can express, got a function',
    );
    expect(() => withMembers(body, found, { f: 1n })).toThrow(SagaArgumentError);
    expect(() => insertMembers(body, found, 3 as never)).toThrow(SagaArgumentError);
  });
});

describe('bytes', () => {
  it('have a common prefix', () => {
    expect(commonPrefix(bytes('abc'), bytes('abd'))).toBe(2);
    expect(commonPrefix(bytes(''), bytes('abd'))).toBe(0);
    const long = new Uint8Array(100_000).fill(7);
    const other = long.slice();
    expect(commonPrefix(long, other)).toBe(100_000);
    expect(commonPrefix(long.subarray(0, 99_999), other)).toBe(99_999);
    other[54_321] = 8;
    expect(commonPrefix(long, other)).toBe(54_321);
    expect(() => commonPrefix(long, 'x' as never)).toThrow('b must be a Uint8Array, got "x"');
  });

  it('have a hash', () => {
    expect(hash64(bytes(''))).toBe(0x6001c324468d497fn);
    expect(hash64(bytes('ab'))).not.toBe(hash64(bytes('ba')));
    const long = new Uint8Array(100_000).fill(7);
    const before = hash64(long);
    expect(hash64(long.slice())).toBe(before);
    long[99_999] = 8;
    expect(hash64(long)).not.toBe(before);
    expect(() => hash64([] as never)).toThrow(SagaArgumentError);
  });
});
