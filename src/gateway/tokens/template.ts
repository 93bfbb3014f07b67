/** A model's own chat template and tokenizer, from the folder in which it is published. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Template } from '@huggingface/jinja';
import * as tokenizers from '@huggingface/tokenizers';
import { SagaArgumentError } from '../../errors.js';

/** The part of the package that is used; its own types do not resolve. */
interface Tokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
}
const { Tokenizer: MadeTokenizer } = tokenizers as unknown as {
  Tokenizer: new (tokenizer: object, config: object) => Tokenizer;
};

export type ChatMessage = Readonly<Record<string, unknown>>;

/** What a template is given besides messages. */
export interface TemplateArguments {
  tools?: unknown;
  add_generation_prompt: boolean;
  [name: string]: unknown;
}

interface TokenizerConfig {
  chat_template?: string | { name: string; template: string }[];
  bos_token?: string | { content: string } | null;
  eos_token?: string | { content: string } | null;
  added_tokens_decoder?: Record<string, { content: string }>;
}

/** Renders and tokenises. Everything is synchronous: some 1 us a token. */
export class LocalTokenizer {
  readonly #template: Template | undefined;
  readonly #tokenizer: Tokenizer | undefined;
  readonly #constants: Record<string, unknown>;
  /** Texts that are one token wherever they stand, the longest first: no token reaches over them. */
  readonly specials: readonly string[];

  /** @throws SagaArgumentError for a folder that has neither a tokenizer nor a template */
  constructor(folder: string) {
    const config = (readJson(folder, 'tokenizer_config.json') ?? {}) as TokenizerConfig;
    const tokenizer = readJson(folder, 'tokenizer.json') as { added_tokens?: { content: string }[] } | undefined;
    const template = templateOf(folder, config);
    if (tokenizer === undefined && template === undefined)
      throw new SagaArgumentError(`tokenizer: ${folder} must have tokenizer.json, or a chat template, or both`);
    this.#tokenizer = tokenizer === undefined ? undefined : new MadeTokenizer(tokenizer, config);
    this.#template = template === undefined ? undefined : new Template(template);
    this.#constants = { bos_token: tokenText(config.bos_token), eos_token: tokenText(config.eos_token) };
    const added = [...(tokenizer?.added_tokens ?? []), ...Object.values(config.added_tokens_decoder ?? {})];
    this.specials = [...new Set(added.map(({ content }) => content))]
      .filter((content) => content !== '')
      .sort((a, b) => b.length - a.length);
  }

  /** Whether text becomes tokens here; otherwise a worker is asked. */
  get tokenizes(): boolean {
    return this.#tokenizer !== undefined;
  }

  get renders(): boolean {
    return this.#template !== undefined;
  }

  /** @throws Error of the template, which may refuse messages */
  render(messages: readonly ChatMessage[], given: TemplateArguments): string {
    return (this.#template as Template).render({ ...this.#constants, ...given, messages });
  }

  /** Ids of a text that stands behind others: without what a model wants at the beginning. */
  encode(text: string, options: { special: boolean }): Uint32Array {
    const { ids } = (this.#tokenizer as Tokenizer).encode(text, { add_special_tokens: options.special });
    return Uint32Array.from(ids);
  }

  /** Whether the text begins with a token that stands for itself, so that it can be tokenised apart from what is before it. */
  beginsApart(text: string): boolean {
    return text === '' || this.specials.some((special) => text.startsWith(special));
  }
}

function readJson(folder: string, name: string): unknown {
  const path = join(folder, name);
  if (!existsSync(path)) return undefined;
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new SagaArgumentError(`tokenizer: ${path} must be JSON (${(error as Error).message})`);
  }
}

function templateOf(folder: string, { chat_template }: TokenizerConfig): string | undefined {
  const path = join(folder, 'chat_template.jinja');
  if (existsSync(path)) return readFileSync(path, 'utf8');
  if (typeof chat_template === 'string') return chat_template;
  return chat_template?.find(({ name }) => name === 'default')?.template;
}

function tokenText(token: string | { content: string } | null | undefined): string | undefined {
  return typeof token === 'string' ? token : (token?.content ?? undefined);
}
