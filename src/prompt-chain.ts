/// <reference lib="esnext.disposable" preserve="true" />
/**
 * The prompt of one line of a conversation and the hashes of its blocks, extended by what is new.
 *
 * A conversation sends its whole prompt again with every call, a little longer. Of the next prompt a chain compares what both have
 * and hashes from the first block that differs on.
 */
import native from './native.cjs';
import { checkInteger, checkOneOf, checkOptions, checkText, describe } from './check.js';
import { SagaArgumentError, SagaStateError, errorOfStatus } from './errors.js';
import { nativeAlgorithm, type BlockHasherOptions, type HashAlgorithm, type RequestKeys } from './hasher.js';

const algorithms = ['saga', 'sha256_cbor', 'xxhash_cbor'] as const satisfies readonly HashAlgorithm[];

/** How a {@link PromptChain} hashes: as a `BlockHasher` of these options that was reset with these keys. */
export interface PromptChainOptions extends BlockHasherOptions, RequestKeys {
  /** Longest prompt, 1 to 2^28. Default 2^20. Memory grows with the prompt up to it. */
  maxTokens?: number;
}

/** What a prompt was to the one before. */
export interface PromptChange {
  /** Leading tokens that both have. */
  commonTokens: number;
  /** Full blocks behind them, which were hashed. */
  hashedBlocks: number;
}

/** Work since construction, and memory now. */
export interface PromptChainStats {
  tokensCompared: number;
  tokensHashed: number;
  memoryBytes: number;
}

const mostKeyBytes = 1024;
/** What the last call wrote: one array for all chains, as each is read at once. */
const words = new Uint32Array(4);
const statsWords = new Float64Array(3);

/**
 * The token ids of one line of a conversation and their block hashes.
 *
 * {@link update} with a prompt of 100,000 tokens that adds one block costs some 10 microseconds; {@link append}, which is given only
 * what is new, less than one. Memory: 5 bytes a token (blocks of 16 tokens; 6 with `sha256_cbor`), in chunks of 4,096 tokens.
 *
 * Every method throws `SagaArgumentError` for a wrong argument, and `SagaStateError` `SAGA_ERR_CLOSED` after {@link close}. A method
 * that throws has changed nothing. Token ids are 32 bits: those of an `Int32Array` are taken bit for bit.
 *
 * @example
 * ```ts
 * const chain = new PromptChain({ salt: 'tenant-7' });
 * chain.update(prompt);
 * const { commonTokens, hashedBlocks } = chain.update(longerPrompt); // only what differs was hashed
 * console.log(commonTokens, hashedBlocks, chain.chain.length === chain.blocks);
 * ```
 */
export class PromptChain {
  readonly algorithm: HashAlgorithm;
  /** Tokens a block. */
  readonly blockTokens: number;
  readonly maxTokens: number;
  readonly #native: native.PromptChain;
  #length = 0;
  #blocks = 0;
  #closed = false;

  /** @throws SagaArgumentError for an option outside its range, or one that the algorithm does not have */
  constructor(options: PromptChainOptions = {}) {
    if (options instanceof Fork) {
      ({ algorithm: this.algorithm, blockTokens: this.blockTokens, maxTokens: this.maxTokens } = options.of);
      this.#native = made(options.make());
      this.#measured();
      return;
    }
    checkOptions(options);
    const algorithm = checkOneOf('algorithm', options.algorithm ?? 'saga', algorithms);
    this.algorithm = algorithms[algorithm] as HashAlgorithm;
    this.blockTokens = checkInteger('blockTokens', options.blockTokens ?? 16, 1, 4096);
    this.maxTokens = checkInteger('maxTokens', options.maxTokens ?? 2 ** 20, 1, 2 ** 28);
    const own = this.algorithm === 'saga';
    if (own && options.hashSeed !== undefined)
      throw new SagaArgumentError('hashSeed is for sha256_cbor and xxhash_cbor; saga takes salt');
    if (own && (options.loraName !== undefined || options.cacheSalt !== undefined))
      throw new SagaArgumentError('loraName and cacheSalt are for sha256_cbor and xxhash_cbor; saga takes salt');
    if (!own && options.salt !== undefined)
      throw new SagaArgumentError('salt is for saga; sha256_cbor and xxhash_cbor take cacheSalt');
    const root = own ? checkText('salt', options.salt ?? '') : checkText('hashSeed', options.hashSeed ?? '0', 64);
    if (!own && root === '') throw new SagaArgumentError('hashSeed must have 1 to 64 bytes, got none');
    const loraName = checkText('loraName', options.loraName ?? '', mostKeyBytes);
    const cacheSalt = checkText('cacheSalt', options.cacheSalt ?? '', mostKeyBytes);
    const numbers = Float64Array.of(nativeAlgorithm(algorithm, options.taggedKeys), this.blockTokens, this.maxTokens);
    this.#native = made(native.createPromptChain(numbers, root, loraName, cacheSalt, words));
  }

  /**
   * The prompt is now `tokens`: it is compared with the present one, and hashed from the first block that differs on.
   *
   * @throws SagaCapacityError `SAGA_ERR_FULL` for more than `maxTokens`
   */
  update(tokens: Uint32Array | Int32Array): PromptChange {
    this.#open();
    const status = native.promptChainUpdate(this.#native, checkTokens(tokens), words);
    this.#answer(status, () => `a prompt of ${tokens.length} tokens`);
    return this.#change();
  }

  /**
   * `tokens` follow those that are there; nothing is compared.
   *
   * @throws SagaCapacityError `SAGA_ERR_FULL` for more than `maxTokens` in all
   */
  append(tokens: Uint32Array | Int32Array): PromptChange {
    this.#open();
    const status = native.promptChainAppend(this.#native, checkTokens(tokens), words);
    this.#answer(status, () => `${tokens.length} more tokens`);
    return this.#change();
  }

  /** The first `tokens` tokens stay, and the memory of the others is freed. */
  truncate(tokens: number): void {
    this.#open();
    const kept = checkInteger('tokens', tokens, 0, this.length);
    this.#answer(native.promptChainTruncate(this.#native, kept, words), () => 'truncate');
    this.#measured();
  }

  /** Tokens. */
  get length(): number {
    return this.#length;
  }

  /** Full blocks, each with a hash. */
  get blocks(): number {
    return this.#blocks;
  }

  /** The hashes of the full blocks, a copy. {@link chainInto} makes no array. */
  get chain(): BigUint64Array {
    const hashes = new BigUint64Array(this.blocks);
    this.chainInto(hashes);
    return hashes;
  }

  /**
   * Copies the hashes of the full blocks to `out`.
   *
   * @returns their number
   */
  chainInto(out: BigUint64Array): number {
    this.#open();
    if (!(out instanceof BigUint64Array) || out.length < this.blocks) {
      const got = out instanceof BigUint64Array ? `for ${out.length}` : describe(out);
      throw new SagaArgumentError(`out must be a BigUint64Array with room for ${this.blocks} hashes, got ${got}`);
    }
    return this.#answer(native.promptChainHashes(this.#native, out), () => 'chain');
  }

  /**
   * Copies the tokens to `out`.
   *
   * @returns their number
   */
  tokensInto(out: Uint32Array | Int32Array): number {
    this.#open();
    if (checkTokens(out, 'out').length < this.length)
      throw new SagaArgumentError(`out must have room for ${this.length} tokens, got for ${out.length}`);
    return this.#answer(native.promptChainTokens(this.#native, out), () => 'tokens');
  }

  /**
   * A chain of its own with the first `tokens` tokens of this one (default: all), as for a sub-agent that begins with the same
   * prompt. A copy of memory: nothing is compared or hashed.
   */
  fork(tokens = this.length): PromptChain {
    this.#open();
    const kept = checkInteger('tokens', tokens, 0, this.length);
    const fork: object = new Fork(this, () => native.promptChainFork(this.#native, kept, words));
    return new PromptChain(fork);
  }

  stats(): PromptChainStats {
    this.#open();
    this.#answer(native.promptChainStats(this.#native, statsWords), () => 'stats');
    const [tokensCompared = 0, tokensHashed = 0, memoryBytes = 0] = statsWords;
    return { tokensCompared, tokensHashed, memoryBytes };
  }

  /** Hashes everything again; `false` is a bug in SAGA. */
  verify(): boolean {
    this.#open();
    return this.#answer(native.promptChainVerify(this.#native), () => 'verify') === 1;
  }

  /** Frees the memory. Every later call throws `SAGA_ERR_CLOSED`. */
  close(): void {
    if (!this.#closed) native.promptChainDestroy(this.#native);
    this.#closed = true;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #change(): PromptChange {
    this.#measured();
    const [commonTokens = 0, hashedBlocks = 0] = words;
    return { commonTokens, hashedBlocks };
  }

  #measured(): void {
    this.#length = words[2] as number;
    this.#blocks = words[3] as number;
  }

  #open(): void {
    if (this.#closed) throw new SagaStateError('SAGA_ERR_CLOSED', 'the prompt chain was closed');
  }

  #answer(value: number, what: () => string): number {
    if (value >= 0) return value;
    throw errorOfStatus(-value, `${what()} (${native.statusText(-value)})`);
  }
}

/** What the constructor makes a fork of. */
class Fork {
  constructor(
    readonly of: PromptChain,
    readonly make: () => native.PromptChain | number,
  ) {}
}

function made(chain: native.PromptChain | number): native.PromptChain {
  if (typeof chain === 'number')
    throw errorOfStatus(-chain, `the prompt chain could not be made: ${native.statusText(-chain)}`);
  return chain;
}

function checkTokens<T extends Uint32Array | Int32Array>(tokens: T, name = 'tokens'): T {
  if (!(tokens instanceof Uint32Array || tokens instanceof Int32Array))
    throw new SagaArgumentError(`${name} must be a Uint32Array or an Int32Array, got ${describe(tokens)}`);
  return tokens;
}
