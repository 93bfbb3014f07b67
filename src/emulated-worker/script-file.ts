/**
 * Scripts in JSON, for the command line: rules by what the last message contains.
 *
 * ```json
 * {
 *   "rules": [{ "contains": "list the files", "answer": { "toolCalls": [{ "name": "ls", "arguments": { "path": "." } }] } }],
 *   "default": { "content": "Done." }
 * }
 * ```
 */
import type { Answer, Script } from './answer.js';
import { checkAnswer, isObject } from './requests.js';

interface Rule {
  readonly contains: string;
  readonly endpoint: string | undefined;
  readonly answer: Answer;
}

/**
 * The script that a document describes: the first rule that fits, else `default`, else the model's own answer.
 *
 * @throws TypeError where it is none
 */
export function scriptOf(document: unknown): Script {
  if (!isObject(document)) throw new TypeError('a script is an object with rules');
  const { rules: given = [], default: otherwise } = document;
  if (!Array.isArray(given)) throw new TypeError('rules must be a list');
  const rules = (given as unknown[]).map((rule, at): Rule => {
    if (!isObject(rule)) throw new TypeError(`rule ${at} must be an object`);
    const { contains = '', endpoint } = rule;
    if (typeof contains !== 'string') throw new TypeError(`contains of rule ${at} must be a string`);
    if (endpoint !== undefined && typeof endpoint !== 'string')
      throw new TypeError(`endpoint of rule ${at} must be a string`);
    return { contains, endpoint, answer: checkAnswer(rule.answer) };
  });
  const fallback = otherwise === undefined ? undefined : checkAnswer(otherwise);
  return ({ endpoint, lastText }) =>
    rules.find(
      (rule) => (rule.endpoint === undefined || rule.endpoint === endpoint) && lastText.includes(rule.contains),
    )?.answer ?? fallback;
}
