import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { SagaArgumentError } from '../../src/errors.js';
import { classifyTool, defaultsOf, toolClasses, toolWords } from '../../src/graph/tool-class.js';
import { toolClassNumber } from '../../src/workload/columns.js';
import { paperToolLatencies } from '../../src/workload/paper-workloads.js';

describe('tool classes', () => {
  it('are numbered as at the border', () => {
    const camel = toolClasses.map((name) => name.replace(/-./g, (part) => part.charAt(1).toUpperCase()));
    expect(Object.fromEntries(camel.map((name, at) => [name, at]))).toEqual(toolClassNumber);
  });

  it('take the mean of the latencies that the paper measured', () => {
    // A log-normal through p50 and p95 has sigma = ln(p95 / p50) / 1.645 and the mean p50 exp(sigma^2 / 2).
    paperToolLatencies.forEach(({ p50, p95 }, at) => {
      const sigma = Math.log(p95 / p50) / 1.6448536;
      const mean = (p50 * Math.exp(sigma ** 2 / 2)) / 1000;
      expect(defaultsOf(toolClasses[at + 1] as 'web-api').gapSeconds / mean).toBeCloseTo(1, 1);
    });
    expect(defaultsOf('none')).toEqual({ outputTokens: 250, observationTokens: 0, gapSeconds: 0 });
  });
});

describe('classifyTool', () => {
  it.each([
    [
      'code-execution',
      'bash Bash shell run_tests execute_code python_repl executeCommand code_interpreter code-execution',
    ],
    [
      'file-operation',
      'read_file ReadFile Read Write MultiEdit Glob Grep LS str_replace_based_edit_tool list_directory',
    ],
    [
      'file-operation',
      'search_files apply_patch text_editor codebase_search view file-operation mcp__filesystem__list',
    ],
    [
      'web-api',
      'web_search WebFetch search HTTPRequest browser.click goto_url tavily_search_results github_api web-api',
    ],
    ['database-query', 'execute_sql runSQLQuery query_db sql_db_query vector_search mongo-find database-query'],
    ['none', 'none think multiply TodoList __proto__ constructor bashful 日本'],
  ])('%s: %s', (kind, names) => {
    const wrong = names.split(' ').filter((name) => classifyTool(name) !== kind);
    expect(wrong).toEqual([]);
  });

  it('asks the caller first', () => {
    expect(classifyTool('multiply', { multiply: 'code-execution' })).toBe('code-execution');
    expect(classifyTool('bash', { Bash: 'web-api' })).toBe('code-execution');
    expect(classifyTool('bash', { bash: 'none' })).toBe('none');
    expect(classifyTool('toString', {})).toBe('none');
  });

  it('knows the words that docs/graphs.md lists, in that order', () => {
    const text = readFileSync(new URL('../../docs/graphs.md', import.meta.url), 'utf8');
    const rows = [...text.slice(text.indexOf('| class | words |')).matchAll(/^\| `([a-z-]+)` \| (.*) \|$/gm)];
    expect(rows.slice(0, toolWords.length).map(([, kind, words]) => [kind, words])).toEqual(toolWords);
    const gaps = [...text.matchAll(/^\| `([a-z-]+)` \| ([\d.]+) \|/gm)].map(([, kind, gap]) => [kind, Number(gap)]);
    expect(gaps.length).toBe(toolClasses.length);
    expect(gaps).toEqual(gaps.map(([kind]) => [kind, defaultsOf(kind as 'none').gapSeconds]));
  });

  it('refuses what is no name and no class', () => {
    expect(() => classifyTool(5 as never)).toThrow(new SagaArgumentError('name must be a string, got 5'));
    expect(() => classifyTool('x', { x: 'shell' as never })).toThrow(
      'overrides["x"] must be one of none, code-execution',
    );
    expect(() => defaultsOf('bash' as never)).toThrow('tool must be one of none, code-execution');
  });
});
