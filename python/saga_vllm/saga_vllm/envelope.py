"""Envelopes of directives (docs/directives.md): reading and checking. No vLLM, no sockets.

What comes from outside is checked completely here: whoever gets a Directive or an Envelope need not look at types again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

MOST_BYTES = 1 << 20
MOST_ACTIONS = 1024
MOST_BLOCKS = 65536
MOST_TOKENS = 1 << 22
MOST_TEXT = 128
SIGNATURE_BYTES = 32
CLOCK_SKEW = 300.0
DEFAULT_EXPIRY = 30.0

ACTIONS = ("kv.retain", "kv.release", "kv.evict", "kv.prefetch", "saga.call", "saga.ended", "saga.status")
AT_END = ("kv.retain", "kv.release", "kv.evict", "saga.ended")  # may wait for the end of the request that they ride on
PROMPT_KINDS = {"start": 0, "tool": 1, "user": 2}
STOP_REASONS = {"tool_use": 1, "end_turn": 2}


class Malformed(ValueError):
    """Not what docs/directives.md describes. With a message_id there is somebody to answer to."""

    def __init__(self, text: str, message_id: str | None = None) -> None:
        super().__init__(text)
        self.message_id = message_id


@dataclass(frozen=True)
class Target:
    """Exactly one of these."""

    hashes: tuple[bytes, ...] | None = None  # whole digests, or the low 8 bytes
    token_ids: tuple[int, ...] | None = None
    cache_salt: str | None = None
    lora_name: str | None = None
    request_id: str | None = None
    thread: int | None = None
    from_block: int = 0  # so many leading blocks of the chain are not meant


@dataclass(frozen=True)
class Directive:
    """One action. `problem`: it is refused for this reason, and nothing else is set."""

    action_id: str
    action_type: str
    problem: str | None = None
    target: Target | None = None
    claim_id: str = ""
    ttl: float = 0.0
    value: float = 0.5
    now: bool = False
    at_end: bool = False  # of the request that it rides on
    thread: int = 0
    kind: int = 0
    stop_reason: int = 0
    tool_class: int = 0
    session_end: bool = False
    expected: float | None = None


@dataclass(frozen=True)
class Envelope:
    message_id: str
    epoch: int | None = None
    expires_in: float = DEFAULT_EXPIRY
    time: float | None = None
    actions: tuple[Directive, ...] = field(default_factory=tuple)


def sign(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()


def signature_fits(key: bytes, body: bytes, signature: bytes) -> bool:
    return len(signature) == SIGNATURE_BYTES and hmac.compare_digest(sign(key, body), signature)


def parse(body: bytes) -> Envelope:
    """Raises Malformed."""
    if len(body) > MOST_BYTES:
        raise Malformed("too long")
    try:
        given = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON: {type(error).__name__}") from error
    return read(given)


def read(given: Any) -> Envelope:
    """An envelope from decoded JSON. Raises Malformed."""
    if not isinstance(given, dict):
        raise Malformed("no object")
    message_id = given.get("message_id")
    if not _is_text(message_id):
        raise Malformed("message_id")
    version = given.get("protocol_version")
    if not isinstance(version, str) or not version.startswith("0."):
        raise Malformed("protocol_version", message_id)
    epoch = given.get("epoch")
    if epoch is not None and not _is_int(epoch, 0, 2**63):
        raise Malformed("epoch", message_id)
    expires_in = given.get("expires_in", DEFAULT_EXPIRY)
    if not _is_number(expires_in, 0, 3600):
        raise Malformed("expires_in", message_id)
    time = given.get("time")
    if time is not None and not _is_number(time, 0, 1e12):
        raise Malformed("time", message_id)
    actions = given.get("actions")
    if not isinstance(actions, list) or not 0 < len(actions) <= MOST_ACTIONS:
        raise Malformed("actions", message_id)
    if not all(isinstance(action, dict) and _is_text(action.get("action_id")) for action in actions):
        raise Malformed("action_id", message_id)
    if len({action["action_id"] for action in actions}) != len(actions):
        raise Malformed("action_id", message_id)
    return Envelope(message_id, epoch, float(expires_in), time, tuple(read_action(action) for action in actions))


def read_action(action: dict[str, Any]) -> Directive:
    """One action with an action_id; what is wrong with it is its `problem`."""
    action_id, kind = action["action_id"], action.get("action_type")
    if kind not in ACTIONS:
        return Directive(action_id, str(kind)[:MOST_TEXT], problem="unknown_action")
    version = action.get("action_version", "1.0")
    if not isinstance(version, str) or version.split(".")[0] != "1":
        return Directive(action_id, kind, problem="unknown_action")
    payload = action.get("payload", {})
    try:
        if not isinstance(payload, dict):
            raise Malformed("payload")
        read = _read_payload(action_id, kind, payload)
    except Malformed:
        return Directive(action_id, kind, problem="malformed")
    at = payload.get("at", "arrival")
    if at == "arrival":
        return read
    if at != "end" or read.problem is not None or kind not in AT_END:
        return Directive(action_id, kind, problem=read.problem or "malformed")
    return replace(read, at_end=True)


def _read_payload(action_id: str, kind: str, payload: dict[str, Any]) -> Directive:
    if kind == "kv.prefetch":
        return Directive(action_id, kind, problem="synthetic_request")
    if kind == "kv.retain":
        return Directive(action_id, kind, target=_target(payload.get("target")), claim_id=_text(payload.get("claim_id")),
                         ttl=_number(payload.get("ttl_seconds"), 1e-3, 86400),
                         value=_number(payload.get("value", 0.5), 0, 1))
    if kind == "kv.release":
        return Directive(action_id, kind, claim_id=_text(payload.get("claim_id")))
    if kind == "kv.evict":
        mode = payload.get("mode", "first")
        if mode not in ("now", "first"):
            raise Malformed("mode")
        return Directive(action_id, kind, target=_target(payload.get("target")), now=mode == "now")
    if kind == "saga.call":
        return Directive(action_id, kind, thread=_thread(payload.get("thread")),
                         kind=_choice(payload.get("prompt_kind", "start"), PROMPT_KINDS),
                         expected=_optional_seconds(payload.get("expected_seconds")))
    if kind == "saga.ended":
        stop = payload.get("stop_reason")
        tool = payload.get("tool_class", 0)
        session_end = payload.get("session_end", False)
        if not _is_int(tool, 0, 4) or not isinstance(session_end, bool):
            raise Malformed("tool_class")
        return Directive(action_id, kind, thread=_thread(payload.get("thread")),
                         stop_reason=0 if stop is None else _choice(stop, STOP_REASONS), tool_class=tool,
                         session_end=session_end, expected=_optional_seconds(payload.get("expected_seconds")))
    return Directive(action_id, kind)


def _target(given: Any) -> Target:
    if not isinstance(given, dict):
        raise Malformed("target")
    kinds = [name for name in ("hashes", "token_ids", "request_id", "thread") if given.get(name) is not None]
    if len(kinds) != 1:
        raise Malformed("target")
    first = given.get("from_block", 0)
    if not _is_int(first, 0, MOST_TOKENS):
        raise Malformed("from_block")
    if kinds == ["request_id"]:
        return Target(request_id=_text(given["request_id"], 512), from_block=first)
    if kinds == ["thread"]:
        return Target(thread=_thread(given["thread"]), from_block=first)
    if kinds == ["hashes"]:
        return Target(hashes=_hashes(given["hashes"]), from_block=first)
    tokens = given["token_ids"]
    if not isinstance(tokens, list) or not 0 < len(tokens) <= MOST_TOKENS:
        raise Malformed("token_ids")
    if not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        raise Malformed("token_ids")
    salt, lora = given.get("cache_salt"), given.get("lora_name")
    return Target(token_ids=tuple(tokens), cache_salt=None if salt is None else _text(salt, 4096),
                  lora_name=None if lora is None else _text(lora, 4096), from_block=first)


def _hashes(given: Any) -> tuple[bytes, ...]:
    if not isinstance(given, list) or not 0 < len(given) <= MOST_BLOCKS:
        raise Malformed("hashes")
    hashes = []
    for text in given:
        if not isinstance(text, str) or len(text) not in (16, 32, 64):
            raise Malformed("hashes")
        try:
            hashes.append(bytes.fromhex(text))
        except ValueError as error:
            raise Malformed("hashes") from error
        if len(hashes[-1]) * 2 != len(text):
            raise Malformed("hashes")
    return tuple(hashes)


def _is_text(value: Any, most: int = MOST_TEXT) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most


def _is_int(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def _text(value: Any, most: int = MOST_TEXT) -> str:
    if not _is_text(value, most):
        raise Malformed("text")
    return value


def _number(value: Any, least: float, most: float) -> float:
    if not _is_number(value, least, most):
        raise Malformed("number")
    return float(value)


def _optional_seconds(value: Any) -> float | None:
    return None if value is None else _number(value, 0, 1e7)


def _thread(value: Any) -> int:
    if not _is_int(value, 0, 2**64 - 2):
        raise Malformed("thread")
    return value


def _choice(value: Any, choices: dict[str, int]) -> int:
    if not isinstance(value, str) or value not in choices:
        raise Malformed("choice")
    return choices[value]
