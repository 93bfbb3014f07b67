// Runs clang-format over the native sources: `node scripts/clang-format.mjs --check|--write`. Version 19, because versions
// differ in what they print; CLANG_FORMAT names another program.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

const files = readdirSync('native', { recursive: true })
  .filter((file) => /\.(cpp|hpp|h|c|cu|cuh)$/.test(file))
  .map((file) => join('native', file))
  .sort();
const modes = { '--check': ['--dry-run', '--Werror'], '--write': ['-i'] };
const mode = modes[process.argv[2]];
if (!mode) {
  console.error('usage: node scripts/clang-format.mjs --check|--write');
  process.exit(2);
}

function major(program) {
  const { stdout } = spawnSync(program, ['--version'], { encoding: 'utf8' });
  return Number(/version (\d+)/.exec(stdout ?? '')?.[1]);
}

const candidates = process.env.CLANG_FORMAT ? [process.env.CLANG_FORMAT] : ['clang-format-19', 'clang-format'];
const program = candidates.find((name) => major(name) === 19);
if (!program) {
  console.error('clang-format 19 is missing (Debian: apt-get install clang-format-19; or set CLANG_FORMAT).');
  process.exit(1);
}
if (files.length > 0) process.exit(spawnSync(program, [...mode, ...files], { stdio: 'inherit' }).status ?? 1);
