// Brings native/sources.json up to date with the .cpp files that lie under native/: `node scripts/sources.mjs`. A test fails
// where the list and the folders differ.
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';

const list = 'native/sources.json';
const sources = JSON.parse(readFileSync(list, 'utf8'));
for (const group of ['core', 'capi', 'node']) {
  sources[group] = readdirSync(`native/${group}`, { recursive: true })
    .filter((file) => file.endsWith('.cpp'))
    .map((file) => `native/${group}/${file.replaceAll('\\', '/')}`)
    .sort();
}
writeFileSync(list, `${JSON.stringify(sources, null, 2)}\n`);
