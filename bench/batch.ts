/**
 * Batch formation from JavaScript: steps of a server in which all calls decode, everything written to typed arrays. `measure`
 * cannot repeat a step for ever, because contexts grow with each; so a run is 512 steps of a fresh server, and there are seven.
 */
import { BatchFormer, PageTable } from '../dist/esm/index.js';
import type { Measurement } from './measure.js';

const steps = 512;
const runs = 7;

/** A server with so many calls that all decode, with contexts of 1,000 to 1,999 tokens. */
function decodingServer(running: number): BatchFormer {
  const table = new PageTable({
    blocks: { gpu: running * 200 },
    maxSequences: running,
    maxBlocksPerSequence: 512,
  });
  const former = new BatchFormer(table, {
    maxCalls: running,
    maxSequences: running,
    tokenBudget: 2000 * running,
    clock: () => 0,
  });
  for (let i = 0; i < running; ++i) former.submit({ promptTokens: 1000 + ((i * 7919) % 1000), maxNewTokens: 2000 });
  former.arrays.sampled.fill(1);
  if (former.form().calls !== running) throw new Error('not all calls fit into one step');
  former.complete();
  return former;
}

function oneRun(running: number): Float64Array {
  const former = decodingServer(running);
  const times = new Float64Array(steps);
  for (let step = 0; step < steps; ++step) {
    const before = process.hrtime.bigint();
    former.form();
    former.complete();
    times[step] = Number(process.hrtime.bigint() - before);
  }
  const { decodeTokensTotal } = former.stats();
  if (decodeTokensTotal !== steps * running) throw new Error(`${decodeTokensTotal} tokens decoded`);
  former.table.close();
  former.close();
  return times;
}

/**
 * Nanoseconds a request-step: one call in one step, from form() to complete(). Of each run the median step counts: the mean of so
 * few steps would be that of the memory that the system maps meanwhile.
 */
export function batchFormation(): Measurement[] {
  return [64, 256, 1024, 4096].map((running) => {
    const all = Array.from({ length: runs }, () => oneRun(running));
    const middles = all.map((times) => (times.slice().sort()[steps / 2] as number) / running);
    const mean = middles.reduce((sum, one) => sum + one, 0) / runs;
    const deviation = Math.sqrt(middles.reduce((sum, one) => sum + (one - mean) ** 2, 0) / (runs - 1));
    const times = Float64Array.from(all.flatMap((one) => [...one])).sort();
    const quantile = (q: number): number => times[Math.floor(q * (times.length - 1))] as number;
    return {
      group: 'batch formation',
      name: `${running} calls decode, form and complete`,
      unit: 'request-step',
      nanoseconds: mean,
      // Student's t for six degrees of freedom.
      marginPercent: ((2.447 * deviation) / Math.sqrt(runs) / mean) * 100,
      call: { p50: quantile(0.5), p99: quantile(0.99), samples: times.length },
    };
  });
}
