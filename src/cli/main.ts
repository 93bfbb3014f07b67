#!/usr/bin/env node
/**
 * The command `saga`. Each sub-command lies in a file of its own; nothing native is loaded until one needs it, so that
 * `saga build` and `saga doctor` work where the addon is missing.
 */
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { build, type BuildOptions } from './build.js';
import { registerDemo } from './demo.js';
import { doctor, type DoctorOptions } from './doctor.js';
import { registerEvaluate } from './evaluate.js';
import { registerReplay } from './replay.js';
import { registerServe } from './serve.js';
import { registerSimulate } from './simulate.js';
import { registerWorker } from './worker.js';

const manifest = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

const program = new Command('saga')
  .description('Workflow-atomic scheduling for AI-agent inference.')
  .version(manifest.version)
  .showSuggestionAfterError()
  .configureOutput({ outputError: (text, write) => write(sentenceOf(text)) })
  .exitOverride()
  .addHelpText(
    'after',
    `
Examples:
  saga simulate --workload agent --plot cache.svg
  saga simulate --mode cluster --workload swe-bench --load 0.5,0.9,1.1
  saga doctor`,
  );

registerSimulate(program);
registerReplay(program);
registerEvaluate(program);
registerServe(program);
registerWorker(program);
registerDemo(program);
program
  .command('doctor')
  .description(
    "say whether SAGA works on this machine: platform, binary, self-test; or what a worker's connector can do",
  )
  .option('--json', 'print one JSON object')
  .option('--directives <endpoint>', 'ask the connector of a vLLM worker there, such as tcp://127.0.0.1:5757')
  .option('--directive-key <key>', 'its key; also SAGA_DIRECTIVE_KEY')
  .action(async (options: DoctorOptions & { directives?: string; directiveKey?: string }) => {
    const { directives } = options;
    if (directives === undefined) {
      process.exitCode = doctor(options);
      return;
    }
    const { doctorConnector } = await import('./doctor-worker.js');
    const key = options.directiveKey ?? process.env['SAGA_DIRECTIVE_KEY'];
    process.exitCode = await doctorConnector(directives, { json: options.json ?? false, key });
  });
program
  .command('build')
  .description('compile the addon on this machine, for a platform without a prebuilt binary')
  .option('--jobs <n>', 'compiler processes at a time; default: one a core', jobCount)
  .option('--verbose', 'print every compiler command')
  .action(async (options: BuildOptions) => {
    process.exitCode = await build(options);
  });

/** Commander's complaint as one line that says what was expected. */
function sentenceOf(complaint: string): string {
  const plain = complaint
    .replace(/^error: /, '')
    .replace(/\s+/g, ' ')
    .trim();
  const option = /^unknown option '(.+?)'(.*)$/.exec(plain);
  const command = /^unknown command '(.+?)'(.*)$/.exec(plain);
  if (option) return `saga: expected an option that --help lists, not ${option[1]}${option[2]}\n`;
  if (command) return `saga: expected a command that --help lists, not ${command[1]}${command[2]}\n`;
  return `saga: ${plain}\n`;
}

function jobCount(text: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text))
    throw new CommanderError(2, 'saga.jobs', `expected --jobs to be a whole number from 1, not "${text}"`);
  return Number(text);
}

// Whoever reads the output may stop early (`saga ... | head`): that is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit();
});
// Progress and notes that nobody reads any more must not cost the result.
process.stderr.on('error', () => undefined);

try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  if (error.code === 'saga.jobs') process.stderr.write(`saga: ${error.message}\n`);
  // Help and version end with 0; everything else that commander refuses is a bad option.
  process.exitCode = error.exitCode === 0 ? 0 : 2;
}
