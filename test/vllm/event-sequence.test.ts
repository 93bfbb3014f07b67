/** The order of batches: single cases with what must come of them, and random ones against a publisher that is a list. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { EventSequence, type SequenceLimits } from '../../src/vllm/event-sequence.js';

/** A payload that says whose it is. */
const batch = (start: number, number: number): Uint8Array => new TextEncoder().encode(`${start}/${number}`);

/** A sequence and what it did. `known`: batches applied since the last reset. */
class Probe {
  known: string[] = [];
  asked: number[] = [];
  cooling = 0;
  refuse = '';
  readonly sequence: EventSequence;

  constructor(limits: SequenceLimits = { replay: true }) {
    this.sequence = new EventSequence(
      {
        apply: (payload) => {
          const text = new TextDecoder().decode(payload);
          if (text === this.refuse) return false;
          this.known.push(text);
          return true;
        },
        reset: () => (this.known = []),
        replay: (from) => this.asked.push(from),
        cool: () => ++this.cooling,
      },
      limits,
    );
  }

  live(start: number, ...numbers: number[]): void {
    for (const number of numbers) this.sequence.live(number, batch(start, number));
  }

  /** Numbers `from` to `to` come as a replay, and its end. */
  replay(start: number, from: number, to: number): void {
    for (let number = from; number <= to; ++number) this.sequence.replayed(number, batch(start, number));
    this.sequence.replayEnded();
  }
}

const names = (start: number, from: number, to: number): string[] =>
  Array.from({ length: to - from + 1 }, (_, i) => `${start}/${from + i}`);

describe('with a replay endpoint', () => {
  it('a late joiner reads all from the start, then what was published meanwhile, once', () => {
    const probe = new Probe();
    probe.sequence.connected();
    expect(probe.asked).toEqual([0]);
    probe.live(1, 3, 4, 5);
    expect(probe.known).toEqual([]);
    probe.replay(1, 0, 4);
    expect(probe.known).toEqual(names(1, 0, 5));
    expect(probe.sequence).toMatchObject({
      state: 'live',
      next: 6,
      partial: false,
      gap: false,
      duplicates: 2,
      resets: 0,
    });
  });

  it('a gap is filled from the batch before it, and live batches wait', () => {
    const probe = new Probe();
    probe.sequence.connected();
    probe.replay(1, 0, 2);
    probe.live(1, 3, 6, 7);
    expect(probe.asked).toEqual([0, 3]);
    expect(probe.sequence).toMatchObject({ state: 'replaying', gap: true, gaps: 2, kept: 2 });
    expect(probe.known).toEqual(names(1, 0, 3));
    probe.replay(1, 3, 7);
    expect(probe.known).toEqual(names(1, 0, 7));
    expect(probe.sequence).toMatchObject({ state: 'live', gap: false, partial: false, resets: 0, restarts: 0 });
  });

  it('numbers that run back are a restart, the same batch again is none', () => {
    const probe = new Probe();
    probe.sequence.connected();
    probe.replay(1, 0, 5);
    probe.live(1, 5, 3);
    expect(probe.sequence).toMatchObject({ duplicates: 2, restarts: 0, state: 'live' });
    probe.live(2, 0);
    expect(probe.sequence).toMatchObject({ restarts: 1, resets: 1, state: 'replaying', next: 0 });
    expect([probe.known, probe.asked]).toEqual([[], [0, 0]]);
    probe.replay(2, 0, 0);
    expect(probe.known).toEqual(['2/0']);
  });

  it('a restart that nobody saw shows in the batch before the gap', () => {
    const probe = new Probe();
    probe.sequence.connected();
    probe.replay(1, 0, 5);
    probe.live(2, 9);
    expect(probe.asked).toEqual([0, 5]);
    probe.sequence.replayed(5, batch(2, 5));
    expect(probe.asked).toEqual([0, 5, 0]);
    expect(probe.known).toEqual([]);
    probe.replay(2, 0, 9);
    expect(probe.known).toEqual(names(2, 0, 9));
    expect(probe.sequence).toMatchObject({ restarts: 1, partial: false });
  });

  it('an engine that has not come as far as the one before is a restart', () => {
    const probe = new Probe();
    probe.sequence.connected();
    probe.replay(1, 0, 5);
    probe.sequence.connected();
    expect(probe.asked).toEqual([0, 5]);
    probe.sequence.replayEnded();
    expect(probe.asked).toEqual([0, 5, 0]);
    expect(probe.sequence.restarts).toBe(1);
    probe.sequence.replayEnded();
    expect([probe.known, probe.sequence.state, probe.sequence.partial]).toEqual([[], 'live', false]);
  });

  it('a replay that begins later than asked, or has a hole, leaves a partial view of what comes behind', () => {
    const late = new Probe();
    late.sequence.connected();
    late.replay(1, 4, 6);
    expect(late.known).toEqual(names(1, 4, 6));
    expect(late.sequence).toMatchObject({ partial: true, replayFailures: 1, state: 'live' });
    const hole = new Probe();
    hole.sequence.connected();
    hole.sequence.replayed(0, batch(1, 0));
    hole.sequence.replayed(1, batch(1, 1));
    hole.replay(1, 3, 4);
    expect(hole.known).toEqual(names(1, 3, 4));
    expect(hole.sequence).toMatchObject({ partial: true, gaps: 1 });
    hole.sequence.cleared();
    expect(hole.sequence.partial).toBe(false);
  });

  it('what is older than all that a replay still has is thrown away; the last batch shows whose it is', () => {
    const probe = new Probe();
    probe.sequence.connected();
    // Live batches come late: the publisher has forgotten them when the replay begins.
    probe.live(1, 3, 4, 5);
    probe.replay(1, 10, 12);
    expect(probe.asked).toEqual([0, 12]);
    expect(probe.sequence).toMatchObject({ state: 'replaying', inSequence: true, duplicates: 3, restarts: 0 });
    probe.replay(1, 12, 12);
    probe.live(1, 6);
    expect(probe.asked).toEqual([0, 12, 12]);
    probe.live(1, 7, 11, 13);
    probe.replay(1, 12, 13);
    // 7 was kept, and again nothing could be said of it.
    expect(probe.asked).toEqual([0, 12, 12, 13]);
    probe.replay(1, 13, 13);
    expect(probe.known).toEqual(names(1, 10, 13));
    expect(probe.sequence).toMatchObject({ state: 'live', next: 14, partial: true, restarts: 0, resets: 1 });

    // The same numbers of an engine that began anew.
    probe.live(2, 3);
    expect(probe.asked.at(-1)).toBe(13);
    probe.sequence.replayEnded();
    expect(probe.asked.at(-1)).toBe(0);
    probe.replay(2, 0, 3);
    expect(probe.known).toEqual(names(2, 0, 3));
    expect(probe.sequence).toMatchObject({ state: 'live', restarts: 1, partial: false });
  });

  it('a restart that a replay has shown is not counted again when its first live batch comes', () => {
    const probe = new Probe();
    probe.sequence.connected();
    probe.replay(1, 0, 5);
    probe.live(1, 7);
    probe.sequence.replayed(5, batch(2, 5));
    probe.live(1, 8, 9);
    probe.live(2, 0);
    expect(probe.asked).toEqual([0, 5, 0, 0]);
    probe.replay(2, 0, 5);
    expect(probe.known).toEqual(names(2, 0, 5));
    expect(probe.sequence).toMatchObject({ state: 'live', restarts: 1, duplicates: 1 });
  });

  it('a replay that fails forgets all, and live batches are thrown away until the next one', () => {
    const probe = new Probe();
    probe.sequence.connected();
    probe.replay(1, 0, 2);
    probe.live(1, 5);
    probe.sequence.replayFailed();
    expect(probe.sequence).toMatchObject({ state: 'cooling', replayFailures: 1, dropped: 1 });
    expect([probe.known, probe.cooling]).toEqual([[], 1]);
    probe.live(1, 6, 7);
    expect(probe.sequence.dropped).toBe(3);
    probe.sequence.cooled();
    expect(probe.asked).toEqual([0, 2, 0]);
    probe.replay(1, 0, 7);
    expect(probe.known).toEqual(names(1, 0, 7));
    expect(probe.sequence.partial).toBe(false);
  });

  it('a look whether something is missing costs nothing when it fails', () => {
    const probe = new Probe();
    probe.sequence.connected();
    probe.replay(1, 0, 2);
    probe.sequence.audit();
    expect(probe.asked).toEqual([0, 2]);
    expect(probe.sequence).toMatchObject({ state: 'replaying', inSequence: true, gap: false });
    probe.live(1, 3);
    probe.sequence.replayFailed();
    expect(probe.known).toEqual(names(1, 0, 3));
    expect(probe.sequence).toMatchObject({ state: 'live', resets: 0, replayFailures: 1 });
    probe.sequence.audit();
    probe.replay(1, 3, 4);
    expect(probe.known).toEqual(names(1, 0, 4));
  });

  it('keeps so many batches and bytes during a replay, and asks again for the others', () => {
    const probe = new Probe({ replay: true, keptBatches: 2 });
    probe.sequence.connected();
    probe.live(1, 0, 1, 2, 3);
    expect(probe.sequence).toMatchObject({ kept: 2, dropped: 2 });
    probe.sequence.replayEnded();
    expect(probe.known).toEqual(names(1, 0, 1));
    expect(probe.asked).toEqual([0, 1]);
    probe.replay(1, 1, 3);
    expect(probe.known).toEqual(names(1, 0, 3));
    const bytes = new Probe({ replay: true, keptBytes: 7 });
    bytes.sequence.connected();
    bytes.live(1, 0, 1, 2);
    expect(bytes.sequence).toMatchObject({ kept: 2, dropped: 1 });
  });

  it('something unreadable is a gap; a batch that cannot be applied forgets all, without an endless replay', () => {
    const probe = new Probe();
    probe.sequence.connected();
    probe.replay(1, 0, 2);
    probe.sequence.malformed();
    expect(probe.asked).toEqual([0, 2]);
    probe.replay(1, 2, 3);
    expect(probe.known).toEqual(names(1, 0, 3));
    probe.refuse = '1/4';
    probe.live(1, 4, 5);
    expect(probe.known).toEqual(['1/5']);
    expect(probe.sequence).toMatchObject({ state: 'live', partial: true, resets: 1 });
    expect(probe.asked).toEqual([0, 2]);
  });

  it('what a replay brings in disorder ends it, without asking again at once', () => {
    const probe = new Probe();
    probe.sequence.connected();
    probe.sequence.replayed(0, batch(1, 0));
    probe.sequence.replayed(1, batch(1, 1));
    probe.sequence.replayed(0, batch(2, 0));
    expect(probe.asked).toEqual([0]);
    expect(probe.sequence).toMatchObject({ state: 'cooling', replayFailures: 1 });
    expect(probe.known).toEqual([]);
  });
});

describe('without one', () => {
  it('a late joiner has a partial view, a gap forgets, a start from 0 is all there is', () => {
    const probe = new Probe({ replay: false });
    probe.sequence.connected();
    probe.live(1, 5, 6);
    expect(probe.sequence).toMatchObject({ partial: true, gaps: 0, resets: 0 });
    expect(probe.known).toEqual(names(1, 5, 6));
    probe.live(1, 9);
    expect(probe.sequence).toMatchObject({ partial: true, gaps: 2, resets: 1 });
    expect(probe.known).toEqual(['1/9']);
    probe.live(2, 0, 1);
    expect(probe.sequence).toMatchObject({ partial: false, restarts: 1, resets: 2 });
    expect(probe.known).toEqual(names(2, 0, 1));
    expect(probe.asked).toEqual([]);
  });

  it('a new connection forgets: nobody can tell whose it is', () => {
    const probe = new Probe({ replay: false });
    probe.sequence.connected();
    probe.live(1, 0, 1);
    probe.sequence.connected();
    probe.live(2, 2);
    expect(probe.known).toEqual(['2/2']);
    expect(probe.sequence.partial).toBe(true);
  });
});

type Step =
  | { do: 'publish'; count: number }
  | { do: 'lose'; count: number }
  | { do: 'again' }
  | { do: 'malformed' }
  | { do: 'restart' }
  | { do: 'reconnect' }
  | { do: 'audit' }
  | { do: 'delay'; count: number }
  | { do: 'deliver'; count: number }
  | { do: 'serve'; count: number; buffer: number; end: boolean }
  | { do: 'fail' }
  | { do: 'cool' };

const count = fc.integer({ min: 1, max: 6 });
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('publish' as const), count }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('lose' as const), count }) },
  fc.constant({ do: 'again' as const }),
  fc.constant({ do: 'malformed' as const }),
  fc.constant({ do: 'restart' as const }),
  fc.constant({ do: 'reconnect' as const }),
  fc.constant({ do: 'audit' as const }),
  { weight: 2, arbitrary: fc.record({ do: fc.constant('delay' as const), count }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('deliver' as const), count }) },
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant('serve' as const),
      count: fc.integer({ min: 0, max: 12 }),
      buffer: fc.constantFrom(3, 1000),
      end: fc.boolean(),
    }),
  },
  fc.constant({ do: 'fail' as const }),
  fc.constant({ do: 'cool' as const }),
);

/**
 * A publisher: its start, and how many batches it has published. Restarts are seen as a new connection, as TCP shows them; what is on its
 * way arrives late, in order, and also from before a restart. `buffer`: of the last replays.
 */
function run(steps: readonly Step[], limits: SequenceLimits, buffer: number): void {
  const probe = new Probe(limits);
  const { sequence } = probe;
  let [start, published] = [1, 0];
  const onTheWay: [start: number, number: number][] = [];
  const deliver = (most: number): void => {
    for (const [of, number] of onTheWay.splice(0, most)) {
      // One of an engine that is gone, with the very number that comes next, is taken for its successor's (see the header).
      const taken = number === sequence.next || (number > sequence.next && sequence.state === 'replaying');
      if (of !== start && taken) continue;
      probe.live(of, number);
      check();
    }
  };
  let wasPartial = false;
  const check = (): void => {
    // Of one start, without a hole: never more than the worker holds.
    const known = probe.known.map((name) => name.split('/').map(Number) as [number, number]);
    const [[first, from] = [0, 0]] = known;
    expect(known.every(([of, number], i) => of === first && number === from + i)).toBe(true);
    expect(sequence.kept).toBeLessThanOrEqual(limits.keptBatches as number);
    wasPartial ||= sequence.partial;
  };
  const serve = (most: number, buffer: number, end: boolean): void => {
    const asked = probe.asked.length;
    const first = Math.max(probe.asked.at(-1) as number, published - buffer);
    let number = first;
    for (; number < published && number < first + most; ++number) {
      if (sequence.state !== 'replaying' || probe.asked.length > asked) return;
      // An attempt that broke off goes on one before what is there.
      if (number >= sequence.next - 1) sequence.replayed(number, batch(start, number));
      check();
    }
    if (end && number >= published && probe.asked.length === asked) sequence.replayEnded();
  };
  sequence.connected();
  for (const one of steps) {
    switch (one.do) {
      case 'publish':
        for (let i = 0; i < one.count; ++i) onTheWay.push([start, published++]);
        if (onTheWay.length === one.count) deliver(one.count);
        break;
      case 'delay':
        for (let i = 0; i < one.count; ++i) onTheWay.push([start, published++]);
        break;
      case 'deliver':
        deliver(one.count);
        break;
      case 'lose':
        published += one.count;
        break;
      case 'again':
        if (published > 0 && onTheWay.length === 0) probe.live(start, published - 1);
        break;
      case 'malformed':
        sequence.malformed();
        break;
      case 'restart':
        // Without replays nobody can tell what was on its way from what comes now.
        if (!limits.replay) deliver(Infinity);
        [start, published] = [start + 1, 0];
        sequence.connected();
        break;
      case 'reconnect':
        sequence.connected();
        break;
      case 'audit':
        sequence.audit();
        break;
      case 'serve':
        if (sequence.state === 'replaying') serve(one.count, one.buffer, one.end);
        break;
      case 'fail':
        sequence.replayFailed();
        break;
      case 'cool':
        sequence.cooled();
        break;
    }
    check();
  }
  // When all is quiet, a last batch and replays bring it to the end of what was published.
  deliver(Infinity);
  probe.live(start, published++);
  for (let i = 0; i < 20 && sequence.state !== 'live'; ++i) {
    sequence.cooled();
    if (sequence.state === 'replaying') serve(Infinity, buffer, true);
    check();
  }
  expect(sequence.state).toBe('live');
  if (!limits.replay) return;
  expect(probe.known.at(-1)).toBe(`${start}/${published - 1}`);
  if (!sequence.partial) expect(probe.known).toEqual(names(start, 0, published - 1));
  else expect(wasPartial).toBe(true);
}

describe('random publishers', () => {
  it.each([true, false])('what is known is always a piece without holes of one start (replay: %s)', (replay) => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), fc.constantFrom(3, 1000), (steps, buffer) =>
        run(steps, { replay, keptBatches: 5 }, buffer),
      ),
      { numRuns: 2000, seed: 17 },
    );
  });

  it('whole replays end in the whole view', () => {
    const whole = step.map((one) => (one.do === 'serve' ? { ...one, buffer: 1e6, end: true, count: 1e6 } : one));
    const calm = fc.array(whole, { maxLength: 60 }).map((steps) => steps.filter((one) => one.do !== 'fail'));
    fc.assert(
      fc.property(calm, (steps) => {
        const probe = new Probe({ replay: true });
        let [start, published] = [1, 0];
        const { sequence } = probe;
        sequence.connected();
        const serveAll = (): void => {
          for (let i = 0; i < 10 && sequence.state === 'replaying'; ++i) {
            const asked = probe.asked.length;
            for (let n = probe.asked.at(-1) as number; n < published && probe.asked.length === asked; ++n)
              sequence.replayed(n, batch(start, n));
            if (probe.asked.length === asked) sequence.replayEnded();
          }
        };
        for (const one of steps) {
          if (one.do === 'publish') for (let i = 0; i < one.count; ++i) probe.live(start, published++);
          if (one.do === 'lose') published += one.count;
          if (one.do === 'restart') {
            [start, published] = [start + 1, 0];
            sequence.connected();
          }
          if (one.do === 'serve') serveAll();
        }
        sequence.connected();
        serveAll();
        expect(probe.known).toEqual(published === 0 ? [] : names(start, 0, published - 1));
        expect(sequence).toMatchObject({ state: 'live', partial: false, gap: false, kept: 0 });
      }),
      { numRuns: 2000, seed: 5 },
    );
  });
});
