// Runs clang-tidy 19 over the core and the C interface: `node scripts/clang-tidy.mjs BUILD_FOLDER`, where BUILD_FOLDER holds
// CMake's compile_commands.json (without one, build-tidy/ is configured for it). Two files at a time, or SAGA_JOBS.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';

const folder = process.argv[2] ?? 'build-tidy';
if (!existsSync(`${folder}/compile_commands.json`)) {
  const options = ['-S', '.', '-B', folder, '-DCMAKE_EXPORT_COMPILE_COMMANDS=ON'];
  const { status } = spawnSync('cmake', options, { stdio: ['ignore', 'ignore', 'inherit'] });
  if (status !== 0) process.exit(1);
}

const { core, capi } = JSON.parse(readFileSync('native/sources.json', 'utf8'));
const pending = [...core, ...capi];
let bad = 0;

/** Checks files until none is left. What clang-tidy says appears file by file. */
async function worker() {
  for (let file = pending.shift(); file; file = pending.shift()) {
    const child = spawn('clang-tidy-19', ['-p', folder, '--quiet', file], { stdio: ['ignore', 'pipe', 'ignore'] });
    let output = '';
    child.stdout.on('data', (chunk) => (output += chunk));
    const status = await new Promise((done) => {
      child.on('error', (error) => {
        output += `${error.message}\n`;
        done(1);
      });
      child.on('close', done);
    });
    if (status !== 0) {
      bad += 1;
      process.stdout.write(`${file}\n${output}\n`);
    }
  }
}

const files = pending.length;
await Promise.all(Array.from({ length: Number(process.env.SAGA_JOBS ?? '2') }, worker));
console.log(`clang-tidy: ${files} files, ${bad} with findings`);
process.exit(bad === 0 ? 0 : 1);
