/** `saga serve`: the gateway, until a signal ends it. `saga config`: its settings. */
import type { Command } from 'commander';
import type { Logger } from 'pino';
import type { Gateway } from '../gateway/gateway.js';
import {
  flagOf,
  gatewaySettings,
  isPlain,
  quickSettings,
  readConfiguration,
  type Configuration,
  type GivenSettings,
} from '../gateway/settings.js';

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
      const configuration = configurationOf(options);
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

/** Flags are the settings by the same names; what they take is checked there. */
function addFlags(command: Command): void {
  const collect = (value: string, before: string[] | undefined): string[] => [...(before ?? []), value];
  for (const setting of [...gatewaySettings.filter(isPlain), ...quickSettings]) {
    const { name, type } = setting;
    const help = `${setting.help}${setting.fallback === '' ? '' : ` (${setting.fallback})`}`;
    if (type.kind === 'texts' || type.kind === 'some')
      command.option(`${flagOf(name)} <value>`, `${help}; repeat for more`, collect);
    else if (type.kind === 'flag') command.option(`${flagOf(name)} [true|false]`, help);
    else command.option(`${flagOf(name)} <value>`, help);
  }
  command.option('--api-key <value>', 'the same as --api-keys', collect);
}

function configurationOf(options: ServeOptions & Record<string, unknown>): Configuration {
  const flags: Record<string, string | boolean | string[]> = {};
  for (const { name } of [...gatewaySettings, ...quickSettings]) {
    const value = options[name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase())];
    if (value !== undefined) flags[name] = value as string | boolean | string[];
  }
  const key = options['apiKey'] as string[] | undefined;
  if (key !== undefined) flags['api_keys'] = [...((flags['api_keys'] as string[] | undefined) ?? []), ...key];
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
    configuration = configurationOf(options);
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
