/** Whose call a prompt is: ids in headers, literals, refusals, and random agents against a plain model. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  Lineage,
  SagaArgumentError,
  SagaCapacityError,
  SagaError,
  SagaStateError,
  workflowIdOf,
  type Identity,
  type LineageKind,
  type RequestHeaders,
} from '../src/index.js';

const chainOf = (...hashes: number[]): BigUint64Array => BigUint64Array.from(hashes, BigInt);

function refusal(action: () => unknown): SagaError {
  try {
    action();
  } catch (error) {
    if (error instanceof SagaError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('workflowIdOf', () => {
  const session = { workflow: 's', agent: undefined, parent: undefined, final: false };
  it.each<[string, RequestHeaders, ReturnType<typeof workflowIdOf>]>([
    ['nobody', { 'user-agent': 'curl', 'x-request-id': '7' }, undefined],
    ['own', { 'x-saga-session-id': 's' }, session],
    [
      'own, a sub-agent',
      { 'x-saga-session-id': 'a', 'x-saga-parent-session-id': 's', 'x-saga-session-final': 'true' },
      { workflow: 's', agent: 'a', parent: 's', final: true },
    ],
    ['Dynamo', { 'X-Dynamo-Session-ID': 's' }, session],
    ['Dynamo, final', { 'X-Dynamo-Session-ID': 's', 'X-Dynamo-Session-Final': 'True' }, { ...session, final: true }],
    ['Dynamo, not final', { 'X-Dynamo-Session-ID': 's', 'X-Dynamo-Session-Final': 'false' }, session],
    [
      'Dynamo, a sub-agent',
      { 'X-Dynamo-Session-ID': 'a', 'X-Dynamo-Parent-Session-ID': 's' },
      { workflow: 's', agent: 'a', parent: 's', final: false },
    ],
    ['Dynamo, its own parent', { 'X-Dynamo-Session-ID': 's', 'X-Dynamo-Parent-Session-ID': 's' }, session],
    ['a parent without a session', { 'X-Dynamo-Parent-Session-ID': 's', 'X-Dynamo-Session-Final': '1' }, undefined],
    ['Claude Code', { 'x-claude-code-session-id': 's' }, session],
    [
      'Claude Code, a sub-agent',
      { 'x-claude-code-session-id': 's', 'X-Claude-Code-Agent-Id': 'a' },
      { workflow: 's', agent: 'a', parent: 's', final: false },
    ],
    [
      'Claude Code, a sub-agent of a sub-agent, with a header of Dynamo',
      {
        'x-claude-code-session-id': 's',
        'x-claude-code-agent-id': 'b',
        'x-claude-code-parent-agent-id': 'a',
        'x-dynamo-session-final': '1',
      },
      { workflow: 's', agent: 'b', parent: 'a', final: true },
    ],
    ['Codex, older', { 'session-id': 's' }, session],
    ['Codex, newer', { 'thread-id': 's' }, session],
    ['Codex, both', { 'session-id': 's', 'thread-id': 's' }, session],
    [
      'Codex, a sub-agent',
      { 'thread-id': 'a', 'x-codex-parent-thread-id': 's' },
      { workflow: 's', agent: 'a', parent: 's', final: false },
    ],
    [
      'Codex, a sub-agent of a sub-agent in a session',
      { 'session-id': 's', 'thread-id': 'b', 'x-codex-parent-thread-id': 'a' },
      { workflow: 's', agent: 'b', parent: 'a', final: false },
    ],
    ['OpenCode', { 'x-session-id': 's' }, session],
    [
      'OpenCode, a sub-agent',
      { 'X-Session-Id': 'a', 'X-Parent-Session-Id': 's' },
      { workflow: 's', agent: 'a', parent: 's', final: false },
    ],
    [
      'a client behind a proxy that knows better',
      { 'x-session-id': 'x', 'session-id': 'y', 'x-claude-code-session-id': 'z', 'x-dynamo-session-id': 's' },
      session,
    ],
    ['several values', { 'x-session-id': ['s', 't'] }, session],
    ['white space', { 'x-session-id': '  s ' }, session],
    ['values that are none', { 'x-saga-session-id': undefined, 'session-id': '', 'thread-id': ' ' }, undefined],
    ['a value that is too long', { 'session-id': 'ü'.repeat(513), 'x-session-id': 's' }, session],
    ['half of a surrogate pair', { 'session-id': '\ud800', 'x-session-id': 's' }, session],
    ['no string at all', { 'session-id': 5, 'x-session-id': [] } as never, undefined],
    ['Headers', new Headers({ 'X-Session-ID': 's' }), session],
    ['a map', new Map([['X-SESSION-ID', 's']]), session],
    [
      'pairs, the first of which counts',
      [
        ['x-session-id', 's'],
        ['X-Session-Id', 't'],
      ],
      session,
    ],
  ])('reads %s', (_, headers, expected) => {
    expect(workflowIdOf(headers)).toEqual(expected);
  });

  it.each([undefined, null, 'x-session-id: s', 5])('refuses %o', (headers) => {
    expect(() => workflowIdOf(headers as never)).toThrow(SagaArgumentError);
  });
});

describe('Lineage', () => {
  it('follows a workflow through its calls', () => {
    const lineage = new Lineage({ maxHeads: 16, maxBlocks: 1000 });
    const none = undefined;
    const is = (
      kind: LineageKind,
      workflow: number,
      head: number,
      superseded: number | undefined,
      commonBlocks: number,
      knownBlocks = commonBlocks,
    ): Identity => ({ kind, workflow, head, superseded, commonBlocks, knownBlocks });
    expect(lineage.identify(chainOf(1, 2, 3, 4))).toEqual(is('new', 0, 0, none, 0));
    lineage.ended(0);
    expect(lineage.identify(chainOf(1, 2, 3, 4, 5, 6, 7))).toEqual(is('continued', 0, 0, none, 4));
    expect(lineage.identify(chainOf(1, 2, 3, 4, 5, 60))).toEqual(is('forked', 0, 1, none, 5));
    lineage.ended(0);
    lineage.ended(1);
    expect(lineage.identify(chainOf(1, 2, 3, 4, 50, 51))).toEqual(is('rolled-back', 0, 2, 0, 4));
    expect(lineage.identify(chainOf(1, 2, 30))).toEqual(is('new', 1, 3, none, 2));
    expect(lineage.stats()).toEqual({
      workflows: 2,
      heads: 4,
      runningCalls: 2,
      blocks: 11,
      callsTotal: { new: 2, continued: 1, forked: 1, 'rolled-back': 1, compacted: 0 },
      supersededTotal: 1,
      forgottenTotal: 0,
      memoryBytes: lineage.stats().memoryBytes,
    });
    expect(lineage.stats().memoryBytes).toBeGreaterThan(40_000);
    lineage.ended(2);
    lineage.closed(0);
    expect(lineage.stats()).toMatchObject({ workflows: 1, heads: 1, runningCalls: 1, blocks: 3 });
    expect(lineage.verify()).toBe(true);
  });

  it('believes the host, then headers, then the prompt', () => {
    const lineage = new Lineage({ maxHeads: 16, maxBlocks: 1000 });
    const headers = { 'X-Session-ID': 'theirs' };
    const call = (chain: BigUint64Array, from?: { workflow?: string; headers?: RequestHeaders }): [string, number] => {
      const { kind, workflow, head } = lineage.identify(chain, from);
      lineage.ended(head);
      return [kind, workflow];
    };
    expect(call(chainOf(1, 2, 3))).toEqual(['new', 0]);
    expect(call(chainOf(1, 2, 3, 4), { workflow: 'ours', headers })).toEqual(['new', 1]);
    expect(call(chainOf(1, 2, 3, 4), { headers })).toEqual(['new', 2]);
    expect(call(chainOf(7, 8), { headers })).toEqual(['compacted', 2]);
    expect(call(chainOf(7, 8, 9), { workflow: 'theirs' })).toEqual(['continued', 2]);
    expect(call(chainOf(7, 8, 9, 10), { headers: { accept: '*/*' } })).toEqual(['continued', 2]);
    expect(call(chainOf(1, 2, 3, 4, 5), { workflow: 'ours' })).toEqual(['continued', 1]);
  });

  it('forgets what is unused for longest, and says so', () => {
    const lineage = new Lineage({ maxHeads: 3, maxBlocks: 100 });
    for (const first of [10, 20, 30]) lineage.ended(lineage.identify(chainOf(first, first + 1)).head);
    expect([...lineage.forgotten()]).toEqual([]);
    expect(lineage.identify(chainOf(40, 41))).toMatchObject({ kind: 'new', workflow: 0 });
    const forgotten = lineage.forgotten();
    expect([...forgotten]).toEqual([0]);
    expect(lineage.identify(chainOf(50, 51))).toMatchObject({ kind: 'new', workflow: 1 });
    expect([...forgotten, ...lineage.forgotten()]).toEqual([0, 1]);
    expect(lineage.stats().forgottenTotal).toBe(2);
  });

  it('refuses what does not fit, and is as before', () => {
    const lineage = new Lineage({ maxHeads: 3 });
    lineage.identify(chainOf(1, 2));
    lineage.identify(chainOf(3, 4));
    const before = lineage.stats();
    const cases: [() => unknown, unknown, string][] = [
      [() => lineage.identify(chainOf(5)), SagaCapacityError, 'SAGA_ERR_FULL'],
      [() => lineage.identify([1n] as never), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
      [() => lineage.identify(chainOf(1), 'ours' as never), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
      [() => lineage.identify(chainOf(1), { workflow: '' }), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
      [() => lineage.identify(chainOf(1), { workflow: 7 as never }), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
      [
        () => lineage.identify(chainOf(1), { workflow: 'x'.repeat(1025) }),
        SagaArgumentError,
        'SAGA_ERR_INVALID_ARGUMENT',
      ],
      [
        () => lineage.identify(chainOf(1), { headers: 'a: b' as never }),
        SagaArgumentError,
        'SAGA_ERR_INVALID_ARGUMENT',
      ],
      [() => lineage.ended(2), SagaStateError, 'SAGA_ERR_NOT_FOUND'],
      [() => lineage.ended(3), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
      [() => lineage.closed(2), SagaStateError, 'SAGA_ERR_NOT_FOUND'],
      [() => lineage.closed(0), SagaStateError, 'SAGA_ERR_WRONG_STATE'],
      [() => lineage.closed(-1), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
      [() => new Lineage(5 as never), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
      [() => new Lineage({ maxHeads: 1 }), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
      [() => new Lineage({ maxBlocks: 0 }), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
      [() => new Lineage({ slackBlocks: 4097 }), SagaArgumentError, 'SAGA_ERR_INVALID_ARGUMENT'],
    ];
    for (const [action, kind, code] of cases) {
      const error = refusal(action);
      expect([error instanceof (kind as typeof SagaError), error.code], error.message).toEqual([true, code]);
    }
    expect(lineage.stats()).toEqual(before);
    lineage.ended(0);
    expect(refusal(() => lineage.ended(0)).code).toBe('SAGA_ERR_NOT_FOUND');
    expect(lineage.verify()).toBe(true);
  });

  it('ends with close', () => {
    const lineage = new Lineage({ maxHeads: 3, maxBlocks: 10 });
    lineage.close();
    lineage.close();
    lineage[Symbol.dispose]();
    for (const action of [
      () => lineage.identify(chainOf(1)),
      () => lineage.ended(0),
      () => lineage.closed(0),
      () => lineage.forgotten(),
      () => lineage.stats(),
      () => lineage.verify(),
    ])
      expect(refusal(action).code).toBe('SAGA_ERR_CLOSED');
  });
});

/**
 * What the rules say, without a trie: a line of calls is the text of its newest prompt, a letter a block, and blocks remember whose
 * they are by the text up to them. With room for everything, so nothing is forgotten but what is closed.
 */
interface Line {
  workflow: number;
  text: string;
  running: boolean;
  superseded: boolean;
  used: number;
}

class Model {
  readonly lines = new Map<number, Line>();
  /** Of every known prefix: whose line it is on (undefined: of one that is gone), and whether a second workflow began with it. */
  readonly blocks = new Map<string, { line: Line | undefined; shared: boolean }>();
  readonly workflows = new Map<number, { first: number; name: string | undefined }>();
  readonly slack: number;
  #time = 0;

  constructor(slack: number) {
    this.slack = slack;
  }

  /** What must come of a call; numbers of a new line and a new workflow are those that were given. */
  identify(text: string, name: string | undefined, given: Identity): Omit<Identity, 'workflow' | 'head'> {
    const known = this.#knownOf(text);
    const here = text.slice(0, known);
    const named = [...this.workflows].find(([, one]) => name !== undefined && one.name === name)?.[0];
    const mayContinue = known > 0 && (name === undefined || named !== undefined);
    let kind: LineageKind = 'new';
    let line = mayContinue ? this.#continued(here, named) : undefined;
    let left: Line | undefined;
    let workflow: number | undefined = named;
    let common = known;
    const owner = this.blocks.get(here)?.line;
    if (line !== undefined) {
      kind = 'continued';
    } else if (name === undefined) {
      const block = this.blocks.get(here);
      if (owner !== undefined && block?.shared === false && this.#beyondFirst(owner.workflow, known)) {
        workflow = owner.workflow;
        kind = owner.running ? 'forked' : 'rolled-back';
        left = owner;
      }
    } else if (named !== undefined) {
      left = owner?.workflow === named ? owner : (this.#newest(named, true) ?? this.#newest(named, false));
      if (left === undefined) throw new Error('a workflow has a line');
      common = commonLength(left.text, text);
      if (left.running) {
        kind = 'forked';
      } else if (common > 0 && common + this.slack >= left.text.length) {
        kind = 'continued';
        line = left;
      } else {
        kind = this.#beyondFirst(named, common) ? 'rolled-back' : 'compacted';
      }
    }

    if (line !== undefined) {
      workflow = line.workflow;
      common = Math.min(common, line.text.length);
      left = line.superseded ? this.#newest(workflow, true, line) : undefined;
      line.superseded = false;
    } else if (kind === 'forked' || kind === 'new') {
      left = undefined;
    } else if (left?.superseded === true) {
      left = this.#newest(left.workflow, true, left) ?? left;
    }
    const superseded = left === undefined ? undefined : this.#numberOf(left);

    const before = line?.text;
    if (line === undefined) {
      if (workflow === undefined) {
        workflow = given.workflow;
        expect(this.workflows.has(workflow)).toBe(false);
        this.workflows.set(workflow, { first: text.length, name });
      } else if (left !== undefined) {
        left.used = ++this.#time;
      }
      expect(this.lines.has(given.head)).toBe(false);
      line = { workflow, text, running: true, superseded: false, used: 0 };
      this.lines.set(given.head, line);
    }
    expect([given.workflow, given.head]).toEqual([line.workflow, this.#numberOf(line)]);
    Object.assign(line, { text, running: true, used: ++this.#time });

    if (kind === 'new' || kind === 'compacted') {
      for (let at = known; at > 0; at--) {
        const block = this.blocks.get(text.slice(0, at));
        if (block === undefined || block.shared) break;
        if (block.line?.workflow !== line.workflow) block.shared = true;
      }
    }
    if (kind === 'rolled-back' && left !== undefined) {
      for (let at = known; at > 0 && this.blocks.get(text.slice(0, at))?.line === left; at--)
        this.blocks.set(text.slice(0, at), { ...this.#block(text.slice(0, at)), line });
    }
    for (let at = known + 1; at <= text.length; at++) this.blocks.set(text.slice(0, at), { line, shared: false });
    if (left !== undefined) left.superseded = true;
    if (before !== undefined) this.#prune();
    return { kind, superseded, commonBlocks: common, knownBlocks: known };
  }

  ended(head: number): void {
    const line = this.lines.get(head);
    if (line === undefined) throw new Error('no such line');
    line.running = false;
    line.used = ++this.#time;
  }

  closed(workflow: number): void {
    for (const [number, line] of this.lines) {
      if (line.workflow !== workflow) continue;
      this.lines.delete(number);
      for (const block of this.blocks.values()) if (block.line === line) block.line = undefined;
    }
    this.workflows.delete(workflow);
    this.#prune();
  }

  #knownOf(text: string): number {
    let known = 0;
    while (known < text.length && this.blocks.has(text.slice(0, known + 1))) known++;
    return known;
  }

  #block(prefix: string): { line: Line | undefined; shared: boolean } {
    const block = this.blocks.get(prefix);
    if (block === undefined) throw new Error('no such block');
    return block;
  }

  #numberOf(line: Line): number {
    for (const [number, one] of this.lines) if (one === line) return number;
    throw new Error('no such line');
  }

  /** A line that ends here, just behind on the line of this block, or above. */
  #continued(here: string, workflow: number | undefined): Line | undefined {
    const endsHere = this.#endingAt(here, workflow);
    if (endsHere !== undefined || this.#anyEndsAt(here, workflow)) return endsHere;
    const owner = this.blocks.get(here)?.line;
    if (
      owner !== undefined &&
      !owner.running &&
      (workflow === undefined || owner.workflow === workflow) &&
      owner.text.startsWith(here) &&
      owner.text.length - here.length <= this.slack
    )
      return owner;
    for (let at = here.length - 1; at > 0; at--) {
      const above = this.#endingAt(here.slice(0, at), workflow);
      if (above !== undefined) return above;
    }
    return undefined;
  }

  #anyEndsAt(prefix: string, workflow: number | undefined): boolean {
    return [...this.lines.values()].some(
      (line) => line.text === prefix && (workflow === undefined || line.workflow === workflow),
    );
  }

  #endingAt(prefix: string, workflow: number | undefined): Line | undefined {
    const ending = [...this.lines]
      .filter(([, line]) => line.text === prefix && (workflow === undefined || line.workflow === workflow))
      .sort(([a], [b]) => a - b)
      .map(([, line]) => line);
    if (new Set(ending.map((line) => line.workflow)).size > 1) return undefined;
    const waiting = ending.filter((line) => !line.running);
    return waiting.find((line) => !line.superseded) ?? waiting[0];
  }

  #beyondFirst(workflow: number, blocks: number): boolean {
    return blocks > 0 && blocks + this.slack >= (this.workflows.get(workflow)?.first ?? Infinity);
  }

  #newest(workflow: number, waiting: boolean, except?: Line): Line | undefined {
    return [...this.lines.values()]
      .filter((line) => line.workflow === workflow && line !== except)
      .filter((line) => !waiting || (!line.running && !line.superseded))
      .sort((a, b) => b.used - a.used)[0];
  }

  #prune(): void {
    const texts = [...this.lines.values()].map((line) => line.text);
    for (const prefix of this.blocks.keys())
      if (!texts.some((text) => text.startsWith(prefix))) this.blocks.delete(prefix);
  }
}

function commonLength(a: string, b: string): number {
  let common = 0;
  while (common < a.length && a[common] === b[common]) common++;
  return common;
}

/** Hash of each prefix, the same for the same text. */
function hashesOf(text: string): BigUint64Array {
  let hash = 0n;
  return BigUint64Array.from(text, (letter) => {
    hash = BigInt.asUintN(64, (hash ^ BigInt(letter.charCodeAt(0))) * 0x9e37_79b9_7f4a_7c15n + 1n);
    return hash;
  });
}

type Step =
  | { do: 'call'; line: number; keep: number; more: string; name: string | undefined }
  | { do: 'end'; line: number }
  | { do: 'close'; line: number };

const number = fc.nat(999);
const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 4 });
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant('call' as const),
      line: number,
      // Mostly the whole prompt of some line, or all but its end.
      keep: fc.oneof(fc.constant(0), fc.nat(3), number),
      more: letters,
      name: fc.oneof({ weight: 4, arbitrary: fc.constant(undefined) }, fc.constantFrom('ours', 'theirs')),
    }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('end' as const), line: number }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('close' as const), line: number }) },
);

describe('random agents', () => {
  it('are told apart as a plain model does', () => {
    const seen = new Set<string>();
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 60, size: 'max' }), fc.nat(2), (steps, slackBlocks) => {
        const lineage = new Lineage({ maxHeads: 64, maxBlocks: 4096, slackBlocks });
        const model = new Model(slackBlocks);
        for (const one of steps) {
          const lines = [...model.lines];
          const [head, line] = lines.length > 0 ? (lines[one.line % lines.length] as [number, Line]) : [0, undefined];
          if (one.do === 'call') {
            const base = line?.text ?? '';
            const text = base.slice(0, Math.max(0, base.length - one.keep)) + one.more;
            const from = one.name === undefined ? {} : { workflow: one.name };
            const given = lineage.identify(hashesOf(text), from);
            const { workflow: _, head: __, ...rest } = given;
            expect(rest).toEqual(model.identify(text, one.name, given));
            seen.add(given.kind);
          } else if (line?.running === true && one.do === 'end') {
            lineage.ended(head);
            model.ended(head);
          } else if (line !== undefined && one.do === 'close') {
            const busy = lines.some(([, other]) => other.workflow === line.workflow && other.running);
            if (busy) {
              expect(refusal(() => lineage.closed(line.workflow)).code).toBe('SAGA_ERR_WRONG_STATE');
              continue;
            }
            lineage.closed(line.workflow);
            model.closed(line.workflow);
          }
          expect(lineage.stats()).toMatchObject({
            workflows: model.workflows.size,
            heads: model.lines.size,
            runningCalls: [...model.lines.values()].filter(({ running }) => running).length,
            blocks: model.blocks.size,
          });
        }
        expect(lineage.verify()).toBe(true);
        lineage.close();
      }),
      { numRuns: 400 },
    );
    expect([...seen].sort()).toEqual(['compacted', 'continued', 'forked', 'new', 'rolled-back']);
  });
});
