"""SagaConnector: a KV connector for vLLM v1 that moves no KV. It decides which blocks go, and carries directives out.

    --kv-transfer-config '{"kv_connector": "SagaConnector", "kv_connector_module_path": "saga_vllm.connector",
                           "kv_role": "kv_producer", "kv_connector_extra_config": {...}}'

Strengths, the strongest that is possible up to the one that is set:

  policy   the order of the pool's free blocks is SAGA's (order.py)
  leases   vLLM's order; leases keep their blocks near its tail (leases.py)
  none     nothing is changed; saga.status says why

A hook never raises. The first error inside one switches everything off: strength `none`, vLLM's own order, the error logged once
and told by saga.status. The worker side does nothing.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import vllm.version
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from . import __version__, envelope, native
from .channel import REMEMBERED, CannotBind, Channel, Message, with_rank
from .envelope import Directive, Envelope, Malformed, Target
from .free_queue import contract_problem
from .leases import Leases, TailHolder
from .order import PolicyOrder
from .settings import BadSetting, Settings
from .targets import RequestBook, Resolver, Unsupported

if TYPE_CHECKING:
    from vllm.v1.request import Request

logger = logging.getLogger("vllm.saga")

SUPPORTED = ((0, 32), (0, 33))
STATUS_EVERY = 1.0
ON_REQUESTS = ("saga.call", "saga.ended", "kv.retain", "kv.release", "kv.evict")
ON_REQUESTS_WITH_KEY = ("saga.call", "saga.ended")


def version_problem(version: str, allow_untested: bool = False) -> str | None:
    """Why this vLLM is not supported; None: it is."""
    match = re.match(r"(\d+)\.(\d+)", version)
    release = (int(match[1]), int(match[2])) if match else None
    if release in SUPPORTED:
        return None
    if allow_untested and (release is None or release > SUPPORTED[0]):
        return None
    known = " and ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
    return f"vLLM {version} is not supported; {known} are"


def servers_take_hints(folder: Path | None = None) -> bool:
    """Whether a request's `kv_hints` reaches the engine. The engine of 0.33 knows them, but its servers do not take them from
    requests. Importing the servers here to look would cost seconds: their sources are searched."""
    openai = (folder or Path(vllm.version.__file__).parent) / "entrypoints" / "openai"
    try:
        return all("kv_hints" in (openai / name / "protocol.py").read_text(encoding="utf-8")
                   for name in ("completion", "chat_completion"))
    except (OSError, ValueError):
        return False


class SagaMetadata(KVConnectorMetadata):
    """Nothing: the worker side has nothing to do."""


class SagaConnector(KVConnectorBase_V1, SupportsHMA):
    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._off = True
        self._strength = "none"
        self._reason: str | None = "no block pool yet"
        self._order: PolicyOrder | None = None
        self._tail: TailHolder | None = None
        self._leases: Leases | None = None
        self._channel: Channel | None = None
        self._metadata = SagaMetadata()
        self._counters = {"errors": 0, "applied": 0, "refused": 0, "expired": 0, "leases": 0, "evicted_blocks": 0,
                          "requests": 0, "requests_with_thread": 0, "malformed_on_requests": 0,
                          "repeated_on_requests": 0}
        self._seen_on_requests: dict[str, None] = {}  # message_id
        self._at_end: dict[str, list[tuple[Message, Directive]]] = {}  # by the request that they wait for
        self._due: list[tuple[Message, Directive]] = []  # of requests that have ended
        self._carriers = ["kv_transfer_params"] + (["kv_hints"] if servers_take_hints() else [])
        self._pool: Any = None
        self._native_stats: dict[str, int] = {}
        self._next_stats = 0.0
        self._steps = 0
        self._threads: dict[str, int] = {}  # of session ids that have come lately
        self._block_size = 0
        if role is not KVConnectorRole.SCHEDULER:
            return
        try:
            self._epoch = int(time.time() * 1000)
            self._settings = Settings.read(self._kv_transfer_config.kv_connector_extra_config)
            logger.setLevel(self._settings.log_level)
            problem = version_problem(vllm.version.__version__, self._settings.allow_untested)
            if problem is None and not hasattr(KVConnectorBase_V1, "bind_gpu_block_pool"):
                problem = "this vLLM does not show connectors its block pool"
            self._open_channel()
            if problem is not None:
                self._refuse(problem)
            elif self._settings.strength == "none":
                self._refuse("set so", logging.INFO)
            else:
                self._off = False
        except BadSetting as error:
            self._refuse(f"bad setting: {error}")
        except Exception as error:  # noqa: BLE001
            self._switch_off(error)

    # ---- Binding

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        if self._off:
            return
        try:
            self._bind(gpu_block_pool)
        except Exception as error:  # noqa: BLE001
            self._switch_off(error)

    def _bind(self, pool: Any) -> None:
        from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

        self._pool = pool
        self._block_size = pool.hash_block_size
        if not pool.enable_caching:
            self._refuse("prefix caching is off")
            return
        blocks = pool.num_gpu_blocks
        budget = int(self._settings.lease_budget * blocks)
        self._book = RequestBook(4 * blocks)
        problem = None
        if self._settings.strength == "policy":
            problem = self._policy_problem(pool) or contract_problem(pool, FreeKVCacheBlockQueue, KVCacheBlock)
        if self._settings.strength == "policy" and problem is None:
            try:
                self._order = PolicyOrder(pool, self._block_size, self._microseconds(),
                                          lru=self._settings.order == "lru", ghosts=self._settings.ghosts,
                                          on_failure=self._switch_off)
            except (native.LibraryMissing, native.NativeError) as error:
                problem = str(error)
        if self._order is not None:
            order = self._order
            leases = self._leases = Leases(order, budget, self._seconds)
            order.release_one = leases.revoke_least
            order.on_lost = leases.lost
            order.on_reset = lambda: leases.revoke_all("reset")
            self._strength, self._reason = "policy", None
        elif len(self._kv_cache_config.kv_cache_groups) != 1:
            self._refuse(problem or "several KV cache groups")
            return
        else:
            scheduler = self._vllm_config.scheduler_config
            reserve = scheduler.max_num_batched_tokens // self._block_size + scheduler.max_num_seqs + 1
            self._tail = TailHolder(pool, min(reserve, blocks // 4))
            self._leases = self._tail.leases = Leases(self._tail, budget, self._seconds)
            self._map = pool.cached_block_hash_to_block
            self._strength = "leases"
            self._reason = problem if self._settings.strength == "policy" else "set so"
        self._resolver = Resolver(pool, self._book, self._hash_tokens,
                                  self._order.block_of if self._order is not None else None)
        level = logging.INFO if self._strength == self._settings.strength else logging.WARNING
        logger.log(level, "SAGA: strength %s%s; %d blocks of %d tokens, leases up to %d", self._strength,
                   f" ({self._reason})" if self._reason else "", blocks, self._block_size, budget)

    def _policy_problem(self, pool: Any) -> str | None:
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        groups = self._kv_cache_config.kv_cache_groups
        if len(groups) != 1:
            return f"the model has {len(groups)} KV cache groups"
        spec = groups[0].kv_cache_spec
        specs = list(getattr(spec, "kv_cache_specs", {"": spec}).values())
        if not all(isinstance(one, FullAttentionSpec) for one in specs):
            return f"the KV cache is a {type(spec).__name__}, not of full attention"
        if getattr(self._vllm_config.parallel_config, "decode_context_parallel_size", 1) != 1:
            return "decode context parallelism"
        if spec.block_size != pool.hash_block_size:
            return "blocks and hashes are of different sizes"
        return None

    def _open_channel(self) -> None:
        endpoint = self._settings.directive_endpoint
        if not endpoint:
            return
        parallel = self._vllm_config.parallel_config
        rank = getattr(parallel, "data_parallel_index", None)
        endpoint = with_rank(endpoint, parallel.data_parallel_rank if rank is None else rank)
        try:
            self._channel = Channel(endpoint, self._settings.key(), self._epoch, self._status, logger)
            logger.info("SAGA: directives at %s", endpoint)
        except CannotBind as error:
            logger.warning("SAGA: no directive channel: %s", error)

    # ---- vLLM's hooks, scheduler side

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # The hooks of every step and every request are guarded by hand: a decorator's call is a good part of what they cost.

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._order is not None:
            try:
                self._order.request_may_start(request)
            except Exception as error:  # noqa: BLE001 - nothing of ours may reach the engine
                self._failed(error)
        return 0, False

    def update_state_after_alloc(self, request: "Request", blocks: Any, num_external_tokens: int) -> None:
        return

    def on_new_request(self, request: "Request") -> None:
        if self._off or self._pool is None:
            return
        try:
            if self._channel is not None or self._due:
                self._apply_waiting()
                if self._off:
                    return
            counters = self._counters
            counters["requests"] += 1
            thread, kind, expected = self._read_request(request)
            self._book.came(request, thread)
            if thread is not None:
                counters["requests_with_thread"] += 1
            order = self._order
            if order is not None:
                order.request_came(request, native.NO_THREAD if thread is None else thread, kind)
                if expected is not None and thread is not None and self._order is not None:
                    order.told(thread, native.Outcome(declared_gap_us=self._in_policy_time(expected)))
            elif self._tail is not None:
                self._tail_step(0)
        except Exception as error:  # noqa: BLE001
            self._failed(error)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        if self._off or self._pool is None:
            return self._metadata
        try:
            order = self._order
            if order is not None:
                order.step_ended(scheduler_output)
                if self._off:
                    return self._metadata
            else:
                self._tail_step(
                    sum(len(new.block_ids[0]) for new in scheduler_output.scheduled_new_reqs)
                    + sum(len(new[0]) for new in scheduler_output.scheduled_cached_reqs.new_block_ids if new is not None))
            leases = self._leases
            assert leases is not None
            if leases.leases:
                leases.expire()
            if self._channel is not None or self._due:
                self._apply_waiting()
            self._steps += 1
            if not self._steps & 15 and order is not None and not self._off and time.monotonic() >= self._next_stats:
                self._next_stats = time.monotonic() + STATUS_EVERY
                self._native_stats = order.evictor.stats()
        except Exception as error:  # noqa: BLE001
            self._failed(error)
        return self._metadata

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(self, request: "Request", block_ids: tuple[list[int], ...]
                                    ) -> tuple[bool, dict[str, Any] | None]:
        if self._off or self._pool is None:
            return False, None
        try:
            if self._order is not None:
                self._order.request_ended(request, block_ids[0] if block_ids else [])
            self._book.went(request)
            if self._at_end:
                self._due += self._at_end.pop(request.request_id, ())
        except Exception as error:  # noqa: BLE001
            self._failed(error)
        return False, None

    def has_pending_push_work(self) -> bool:
        """Directives wait: one empty step applies them."""
        if self._off or self._pool is None:
            return False
        try:
            return bool(self._due) or (self._channel is not None and self._channel.waiting())
        except Exception as error:  # noqa: BLE001
            self._failed(error)
            return False

    def reset_cache(self) -> bool | None:
        return True

    def shutdown(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            try:
                channel.close()
            except Exception:  # noqa: BLE001
                logger.debug("SAGA: while shutting down", exc_info=True)

    # ---- vLLM's hooks, worker side

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        return

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        return

    def wait_for_save(self) -> None:
        return

    # ---- Requests

    def _read_request(self, request: "Request") -> tuple[int | None, int, float | None]:
        """Thread, kind of prompt and declared gap; other directives on the request are carried out."""
        thread, kind, expected = None, native.START, None
        for given in self._envelopes(request):
            try:
                read = envelope.read(given)
            except Malformed:
                self._counters["malformed_on_requests"] += 1
                continue
            others = []
            for action in read.actions:
                if action.problem is not None:
                    self._counters["malformed_on_requests"] += 1
                elif action.action_type == "saga.call":  # of this very request, whatever came before
                    thread, kind, expected = action.thread, action.kind, action.expected
                elif action.action_type != "saga.status" and self._may_on_request(action):
                    others.append(action)
            if others and self._is_to_be_done(read):
                message = Message(None, read)
                message.actions = ()
                if self._channel is not None:
                    self._channel.adopt(message)
                for action in others:
                    if action.at_end:
                        self._at_end.setdefault(request.request_id, []).append((message, action))
                    else:
                        self._apply(message, action)
        if thread is None:
            session = getattr(request, "session_id", None)
            if session:
                thread = self._threads.get(session)
                if thread is None:
                    thread = self._thread_of(session)
        return thread, kind, expected

    def _thread_of(self, session: str) -> int:
        digest = hashlib.blake2b(session.encode(), digest_size=8).digest()
        thread = min(int.from_bytes(digest, "big"), native.NO_THREAD - 1)
        if len(session) <= 256:
            if len(self._threads) >= 8192:
                self._threads.clear()
            self._threads[session] = thread
        return thread

    def _is_to_be_done(self, read: Envelope) -> bool:
        """A message on a request: for this start of the engine, and not seen on a request before."""
        if read.epoch is not None and read.epoch != self._epoch:
            self._counters["refused"] += 1
            return False
        seen = read.message_id in self._seen_on_requests
        if seen or (self._channel is not None and self._channel.knows(read.message_id)):
            self._counters["repeated_on_requests"] += 1
            return False
        self._seen_on_requests[read.message_id] = None
        if len(self._seen_on_requests) > REMEMBERED:
            del self._seen_on_requests[next(iter(self._seen_on_requests))]
        return True

    def _may_on_request(self, action: Directive) -> bool:
        """Whoever has a key for directives does not take those of whoever may send requests, but for what concerns a thread."""
        return not self._has_key() or action.action_type in ON_REQUESTS_WITH_KEY

    def _has_key(self) -> bool:
        return bool(self._settings.directive_key or self._settings.directive_key_file)

    @staticmethod
    def _envelopes(request: "Request") -> list[Any]:
        found = []
        params = getattr(request, "kv_transfer_params", None)
        if isinstance(params, dict) and params.get("saga") is not None:
            found.append(params["saga"])
        hints = getattr(request, "kv_hints", None)
        if hints is not None:
            found.append({
                "protocol_version": hints.protocol_version, "message_id": hints.message_id,
                "actions": [{"action_id": action.action_id, "action_type": action.action_type,
                             "action_version": action.action_version, "payload": action.payload}
                            for action in hints.actions]})
        return found

    # ---- Directives

    def _apply_waiting(self) -> None:
        if self._due:
            due, self._due = self._due, []
            for message, action in due:
                self._apply(message, action)
        if self._channel is None:
            return
        for message in self._channel.take():
            late = time.monotonic() > message.deadline
            actions, message.actions = message.actions, ()
            for action in actions:
                if late:
                    self._counters["expired"] += 1
                    self._answer(message, action.action_id, {"status": "expired"})
                else:
                    self._apply(message, action)

    def _apply(self, message: Message, action: Directive) -> None:
        try:
            outcome = self._carry_out(message, action)
        except Unsupported:
            outcome = {"status": "refused", "reason": "unsupported"}
        self._counters["applied" if outcome["status"] in ("applied", "released") else "refused"] += 1
        self._answer(message, action.action_id, outcome)

    def _answer(self, message: Message, action_id: str, outcome: dict[str, Any]) -> None:
        if self._channel is not None:
            self._channel.answer(message, {"action_id": action_id, **outcome})

    def _carry_out(self, message: Message, action: Directive) -> dict[str, Any]:
        assert self._leases is not None
        self._leases.expire()
        if action.action_type == "saga.ended":
            return self._ended(action)
        if action.action_type == "kv.release":
            return {"status": "released"} if self._leases.release(action.claim_id) else _refusal("not_resident")
        assert action.target is not None
        self._resolver.forget_scan()
        blocks, missing = self._resolver.blocks(action.target)
        if not blocks:
            return _refusal("not_resident", missing)
        if action.action_type == "kv.retain":
            return self._retain(message, action, blocks, missing)
        return self._evict(action, blocks, missing)

    def _retain(self, message: Message, action: Directive, blocks: list[Any], missing: int) -> dict[str, Any]:
        assert self._leases is not None
        ids = list(dict.fromkeys(block.block_id for block in blocks))
        held = self._leases.retain(action.claim_id, ids, action.ttl, action.value,
                                   functools.partial(self._lease_ended, message, action.action_id))
        if not held:
            return _refusal("budget", missing)
        self._counters["leases"] += 1
        return {"status": "applied", "blocks": len(ids), "missing": missing}

    def _lease_ended(self, message: Message, action_id: str, status: str, reason: str | None) -> None:
        self._answer(message, action_id, {"status": status} if reason is None else {"status": status, "reason": reason})

    def _evict(self, action: Directive, blocks: list[Any], missing: int) -> dict[str, Any]:
        assert self._leases is not None
        if action.now:
            gone = self._evict_now(blocks)
        else:
            gone = [block for block in blocks if block.ref_cnt == 0]
            self._evict_first(gone)
        self._counters["evicted_blocks"] += len(gone)
        outcome = {"status": "applied", "blocks": len(gone), "missing": missing}
        if not action.now and len(gone) < len(blocks):
            outcome["in_use"] = len(blocks) - len(gone)
        return outcome

    def _evict_now(self, blocks: list[Any]) -> list[Any]:
        lookup = self._pool.cached_block_hash_to_block.get_one_block
        gone: list[Any] = []
        for block in blocks:
            key = block.block_hash
            for _ in range(self._pool.num_gpu_blocks):
                copy = lookup(key) if key is not None else None
                if copy is None:
                    break
                self._pool.evict_blocks({copy.block_id})
                gone.append(copy)
        if self._order is not None:
            self._order.dropped(gone)
        else:
            self._evict_first([block for block in gone if block.ref_cnt == 0])
        return gone

    def _evict_first(self, blocks: list[Any]) -> None:
        if self._order is not None:
            self._order.evict_first(blocks)
            return
        assert self._leases is not None
        queue = self._pool.free_block_queue
        free = [block for block in reversed(blocks) if block.ref_cnt == 0 and not block.is_null]
        for block in free:
            self._leases.lost(block.block_id)
            queue.remove(block)
        queue.prepend_n(free)

    def _in_policy_time(self, seconds: float) -> int:
        """Microseconds of the policy's clock. Directives speak of seconds of the wall."""
        return int(seconds * 1e6 * self._settings.time_scale)

    def _ended(self, action: Directive) -> dict[str, Any]:
        if self._order is None:
            return _refusal("unsupported")
        gap = native.NOT_DECLARED if action.expected is None else self._in_policy_time(action.expected)
        outcome = native.Outcome(action.stop_reason, action.tool_class, action.session_end, 0, gap)
        if not self._order.told(action.thread, outcome):
            return _refusal("not_resident")
        return {"status": "applied"}

    def _hash_tokens(self, target: Target) -> list[bytes]:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys, hash_block_tokens

        # The path of an adapter, which enters the hash, is not in the target.
        if getattr(self._pool, "num_hash_lookahead_tokens", 0) or target.lora_name is not None:
            raise Unsupported
        function = get_hash_fn_by_name(self._vllm_config.cache_config.prefix_caching_hash_algo)
        assert target.token_ids is not None
        size = self._pool.hash_block_size
        # What vLLM asks of a request there: how a salt is written is a matter of its version.
        request: Any = SimpleNamespace(cache_salt=target.cache_salt, lora_request=None, mm_features=[], prompt_embeds=None)
        digests: list[bytes] = []
        for first in range(0, len(target.token_ids) - size + 1, size):
            extra, _ = generate_block_hash_extra_keys(request, first, first + size, 0)
            digests.append(hash_block_tokens(function, digests[-1] if digests else None,
                                             target.token_ids[first:first + size], extra))
        return digests

    # ---- Strength `leases`

    def _tail_step(self, used: int) -> None:
        assert self._tail is not None and self._leases is not None
        if self._pool.cached_block_hash_to_block is not self._map:
            self._map = self._pool.cached_block_hash_to_block
            self._leases.revoke_all("reset")
        self._tail.step(used)

    # ---- State

    def _seconds(self) -> float:
        return time.monotonic()

    def _microseconds(self) -> Callable[[], int]:
        """The policy's clock."""
        clock, scale = time.monotonic_ns, self._settings.time_scale
        if scale == 1:
            return lambda: clock() // 1000
        return lambda: int(clock() * scale) // 1000

    def _status(self) -> dict[str, Any]:
        """Called by the channel's thread: reads, and touches nothing native."""
        leases, order, channel = self._leases, self._order, self._channel
        counters = dict(self._counters)
        if order is not None:
            counters["untracked_requests"] = order.untracked
        counters.update({f"policy_{name}": value for name, value in self._native_stats.items()})
        if channel is not None:
            counters.update({f"channel_{name}": value for name, value in channel.counters.items()})
        return {
            "strength": self._strength,
            "reason": self._reason,
            "vllm_version": vllm.version.__version__,
            "connector_version": __version__,
            "block_size": self._block_size,
            "blocks": 0 if self._pool is None else self._pool.num_gpu_blocks,
            "leased_blocks": 0 if leases is None else len(leases.holders),
            "leases": 0 if leases is None else len(leases.leases),
            "pending": 0 if channel is None else len(channel._waiting),
            "request_members": self._carriers,
            "request_actions": list(ON_REQUESTS_WITH_KEY if self._has_key() else ON_REQUESTS),
            "counters": counters,
        }

    def _refuse(self, reason: str, level: int = logging.WARNING) -> None:
        self._off = True
        self._strength, self._reason = "none", reason
        if self._channel is not None:
            self._channel.refuse()
        logger.log(level, "SAGA: strength none: %s. The engine runs as without it.", reason)

    def _failed(self, error: Exception) -> None:
        """A hook has raised."""
        if not self._off:
            self._switch_off(error)

    def _switch_off(self, error: Exception) -> None:
        """After an error of ours: vLLM's own order, nothing held."""
        self._counters["errors"] += 1
        if self._counters["errors"] == 1:
            logger.error("SAGA: switched off after an error; the engine runs on as without it", exc_info=error)
        self._off = True
        self._strength, self._reason = "none", f"error: {type(error).__name__}: {error}"
        order, self._order = self._order, None
        leases, self._leases = self._leases, None
        try:
            if order is not None:
                order.stop()
            if leases is not None:
                for lease in leases.leases.values():
                    lease.ended("revoked", "unsupported")
            if self._channel is not None:
                self._channel.refuse()
        except Exception:  # noqa: BLE001
            logger.debug("SAGA: while switching off", exc_info=True)


def _refusal(reason: str, missing: int | None = None) -> dict[str, Any]:
    outcome: dict[str, Any] = {"status": "refused", "reason": reason}
    if missing is not None:
        outcome["missing"] = missing
    return outcome
