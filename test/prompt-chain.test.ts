/** Prompt chains beside a BlockHasher that begins anew: literals, refusals, random updates, truncations and forks. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  BlockHasher,
  PromptChain,
  SagaArgumentError,
  SagaCapacityError,
  SagaStateError,
  type PromptChainOptions,
} from '../src/index.js';

const tokensOf = (...ids: number[]): Uint32Array => Uint32Array.from(ids);

function hashedAnew(options: PromptChainOptions, tokens: Uint32Array): BigUint64Array {
  const { loraName, cacheSalt, maxTokens: _, ...own } = options;
  const hasher = new BlockHasher(own);
  const keys = {
    ...(loraName === undefined ? {} : { loraName }),
    ...(cacheSalt === undefined ? {} : { cacheSalt }),
  };
  return (hasher.algorithm === 'saga' ? hasher.reset() : hasher.reset(keys)).update(tokens);
}

describe('a prompt chain', () => {
  it('hashes from the first block that differs on', () => {
    const chain = new PromptChain({ blockTokens: 2 });
    expect([chain.length, chain.blocks, chain.chain]).toEqual([0, 0, new BigUint64Array()]);
    expect(chain.update(tokensOf(1, 2, 3, 4, 5))).toEqual({ commonTokens: 0, hashedBlocks: 2 });
    expect(chain.update(tokensOf(1, 2, 3, 4, 5, 6, 7, 8))).toEqual({ commonTokens: 5, hashedBlocks: 2 });
    expect(chain.append(tokensOf(9))).toEqual({ commonTokens: 8, hashedBlocks: 0 });
    expect(chain.append(Int32Array.of(10))).toEqual({ commonTokens: 9, hashedBlocks: 1 });
    expect(chain.update(Int32Array.of(1, 2, 3, 9, 5, 6))).toEqual({ commonTokens: 3, hashedBlocks: 2 });
    expect([chain.length, chain.blocks]).toEqual([6, 3]);
    expect(chain.chain).toEqual(hashedAnew({ blockTokens: 2 }, tokensOf(1, 2, 3, 9, 5, 6)));
    chain.truncate(3);
    expect([chain.length, chain.blocks, chain.chain.length]).toEqual([3, 1, 1]);
    const { tokensCompared, tokensHashed, memoryBytes } = chain.stats();
    expect([tokensCompared, tokensHashed]).toEqual([5 + 4, 4 + 4 + 2 + 4]);
    expect(memoryBytes).toBeGreaterThan(4096 * 4);
    expect(chain.verify()).toBe(true);
  });

  it('copies hashes and tokens to arrays of the caller', () => {
    const chain = new PromptChain();
    const tokens = Uint32Array.from({ length: 40 }, (_, i) => i);
    chain.update(tokens);
    const hashes = new BigUint64Array(3).fill(7n);
    expect(chain.chainInto(hashes)).toBe(2);
    expect([...hashes]).toEqual([...hashedAnew({}, tokens), 7n]);
    const copy = new Int32Array(41).fill(7);
    expect(chain.tokensInto(copy)).toBe(40);
    expect([...copy]).toEqual([...tokens, 7]);
  });

  it('is a BlockHasher of the same options and keys, through any changes', () => {
    const kinds: PromptChainOptions[] = [
      {},
      { salt: 'tenant' },
      { algorithm: 'sha256_cbor', hashSeed: '42' },
      { algorithm: 'sha256_cbor', loraName: 'adapter', cacheSalt: 'salt' },
      { algorithm: 'sha256_cbor', cacheSalt: 'salt', taggedKeys: true },
      { algorithm: 'xxhash_cbor', cacheSalt: 'salt' },
    ];
    const change = fc.record({
      line: fc.nat(3),
      kind: fc.constantFrom('update', 'append', 'truncate', 'fork'),
      kept: fc.double({ min: 0, max: 1, noNaN: true }),
      added: fc.uint32Array({ maxLength: 60 }),
    });
    fc.assert(
      fc.property(
        fc.constantFrom(...kinds),
        fc.constantFrom(1, 4, 16),
        fc.array(change, { maxLength: 12 }),
        (kind, blockTokens, changes) => {
          const options = { ...kind, blockTokens };
          const lines = [{ chain: new PromptChain(options), tokens: new Uint32Array() }];
          for (const { line: number, kind: what, kept, added } of changes) {
            const line = lines[number % lines.length] as (typeof lines)[number];
            const { chain, tokens } = line;
            const prefix = tokens.slice(0, Math.floor(kept * tokens.length));
            if (what === 'truncate') {
              chain.truncate(prefix.length);
              line.tokens = prefix;
            } else if (what === 'fork') {
              lines.push({ chain: chain.fork(prefix.length), tokens: prefix });
            } else {
              line.tokens = Uint32Array.from([...(what === 'append' ? tokens : prefix), ...added]);
              const { commonTokens, hashedBlocks } =
                what === 'append' ? chain.append(added) : chain.update(line.tokens);
              const differs = line.tokens.findIndex((token, i) => token !== tokens[i]);
              expect(commonTokens).toBe(differs < 0 ? line.tokens.length : differs);
              const blocks = (count: number): number => Math.floor(count / blockTokens);
              expect(hashedBlocks).toBe(blocks(line.tokens.length) - blocks(commonTokens));
            }
            for (const each of lines) {
              expect(each.chain.length).toBe(each.tokens.length);
              expect(each.chain.chain).toEqual(hashedAnew(options, each.tokens));
            }
          }
          expect(lines.every((each) => each.chain.verify())).toBe(true);
        },
      ),
      { seed: 5, numRuns: 150 },
    );
  });

  it('has forks that live by themselves', () => {
    const chain = new PromptChain({ algorithm: 'xxhash_cbor', loraName: 'l', blockTokens: 4, maxTokens: 100 });
    chain.update(Uint32Array.from({ length: 50 }, (_, i) => i));
    const fork = chain.fork();
    const before = chain.chain;
    chain.update(tokensOf(5));
    chain.close();
    expect([fork.algorithm, fork.blockTokens, fork.maxTokens, fork.length]).toEqual(['xxhash_cbor', 4, 100, 50]);
    expect(fork.chain).toEqual(before);
    expect(fork.stats()).toMatchObject({ tokensCompared: 0, tokensHashed: 0 });
    expect(() => fork.append(new Uint32Array(51))).toThrow(SagaCapacityError);
  });

  it('refuses more than its bound and wrong arguments, and stays as it is', () => {
    const chain = new PromptChain({ maxTokens: 20 });
    chain.update(new Uint32Array(18));
    const before = chain.chain;
    for (const action of [() => chain.update(new Uint32Array(21)), () => chain.append(new Uint32Array(3))]) {
      expect(action).toThrow(SagaCapacityError);
    }
    for (const action of [
      () => chain.update([1] as never),
      () => chain.append(new Float64Array(1) as never),
      () => chain.truncate(19),
      () => chain.fork(19),
      () => chain.fork(-1),
      () => chain.chainInto(new BigUint64Array()),
      () => chain.chainInto(new Uint32Array(9) as never),
      () => chain.tokensInto(new Uint32Array(17)),
      () => new PromptChain({ maxTokens: 0 }),
      () => new PromptChain({ maxTokens: 2 ** 28 + 1 }),
      () => new PromptChain({ blockTokens: 4097 }),
      () => new PromptChain({ algorithm: 'md5' as never }),
      () => new PromptChain({ loraName: 'l' }),
      () => new PromptChain({ cacheSalt: 's' }),
      () => new PromptChain({ hashSeed: '0' }),
      () => new PromptChain({ algorithm: 'sha256_cbor', salt: 's' }),
      () => new PromptChain({ algorithm: 'sha256_cbor', hashSeed: '' }),
      () => new PromptChain({ algorithm: 'sha256_cbor', loraName: 'x'.repeat(1025) }),
      () => new PromptChain(5 as never),
    ]) {
      expect(action).toThrow(SagaArgumentError);
    }
    expect([chain.length, chain.chain]).toEqual([18, before]);
    expect(chain.append(new Uint32Array(2))).toEqual({ commonTokens: 18, hashedBlocks: 0 });
  });

  it('is of no use when it was closed', () => {
    const chain = new PromptChain();
    chain.close();
    chain.close();
    for (const action of [
      () => chain.update(tokensOf(1)),
      () => chain.append(tokensOf(1)),
      () => chain.truncate(0),
      () => chain.chain,
      () => chain.tokensInto(tokensOf()),
      () => chain.fork(),
      () => chain.stats(),
      () => chain.verify(),
    ]) {
      expect(action).toThrow(SagaStateError);
    }
  });
});
