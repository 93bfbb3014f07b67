/** Errors: classes, codes, and instanceof across the two copies of the package that an application can load. */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import * as source from '../src/index.js';
import { describe as describeValue } from '../src/check.js';
import { errorOfStatus } from '../src/errors.js';
import {
  SagaArgumentError,
  SagaCapacityError,
  SagaError,
  SagaJournalError,
  SagaNativeError,
  SagaStateError,
} from '../src/index.js';

const status = {
  invalidArgument: 1,
  notFound: 2,
  full: 3,
  wrongState: 4,
  timeReversed: 5,
  journalFull: 6,
  journalCorrupt: 7,
  journalMismatch: 8,
  outOfMemory: 9,
  versionMismatch: 10,
  outOfBlocks: 11,
  notResident: 12,
  busy: 13,
} as const;

describe('the error of a status', () => {
  it.each([
    [status.invalidArgument, SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
    [status.notFound, SagaStateError, 'SAGA_ERR_NOT_FOUND'],
    [status.full, SagaCapacityError, 'SAGA_ERR_FULL'],
    [status.wrongState, SagaStateError, 'SAGA_ERR_WRONG_STATE'],
    [status.timeReversed, SagaStateError, 'SAGA_ERR_TIME_REVERSED'],
    [status.journalFull, SagaCapacityError, 'SAGA_ERR_JOURNAL_FULL'],
    [status.journalCorrupt, SagaJournalError, 'SAGA_ERR_JOURNAL_CORRUPT'],
    [status.journalMismatch, SagaJournalError, 'SAGA_ERR_JOURNAL_MISMATCH'],
    [status.outOfMemory, SagaCapacityError, 'SAGA_ERR_OUT_OF_MEMORY'],
    [status.versionMismatch, SagaJournalError, 'SAGA_ERR_VERSION_MISMATCH'],
    [status.outOfBlocks, SagaCapacityError, 'SAGA_ERR_OUT_OF_BLOCKS'],
    [status.notResident, SagaStateError, 'SAGA_ERR_NOT_RESIDENT'],
    [status.busy, SagaStateError, 'SAGA_ERR_BUSY'],
    [99, SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
  ])('%i is a %o with the code %s', (number, kind, code) => {
    const error = errorOfStatus(number, 'a sentence');
    expect(Object.getPrototypeOf(error)).toBe(kind.prototype);
    expect([error.code, error.message, error.name]).toEqual([code, 'a sentence', kind.name]);
    expect(error.stack).toContain(`${kind.name}: a sentence`);
  });
});

describe('instanceof', () => {
  const kinds = [SagaArgumentError, SagaCapacityError, SagaJournalError, SagaNativeError, SagaStateError];

  it('knows a class and its ancestors, and no other', () => {
    const error = new SagaStateError('SAGA_ERR_BUSY', 'busy');
    expect(kinds.filter((kind) => error instanceof kind)).toEqual([SagaStateError]);
    expect([error instanceof SagaError, error instanceof Error]).toEqual([true, true]);
    class Mine extends SagaStateError {}
    expect(error instanceof Mine).toBe(false);
    expect(new Mine('SAGA_ERR_BUSY', 'busy') instanceof SagaStateError).toBe(true);
  });

  it('says no to whatever else there is', () => {
    for (const value of [
      new Error('x'),
      {},
      null,
      undefined,
      5,
      'x',
      Symbol('x'),
      () => 0,
      { code: 'SAGA_ERR_BUSY' },
    ]) {
      expect((value as unknown) instanceof SagaError).toBe(false);
    }
  });

  it('holds between the ESM and the CommonJS build, for both entries', async () => {
    const root = fileURLToPath(new URL('../', import.meta.url));
    const require = createRequire(import.meta.url);
    const commonJs = require(`${root}dist/cjs/index.js`) as typeof source;
    const esm = (await import(`${root}dist/esm/index.js`)) as typeof source;
    const simulation = require(`${root}dist/cjs/simulate/index.js`) as { readTrace(path: string): Promise<unknown> };
    expect(commonJs.SagaError).not.toBe(esm.SagaError);
    for (const [here, there] of [
      [esm, commonJs],
      [commonJs, esm],
      [source, esm],
    ] as const) {
      const error = thrownBy(() => new here.Scheduler({ maxWorkers: 0 }));
      expect(error instanceof there.SagaArgumentError).toBe(true);
      expect(error instanceof there.SagaError).toBe(true);
      expect(error instanceof there.SagaStateError).toBe(false);
    }
    const unreadable: unknown = await simulation.readTrace('no-such-file').catch((error: unknown) => error);
    expect(unreadable instanceof SagaError).toBe(true);
    expect((unreadable as SagaError).code).toBe('SAGA_ERR_TRACE_UNREADABLE');
  });
});

describe('an error', () => {
  it('keeps its cause, and shows its marker to nobody', () => {
    const cause = new Error('why');
    const error = new SagaArgumentError('what', { cause });
    expect(error.cause).toBe(cause);
    expect(Object.keys(error).sort()).toEqual(['code', 'name']);
  });
});

describe('the package', () => {
  it('exports what is documented and no internals', () => {
    expect(Object.keys(source).sort()).toEqual([
      'BatchFormer',
      'BlockHasher',
      'Lineage',
      'PageTable',
      'PromptChain',
      'SagaArgumentError',
      'SagaCapacityError',
      'SagaError',
      'SagaJournalError',
      'SagaNativeError',
      'SagaStateError',
      'Scheduler',
      'jainIndex',
      'version',
      'workflowIdOf',
    ]);
    expect(source.version).toMatch(/^\d+\.\d+\.\d+$/);
  });
});

describe('a value in a message', () => {
  it.each<[unknown, string]>([
    ['text', '"text"'],
    ['x'.repeat(100), `"${'x'.repeat(40)}..."`],
    [5n, '5n'],
    [Number.NaN, 'NaN'],
    [undefined, 'undefined'],
    [null, 'null'],
    [true, 'true'],
    [() => 'a long source text', 'a function'],
    [[1, 2], 'Array'],
    [new Float64Array(1), 'Float64Array'],
    [Object.create(null), 'an object'],
    [Symbol('s'), 'Symbol(s)'],
  ])('%o is %s', (value, text) => {
    expect(describeValue(value)).toBe(text);
  });
});

function thrownBy(action: () => unknown): unknown {
  try {
    action();
  } catch (error) {
    return error;
  }
  throw new Error('nothing was thrown');
}
