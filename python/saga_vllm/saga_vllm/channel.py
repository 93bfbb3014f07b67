"""The directive channel: a thread with a ZMQ ROUTER that checks messages and hands them to the engine's thread.

The thread does everything that costs time (JSON, signatures, sockets). The engine's thread calls take() at its hooks, carries the
directives out, and calls answer(); both only touch a dict, a deque and one pipe. Nothing of the engine is touched from here.

A message waits until the engine takes it or until it expires; who gets it is decided by taking it out of `_waiting`, which is
atomic. What is not taken within 20 ms is answered `pending`. What became of a message is remembered by message_id, so that a
repeated one is answered and not carried out again: the identifiers and outcomes of the last 4,096, never what was asked for.

Memory, whatever is sent: messages that wait have at most 8 MiB of JSON together (what comes then is refused, `memory`), and what
is remembered is at most 8 MiB by a generous estimate (the oldest goes).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from . import envelope
from .envelope import Directive, Envelope, Malformed

REMEMBERED = 4096
REMEMBERED_BYTES = 8 << 20
MOST_WAITING = 4096
MOST_WAITING_BYTES = 8 << 20
PENDING_AFTER = 0.02
_STATUS: dict[str, Any] = {}  # in the place of an outcome: the state, which is told anew to whoever asks again


class CannotBind(RuntimeError):
    """The endpoint cannot be had."""


class Message:
    """A message that came, whom to answer, and what has been answered. The actions go when they have been dealt with."""

    __slots__ = ("identity", "message_id", "actions", "arrival", "deadline", "size", "outcomes")

    def __init__(self, identity: bytes | None, given: Envelope, size: int = 0) -> None:
        self.identity = identity
        self.message_id = given.message_id
        self.actions = given.actions
        self.arrival = time.monotonic()
        self.deadline = self.arrival + given.expires_in
        self.size = size  # bytes of JSON
        # By action_id the newest. Of the channel's thread alone.
        self.outcomes: dict[str, dict[str, Any] | None] = dict.fromkeys(action.action_id for action in given.actions)

    def cost(self) -> int:
        """Bytes of memory without the actions, rather too many."""
        return 1024 + sys.getsizeof(self.message_id) + sum(512 + sys.getsizeof(name) for name in self.outcomes)


def is_loopback(endpoint: str) -> bool:
    """Whether only processes of this machine can reach it."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("ipc", "inproc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_rank(endpoint: str, rank: int) -> str:
    """The endpoint of a data-parallel rank: the port plus the rank; for others a suffix."""
    if rank == 0:
        return endpoint
    head, colon, port = endpoint.rpartition(":")
    if endpoint.startswith("tcp://") and port.isdigit():
        return f"{head}{colon}{int(port) + rank}"
    return f"{endpoint}_dp{rank}"


class Channel:
    def __init__(self, endpoint: str, key: bytes | None, epoch: int, status: Callable[[], dict[str, Any]],
                 logger: logging.Logger) -> None:
        """Binds and starts the thread. Raises CannotBind."""
        if key is None and not is_loopback(endpoint):
            raise CannotBind(f"{endpoint} can be reached from other machines and there is no directive_key")
        try:
            import zmq
        except ImportError as error:
            raise CannotBind("pyzmq is not installed") from error
        self._zmq = zmq
        self.endpoint = endpoint
        self.epoch = epoch
        self.counters = {"messages": 0, "unsigned": 0, "malformed": 0, "stale": 0, "repeated": 0, "overflow": 0}
        self._key = key
        self._status = status
        self._logger = logger
        self._waiting: dict[int, Message] = {}  # by id(), in the order of arrival
        self._received_bytes = 0  # of messages that had to wait
        self._expired_bytes = 0  # of those that the channel's thread took out again
        self._taken_bytes = 0  # of those that the engine's thread took: each number is written by one thread only
        self._seen: OrderedDict[str, Message] = OrderedDict()
        self._seen_bytes = 0
        self._outbox: deque[tuple[Message, dict[str, Any]]] = deque()
        self._adopted: deque[Message] = deque()
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        self._stop = False
        self._refusing = False
        self._context = zmq.Context(1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.MAXMSGSIZE, envelope.MOST_BYTES)
        self._socket.setsockopt(zmq.RCVHWM, 32)  # of each peer; what comes faster waits with the sender
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise CannotBind(f"{endpoint}: {error}") from error
        self._thread = threading.Thread(target=self._run, name="saga-directives", daemon=True)
        self._thread.start()

    # ---- The engine's thread

    def waiting(self) -> bool:
        return bool(self._waiting)

    def take(self) -> list[Message]:
        """The messages that wait, in order. Costs next to nothing if there are none."""
        if not self._waiting:
            return []
        taken = []
        for number in list(self._waiting):
            message = self._waiting.pop(number, None)
            if message is not None:
                self._taken_bytes += message.size
                taken.append(message)
        return taken

    def knows(self, message_id: str) -> bool:
        """Whether a message of this name has come here."""
        return message_id in self._seen

    def adopt(self, message: Message) -> None:
        """A message that came on a request: who sends it here, too, is answered, and it is not carried out again."""
        self._adopted.append(message)
        self._wake()

    def refuse(self) -> None:
        """From now on nobody takes messages: what waits and what comes is refused, but for saga.status."""
        self._refusing = True
        self._wake()

    def answer(self, message: Message, outcome: dict[str, Any]) -> None:
        """One outcome of one action; may be called later again."""
        self._outbox.append((message, outcome))
        self._wake()

    def close(self) -> None:
        self._stop = True
        self._wake()
        self._thread.join(timeout=2)

    def _wake(self) -> None:
        try:
            os.write(self._pipe[1], b"x")
        except OSError:
            pass  # full: the thread wakes up anyway

    # ---- The channel's thread

    def _run(self) -> None:
        zmq = self._zmq
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._pipe[0], zmq.POLLIN)
        reported: set[int] = set()  # waiting messages that were answered `pending`
        while not self._stop:
            try:
                events = dict(poller.poll(self._patience(reported)))
                if self._pipe[0] in events:
                    os.read(self._pipe[0], 4096)
                self._remember_adopted()
                if self._socket in events:
                    for _ in range(64):
                        try:
                            frames = self._socket.recv_multipart(zmq.NOBLOCK)
                        except zmq.Again:
                            break
                        self._received(frames)
                self._look_at_waiting(reported)
                self._send_answers()
            except Exception:  # noqa: BLE001 - a bad message must not end the channel
                if self._stop:
                    break
                self._logger.exception("SAGA: directive channel")
                time.sleep(0.1)
        self._send_answers()
        self._socket.close()
        self._context.term()
        for end in self._pipe:
            os.close(end)

    def _patience(self, reported: set[int]) -> int:
        if not self._waiting:
            return 1000
        return 10 if any(number not in reported for number in list(self._waiting)) else 100

    def _received(self, frames: list[bytes]) -> None:
        self.counters["messages"] += 1
        identity, parts = frames[0], frames[1:]
        if parts and parts[0] == b"":
            parts = parts[1:]  # the delimiter of a REQ or a careful DEALER
        if len(parts) != (1 if self._key is None else 2):
            self.counters["unsigned" if self._key is not None else "malformed"] += 1
            return
        if self._key is not None and not envelope.signature_fits(self._key, parts[0], parts[1]):
            self.counters["unsigned"] += 1
            return
        try:
            given = envelope.parse(parts[0])
        except Malformed as error:
            self.counters["malformed"] += 1
            if error.message_id is not None:
                self._send(identity, error.message_id, [{"action_id": "", "status": "refused", "reason": "malformed"}])
            return
        if self._key is not None and (given.time is None or abs(time.time() - given.time) > envelope.CLOCK_SKEW):
            self.counters["stale"] += 1
            return
        before = self._seen.get(given.message_id)
        if before is not None:
            self.counters["repeated"] += 1
            before.identity = identity
            self._send(identity, given.message_id, [self._answered(before, action) for action in given.actions])
            return
        message = Message(identity, given, len(parts[0]))
        self._remember(message)
        self._accept(message, given.epoch)

    def _remember(self, message: Message) -> None:
        self._seen[message.message_id] = message
        self._seen_bytes += message.cost()
        while len(self._seen) > REMEMBERED or self._seen_bytes > REMEMBERED_BYTES:
            self._seen_bytes -= self._seen.popitem(last=False)[1].cost()

    def _remember_adopted(self) -> None:
        while self._adopted:
            message = self._adopted.popleft()
            if message.message_id not in self._seen:
                self._remember(message)

    def _answered(self, before: Message, action: Directive) -> dict[str, Any]:
        """To an action of a message that is known."""
        if action.action_id not in before.outcomes:
            return _refused(action, "malformed")
        outcome = before.outcomes[action.action_id]
        if outcome is None:
            return {"action_id": action.action_id, "status": "pending"}
        return self._state(action) if outcome is _STATUS else outcome

    def _state(self, action: Directive) -> dict[str, Any]:
        return {"action_id": action.action_id, "status": "applied", **self._status()}

    def _accept(self, message: Message, epoch: int | None) -> None:
        actions, message.actions = message.actions, ()
        if epoch is not None and epoch != self.epoch:
            self._conclude(message, [_refused(action, "epoch") for action in actions])
            return
        outcomes, left, states = [], [], []
        for action in actions:
            if action.problem is not None:
                outcomes.append(_refused(action, action.problem))
            elif action.action_type == "saga.status":
                states.append(self._state(action))
            elif action.action_type == "saga.call" or action.at_end:
                outcomes.append(_refused(action, "unsupported"))  # belongs on a request
            else:
                left.append(action)
        if self._refusing:
            outcomes += [_refused(action, "unsupported") for action in left]
            left = []
        elif left and self._is_full(message.size):
            self.counters["overflow"] += 1
            outcomes += [_refused(action, "memory") for action in left]
            left = []
        if outcomes or states:
            self._conclude(message, outcomes + states)
            for state in states:
                message.outcomes[state["action_id"]] = _STATUS
        if left:
            message.actions = tuple(left)
            self._received_bytes += message.size
            self._waiting[id(message)] = message

    def _is_full(self, size: int) -> bool:
        waiting = self._received_bytes - self._expired_bytes - self._taken_bytes
        return len(self._waiting) >= MOST_WAITING or waiting + size > MOST_WAITING_BYTES

    def _look_at_waiting(self, reported: set[int]) -> None:
        if not self._waiting:
            reported.clear()
            return
        now = time.monotonic()
        for number, message in list(self._waiting.items()):
            if self._refusing or now >= message.deadline:
                if self._waiting.pop(number, None) is None:
                    continue  # the engine was faster
                self._expired_bytes += message.size
                actions, message.actions = message.actions, ()
                self._conclude(message, [_refused(action, "unsupported") for action in actions] if self._refusing else
                               [{"action_id": action.action_id, "status": "expired"} for action in actions])
            elif number not in reported and now >= message.arrival + PENDING_AFTER:
                reported.add(number)
                self._send(message.identity, message.message_id,
                           [{"action_id": action.action_id, "status": "pending"} for action in message.actions])
        reported.intersection_update(list(self._waiting))

    def _send_answers(self) -> None:
        groups: dict[int, tuple[Message, list[dict[str, Any]]]] = {}
        while self._outbox:
            message, outcome = self._outbox.popleft()
            groups.setdefault(id(message), (message, []))[1].append(outcome)
        for message, outcomes in groups.values():
            self._conclude(message, outcomes)

    def _conclude(self, message: Message, outcomes: list[dict[str, Any]]) -> None:
        for outcome in outcomes:
            message.outcomes[outcome["action_id"]] = outcome
        self._send(message.identity, message.message_id, outcomes)

    def _send(self, identity: bytes | None, message_id: str, outcomes: list[dict[str, Any]]) -> None:
        if identity is None:
            return
        body = json.dumps({"message_id": message_id, "epoch": self.epoch, "outcomes": outcomes}).encode()
        frames = [identity, body] if self._key is None else [identity, body, envelope.sign(self._key, body)]
        try:
            self._socket.send_multipart(frames, self._zmq.NOBLOCK)
        except self._zmq.ZMQError:
            pass  # whoever asked has gone


def _refused(action: Directive, reason: str) -> dict[str, Any]:
    return {"action_id": action.action_id, "status": "refused", "reason": reason}
