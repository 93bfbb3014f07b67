"""Which tokens FakeExecutor emits.

Unscripted: token i of an answer is a function of the whole prompt, the request's seed (if it has one) and i, spread
over SAGA_TOKEN_RANGE; never the end-of-text token, so an answer ends at max_tokens. One prompt has one answer, on every
server and in every run.

Scripted, in this order of precedence. A script's end emits the end-of-text token (finish_reason "stop"; "tool_calls"
where the server's parser finds a call).

1. By the request: `"vllm_xargs": {"saga_script": [id, ..]}`, or as text "id,id,.." (completions of vLLM 0.15.1 take no
   lists there); or `"vllm_xargs": {"saga_say": "text"}` where the model folder has a tokenizer.
2. By SAGA_SCRIPT_FILE: a JSON list of entries; the first that fits the prompt is taken. The file is read again when it
   has changed. Where no entry fits, the answer is unscripted.

       {"last": "text"}           the chat's last message (what follows the last-but-one <|im_start|>) contains this
       {"prompt": "text"}         the prompt contains this
       {"unless": "text"}         the prompt does not contain this
       {"ends_with": [id, ..]}    the prompt's last tokens
       {"starts_with": [id, ..]}  the prompt's first tokens
     and what to emit:
       {"say": "text"} or {"ids": [id, ..]}

   All conditions of an entry must hold; an entry without any always fits. Texts need a tokenizer in the model folder;
   special tokens (<|im_end|> and so on) are recognised in "say".

Cost: one pass over the prompt per request; with a script file of texts, its decoding as well.
"""

import array
import json
import os
import zlib
from pathlib import Path

_MASK = (1 << 64) - 1
_CHAT_TURN = "<|im_start|>"


def _mix(value: int) -> int:
    """SplitMix64's finaliser: neighbouring positions give unrelated tokens."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Answer:
    """The tokens of one request, by position in the answer."""

    __slots__ = ("_end", "_high", "_low", "_script", "_seed")

    def __init__(self, low, high, seed, script, end):
        self._low = low
        self._high = high
        self._seed = seed
        self._script = script
        self._end = end

    @property
    def scripted(self) -> bool:
        return self._script is not None

    def token(self, position: int) -> int:
        script = self._script
        if script is not None:
            return script[position] if position < len(script) else self._end
        return self._low + _mix(self._seed + position) % (self._high - self._low)


class TokenSource:
    def __init__(self, vocabulary: int, end_of_text: int, model_folder: str):
        low, _, high = os.environ.get("SAGA_TOKEN_RANGE", "").partition(":")
        self._low = int(low) if low else 3
        self._high = int(high) if high else vocabulary
        if not 0 <= self._low < self._high <= vocabulary:
            raise ValueError(f"SAGA_TOKEN_RANGE must lie within the vocabulary of {vocabulary}")
        if self._low <= end_of_text < self._high:
            raise ValueError(f"SAGA_TOKEN_RANGE must not contain the end-of-text token {end_of_text}")
        self._end = end_of_text
        self._model_folder = Path(model_folder)
        self._tokenizer = None
        path = os.environ.get("SAGA_SCRIPT_FILE")
        self._script_file = _ScriptFile(Path(path), self) if path else None

    def answer(self, prompt: list[int], sampling_params) -> Answer:
        script = None
        try:
            script = self._requested(getattr(sampling_params, "extra_args", None) or {})
            if script is None and self._script_file is not None:
                script = self._script_file.find(prompt)
        except ValueError as error:  # what a client sent must not stop the engine
            print(f"script ignored: {error}", flush=True)
        seed = 0
        if script is None:
            given = getattr(sampling_params, "seed", None)
            content = array.array("q", prompt).tobytes()
            seed = _mix((zlib.crc32(content) << 32) ^ len(prompt) ^ ((given or 0) << 1))
        return Answer(self._low, self._high, seed, script, self._end)

    def _requested(self, arguments: dict) -> list[int] | None:
        ids = arguments.get("saga_script")
        if ids is not None:
            if isinstance(ids, str):
                ids = [part for part in ids.split(",") if part.strip()]
            return [int(part) for part in (ids if isinstance(ids, list) else [ids])]
        text = arguments.get("saga_say")
        return None if text is None else self.encode(str(text))

    def encode(self, text: str) -> list[int]:
        return self._loaded().encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._loaded().decode(ids, skip_special_tokens=False)

    def _loaded(self):
        if self._tokenizer is None:
            path = self._model_folder / "tokenizer.json"
            if not path.exists():
                raise ValueError("scripted texts need a tokenizer in the model folder: make_model.py --tokenizer")
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(path))
        return self._tokenizer


class _ScriptFile:
    _TEXT_CONDITIONS = ("last", "prompt", "unless")

    def __init__(self, path: Path, source: TokenSource):
        self._path = path
        self._source = source
        self._read_at = None
        self._entries: list[dict] = []

    def find(self, prompt: list[int]) -> list[int] | None:
        self._refresh()
        text = None
        for entry in self._entries:
            if text is None and any(condition in entry for condition in self._TEXT_CONDITIONS):
                text = self._source.decode(prompt)
            if self._fits(entry, prompt, text):
                return entry["ids"] if "ids" in entry else self._source.encode(entry["say"])
        return None

    def _refresh(self):
        """A file that is missing or half-written must not stop an engine that runs: the entries stay as they were."""
        try:
            changed = self._path.stat().st_mtime_ns
            if changed == self._read_at:
                return
            entries = json.loads(self._path.read_text())
            for entry in entries:
                if ("ids" in entry) == ("say" in entry):
                    raise ValueError("an entry has either ids or say")
            self._entries = entries
            self._read_at = changed
        except (OSError, ValueError, TypeError) as error:
            print(f"SAGA_SCRIPT_FILE {self._path}: {error}", flush=True)

    @staticmethod
    def _fits(entry: dict, prompt: list[int], text: str | None) -> bool:
        if "last" in entry:
            # The prompt ends with the header of the answer to come: the last message is the one before it.
            turns = text.split(_CHAT_TURN)
            if entry["last"] not in (turns[-2] if len(turns) > 1 else text):
                return False
        if "prompt" in entry and entry["prompt"] not in text:
            return False
        if "unless" in entry and entry["unless"] in text:
            return False
        ends = entry.get("ends_with", [])
        if ends and prompt[-len(ends) :] != ends:
            return False
        starts = entry.get("starts_with", [])
        return prompt[: len(starts)] == starts
