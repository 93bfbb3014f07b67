"""PolicyOrder: the order in which a pool's free blocks go, by SAGA's policy in libsaga.

It follows the pool through what a connector sees and what the pool does to its queue (free_queue.py), and keeps an evictor
(native.py) in the same state. What is told, and when:

  a request comes            start, and at once preempt: what waits in the queue is certain to come back
  its blocks are allocated   start again, just before the first block moves: it runs
  end of a scheduler step    preempt for requests that lost their blocks; store for blocks of prompts that got a hash in the step
  a request ends             store for the blocks of its answer; end, before its blocks are freed
  remove                     pin; kept back until the next operation, so a hit of n blocks is one crossing
  append, append_n           unpin
  prepend_n                  unpin and prefer: blocks without a hash
  popleft, popleft_n         take
  reset of the cache         clear; seen by the pool's map of hashes being another one

Blocks are hashed by the low 8 bytes of vLLM's block hash. One KV cache group of full attention only.

**Shields.** Blocks of leases are pinned in the evictor while they are free in the pool: they count as free, so admission sees
all of the memory, and are not taken. When fewer blocks are unshielded than are needed, leases are given up first, the least
valuable first, until there are enough: a shield never makes an allocation fail.

**Errors.** No method raises. The first error switches the order off: the queue is a stock queue from then on, in the order of
release, and `on_failure` is told. Invariants: verify().
"""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from . import native
from .free_queue import attach, detach

_EMPTY = array("Q")
THREADS = 32768  # whose newest calls are remembered, at least
HASH_TAIL = slice(-12, -4)  # of a pool's key: digest, then 4 bytes of the group


def low8(digests: Sequence[bytes]) -> array:
    """The low 8 bytes of each digest, as numbers. All digests are of one length."""
    if not digests:
        return array("Q")
    words, rest = divmod(len(digests[0]), 8)
    if rest:
        hashes = array("Q", b"".join([digest[-8:] for digest in digests]))
    else:
        hashes = array("Q", b"".join(digests))[words - 1::words]
    if sys.byteorder == "little":
        hashes.byteswap()
    return hashes


class Call:
    """A request that the evictor knows."""

    __slots__ = ("number", "thread", "request", "hashes", "blocks", "stored", "waiting", "outcome", "prompt_blocks", "tokens")

    def __init__(self, number: int, thread: int, request: Any, hashes: array) -> None:
        self.number = number  # NONE: it has ended
        self.thread = thread
        self.request = request
        self.hashes = hashes  # of request.block_hashes, as far as converted
        self.blocks: list[int] = []
        self.stored = 0  # leading blocks whose hashes were told
        self.prompt_blocks = len(hashes)
        self.waiting = True  # in the queue, or preempted
        self.outcome: native.Outcome | None = None  # told before its end
        self.tokens = 0  # of the answer, once it has ended


class PolicyOrder:
    def __init__(self, pool: Any, block_size: int, clock: Callable[[], int], *, lru: bool = False,
                 ghosts: int | None = None, on_failure: Callable[[Exception], None] = lambda error: None,
                 max_calls: int = 16384) -> None:
        """Takes over the queue of a pool in which only the null block is in use. Raises what native.Evictor raises."""
        self.pool = pool
        self._blocks = pool.blocks
        self.block_size = block_size
        self.clock = clock
        self.on_failure = on_failure
        self.release_one: Callable[[], bool] = lambda: False  # gives up the least valuable lease; False: there is none
        self.evictor = native.Evictor(pool.num_gpu_blocks, block_size, lru=lru, ghosts=ghosts, max_calls=max_calls)
        self.evictor.take(1, clock())  # the null block
        self.calls: dict[str, Call] = {}
        self.untracked = 0  # requests for which there was no number
        self.active = True
        self._numbers = list(range(max_calls - 1, -1, -1))
        # thread -> its newest call. Two generations: what has not come again for so long goes with the older one.
        self._newest: dict[int, Call] = {}
        self._newest_before: dict[int, Call] = {}
        self._pins: list[int] = []
        self._arriving: Call | None = None
        # Running requests whose prompts have no hashes yet, in part; of all others the blocks are learnt when they end.
        self._filling: dict[str, Call] = {}
        # 1 for blocks that the evictor has a hash for. Bytes and no set: small enough to stay in the processor's caches
        # between steps, and a set's cost a step was mostly memory.
        self._told = bytearray(pool.num_gpu_blocks)
        self._by_low: dict[int, int] | None = None  # made when it is first asked for
        self._map = pool.cached_block_hash_to_block
        self._shields: dict[int, int] = {}  # block -> leases that hold it
        self._idle_shields = 0  # of these, free in the pool: pinned in the evictor
        self.on_reset: Callable[[], None] = lambda: None
        self.on_lost: Callable[[int], None] = lambda block: None
        self.queue = pool.free_block_queue
        self._stock_class = attach(self.queue, self)

    # ---- The queue's side. See Order in free_queue.py.

    def take_one(self) -> Any | None:
        """Most of all that is taken: a request that decodes comes to its next block."""
        if (self._pins or self._arriving is not None or self._idle_shields or not self.active
                or self.pool.cached_block_hash_to_block is not self._map):
            taken = self.take(1)
            return None if taken is None else taken[0]
        try:
            number = self.evictor.take_one(self.clock())
            block = self._blocks[number]
            if block.ref_cnt or block.next_free_block is None:
                raise native.NativeError(f"block {number} is not free in the pool")
            self._told[number] = 0
            return block
        except Exception as error:  # noqa: BLE001 - whatever it is, the queue has to work
            self._fail(error)
            return None

    def take(self, count: int) -> list[Any] | None:
        if not self.active:
            return None
        try:
            if self._pins or self._arriving is not None or self.pool.cached_block_hash_to_block is not self._map:
                self._settle()
            if self._idle_shields:
                while self.queue.num_free_blocks - self._idle_shields < count and self.release_one():
                    pass
            blocks, told = self._blocks, self._told
            taken = []
            for number in self.evictor.take(count, self.clock()):
                block = blocks[number]
                if block.ref_cnt or block.next_free_block is None:
                    raise native.NativeError(f"block {number} is not free in the pool")
                told[number] = 0
                taken.append(block)
            return taken
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return None

    def removed(self, block: Any) -> None:
        if not self.active:
            return
        try:
            if self._arriving is not None:
                self._resume(self._arriving)
            if self._shields and block.block_id in self._shields:
                self._idle_shields -= 1
            else:
                self._pins.append(block.block_id)
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def freed(self, blocks: list[Any]) -> None:
        if not self.active or not blocks:
            return
        try:
            if self._pins or self._arriving is not None or self.pool.cached_block_hash_to_block is not self._map:
                self._settle()
            ids = [block.block_id for block in blocks]
            if not all(map(self._told.__getitem__, ids)):
                self._store_strays(blocks)
            if self._shields:
                self._unpin(ids)
            else:
                self.evictor.unpin(ids)
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def freed_first(self, blocks: list[Any]) -> None:
        if not self.active or not blocks:
            return
        try:
            if self._pins or self._arriving is not None or self.pool.cached_block_hash_to_block is not self._map:
                self._settle()
            ids = [block.block_id for block in blocks]
            if not self._shields:
                self.evictor.unpin_and_prefer(ids)
            else:
                self._unpin(ids)
                for block in ids:
                    if block in self._shields:
                        self.on_lost(block)  # without a hash there is nothing to hold
                self.evictor.prefer(ids)
            self._forget(ids)
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    # ---- The connector's side

    def request_came(self, request: Any, thread: int, kind: int) -> None:
        if not self.active:
            return
        try:
            if self._pins or self._arriving is not None or self.pool.cached_block_hash_to_block is not self._map:
                self._settle()
            if not self._numbers or request.request_id in self.calls:
                self.untracked += 1
                return
            number = self._numbers.pop()
            call = Call(number, thread, request, low8(request.block_hashes))
            now = self.clock()
            self.evictor.start(number, thread, call.hashes, kind, now)
            self.evictor.preempt_one(number, now)
            self.calls[request.request_id] = call
            if thread != native.NO_THREAD:
                if len(self._newest) >= THREADS:
                    self._newest_before = self._newest
                    self._newest = {one.thread: one for one in self.calls.values() if one.thread != native.NO_THREAD}
                self._newest[thread] = call
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def request_may_start(self, request: Any) -> None:
        """Its blocks are the next that move, unless there is no room for it."""
        call = self.calls.get(request.request_id)
        self._arriving = call if call is not None and call.waiting else None

    def step_ended(self, output: Any) -> None:
        if not self.active:
            return
        try:
            self._arriving = None
            if self._pins or self.pool.cached_block_hash_to_block is not self._map:
                self._settle()
            calls = self.calls
            if output.preempted_req_ids:
                lost = [calls[i] for i in sorted(output.preempted_req_ids) if i in calls and not calls[i].waiting]
                self.evictor.preempt([call.number for call in lost], self.clock())
                for call in lost:
                    call.waiting = True
                    self._set_blocks(call, [])
            scheduled = output.num_scheduled_tokens
            for new in output.scheduled_new_reqs:
                call = calls.get(new.req_id)
                if call is None:
                    continue
                if call.waiting:
                    self._resume(call)
                self._set_blocks(call, new.block_ids[0])
                self._store_prompt(call, new.num_computed_tokens + scheduled[new.req_id], new.num_computed_tokens)
            cached = output.scheduled_cached_reqs
            if self._filling or cached.resumed_req_ids:
                self._prompts_went_on(cached, scheduled)
            if self._by_low is not None and len(self._by_low) > 4 * self.pool.num_gpu_blocks + 1024:
                self._by_low = None
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _prompts_went_on(self, cached: Any, scheduled: dict[str, int]) -> None:
        resumed, filling = cached.resumed_req_ids, self._filling
        for request_id, new_ids, computed in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens):
            if new_ids is None:  # most of them
                continue
            if request_id in resumed:
                call = self.calls.get(request_id)
                if call is None:
                    continue
                if call.waiting:
                    self._resume(call)
                self._set_blocks(call, new_ids[0])
            elif request_id in filling:
                call = filling[request_id]
                call.blocks.extend(new_ids[0])
            else:
                continue
            self._store_prompt(call, computed + scheduled[request_id])

    def request_ended(self, request: Any, block_ids: list[int]) -> None:
        if not self.active:
            return
        try:
            if self._pins or self._arriving is not None or self.pool.cached_block_hash_to_block is not self._map:
                self._settle()
            call = self.calls.pop(request.request_id, None)
            if call is None:
                return
            if self._arriving is call:
                self._arriving = None
            if self._filling:
                self._filling.pop(request.request_id, None)
            if not call.waiting and len(block_ids) > len(call.blocks):
                call.blocks = block_ids
            self._store(call, len(call.blocks) * self.block_size)
            tokens = request.num_output_tokens
            last = call.blocks[call.stored - 1] if call.stored else native.NONE
            self.evictor.end(call.number, last, call.outcome, tokens, self.clock())
            self._numbers.append(call.number)
            call.number = native.NONE
            call.tokens = tokens
            call.request = call.blocks = call.hashes = None
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def told(self, thread: int, outcome: native.Outcome) -> bool:
        """How the newest call of a thread ended. False: it is not known."""
        if not self.active:
            return False
        try:
            call = self._newest.get(thread) or self._newest_before.get(thread)
            if call is not None:
                if call.number != native.NONE:  # the answer has gone out, the blocks have not been freed yet
                    call.outcome = outcome
                    return True
                outcome = outcome._replace(output_tokens=call.tokens)
            return self.evictor.told(thread, outcome, self.clock())
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return False

    # ---- Directives. Blocks of `ids` hold what was meant; chains from the root to the leaf.

    def evict_first(self, blocks: list[Any]) -> None:
        """Free blocks are the next victims, the end of the chain before its beginning. They keep their hashes."""
        self._settle()
        free = [block for block in reversed(blocks) if block.ref_cnt == 0 and not block.is_null]
        ids = [block.block_id for block in free]
        for block in ids:
            if block in self._shields:
                self.on_lost(block)
        self.queue.move_first(free)
        self.evictor.prefer(ids)
        self._forget(ids)

    def dropped(self, blocks: list[Any]) -> None:
        """Blocks whose hashes the pool has just dropped."""
        self._settle()
        used = [block.block_id for block in blocks if block.ref_cnt > 0]
        for block in used:
            if block in self._shields:
                self.on_lost(block)
        self.evictor.drop(used)
        self._forget(used)
        self.evict_first([block for block in blocks if block.ref_cnt == 0])

    def shield(self, ids: list[int]) -> None:
        """One more lease holds these blocks."""
        self._settle()
        blocks = self.pool.blocks
        fresh = []
        for block in ids:
            holders = self._shields.get(block, 0)
            self._shields[block] = holders + 1
            if holders == 0 and blocks[block].ref_cnt == 0:
                fresh.append(block)
        self.evictor.pin(fresh)
        self._idle_shields += len(fresh)

    def unshield(self, ids: list[int]) -> None:
        """One lease less."""
        self._settle()
        blocks = self.pool.blocks
        bare = []
        for block in ids:
            holders = self._shields[block] - 1
            if holders:
                self._shields[block] = holders
                continue
            del self._shields[block]
            if blocks[block].ref_cnt == 0 and blocks[block].next_free_block is not None:
                bare.append(block)
        self.evictor.unpin(bare)
        self._idle_shields -= len(bare)

    def block_of(self, low: int) -> Any | None:
        """A block with this hash, if the order has been told of one."""
        blocks = self.pool.blocks
        if self._by_low is None:
            self._by_low = {}
            for number in itertools.compress(range(len(blocks)), self._told):
                key = blocks[number].block_hash
                if key is not None:
                    self._by_low[int.from_bytes(key[HASH_TAIL], "big")] = number
        block = self._by_low.get(low)
        if block is None:
            return None
        key = blocks[block].block_hash
        return blocks[block] if key is not None and int.from_bytes(key[HASH_TAIL], "big") == low else None

    def verify(self) -> bool:
        """Whether queue, pool and evictor agree. Walks everything: for tests."""
        self._settle()
        free = self.queue.get_all_free_blocks()
        stats = self.evictor.stats()
        shielded = sum(1 for block in free if block.block_id in self._shields)
        return (self.active and self.evictor.verify() and len(free) == self.queue.num_free_blocks
                and all(block.ref_cnt == 0 for block in free) and shielded == self._idle_shields
                and stats["free_blocks"] == len(free) - shielded)

    def stop(self) -> None:
        """Back to the stock queue."""
        self.active = False
        detach(self.queue, self._stock_class)
        self.evictor.close()

    # ---- Inside

    def _fail(self, error: Exception) -> None:
        if not self.active:
            return
        self.active = False
        detach(self.queue, self._stock_class)
        self.on_failure(error)

    def _settle(self) -> None:
        if self.pool.cached_block_hash_to_block is not self._map:
            self._flush()
            self._map = self.pool.cached_block_hash_to_block
            self.evictor.clear()
            self._told = bytearray(len(self._told))
            self._by_low = None
            self.on_reset()
        if self._arriving is not None:
            self._resume(self._arriving)
        if self._pins:
            self._flush()

    def _flush(self) -> None:
        pins, self._pins = self._pins, []
        self.evictor.pin(pins)

    def _resume(self, call: Call) -> None:
        self._arriving = None
        if call.waiting:
            call.waiting = False
            self.evictor.start(call.number, call.thread, _EMPTY, native.START, self.clock())

    def _unpin(self, ids: list[int]) -> None:
        if self._shields:
            held = [block for block in ids if block in self._shields]
            self._idle_shields += len(held)
            if held:
                ids = [block for block in ids if block not in self._shields]
        self.evictor.unpin(ids)

    def _forget(self, ids: list[int]) -> None:
        told = self._told
        for block in ids:
            told[block] = 0

    def _set_blocks(self, call: Call, blocks: list[int]) -> None:
        call.blocks = list(blocks)
        call.stored = 0
        if self._filling:
            self._filling.pop(call.request.request_id, None)

    def _store_prompt(self, call: Call, tokens: int, found: int = 0) -> None:
        self._store(call, tokens, found)
        if call.stored < call.prompt_blocks:
            self._filling[call.request.request_id] = call
        elif self._filling:
            self._filling.pop(call.request.request_id, None)

    def _store(self, call: Call, tokens: int, found: int = 0) -> None:
        """Tells of the blocks of a call that have got hashes, up to so many tokens; `found` of them were in the cache."""
        digests = call.request.block_hashes
        ids = call.blocks
        first = call.stored
        last = min(tokens // self.block_size, len(ids), len(digests))
        blocks = self._blocks
        while last > first:
            key = blocks[ids[last - 1]]._block_hash
            if key is not None and key[:-4] == digests[last - 1]:
                break
            last -= 1
        if last <= first:
            return
        hashes = call.hashes
        if len(hashes) < last:
            hashes.extend(low8(digests[len(hashes):last]))
        call.stored = last
        # What was found in the cache is known mostly.
        told = self._told
        known = first + found // self.block_size
        if known > last or not all(map(told.__getitem__, ids[first:known])):
            known = first
        while known < last and told[ids[known]]:
            known += 1
        if known == last:
            return
        fresh = ids[known:last]
        low = hashes[known:last]
        self.evictor.store(hashes[known - 1] if known else None, low, fresh)
        for block in fresh:
            told[block] = 1
        if self._by_low is not None:
            self._by_low.update(zip(low, fresh))

    def _store_strays(self, blocks: list[Any]) -> None:
        """Blocks that are freed with a hash that was not told: those of the answer of a request that is being preempted, or that
        it got in this very step. They come last block first."""
        told = self._told
        untold = [block for block in reversed(blocks) if not told[block.block_id] and block.block_hash is not None]
        if not untold:
            return
        wanted = {block.block_hash[:-4]: block.block_id for block in untold}
        for call in self.calls.values():
            if call.waiting:
                continue
            first = call.stored
            digests = call.request.block_hashes[first:]
            if wanted.keys().isdisjoint(digests):
                continue
            before = low8(call.request.block_hashes[first - 1:first])[0] if first else None
            for digest, low in zip(digests, low8(digests)):
                block = wanted.pop(digest, None)
                if block is not None:
                    self.evictor.store(before, array("Q", (low,)), (block,))
                    told[block] = 1
                    if self._by_low is not None:
                        self._by_low[low] = block
                before = low
            if not wanted:
                return
