"""Settings of the connector: from kv_connector_extra_config, else from environment variables SAGA_<NAME>, else defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

STRENGTHS = ("policy", "leases", "none")
ORDERS = ("saga", "lru")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class BadSetting(ValueError):
    """A value that a setting cannot have."""


@dataclass(frozen=True)
class Settings:
    """One field a setting. The prose is in docs/vllm-connector.md."""

    strength: str = "policy"
    order: str = "saga"
    directive_endpoint: str = "tcp://127.0.0.1:5757"
    directive_key: str = ""
    directive_key_file: str = ""
    lease_budget: float = 0.3
    time_scale: float = 1.0
    ghosts: int | None = None
    log_level: str = "INFO"
    allow_untested: bool = False

    @staticmethod
    def read(extra: Mapping[str, Any] | None, environment: Mapping[str, str] | None = None) -> "Settings":
        """Raises BadSetting. Names that are not known are an error in `extra` (but not in the environment)."""
        extra = dict(extra or {})
        environment = os.environ if environment is None else environment
        names = {field.name for field in fields(Settings)}
        unknown = sorted(set(extra) - names)
        if unknown:
            raise BadSetting(f"unknown settings {', '.join(unknown)}; there are {', '.join(sorted(names))}")
        given: dict[str, Any] = {}
        for name in names:
            if name in extra:
                given[name] = extra[name]
            elif environment.get(f"SAGA_{name.upper()}"):
                given[name] = environment[f"SAGA_{name.upper()}"]
        for name, value in given.items():
            given[name] = _convert(name, value)
        return Settings(**given)

    def key(self) -> bytes | None:
        """The key of the directive channel. Raises BadSetting if it is too short or its file cannot be read."""
        if self.directive_key_file:
            try:
                with open(self.directive_key_file, "rb") as file:
                    key = file.read().strip()
            except OSError as error:
                raise BadSetting(f"directive_key_file: {error}") from error
        else:
            key = self.directive_key.encode()
        if not key:
            return None
        if len(key) < 16:
            raise BadSetting("directive_key: at least 16 bytes")
        return key


def _convert(name: str, value: Any) -> Any:
    if name in ("strength", "order", "log_level"):
        choices = {"strength": STRENGTHS, "order": ORDERS, "log_level": LOG_LEVELS}[name]
        text = str(value).upper() if name == "log_level" else str(value).lower()
        if text not in choices:
            raise BadSetting(f"{name}: {value!r} is none of {', '.join(choices)}")
        return text
    if name in ("lease_budget", "time_scale"):
        number = _number(name, value)
        if name == "lease_budget" and not 0 <= number <= 0.9:
            raise BadSetting("lease_budget: from 0 to 0.9")
        if name == "time_scale" and not 0 < number <= 1e6:
            raise BadSetting("time_scale: above 0")
        return number
    if name == "ghosts":
        if value is None:
            return None
        number = _number(name, value)
        if number != int(number) or not 0 <= number <= 2**27:
            raise BadSetting("ghosts: a whole number up to 2^27")
        return int(number)
    if name == "allow_untested":
        return value if isinstance(value, bool) else str(value).lower() in ("1", "true", "yes")
    if not isinstance(value, str):
        raise BadSetting(f"{name}: a string is wanted")
    return value


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise BadSetting(f"{name}: {value!r} is no number") from error
    if isinstance(value, bool) or number != number:
        raise BadSetting(f"{name}: {value!r} is no number")
    return number
