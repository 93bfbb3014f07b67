/**
 * Tool classes: what the tools of an agent are to a scheduler. The SAGA paper knows four, by how long they take; names of
 * tools map onto them by the words that they are made of.
 */
import { checkOneOf, checkText } from '../check.js';
import type { ToolClass } from '../scheduler.js';

export type { ToolClass };

/** Every class; its place here is its number at the border. `none`: no tool, or none that is known. */
export const toolClasses: readonly ToolClass[] = Object.freeze([
  'none',
  'code-execution',
  'file-operation',
  'web-api',
  'database-query',
]);

/**
 * Words of tool names by class, in the order in which they are tried: `run_sql` is a query, `run_browser` is the web, and a
 * plain `search` is the web, while `search_files` is not.
 */
const wordsOfClass: readonly (readonly [ToolClass, string])[] = [
  [
    'web-api',
    'web webfetch websearch http https url browser browse google bing tavily duckduckgo serpapi wikipedia arxiv internet ' +
      'website webpage page navigate click scroll scrape crawl fetch curl wget api rest graphql github gitlab jira slack ' +
      'gmail email calendar weather maps',
  ],
  [
    'database-query',
    'sql mysql postgres postgresql sqlite mongo mongodb redis bigquery snowflake elasticsearch database db query table ' +
      'vector retriever retrieve',
  ],
  [
    'code-execution',
    'bash sh shell zsh powershell terminal command cmd exec execute execution run python node javascript typescript code ' +
      'interpreter repl jupyter sandbox test tests pytest compile build lint npm make docker calculator',
  ],
  [
    'file-operation',
    'file files filesystem directory folder dir path workspace codebase repository repo notebook ls cat grep glob find ' +
      'read write edit multiedit editor view open save patch diff replace',
  ],
  ['web-api', 'search lookup download upload'],
];

const tiers = wordsOfClass.map(([kind, words]) => ({ kind, words: new Set(words.split(' ')) }));

/** @internal For the test of the documentation. */
export const toolWords: typeof wordsOfClass = wordsOfClass;

/** Classes of tools by name, for names that say something else than their words. */
export type ToolClassOverrides = Readonly<Record<string, ToolClass>>;

/**
 * The class of a tool by its name: `read_file` and `Grep` are file operations, `bash` is code execution, `WebSearch` the web,
 * `execute_sql` a database query. Names are cut into words at `_`, `-`, `.`, spaces and capital letters.
 *
 * @param overrides classes of tools by exact name; they go first
 * @returns `none` for a name without a word that is known
 */
export function classifyTool(name: string, overrides?: ToolClassOverrides): ToolClass {
  checkText('name', name);
  if (overrides && Object.hasOwn(overrides, name)) {
    const told = overrides[name];
    checkOneOf(`overrides[${JSON.stringify(name)}]`, told, toolClasses);
    return told as ToolClass;
  }
  const words = name
    .replace(/([a-z0-9])([A-Z])/g, '$1 $2')
    .replace(/([A-Z])([A-Z][a-z])/g, '$1 $2')
    .toLowerCase()
    .split(/[^a-z0-9]+/);
  return tiers.find((tier) => words.some((word) => tier.words.has(word)))?.kind ?? 'none';
}

/** What a step is taken to be where nothing is said; see {@link defaultsOf}. */
export interface StepDefaults {
  readonly outputTokens: number;
  readonly observationTokens: number;
  readonly gapSeconds: number;
}

/**
 * Mean duration of a tool by class, in seconds: the mean of the log-normal through the two percentiles (50 and 95) that the
 * SAGA paper measured. No tool takes no time.
 */
const meanSeconds: Readonly<Record<ToolClass, number>> = {
  none: 0,
  'code-execution': 0.62,
  'file-operation': 0.092,
  'web-api': 1.42,
  'database-query': 0.25,
};

/** Output of a step and observation of a tool where nothing is said, as in the SAGA paper's code. */
const usualOutputTokens = 250;
const usualObservationTokens = 300;

/** What a step with this class of tool is taken to be where nothing is said. */
export function defaultsOf(tool: ToolClass): StepDefaults {
  checkOneOf('tool', tool, toolClasses);
  return {
    outputTokens: usualOutputTokens,
    observationTokens: tool === 'none' ? 0 : usualObservationTokens,
    gapSeconds: meanSeconds[tool],
  };
}

/** @internal A tool of which only the name is known, and no word of it: the mean over the classes. */
export const unknownTool: StepDefaults = {
  outputTokens: usualOutputTokens,
  observationTokens: usualObservationTokens,
  gapSeconds: 0.6,
};
