/** Makes tokens of requests. */
import { chainSaltOf } from '../../vllm/index.js';
import { PromptChain } from '../../prompt-chain.js';
import { tokenIds } from '../../json-outline.js';
import { GatewayError } from '../errors.js';
import type { ModelPool } from '../model-pool.js';
import type { Upstream } from '../upstream.js';
import type { Prompt, PromptRequest, PromptSource } from './types.js';

/** The prompt source of a model. */
export function createPromptSource(pool: ModelPool, _upstream: Upstream): PromptSource {
  const most = pool.config.maxPromptTokens ?? 2 ** 20;
  let room = new Uint32Array(4096);
  return {
    prepare(request: PromptRequest): Promise<Prompt> {
      const { body } = request;
      const name = request.endpoint === 'ids' ? 'token_ids' : 'prompt';
      const prompt = body.member(name);
      const elements = body.outline.elements(name);
      if (prompt === undefined || elements?.type !== 'number') {
        const promptTokens = Math.max(1, Math.ceil(body.bytes.length / 4));
        return Promise.resolve({
          promptTokens,
          chain: new BigUint64Array(),
          source: 'unknown',
          tokenizedTokens: 0,
          hashedBlocks: 0,
        });
      }
      if (elements.count > most)
        throw new GatewayError('prompt_too_long', `the prompt has ${elements.count} tokens, over ${most}`);
      if (room.length < elements.count) room = new Uint32Array(elements.count);
      const count = tokenIds(body.bytes, prompt.start, prompt.end, room);
      const chain = new PromptChain({
        blockTokens: pool.scheduler.blockTokens,
        salt: chainSaltOf({
          ...(request.cacheSalt === undefined ? {} : { cacheSalt: request.cacheSalt }),
          ...(request.loraName === undefined ? {} : { loraName: request.loraName }),
        }),
      });
      const { hashedBlocks } = chain.update(room.subarray(0, count));
      const made = chain.chain;
      chain.close();
      return Promise.resolve({ promptTokens: count, chain: made, source: 'ids', tokenizedTokens: 0, hashedBlocks });
    },
    close() {},
  };
}
