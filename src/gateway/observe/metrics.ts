/** What Prometheus is told. */
import { Registry } from 'prom-client';
import type { CallRecord } from '../call.js';
import type { ModelPool } from '../model-pool.js';

export class GatewayMetrics {
  readonly #registry = new Registry();
  readonly #pools: readonly ModelPool[];

  constructor(pools: readonly ModelPool[]) {
    this.#pools = pools;
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** A call has ended. */
  ended(_record: CallRecord): void {}

  /** A request ended in an error of the gateway. */
  failed(_code: string): void {}

  /** A request that is not scheduled was passed on. */
  passed(_endpoint: string): void {}

  text(): Promise<string> {
    return this.#pools.length === 0 ? Promise.resolve('') : this.#registry.metrics();
  }
}
