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

/** Two workers, one of which holds the prompt: the call has to go there. */
async function placeOneCall(): Promise<string | null> {
  const { Scheduler } = await import('../index.js');
  const scheduler = new Scheduler({
    maxWorkers: 2,
    maxBlocks: 64,
    maxOpenBlocks: 64,
    maxChainBlocks: 16,
    clock: () => 0,
  });
  scheduler.addWorker({ blocks: 64 });
  const holder = scheduler.addWorker({ blocks: 64 });
  const prompt = Uint32Array.from({ length: 4 * scheduler.blockTokens }, (_, i) => i);
  holder.stored(scheduler.hash(prompt));
  const call = scheduler.openWorkflow().submit(prompt);
  scheduler.decide();
  const { receipt } = call;
  const sound = scheduler.verify();
  scheduler.close();
  if (receipt?.worker !== holder || receipt.matchedBlocks.gpu !== 4) return 'the self-test placed a call wrongly';
  return sound ? null : "the self-test left the scheduler's state unsound";
}

async function test(): Promise<SelfTestReport> {
  const report: SelfTestReport = { binary: null, abiVersion: null, problem: null };
  try {
    const { default: native } = await import('../native.cjs');
    report.binary = native.binaryPath;
    report.abiVersion = native.abiVersion;
    report.problem = await placeOneCall();
  } catch (error) {
    report.problem = (error as Error).message.replace(/\.$/, '');
  }
  return report;
}

process.stdout.write(`${JSON.stringify(await test())}\n`);
