/**
 * `npm run bench [-- --json]`: what the border, the index, an eviction decision, batch formation, hashing and bodies of requests
 * cost on this machine.
 *
 * Every input is made before the clock starts. The index is measured through the public engine, so a figure is what a caller
 * of the library pays, the crossing from JavaScript included; `native/bench/` measures the core alone.
 */
import { cpus } from 'node:os';
import native from '../dist/esm/native.cjs';
import { BlockHasher, Scheduler, version, type Worker } from '../dist/esm/index.js';
import { measure, type Measurement } from './measure.js';
import { batchFormation } from './batch.js';
import { bodies } from './bodies.js';
import { evictionDecisions } from './eviction.js';

const workers = 128;
const chainBlocks = 384;
const eventBlocks = 16;

function tokensOf(count: number, seed: number): Uint32Array {
  return Uint32Array.from({ length: count }, (_, i) => (i * 7919 + seed * 104_729) % 128_000);
}

/** What a scheduler calls behind its checks; not part of its types. */
function engineOf(scheduler: Scheduler): native.Engine {
  return (scheduler as unknown as { native: native.Engine }).native;
}

function border(): Measurement[] {
  const scheduler = new Scheduler({ policy: 'affinity', maxWorkers: 1, clock: () => 0 });
  const engine = engineOf(scheduler);
  const worker = scheduler.addWorker({ blocks: 1 });
  const hashes = new BigUint64Array(256).map((_, i) => BigInt(i + 1));
  return [
    measure('border', 'empty call', 'call', 1, () => native.nothing()),
    measure('border', 'three numbers in, one out (worker load)', 'call', 1, () => {
      engine.workerLoad(0, 0, 7);
    }),
    measure('border', 'the same through the TypeScript API', 'call', 1, () => {
      worker.load({ blocksInUse: 7, now: 0 });
    }),
    measure('border', '256 hashes in, none held (match)', 'call', 1, () => {
      engine.match(hashes, 256);
    }),
  ];
}

function index(): Measurement[] {
  const hasher = new BlockHasher();
  const scheduler = new Scheduler({ policy: 'affinity', maxWorkers: workers, maxBlocks: 2 ** 21, clock: () => 0 });
  const all: Worker[] = Array.from({ length: workers }, () => scheduler.addWorker({ blocks: 16_384 }));
  // 1,024 conversations of 384 blocks, each on one to eight workers, a quarter of their blocks a shared system prompt.
  const system = tokensOf(96 * 16, 0);
  const chains = Array.from({ length: 1024 }, (_, i) => {
    const tokens = new Uint32Array(chainBlocks * 16);
    tokens.set(system);
    tokens.set(tokensOf(tokens.length - system.length, i + 1), system.length);
    return hasher.reset().update(tokens);
  });
  chains.forEach((chain, i) => {
    for (let holder = 0; holder < 1 + (i % 8); ++holder) all[(i * 31 + holder * 17) % workers]?.stored(chain);
  });
  const fresh = Array.from({ length: 512 }, (_, i) => hasher.reset().update(tokensOf(eventBlocks * 16, 5000 + i)));
  let at = 0;
  let query = 0;
  let submitted = 0;
  const engine = engineOf(scheduler);
  const workflow = scheduler.openWorkflow();
  const results = [
    measure('index', 'store and remove, events of 16 blocks', 'block-op', 2 * eventBlocks, () => {
      const event = fresh[(at = (at + 1) % fresh.length)] as BigUint64Array;
      engine.blocksStored(0, at % workers, 0, event, 0);
      engine.blocksRemoved(0, at % workers, 0, event);
    }),
    measure('index', 'match, 384 blocks held, 128 workers', 'block', chainBlocks, () => {
      engine.match(chains[(query = (query + 7) % chains.length)] as BigUint64Array, chainBlocks);
    }),
    measure('index', 'match, 384 blocks nobody holds', 'block', chainBlocks, () => {
      engine.match(unknown, chainBlocks);
    }),
    measure('place', 'submit, decide, finish: 384 blocks, 128 workers', 'call', 1, () => {
      const chain = chains[(submitted = (submitted + 5) % chains.length)] as BigUint64Array;
      const call = engine.submitCall(0, workflow.id, chainBlocks * 16, chain, chainBlocks);
      engine.decide(0);
      engine.finishCall(0, call, 1, 0, 100);
    }),
  ];
  return results;
}

const unknown = new BlockHasher({ salt: 'nobody' }).update(tokensOf(chainBlocks * 16, 9));

function hashing(): Measurement[] {
  const tokens = tokensOf(1600 * 16, 3);
  const out = new BigUint64Array(1600);
  return (['saga', 'sha256_cbor', 'xxhash_cbor'] as const).map((algorithm) => {
    const hasher = new BlockHasher({ algorithm });
    return measure(
      'hashing',
      `${algorithm}, blocks of 16 tokens`,
      'block',
      1600,
      () => {
        hasher.reset().update(tokens, out);
      },
      2_000,
    );
  });
}

function table(results: readonly Measurement[]): string {
  const lines = results.map((r) => [
    r.group,
    r.name,
    `${r.nanoseconds.toFixed(r.nanoseconds < 100 ? 1 : 0)} ns / ${r.unit}`,
    `+-${r.marginPercent.toFixed(1)} %`,
    r.call === undefined ? '' : `${r.call.p50} / ${r.call.p99}`,
  ]);
  lines.unshift(['group', 'operation', 'mean', 'margin', 'call p50 / p99 ns']);
  const widths = lines[0]?.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0))) ?? [];
  return lines
    .map((line) =>
      line
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

const results = [
  ...border(),
  ...index(),
  ...(await evictionDecisions()),
  ...batchFormation(),
  ...hashing(),
  ...bodies(),
];
const machine = { processor: cpus()[0]?.model ?? 'unknown', cores: cpus().length, node: process.versions.node };
if (process.argv.includes('--json')) {
  console.log(JSON.stringify({ schema: 'saga.bench/1', version, machine, results }));
} else {
  console.log(`saga-scheduler ${version}, ${machine.processor}, ${machine.cores} cores, Node ${machine.node}\n`);
  console.log(table(results));
}
