import { readFileSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import * as graph from '../../src/graph/index.js';

describe('saga-scheduler/graph', () => {
  it('has the names that its documentation uses', () => {
    expect(Object.keys(graph).sort()).toEqual([
      'AgentGraph',
      'SagaArgumentError',
      'SagaError',
      'callHintColumns',
      'checkCallHints',
      'classifyTool',
      'defaultsOf',
      'fromLangGraph',
      'fromLangGraphAsync',
      'packCallHints',
      'toolClasses',
    ]);
  });

  it('loads no addon and nothing of LangGraph', () => {
    const folder = fileURLToPath(new URL('../../src/graph/', import.meta.url));
    const loaded = readdirSync(folder).flatMap((file) =>
      [...readFileSync(`${folder}${file}`, 'utf8').matchAll(/^(?:import|export)(?! type)[^;]*? from '([^']+)'/gm)]
        .map(([, from]) => from)
        .filter((from) => !from?.startsWith('./')),
    );
    expect([...new Set(loaded)].sort()).toEqual(['../check.js', '../errors.js']);
  });
});
