/**
 * `saga doctor`: says whether SAGA works on this machine, and what it found.
 *
 * The addon is loaded and tested in a process of its own (`self-test.ts`), so that a binary that crashes kills that process
 * and not the one that asks.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { SelfTestReport } from './self-test.js';

export interface DoctorOptions {
  /** Print the report as one JSON object instead of a table. Default: false. */
  json?: boolean;
}

/** What `saga doctor --json` prints. */
export interface DoctorReport {
  schema: 'saga.doctor/1';
  version: string;
  /** For example `linux`, as `process.platform`. */
  platform: string;
  arch: string;
  /** The C library and its version on Linux, null elsewhere. */
  libc: string | null;
  node: string;
  /** Highest Node-API version of this Node. SAGA needs 8. */
  nodeApi: number;
  /** The loaded addon's file, null if none loads. */
  binary: string | null;
  /** ABI version that the addon reports, null if it does not load. */
  abiVersion: number | null;
  /** ABI version of the C header in this package: what the addon should report. */
  expectedAbiVersion: number;
  ok: boolean;
  /** One sentence about what is wrong, null if nothing is. */
  problem: string | null;
}

const selfTestTimeoutMs = 30_000;
const packageFile = (path: string): string => readFileSync(new URL(`../../../${path}`, import.meta.url), 'utf8');

function libc(): string | null {
  if (process.platform !== 'linux') return null;
  // The report would otherwise look up host names.
  (process.report as { excludeNetwork?: boolean }).excludeNetwork = true;
  const report = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
  const glibc = report.header.glibcVersionRuntime;
  return glibc === undefined ? 'musl' : `glibc ${glibc}`;
}

function expectedAbiVersion(): number {
  const found = /^#define SAGA_ABI_VERSION\s+(\d+)/m.exec(packageFile('native/include/saga/saga.h'));
  return Number(found?.[1]);
}

/** Runs the self-test in a child process. Whatever that does, the outcome is a report. */
function selfTest(): SelfTestReport {
  const file = fileURLToPath(new URL('./self-test.js', import.meta.url));
  const child = spawnSync(process.execPath, [file], { encoding: 'utf8', timeout: selfTestTimeoutMs });
  const failed = (problem: string): SelfTestReport => ({ binary: null, abiVersion: null, problem });
  if (child.error) {
    const { code, message } = child.error as NodeJS.ErrnoException;
    const seconds = String(selfTestTimeoutMs / 1000);
    return failed(code === 'ETIMEDOUT' ? `the self-test did not end within ${seconds} s` : message);
  }
  if (child.signal)
    return failed(`the self-test was killed by ${child.signal}, so the native binary is not usable here`);
  try {
    return JSON.parse(child.stdout) as SelfTestReport;
  } catch {
    const lastWords = child.stderr.trim().split('\n').at(-1) ?? '';
    return failed(`the self-test ended with exit code ${String(child.status)} and no report (${lastWords})`);
  }
}

/** Examines this machine. */
export function examine(): DoctorReport {
  const expected = expectedAbiVersion();
  const { binary, abiVersion, problem } = selfTest();
  const stale =
    problem === null && abiVersion !== expected
      ? `the native binary has ABI version ${String(abiVersion)}, but this package needs ${String(expected)}: ` +
        'run `npx saga build` to compile it again'
      : null;
  return {
    schema: 'saga.doctor/1',
    version: (JSON.parse(packageFile('package.json')) as { version: string }).version,
    platform: process.platform,
    arch: process.arch,
    libc: libc(),
    node: process.versions.node,
    nodeApi: Number(process.versions.napi),
    binary,
    abiVersion,
    expectedAbiVersion: expected,
    ok: problem === null && stale === null,
    problem: problem ?? stale,
  };
}

/**
 * Runs the command.
 *
 * @returns the exit code: 0 when everything works, 1 when not.
 */
export function doctor(options: DoctorOptions = {}): number {
  const report = examine();
  if (options.json) {
    process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
  } else {
    const rows: [string, string][] = [
      ['saga-scheduler', report.version],
      ['platform', [report.platform, report.arch, report.libc ?? ''].join(' ').trim()],
      ['Node', `${report.node} (Node-API ${String(report.nodeApi)})`],
      ['binary', report.binary ?? 'none that loads'],
      ['ABI version', report.abiVersion === null ? 'unknown' : String(report.abiVersion)],
      ['self-test', report.ok ? 'passed' : 'failed'],
    ];
    for (const [name, value] of rows) process.stdout.write(`${name.padEnd(16)}${value}\n`);
  }
  if (report.problem !== null) process.stderr.write(`saga doctor: ${report.problem}.\n`);
  return report.ok ? 0 : 1;
}
