/** Rules about the repository itself that no compiler checks. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('../', import.meta.url));

/** Tracked files and new ones that git does not ignore, as paths relative to the repository. */
function repositoryFiles(): string[] {
  const listed = execFileSync('git', ['ls-files', '-co', '--exclude-standard', '-z'], {
    cwd: root,
    encoding: 'utf8',
  });
  return listed.split('\0').filter((file) => file !== '' && existsSync(join(root, file)));
}

const read = (file: string): string => readFileSync(join(root, file), 'utf8');
const isData = (file: string): boolean => /(^|\/)data\/|package-lock\.json$|\.(svg|png|bin|gz)$/.test(file);

const files = repositoryFiles();
const texts = files.filter((file) => statSync(join(root, file)).isFile() && !isData(file));
const code = texts.filter((file) =>
  /\.(cpp|hpp|h|c|ts|cts|mjs|cjs|js|py|cmake|gyp|gypi)$|CMakeLists\.txt$|run$/.test(file),
);

/** Every line of the given files that matches, as `file:line: text`. */
function linesMatching(where: string[], pattern: RegExp): string[] {
  return where.flatMap((file) =>
    read(file)
      .split('\n')
      .flatMap((line, i) => (pattern.test(line) ? [`${file}:${i + 1}: ${line.trim().slice(0, 120)}`] : [])),
  );
}

// Assembled, so that this file does not contain what it looks for.
const word = (...parts: string[]): string => parts.join('');

describe('sources', () => {
  it('native/sources.json lists exactly the .cpp files of core, capi and node, sorted', () => {
    const sources = JSON.parse(read('native/sources.json')) as Record<string, string[]>;
    for (const group of ['core', 'capi', 'node']) {
      const present = readdirSync(join(root, 'native', group), { recursive: true, encoding: 'utf8' })
        .filter((file) => file.endsWith('.cpp'))
        .map((file) => `native/${group}/${file}`)
        .sort();
      expect(sources[group], 'run: node scripts/sources.mjs').toEqual(present);
    }
  });

  it('saga.h and package.json name the same version', () => {
    const { version } = JSON.parse(read('package.json')) as { version: string };
    expect(read('native/include/saga/saga.h')).toContain(`#define SAGA_VERSION "${version}"`);
  });

  it('every native header begins with prose', () => {
    const headers = files.filter((file) => /^native\/.*\.(hpp|h)$/.test(file));
    expect(headers.filter((file) => !/^(\/\/ |\/\* ?)\S/.test(read(file)))).toEqual([]);
  });

  it('lines of code are at most 160 characters long, apart from those that are one text', () => {
    expect(linesMatching(code, /^(?!\s*(?:\w+: |return |\? |: |\w+ \+?= )?[`'"]).{161,}/)).toEqual([]);
  });

  it('no line ends in a space or has a tab, and every file ends in a newline', () => {
    expect(
      linesMatching(
        texts.filter((file) => !file.endsWith('.md')),
        /[ \t]$|\t/,
      ),
    ).toEqual([]);
    expect(texts.filter((file) => read(file) !== '' && !read(file).endsWith('\n'))).toEqual([]);
  });

  it('nothing is marked as unfinished, skipped or focused', () => {
    const marks = [word('TO', 'DO'), word('FIX', 'ME'), word('XX', 'X'), word('not ', 'implemented')];
    expect(linesMatching(texts, new RegExp(`\\b(${marks.join('|')})\\b`))).toEqual([]);
    const focused = new RegExp(`\\b(it|test|describe)\\.(${word('on', 'ly')}|${word('sk', 'ip')})\\b`);
    expect(linesMatching(texts, focused)).toEqual([]);
  });
});

describe('the repository stands alone', () => {
  it('names no path of one machine', () => {
    const folders = [word('/wo', 'rk/'), word('/ro', 'ot/'), word('/ho', 'me/'), word('/Us', 'ers/')];
    // What a tokenizer is trained on looks like what agents send.
    const where = texts.filter((file) => !file.endsWith('/corpus.txt'));
    expect(linesMatching(where, new RegExp(`(^|[^\\w.])(${folders.join('|')})`))).toEqual([]);
  });

  it('names no host of a package registry, not even in the lock file', () => {
    const hosts = [
      word('npmjs', '\\.(org|com)'),
      word('pypi', '\\.org'),
      word('pythonhosted', '\\.org'),
      word('crates', '\\.io'),
      word('maven', '\\.org'),
      word('deb', '\\.debian\\.org'),
      word('proxy', '\\.golang\\.org'),
    ];
    const where = [...texts, 'package-lock.json'];
    expect(linesMatching(where, new RegExp(hosts.join('|')))).toEqual([]);
    expect(read('package-lock.json')).not.toContain(word('"reso', 'lved"'));
  });
});

describe('dependencies', () => {
  interface Manifest {
    version: string;
    dependencies: Record<string, string>;
    devDependencies: Record<string, string>;
  }
  const manifest = JSON.parse(read('package.json')) as Manifest;
  const all = { ...manifest.dependencies, ...manifest.devDependencies };

  it('are pinned to exact versions', () => {
    expect(Object.entries(all).filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version))).toEqual([]);
  });

  it('each stand in docs/dependencies.md with that version and a reason', () => {
    const rows = read('docs/dependencies.md')
      .split('\n')
      .filter((line) => line.startsWith('| `'))
      .map((line) => line.split('|').map((cell) => cell.trim()));
    const described = Object.fromEntries(
      rows.map(([, name = '', version = '']) => [name.replaceAll('`', ''), version]),
    );
    expect(described).toEqual(all);
    expect(rows.filter(([, , , reason = '']) => reason.length < 20)).toEqual([]);
  });

  it('agree with the lock file, whose own version is the package’s', () => {
    const lock = JSON.parse(read('package-lock.json')) as {
      version: string;
      packages: Record<string, Manifest>;
    };
    expect(lock.version).toBe(manifest.version);
    expect(lock.packages['']?.dependencies).toEqual(manifest.dependencies);
    expect(lock.packages['']?.devDependencies).toEqual(manifest.devDependencies);
  });
});
