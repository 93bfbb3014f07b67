/** Child processes of the gateway benchmark: each prints one JSON line when it is ready, and answers to lines with its CPU time and memory. */
import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

/** What a process has used. */
export interface Usage {
  cpuMicroseconds: number;
  residentBytes: number;
}

/** A process of this folder, or the command `saga`. */
export class Child<Ready> {
  readonly ready: Ready;
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  private constructor(process: ChildProcess, lines: AsyncIterator<string>, ready: Ready) {
    this.#process = process;
    this.#lines = lines;
    this.ready = ready;
  }

  static async start<Ready>(file: string, args: readonly string[]): Promise<Child<Ready>> {
    const path = fileURLToPath(new URL(file, import.meta.url));
    const child = spawn(process.execPath, ['--expose-gc', path, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const first = await lines.next();
    if (first.done === true) throw new Error(`${file} ended before it was ready`);
    return new Child<Ready>(child, lines, JSON.parse(first.value) as Ready);
  }

  /** Of a process that calls {@link answerUsage}. `collect`: garbage is collected before, which takes CPU time. */
  async usage(collect = false): Promise<Usage> {
    this.#process.stdin?.write(collect ? 'collect\n' : 'usage\n');
    const line = await this.#lines.next();
    if (line.done === true) throw new Error('a process of the benchmark has ended');
    return JSON.parse(line.value) as Usage;
  }

  stop(): void {
    this.#process.kill('SIGTERM');
  }
}

/** Answers {@link Child.usage}; the process ends with its parent. */
export function answerUsage(): void {
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      if (line === 'collect') (globalThis as { gc?: () => void }).gc?.();
      const { user, system } = process.cpuUsage();
      const usage: Usage = { cpuMicroseconds: user + system, residentBytes: process.memoryUsage.rss() };
      process.stdout.write(`${JSON.stringify(usage)}\n`);
    })
    .on('close', () => process.exit());
}
