/** BlockHasher: hashes that vLLM published or that were computed with its code, incremental use, salts and refusals. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BlockHasher, SagaArgumentError, type BlockHasherOptions, type HashAlgorithm } from '../src/index.js';

const ids = (...tokens: number[]): Uint32Array => Uint32Array.from(tokens);
const range = (first: number, count: number): Uint32Array<ArrayBuffer> =>
  Uint32Array.from({ length: count }, (_, i) => first + i);
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

function messageOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    if (!(error instanceof SagaArgumentError)) throw error;
    expect(error.code).toBe('SAGA_ERR_INVALID_ARGUMENT');
    return error.message;
  }
  throw new Error('nothing was thrown');
}

describe("vLLM's hashes", () => {
  it('sha256_cbor: the root is the SHA-256 of the CBOR text "0"', () => {
    const hasher = new BlockHasher({ algorithm: 'sha256_cbor' });
    expect(hex(hasher.digest())).toBe('4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e');
  });

  it('sha256_cbor: a block of tokens 10 to 13', () => {
    const hasher = new BlockHasher({ algorithm: 'sha256_cbor', blockTokens: 4, hashSeed: '0' });
    expect([...hasher.update(ids(10, 11, 12, 13))]).toEqual([185451944313227130n]);
    expect(hex(hasher.digest())).toBe('398c246ffafbdd52fd77aeeb90e6a134c3cfffac128d0a960292db8f8fb2077a');
  });

  it('sha256_cbor: two chained blocks of 16', () => {
    const hasher = new BlockHasher({ algorithm: 'sha256_cbor' });
    expect([...hasher.update(range(0, 16))]).toEqual([12687895063098490012n]);
    expect(hex(hasher.digest())).toBe('d830de3d42c00f25a2949b5d12d98642664a44872c1614c5b0147556276afc9c');
    expect([...hasher.update(range(16, 16))]).toEqual([1814341696565857452n]);
    expect(hex(hasher.digest())).toBe('fedd9e4abebebbe6f6cf96b682f08d316063fe2f22a5c552192dd62904fcccac');
    expect([...hasher.reset().update(range(0, 32))]).toEqual([12687895063098490012n, 1814341696565857452n]);
  });

  it('sha256_cbor with tagged keys: a salted block and the next one, as vLLM 0.33.0 hashes them', () => {
    const hasher = new BlockHasher({ algorithm: 'sha256_cbor', blockTokens: 4, taggedKeys: true });
    hasher.reset({ cacheSalt: 'tenant-a' }).update(ids(10, 11, 12, 13));
    expect(hex(hasher.digest())).toBe('74423aabec74138f461c85c297aa273acde1c67604470b7650dd3fe24e8ca42e');
    hasher.update(ids(14, 15, 16, 17));
    expect(hex(hasher.digest())).toBe('a0cad50ac9e352b3c2af33638022de761637d1630111de4c3dc127a1b7a5ed75');
    // Without keys there is nothing to tag.
    hasher.reset().update(ids(10, 11, 12, 13));
    expect(hex(hasher.digest())).toBe('398c246ffafbdd52fd77aeeb90e6a134c3cfffac128d0a960292db8f8fb2077a');
  });

  it('xxhash_cbor: the root and a block of tokens 10 to 13', () => {
    const hasher = new BlockHasher({ algorithm: 'xxhash_cbor', blockTokens: 4 });
    expect(hex(hasher.digest())).toBe('1ebe36576dcb573f26b99533a20aaeca');
    expect([...hasher.update(ids(10, 11, 12, 13))]).toEqual([1744292558691780323n]);
    expect(hex(hasher.digest())).toBe('07699ce0d70dc80d1834f8d7292e46e3');
  });
});

describe("SAGA's own chain", () => {
  // Journals hold these hashes: they must never change.
  it('stays what it is', () => {
    const hasher = new BlockHasher();
    expect(hex(hasher.digest())).toBe('7f498d4624c30160d8984701d306aa99');
    expect([...hasher.update(range(0, 100))]).toEqual([
      11853344357284517410n,
      2714513776917655123n,
      10529944980222600863n,
      3055431628003107769n,
      3750388460532222899n,
      6147269269166885615n,
    ]);
  });

  it('shares no block between salts, and is the same for equal salts', () => {
    const hashes = (salt: string): bigint[] => [...new BlockHasher({ salt }).update(range(0, 64))];
    const all = ['', 'acme', 'acme ', 'Acme', 'größer', '\0'].flatMap(hashes);
    expect(new Set(all).size).toBe(6 * 4);
    expect(hashes('acme')).toEqual(all.slice(4, 8));
  });
});

describe.each<HashAlgorithm>(['saga', 'sha256_cbor', 'xxhash_cbor'])('%s', (algorithm) => {
  it('is the same in any number of steps, and a change of one token changes all that follows', () => {
    fc.assert(
      fc.property(
        fc.uint32Array({ minLength: 1, maxLength: 80 }),
        fc.integer({ min: 1, max: 9 }),
        fc.array(fc.nat(80)),
        fc.nat(79),
        (tokens, blockTokens, cuts, changed) => {
          const whole = new BlockHasher({ algorithm, blockTokens });
          const hashes = whole.update(tokens);
          expect(hashes.length).toBe(Math.floor(tokens.length / blockTokens));

          const steps = new BlockHasher({ algorithm, blockTokens });
          const inSteps: bigint[] = [];
          let from = 0;
          for (const cut of [...cuts, tokens.length].sort((a, b) => a - b)) {
            inSteps.push(...steps.update(tokens.subarray(from, cut)));
            from += Math.floor(Math.max(0, Math.min(cut, tokens.length) - from) / blockTokens) * blockTokens;
          }
          expect(inSteps).toEqual([...hashes]);
          expect(steps.digest()).toEqual(whole.digest());

          const at = changed % tokens.length;
          const other = tokens.slice();
          other[at] = (other[at] as number) ^ 1;
          const otherHashes = new BlockHasher({ algorithm, blockTokens }).update(other);
          hashes.forEach((hash, block) => {
            expect(hash === otherHashes[block]).toBe(block < Math.floor(at / blockTokens));
          });
        },
      ),
      { numRuns: 60, seed: 1 },
    );
  });

  it('reads views where they lie, shared memory too, and nothing of a detached buffer', () => {
    const hasher = new BlockHasher({ algorithm });
    const expected = hasher.update(range(5, 32));
    const padded = new Uint32Array(40);
    padded.set(range(5, 32), 3);
    expect(hasher.reset().update(padded.subarray(3, 35))).toEqual(expected);
    const shared = new Uint32Array(new SharedArrayBuffer(160), 12, 32);
    shared.set(range(5, 32));
    expect(hasher.reset().update(shared)).toEqual(expected);
    const detached = range(5, 32);
    structuredClone(detached, { transfer: [detached.buffer] });
    expect(hasher.reset().update(detached)).toEqual(new BigUint64Array(0));
  });

  it('writes to the array that it is given, and only as much as there are blocks', () => {
    const hasher = new BlockHasher({ algorithm });
    const expected = hasher.update(range(0, 40));
    const room = new BigUint64Array(5).fill(7n);
    const written = hasher.reset().update(range(0, 40), room.subarray(1));
    expect(written).toEqual(expected);
    expect(written.buffer).toBe(room.buffer);
    expect([...room]).toEqual([7n, ...expected, 7n, 7n]);
    expect(hasher.update(range(0, 15))).toEqual(new BigUint64Array(0));
  });
});

describe('keys of a request', () => {
  it('a LoRA adapter changes every block, a cache salt the first and so all', () => {
    const hasher = new BlockHasher({ algorithm: 'sha256_cbor' });
    const plain = [...hasher.update(range(0, 48))];
    const lora = [...hasher.reset({ loraName: 'lora-a' }).update(range(0, 48))];
    const salted = [...hasher.reset({ cacheSalt: 'salt-1' }).update(range(0, 48))];
    const both = [...hasher.reset({ loraName: 'lora-a', cacheSalt: 'salt-1' }).update(range(0, 48))];
    expect(new Set([...plain, ...lora, ...salted, ...both]).size).toBe(12);
    expect([...hasher.reset().update(range(0, 48))]).toEqual(plain);
    expect([...hasher.reset({ loraName: '', cacheSalt: '' }).update(range(0, 48))]).toEqual(plain);
  });

  it('may have 1,024 bytes each, not characters', () => {
    const hasher = new BlockHasher({ algorithm: 'xxhash_cbor' });
    expect(() => hasher.reset({ loraName: 'x'.repeat(1024), cacheSalt: 'ü'.repeat(512) })).not.toThrow();
    expect(messageOf(() => hasher.reset({ loraName: 'x'.repeat(1025) }))).toBe(
      'loraName must have at most 1024 bytes, got 1025',
    );
    expect(messageOf(() => hasher.reset({ cacheSalt: 'ü'.repeat(513) }))).toBe(
      'cacheSalt must have at most 1024 bytes, got 1026',
    );
  });

  it('that are refused reset nothing', () => {
    const hasher = new BlockHasher({ algorithm: 'sha256_cbor' });
    hasher.update(range(0, 16));
    expect(messageOf(() => hasher.reset({ loraName: 5 as never }))).toBe('loraName must be a string, got 5');
    expect([...hasher.update(range(16, 16))]).toEqual([1814341696565857452n]);
  });
});

describe('what is refused', () => {
  it.each<[unknown, string]>([
    [null, 'options must be an object, got null'],
    ['saga', 'options must be an object, got "saga"'],
    [{ algorithm: 'md5' }, 'algorithm must be one of saga, sha256_cbor, xxhash_cbor, got "md5"'],
    [{ algorithm: null, blockTokens: 0 }, 'blockTokens must be an integer from 1 to 4096, got 0'],
    [{ blockTokens: 4097 }, 'blockTokens must be an integer from 1 to 4096, got 4097'],
    [{ blockTokens: 1.5 }, 'blockTokens must be an integer from 1 to 4096, got 1.5'],
    [{ blockTokens: 16n }, 'blockTokens must be an integer from 1 to 4096, got 16n'],
    [{ hashSeed: '0' }, 'hashSeed is for sha256_cbor and xxhash_cbor; saga takes salt'],
    [{ taggedKeys: true }, 'taggedKeys is for sha256_cbor and xxhash_cbor'],
    [{ algorithm: 'sha256_cbor', taggedKeys: 1 as unknown as boolean }, 'taggedKeys must be true or false, got 1'],
    [{ algorithm: 'sha256_cbor', salt: 'a' }, 'salt is for saga; vLLM takes its salt by reset({ cacheSalt })'],
    [{ salt: 5 }, 'salt must be a string, got 5'],
    [{ salt: '\ud800' }, 'salt must be well-formed Unicode, got half of a surrogate pair'],
    [{ algorithm: 'sha256_cbor', hashSeed: '' }, 'hashSeed must have 1 to 64 bytes, got none'],
    [{ algorithm: 'xxhash_cbor', hashSeed: '1'.repeat(65) }, 'hashSeed must have at most 64 bytes, got 65'],
    [{ algorithm: 'xxhash_cbor', hashSeed: 0 }, 'hashSeed must be a string, got 0'],
  ])('%o', (options, message) => {
    expect(messageOf(() => new BlockHasher(options as BlockHasherOptions))).toBe(message);
  });

  it('keys with SAGA’s own chain', () => {
    const hasher = new BlockHasher();
    const first = [...hasher.update(range(0, 16))];
    expect(messageOf(() => hasher.reset({ cacheSalt: 'x' }))).toBe(
      'loraName and cacheSalt are for sha256_cbor and xxhash_cbor',
    );
    expect(messageOf(() => hasher.reset('x' as never))).toBe('options must be an object, got "x"');
    expect([...hasher.update(range(0, 16))]).not.toEqual(first);
    expect([...hasher.reset({}).update(range(0, 16))]).toEqual(first);
  });

  it('tokens of another type, and an array without room', () => {
    const hasher = new BlockHasher();
    expect(messageOf(() => hasher.update([1, 2] as never))).toBe('tokens must be a Uint32Array, got Array');
    expect(messageOf(() => hasher.update(new Int32Array(16) as never))).toBe(
      'tokens must be a Uint32Array, got Int32Array',
    );
    expect(messageOf(() => hasher.update(range(0, 32), new BigUint64Array(1)))).toBe(
      'out must be a BigUint64Array with room for 2 hashes, got for 1',
    );
    expect(messageOf(() => hasher.update(range(0, 32), new BigInt64Array(2) as never))).toBe(
      'out must be a BigUint64Array with room for 2 hashes, got BigInt64Array',
    );
    const detached = new BigUint64Array(2);
    structuredClone(detached, { transfer: [detached.buffer] });
    expect(messageOf(() => hasher.update(range(0, 32), detached))).toBe(
      'out must be a BigUint64Array with room for 2 hashes, got for 0',
    );
  });

  it('takes the defaults for undefined', () => {
    const hasher = new BlockHasher({ algorithm: undefined, blockTokens: undefined } as never);
    expect([hasher.algorithm, hasher.blockTokens]).toEqual(['saga', 16]);
  });
});
