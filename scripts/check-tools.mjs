// Names, in one sentence, every tool that a build needs and this machine lacks: `node scripts/check-tools.mjs [cmake]`.
// Runs before anything is compiled, so that a newcomer reads one sentence instead of a compiler's log. Written so that an old
// Node can still run it and be told that it is old.
import { spawnSync } from 'child_process';
import { existsSync, readFileSync, realpathSync } from 'fs';
import { dirname, join } from 'path';
import { fileURLToPath } from 'url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const oldestNode = [20, 19];

const cxx20Program = `
#include <bit>
#include <concepts>
#include <span>
static_assert(__cplusplus >= 202002L);
static_assert(std::popcount(7u) == 3);
`;

function run(command, input) {
  const [program, ...args] = command;
  return spawnSync(program, args, { input, encoding: 'utf8', timeout: 60_000 });
}

const exists = (command) => run(command).error === undefined;

/** The C++ compiler to use, as a command with arguments: $CXX, else the first of the usual names that speaks C++20. */
export function findCompiler() {
  const given = process.env.CXX;
  const candidates = given ? [given.trim().split(/\s+/)] : [['g++'], ['c++'], ['clang++']];
  let tooOld;
  for (const command of candidates) {
    const result = run([...command, '-std=c++20', '-x', 'c++', '-fsyntax-only', '-'], cxx20Program);
    if (result.error) continue;
    if (result.status === 0) return { command };
    const version = run([...command, '-dumpversion']).stdout?.trim() ?? '';
    tooOld ??= `the C++ compiler ${command.join(' ')} ${version} does not compile C++20 (g++ 11 or clang 14 does)`;
  }
  const problem = given
    ? `the C++ compiler named by CXX (${given}) cannot be run`
    : 'a C++20 compiler (g++ 11 or newer) is missing';
  return { problem: tooOld ?? problem };
}

function nodeProblem() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  const old = major < oldestNode[0] || (major === oldestNode[0] && minor < oldestNode[1]);
  return old ? `Node ${process.versions.node} is too old (${oldestNode.join('.')} or newer is needed)` : undefined;
}

function pythonProblem() {
  const candidates = [process.env.npm_config_python, process.env.PYTHON, 'python3', 'python'].filter(Boolean);
  const fits = (name) => run([name, '-c', 'import sys; sys.exit(sys.version_info < (3, 8))']).status === 0;
  return candidates.some(fits) ? undefined : 'Python 3.8 or newer is missing';
}

/** Every problem with this machine's tools, each a part of a sentence. Empty: ready to build. */
export function toolProblems({ cmake = false } = {}) {
  const problems = [nodeProblem()];
  if (!existsSync(join(root, 'node_modules/node-gyp-build'))) {
    problems.push('the npm packages are not installed (run npm ci)');
  }
  if (process.platform !== 'win32') {
    problems.push(findCompiler().problem);
    if (cmake) {
      if (!exists(['cmake', '--version'])) problems.push('cmake is missing');
      if (!exists(['ninja', '--version']) && !exists(['make', '--version'])) problems.push('ninja or make is missing');
    } else {
      problems.push(pythonProblem());
      if (!exists(['make', '--version'])) problems.push('make is missing');
    }
  }
  return problems.filter(Boolean);
}

function sentence(problems) {
  const list =
    problems.length === 1 ? problems[0] : `${problems.slice(0, -1).join(', ')} and ${problems[problems.length - 1]}`;
  const { name } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  return `${name} cannot be built here: ${list}.`;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const problems = toolProblems({ cmake: process.argv.includes('cmake') });
  if (problems.length > 0) {
    console.error(sentence(problems));
    process.exit(1);
  }
}
