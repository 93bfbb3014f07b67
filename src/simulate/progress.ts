/**
 * Progress on a terminal: one line that is redrawn where the stream is a terminal, plain lines now and then elsewhere.
 */
import type { ProgressListener } from './run.js';

/** What the display needs of a stream; `process.stderr` has it. */
export interface ProgressStream {
  write(text: string): unknown;
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
}

/** Environment variables that matter: `NO_COLOR` (any value but the empty one) turns off colours and redrawing. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** Share of the work between two plain lines. */
const plainStep = 0.25;

/** Runs of an open-ended search between two plain lines. */
const plainRuns = 10;

const barWidth = 30;

/**
 * Draws progress on a stream.
 *
 * On a terminal: a bar with the percentage, redrawn in place; cleared at the end. Elsewhere, or with `NO_COLOR`: a line at the
 * beginning and after each quarter.
 */
export class ProgressDisplay implements ProgressListener {
  private readonly redraw: boolean;
  private label = '';
  private total: number | undefined;
  private shown = '';
  private reported = 0;

  constructor(
    private readonly stream: ProgressStream,
    environment: Environment = {},
  ) {
    this.redraw = stream.isTTY === true && (environment['NO_COLOR'] ?? '') === '' && environment['TERM'] !== 'dumb';
  }

  begin(label: string, total: number | undefined): void {
    this.label = label;
    this.total = total;
    this.reported = 0;
    if (this.redraw) this.draw(0);
    else
      this.stream.write(`saga: ${label}${total === undefined ? '' : ` (${total} ${total === 1 ? 'run' : 'runs'})`}\n`);
  }

  advance(done: number): void {
    if (this.redraw) {
      this.draw(done);
      return;
    }
    const share = this.total === undefined ? Math.floor(done / plainRuns) : Math.floor(done / this.total / plainStep);
    if (share <= this.reported) return;
    this.reported = share;
    this.stream.write(
      `saga: ${this.label}: ${this.total === undefined ? `${Math.floor(done)} runs` : `${Math.round((100 * done) / this.total)} %`}\n`,
    );
  }

  end(): void {
    this.clear();
  }

  /** Writes a line of its own, above the bar where there is one. */
  note(text: string): void {
    const bar = this.shown;
    this.clear();
    this.stream.write(`${text}\n`);
    if (bar !== '') {
      this.stream.write(bar);
      this.shown = bar;
    }
  }

  private draw(done: number): void {
    let text = `${this.label}: ${Math.floor(done)} runs`;
    if (this.total !== undefined) {
      const share = this.total === 0 ? 1 : Math.min(1, done / this.total);
      const filled = Math.round(share * barWidth);
      const percent = String(Math.floor(share * 100)).padStart(3);
      text = `${this.label} [${'#'.repeat(filled)}${'-'.repeat(barWidth - filled)}] ${percent} %`;
    }
    const fitting = text.slice(0, Math.max(20, (this.stream.columns ?? 80) - 1));
    if (fitting === this.shown) return;
    this.stream.write(`\r${fitting}${' '.repeat(Math.max(0, this.shown.length - fitting.length))}`);
    this.shown = fitting;
  }

  private clear(): void {
    if (this.shown === '') return;
    this.stream.write(`\r${' '.repeat(this.shown.length)}\r`);
    this.shown = '';
  }
}
