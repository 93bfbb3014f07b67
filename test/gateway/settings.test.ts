/** Settings from a file, the environment and flags, and what `saga config` says of them. */
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it } from 'vitest';
import {
  SettingsError,
  allSettings,
  readConfiguration,
  shownConfiguration,
  type Configuration,
  type GivenSettings,
} from '../../src/gateway/settings.js';

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

function fileOf(text: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'saga-settings-'));
  folders.push(folder);
  const path = join(folder, 'saga.yaml');
  writeFileSync(path, text);
  return path;
}

function read(text: string | undefined, flags: GivenSettings = {}, environment: NodeJS.ProcessEnv = {}): Configuration {
  return readConfiguration({ ...(text === undefined ? {} : { file: fileOf(text) }), flags, environment });
}

/** Problems with the name of the file left out. */
function problemsOf(
  text: string | undefined,
  flags: GivenSettings = {},
  environment: NodeJS.ProcessEnv = {},
): string[] {
  try {
    read(text, flags, environment);
  } catch (error) {
    if (error instanceof SettingsError) return error.problems.map((one) => one.replace(/^\S*saga\.yaml/, 'FILE'));
    throw error;
  }
  return [];
}

const model = 'models:\n  - name: m\n    servers:\n      - url: http://a:1\n';

describe('a file', () => {
  it('gives the configuration', () => {
    const { config, logLevel } = read(
      `# everything\nport: 0\nlog_level: warn\napi_keys: [123, k2]\nchunk_seconds: 2.5\ntenants:\n  - name: t\n    api_keys: k3\n    weight: 2\n    cache_salt: \${SALT}\n` +
        `${model}        events: tcp://a:2\n        data_parallel_ranks: 2\n    aliases: { lora: adapter, other: }\n    without: eviction\n    step_seconds: { base: 0.01 }\n` +
        `  - name: n\n    discover: { type: dns, host: workers, port: 8000, server: { events_port: 5557 } }\n`,
      {},
      { SALT: 'pepper' },
    );
    expect(logLevel).toBe('warn');
    expect(config).toEqual({
      port: 0,
      apiKeys: ['123', 'k2'],
      chunkSeconds: 2.5,
      tenants: [{ name: 't', apiKeys: ['k3'], weight: 2, cacheSalt: 'pepper' }],
      models: [
        {
          name: 'm',
          servers: [{ url: 'http://a:1', events: 'tcp://a:2', dataParallelRanks: 2 }],
          aliases: { lora: 'adapter', other: null },
          without: ['eviction'],
          stepSeconds: { base: 0.01 },
        },
        { name: 'n', discover: { type: 'dns', host: 'workers', port: 8000, server: { eventsPort: 5557 } } },
      ],
    });
  });

  it.each<[string, string, string[]]>([
    [
      'a slip',
      `${model}prot: 1\nmax-calls: 5\n`,
      ['FILE:5: prot is no setting', 'FILE:6: max-calls is no setting; did you mean max_calls?'],
    ],
    ['a value out of range', `${model}port: 99999\n`, ['FILE:5: port must be an integer from 0 to 65535, got 99999']],
    [
      'a value of another type',
      `${model}insecure: perhaps\n`,
      ['FILE:5: insecure must be true or false, got "perhaps"'],
    ],
    [
      'something missing within',
      'models:\n  - servers:\n      - events: tcp://a:1\n',
      ['FILE:3: models[0].servers[0].url is needed', 'FILE:2: models[0].name is needed'],
    ],
    [
      'a list that is none',
      'models:\n  name: m\n',
      [
        'FILE:2: models must be a list',
        'models is needed: at least one model with its servers, in the file or by --model and --servers',
      ],
    ],
    [
      'one of several',
      `${model}    policy: best\n`,
      ['FILE:5: models[0].policy must be one of round-robin, affinity, saga, got "best"'],
    ],
    [
      'an environment variable that is not set',
      `${model}api_keys: \${NO_SUCH}\n`,
      ['FILE:5: api_keys[0] needs the environment variable NO_SUCH, which is not set'],
    ],
    [
      'a secret that is wrong',
      `${model}api_keys: [{ a: 1 }]\n`,
      ['FILE:5: api_keys[0] must be a text of 1 to 4096 bytes'],
    ],
    [
      'no settings at all',
      '',
      ['models is needed: at least one model with its servers, in the file or by --model and --servers'],
    ],
    [
      'a list at the top',
      '- a\n',
      [
        'FILE:1: the file must be a map of settings',
        'models is needed: at least one model with its servers, in the file or by --model and --servers',
      ],
    ],
  ])('with %s says where', (_, text, problems) => {
    expect(
      problemsOf(text).map((one) =>
        one.replace(/must be one of .*, got/, 'must be one of round-robin, affinity, saga, got'),
      ),
    ).toEqual(problems);
  });

  it('that is no YAML, says a member twice or is not there', () => {
    expect(problemsOf('a: [1\nb: {')[0]).toMatch(/^FILE:\d+: /);
    expect(problemsOf(`port: 1\nport: 2\n${model}`)[0]).toMatch(/^FILE:2: .*unique/);
    expect(() => readConfiguration({ file: '/none/saga.yaml' })).toThrow('/none/saga.yaml: cannot be read (ENOENT)');
  });
});

describe('flags and environment', () => {
  it('go before the file, flags first', () => {
    const text = `${model}port: 1\nretries: 1\nqueue_seconds: 1\n`;
    const { config } = read(text, { port: '3' }, { SAGA_PORT: '2', SAGA_RETRIES: '2' });
    expect(config).toMatchObject({ port: 3, retries: 2, queueSeconds: 1 });
  });

  it('can do without a file', () => {
    const { config } = read(undefined, {
      model: 'm',
      servers: ['http://a:1,events=tcp://a:2,blocks=100', 'http://b:1'],
      without: ['eviction', 'stealing'],
    });
    expect(config).toEqual({
      models: [
        {
          name: 'm',
          without: ['eviction', 'stealing'],
          servers: [{ url: 'http://a:1', events: 'tcp://a:2', blocks: 100 }, { url: 'http://b:1' }],
        },
      ],
    });
    const environment = {
      SAGA_MODEL: 'm',
      SAGA_SERVERS: 'http://a:1 http://b:1',
      SAGA_API_KEYS: 'x,y',
      SAGA_INSECURE: '1',
    };
    expect(read(undefined, {}, environment).config).toEqual({
      apiKeys: ['x', 'y'],
      insecure: true,
      models: [{ name: 'm', servers: [{ url: 'http://a:1' }, { url: 'http://b:1' }] }],
    });
  });

  it('that are wrong are named as they were given', () => {
    expect(problemsOf(model, { port: 'x' }, { SAGA_RETRIES: '-1', SAGA_API_KEYS: '\u0000'.repeat(5000) })).toEqual(
      [
        'SAGA_API_KEYS must be a text or a list of texts',
        '--port must be an integer from 0 to 65535, got "x"',
        'SAGA_RETRIES must be an integer from 0 to 16, got "-1"',
      ].sort((a, b) => order.indexOf(a.split(' ')[0] ?? '') - order.indexOf(b.split(' ')[0] ?? '')),
    );
    expect(problemsOf(undefined, { servers: ['http://a:1,port=5'] })).toEqual([
      '--model is needed: the name of the model',
      '--servers: port must be a setting of a server with its value',
    ]);
    expect(problemsOf(model, { model: 'n' })).toEqual(['--model cannot be used beside models in the file']);
  });
});

/** As in the table of settings. */
const order = ['--port', 'SAGA_API_KEYS', 'SAGA_RETRIES'];

describe('secrets', () => {
  it('are hidden in what is shown, wherever they are', () => {
    const shown = shownConfiguration(
      read(
        `api_keys: [HIDE1]\ntenants: [{ name: t, api_keys: [HIDE2], cache_salt: HIDE3 }]\n${model}        api_key: HIDE4\n        directive_key: HIDE5\n` +
          `  - name: n\n    discover: { type: dns, host: w, port: 1, server: { api_key: HIDE6, directive_key: HIDE7 } }\n`,
      ),
    );
    expect(shown).not.toContain('HIDE');
    expect(shown.match(/hidden/g)?.length).toBe(7);
    // Every setting that is secret is one of those.
    expect(
      [
        ...new Set(
          allSettings()
            .filter(({ setting }) => setting.secret)
            .map(({ setting }) => setting.name),
        ),
      ].sort(),
    ).toEqual(['admin_keys', 'api_key', 'api_keys', 'cache_salt', 'directive_key', 'tenant_secret']);
  });
});

describe('saga config', () => {
  const main = fileURLToPath(new URL('../../dist/esm/cli/main.js', import.meta.url));
  const saga = (...args: string[]): Promise<{ code: number; out: string; err: string }> =>
    new Promise((resolve) => {
      execFile(process.execPath, [main, ...args], (error, out, err) => {
        resolve({ code: error === null ? 0 : Number(error.code), out, err });
      });
    });

  it('check says what would run, or all that is wrong', async () => {
    const fine = await saga('config', 'check', '--config', fileOf(`${model}api_keys: [SECRET]\n`), '--port', '7');
    expect([fine.code, fine.err]).toEqual([0, '']);
    expect(JSON.parse(fine.out)).toMatchObject({ port: 7, apiKeys: '1 hidden', models: [{ name: 'm' }] });
    expect(fine.out).not.toContain('SECRET');
    const wrong = await saga('config', 'check', '--config', fileOf(`${model}port: a\nhots: b\n`));
    expect([wrong.code, wrong.out]).toEqual([2, '']);
    expect(wrong.err).toMatch(/saga\.yaml:5: port must be .*\n.*saga\.yaml:6: hots is no setting/);
  });

  it('check finds what only the gateway knows', async () => {
    for (const [text, message] of [
      [`host: 0.0.0.0\n${model}`, /set apiKeys, or insecure/],
      [`${model}  - name: m\n`, /model m is there twice/],
      [`${model}    tokenizer: /none\n`, /tokenizer/],
    ] as const) {
      const { code, err } = await saga('config', 'check', '--config', fileOf(text));
      expect([code, err]).toEqual([2, expect.stringMatching(message)]);
    }
  });

  it('list names every setting', async () => {
    const { out } = await saga('config', 'list');
    expect(
      out
        .trim()
        .split('\n')
        .map((line) => line.split(' ')[0]),
    ).toEqual(allSettings().map(({ path }) => path));
  });
});
