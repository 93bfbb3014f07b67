/** `saga demo`: SAGA against round robin and against affinity, on this machine, while you watch. */
import { fileURLToPath } from 'node:url';
import { InvalidArgumentError, type Command } from 'commander';

function tasks(text: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text)) throw new InvalidArgumentError('expected a whole number from 1 to 9999.');
  return Number(text);
}

function scale(text: string): number {
  const value = Number(text);
  if (!(value >= 1 && value <= 1000)) throw new InvalidArgumentError('expected a number from 1 to 1000.');
  return value;
}

/** Adds the command to the program. */
export function registerDemo(program: Command): void {
  program
    .command('demo')
    .description('play agents against a gateway with four emulated workers: SAGA, round robin and affinity')
    .option('--tasks <n>', 'tasks of the agents', tasks, 80)
    .option('--time-scale <x>', 'how many times faster than real', scale, 40)
    .addHelpText(
      'after',
      `
Environment:
  SAGA_WORKERS  real workers instead, in real time: URL[,events=ENDPOINT][,replay=ENDPOINT][,directives=ENDPOINT], more after a comma`,
    )
    .action(async (given: { tasks: number; timeScale: number }) => {
      // Loaded here, so that the other commands work where there is no binary.
      const { demo } = await import('../demo/demo.js');
      const stop = new AbortController();
      const onSignal = (): void => {
        stop.abort(new Error('interrupted'));
      };
      process.once('SIGINT', onSignal).once('SIGTERM', onSignal);
      const streams = { out: process.stdout, err: process.stderr, environment: process.env };
      const workers = process.env['SAGA_WORKERS'];
      const command = fileURLToPath(new URL('./main.js', import.meta.url));
      const options = { ...given, command, workers: workers === '' ? undefined : workers };
      process.exitCode = await demo(options, streams, stop.signal);
      process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
    });
}
