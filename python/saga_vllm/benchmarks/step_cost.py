"""What the connector costs on the engine's thread: the real scheduler, without server or model, with and without it.

    python benchmarks/step_cost.py [--blocks 10000] [--running 256] [--steps 1000] [--engines stock,none,lru,policy] [--json FILE]

All engines do the same work. They take turns, a few steps each, so that a change of the machine's speed meets all of them. Load:
so many sessions with a shared system prompt, `running` at a time; a call ends after 100 to 300 tokens and the next session
calls with a longer prompt; the pool is full, so every allocation evicts. Measured is the CPU time of the engine's thread
(time.thread_time) for schedule(), update_from_output() and the arrival of requests, step by step.

Engines: `stock` without a connector; `none` and `leases`, a connector of that strength; `lru`, vLLM's own order through the
machinery of `policy`: the same victims and hits as stock, so its difference is what the machinery costs; `policy`, whose difference
also has what other victims and other hits save or cost vLLM itself. The difference of each contains vLLM's own work for any
connector, which is that of `none`.

The time inside of this package is measured as well, in rounds of its own: every way into it, the queue's methods with all that
stock's would do in their place, is wrapped with a clock (CPU time of the thread; reading it counts in, see the last line). `share` is the
median of that time as a part of its own step.

On a machine with other load CPU time itself is stretched (shared caches, sibling threads): `quiet` is the smallest median of any
20 steps in a row, what comes nearest to a machine of its own. Prints a table, and JSON with --json.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent)]

from engine import BLOCK, Engine, prompt  # noqa: E402


class Load:
    """Keeps `running` requests going in an engine; a function of the seed alone."""

    def __init__(self, engine: Engine, running: int, seed: int = 3) -> None:
        self.engine = engine
        self.running = running
        self.random = random.Random(seed)
        self.sessions = [prompt(1, 20 * BLOCK) for _ in range(3 * running)]
        self.number = 0
        self.times: list[float] = []

    def step(self) -> float:
        engine = self.engine
        arrivals = []
        while len(engine.scheduler.requests) + len(arrivals) < self.running:
            self.number += 1
            i = self.random.randrange(len(self.sessions))
            if len(self.sessions[i]) > 60 * BLOCK:
                self.sessions[i] = prompt(1, 20 * BLOCK)
            self.sessions[i] = prompt(self.number + 10, self.random.randrange(50, 200), self.sessions[i])
            arrivals.append((i, self.random.randrange(100, 300)))
        begin = time.thread_time()
        for i, tokens in arrivals:
            engine.request(self.sessions[i], tokens, session=f"session-{i}")
        ended = engine.step()
        spent = time.thread_time() - begin
        for name in ended:
            del engine.requests[name]
            engine.hits.pop(name, None)
        engine.events.clear()
        return spent


WAYS_IN = {
    "connector": ("on_new_request", "build_connector_meta", "request_finished_all_groups", "get_num_new_matched_tokens",
                  "update_state_after_alloc", "has_pending_push_work"),
    "queue": ("popleft", "popleft_n", "remove", "append", "append_n", "prepend_n"),
}
TURN = 20
SETTINGS = {
    "stock": None,
    "none": {"strength": "none"},
    "leases": {"strength": "leases"},
    "lru": {"order": "lru"},
    "policy": {},
}


class Inside:
    """Sums up the time that is spent inside of the package. Ways in that are entered from within count once."""

    def __init__(self, engine: Engine) -> None:
        self.spent = 0.0
        self.depth = 0
        self.count = 0
        connector = engine.connector
        self._wrap(connector, WAYS_IN["connector"])
        if connector._order is not None:
            self._wrap(engine.pool.free_block_queue, WAYS_IN["queue"])

    def _wrap(self, thing: object, names: tuple[str, ...]) -> None:
        for name in names:
            setattr(thing, name, self._timed(getattr(thing, name)))

    def _timed(self, function):  # noqa: ANN001, ANN202
        clock = time.thread_time

        def timed(*given, **more):  # noqa: ANN002, ANN003, ANN202
            if self.depth:
                return function(*given, **more)
            self.depth = 1
            self.count += 1
            begin = clock()
            try:
                return function(*given, **more)
            finally:
                self.spent += clock() - begin
                self.depth = 0

        return timed


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def quiet(values: list[float], window: int = TURN) -> float:
    """The smallest median of `window` steps in a row."""
    return min(percentile(values[i:i + window], 0.5) for i in range(0, len(values) - window + 1, window))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10000)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000, help="of each engine, once for whole steps and once for the inside")
    parser.add_argument("--warm-up", type=int, default=600)
    parser.add_argument("--engines", default="stock,none,leases,lru,policy", help="the first of them is what others are compared with")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = arguments.engines.split(",")
    loads = {}
    for name in names:
        settings = SETTINGS[name]
        engine = Engine(arguments.blocks, connector=None if settings is None else {"directive_endpoint": "", **settings},
                        max_num_seqs=arguments.running, max_num_batched_tokens=8192, max_model_len=4096)
        loads[name] = Load(engine, arguments.running)
        for _ in range(arguments.warm_up):
            loads[name].step()
    gc.collect()
    gc.freeze()

    def turns() -> dict[str, list[float]]:
        """Milliseconds of each step."""
        times: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(arguments.steps // TURN):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                times[name] += [loads[name].step() * 1e3 for _ in range(TURN)]
        return times

    times = turns()
    result: dict[str, dict[str, float]] = {}
    print(f"{arguments.blocks} blocks, {arguments.running} running, {len(times[names[0]])} steps of each engine; ms a step")
    print(f"{'':<8}{'quiet':>8}{'p50':>8}{'p99':>8}{'mean':>8}   added: {'quiet':>8}{'p50':>8}{'p99':>8}{'mean':>8}")
    for name in names:
        row = figures(times[name])
        first = result.get(names[0], row)
        row |= {f"added_{key}": row[key] - first[key] for key in ("quiet", "p50", "p99", "mean")}
        result[name] = row
        print(f"{name:<8}{row['quiet']:8.3f}{row['p50']:8.3f}{row['p99']:8.3f}{row['mean']:8.3f}          "
              f"{row['added_quiet']:8.3f}{row['added_p50']:8.3f}{row['added_p99']:8.3f}{row['added_mean']:8.3f}")

    insides = {name: Inside(loads[name].engine) for name in names if SETTINGS[name] is not None}
    spent: dict[str, list[float]] = {name: [] for name in insides}
    whole: dict[str, list[float]] = {name: [] for name in insides}
    for _ in range(arguments.steps // TURN):
        for name, inside in insides.items():
            for _ in range(TURN):
                inside.spent = 0.0
                whole[name].append(loads[name].step() * 1e3)
                spent[name].append(inside.spent * 1e3)
    print("inside of saga_vllm, ms a step:")
    for name, inside in insides.items():
        row = figures(spent[name])
        row["share"] = percentile([part / step for part, step in zip(spent[name], whole[name])], 0.5)
        row["ways_in"] = inside.count / len(spent[name])
        result[name] |= {f"inside_{key}": value for key, value in row.items()}
        print(f"{name:<8}{row['quiet']:8.3f}{row['p50']:8.3f}{row['p99']:8.3f}{row['mean']:8.3f}   share {row['share']:.4f}, "
              f"entered {row['ways_in']:.1f} times a step")
    clock = time.thread_time
    readings = [clock() for _ in range(10001)]
    print(f"a reading of the clock: {percentile([b - a for a, b in zip(readings, readings[1:])], 0.5) * 1e6:.2f} us")
    for name in names:
        connector = loads[name].engine.connector
        if connector is None:
            continue
        if connector._strength != ("policy" if name == "lru" else name) or connector._counters["errors"]:
            raise SystemExit(f"{name} is not what was measured: {connector._reason}")
        if connector._order is not None:
            print(f"{name}:", connector._order.evictor.stats(), "intact" if connector._order.verify() else "NOT INTACT")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


def figures(values: list[float]) -> dict[str, float]:
    return {"quiet": quiet(values), "p50": percentile(values, 0.5), "p99": percentile(values, 0.99), "mean": statistics.fmean(values)}


if __name__ == "__main__":
    main()
