"""The directive channel, with an engine thread that is this test. Without vLLM."""

import json
import logging
import time

import pytest

zmq = pytest.importorskip("zmq")

from saga_vllm import channel as channel_module
from saga_vllm import envelope
from saga_vllm.channel import CannotBind, Channel

EPOCH = 12345
KEY = b"0123456789abcdef"


class Peer:
    """A scheduler's end: a DEALER."""

    def __init__(self, endpoint, key=None):
        self.key = key
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def send(self, message_id, *actions, **given):
        body = json.dumps({"protocol_version": "0.1", "message_id": message_id, "actions": list(actions),
                           "time": time.time(), **given}).encode()
        self.socket.send_multipart([body] if self.key is None else [body, envelope.sign(self.key, body)])

    def answer(self, patience=2.0):
        if not self.socket.poll(patience * 1000):
            return None
        frames = self.socket.recv_multipart()
        if self.key is not None:
            assert envelope.signature_fits(self.key, *frames)
        return json.loads(frames[0])

    def outcome(self, patience=2.0):
        answer = self.answer(patience)
        assert answer is not None
        assert len(answer["outcomes"]) == 1
        return answer["outcomes"][0]


def release(action_id="a", claim="c"):
    return {"action_id": action_id, "action_type": "kv.release", "payload": {"claim_id": claim}}


@pytest.fixture
def opened(tmp_path):
    made = []

    def make(key=None):
        channel = Channel(f"ipc://{tmp_path}/{len(made)}", key, EPOCH, lambda: {"strength": "policy"},
                          logging.getLogger("test"))
        peer = Peer(channel.endpoint, key)
        made.append((channel, peer))
        return channel, peer

    yield make
    for channel, peer in made:
        peer.socket.close()
        channel.close()


def take(channel, patience=2.0):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        messages = channel.take()
        if messages:
            return messages
        time.sleep(0.005)
    return []


def test_pending_then_applied(opened):
    channel, peer = opened()
    peer.send("m", release())
    assert peer.outcome() == {"action_id": "a", "status": "pending"}
    assert channel.waiting()
    (message,) = take(channel)
    assert not channel.waiting()
    channel.answer(message, {"action_id": "a", "status": "released"})
    answer = peer.answer()
    assert answer == {"message_id": "m", "epoch": EPOCH, "outcomes": [{"action_id": "a", "status": "released"}]}


def test_a_message_is_carried_out_once(opened):
    channel, peer = opened()
    peer.send("m", release())
    (message,) = take(channel)
    channel.answer(message, {"action_id": "a", "status": "released"})
    assert peer.outcome()["status"] in ("pending", "released")
    time.sleep(0.1)
    while peer.answer(0.05):
        pass
    peer.send("m", release())
    assert peer.outcome() == {"action_id": "a", "status": "released"}
    assert take(channel, 0.1) == []
    assert channel.counters["repeated"] == 1


def test_what_came_on_a_request_is_not_carried_out_again(opened):
    channel, peer = opened()
    message = channel_module.Message(None, envelope.read(
        {"protocol_version": "0.1", "message_id": "r", "actions": [release("a"), release("b")]}))
    channel.adopt(message)
    channel.answer(message, {"action_id": "a", "status": "released"})
    deadline = time.monotonic() + 2
    while not (channel.knows("r") and message.outcomes["a"]) and time.monotonic() < deadline:
        time.sleep(0.005)
    peer.send("r", release("a"), release("b"))
    assert peer.answer()["outcomes"] == [{"action_id": "a", "status": "released"}, {"action_id": "b", "status": "pending"}]
    assert not channel.waiting() and channel.counters["repeated"] == 1
    # Who has asked is told of what comes later.
    channel.answer(message, {"action_id": "b", "status": "released"})
    assert peer.outcome() == {"action_id": "b", "status": "released"}
    assert not channel.knows("another")


def test_the_end_of_a_request_is_that_of_the_one_it_rides_on(opened):
    channel, peer = opened()
    peer.send("m", {"action_id": "a", "action_type": "kv.release", "payload": {"claim_id": "c", "at": "end"}})
    assert peer.outcome() == {"action_id": "a", "status": "refused", "reason": "unsupported"}
    assert not channel.waiting()


def test_epoch(opened):
    channel, peer = opened()
    peer.send("old", release(), epoch=EPOCH - 1)
    assert peer.outcome() == {"action_id": "a", "status": "refused", "reason": "epoch"}
    peer.send("new", release(), epoch=EPOCH)
    (message,) = take(channel)
    assert message.message_id == "new"


def test_expiry_in_an_idle_engine(opened):
    channel, peer = opened()
    peer.send("m", release(), expires_in=0.15)
    assert peer.outcome()["status"] == "pending"
    assert peer.outcome()["status"] == "expired"
    assert not channel.waiting() and channel.take() == []


def test_what_waits_is_bounded(opened, monkeypatch):
    monkeypatch.setattr(channel_module, "MOST_WAITING_BYTES", 100_000)
    channel, peer = opened()
    many = {"action_id": "e", "action_type": "kv.evict", "payload": {"target": {"token_ids": [7] * 10_000}}}  # some 30 kB
    for i in range(5):
        peer.send(f"m{i}", many, expires_in=0.5)
    states = {}
    while len(states) < 5:
        answer = peer.answer()
        states[answer["message_id"]] = answer["outcomes"][0]
    assert [states[f"m{i}"]["status"] for i in range(5)] == ["pending", "pending", "pending", "refused", "refused"]
    assert states["m4"]["reason"] == "memory" and channel.counters["overflow"] == 2
    # Nothing is kept of what expires in an idle engine, nor of what was taken: there is room again.
    assert [peer.outcome()["status"] for _ in range(3)] == ["expired"] * 3
    assert not channel._waiting and all(not message.actions for message in channel._seen.values())
    for turn in range(3):
        for i in range(3):
            peer.send(f"n{turn}-{i}", many)
        taken = []
        while len(taken) < 3:
            taken += take(channel)
        for message in taken:
            assert len(message.actions) == 1
    assert channel.counters["overflow"] == 2
    assert channel._received_bytes == channel._expired_bytes + channel._taken_bytes > 300_000


def test_what_is_remembered_is_bounded(opened, monkeypatch):
    monkeypatch.setattr(channel_module, "REMEMBERED_BYTES", 200_000)
    channel, peer = opened()
    many = [{"action_id": f"{i}" + "x" * 100, "action_type": "kv.prefetch", "payload": {"target": {"token_ids": [1] * 100}}}
            for i in range(50)]
    for i in range(20):
        peer.send(f"m{i}", *many)
        assert len(peer.answer()["outcomes"]) == 50
    assert 1 <= len(channel._seen) < 8 and "m19" in channel._seen and "m0" not in channel._seen
    assert channel._seen_bytes == sum(message.cost() for message in channel._seen.values()) <= 200_000
    peer.send("m19", *many)
    assert [outcome["reason"] for outcome in peer.answer()["outcomes"]] == ["synthetic_request"] * 50
    assert channel.counters["repeated"] == 1


def test_a_state_that_is_asked_for_again_is_told_anew(opened):
    channel, peer = opened()
    status = {"action_id": "s", "action_type": "saga.status"}
    peer.send("m", status)
    assert peer.outcome() == {"action_id": "s", "status": "applied", "strength": "policy"}
    channel._status = lambda: {"strength": "none"}
    peer.send("m", status)
    assert peer.outcome() == {"action_id": "s", "status": "applied", "strength": "none"}
    peer.send("m", release("another"))
    assert peer.outcome() == {"action_id": "another", "status": "refused", "reason": "malformed"}
    assert not channel.waiting()


def test_what_is_answered_without_the_engine(opened):
    channel, peer = opened()
    peer.send("m", {"action_id": "s", "action_type": "saga.status"},
              {"action_id": "p", "action_type": "kv.prefetch", "payload": {}},
              {"action_id": "u", "action_type": "kv.other", "payload": {}},
              {"action_id": "w", "action_type": "kv.retain", "payload": {}})
    outcomes = {outcome["action_id"]: outcome for outcome in peer.answer()["outcomes"]}
    assert outcomes["s"] == {"action_id": "s", "status": "applied", "strength": "policy"}
    assert outcomes["p"]["reason"] == "synthetic_request"
    assert outcomes["u"]["reason"] == "unknown_action"
    assert outcomes["w"]["reason"] == "malformed"
    assert not channel.waiting()


def test_malformed_messages_do_not_end_the_channel(opened):
    channel, peer = opened()
    for frames in [[b""], [b"{"], [b"[]"], [b"x", b"y"], [b"\xff" * 100], [b"", b"", b""]]:
        peer.socket.send_multipart(frames)
    peer.send("m", release(), expires_in="soon")  # has a message_id: is answered
    answer = peer.answer()
    assert answer["message_id"] == "m" and answer["outcomes"][0]["reason"] == "malformed"
    peer.send("good", release())
    assert len(take(channel)) == 1
    assert channel.counters["malformed"] == 7


def test_signatures(opened):
    channel, peer = opened(KEY)
    body = json.dumps({"protocol_version": "0.1", "message_id": "x", "actions": [release()], "time": time.time()}).encode()
    peer.socket.send_multipart([body])
    peer.socket.send_multipart([body, b"\0" * 32])
    peer.socket.send_multipart([body, envelope.sign(b"another key 1234", body)])
    peer.send("late", release(), time=time.time() - 301)
    peer.send("no time", release(), time=None)
    peer.send("good", release())
    (message,) = take(channel)
    assert message.message_id == "good"
    assert channel.counters["unsigned"] == 3 and channel.counters["stale"] == 2
    channel.answer(message, {"action_id": "a", "status": "released"})
    while (outcome := peer.outcome())["status"] == "pending":
        pass
    assert outcome["status"] == "released"


def test_refusing(opened):
    channel, peer = opened()
    peer.send("before", release())
    assert peer.outcome()["status"] == "pending"
    channel.refuse()
    assert peer.outcome() == {"action_id": "a", "status": "refused", "reason": "unsupported"}
    peer.send("after", release())
    assert peer.outcome()["reason"] == "unsupported"
    assert channel.take() == [] and not channel.waiting()


def test_endpoints_that_others_can_reach_need_a_key():
    with pytest.raises(CannotBind, match="directive_key"):
        Channel("tcp://0.0.0.0:0", None, EPOCH, dict, logging.getLogger("test"))


def test_an_endpoint_that_is_taken():
    with zmq.Context.instance().socket(zmq.ROUTER) as other:
        other.bind("tcp://127.0.0.1:*")
        with pytest.raises(CannotBind, match="in use"):
            Channel(other.getsockopt(zmq.LAST_ENDPOINT).decode(), None, EPOCH, dict, logging.getLogger("test"))
