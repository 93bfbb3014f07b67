// Completes what the two tsc runs leave in dist/: the loader of the addon, which both formats share, the marker that makes
// dist/cjs CommonJS, the command's executable bit, and no file whose source is gone.
import { chmodSync, copyFileSync, existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

for (const format of ['esm', 'cjs']) {
  const dist = `dist/${format}`;
  for (const file of readdirSync(dist, { recursive: true })) {
    const source = file.replace(/(\.d\.ts|\.js)$/, '.ts');
    if (source !== file && !existsSync(join('src', source))) rmSync(join(dist, file));
  }
  for (const file of ['native.cjs', 'native.d.cts']) copyFileSync(`src/${file}`, `${dist}/${file}`);
}
writeFileSync('dist/cjs/package.json', '{ "type": "commonjs" }\n');
if (existsSync('dist/esm/cli/main.js')) chmodSync('dist/esm/cli/main.js', 0o755);
