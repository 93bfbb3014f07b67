/** An emulated worker in a process of its own. Arguments: its options as JSON; `"timeScale": null` stands for Infinity. */
import { EmulatedWorker, type EmulatedWorkerOptions } from '../../dist/esm/emulated-worker/index.js';
import { answerUsage } from './processes.js';

const given = JSON.parse(process.argv[2] ?? '{}') as EmulatedWorkerOptions & { timeScale?: number | null };
const worker = await EmulatedWorker.start({
  ...given,
  timeScale: given.timeScale === null ? Infinity : (given.timeScale ?? 1),
});
const { url, events, replay, directives } = worker;
process.stdout.write(`${JSON.stringify({ url, events, replay, directives })}\n`);
answerUsage();
