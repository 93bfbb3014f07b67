import native from './native.cjs';
import { checkInteger, checkOneOf, checkOptions, checkText, describe } from './check.js';
import { SagaArgumentError, errorOfStatus } from './errors.js';

const algorithms = ['saga', 'sha256_cbor', 'xxhash_cbor'] as const;

/**
 * How the tokens of a block, chained to everything before it, become its hash.
 *
 * - `saga`: SAGA's own chain of XXH3-128; the fastest
 * - `sha256_cbor`, `xxhash_cbor`: vLLM's `--prefix-caching-hash-algo` of these names, bit for bit
 */
export type HashAlgorithm = (typeof algorithms)[number];

/** How a {@link BlockHasher} hashes. */
export interface BlockHasherOptions {
  /** Default `saga`. */
  algorithm?: HashAlgorithm;
  /** Tokens a block, 1 to 4,096. Default 16. */
  blockTokens?: number;
  /** `saga` only: chains with different salts share no block. The salt isolates tenants. Default empty. */
  salt?: string;
  /** vLLM's algorithms only: the value of `PYTHONHASHSEED` of the engine, 1 to 64 bytes. Default `0`. */
  hashSeed?: string;
  /**
   * vLLM's algorithms only: LoRA names and salts enter the hashes each with its kind, as in vLLM 0.32 and 0.33. Default `false`: bare,
   * as before. With it no chain of an adapter can be known: the engine hashes the path of the adapter, too.
   */
  taggedKeys?: boolean;
}

/** @internal The number of an algorithm for the native side. */
export function nativeAlgorithm(algorithm: number, taggedKeys: unknown): number {
  const tagged = taggedKeys ?? false;
  if (typeof tagged !== 'boolean')
    throw new SagaArgumentError(`taggedKeys must be true or false, got ${describe(tagged)}`);
  if (tagged && algorithm === 0) throw new SagaArgumentError('taggedKeys is for sha256_cbor and xxhash_cbor');
  return tagged ? algorithm + 2 : algorithm;
}

/** What a request brings besides tokens (vLLM's extra keys). An empty string counts as none. */
export interface RequestKeys {
  /** Name of the LoRA adapter, at most 1,024 bytes. */
  loraName?: string;
  /** vLLM's `cache_salt`, at most 1,024 bytes. */
  cacheSalt?: string;
}

/** Most blocks that one call of {@link BlockHasher.update} takes. */
const mostBlocks = 2 ** 24;

const mostKeyBytes = 1024;

/**
 * Hashes token blocks into a chain: the hash of a block names its tokens and everything before them.
 *
 * The chain is incremental: {@link update} continues where the last call ended, so a workflow that grows hashes its new
 * blocks only. Cost: some 5 ns a block of 16 tokens for `saga`, plus 0.1 microseconds a call.
 */
export class BlockHasher {
  readonly algorithm: HashAlgorithm;
  /** Tokens a block. */
  readonly blockTokens: number;
  readonly #native: native.Hasher;

  /** @throws SagaArgumentError for an option outside its range, or one that the algorithm does not have */
  constructor(options: BlockHasherOptions = {}) {
    checkOptions(options);
    const algorithm = checkOneOf('algorithm', options.algorithm ?? 'saga', algorithms);
    this.algorithm = algorithms[algorithm] as HashAlgorithm;
    this.blockTokens = checkInteger('blockTokens', options.blockTokens ?? 16, 1, 4096);
    const own = this.algorithm === 'saga';
    if (own && options.hashSeed !== undefined)
      throw new SagaArgumentError('hashSeed is for sha256_cbor and xxhash_cbor; saga takes salt');
    if (!own && options.salt !== undefined)
      throw new SagaArgumentError('salt is for saga; vLLM takes its salt by reset({ cacheSalt })');
    const root = own ? checkText('salt', options.salt ?? '') : checkText('hashSeed', options.hashSeed ?? '0', 64);
    if (!own && root === '') throw new SagaArgumentError('hashSeed must have 1 to 64 bytes, got none');
    const hasher = native.createHasher(nativeAlgorithm(algorithm, options.taggedKeys), this.blockTokens, root);
    if (typeof hasher === 'number')
      throw errorOfStatus(-hasher, `the hasher could not be made: ${native.statusText(-hasher)}`);
    this.#native = hasher;
  }

  /**
   * Back to the root: the next block is the first of a prompt.
   *
   * @param keys for vLLM's algorithms only; keys of an earlier reset are forgotten
   * @throws SagaArgumentError for keys that are too long, or with `saga`; then nothing was reset
   */
  reset(keys?: RequestKeys): this {
    if (keys !== undefined) checkOptions(keys);
    if (this.algorithm === 'saga') {
      if (keys?.loraName !== undefined || keys?.cacheSalt !== undefined)
        throw new SagaArgumentError('loraName and cacheSalt are for sha256_cbor and xxhash_cbor');
      this.#native.reset();
      return this;
    }
    const loraName = checkText('loraName', keys?.loraName ?? '', mostKeyBytes);
    const cacheSalt = checkText('cacheSalt', keys?.cacheSalt ?? '', mostKeyBytes);
    this.#native.reset();
    const status = this.#native.setKeys(loraName, cacheSalt);
    if (status < 0) throw errorOfStatus(-status, `loraName and cacheSalt (${native.statusText(-status)})`);
    return this;
  }

  /**
   * Hashes the full blocks of `tokens` as the continuation of what was hashed before; a rest of less than a block is
   * ignored, give it again when the block is full.
   *
   * @param tokens token ids, a whole prompt or the part since the last full block; at most 2^24 blocks
   * @param out receives one hash a block; must have room for `Math.floor(tokens.length / blockTokens)`. Default: a new array
   * @returns the hashes: `out`, cut to their number
   */
  update(tokens: Uint32Array, out?: BigUint64Array): BigUint64Array {
    if (!(tokens instanceof Uint32Array))
      throw new SagaArgumentError(`tokens must be a Uint32Array, got ${describe(tokens)}`);
    const blocks = Math.floor(tokens.length / this.blockTokens);
    if (blocks > mostBlocks)
      throw new SagaArgumentError(`tokens must have at most ${mostBlocks} blocks, got ${blocks}`);
    const hashes = out ?? new BigUint64Array(blocks);
    if (!(hashes instanceof BigUint64Array) || hashes.length < blocks) {
      const got = hashes instanceof BigUint64Array ? `for ${hashes.length}` : describe(hashes);
      throw new SagaArgumentError(`out must be a BigUint64Array with room for ${blocks} hashes, got ${got}`);
    }
    const count = this.hashInto(tokens, hashes);
    return count === hashes.length ? hashes : hashes.subarray(0, count);
  }

  /** The whole digest of the last block (or of the root): 16 bytes for `saga` and `xxhash_cbor`, else 32. */
  digest(): Uint8Array {
    const bytes = new Uint8Array(32);
    return bytes.slice(0, this.#native.digest(bytes));
  }

  /** @internal {@link update} without a check and without an array of its own: the number of hashes written to `out`. */
  hashInto(tokens: Uint32Array, out: BigUint64Array): number {
    const count = this.#native.update(tokens, out);
    if (count < 0) throw errorOfStatus(-count, `the blocks could not be hashed (${native.statusText(-count)})`);
    return count;
  }
}
