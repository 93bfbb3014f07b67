"""The connector in vLLM's real scheduler (tests/engine.py)."""

from __future__ import annotations

import itertools
import random
import time
from array import array
from types import SimpleNamespace

import pytest

from engine import BLOCK, Engine, prompt

QUIET = {"directive_endpoint": ""}


numbers = itertools.count()


def envelope(kind, payload):
    return {"protocol_version": "0.1", "message_id": f"m{next(numbers)}",
            "actions": [{"action_id": "a", "action_type": kind, "action_version": "1.0", "payload": payload}]}


def call(thread, kind="start", **more):
    return envelope("saga.call", {"thread": thread, "prompt_kind": kind, **more})


@pytest.fixture
def engine(library):
    made = []

    def make(blocks=200, **given):
        engine = Engine(blocks, **given)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


def order_of(engine):
    order = engine.connector._order
    assert order is not None, engine.connector._reason
    return order


def flood(engine, count, length=300, seed=1000):
    for i in range(count):
        engine.serve(prompt(seed + i, length), 4)


def removed(engine):
    return [event.block_hashes[0] for event in engine.events if type(event).__name__ == "BlockRemoved"]


# ---- The order of victims


def mixed_workload(engine, seed=5):
    """Sessions that grow and come back, some at the same time; every prompt ends inside a block, so no block is computed twice."""
    random_ = random.Random(seed)
    system = prompt(1, 4 * BLOCK)
    sessions = [prompt(100 + i, 40 + i, system) for i in range(12)]
    engine.serve(system + [7], 1)
    hits = []
    for turn in range(60):
        some = random_.sample(range(len(sessions)), random_.choice([1, 1, 2, 3]))
        names = []
        for i in some:
            if len(sessions[i]) > 600:
                sessions[i] = prompt(5000 + turn * 20 + i, 40, system)
            sessions[i] = prompt(10000 + turn * 20 + i, random_.randrange(20, 120), sessions[i])
            if len(sessions[i]) % BLOCK == 0:
                sessions[i].append(11)
            names.append(engine.request(sessions[i], random_.randrange(1, 40), session=f"s{i}"))
        engine.run()
        hits += [engine.hits[name] for name in names]
        # The shared beginning stays in use or in the cache, else two requests of a turn would both compute it.
        engine.serve(system + [7], 1)
    return hits


def test_with_lru_victims_are_those_of_stock_vllm(engine):
    stock, ours = engine(130), engine(130, connector={**QUIET, "order": "lru"})
    hits = mixed_workload(stock), mixed_workload(ours)
    assert removed(stock), "nothing was evicted: the test shows nothing"
    assert len(removed(stock)) > 500
    assert removed(ours) == removed(stock)
    assert hits[0] == hits[1]
    assert order_of(ours).verify()


class Recorder:
    """What happens to a pool, seen from outside of the connector: its methods are wrapped on the instance."""

    def __init__(self, engine):
        self.events = []
        order = order_of(engine)
        self.now = order.clock()
        order.clock = lambda: self.now
        pool, scheduler = engine.pool, engine.scheduler
        take, touch, free, cache = pool.get_new_blocks, pool.touch, pool.free_blocks, pool.cache_full_blocks
        add, end, preempt, slots = (scheduler.add_request, scheduler._free_request, scheduler._preempt_request,
                                    scheduler.kv_cache_manager.allocate_slots)
        schedule = scheduler.schedule

        def get_new_blocks(count):
            blocks = take(count)
            self.note("take", [block.block_id for block in blocks])
            return blocks

        def touched(blocks):
            self.note("pin", [block.block_id for block in blocks if block.ref_cnt == 0 and not block.is_null])
            touch(blocks)

        def free_blocks(blocks):
            blocks = list(blocks)
            last = [block for block in blocks if block.ref_cnt == 1]
            self.note("free first", [block.block_id for block in last if block.block_hash is None])
            self.note("free", [block.block_id for block in last if block.block_hash is not None])
            free(blocks)

        def cache_full_blocks(**given):
            cache(**given)
            request, blocks, cached, full = (
                given[name] for name in ("request", "blocks", "num_cached_blocks", "num_full_blocks"))
            if full > cached:
                hashes = [int.from_bytes(digest[-8:], "big") for digest in request.block_hashes[:full]]
                self.note("store", hashes[cached - 1] if cached else None, hashes[cached:],
                          [block.block_id for block in blocks[cached:full]], request, cached)

        def add_request(request):
            self.note("add", request, list(request.block_hashes))
            add(request)

        def free_request(request, **given):
            self.note("end", request)
            return end(request, **given)

        def preempt_request(request, *given, **more):
            self.note("preempt", request)
            preempt(request, *given, **more)

        def allocate_slots(request, *given, **more):
            self.note("allocate", request)
            return slots(request, *given, **more)

        def scheduled():
            self.now += 50_000
            output = schedule()
            self.note("step")
            return output

        pool.get_new_blocks, pool.touch, pool.free_blocks, pool.cache_full_blocks = (
            get_new_blocks, touched, free_blocks, cache_full_blocks)
        scheduler.add_request, scheduler._free_request, scheduler._preempt_request = add_request, free_request, preempt_request
        scheduler.kv_cache_manager.allocate_slots = allocate_slots
        scheduler.schedule = scheduled

    def note(self, *event):
        self.events.append((self.now, *event))


def replay(events, blocks, threads):
    """A second evictor, told in the order of docs/vllm-connector.md (of a prompt's blocks at once); gives what it would have
    taken."""
    from array import array

    from saga_vllm import native

    evictor = native.Evictor(blocks, BLOCK, ghosts=100000)
    evictor.take(1, 0)
    numbers, waiting, preempted = {}, set(), []
    stored = {}
    arriving = None
    taken = []
    begun = set()  # requests whose first step since they started (again) it is
    answers = {}  # of the others: blocks behind the prompt, told when they end

    def store(parent, hashes, ids):
        evictor.store(parent, array("Q", hashes), ids)
        stored.update(zip(ids, hashes))

    def arrive():
        nonlocal arriving
        if arriving in waiting:
            waiting.discard(arriving)
            begun.add(arriving)
            evictor.start(numbers[arriving], threads[arriving], array("Q"), 0, now)
        arriving = None

    for now, kind, *rest in events:
        if kind == "add":
            name = rest[0].request_id
            numbers[name] = len(numbers)
            waiting.add(name)
            hashes = array("Q", [int.from_bytes(digest[-8:], "big") for digest in rest[1]])
            evictor.start(numbers[name], threads[name], hashes, 0, now)
            evictor.preempt([numbers[name]], now)
        elif kind == "allocate":
            arriving = rest[0].request_id if rest[0].request_id in waiting else None
        elif kind == "pin" and rest[0]:
            arrive()
            evictor.pin(rest[0])
        elif kind == "take" and rest[0]:
            arrive()
            taken.append((rest[0], list(evictor.take(len(rest[0]), now))))
            if taken[-1][0] != taken[-1][1]:
                return taken
            for block in rest[0]:
                stored.pop(block, None)
        elif kind == "free first" and rest[0]:
            evictor.unpin(rest[0])
            evictor.prefer(rest[0])
        elif kind == "free" and rest[0]:
            for name in preempted:
                for given in answers.pop(name, ()):
                    store(*given)
            evictor.unpin(rest[0])
        elif kind == "store":
            *given, request, cached = rest
            if request.request_id in begun or cached < request.num_prompt_tokens // BLOCK:
                store(*given)
            else:
                answers.setdefault(request.request_id, []).append(given)
        elif kind == "preempt":
            preempted.append(rest[0].request_id)
        elif kind == "step":
            arriving = None
            begun.clear()
            if preempted:
                evictor.preempt([numbers[name] for name in sorted(preempted)], now)
                waiting.update(preempted)
                preempted = []
        elif kind == "end":
            request = rest[0]
            for given in answers.pop(request.request_id, ()):
                store(*given)
            deepest = native.NONE
            if request.request_id not in waiting:
                ids = {value: block for block, value in stored.items()}
                for digest in request.block_hashes:
                    block = ids.get(int.from_bytes(digest[-8:], "big"))
                    if block is None:
                        break
                    deepest = block
            evictor.end(numbers[request.request_id], deepest, None, request.num_output_tokens, now)
    return taken


@pytest.mark.parametrize("pressure", ["light", "preemptions"])
def test_victims_are_those_of_the_native_policy(engine, pressure):
    blocks = 150 if pressure == "light" else 90
    ours = engine(blocks, connector={**QUIET, "ghosts": 100000}, max_num_seqs=8, max_num_batched_tokens=256)
    recorder = Recorder(ours)
    random_ = random.Random(17)
    system = prompt(1, 3 * BLOCK)
    sessions = [prompt(50 + i, 30 + 7 * i, system) for i in range(10)]
    threads = {}
    turn = 0
    while turn < 150:
        if len(ours.scheduler.requests) < 5 and random_.random() < 0.6:
            turn += 1
            i = random_.randrange(len(sessions))
            if len(sessions[i]) > 500:
                sessions[i] = prompt(7000 + turn, 50, system)
            sessions[i] = prompt(20000 + turn, random_.randrange(10, 90), sessions[i])
            name = f"request-{turn}"
            threads[name] = 1000 + i
            ours.request(sessions[i], random_.randrange(1, 60 if pressure == "light" else 250), name=name,
                         saga=call(1000 + i))
        ours.step()
    ours.run()
    taken = replay(recorder.events, blocks, threads)
    assert order_of(ours).verify()
    preemptions = sum(1 for event in recorder.events if event[1] == "preempt")
    assert (preemptions > 5) == (pressure == "preemptions"), preemptions
    assert order_of(ours).evictor.stats()["evicted_total"] > 300
    for number, (real, expected) in enumerate(taken):
        assert real == expected, f"allocation {number} of {len(taken)}"


def test_requests_that_wait_protect_what_they_will_find(engine):
    ours = engine(100, connector=QUIET, max_num_seqs=1)
    for i in range(3):
        ours.serve(prompt(i, 20 * BLOCK), 1, session=f"s{i}")
    ours.request(prompt(50, 40), 60 * BLOCK)  # runs, and comes to need most of the pool
    ours.step()
    waits = ours.request(prompt(0, 20 * BLOCK) + [5], 1, session="s0")  # the oldest: the first to go otherwise
    ours.run()
    assert ours.hits[waits] == 20 * BLOCK


@pytest.mark.parametrize("length", [8, 16, 20, 32])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_low_bytes_of_digests(length, count):
    from saga_vllm.order import low8

    digests = [random.Random(count * 100 + i).randbytes(length) for i in range(count)]
    assert list(low8(digests)) == [int.from_bytes(digest[-8:], "big") for digest in digests]


# ---- Outcomes


def test_an_ended_session_goes_first(engine):
    ours = engine(100, connector=QUIET)
    ours.serve(prompt(1, 30 * BLOCK), 1, saga=call(1))
    ours.serve(prompt(2, 30 * BLOCK), 1, saga=call(2))
    ours.serve(prompt(3, BLOCK), 1, saga=envelope("saga.ended", {"thread": 2, "session_end": True, "stop_reason": "end_turn"}))
    ours.serve(prompt(4, 50 * BLOCK), 1)
    assert ours.cached(prompt(1, 30 * BLOCK)) == 30
    assert ours.cached(prompt(2, 30 * BLOCK)) < 20


def test_threads_of_requests(engine):
    ours = engine(connector=QUIET)
    order = order_of(ours)
    seen = []
    came = order.request_came
    order.request_came = lambda request, thread, kind: (seen.append((thread, kind)), came(request, thread, kind))
    ours.serve(prompt(1, 20), saga=call(77, "tool"), session="x")
    ours.serve(prompt(2, 20), session="x")
    ours.serve(prompt(3, 20), session="x")
    ours.serve(prompt(4, 20), session="y")
    ours.serve(prompt(5, 20))
    ours.serve(prompt(6, 20), saga={"nonsense": 1})
    threads = [thread for thread, _ in seen]
    assert seen[0] == (77, 1)
    assert threads[1] == threads[2] != threads[3] and threads[1] < 2**64 - 1
    assert threads[4] == threads[5] == 2**64 - 1
    assert ours.connector._counters["malformed_on_requests"] == 1


def test_directives_speak_of_seconds_of_the_wall(engine):
    from saga_vllm import native

    ours = engine(connector={**QUIET, "time_scale": 20})
    order, leases = order_of(ours), ours.connector._leases
    gaps = []
    told = order.told
    order.told = lambda thread, outcome: (gaps.append(outcome.declared_gap_us), told(thread, outcome))[1]
    ours.serve(prompt(1, 5 * BLOCK), 1, saga=call(1, expected_seconds=3), name="kept")
    ended = envelope("saga.ended", {"thread": 1, "stop_reason": "tool_use", "expected_seconds": 1.5})
    ours.serve(prompt(2, 20), 1, saga=ended)
    ours.serve(prompt(3, 20), 1, saga=envelope("saga.ended", {"thread": 1, "stop_reason": "tool_use"}))
    assert gaps == [60_000_000, 30_000_000, native.NOT_DECLARED]  # of the policy's clock
    before = time.monotonic()
    ours.serve(prompt(4, 20), 1, saga=envelope("kv.retain", {"claim_id": "c", "target": {"request_id": "kept"}, "ttl_seconds": 2}))
    assert 1.9 <= leases.leases["c"].deadline - before <= 3
    first = order.clock()
    time.sleep(0.05)
    assert 900_000 <= order.clock() - first <= 20_000_000


def test_a_message_on_requests_is_carried_out_once(engine):
    ours = engine(connector=QUIET)
    connector, order = ours.connector, order_of(ours)
    seen = []
    came = order.request_came
    order.request_came = lambda request, thread, kind: (seen.append(thread), came(request, thread, kind))
    ours.serve(prompt(1, 10 * BLOCK), 1, name="kept")
    evict = {"action_id": "e", "action_type": "kv.evict", "payload": {"target": {"request_id": "kept"}, "mode": "now"}}
    who = {"action_id": "c", "action_type": "saga.call", "payload": {"thread": 5}}

    def message(message_id, **more):
        return {"protocol_version": "0.1", "message_id": message_id, "actions": [evict, who], **more}

    for epoch, left in [(connector._epoch - 1, 10), (connector._epoch, 0)]:
        ours.serve(prompt(2, 20), 1, saga=message(f"m{epoch}", epoch=epoch))
        assert ours.cached(prompt(1, 10 * BLOCK)) == left
    ours.serve(prompt(1, 10 * BLOCK), 1, name="kept")
    ours.serve(prompt(3, 20), 1, saga=message(f"m{connector._epoch}", epoch=connector._epoch))
    assert ours.cached(prompt(1, 10 * BLOCK)) == 10 and connector._counters["repeated_on_requests"] == 1
    ours.serve(prompt(3, 20), 1, saga=message("another", expires_in=0))  # it begins when it arrives
    assert ours.cached(prompt(1, 10 * BLOCK)) == 0
    assert [thread for thread in seen if thread == 5] == [5] * 4  # whose call it is holds for every request
    for i in range(5000):
        connector._read_request(SimpleNamespace(request_id="x", kv_transfer_params={"saga": {**message(f"n{i}"), "actions": [evict]}}))
    assert len(connector._seen_on_requests) == 4096 and "n904" in connector._seen_on_requests


@pytest.mark.parametrize("strength", ["policy", "leases"])
def test_what_is_to_be_done_when_the_request_has_ended(engine, strength):
    ours = engine(200, connector={**QUIET, "strength": strength})
    connector = ours.connector
    system = prompt(9, 4 * BLOCK)

    def end(kind, payload):
        return envelope(kind, {**payload, "at": "end"})

    retain = end("kv.retain", {"claim_id": "c", "target": {"request_id": "kept"}, "ttl_seconds": 60})
    name = ours.request(prompt(1, 6 * BLOCK, system), 20, name="cmpl-kept-0", saga=retain)
    ours.step()
    assert connector._leases.leases == {} and list(connector._at_end) == [name]
    while ours.scheduler.has_unfinished_requests():
        ours.step()
    # An engine that becomes idle carries it out first.
    assert connector.has_pending_push_work() and connector._at_end == {}
    ours.step()
    assert not connector.has_pending_push_work()
    # 10 blocks of the prompt, and one of 16 tokens of the answer.
    assert len(connector._leases.leases["c"].blocks) == 11
    # The same claim again takes its place.
    ours.serve(prompt(2, 20), 1, saga=envelope("kv.retain", {
        "claim_id": "c", "target": {"request_id": "kept", "from_block": 4}, "ttl_seconds": 60}))
    assert len(connector._leases.leases["c"].blocks) == 7 and len(connector._leases.leases) == 1
    ours.serve(prompt(2, 20), 1, saga=end("kv.release", {"claim_id": "c"}))
    ours.step()
    assert connector._leases.leases == {}
    # The next victims, but for what others have too. Without it the oldest would go.
    last = end("kv.evict", {"target": {"request_id": "last"}, "mode": "first"})
    last["actions"][0]["payload"]["target"]["from_block"] = 4
    ours.serve(prompt(3, 30 * BLOCK), 1, name="older")
    ours.serve(prompt(4, 20 * BLOCK, system), 1, name="last", saga=last)
    ours.step()
    free = ours.pool.get_num_free_blocks() - sum(
        1 for block in ours.pool.blocks if block.block_hash is not None and block.ref_cnt == 0)
    ours.serve(prompt(5, (free + 8) * BLOCK), 1)
    assert ours.cached(prompt(3, 30 * BLOCK)) == 30
    assert 4 <= ours.cached(prompt(4, 20 * BLOCK, system)) < 24


def test_who_has_a_key_takes_no_leases_from_requests(engine, tmp_path):
    for key, expected in [({}, ["saga.call", "saga.ended", "kv.retain", "kv.release", "kv.evict"]),
                          ({"directive_key": "0123456789abcdef"}, ["saga.call", "saga.ended"])]:
        ours = engine(connector={"directive_endpoint": "", **key})
        state = ours.connector._status()
        assert state["request_actions"] == expected
        ours.serve(prompt(1, 5 * BLOCK), 1, name="r", saga=envelope("kv.retain", {
            "claim_id": "c", "target": {"request_id": "r"}, "ttl_seconds": 60, "at": "end"}))
        ours.step()
        assert list(ours.connector._leases.leases) == ([] if key else ["c"])


def test_hints_of_requests_are_read_where_servers_take_them(engine, tmp_path):
    from saga_vllm.connector import servers_take_hints

    # 0.32 and 0.33 have none, or the engine alone has them.
    assert engine(connector=QUIET).connector._status()["request_members"] == ["kv_transfer_params"]
    assert not servers_take_hints(tmp_path)
    for name, taken in [("completion", False), ("chat_completion", True)]:
        folder = tmp_path / "entrypoints" / "openai" / name
        folder.mkdir(parents=True)
        (folder / "protocol.py").write_text("class Request:\n    kv_hints: dict | None = None\n")
        assert servers_take_hints(tmp_path) == taken


def test_a_message_that_came_by_the_channel_is_not_carried_out_again(engine, tmp_path):
    ours = engine(connector={**QUIET, "directive_endpoint": f"ipc://{tmp_path}/directives"})
    connector = ours.connector
    ours.serve(prompt(1, 5 * BLOCK), 1, name="kept")
    evict = envelope("kv.evict", {"target": {"request_id": "kept"}, "mode": "now"})
    connector._channel._seen[evict["message_id"]] = object()
    ours.serve(prompt(2, 20), 1, saga=evict)
    assert ours.cached(prompt(1, 5 * BLOCK)) == 5 and connector._counters["repeated_on_requests"] == 1


# ---- Leases


@pytest.mark.parametrize("strength", ["policy", "leases"])
def test_a_retained_chain_survives_what_evicts_it_otherwise(engine, strength):
    chain = prompt(1, 40 * BLOCK)
    for setting, expected in [(None, 0), ({**QUIET, "strength": strength}, 40 * BLOCK)]:
        one = engine(200, connector=setting)
        one.serve(chain, 1, name="kept")
        retain = envelope("kv.retain", {"claim_id": "c", "target": {"request_id": "kept"}, "ttl_seconds": 600})
        one.serve(prompt(2, 20), 1, saga=retain if setting else None)
        flood(one, 60)
        assert one.serve(chain + [5], 1) == expected
        if setting:
            assert one.connector._leases.verify() and one.connector._status()["leased_blocks"] == 40


@pytest.mark.parametrize("strength", ["policy", "leases"])
def test_leases_never_stop_the_engine(engine, strength):
    one = engine(120, connector={**QUIET, "strength": strength, "lease_budget": 0.5}, max_num_batched_tokens=512)
    kept = [prompt(i, 20 * BLOCK) for i in range(3)]
    for i, chain in enumerate(kept):
        one.serve(chain, 1, name=f"kept{i}")
        one.serve(prompt(90 + i, 20), 1, saga=envelope("kv.retain", {
            "claim_id": f"c{i}", "target": {"request_id": f"kept{i}"}, "ttl_seconds": 600, "value": 0.1 + 0.2 * i}))
    leases = one.connector._leases
    assert set(leases.leases) == {"c0", "c1", "c2"} and len(leases.holders) == leases.budget
    ended = []
    for lease in leases.leases.values():
        lease.ended = lambda status, reason, claim=lease.claim: ended.append((claim, status, reason))
    for i in range(4):  # each needs nearly all of the pool
        one.request(prompt(500 + i, 100 * BLOCK), 30)
    for i in range(20):
        one.request(prompt(600 + i, 10 * BLOCK), 100)
    one.run(20000)
    assert one.connector._strength == strength
    assert one.pool.get_num_free_blocks() == 119
    assert [claim for claim, status, reason in ended if (status, reason) == ("revoked", "memory")][:2] == ["c0", "c1"]
    assert leases.verify()
    if strength == "policy":
        assert order_of(one).verify()


@pytest.mark.parametrize("strength", ["policy", "leases"])
@pytest.mark.parametrize("running", [False, True])
def test_a_reset_succeeds_and_ends_leases(engine, strength, running):
    one = engine(200, connector={**QUIET, "strength": strength})
    chain = prompt(1, 30 * BLOCK)
    one.serve(chain, 1, name="kept")
    one.serve(prompt(2, 20), 1, saga=envelope("kv.retain", {"claim_id": "c", "target": {"request_id": "kept"}, "ttl_seconds": 60}))
    ended = []
    one.connector._leases.leases["c"].ended = lambda status, reason: ended.append((status, reason))
    if running:
        one.request(chain + [9] * 50, 20)
        one.step()
        one.step()
    assert one.scheduler.reset_prefix_cache(reset_running_requests=running)
    one.run()
    assert one.serve(prompt(3, 40), 1) == 0
    assert ended == [("revoked", "reset")]
    assert any(type(event).__name__ == "AllBlocksCleared" for event in one.events)
    assert one.connector._status()["leases"] == 0
    flood(one, 30)
    assert one.pool.get_num_free_blocks() == 199
    if strength == "policy":
        assert order_of(one).verify()


def test_a_lease_on_blocks_in_use(engine):
    one = engine(100, connector=QUIET)
    chain = prompt(1, 20 * BLOCK)
    name = one.request(chain, 50)
    one.step()
    one.serve(prompt(2, 20), 1, saga=envelope("kv.retain", {"claim_id": "c", "target": {"request_id": name}, "ttl_seconds": 60}))
    assert order_of(one).verify()
    one.run()
    assert order_of(one).verify()
    flood(one, 30)
    assert one.serve(chain + [5], 1) == 20 * BLOCK
    one.serve(prompt(3, 20), 1, saga=envelope("kv.release", {"claim_id": "c"}))
    assert order_of(one).verify() and one.connector._status()["leased_blocks"] == 0


# ---- Evictions


@pytest.mark.parametrize("strength", ["policy", "leases"])
def test_evict_now(engine, strength):
    one = engine(200, connector={**QUIET, "strength": strength})
    chain = prompt(1, 10 * BLOCK)
    one.serve(chain, 1, name="gone")
    one.serve(chain, 1)  # computes the last block once more: there are two copies of it
    one.events.clear()
    one.serve(prompt(2, 20), 1, saga=envelope("kv.evict", {"target": {"request_id": "gone"}, "mode": "now"}))
    assert len(removed(one)) == 11 and len(set(removed(one))) == 10
    assert one.cached(chain) == 0
    first = [block.block_id for block in one.pool.free_block_queue.get_all_free_blocks()[:11]]
    taken = one.pool.free_block_queue.popleft_n(9)
    assert {block.block_id for block in taken} <= set(first)
    one.pool.free_block_queue.prepend_n(taken)
    assert one.serve(chain, 1) == 0
    if strength == "policy":
        assert order_of(one).verify()


@pytest.mark.parametrize("strength", ["policy", "leases"])
def test_evict_first(engine, strength):
    one = engine(100, connector={**QUIET, "strength": strength})
    old, chain = prompt(1, 40 * BLOCK), prompt(2, 40 * BLOCK)
    one.serve(old, 1)
    one.serve(chain, 1, name="first")
    one.events.clear()
    one.serve(prompt(3, 5), 1, saga=envelope("kv.evict", {"target": {"request_id": "first"}}))
    assert len(removed(one)) == 1 and one.cached(chain) == 39  # that request took the first
    assert one.serve(chain[:10 * BLOCK] + [5], 1) == 10 * BLOCK  # hit until then
    one.serve(prompt(4, 40 * BLOCK), 1)
    assert one.cached(old) == 40 if strength == "policy" else one.cached(old) >= 30
    assert 10 <= one.cached(chain) < 30
    if strength == "policy":
        assert order_of(one).verify()


def test_targets(engine):
    one = engine(200, connector=QUIET)
    chain = prompt(1, 10 * BLOCK)
    one.serve(chain, 1, name="cmpl-abc-0-12345678", saga=call(5))
    digests = [digest.hex() for digest in one.requests["cmpl-abc-0-12345678"].block_hashes]
    resolver = one.connector._resolver
    from saga_vllm.envelope import read_action

    def blocks(**target):
        read = read_action({"action_id": "a", "action_type": "kv.evict", "payload": {"target": target}})
        assert read.problem is None
        resolver.forget_scan()
        found, missing = resolver.blocks(read.target)
        return [block.block_id for block in found], missing

    whole = blocks(hashes=digests)
    assert len(whole[0]) == 10 and whole[1] == 0
    assert blocks(hashes=[digest[-16:] for digest in digests]) == whole
    assert blocks(token_ids=chain) == whole
    assert blocks(thread=5) == whole
    assert blocks(request_id="cmpl-abc-0-12345678") == whole and blocks(request_id="abc") == whole
    assert blocks(request_id="ab") == ([], 0) and blocks(thread=6) == ([], 0)
    assert blocks(hashes=digests[:3] + ["00" * 32] + digests[4:]) == (whole[0][:3], 7)
    assert blocks(token_ids=chain, cache_salt="other") == ([], 10)
    order_of(one)._by_low.clear()
    assert blocks(hashes=[digest[-16:] for digest in digests]) == whole  # by looking at every block


# ---- The channel in an engine


def test_the_channel_of_an_idle_engine(engine, tmp_path):
    pytest.importorskip("zmq")
    endpoint = f"ipc://{tmp_path}/directives"
    one = engine(200, connector={"directive_endpoint": endpoint, "directive_key": "0123456789abcdef"})
    from test_channel import KEY, Peer

    peer = Peer(endpoint, KEY)
    one.serve(prompt(1, 10 * BLOCK), 1, saga=call(9))
    assert not one.scheduler.connector.has_pending_push_work()
    peer.send("m", {"action_id": "r", "action_type": "kv.retain",
                    "payload": {"claim_id": "c", "target": {"thread": 9}, "ttl_seconds": 0.4}})
    assert peer.outcome() == {"action_id": "r", "status": "pending"}
    assert one.scheduler.connector.has_pending_push_work() and one.scheduler.has_requests()
    one.step()  # without any request
    assert peer.outcome() == {"action_id": "r", "status": "applied", "blocks": 10, "missing": 0}
    assert not one.scheduler.connector.has_pending_push_work()
    peer.send("s", {"action_id": "s", "action_type": "saga.status"})
    status = peer.outcome()
    assert (status["strength"], status["reason"], status["leases"], status["leased_blocks"], status["blocks"]) == (
        "policy", None, 1, 10, 200)
    time.sleep(0.5)
    one.step()
    assert peer.outcome() == {"action_id": "r", "status": "expired"}
    peer.send("n", {"action_id": "n", "action_type": "kv.evict", "payload": {"target": {"thread": 404}}})
    for _ in range(100):
        time.sleep(0.01)
        one.step()
        if not peer.socket.poll(0):
            continue
        outcome = peer.outcome()
        if outcome["status"] != "pending":
            break
    assert outcome == {"action_id": "n", "status": "refused", "reason": "not_resident", "missing": 0}
    # With a key, whoever may only send requests cannot evict.
    one.serve(prompt(2, 20), 1, saga=envelope("kv.evict", {"target": {"thread": 9}, "mode": "now"}))
    assert one.cached(prompt(1, 10 * BLOCK)) == 10
    peer.socket.close()


# ---- When it cannot be done


def test_an_unknown_queue_means_leases(engine, monkeypatch):
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue

    monkeypatch.setattr(FreeKVCacheBlockQueue, "rotate", lambda self: None, raising=False)
    one = engine(100, connector=QUIET)
    assert one.connector._strength == "leases" and "rotate" in one.connector._reason
    assert type(one.pool.free_block_queue) is FreeKVCacheBlockQueue
    flood(one, 10)


def test_a_queue_that_does_something_else_means_leases(engine, monkeypatch):
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue

    stock = FreeKVCacheBlockQueue.prepend_n
    monkeypatch.setattr(FreeKVCacheBlockQueue, "prepend_n", lambda self, blocks: stock(self, blocks[::-1]))
    one = engine(100, connector=QUIET)
    assert one.connector._strength == "leases" and "wanted was" in one.connector._reason


def test_no_library_means_leases(engine, monkeypatch):
    from saga_vllm import native

    def missing(*given, **more):
        raise native.LibraryMissing("not there")

    monkeypatch.setattr(native, "Evictor", missing)
    one = engine(100, connector=QUIET)
    assert (one.connector._strength, one.connector._reason) == ("leases", "not there")
    flood(one, 10)


@pytest.mark.parametrize("version", ["0.15.1", "0.31.4", "0.34.0", "1.0.0"])
def test_versions_that_are_not_supported(engine, monkeypatch, version):
    import vllm.version

    monkeypatch.setattr(vllm.version, "__version__", version)
    one = engine(100, connector=QUIET)
    assert one.connector._strength == "none" and f"vLLM {version} is not supported" in one.connector._reason
    flood(one, 3)
    assert one.serve(prompt(1, 40), 1) == 0 and one.serve(prompt(1, 40), 1) == 32


@pytest.mark.parametrize("settings", [{"strength": "hard"}, {"no_such": 1}, {"strength": "none"}])
def test_off_by_settings(engine, settings):
    one = engine(100, connector={**QUIET, **settings})
    assert one.connector._strength == "none" and one.connector._reason
    flood(one, 10)


def test_several_groups(engine):
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    shape = {"block_size": BLOCK, "num_kv_heads": 4, "head_size": 16, "dtype": torch.float32}
    one = engine(200, connector=QUIET, specs=[FullAttentionSpec(**shape), SlidingWindowSpec(**shape, sliding_window=64)])
    assert one.connector._strength == "none" and "2 KV cache groups" in one.connector._reason
    flood(one, 20)


def test_no_prefix_caching(engine):
    one = engine(100, connector=QUIET, caching=False, events=False)
    assert (one.connector._strength, one.connector._reason) == ("none", "prefix caching is off")
    flood(one, 10)


def test_the_end_of_a_call_as_the_library_reads_it(library):
    import ctypes

    from saga_vllm import native

    class End(ctypes.Structure):  # saga_evictor_end_t, as in evictor.h
        _fields_ = [(name, ctypes.c_uint32) for name in
                    ("call", "last_block", "stop_reason", "tool_class", "session_end", "output_tokens")
                    ] + [("declared_gap_us", ctypes.c_uint64)]

    evictor = native.Evictor(10, BLOCK)
    real, seen = evictor._end_one, []

    def end(now):
        read = End.from_address(evictor._ending.buffer_info()[0])
        seen.append(tuple(getattr(read, name) for name, _ in End._fields_))
        return real(now)

    evictor._end_one = end
    for outcome in (None, native.Outcome(native.TOOL_USE, 3, True, 0, 2**33 + 5), None):
        evictor.start(4, 7, array("Q", [1, 2]), native.START, 100)
        evictor.end(4, native.NONE, outcome, 29, 100)
    unknown = (4, native.NONE, 0, 0, 0, 29, native.NOT_DECLARED)
    assert seen == [unknown, (4, native.NONE, native.TOOL_USE, 3, 1, 29, 2**33 + 5), unknown]


def test_the_newest_calls_of_many_threads_are_remembered(engine, monkeypatch):
    """Two generations: whoever came lately is known, however many came before."""
    from saga_vllm import native
    from saga_vllm import order as order_module

    monkeypatch.setattr(order_module, "THREADS", 4)
    ours = engine(100, connector=QUIET)
    order = order_of(ours)
    told = []
    monkeypatch.setattr(order.evictor, "told", lambda thread, outcome, now: told.append((thread, outcome.output_tokens)) or True)
    held = ours.request(prompt(1, 20), 200, saga=call(1))
    for i in range(2, 12):
        ours.request(prompt(i, 20), i, saga=call(i))
        while len(ours.scheduler.requests) > 1:
            ours.step()
        assert len(order._newest) + len(order._newest_before) <= 9
    outcome = native.Outcome(native.TOOL_USE)
    assert held in order.calls and order.told(1, outcome) and told == []  # it runs still, and takes it along
    assert order.calls[held].outcome is outcome
    for i in (2, 9, 10, 11):
        assert order.told(i, outcome)
    assert told == [(2, 0), (9, 9), (10, 10), (11, 11)]


@pytest.mark.parametrize("method", ["take", "take_one", "pin", "unpin", "store", "start", "end"])
def test_an_error_of_ours_leaves_a_working_engine(engine, method):
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue

    from saga_vllm import native

    one = engine(60, connector=QUIET)
    flood(one, 10)
    order = order_of(one)
    real = getattr(order.evictor, method)
    count = 0

    def fails(*given):
        nonlocal count
        count += 1
        if count > 2:
            raise native.NativeError("on purpose")
        return real(*given)

    setattr(order.evictor, method, fails)
    for i in range(5):
        one.serve(prompt(7, 50), 1)
    for i in range(40):
        one.request(prompt(i % 3, 100 + i), 20, session=f"s{i % 7}")
        one.step()
    one.run()
    assert one.connector._strength == "none" and "on purpose" in one.connector._reason
    assert one.connector._counters["errors"] == 1
    assert type(one.pool.free_block_queue) is FreeKVCacheBlockQueue
    assert one.pool.get_num_free_blocks() == 59 == len(one.pool.free_block_queue.get_all_free_blocks())
    flood(one, 10)


@pytest.mark.parametrize("hook", ["get_num_new_matched_tokens", "on_new_request", "build_connector_meta",
                                  "request_finished_all_groups", "has_pending_push_work"])
def test_an_error_in_a_hook_does_not_reach_the_engine(engine, hook, monkeypatch):
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue

    one = engine(100, connector=QUIET)
    flood(one, 3)

    def fails(*given):
        raise RuntimeError("on purpose")

    connector = one.connector
    if hook == "has_pending_push_work":
        connector._channel = SimpleNamespace(waiting=fails, take=list, refuse=lambda: None, close=fails)
        assert connector.has_pending_push_work() is False
    else:
        name = {"get_num_new_matched_tokens": "request_may_start", "on_new_request": "request_came",
                "build_connector_meta": "step_ended", "request_finished_all_groups": "request_ended"}[hook]
        monkeypatch.setattr(connector._order, name, fails)
    flood(one, 10)
    assert connector._strength == "none" and "on purpose" in connector._reason
    assert connector._counters["errors"] == 1
    assert type(one.pool.free_block_queue) is FreeKVCacheBlockQueue
    assert one.pool.get_num_free_blocks() == 99 == len(one.pool.free_block_queue.get_all_free_blocks())


# ---- With others


def test_inside_a_multi_connector(engine, tmp_path):
    others = [
        {"kv_connector": "SagaConnector", "kv_connector_module_path": "saga_vllm.connector", "kv_role": "kv_producer",
         "kv_connector_extra_config": QUIET},
        {"kv_connector": "ExampleConnector", "kv_role": "kv_both",
         "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)}}]
    one = engine(100, transfer={"kv_connector": "MultiConnector", "kv_role": "kv_both",
                                "kv_connector_extra_config": {"connectors": others}})
    saga = one.connector._connectors[0]
    assert saga._strength == "policy", saga._reason
    one.serve(prompt(1, 20 * BLOCK), 1, name="kept")
    one.serve(prompt(2, 20), 1, saga=envelope("kv.retain", {"claim_id": "c", "target": {"request_id": "kept"}, "ttl_seconds": 60}))
    flood(one, 30)
    assert one.cached(prompt(1, 20 * BLOCK)) == 20
    assert saga._order.verify()
