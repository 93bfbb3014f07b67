// Loads the addon, once for both module formats: src/, dist/esm/ and dist/cjs/ all hold this file and find the same binary.
//
// The binary is build/Release/saga.node where the addon was compiled on this machine, else the prebuilt one for this platform
// (node-gyp-build decides). If none of them works here, the error has the code SAGA_ERR_NATIVE_MISSING and a message that
// names the platform and the one command to run.
'use strict';

const { dirname, join } = require('node:path');
const { existsSync, readFileSync } = require('node:fs');
const nodeGypBuild = require('node-gyp-build');

const packageName = 'saga-scheduler';

// dist/cjs has a package.json of its own, without a name.
function packageRoot() {
  for (let folder = __dirname; ; folder = dirname(folder)) {
    const manifest = join(folder, 'package.json');
    if (existsSync(manifest) && JSON.parse(readFileSync(manifest, 'utf8')).name === packageName) return folder;
    if (folder === dirname(folder)) throw new Error(`${__filename} does not lie in the package ${packageName}`);
  }
}

// Linux binaries differ by C library; elsewhere there is one.
function libc() {
  if (process.platform !== 'linux') return '';
  process.report.excludeNetwork = true;
  return process.report.getReport().header.glibcVersionRuntime ? 'glibc' : 'musl';
}

function missing(what, cause) {
  const platform = [process.platform, process.arch, libc()].filter(Boolean).join(' ');
  const error = new Error(
    `${what} for ${platform} (Node ${process.versions.node}): run \`npx saga build\` to compile it on this machine`,
    { cause },
  );
  error.name = 'SagaNativeError';
  error.code = 'SAGA_ERR_NATIVE_MISSING';
  // What errors.ts marks its classes with, so that instanceof works on an error that is thrown before they exist.
  Object.defineProperty(error, Symbol.for('saga-scheduler.error'), { value: ['SagaNativeError', 'SagaError'] });
  return error;
}

function load() {
  const root = packageRoot();
  let path;
  try {
    path = nodeGypBuild.path(root);
  } catch (cause) {
    throw missing(`${packageName} has no native binary`, cause);
  }
  try {
    const addon = require(path);
    addon.binaryPath = path;
    return addon;
  } catch (cause) {
    throw missing(
      `the native binary ${path} does not load (${cause.message.split('\n')[0]}), and there is no other`,
      cause,
    );
  }
}

module.exports = load();
