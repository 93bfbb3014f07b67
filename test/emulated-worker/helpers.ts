import {
  Engine,
  type EngineCall,
  type EngineEvent,
  type EngineOptions,
  type EngineRequest,
} from '../../src/emulated-worker/engine.js';

export const smallEngine: EngineOptions = {
  blocks: 9,
  blockTokens: 4,
  maxModelTokens: 32,
  maxSequences: 8,
  tokenBudget: 2048,
  maxCalls: 64,
  maxLeases: 16,
  hashAlgorithm: 'sha256_cbor',
  hashSeed: '0',
  taggedKeys: false,
  wholeHashes: false,
  priorityScheduling: false,
  prefixCaching: true,
  eviction: 'lru',
  stepSeconds: { base: 0.01, perCall: 0.001, perContextToken: 0, perPrefillToken: 0.0001, perPrefillPair: 0 },
  timeScale: 1,
};

/** Ids from `first` on. */
export function range(first: number, count: number): Uint32Array {
  return Uint32Array.from({ length: count }, (_, i) => first + i);
}

/** An engine without a clock, and the batches of events that it published. */
export class Bench {
  readonly engine: Engine;
  readonly batches: EngineEvent[][] = [];
  now = 0;

  constructor(options: Partial<EngineOptions> = {}) {
    this.engine = new Engine({ ...smallEngine, ...options });
    this.engine.onEvents = (events) => this.batches.push(events);
  }

  submit(prompt: Uint32Array, more: Partial<EngineRequest> = {}): EngineCall {
    return this.engine.submit({ prompt, answer: Uint32Array.of(7, 7), onToken: () => undefined, ...more });
  }

  /** One step; false when there was nothing to compute. */
  step(): boolean {
    this.now += 10;
    if (this.engine.beginStep(this.now) === undefined) return false;
    this.engine.endStep();
    return true;
  }

  /** A request by itself, to its end. */
  run(prompt: Uint32Array, more: Partial<EngineRequest> = {}): EngineCall {
    const call = this.submit(prompt, more);
    while (call.state !== 'ended') this.step();
    return call;
  }
}

/** Events in short: `+hash` stored, `-hash` removed, `0` cleared. */
export function short(events: readonly EngineEvent[]): string {
  return events
    .map((event) => {
      switch (event.type) {
        case 'AllBlocksCleared':
          return '0';
        case 'BlockRemoved':
          return `-${String(event.hash)}`;
        case 'BlockStored':
          return `+${event.hashes.map(String).join(',')}^${String(event.parent ?? 'root')}`;
      }
    })
    .join(' ');
}
