"""Reading of envelopes: what is accepted, and that nothing else is. Without vLLM."""

import json

import pytest

from saga_vllm import envelope
from saga_vllm.channel import is_loopback, with_rank
from saga_vllm.settings import BadSetting, Settings


def message(*actions, **given):
    return {"protocol_version": "0.1", "message_id": "m-1", "actions": list(actions), **given}


def action(kind, payload, action_id="a"):
    return {"action_id": action_id, "action_type": kind, "action_version": "1.0", "payload": payload}


def test_retain():
    read = envelope.parse(json.dumps(message(
        action("kv.retain", {"claim_id": "c", "target": {"hashes": ["00" * 32, "ab" * 8]}, "ttl_seconds": 5}),
        epoch=17, expires_in=2.5)).encode())
    assert read.message_id == "m-1" and read.epoch == 17 and read.expires_in == 2.5
    (one,) = read.actions
    assert one.problem is None and one.claim_id == "c" and one.ttl == 5.0 and one.value == 0.5
    assert one.target.hashes == (bytes(32), b"\xab" * 8)


def test_evict_and_ended():
    read = envelope.read(message(
        action("kv.evict", {"target": {"thread": 7}}, "1"),
        action("kv.evict", {"target": {"request_id": "cmpl-x"}, "mode": "now"}, "2"),
        action("saga.ended", {"thread": 7, "stop_reason": "tool_use", "tool_class": 3, "expected_seconds": 1.5}, "3"),
        action("saga.call", {"thread": 2**64 - 2, "prompt_kind": "tool"}, "4"),
        action("kv.evict", {"target": {"token_ids": [1, 2], "cache_salt": "s", "lora_name": "l"}}, "5")))
    first, now, ended, call, tokens = read.actions
    assert not first.now and first.target.thread == 7
    assert now.now and now.target.request_id == "cmpl-x"
    assert (ended.thread, ended.stop_reason, ended.tool_class, ended.expected, ended.session_end) == (7, 1, 3, 1.5, False)
    assert (call.thread, call.kind) == (2**64 - 2, 1)
    assert tokens.target.token_ids == (1, 2) and tokens.target.cache_salt == "s" and tokens.target.lora_name == "l"


def test_the_end_of_a_request_and_the_part_of_a_chain_that_is_meant():
    target = {"request_id": "r", "from_block": 3}
    read = envelope.read(message(
        action("kv.evict", {"target": target, "at": "end"}, "1"),
        action("kv.evict", {"target": target, "at": "arrival"}, "2"),
        action("saga.ended", {"thread": 7, "at": "end"}, "3"),
        action("saga.call", {"thread": 7, "at": "end"}, "4"),
        action("kv.evict", {"target": target, "at": "never"}, "5"),
        action("kv.prefetch", {"at": "end"}, "6"),
        action("kv.evict", {"target": {"thread": 7, "from_block": -1}}, "7"),
        action("kv.evict", {"target": {"thread": 7, "from_block": 1.5}}, "8")))
    assert [(one.problem, one.at_end) for one in read.actions] == [
        (None, True), (None, False), (None, True), ("malformed", False), ("malformed", False),
        ("synthetic_request", False), ("malformed", False), ("malformed", False)]
    assert read.actions[0].target.from_block == 3 and read.actions[2].target is None


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100000, b'"text"', b"1" * 5000,
    json.dumps({}).encode(), json.dumps({"message_id": ""}).encode(), json.dumps({"message_id": "x" * 129}).encode(),
    json.dumps(message()).encode(),
    json.dumps(message(action("kv.evict", {}), epoch="1")).encode(),
    json.dumps(message(action("kv.evict", {}), epoch=True)).encode(),
    json.dumps(message(action("kv.evict", {}), expires_in=-1)).encode(),
    b'{"protocol_version": "0.1", "message_id": "m", "actions": [{"action_id": "a"}], "expires_in": NaN}',
    json.dumps(message(action("kv.evict", {}), protocol_version="1.0")).encode(),
    json.dumps(message(1)).encode(),
    json.dumps(message({"action_type": "kv.evict"})).encode(),
    json.dumps(message(action("kv.evict", {}), action("kv.evict", {}))).encode(),  # one id twice
    json.dumps(message(*[action("kv.release", {"claim_id": "c"}, str(i)) for i in range(1025)])).encode(),
])
def test_malformed_messages(body):
    with pytest.raises(envelope.Malformed):
        envelope.parse(body)


def test_a_body_that_is_too_long():
    with pytest.raises(envelope.Malformed):
        envelope.parse(b" " * (envelope.MOST_BYTES + 1))


@pytest.mark.parametrize(("kind", "payload"), [
    ("kv.retain", {}),
    ("kv.retain", {"claim_id": "c", "target": {"thread": 1}, "ttl_seconds": 0}),
    ("kv.retain", {"claim_id": "c", "target": {"thread": 1}, "ttl_seconds": "5"}),
    ("kv.retain", {"claim_id": "c", "target": {"thread": 1}, "ttl_seconds": 5, "value": 1.5}),
    ("kv.retain", {"claim_id": "c", "target": {"thread": 1}, "ttl_seconds": 5, "value": True}),
    ("kv.retain", {"claim_id": 1, "target": {"thread": 1}, "ttl_seconds": 5}),
    ("kv.retain", {"claim_id": "c", "target": {"thread": 1, "request_id": "r"}, "ttl_seconds": 5}),
    ("kv.release", {"claim_id": ""}),
    ("kv.release", []),
    ("kv.evict", {"target": {"hashes": []}}),
    ("kv.evict", {"target": {"hashes": ["zz" * 8]}}),
    ("kv.evict", {"target": {"hashes": ["00" * 9]}}),
    ("kv.evict", {"target": {"hashes": ["0 " * 8]}}),
    ("kv.evict", {"target": {"hashes": "00" * 8}}),
    ("kv.evict", {"target": {"token_ids": [1.0]}}),
    ("kv.evict", {"target": {"token_ids": [True]}}),
    ("kv.evict", {"target": {"token_ids": [-1]}}),
    ("kv.evict", {"target": {"thread": -1}}),
    ("kv.evict", {"target": {"thread": 2**64 - 1}}),
    ("kv.evict", {"target": {"thread": 1}, "mode": "later"}),
    ("saga.call", {"thread": "1"}),
    ("saga.call", {"thread": 1, "prompt_kind": "other"}),
    ("saga.ended", {"thread": 1, "tool_class": 5}),
    ("saga.ended", {"thread": 1, "stop_reason": "length"}),
    ("saga.ended", {"thread": 1, "session_end": 1}),
    ("saga.ended", {"thread": 1, "expected_seconds": -1}),
])
def test_malformed_actions(kind, payload):
    (one,) = envelope.read(message(action(kind, payload))).actions
    assert one.problem == "malformed"


def test_actions_that_are_not_known_or_never_done():
    read = envelope.read(message(action("kv.copy", {}, "1"), action("kv.prefetch", {"target": {"thread": 1}}, "2"),
                                 {**action("kv.release", {"claim_id": "c"}, "3"), "action_version": "2.0"}))
    assert [one.problem for one in read.actions] == ["unknown_action", "synthetic_request", "unknown_action"]


def test_signatures():
    key, body = b"k" * 16, b"body"
    good = envelope.sign(key, body)
    assert envelope.signature_fits(key, body, good)
    assert not envelope.signature_fits(key, b"bodY", good)
    assert not envelope.signature_fits(b"K" * 16, body, good)
    assert not envelope.signature_fits(key, body, good[:31])
    assert not envelope.signature_fits(key, body, b"")
    # HMAC-SHA256 of RFC 4231, test case 2.
    assert envelope.sign(b"Jefe", b"what do ya want for nothing?").hex() == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")


def test_endpoints():
    assert all(map(is_loopback, ["tcp://127.0.0.1:5757", "tcp://localhost:1", "tcp://[::1]:1", "ipc:///tmp/x"]))
    assert not any(map(is_loopback, ["tcp://*:5757", "tcp://0.0.0.0:1", "tcp://10.0.0.1:1", "tcp://host:1", "tcp://eth0:1"]))
    assert with_rank("tcp://127.0.0.1:5757", 3) == "tcp://127.0.0.1:5760"
    assert with_rank("tcp://127.0.0.1:5757", 0) == "tcp://127.0.0.1:5757"
    assert with_rank("ipc:///tmp/x", 2) == "ipc:///tmp/x_dp2"


def test_settings(tmp_path):
    read = Settings.read({"strength": "leases", "lease_budget": "0.25"}, {"SAGA_STRENGTH": "none", "SAGA_TIME_SCALE": "10"})
    assert (read.strength, read.lease_budget, read.time_scale, read.ghosts) == ("leases", 0.25, 10.0, None)
    for bad in [{"strength": "hard"}, {"lease_budget": 1}, {"time_scale": 0}, {"ghosts": -1}, {"nothing": 1},
                {"time_scale": "nan"}, {"directive_endpoint": 5}]:
        with pytest.raises(BadSetting):
            Settings.read(bad, {})
    (tmp_path / "key").write_text("0123456789abcdef\n")
    assert Settings.read({"directive_key_file": str(tmp_path / "key")}, {}).key() == b"0123456789abcdef"
    assert Settings.read({}, {}).key() is None
    with pytest.raises(BadSetting):
        Settings.read({"directive_key": "short"}, {}).key()
    with pytest.raises(BadSetting):
        Settings.read({"directive_key_file": str(tmp_path / "none")}, {}).key()
