import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { SagaError } from '../../src/errors.js';
import { promptKindNumber, stopReasonNumber } from '../../src/workload/columns.js';
import { readTrace, type MalformedInput } from '../../src/workload/trace.js';
import { fileOf, pathOf, predecessorsOf, requestLine, runsOf } from './helpers.js';

async function codeOf(reading: Promise<unknown>): Promise<string> {
  const error: unknown = await reading.then(
    () => 'no error',
    (thrown: unknown) => thrown,
  );
  return error instanceof SagaError ? `${error.code} ${error.message}` : String(error);
}

describe('request lines', () => {
  it('become tasks in the order of the SHA-256 of their session, whatever the order of the lines', async () => {
    // SHA-256: c = 2e7d.., b = 3e23.., a = ca97..
    const path = fileOf(
      'order.jsonl',
      [
        requestLine({ sid: 'a' }),
        requestLine({ sid: 'b' }),
        requestLine({ sid: 'c' }),
        requestLine({ sid: 'a', k: 1, t: 9 }),
      ].join('\n'),
    );
    const trace = await readTrace(path);
    expect(trace.format).toBe('request-lines');
    expect(trace.blockTokens).toBe(64);
    const workload = trace.workload();
    expect(workload.taskNames).toEqual(['c', 'b', 'a']);
    expect([...workload.taskFirstCall]).toEqual([0, 1, 2, 4]);
    expect([...workload.callThread]).toEqual([0, 1, 2, 2]);
    expect(trace.workload({ limit: 1 }).taskNames).toEqual(['c']);
    // With the salt 1: b1 = 7dc9.., c1 = d0f6.., a1 = f55f..
    expect(trace.workload({ orderSalt: '1' }).taskNames).toEqual(['b', 'c', 'a']);
  });

  it('keep tokens, kinds, stop reasons, times and runs', async () => {
    const path = fileOf(
      'fields.jsonl',
      [
        requestLine({ sid: 's', gap_kind: 'start', h: [[7, 2], [30, 3]], out: 0, llm_s: 1.25 }), // prettier-ignore
        requestLine({
          ...{ sid: 's', k: 1, t: 5, gap_s: 3, gap_kind: 'user', stop: 'end_turn' },
          ...{ h: [[7, 2], [12, 1]], out: 11, llm_s: null },
        }), // prettier-ignore
        requestLine({ sid: 's', k: 2, t: 9, gap_s: 4000, stop: '', h: [] }),
      ].join('\r\n'),
    );
    const workload = (await readTrace(path)).workload();
    expect([...workload.promptTokens]).toEqual([330, 202, 10]);
    expect([...workload.outputTokens]).toEqual([1, 11, 5]); // an answer of nothing counts as one token
    expect([...workload.promptKind]).toEqual([promptKindNumber.start, promptKindNumber.user, promptKindNumber.tool]);
    expect([...workload.stopReason]).toEqual([
      stopReasonNumber.toolUse,
      stopReasonNumber.endTurn,
      stopReasonNumber.unknown,
    ]);
    expect([...(workload.callSeconds ?? [])]).toEqual([1.25, Number.NaN, 2]);
    expect([0, 1, 2].map((call) => runsOf(workload, call))).toEqual([[[7, 2], [30, 3]], [[7, 2], [12, 1]], []]); // prettier-ignore
    expect([0, 1, 2].map((call) => predecessorsOf(workload, call))).toEqual([[], [[0, 3]], [[1, 1800]]]);
  });

  it('chain a sub-agent from the main call before it, and let the parent wait for it', async () => {
    const path = fileOf(
      'agents.jsonl',
      [
        requestLine({ sid: 's', k: 0, t: 0 }),
        requestLine({ sid: 's', k: 1, t: 100, gap_s: 90 }),
        requestLine({ sid: 's', k: 2, t: 200, gap_s: 7 }),
        requestLine({ sid: 's', aid: 'x', k: 0, t: 10, gap_s: 0.5 }),
        requestLine({ sid: 's', aid: 'x', k: 1, t: 20, gap_s: 2 }),
        requestLine({ sid: 's', aid: 'y', k: 0, t: 15, gap_s: 0 }),
        requestLine({ sid: 's', aid: 'y', k: 1, t: 150, gap_s: 4 }),
      ].join('\n'),
    );
    const workload = (await readTrace(path)).workload();
    // In order of time: main 0, x 0 (10 s), y 0 (15 s), x 1 (20 s), main 1 (100 s), y 1 (150 s), main 2 (200 s).
    expect([...workload.callMain]).toEqual([1, 0, 0, 0, 1, 0, 1]);
    expect([...workload.callThread]).toEqual([0, 1, 2, 1, 0, 2, 0]);
    expect([0, 1, 2, 3, 4, 5, 6].map((call) => predecessorsOf(workload, call))).toEqual([
      [],
      [[0, 0.5]],
      [[0, 0]],
      [[1, 2]],
      [[0, 90], [2, 0], [3, 0]], // both sub-agents ran since
      [[2, 4]], // y goes on beside the parent
      [[4, 7], [5, 0]],
    ]); // prettier-ignore
  });

  it('leave out sessions that are copies', async () => {
    const path = fileOf('dup.jsonl', [requestLine({ sid: 'a' }), requestLine({ sid: 'b', dup: 'a' })].join('\n'));
    const trace = await readTrace(path);
    expect([trace.requests, trace.copies]).toEqual([1, 1]);
  });
});

describe('malformed lines', () => {
  const lines = [
    requestLine({ sid: 'a' }),
    '{"sid": "b"',
    '',
    requestLine({ sid: 'c', in: 0 }),
    requestLine({ sid: 'd', h: [[1, 2, 3]] }),
    requestLine({ sid: 'e', in: 64, h: [[1, 2]] }),
    requestLine({ sid: 'f', gap_kind: 'other' }),
    requestLine({ sid: 'g', gap_s: -1 }),
    requestLine({ sid: '' }),
    requestLine({ sid: 'h', k: 1.5 }),
    '[1]',
    requestLine({ sid: 'i', h: [[-1, 1]] }),
    requestLine({ sid: 'z' }),
  ];

  it('are fatal with file, line and reason', async () => {
    const path = fileOf('fatal.jsonl', lines.join('\n'));
    expect(await codeOf(readTrace(path))).toMatch(/^SAGA_ERR_TRACE_MALFORMED .*fatal\.jsonl:2: expected JSON/);
  });

  it('are reported, counted and skipped when asked', async () => {
    const path = fileOf('skipped.jsonl', lines.join('\n'));
    const reports: MalformedInput[] = [];
    const trace = await readTrace(path, { onError: 'skip', onMalformed: (report) => reports.push(report) });
    expect(trace.requests).toBe(2);
    expect(trace.malformed).toBe(10);
    expect(reports.map(({ line, reason }) => `${line} ${reason.slice(0, line === 2 ? 13 : 34)}`)).toEqual([
      '2 expected JSON',
      '4 expected "in" to be a whole number',
      '5 expected "h" to be runs [first id,',
      '6 expected at most 1 blocks in "h" f',
      '7 expected "gap_kind" to be "start",',
      '8 expected "gap_s" to be a number of',
      '9 expected "sid" to be a non-empty s',
      '10 expected "k" to be a whole number ',
      '11 expected the line to be a JSON obj',
      '12 expected "h" to be runs [first id,',
    ]);
    expect(reports.every(({ file }) => file === path)).toBe(true);
  });

  it('may stand before the line that tells the format', async () => {
    const path = fileOf('late.jsonl', `rubbish\n${requestLine({ sid: 'a' })}\n`);
    const trace = await readTrace(path, { onError: 'skip' });
    expect([trace.format, trace.requests, trace.malformed]).toEqual(['request-lines', 1, 1]);
  });
});

describe('a trace that cannot be used', () => {
  it('is unreadable, empty, or of no known format', async () => {
    expect(await codeOf(readTrace(pathOf('none.jsonl')))).toMatch(
      /^SAGA_ERR_TRACE_UNREADABLE expected a readable trace/,
    );
    expect(await codeOf(readTrace(fileOf('empty.jsonl', '\n  \n')))).toMatch(/^SAGA_ERR_TRACE_EMPTY/);
    expect(await codeOf(readTrace(fileOf('csv.jsonl', 'a,b\n1,2\n')))).toMatch(/^SAGA_ERR_TRACE_FORMAT/);
    mkdirSync(pathOf('hollow'));
    expect(await codeOf(readTrace(pathOf('hollow')))).toMatch(/^SAGA_ERR_TRACE_EMPTY/);
    const onlyBad = fileOf('bad.jsonl', '{"sid": 1}\n{"sid": 2}\n');
    expect(await codeOf(readTrace(onlyBad, { onError: 'skip' }))).toMatch(/^SAGA_ERR_TRACE_EMPTY .*2 malformed/);
  });
});

describe('Mooncake lines', () => {
  it('become tasks of one call with their arrival times', async () => {
    const path = fileOf(
      'mooncake.jsonl',
      [
        '{"timestamp":3000,"input_length":1100,"output_length":7,"hash_ids":[0,1,5]}',
        '{"timestamp":0,"input_length":512,"output_length":0,"hash_ids":[0]}',
      ].join('\n'),
    );
    const trace = await readTrace(path);
    expect([trace.format, trace.blockTokens, trace.hasArrivals]).toEqual(['mooncake', 512, true]);
    const workload = trace.workload();
    expect([...(workload.taskArrival ?? [])]).toEqual([3_000_000, 0]);
    expect(workload.callSeconds).toBeUndefined();
    expect(runsOf(workload, 0)).toEqual([[0, 2], [5, 1]]); // prettier-ignore
    expect(trace.workload({ limit: 1 }).promptTokens).toEqual(Uint32Array.of(1100));
  });

  it('are malformed with more blocks than tokens or ids that are none', async () => {
    const path = fileOf(
      'mooncake-bad.jsonl',
      [
        '{"timestamp":0,"input_length":512,"output_length":1,"hash_ids":[0,1]}',
        '{"timestamp":0,"input_length":512,"output_length":1,"hash_ids":["x"]}',
        '{"timestamp":0,"input_length":512,"output_length":1,"hash_ids":[3]}',
      ].join('\n'),
    );
    const trace = await readTrace(path, { onError: 'skip' });
    expect([trace.requests, trace.malformed]).toEqual([1, 2]);
  });
});

describe('session documents', () => {
  const base = { model: 'm', in: 200, out: 9, api_time: 2, think_time: 0 };
  const document = {
    id: 'one',
    models: ['m'],
    block_size: 64,
    hash_id_scope: 'global',
    tool_tokens: 1,
    system_tokens: 1,
    requests: [
      { ...base, t: 0, type: 's', hash_ids: [1, 2, 3], input_types: ['text'], stop: '' },
      { ...base, t: 2, type: 'n', hash_ids: [1, 2, 3], input_types: [], stop: 'tool_use', out: 20, api_time: 3 },
      { ...base, t: 9, type: 's', hash_ids: [1, 2, 8], input_types: ['tool_result'], stop: '', think_time: 4 },
      { type: 'subagent', agent_id: 'helper', subagent_type: 'Explore', t: 12, duration_ms: 5000, requests: [
        { ...base, t: 0, type: 's', hash_ids: [50], input_types: ['text'], stop: '' },
        { ...base, t: 1, type: 'n', hash_ids: [50], input_types: [], stop: 'end_turn' },
      ] },
      { ...base, t: 30, type: 'n', hash_ids: [1, 2, 8, 9], in: 256, input_types: ['text'], stop: 'end_turn', think_time: 1 },
    ],
  }; // prettier-ignore

  it('merge a streamed and an unstreamed send of the same prompt into one call', async () => {
    const workload = (await readTrace(fileOf('one.json', JSON.stringify(document, null, 2)))).workload();
    expect([...workload.callMain]).toEqual([1, 1, 0, 1]);
    expect([...workload.callTime]).toEqual([2, 9, 13, 30]); // the sub-agent's times count from its entry
    expect([...workload.outputTokens]).toEqual([20, 9, 9, 9]);
    expect([...(workload.callSeconds ?? [])]).toEqual([3, 2, 2, 2]);
    expect([...workload.callGapSeconds]).toEqual([0, 4, 0, 1]);
    expect([...workload.promptKind]).toEqual([
      promptKindNumber.start,
      promptKindNumber.tool,
      promptKindNumber.start,
      promptKindNumber.user,
    ]);
    expect([...workload.stopReason]).toEqual([
      stopReasonNumber.toolUse,
      stopReasonNumber.unknown,
      stopReasonNumber.endTurn,
      stopReasonNumber.endTurn,
    ]);
    expect(runsOf(workload, 1)).toEqual([[1, 2], [8, 1]]); // prettier-ignore
    expect(predecessorsOf(workload, 3)).toEqual([[1, 1], [2, 0]]); // prettier-ignore
  });

  it('are read from a directory, one line a document, and from lines; local ids are private', async () => {
    const local = { ...document, id: 'two', hash_id_scope: 'local' };
    mkdirSync(pathOf('sessions'));
    fileOf(join('sessions', 'a.json'), JSON.stringify(document));
    fileOf(join('sessions', 'b.json'), JSON.stringify(local));
    fileOf(join('sessions', 'notes.txt'), 'not a session');
    const trace = await readTrace(pathOf('sessions'));
    expect([trace.format, trace.requests]).toEqual(['session-documents', 8]);
    const workload = trace.workload();
    const [one, two] = [workload.taskNames.indexOf('one'), workload.taskNames.indexOf('two')].map(
      (task) => runsOf(workload, workload.taskFirstCall[task] ?? -1)[0],
    );
    expect(one).toEqual([1, 3]);
    expect(two?.[0]).toBeGreaterThan(2 ** 40);
    expect(two?.[1]).toBe(3);
    const lines = fileOf('sessions.jsonl', `${JSON.stringify(document)}\n${JSON.stringify(local)}\n`);
    expect((await readTrace(lines)).workload().runFirstId).toEqual(workload.runFirstId);
  });

  it('are malformed when their fields are, and leave nothing behind', async () => {
    const bad = {
      ...document,
      id: 'bad',
      requests: [...document.requests, { ...base, t: 40, type: 'q', hash_ids: [] }],
    };
    const path = fileOf('mixed.jsonl', [bad, document, document].map((one) => JSON.stringify(one)).join('\n'));
    const reports: string[] = [];
    const trace = await readTrace(path, {
      onError: 'skip',
      onMalformed: ({ line, reason }) => reports.push(`${line} ${reason}`),
    });
    expect(trace.workload().taskNames).toEqual(['one']);
    expect(reports).toEqual([
      '1 expected "type" to be "n", "s" or "subagent", found "q"',
      '3 expected a new session, found "one" again',
    ]);
  });
});
