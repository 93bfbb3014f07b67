#!/usr/bin/env node
// Builds native code: `node scripts/native.mjs gyp|cmake|prebuild|test [...arguments]`.
//
//   gyp       the addon, build/Release/saga.node, with node-gyp; compiles only what has changed
//   cmake     the same addon with cmake-js, in build-cmake/, then put in the same place
//   prebuild  the addon to publish, prebuilds/<platform>-<arch>/, with prebuildify
//   test      the native tests through ctest; an argument such as address,undefined or thread is a sanitizer
//
// Node's headers are never downloaded: npm_config_nodedir, else those beside the running node, else the package
// node-api-headers. Two jobs at a time, or SAGA_JOBS.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  realpathSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findCompiler } from './check-tools.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);
const jobs = process.env.SAGA_JOBS ?? '2';
const addon = join(root, 'build/Release/saga.node');

/** A folder that node-gyp accepts as an installed Node, or undefined where only node-gyp itself can find one. */
function nodeDirectory() {
  if (process.env.npm_config_nodedir) return process.env.npm_config_nodedir;
  const beside = resolve(realpathSync(process.execPath), '../..');
  if (['node_api.h', 'common.gypi'].every((file) => existsSync(join(beside, 'include/node', file)))) return beside;
  if (process.platform === 'win32') return undefined; // Windows needs node.lib as well.
  // Outside build/, which prebuildify and cmake-js clear.
  const made = join(root, 'node_modules/.cache/node-headers');
  const include = join(made, 'include/node');
  mkdirSync(include, { recursive: true });
  const headers = require('node-api-headers').include_dir;
  for (const file of readdirSync(headers)) copyFileSync(join(headers, file), join(include, file));
  copyFileSync(join(root, 'native/node/common.gypi'), join(include, 'common.gypi'));
  return made;
}

function environment(extra = {}) {
  const env = { ...process.env, ...extra };
  const nodedir = nodeDirectory();
  if (nodedir) env.npm_config_nodedir = nodedir;
  // Without this, make and CMake would look for g++ alone.
  if (!env.CXX && process.platform !== 'win32') env.CXX = findCompiler().command?.join(' ') ?? 'g++';
  return env;
}

function run(program, args, env) {
  const { status, error } = spawnSync(program, args, { cwd: root, env, stdio: ['ignore', 2, 2] });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

function runPackage(name, args, env) {
  const manifest = require.resolve(`${name}/package.json`);
  const { bin } = require(manifest);
  run(process.execPath, [join(dirname(manifest), typeof bin === 'string' ? bin : bin[name]), ...args], env);
}

/** node-gyp writes its makefile once; it is written again when something it was made from differs. */
function gyp() {
  const env = environment();
  const hash = createHash('sha256');
  for (const file of ['binding.gyp', 'native/sources.json', 'package-lock.json'])
    hash.update(readFileSync(join(root, file)));
  const settings = ['CC', 'CXX', 'CFLAGS', 'CXXFLAGS', 'LDFLAGS', 'SAGA_STATIC_RUNTIME', 'npm_config_nodedir'];
  for (const name of settings) hash.update(`${name}=${env[name] ?? ''}\n`);
  hash.update(process.version + process.arch);
  const digest = hash.digest('hex');
  const stamp = join(root, 'build/configured');
  const quiet = ['--loglevel', 'warn'];
  if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== digest) {
    runPackage('node-gyp', ['configure', ...quiet], env);
    writeFileSync(stamp, digest);
  }
  runPackage('node-gyp', ['build', '--jobs', jobs, ...quiet], env);
}

function cmake(args) {
  const out = 'build-cmake';
  runPackage('cmake-js', ['compile', '--out', out, '--parallel', jobs, ...args], environment());
  mkdirSync(dirname(addon), { recursive: true });
  // Not written in place: a running process may have the old one mapped.
  copyFileSync(join(root, out, 'Release/saga.node'), `${addon}.new`);
  renameSync(`${addon}.new`, addon);
}

function prebuild(args) {
  const env = environment({ SAGA_STATIC_RUNTIME: '1', PREBUILD_NODE_GYP: fileURLToPath(import.meta.url) });
  const libc = process.platform === 'linux' ? ['--tag-libc'] : [];
  runPackage('prebuildify', ['--napi', '--strip', '--target', process.versions.node, ...libc, ...args], env);
}

function test([sanitizer = '', ...args]) {
  const out = sanitizer ? `build-test-${sanitizer.replaceAll(',', '-')}` : 'build-test';
  const env = environment();
  const options = ['-DCMAKE_BUILD_TYPE=Release', '-DSAGA_BUILD_TESTS=ON', `-DSAGA_SANITIZE=${sanitizer}`];
  run('cmake', ['-S', '.', '-B', out, ...options], env);
  run('cmake', ['--build', out, '--parallel', jobs], env);
  run('ctest', ['--test-dir', out, '--output-on-failure', '--parallel', jobs, ...args], env);
}

// prebuildify calls this script as its node-gyp, with `rebuild`: what has not changed need not be compiled again.
const commands = { gyp, rebuild: gyp, cmake, prebuild, test };
const [command, ...args] = process.argv.slice(2);
if (!Object.hasOwn(commands, command ?? '')) {
  console.error('usage: node scripts/native.mjs gyp|cmake|prebuild|test [...arguments]');
  process.exit(2);
}
commands[command](args);
