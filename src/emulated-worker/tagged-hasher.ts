/**
 * Block hashes as vLLM 0.33 makes them where a request has a salt or an adapter: there these keys are named in the hash,
 * `("cache_salt", salt)` and `("lora", name)`, so that no salt can be taken for an adapter. Releases before it, and
 * {@link BlockHasher}, hash the bare texts. `sha256_cbor` only.
 *
 * The hash of a block is SHA-256 of the CBOR of (parent, tokens, keys or null). Costs some 2 microseconds a block.
 */
import { createHash } from 'node:crypto';
import type { RequestKeys } from '../hasher.js';

const noKeys: Buffer = Buffer.of(0xf6);

export class TaggedHasher {
  readonly #blockTokens: number;
  readonly #root: Buffer;
  #parent: Buffer;
  /** CBOR of the keys of the first block, and of those behind it. */
  #firstKeys: Buffer = noKeys;
  #otherKeys: Buffer = noKeys;

  constructor(blockTokens: number, hashSeed: string) {
    this.#blockTokens = blockTokens;
    this.#root = createHash('sha256').update(text(hashSeed)).digest();
    this.#parent = this.#root;
  }

  reset(keys: RequestKeys = {}): this {
    this.#parent = this.#root;
    const lora = keys.loraName ? [tagged('lora', keys.loraName)] : [];
    const salt = keys.cacheSalt ? [tagged('cache_salt', keys.cacheSalt)] : [];
    this.#firstKeys = tuple([...lora, ...salt]);
    this.#otherKeys = tuple(lora);
    return this;
  }

  update(tokens: Uint32Array, out?: BigUint64Array): BigUint64Array {
    const blocks = Math.floor(tokens.length / this.#blockTokens);
    const hashes = out ?? new BigUint64Array(blocks);
    for (let block = 0; block < blocks; block++) {
      const of = tokens.subarray(block * this.#blockTokens, (block + 1) * this.#blockTokens);
      const keys = this.#parent === this.#root ? this.#firstKeys : this.#otherKeys;
      const parts = [Buffer.of(0x83), head(2, this.#parent.length), this.#parent, head(4, of.length)];
      for (const token of of) parts.push(head(0, token));
      parts.push(keys);
      this.#parent = createHash('sha256').update(Buffer.concat(parts)).digest();
      hashes[block] = this.#parent.readBigUInt64BE(24);
    }
    return hashes.subarray(0, blocks);
  }

  digest(): Uint8Array {
    return new Uint8Array(this.#parent);
  }
}

/** The head of a CBOR item: its major type, and a number. */
function head(major: number, value: number): Buffer {
  const type = major << 5;
  if (value < 24) return Buffer.of(type | value);
  if (value < 2 ** 8) return Buffer.of(type | 24, value);
  if (value < 2 ** 16) return Buffer.of(type | 25, value >> 8, value & 255);
  const four = Buffer.alloc(5, type | 26);
  four.writeUInt32BE(value, 1);
  return four;
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value, 'utf8');
  return Buffer.concat([head(3, bytes.length), bytes]);
}

function tagged(name: string, value: string): Buffer {
  return Buffer.concat([head(4, 2), text(name), text(value)]);
}

function tuple(keys: readonly Buffer[]): Buffer {
  return keys.length === 0 ? noKeys : Buffer.concat([head(4, keys.length), ...keys]);
}
