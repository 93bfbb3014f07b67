"""How long a step of continuous batching would take on a GPU, from what is in it.

    base + per_call * decoding requests + per_context_token * the tokens they attend to
         + per_prefill_token * new prompt tokens + per_prefill_pair * pairs that their attention compares
         + by_tokens at decoding requests + new prompt tokens

`by_tokens`, if given, is a table of [tokens, seconds]: linear between its points, beyond the last one along its last slope,
before the first one that one's value.

Seconds. The same form and the same names as native/core/place/cost_model.hpp; a chunk of t tokens after c computed ones
compares t * (c + t / 2) pairs. Standard library only.
"""

import json
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class StepTimeModel:
    base: float = 0.0
    per_call: float = 0.0
    per_context_token: float = 0.0
    per_prefill_token: float = 0.0
    per_prefill_pair: float = 0.0
    by_tokens: tuple[tuple[float, float], ...] = ()

    @staticmethod
    def parse(text: str) -> "StepTimeModel":
        """From JSON or the name of a profile. Coefficients that are not named are 0; an unknown name is an error."""
        if text in PROFILES:
            return PROFILES[text]
        try:
            given = json.loads(text)
        except json.JSONDecodeError:
            given = None
        if not isinstance(given, dict):
            raise ValueError(f"a step model is a JSON object or one of {', '.join(PROFILES)}: {text}")
        known = {field.name for field in fields(StepTimeModel)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(f"unknown coefficients {unknown}: {sorted(known)}")
        table = given.pop("by_tokens", [])
        if not isinstance(table, list) or any(not isinstance(row, list) or len(row) != 2 for row in table):
            raise ValueError(f"by_tokens is a list of [tokens, seconds]: {text}")
        by_tokens = tuple((float(tokens), float(seconds)) for tokens, seconds in table)
        rising = all(low[0] < high[0] for low, high in zip(by_tokens, by_tokens[1:]))
        if len(by_tokens) == 1 or not rising or any(not 0 < seconds < 1e6 for _, seconds in by_tokens):
            raise ValueError(f"by_tokens has at least two rows, by rising tokens, with seconds above 0: {text}")
        coefficients = {name: float(value) for name, value in given.items()}
        if any(not 0 <= value < 1e6 for value in coefficients.values()):
            raise ValueError(f"coefficients are seconds, not negative: {text}")
        return StepTimeModel(**coefficients, by_tokens=by_tokens)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def seconds(self, calls: int, context_tokens: int, prefill_tokens: int, prefill_pairs: float) -> float:
        return (
            self.base
            + self.per_call * calls
            + self.per_context_token * context_tokens
            + self.per_prefill_token * prefill_tokens
            + self.per_prefill_pair * prefill_pairs
            + self._by_tokens(calls + prefill_tokens)
        )

    def _by_tokens(self, tokens: int) -> float:
        table = self.by_tokens
        if not table:
            return 0.0
        if tokens <= table[0][0]:
            return table[0][1]
        after = 1
        while after + 1 < len(table) and tokens > table[after][0]:
            after += 1
        (low, begin), (high, end) = table[after - 1], table[after]
        return begin + (end - begin) * (tokens - low) / (high - low)


class StepClock:
    """When the modelled accelerator ends each step. All times in seconds of the wall clock.

    While requests go on from one step to the next, a step is taken to have begun when the one before it ended, but at
    most its own length ago: that is how an engine hides its scheduling behind the accelerator's work. What could not be
    hidden is added to `late_seconds`.
    """

    def __init__(self, overlap: bool = True):
        self._overlap = overlap
        self._free_at = 0.0
        self.late_seconds = 0.0

    def end_of_step(self, now: float, seconds: float, continued: bool) -> float:
        """The end of a step that is ready to begin now. `continued`: the engine was not idle before it."""
        begin = now
        if continued:
            if self._overlap:
                begin = max(self._free_at, now - seconds)
            self.late_seconds += max(0.0, begin - self._free_at)
        self._free_at = begin + seconds
        return self._free_at


# A dense model of 70 billion parameters: linear fits to published measurements.
PROFILES = {
    "h100-tp4": StepTimeModel(20.5e-3, 0.024e-3, 4.8e-8, 0.0626e-3, 1.47e-9),
    "h100-tp8": StepTimeModel(13.2e-3, 0.031e-3, 2.4e-8, 0.0401e-3, 0.74e-9),
    "a100-tp4": StepTimeModel(28.6e-3, 0.141e-3, 7.8e-8, 0.178e-3, 4.7e-9),
    "a100-tp8": StepTimeModel(18.7e-3, 0.105e-3, 3.9e-8, 0.108e-3, 2.3e-9),
}
