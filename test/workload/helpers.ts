/** Files of a test in a folder of its own, and rows of traces with everything that the test does not care about filled in. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import type { WorkloadColumns } from '../../src/workload/columns.js';

const folder = mkdtempSync(join(tmpdir(), 'saga-test-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A path in the test's folder. */
export function pathOf(name: string): string {
  return join(folder, name);
}

/** Writes a file and returns its path. */
export function fileOf(name: string, content: string): string {
  writeFileSync(pathOf(name), content);
  return pathOf(name);
}

/** A request line; `in` follows from the blocks. */
export function requestLine(fields: Record<string, unknown>): string {
  const h = (fields['h'] ?? [[0, 1]]) as [number, number][];
  const blocks = h.reduce((sum, [, length]) => sum + length, 0);
  const defaults = {
    aid: 'main',
    k: 0,
    ty: 'n',
    t: 0,
    in: blocks * 64 + 10,
    out: 5,
    llm_s: 2,
    gap_s: 0,
    gap_kind: 'tool',
    stop: 'tool_use',
  };
  return JSON.stringify({ ...defaults, h, ...fields });
}

/** The runs of a call as `[first id, length]`. */
export function runsOf(workload: WorkloadColumns, call: number): [number, number][] {
  const runs: [number, number][] = [];
  for (let run = workload.callFirstRun[call] ?? 0; run < (workload.callFirstRun[call + 1] ?? 0); ++run) {
    runs.push([workload.runFirstId[run] ?? -1, workload.runLength[run] ?? -1]);
  }
  return runs;
}

/** The predecessors of a call as `[call, gap in seconds]`. */
export function predecessorsOf(workload: WorkloadColumns, call: number): [number, number][] {
  const found: [number, number][] = [];
  for (let at = workload.callFirstPredecessor[call] ?? 0; at < (workload.callFirstPredecessor[call + 1] ?? 0); ++at) {
    found.push([workload.predecessorCall[at] ?? -1, (workload.predecessorGap[at] ?? -1) / 1e6]);
  }
  return found;
}
