/** docs/gateway.md says what the code does. With SAGA_UPDATE_DOCUMENTS=1 its tables are written anew. */
import { readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { gatewayErrors } from '../../src/gateway/errors.js';
import { GatewayMetrics } from '../../src/gateway/observe/metrics.js';
import { allSettings, isPlain, quickSettings, type Setting } from '../../src/gateway/settings.js';

const file = new URL('../../docs/gateway.md', import.meta.url);

/** Compares what stands between two marks, without the spaces that align columns. */
function expectTable(mark: string, rows: readonly (readonly string[])[]): void {
  const escape = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
  const [head, ...rest] = rows.map((row) => `| ${row.map(escape).join(' | ')} |`);
  const table = [head, `|${(rows[0] ?? []).map(() => '---').join('|')}|`, ...rest].join('\n');
  const document = readFileSync(file, 'utf8');
  const marked = new RegExp(`(<!-- ${mark} -->\\n)([\\s\\S]*?)(\\n<!-- end of ${mark} -->)`);
  const found = marked.exec(document)?.[2];
  expect(found, `docs/gateway.md has ${mark}`).toBeDefined();
  if (process.env['SAGA_UPDATE_DOCUMENTS'] === '1')
    writeFileSync(
      file,
      document.replace(marked, (_, before: string, _table, after: string) => before + table + after),
    );
  else expect(found).toBe(table);
}

describe('docs/gateway.md', () => {
  const code = (text: string): string => (text === '' ? '' : `\`${text}\``);
  const row = ({ path, setting }: { path: string; setting: Setting }): string[] => [
    code(path),
    setting.required === true ? 'required' : setting.fallback === '' ? '' : setting.fallback,
    `${setting.help}${setting.type.kind === 'one' ? ` (${setting.type.of.join(', ')})` : ''}`,
  ];

  it('lists every setting', () => {
    expectTable('settings', [['setting', 'default', ''], ...allSettings().map(row)]);
  });

  it('lists the settings of one model by flags', () => {
    expectTable('flags', [
      ['flag', ''],
      ...quickSettings.filter(isPlain).map((setting) => [code(`--${setting.name.replaceAll('_', '-')}`), setting.help]),
    ]);
  });

  it('lists every error', () => {
    const source = readFileSync(new URL('../../src/gateway/errors.ts', import.meta.url), 'utf8');
    expectTable('errors', [
      ['code', 'status', ''],
      ...Object.entries(gatewayErrors).map(([name, status]) => {
        const [, help = ''] = new RegExp(`/\\*\\* ([^*]*?)\\.? \\*/\\s+${name}: ${status},`).exec(source) ?? [];
        expect([name, help !== '']).toEqual([name, true]);
        return [code(name), String(status), help];
      }),
    ]);
  });

  it('lists every metric', async () => {
    const text = await new GatewayMetrics([]).text();
    const helps = new Map([...text.matchAll(/^# HELP (\S+) (.+)$/gm)].map(([, name, help]) => [name, help]));
    expectTable('metrics', [
      ['metric', 'type', ''],
      ...[...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name = '', type = '']) => [
        code(name),
        type,
        helps.get(name) ?? '',
      ]),
    ]);
  });
});
