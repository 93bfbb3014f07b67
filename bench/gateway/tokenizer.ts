/** A tokenizer as models have one, made on the spot: 64 words of three letters, each with the blank before it one token; all else by bytes. */
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const letters = ['a', 'b', 'c', 'd'];
const specials = ['<|im_start|>', '<|im_end|>'];
const template =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** A text of so many tokens. */
export function words(count: number, draw: () => number): string {
  let text = '';
  for (let i = 0; i < count; ++i) {
    const word = draw();
    text += ` ${letters[word & 3] ?? ''}${letters[(word >> 2) & 3] ?? ''}${letters[(word >> 4) & 3] ?? ''}`;
  }
  return text;
}

/** Path of the folder; whoever asked removes it. */
export function tokenizerFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'saga-bench-'));
  const blank = '\u0120';
  const vocabulary = byteCharacters();
  const merges: [string, string][] = [];
  let begun = [blank];
  for (let length = 1; length <= 3; ++length) {
    merges.push(...begun.flatMap((start) => letters.map((letter): [string, string] => [start, letter])));
    begun = begun.flatMap((start) => letters.map((letter) => start + letter));
    vocabulary.push(...begun);
  }
  const vocab = Object.fromEntries(vocabulary.map((token, id) => [token, id]));
  writeFileSync(
    join(folder, 'tokenizer.json'),
    JSON.stringify({
      version: '1.0',
      added_tokens: specials.map((content, i) => ({
        id: vocabulary.length + i,
        content,
        special: true,
        normalized: false,
      })),
      normalizer: null,
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
      post_processor: null,
      decoder: { type: 'ByteLevel' },
      model: { type: 'BPE', vocab, merges },
    }),
  );
  const config = { tokenizer_class: 'PreTrainedTokenizerFast', chat_template: template, eos_token: '<|im_end|>' };
  writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify(config));
  return folder;
}

/** The printable characters by which byte-level tokenizers write bytes, by byte. */
function byteCharacters(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const plain = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCodePoint(plain ? byte : next++);
  });
}
