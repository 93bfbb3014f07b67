/** Examples in the README and in the sources compile against the types that users get, and run as they are printed. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('../', import.meta.url));
const read = (file: string): string => readFileSync(join(root, file), 'utf8');

/** The first block of TypeScript behind a text. */
function exampleBehind(text: string, mark: string): string {
  const from = text.indexOf(mark);
  const [, code = ''] = /```ts\n([\s\S]*?)```/.exec(text.slice(from)) ?? [];
  expect([from >= 0, code !== '']).toEqual([true, true]);
  return code;
}

/** An example of a TSDoc comment, without the stars before its lines. */
function exampleOf(file: string, mark: string): string {
  return exampleBehind(read(file).replace(/^ \* ?/gm, ''), mark);
}

/** Complaints of the compiler about files that exist in memory only, beside package.json. */
function complaintsAbout(files: Readonly<Record<string, string>>): string[] {
  const options: ts.CompilerOptions = {
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts'],
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    types: ['node'],
    noEmit: true,
  };
  const host = ts.createCompilerHost(options);
  const inMemory = new Map(Object.entries(files).map(([name, text]) => [join(root, name), text]));
  const disk = ts.createCompilerHost(options);
  host.readFile = (name) => inMemory.get(name) ?? disk.readFile(name);
  host.fileExists = (name) => inMemory.has(name) || disk.fileExists(name);
  host.getSourceFile = (name, version) => {
    const text = inMemory.get(name);
    return text === undefined ? disk.getSourceFile(name, version) : ts.createSourceFile(name, text, version);
  };
  host.getCurrentDirectory = () => root;
  const program = ts.createProgram([...inMemory.keys()], options, host);
  const ours = program
    .getSourceFiles()
    .filter((file) => inMemory.has(file.fileName) || file.fileName.startsWith(join(root, 'dist')));
  expect(ours.filter((file) => /dist\/(esm|cjs)\/index\.d\.ts$/.test(file.fileName)).length).toBe(2);
  return ours
    .flatMap((file) => [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)])
    .map((one) => `${one.file?.fileName ?? ''}: ${ts.flattenDiagnosticMessageText(one.messageText, '\n')}`);
}

function outputOf(code: string): string {
  const { outputText } = ts.transpileModule(code, {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
  });
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', outputText], {
    cwd: root,
    encoding: 'utf8',
    timeout: 60_000,
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  return stdout;
}

const readme = exampleBehind(read('README.md'), '## The API in 20 lines');
const simulate = exampleOf('src/simulate/index.ts', '@example');
const scheduler = exampleOf('src/scheduler/scheduler.ts', '@example');
const pageTable = exampleOf('src/page-table.ts', '@example');
const batchFormer = exampleOf('src/batch.ts', '@example');
const lineage = exampleOf('src/lineage.ts', '@example');
const promptChain = exampleOf('src/prompt-chain.ts', '@example');
const batches = exampleBehind(read('docs/batch.md'), '## One step');
const scheduling = [...read('docs/scheduling.md').matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code = '']) => code);
const graphs = [...read('docs/graphs.md').matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code = '']) => code);

describe('the example of the README', () => {
  it('is of 20 lines', () => {
    expect(readme.split('\n').filter((line) => line.trim() !== '').length).toBeLessThanOrEqual(20);
  });

  it('runs, and each call goes where its prompt is held', () => {
    expect(outputOf(readme).split('\n')).toEqual([
      '0 new 0 of 250 blocks held',
      '0 holder 250 of 290 blocks held',
      '0 holder 290 of 331 blocks held',
      '',
    ]);
  });
});

describe('the example of docs/batch.md', () => {
  it('runs, and a shared prefix is computed once', () => {
    expect(outputOf(batches).split('\n')).toEqual([
      'step 1: call 1 in row 0: tokens 0 to 9; call 0 in row 1: tokens 8 to 10',
      'step 2: call 1 in row 0: tokens 10 to 10; call 0 in row 1: tokens 11 to 11',
      'step 3: call 0 in row 1: tokens 12 to 12',
      '8 of 21 prompt tokens were cached',
      '',
    ]);
  });
});

describe('the example of saga-scheduler/simulate', () => {
  it('runs on a small generated workload', () => {
    expect(outputOf(simulate)).toMatch(
      /^\d[\d,]* requests, [\s\S]*\blru\b[\s\S]*\bbelady\b[\s\S]*\nLRU misses \d\.\d\d times as many pages as the optimum\n$/,
    );
  });
});

describe('the examples of docs/graphs.md', () => {
  it('print what the text says', () => {
    expect(graphs.map((code) => outputOf(code).trim().split('\n'))).toEqual([
      ['5.80 calls a task', '0.05 of the runs end the task', '3.80 calls to come after a run'],
      ['database-query none code-execution'],
      ['agent (none) none 120 0', 'agent (web-api) web-api 120 900', 'summary none 250 0', '5.5 calls a task'],
      ['code-execution 1 40 -1 1 NaN'],
    ]);
  });
});

describe('the examples of docs/scheduling.md', () => {
  it('print what the text says', () => {
    const printed = scheduling.map((code) => outputOf(code).trim().split('\n'));
    expect(printed).toEqual([
      ['call 0 to worker 0'],
      [
        expect.stringMatching(/^Call 0 goes to worker 0 \(new; 0 of 1000 blocks there\): /),
        expect.stringMatching(/^Call 1 goes to worker 0 \(holder; 1000 of 1062 blocks there\): /),
      ],
      ['1 placed, 1 in the queue', 'SAGA_ERR_HELD', 'placed after 8 seconds'],
      ['0 2 agents'],
      ['0 placed; decide again at 419432', 'pull 2000 blocks from 1 to 0', 'to worker 0 at 300000'],
      [
        '506 blocks of call 0 for 300 seconds',
        'true true false',
        '{ granted: 1, refused: 0, expired: 0, released: 0, revoked: 1 }',
      ],
      [
        'aabaaaaaaabaaabaaaba',
        'team-a has weight 3 and 3 calls in the queue',
        'team-b has weight 1 and 16 calls in the queue',
        'equality 0.98',
      ],
      ['true 1', 'SAGA_ERR_WRONG_STATE'],
      [
        'continued workflow 0 by 100 blocks',
        'rolled-back workflow 0 in place of head 0',
        'new workflow 1 of agent explore',
      ],
    ]);
    // Whatever is printed stands in the text, word for word.
    const text = read('docs/scheduling.md');
    for (const line of printed.flat()) expect(text).toContain(line);
  });
});

/** What must compile, and behind each expect-error what must not. */
const uses = `
import { Scheduler, type Call, type Directive, type Receipt, type StopReason, type ToolClass, type WorkerState } from 'saga-scheduler';
import { AgentGraph } from 'saga-scheduler/graph';
import { SagaError, type SagaErrorCode } from 'saga-scheduler';
import { simulateCache, simulateCluster, toolClassNumber, type WorkloadColumns } from 'saga-scheduler/simulate';
declare const call: Call;
declare const columns: WorkloadColumns;
const scheduler = new Scheduler({ policy: 'affinity' });
const receipt: Receipt | undefined = call.receipt;
const state: WorkerState | undefined = receipt?.worker.state();
const [stop, tool]: [StopReason, ToolClass] = ['tool-use', 'web-api'];
call.finish({ stop, tool, hints: { expectedSeconds: 3 } });
const graph = AgentGraph.define({ steps: { only: {} } });
scheduler.openWorkflow({ graph }).submit([1], { kind: 'user' });
export function late(directive: Directive): boolean {
  return directive.type === 'copy' || directive.type === 'retain' ? directive.expired() : false;
}
const code: SagaErrorCode = new SagaError('SAGA_ERR_OPTION', '').code;
void simulateCache(columns, { policies: ['lru'] });
void simulateCluster(columns, { load: [1], hardware: 'h100-tp8' });
const tools: 1 = toolClassNumber.codeExecution;
export { scheduler, state, code, tools };
// @ts-expect-error not a policy
new Scheduler({ policy: 'random' });
// @ts-expect-error blocks are needed
scheduler.addWorker({});
// @ts-expect-error numbers are for the columns of a workload
call.finish({ stop: 1 });
// @ts-expect-error a drop has no outcome
(null as Extract<Directive, { type: 'drop' }> | null)?.applied();
// @ts-expect-error receipts are made by decisions
call.receipt = undefined;
// @ts-expect-error internal
scheduler.native;
// @ts-expect-error internal
scheduler.time;
// @ts-expect-error no such code
const wrong: SagaErrorCode = 'SAGA_ERR_SOMETHING';
// @ts-expect-error belongs to the other simulation
void simulateCache(columns, { workers: 3 });
// @ts-expect-error the workload is given
void simulateCluster(columns, { rate: 1, trace: 'file' });
`;

describe('the types', () => {
  it('fit every example and every use, as ESM and as CommonJS, and refuse what is wrong', () => {
    const given = `
      import { BatchFormer, PageTable, BlockHasher, Lineage, PromptChain, Scheduler } from 'saga-scheduler';
      declare const hasher: BlockHasher; declare const prompt: Uint32Array; declare const tokenIds: Uint32Array;
      declare const longerPrompt: Uint32Array;`;
    expect(
      complaintsAbout({
        'example-readme.mts': readme,
        'example-simulate.mts': simulate,
        'example-scheduler.mts': `${given}\n${scheduler}`,
        'example-page-table.cts': `${given}\n${pageTable}`,
        'example-batch-former.mts': `${given}\n${batchFormer}`,
        'example-lineage.mts': `${given}\n${lineage}`,
        'example-prompt-chain.mts': `${given}\n${promptChain}`,
        'example-batches.mts': batches,
        ...Object.fromEntries(graphs.map((code, at) => [`example-graphs-${at}.mts`, code])),
        ...Object.fromEntries(scheduling.map((code, at) => [`example-scheduling-${at}.mts`, code])),
        'uses.mts': uses,
        'uses.cts': uses,
      }),
    ).toEqual([]);
  });
});
