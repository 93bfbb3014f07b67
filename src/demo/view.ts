/**
 * What a demonstration shows while it runs. On a terminal: a picture that is redrawn in place. Elsewhere, or with `NO_COLOR`: a plain line every few
 * seconds.
 */
import type { Environment, ProgressStream } from '../simulate/progress.js';
import type { RunState } from './comparison.js';

const barWidth = 24;
/** Seconds between two plain lines. */
const plainSeconds = 4;

export class DemoView {
  readonly #stream: ProgressStream;
  readonly #live: boolean;
  #drawn = 0;
  #said = -Infinity;
  #policy = '';

  constructor(stream: ProgressStream, environment: Environment) {
    this.#stream = stream;
    this.#live = stream.isTTY === true && (environment['NO_COLOR'] ?? '') === '' && environment['TERM'] !== 'dumb';
    if (this.#live) stream.write(hideCursor);
  }

  show(state: RunState): void {
    if (this.#live) {
      this.#draw(pictureOf(state));
      return;
    }
    // A run is announced, and then told of now and then.
    if (state.policy === this.#policy && state.seconds - this.#said < plainSeconds) return;
    this.#policy = state.policy;
    this.#said = state.seconds;
    this.#stream.write(`${lineOf(state)}\n`);
  }

  /** Writes lines that stay, above the picture. */
  note(text: string): void {
    this.#clear();
    this.#stream.write(`${text}\n`);
  }

  /** Takes the picture away. */
  close(): void {
    this.#clear();
    if (this.#live) this.#stream.write(showCursor);
  }

  #draw(lines: readonly string[]): void {
    const width = Math.max(40, (this.#stream.columns ?? 80) - 1);
    const text = lines.map((line) => `${line.slice(0, width)}${clearToEnd}\n`).join('');
    this.#stream.write(`${this.#drawn > 0 ? up(this.#drawn) : ''}${text}`);
    this.#drawn = lines.length;
  }

  #clear(): void {
    if (this.#drawn > 0) this.#stream.write(`${up(this.#drawn)}${clearBelow}`);
    this.#drawn = 0;
  }
}

const hideCursor = '\x1b[?25l';
const showCursor = '\x1b[?25h';
const clearToEnd = '\x1b[K';
const clearBelow = '\x1b[J';
const up = (lines: number): string => `\x1b[${lines}A\r`;

/** The picture of a moment, line by line. */
export function pictureOf(state: RunState): string[] {
  const { progress, workers, timeScale } = state;
  const time =
    timeScale === 1
      ? `${state.seconds.toFixed(0)} s`
      : `${state.seconds.toFixed(0)} s for ${(state.seconds * timeScale).toFixed(0)} s of the agents`;
  return [
    `run ${state.run} of ${state.runs}: ${state.policy}`.padEnd(40) + time,
    '',
    ...workers.map(
      (worker, at) =>
        `worker ${at + 1}  ${bar(worker.usage)} ${percent(worker.usage).padStart(5)} of its blocks in use, ` +
        `${String(worker.running).padStart(3)} running, ${String(worker.waiting).padStart(3)} waiting, ` +
        `hit rate ${percent(worker.cachedTokens / worker.queriedTokens).padStart(5)}`,
    ),
    '',
    `tasks     ${bar(progress.completedTasks / progress.tasks)} ${progress.completedTasks} of ${progress.tasks} ended, ` +
      `${progress.arrivedTasks - progress.completedTasks - progress.failedTasks} under way`,
    `calls     ${state.placements} placed, ${progress.callsEnded} answered, ${state.queuedCalls} in the queue of the gateway`,
    `prompts   ${grouped(progress.promptTokens)} tokens, ${percent(progress.cachedTokens / progress.promptTokens)} cached, ` +
      `${grouped(progress.recomputedTokens)} computed again`,
  ];
}

/** The same in one line. */
export function lineOf(state: RunState): string {
  const { progress } = state;
  return (
    `saga demo: ${state.policy}, ${state.seconds.toFixed(0)} s: ${progress.completedTasks} of ${progress.tasks} tasks, ` +
    `${state.placements} calls placed, ${state.queuedCalls} in the queue, ` +
    `hit rate ${percent(progress.cachedTokens / progress.promptTokens)}, ${grouped(progress.recomputedTokens)} tokens computed again`
  );
}

function bar(share: number): string {
  const filled = Math.round(Math.min(1, Math.max(0, Number.isFinite(share) ? share : 0)) * barWidth);
  return `[${'#'.repeat(filled)}${'-'.repeat(barWidth - filled)}]`;
}

export function percent(share: number): string {
  return Number.isFinite(share) ? `${(100 * share).toFixed(0)} %` : '-';
}

/** With commas between thousands. */
export function grouped(value: number): string {
  return Number.isFinite(value)
    ? Math.round(value)
        .toString()
        .replace(/\B(?=(\d{3})+$)/g, ',')
    : '-';
}
