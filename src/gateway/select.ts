/** Placement for stacks in any language. */
import type { IncomingMessage } from 'node:http';
import type { Body } from './body.js';
import { GatewayError } from './errors.js';
import type { Tenant } from './identity.js';
import type { ModelPool } from './model-pool.js';
import type { PromptSource } from './tokens/types.js';

export class Selections {
  select(
    _target: { pool: ModelPool; prompts: PromptSource },
    _tenant: Tenant,
    _request: IncomingMessage,
    _body: Body,
    _reserve: boolean,
  ): Promise<object> {
    return Promise.reject(new GatewayError('unknown_route', 'not there'));
  }

  release(_body: Body, _tenant: Tenant): object {
    throw new GatewayError('unknown_route', 'not there');
  }

  close(): void {}
}
