"""What the connector costs on the engine's thread: the real scheduler, without server or model, with and without it.

    python benchmarks/step_cost.py [--blocks 10000] [--running 256] [--steps 400] [--rounds 5] [--json FILE]

Both engines do the same work. They take turns, a few hundred steps each, so that a change of the machine's speed meets both. Load:
so many sessions with a shared system prompt, `running` at a time; a call ends after 100 to 300 tokens and the next session
calls with a longer prompt; the pool is full, so every allocation evicts. Measured is the CPU time of the engine's thread
(time.thread_time) for schedule(), update_from_output() and the arrival of requests, step by step.

The difference of two engines contains what better or worse hits save or cost vLLM itself, and vLLM's own work for any connector.
So the time inside of this package is measured as well, in rounds of its own: every way into it is wrapped with a clock
(CPU time of the thread; reading the clock counts in, some 0.5 us each).

On a machine with other load CPU time itself is stretched (shared caches, sibling threads): `quiet` is the smallest median of any
50 steps in a row, what comes nearest to a machine of its own. Prints a table, and JSON with --json.
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
    "order": ("take", "removed", "freed", "freed_first"),
}


class Inside:
    """Sums up the time that is spent inside of the package. Ways in that are entered from within count once."""

    def __init__(self, engine: Engine) -> None:
        self.spent = 0.0
        self.depth = 0
        connector = engine.connector
        self._wrap(connector, WAYS_IN["connector"])
        if connector._order is not None:
            self._wrap(connector._order, WAYS_IN["order"])

    def _wrap(self, thing: object, names: tuple[str, ...]) -> None:
        for name in names:
            setattr(thing, name, self._timed(getattr(thing, name)))

    def _timed(self, function):  # noqa: ANN001, ANN202
        clock = time.thread_time

        def timed(*given, **more):  # noqa: ANN002, ANN003, ANN202
            if self.depth:
                return function(*given, **more)
            self.depth = 1
            begin = clock()
            try:
                return function(*given, **more)
            finally:
                self.spent += clock() - begin
                self.depth = 0

        return timed


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def quiet(values: list[float], window: int = 50) -> float:
    """The smallest median of `window` steps in a row."""
    return min(percentile(values[i:i + window], 0.5) for i in range(0, len(values) - window + 1, window))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10000)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400, help="of each engine in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=600)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = {
        "stock": None,
        "policy": {"directive_endpoint": ""},
        "leases": {"directive_endpoint": "", "strength": "leases"},
    }
    loads = {}
    for name, connector in settings.items():
        engine = Engine(arguments.blocks, connector=connector, max_num_seqs=arguments.running,
                        max_num_batched_tokens=8192, max_model_len=4096)
        if connector is not None and engine.connector._strength != name:
            raise SystemExit(f"strength {name} is not to be had: {engine.connector._reason}")
        loads[name] = Load(engine, arguments.running)
        for _ in range(arguments.warm_up):
            loads[name].step()
    gc.collect()
    gc.freeze()
    times: dict[str, list[float]] = {name: [] for name in settings}
    names = list(settings)
    for turn in range(arguments.rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            times[name] += [loads[name].step() for _ in range(arguments.steps)]
    result = {}
    print(f"{arguments.blocks} blocks, {arguments.running} running, {arguments.rounds} x {arguments.steps} steps each; ms a step")
    print(f"{'':<8}{'quiet':>8}{'p50':>8}{'p99':>8}{'mean':>8}   added: {'quiet':>8}{'p50':>8}{'p99':>8}{'mean':>8}")
    for name in names:
        row = {"quiet": quiet(times[name]) * 1e3, "p50": percentile(times[name], 0.5) * 1e3, "p99": percentile(times[name], 0.99) * 1e3,
               "mean": statistics.fmean(times[name]) * 1e3}
        stock = result.get("stock", row)
        row |= {f"added_{key}": row[key] - stock[key] for key in ("quiet", "p50", "p99", "mean")}
        result[name] = row
        print(f"{name:<8}{row['quiet']:8.3f}{row['p50']:8.3f}{row['p99']:8.3f}{row['mean']:8.3f}          "
              f"{row['added_quiet']:8.3f}{row['added_p50']:8.3f}{row['added_p99']:8.3f}{row['added_mean']:8.3f}")
        if name != "stock":
            connector = loads[name].engine.connector
            if connector._strength != name:
                raise SystemExit(f"{name} was switched off: {connector._reason}")
    print(f"inside of saga_vllm, ms a step, {arguments.rounds * arguments.steps} steps:")
    for name in names[1:]:
        inside = Inside(loads[name].engine)
        spent = []
        for _ in range(arguments.rounds * arguments.steps):
            inside.spent = 0.0
            loads[name].step()
            spent.append(inside.spent * 1e3)
        row = {"quiet": quiet(spent), "p50": percentile(spent, 0.5), "p99": percentile(spent, 0.99), "mean": statistics.fmean(spent)}
        result[name] |= {f"inside_{key}": value for key, value in row.items()}
        print(f"{name:<8}{row['quiet']:8.3f}{row['p50']:8.3f}{row['p99']:8.3f}{row['mean']:8.3f}")
    order = loads["policy"].engine.connector._order
    print("policy:", order.evictor.stats(), "intact" if order.verify() else "NOT INTACT")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
