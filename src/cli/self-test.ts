/**
 * The process that `saga doctor` starts: loads the addon, uses it once, and prints what happened as one JSON object. It is a
 * program, not a module to import.
 */
export interface SelfTestReport {
  binary: string | null;
  abiVersion: number | null;
  /** What is wrong, as a sentence without its full stop, or null. */
  problem: string | null;
}

async function test(): Promise<SelfTestReport> {
  const report: SelfTestReport = { binary: null, abiVersion: null, problem: null };
  try {
    const { default: native } = await import('../native.cjs');
    report.binary = native.binaryPath;
    report.abiVersion = native.abiVersion();
  } catch (error) {
    report.problem = (error as Error).message.replace(/\.$/, '');
  }
  return report;
}

process.stdout.write(`${JSON.stringify(await test())}\n`);
