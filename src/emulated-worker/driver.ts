/**
 * Makes an engine's steps take time. One loop for each engine: a step ends at an absolute moment and the next begins there, so
 * timers that are a millisecond late do not add up; several steps are made up for at one wake. With nothing to do it sleeps.
 */
import type { Engine } from './engine.js';

/** Milliseconds after which other work of the process gets its turn. */
const sliceMs = 5;
/** Milliseconds until a worker looks again whose calls find no room at all. */
const retryMs = 5;

export class Driver {
  readonly engine: Engine;
  readonly #timeScale: number;
  /** Called when steps have ended: answers can be written. */
  readonly #onSlice: () => void;
  #stepEnd = 0;
  #scheduled = false;
  #timer: NodeJS.Timeout | undefined;
  #immediate: NodeJS.Immediate | undefined;
  #closed = false;

  constructor(engine: Engine, timeScale: number, onSlice: () => void) {
    this.engine = engine;
    this.#timeScale = timeScale;
    this.#onSlice = onSlice;
    engine.onWork = () => this.#schedule(0);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearImmediate(this.#immediate);
  }

  #schedule(ms: number): void {
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    if (ms <= 0) this.#immediate = setImmediate(() => this.#run());
    else this.#timer = setTimeout(() => this.#run(), ms);
  }

  #run(): void {
    this.#scheduled = false;
    if (this.#closed) return;
    const { engine } = this;
    const sliceEnd = performance.now() + sliceMs;
    let ended = false;
    let sleep: number;
    for (;;) {
      let now = performance.now();
      let begin = now;
      if (engine.inStep) {
        sleep = this.#stepEnd - now;
        if (sleep > 0) break;
        if (this.#timeScale !== Infinity) engine.counters.lateSeconds -= sleep / 1000;
        engine.endStep();
        ended = true;
        begin = this.#stepEnd;
        now = performance.now();
      }
      const seconds = engine.beginStep(now);
      if (seconds === undefined) {
        sleep = engine.openCalls > 0 ? retryMs : -1;
        break;
      }
      this.#stepEnd = this.#timeScale === Infinity ? begin : begin + (1000 * seconds) / this.#timeScale;
      if (performance.now() > sliceEnd) {
        sleep = 0;
        break;
      }
    }
    if (ended) this.#onSlice();
    // An engine without work is woken by its next call.
    if (sleep >= 0) this.#schedule(sleep);
  }
}
