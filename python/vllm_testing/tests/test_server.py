"""A real server: cached tokens, events, preemption, modelled time."""

import concurrent.futures
import hashlib
import struct
import time

import cbor2
import msgspec
import zmq
from conftest import BLOCK_SIZE, BLOCKS, STEP_MODEL, TIME_SCALE


def replayed(server) -> list[tuple[int, list]]:
    """Every batch that the server has published: (sequence number, events)."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(server.ready["replay"])
        socket.send_multipart([b"", struct.pack(">Q", 0)])
        batches = []
        while socket.poll(5000):
            *_, sequence, payload = socket.recv_multipart()
            if sequence == b"\xff" * 8:
                socket.linger = 0
                return batches
            batches.append((struct.unpack(">Q", sequence)[0], msgspec.msgpack.decode(payload)[1]))
        raise AssertionError("the replay has no end")


def cached_tokens(usage) -> int:
    return (usage["prompt_tokens_details"] or {"cached_tokens": 0})["cached_tokens"]  # 0.15.1 says null for none


def stored_hashes(batches) -> list[bytes]:
    hashes = []
    for _, events in batches:
        for event in events:
            if isinstance(event, dict) and event["type"] == "BlockStored":
                hashes += event["block_hashes"]
            elif isinstance(event, list) and event[0] == "BlockStored":
                hashes += event[1]
    return hashes


def block_hashes(tokens: list[int]) -> list[bytes]:
    """vLLM's sha256_cbor with PYTHONHASHSEED=0, from its definition."""
    parent = hashlib.sha256(cbor2.dumps("0", canonical=True)).digest()
    hashes = []
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        block = (parent, tuple(tokens[start : start + BLOCK_SIZE]), None)
        parent = hashlib.sha256(cbor2.dumps(block, canonical=True)).digest()
        hashes.append(parent)
    return hashes


def test_200_requests_hit_the_cache_and_publish_events(server):
    with zmq.Context() as context, context.socket(zmq.SUB) as live:
        live.linger = 0
        live.subscribe(b"kv@")
        live.connect(server.ready["events"])
        time.sleep(0.3)  # a subscription that arrives late hears nothing of what was published before
        before = server.report()

        shared = [300 + index for index in range(4 * BLOCK_SIZE)]
        first = server.complete([*shared, 299], 2)
        assert cached_tokens(first["usage"]) == 0

        def request(index):
            return server.complete([*shared, 300 + index, 500], 2)["usage"]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            usages = list(pool.map(request, range(199)))
        assert [cached_tokens(usage) for usage in usages] == [len(shared)] * 199
        assert [usage["completion_tokens"] for usage in usages] == [2] * 199

        assert live.poll(5000)
        topic, sequence, payload = live.recv_multipart()
        assert topic.startswith(b"kv@127.0.0.1:") and len(sequence) == 8
        assert len(msgspec.msgpack.decode(payload)) == 3

    batches = replayed(server)
    assert [sequence for sequence, _ in batches] == list(range(len(batches)))
    hashes = stored_hashes(batches)
    for expected in block_hashes(shared):
        assert hashes.count(expected) == 1

    time.sleep(0.5)
    after = server.report()
    assert after["requests"] - before["requests"] == 200
    assert after["decode_tokens"] - before["decode_tokens"] == 200
    assert after["prefill_tokens"] - before["prefill_tokens"] == len(shared) + 1 + 199 * 2


def test_steps_take_the_modelled_time(server):
    before = server.report()
    prompt = [900 + index % 90 for index in range(33)]
    began = time.monotonic()
    answer = server.complete(prompt, 41)
    seconds = time.monotonic() - began
    assert len(answer["choices"][0]["token_ids"]) == 41
    time.sleep(0.5)
    after = server.report()
    assert after["steps"] - before["steps"] == 41
    modelled = 41 * STEP_MODEL["base"] + 40 * STEP_MODEL["per_call"] + 33 * STEP_MODEL["per_prefill_token"]
    assert abs(after["busy_seconds"] - before["busy_seconds"] - modelled) < 1e-9
    assert seconds >= modelled / TIME_SCALE


def test_preempted_requests_continue_their_answers(server):
    prompts = [[260 + (index * 37 + position) % 800 for position in range(150)] for index in range(12)]
    length = 200  # 12 * 350 tokens do not fit into the cache
    assert 12 * (150 + length) > BLOCKS * BLOCK_SIZE
    before = server.report()
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda prompt: server.complete(prompt, length)["choices"][0], prompts))
    time.sleep(0.5)
    assert server.report()["resumed"] > before["resumed"]
    assert all(choice["finish_reason"] == "length" for choice in together)
    for index in (0, 11):
        alone = server.complete(prompts[index], length)["choices"][0]
        assert together[index]["token_ids"] == alone["token_ids"]


def test_scripted_tokens_and_their_end(server):
    choice = server.complete([300, 301], 10, vllm_xargs={"saga_script": "400,401,402"})["choices"][0]
    assert choice["token_ids"] == [400, 401, 402, 2]
    assert choice["finish_reason"] == "stop"
