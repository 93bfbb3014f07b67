/** `saga serve`: the gateway, until a signal ends it. `saga config`: its settings. */
import type { Command } from 'commander';
import type { Logger } from 'pino';
import type { Gateway } from '../gateway/gateway.js';
import type { Configuration, GivenSettings, Setting } from '../gateway/settings.js';

interface ServeOptions {
  config?: string;
}

/** A logger whose lines never hold the headers or bodies of requests. */
async function makeLog(level: string): Promise<Logger> {
  const { pino } = await import('pino');
  return pino({ name: 'saga', level }, pino.destination({ dest: 2, sync: false }));
}

export function registerServe(program: Command): void {
  const serve = program
    .command('serve')
    .description('serve OpenAI-compatible HTTP in front of vLLM servers')
    .option('--config <file>', 'YAML file with settings; also SAGA_CONFIG')
    .allowExcessArguments(false)
    .addHelpText('after', '\nEvery setting is described by `saga config list` and in docs/gateway.md.');
  addFlags(serve);
  serve.action(async (options: ServeOptions & Record<string, unknown>) => {
    process.exitCode = await runServe(options);
  });

  const config = program.command('config').description("the gateway's settings");
  const check = config
    .command('check')
    .description('say what `saga serve` would run with, or everything that is wrong')
    .option('--config <file>', 'YAML file with settings; also SAGA_CONFIG');
  addFlags(check);
  check.action(async (options: ServeOptions & Record<string, unknown>) => {
    const { SettingsError, shownConfiguration } = await import('../gateway/settings.js');
    const { Gateway: Checked } = await import('../gateway/gateway.js');
    const { SagaError } = await import('../errors.js');
    try {
      const configuration = await configurationOf(options);
      await Checked.check(configuration.config);
      process.stdout.write(`${shownConfiguration(configuration)}\n`);
    } catch (error) {
      if (!(error instanceof SagaError)) throw error;
      const problems = error instanceof SettingsError ? error.problems : [error.message];
      for (const problem of problems) process.stderr.write(`saga config: ${problem}\n`);
      process.exitCode = 2;
    }
  });
  config
    .command('list')
    .description('every setting with its default')
    .action(async () => {
      const { allSettings } = await import('../gateway/settings.js');
      for (const { path, setting } of allSettings())
        process.stdout.write(
          `${path.padEnd(44)} ${setting.help}${setting.fallback === '' ? '' : ` [${setting.fallback}]`}\n`,
        );
    });
}

/** Flags are the settings of the file by the same names; what they take is checked there. */
function addFlags(command: Command): void {
  for (const [name, repeated, help] of flagNames) {
    const flag = `--${name.replaceAll('_', '-')} <value>`;
    if (repeated)
      command.option(flag, help, (value: string, before: string[] | undefined) => [...(before ?? []), value]);
    else command.option(flag, help);
  }
  command.option('--insecure', 'serve whoever comes, at any address');
}

/** The usual ones stand in --help; all others can be given too, see {@link configurationOf}. */
const flagNames: readonly (readonly [name: string, repeated: boolean, help: string])[] = [
  ['host', false, 'address to listen at (127.0.0.1)'],
  ['port', false, 'port to listen at (8080)'],
  ['api_keys', true, 'a key that clients may use; repeat for more'],
  ['model', false, 'name of the only model'],
  ['servers', true, 'a server of it: URL[,events=ENDPOINT][,replay=ENDPOINT][,directives=ENDPOINT]; repeat for more'],
  ['upstream_name', false, 'name of the model at the servers'],
  ['block_tokens', false, 'tokens of a KV block (16)'],
  ['hash_algorithm', false, 'saga, sha256_cbor or xxhash_cbor'],
  ['hash_seed', false, 'PYTHONHASHSEED of the engines'],
  ['hash_tagged_keys', false, 'true: the engines are vLLM 0.32 or 0.33'],
  ['tokenizer', false, 'folder with tokenizer.json'],
  ['policy', false, 'saga, affinity or round-robin'],
  ['without', true, 'a part of saga to switch off; repeat for more'],
  ['priority', false, 'true: the servers run with --scheduling-policy priority'],
  ['trust_tenant_header', false, 'true: X-SAGA-Tenant names the tenant'],
  ['max_body_bytes', false, 'size of a request'],
  ['max_held_bytes', false, 'size of all requests at one time'],
  ['max_calls', false, 'calls of a model open at one time'],
  ['body_seconds', false, "for a request's body to arrive"],
  ['queue_seconds', false, 'that a call may wait for a worker'],
  ['first_byte_seconds', false, 'for a worker to begin its answer'],
  ['chunk_seconds', false, 'between two chunks of an answer'],
  ['deadline_seconds', false, 'for a whole call'],
  ['retries', false, 'further workers tried before the first byte'],
  ['probe', false, 'false: no parity probe at start-up'],
  ['time_scale', false, "the scheduler's seconds are so many times shorter"],
  ['log_level', false, 'debug, info, warn, error or silent'],
];

async function configurationOf(options: ServeOptions & Record<string, unknown>): Promise<Configuration> {
  const { gatewaySettings, quickSettings, readConfiguration } = await import('../gateway/settings.js');
  const flags: Record<string, string | boolean | string[]> = {};
  for (const { name } of [...gatewaySettings, ...quickSettings] as readonly Setting[]) {
    const value = options[name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase())];
    if (value !== undefined) flags[name] = value as string | boolean | string[];
  }
  const file = options.config ?? process.env['SAGA_CONFIG'];
  return readConfiguration({
    ...(file === undefined ? {} : { file }),
    flags: flags satisfies GivenSettings,
    environment: process.env,
  });
}

/** @returns the exit code */
async function runServe(options: ServeOptions & Record<string, unknown>): Promise<number> {
  const { SettingsError } = await import('../gateway/settings.js');
  const { SagaError } = await import('../errors.js');
  let configuration: Configuration;
  try {
    configuration = await configurationOf(options);
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error;
    for (const problem of error.problems) process.stderr.write(`saga serve: ${problem}\n`);
    return 2;
  }
  const log = await makeLog(configuration.logLevel);
  const { Gateway: Serving } = await import('../gateway/gateway.js');
  let gateway: Gateway;
  try {
    gateway = await Serving.start({ ...configuration.config, log });
  } catch (error) {
    if (!(error instanceof SagaError)) throw error;
    process.stderr.write(`saga serve: ${error.message}\n`);
    return 2;
  }
  try {
    const { address, port } = await gateway.listen();
    const host = address.includes(':') ? `[${address}]` : address;
    process.stdout.write(`saga serve: listening at http://${host}:${port}\n`);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    process.stderr.write(`saga serve: cannot listen (${code ?? message})\n`);
    await gateway.close({ graceSeconds: 0 });
    return 1;
  }
  await new Promise<void>((resolve) => {
    let asked = false;
    const stop = (): void => {
      // The second signal does not wait for answers.
      void gateway.close({ graceSeconds: asked ? 0 : 30 }).then(resolve);
      if (asked) process.exit(1);
      asked = true;
    };
    process.on('SIGINT', stop).on('SIGTERM', stop);
  });
  log.info('stopped');
  return 0;
}
