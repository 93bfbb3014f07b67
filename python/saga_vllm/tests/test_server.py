"""A whole vLLM server with the connector, through vllm_testing's launcher, and directives over the channel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from engine import BLOCK, prompt

PYTHON = Path(__file__).resolve().parents[2]


class Server:
    def __init__(self, folder: Path, env: str, connector: dict, blocks: int = 400) -> None:
        launcher = PYTHON / "vllm_testing" / "server.py"
        if not launcher.exists():
            pytest.skip("no vllm_testing beside this package")
        transfer = {"kv_connector": "SagaConnector", "kv_connector_module_path": "saga_vllm.connector",
                    "kv_role": "kv_producer", "kv_connector_extra_config": connector}
        self.log = folder / "vllm.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm_testing.server", "--env", env, "--executor", "fake", "--block-size", str(BLOCK),
             "--blocks", str(blocks), "--connector", json.dumps(transfer), "--python-path", str(PYTHON / "saga_vllm"),
             "--log", str(self.log), "--log-level", "INFO", "--until", "stdin"],
            cwd=PYTHON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(PYTHON)})
        line = self.process.stdout.readline()
        self.ready = json.loads(line) if line else {"ready": False}
        assert self.ready["ready"], self.log.read_text()[-3000:] if self.log.exists() else line

    def complete(self, tokens: list[int], max_tokens: int = 2, **more) -> int:
        """Returns the cached tokens of the prompt."""
        body = {"model": self.ready.get("model", "tiny"), "prompt": tokens, "max_tokens": max_tokens, "temperature": 0, **more}
        request = urllib.request.Request(self.ready["url"] + "/v1/completions", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            usage = json.load(answer)["usage"]
        return (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture
def server(tmp_path):
    made = []

    def make(env, connector):
        made.append(Server(tmp_path, env, connector))
        return made[-1]

    yield make
    for one in made:
        one.close()


def environment() -> str:
    """The name of the environment that runs these tests, for the launcher."""
    import vllm.version

    return {"0.33": "latest", "0.32": "cpu", "0.15": "baseline"}[".".join(vllm.version.__version__.split(".")[:2])]


def test_directives_in_a_server(server, library, tmp_path):
    pytest.importorskip("zmq")
    from test_channel import Peer

    if environment() == "baseline":
        pytest.skip("0.15.1 is not supported")
    endpoint = f"ipc://{tmp_path}/directives"
    one = server(environment(), {"directive_endpoint": endpoint})
    peer = Peer(endpoint)
    chain = prompt(1, 100 * BLOCK)
    params = {"kv_transfer_params": {"saga": {"protocol_version": "0.1", "message_id": "c", "actions": [
        {"action_id": "c", "action_type": "saga.call", "payload": {"thread": 41, "prompt_kind": "start"}}]}}}
    assert one.complete(chain, **params) == 0
    peer.send("status", {"action_id": "s", "action_type": "saga.status"})
    status = peer.outcome(10)
    assert status["strength"] == "policy", status
    assert status["counters"]["requests_with_thread"] == 1
    # The engine sleeps: pending, until a request of one token wakes it.
    peer.send("retain", {"action_id": "r", "action_type": "kv.retain",
                         "payload": {"claim_id": "c", "target": {"thread": 41}, "ttl_seconds": 600}})
    assert peer.outcome(10)["status"] == "pending"
    one.complete([5, 6, 7], 1)
    outcome = peer.outcome(10)
    assert (outcome["status"], outcome["missing"]) == ("applied", 0) and outcome["blocks"] == 100
    for i in range(30):
        one.complete(prompt(100 + i, 60 * BLOCK))
    assert one.complete(chain + [9], **params) == 100 * BLOCK
    peer.send("evict", {"action_id": "e", "action_type": "kv.evict", "payload": {"target": {"thread": 41}, "mode": "now"}})
    time.sleep(0.1)
    one.complete([5, 6, 7], 1)
    outcomes = {}
    while peer.socket.poll(3000) and len(outcomes) < 2:
        for outcome in peer.answer()["outcomes"]:
            if outcome["status"] != "pending":
                outcomes[outcome["action_id"]] = outcome
    assert outcomes["e"]["status"] == "applied" and outcomes["e"]["blocks"] >= 100
    assert (outcomes["r"]["status"], outcomes["r"]["reason"]) == ("revoked", "reused")
    assert one.complete(chain + [9]) == 0
    peer.socket.close()
    assert "SAGA: strength policy" in one.log.read_text()


def test_a_version_that_is_not_supported(server):
    if environment() != "baseline":
        pytest.skip("this vLLM is supported")
    one = server("baseline", {"directive_endpoint": ""})
    assert "vLLM 0.15.1 is not supported; 0.32 and 0.33 are" in one.log.read_text()
    chain = prompt(1, 10 * BLOCK)
    assert one.complete(chain) == 0
    assert one.complete(chain + [5]) == 10 * BLOCK
