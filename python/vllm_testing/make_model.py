"""Writes the tiny model of the servers: python -m vllm_testing.make_model FOLDER [--tokenizer] [--max-positions N]

config.json, generation_config.json: a Llama of 2 layers, hidden size 64, vocabulary 32,000, in float32; no weights
(--load-format dummy). With --tokenizer also tokenizer.json and tokenizer_config.json: a byte-level BPE made from
corpus.txt, 1,102 tokens, whose chat template is ChatML with tools in the hermes form, so that
`--enable-auto-tool-choice --tool-call-parser hermes` works.

The same arguments write the same bytes. Standard library only; the tokenizer needs the package `tokenizers`, which
every environment has.
"""

import argparse
import json
import sys
from pathlib import Path

VOCABULARY = 32000
BEGIN, END = 1, 2

# Special tokens have the first ids. 1 and 2 are what config.json names.
SPECIAL_TOKENS = ["<unk>", "<|begin_of_text|>", "<|im_end|>", "<|im_start|>"]
# One token each, but kept in decoded text: vLLM's hermes parser looks for them there.
ADDED_TOKENS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
TOKENIZER_SIZE = 2000

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is not none -%}
{%- for part in content -%}{{ part if part is string else part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set system = text(messages[0].content) if messages and messages[0].role == 'system' else '' -%}
{%- set rest = messages[1:] if messages and messages[0].role == 'system' else messages -%}
{%- if tools %}
{{- '<|im_start|>system\\n' + (system + '\\n\\n' if system else '') }}
{{- '# Tools\\n\\nYou may call one or more functions.\\n<tools>\\n' }}
{%- for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}
{{- '</tools>\\n\\nFor each call, return <tool_call>\\n{"name": <name>, "arguments": <arguments>}\\n</tool_call>' }}
{{- '<|im_end|>\\n' }}
{%- elif system %}
{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in rest %}
{%- if message.role == 'tool' %}
{%- if loop.first or rest[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response>' }}
{%- if loop.last or rest[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + text(message.content) }}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function if call.function is defined else call %}
{{- '' if loop.first and not message.content else '\\n' }}
{{- '<tool_call>\\n{"name": ' + (function.name | tojson) + ', "arguments": ' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def config(max_positions: int) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # heads of 32: the smallest that vLLM's CPU kernels have on every processor
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": max_positions,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def make_tokenizer():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = (Path(__file__).parent / "corpus.txt").read_text(encoding="utf-8")
    tokenizer.train_from_iterator(corpus.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ADDED_TOKENS])
    return tokenizer


def write_model(folder: Path, max_positions: int = 131072, tokenizer: bool = False) -> tuple[int, int] | None:
    """With a tokenizer, returns the range of ids that are ordinary text: what an unscripted answer may be made of."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config(max_positions))
    # Without a tokenizer the engine learns only from here which token ends an answer.
    _write_json(folder / "generation_config.json", {"bos_token_id": BEGIN, "eos_token_id": END})
    if not tokenizer:
        return None
    made = make_tokenizer()
    made.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<unk>",
            "pad_token": "<|im_end|>",
            "additional_special_tokens": ["<|im_start|>"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_positions,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return text_token_range(made)


def text_token_range(tokenizer) -> tuple[int, int]:
    """Ids of merged tokens: each is valid UTF-8 by itself, which single bytes are not."""
    return len(SPECIAL_TOKENS) + 256, tokenizer.get_vocab_size(with_added_tokens=False)


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="vllm_testing.make_model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", action="store_true")
    parser.add_argument("--max-positions", type=int, default=131072)
    arguments = parser.parse_args()
    if not 16 <= arguments.max_positions <= 1 << 20:
        sys.exit("--max-positions must be between 16 and 1048576")
    text_range = write_model(arguments.folder, arguments.max_positions, arguments.tokenizer)
    print(json.dumps({"folder": str(arguments.folder), "text_tokens": text_range}))


if __name__ == "__main__":
    main()
