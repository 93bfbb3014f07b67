/**
 * `saga replay FILE`: rebuilds a scheduler from its journal and says whether every decision came out again.
 */
import type { Command } from 'commander';
import { SagaError } from '../errors.js';

/** What `saga replay --json` prints. */
export interface ReplayReport {
  schema: 'saga.replay/1';
  events: number;
  decisions: number;
  /** Fingerprint of the rebuilt state, 16 hexadecimal digits. */
  stateDigest: string;
}

async function replay(file: string, options: { json?: boolean }): Promise<void> {
  // Loaded here, so that the other commands work where there is no binary.
  const { Scheduler } = await import('../scheduler.js');
  const { events, decisions, digest } = Scheduler.replayFile(file);
  const report: ReplayReport = {
    schema: 'saga.replay/1',
    events,
    decisions,
    stateDigest: digest.toString(16).padStart(16, '0'),
  };
  if (options.json === true) console.log(JSON.stringify(report));
  else console.log(`${events} events, ${decisions} decisions came out again, state digest ${report.stateDigest}`);
}

/** Adds the command to the program. */
export function registerReplay(program: Command): void {
  program
    .command('replay')
    .description('rebuild a scheduler from its journal and compare every decision')
    .argument('<file>', 'journal, e.g. of saga simulate --mode cluster --journal FILE')
    .option('--json', 'print one JSON object')
    .action(async (file: string, options: { json?: boolean }) => {
      try {
        await replay(file, options);
      } catch (error) {
        if (!(error instanceof SagaError)) throw error;
        console.error(`saga replay: ${error.message}`);
        process.exitCode = error.code === 'SAGA_ERR_INVALID_ARGUMENT' ? 2 : 1;
      }
    });
}
