#!/usr/bin/env node
// `npm run build`, unless the last one that this script ran was of the same sources and what it made is still there.
//
// Sources are compared by content, what was made by its time: whoever builds by another way in between makes this build again.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const stamp = join(root, 'build/built');
const made = ['build/Release/saga.node', 'dist/esm/.tsbuildinfo', 'dist/cjs/.tsbuildinfo', 'dist/esm/cli/main.js'];
const sources = [
  'src',
  'native',
  'scripts',
  'binding.gyp',
  'package.json',
  'package-lock.json',
  'tsconfig.json',
  'tsconfig.cjs.json',
];
const settings = ['CC', 'CXX', 'CFLAGS', 'CXXFLAGS', 'LDFLAGS', 'npm_config_nodedir'];

function digest() {
  const hash = createHash('sha256');
  hash.update(process.version + process.arch);
  for (const name of settings) hash.update(`${name}=${process.env[name] ?? ''}\n`);
  for (const source of sources) {
    const path = join(root, source);
    const files = statSync(path).isDirectory()
      ? readdirSync(path, { recursive: true, withFileTypes: true })
          .filter((entry) => entry.isFile())
          .map((entry) => join(entry.parentPath, entry.name))
          .sort()
      : [path];
    for (const file of files) hash.update(`${file}\n`).update(readFileSync(file)).update('\n');
  }
  for (const file of made) {
    const path = join(root, file);
    hash.update(existsSync(path) ? String(statSync(path).mtimeMs) : `no ${file}`);
  }
  return hash.digest('hex');
}

if (existsSync(stamp) && readFileSync(stamp, 'utf8') === digest()) process.exit(0);
const { status, error } = spawnSync('npm', ['run', '--silent', 'build'], {
  cwd: root,
  stdio: 'inherit',
  shell: process.platform === 'win32',
});
if (error) throw error;
if (status !== 0) process.exit(status ?? 1);
writeFileSync(stamp, digest());
