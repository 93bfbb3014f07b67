/** Documents of declared graphs, right ones and ones that may be wrong. */
import fc from 'fast-check';
import type { AgentGraphJSON, AgentStepJSON } from '../../src/graph/agent-graph.js';

const tool = fc.constantFrom('none', 'code-execution', 'file-operation', 'web-api', 'database-query' as const);
const seconds = fc.oneof(fc.constant(0), fc.double({ min: 0, max: 1e4, noNaN: true }));
const stepParts = {
  tool: tool as fc.Arbitrary<NonNullable<AgentStepJSON['tool']>>,
  outputTokens: fc.double({ min: 0, max: 5000, noNaN: true }),
  observationTokens: fc.double({ min: 0, max: 5000, noNaN: true }),
  gapSeconds: fc.double({ min: 0, max: 100, noNaN: true }),
};

/** Documents that are right: each step ends a task with at least 1/10. */
export const validGraphs: fc.Arbitrary<AgentGraphJSON> = fc
  .uniqueArray(fc.string({ minLength: 1, maxLength: 12, unit: 'grapheme' }), { minLength: 1, maxLength: 6 })
  .chain((names) =>
    fc.record(
      {
        steps: fc.tuple(
          ...names.map((name) =>
            fc.record(stepParts, { requiredKeys: [] }).map((step): AgentStepJSON => ({ ...step, name })),
          ),
        ),
        edges: fc
          .array(fc.array(fc.nat(9), { minLength: names.length, maxLength: names.length }), {
            minLength: names.length,
            maxLength: names.length,
          })
          .map((weights) => weights.flatMap((row, from) => edgesOf(names, from, row))),
        start: fc.array(fc.nat(9), { minLength: names.length, maxLength: names.length }).map((weights) => {
          const sum = weights.reduce((a, b) => a + b, 0);
          return Object.fromEntries(
            names.map((name, at) => [name, sum === 0 ? Number(at === 0) : (weights[at] as number) / sum]),
          );
        }),
        name: fc.string({ minLength: 1 }),
        firstPromptTokens: fc.double({ min: 1, max: 1e6, noNaN: true }),
        expectedCalls: fc.double({ min: 1, max: 1e4, noNaN: true }),
        expectedSeconds: seconds,
      },
      { requiredKeys: ['steps'] },
    ),
  );

/** Edges from a step with these weights; a tenth is left for the end. Weight 0: no edge. */
function edgesOf(
  names: readonly string[],
  from: number,
  weights: readonly number[],
): { from: string; to: string; probability: number }[] {
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.flatMap((weight, to) =>
    weight === 0 ? [] : [{ from: names[from] as string, to: names[to] as string, probability: (0.9 * weight) / sum }],
  );
}

/** What takes the place of a part of a document. */
const odd = fc.constantFrom<unknown>(
  ...[
    null,
    true,
    '',
    '1',
    'none',
    'bash',
    -1,
    -0,
    0.5,
    1,
    1.0000001,
    1e10,
    2 ** 31,
    2 ** 31 + 1,
    [],
    {},
    [0],
    { a: 1 },
  ],
  ...['x'.repeat(200), 'x'.repeat(201), '\u{1f600}'.repeat(200), '\u{1f600}'.repeat(201)],
);
const changes = fc.record({
  /** Which of the document's parts: its place among all of them, as a share. */
  where: fc.nat(999).map((thousandths) => thousandths / 1000),
  how: fc.constantFrom('replace', 'delete', 'add', 'repeat', 'copy'),
  what: odd,
});

interface Part {
  holder: Record<string, unknown> | unknown[];
  key: string;
}

/** Every part of a JSON value, by what holds it. */
function partsOf(value: unknown): Part[] {
  if (typeof value !== 'object' || value === null) return [];
  const holder = value as Part['holder'];
  return Object.entries(holder).flatMap(([key, part]) => [{ holder, key }, ...partsOf(part)]);
}

function change(document: unknown, { where, how, what }: { where: number; how: string; what: unknown }): void {
  const parts = partsOf(document);
  const { holder, key } = parts[Math.floor(where * parts.length)] ?? { holder: {}, key: '' };
  const at = holder as Record<string, unknown>;
  const first = Object.values(at)[0];
  if (how === 'replace') at[key] = what;
  else if (how === 'delete' && Array.isArray(holder)) holder.splice(Number(key), 1);
  else if (how === 'delete') delete at[key];
  else if (how === 'repeat' && Array.isArray(holder)) holder.push(structuredClone(at[key]));
  else if (how === 'copy') at[key] = structuredClone(first);
  else if (Array.isArray(holder)) holder.push(what);
  else at['surplus'] = what;
}

/** Documents that may be wrong in every way that the schema knows, and in those that it cannot express. */
export const doubtfulGraphs: fc.Arbitrary<unknown> = fc
  .tuple(validGraphs, fc.array(changes, { maxLength: 2 }))
  .map(([graph, changed]) => {
    const document: unknown = JSON.parse(JSON.stringify(graph));
    for (const one of changed) change(document, one);
    return document;
  });
