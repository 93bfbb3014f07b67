/** The schema and the code are one: whatever the schema refuses, the code refuses, and the rest only for the named reasons. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Ajv2020 } from 'ajv/dist/2020.js';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SagaArgumentError } from '../../src/errors.js';
import { AgentGraph, type AgentGraphJSON } from '../../src/graph/agent-graph.js';
import { defaultsOf, toolClasses } from '../../src/graph/tool-class.js';
import { doubtfulGraphs, validGraphs } from './arbitraries.js';

const read = (file: string): string => readFileSync(fileURLToPath(new URL(`../../${file}`, import.meta.url)), 'utf8');
const schema = JSON.parse(read('schema/agent-graph.schema.json')) as {
  $defs: { step: { properties: Record<string, { enum?: string[]; default?: unknown; description?: string }> } };
};
const validate = new Ajv2020({ strict: true, allErrors: true }).compile(schema);

function accepted(document: unknown): boolean {
  try {
    AgentGraph.fromJSON(document);
    return true;
  } catch (error) {
    if (!(error instanceof SagaArgumentError)) throw error;
    return false;
  }
}

/** What the schema's description says it cannot express, for documents that it accepts. */
function consistent({ steps, edges = [], start }: AgentGraphJSON): boolean {
  const names = steps.map(({ name }) => name);
  const leaving = (name: string): number =>
    edges.filter(({ from }) => from === name).reduce((sum, edge) => sum + edge.probability, 0);
  const ending = new Set(names.filter((name) => leaving(name) < 1 - 1e-9));
  for (let round = 0; round < names.length; ++round) {
    for (const { from, to, probability } of edges) if (probability > 0 && ending.has(to)) ending.add(from);
  }
  return (
    new Set(names).size === names.length &&
    edges.every(({ from, to }) => names.includes(from) && names.includes(to)) &&
    new Set(edges.map(({ from, to }) => JSON.stringify([from, to]))).size === edges.length &&
    names.every((name) => leaving(name) <= 1 + 1e-9) &&
    names.every((name) => ending.has(name)) &&
    (start === undefined ||
      (Object.keys(start).every((name) => names.includes(name)) &&
        Math.abs(Object.values(start).reduce((sum, share) => sum + share, 0) - 1) <= 1e-9))
  );
}

describe('the schema of declared graphs', () => {
  it('accepts what the code writes', () => {
    fc.assert(
      fc.property(validGraphs, (document) => {
        expect([validate(document), accepted(document)]).toEqual([true, true]);
        expect(validate(JSON.parse(JSON.stringify(AgentGraph.fromJSON(document))))).toBe(true);
      }),
    );
  });

  it('refuses what the code refuses, apart from what it says that it cannot express', () => {
    const seen = { both: 0, schema: 0, code: 0 };
    fc.assert(
      fc.property(doubtfulGraphs, (document) => {
        const bySchema = validate(document);
        const byCode = accepted(document);
        expect(byCode).toBe(bySchema && consistent(document as AgentGraphJSON));
        seen[byCode ? 'both' : bySchema ? 'code' : 'schema'] += 1;
      }),
      { numRuns: 3000, seed: 7 },
    );
    // The documents are of all three kinds, or the comparison says little.
    expect(Math.min(seen.both, seen.schema, seen.code)).toBeGreaterThan(100);
  });

  it('knows the tool classes and the defaults of the code', () => {
    const { tool, outputTokens, gapSeconds, observationTokens } = schema.$defs.step.properties;
    expect(tool?.enum).toEqual(toolClasses);
    expect(tool?.default).toBe('none');
    expect(outputTokens?.default).toBe(defaultsOf('web-api').outputTokens);
    const gaps = [...toolClasses.slice(1), toolClasses[0] as 'none'].map(
      (one) => `${one} ${defaultsOf(one).gapSeconds}`,
    );
    expect(gapSeconds?.description).toContain(`Default by tool: ${gaps.join(', ')}.`);
    const { observationTokens: usual } = defaultsOf('web-api');
    expect(observationTokens?.description).toContain(
      `Default: ${usual}, and ${defaultsOf('none').observationTokens} without a tool`,
    );
  });

  it('accepts every JSON document of docs/graphs.md, as does the code', () => {
    const documents = [...read('docs/graphs.md').matchAll(/```json\n([\s\S]*?)```/g)].map(
      ([, text = '']) => JSON.parse(text) as unknown,
    );
    expect(documents.length).toBeGreaterThan(0);
    for (const document of documents) expect([validate(document), accepted(document)]).toEqual([true, true]);
  });
});
