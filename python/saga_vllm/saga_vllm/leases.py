"""Leases: chains of blocks that stay until a deadline unless memory needs them.

A lease never holds a reference: its blocks count as free, admission sees all of the memory, a reset of the cache succeeds, and a
pool cannot be deadlocked by leases. What keeps the blocks is the holder:

  strength `policy`   PolicyOrder shields them in the queue (order.py)
  strength `leases`   TailHolder moves those that are free to the tail of vLLM's own queue, the end of a chain before its
                      beginning, again whenever so many blocks were used since that half of what lay before them may be gone

Value: value * (time left) / (ttl). Together leases hold at most `budget` blocks; for one that does not fit the least valuable go if
they are worth less, else it is refused. A block that loses its hash ends the lease from there on.

States of a lease: held, then released (by order), expired (its deadline), or revoked (`memory`, `budget`, `reset`, `reused`). The end
is told once, to `lease.ended(status, reason)`. Times are seconds of one monotonic clock. Cost: O(blocks) for a retain or an end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Holder(Protocol):
    def shield(self, ids: list[int]) -> None: ...

    def unshield(self, ids: list[int]) -> None: ...


class Lease:
    __slots__ = ("claim", "value", "ttl", "deadline", "blocks", "ended")

    def __init__(self, claim: str, value: float, ttl: float, deadline: float, blocks: list[int],
                 ended: Callable[[str, str | None], None]) -> None:
        self.claim = claim
        self.value = value
        self.ttl = ttl
        self.deadline = deadline
        self.blocks = blocks  # from the root on
        self.ended = ended

    def worth(self, now: float) -> float:
        return self.value * max(0.0, self.deadline - now) / self.ttl


class Leases:
    def __init__(self, holder: Holder, budget: int, clock: Callable[[], float]) -> None:
        self.holder = holder
        self.budget = budget
        self.clock = clock
        self.leases: dict[str, Lease] = {}
        self.holders: dict[int, int] = {}  # block -> leases
        self.next_deadline = float("inf")

    def retain(self, claim: str, blocks: list[int], ttl: float, value: float,
               ended: Callable[[str, str | None], None]) -> bool:
        """False: it does not fit into the budget (then the claim, if it held, holds on)."""
        now = self.clock()
        old = self.leases.get(claim)
        others = sorted((lease for lease in self.leases.values() if lease is not old),
                        key=lambda lease: lease.worth(now), reverse=True)
        counts: dict[int, int] = {}
        for lease in others:
            for block in lease.blocks:
                counts[block] = counts.get(block, 0) + 1
        goes: list[Lease] = []
        while len(counts) + sum(1 for block in blocks if block not in counts) > self.budget:
            if not others or others[-1].worth(now) >= value:
                return False
            least = others.pop()
            goes.append(least)
            for block in least.blocks:
                counts[block] -= 1
                if counts[block] == 0:
                    del counts[block]
        for lease in goes:
            self._end(lease, "revoked", "budget")
        lease = Lease(claim, value, ttl, now + ttl, list(blocks), ended)
        for block in lease.blocks:
            self.holders[block] = self.holders.get(block, 0) + 1
        self.holder.shield(lease.blocks)
        if old is not None:
            self._end(old, "released", None)
        self.leases[claim] = lease
        self.next_deadline = min(self.next_deadline, lease.deadline)
        return True

    def release(self, claim: str) -> bool:
        lease = self.leases.get(claim)
        if lease is None:
            return False
        self._end(lease, "released", None)
        return True

    def expire(self) -> None:
        now = self.clock()
        if now < self.next_deadline:
            return
        for lease in [lease for lease in self.leases.values() if lease.deadline <= now]:
            self._end(lease, "expired", None)
        self.next_deadline = min((lease.deadline for lease in self.leases.values()), default=float("inf"))

    def revoke_least(self, reason: str = "memory") -> bool:
        """The least valuable lease goes; of equals the one whose claim comes first. False: there is none."""
        if not self.leases:
            return False
        now = self.clock()
        self._end(min(self.leases.values(), key=lambda lease: (lease.worth(now), lease.claim)), "revoked", reason)
        return True

    def revoke_all(self, reason: str) -> None:
        for lease in list(self.leases.values()):
            self._end(lease, "revoked", reason)

    def lost(self, block: int, reason: str = "reused") -> None:
        """The block does not hold its hash any more: every lease on it ends from there on."""
        for lease in [lease for lease in self.leases.values() if block in lease.blocks]:
            at = lease.blocks.index(block)
            if at == 0:
                self._end(lease, "revoked", reason)
            else:
                gone, lease.blocks = lease.blocks[at:], lease.blocks[:at]
                self._drop(gone)

    def verify(self) -> bool:
        counts: dict[int, int] = {}
        for lease in self.leases.values():
            for block in lease.blocks:
                counts[block] = counts.get(block, 0) + 1
        return counts == self.holders and len(counts) <= self.budget

    def _end(self, lease: Lease, status: str, reason: str | None) -> None:
        if self.leases.get(lease.claim) is lease:
            del self.leases[lease.claim]
        blocks, lease.blocks = lease.blocks, []
        self._drop(blocks)
        lease.ended(status, reason)

    def _drop(self, blocks: list[int]) -> None:
        for block in blocks:
            holders = self.holders[block] - 1
            if holders:
                self.holders[block] = holders
            else:
                del self.holders[block]
        # The end of the chain becomes free first.
        self.holder.unshield(blocks[::-1])


class TailHolder:
    """Keeps the blocks of leases near the tail of vLLM's own queue."""

    def __init__(self, pool: Any, reserve: int) -> None:
        self.pool = pool
        self.reserve = reserve  # so many blocks have to lie before the held ones: what a step can take
        self.keys: dict[int, bytes] = {}  # block -> the hash that it is held for
        self.leases: Leases | None = None
        self.ahead = 0  # blocks before the held ones, at least
        self.half = 0  # when that is left they are moved again
        self.due = True

    def shield(self, ids: list[int]) -> None:
        for block in ids:
            self.keys[block] = self.pool.blocks[block].block_hash
        self.due = True

    def unshield(self, ids: list[int]) -> None:
        assert self.leases is not None
        for block in ids:
            if block not in self.leases.holders:
                self.keys.pop(block, None)

    def step(self, used: int) -> None:
        """After up to `used` blocks have left the queue since the last step. Releases what memory will need, moves the rest."""
        leases = self.leases
        assert leases is not None
        if not leases.leases:
            return
        self.ahead -= used
        if not self.due and self.ahead > max(self.half, self.reserve):
            return
        while leases.leases:
            self._look_for_lost()
            free_held = sum(1 for block in self.keys if self.pool.blocks[block].ref_cnt == 0)
            ahead = self.pool.get_num_free_blocks() - free_held
            if free_held == 0 or ahead > self.reserve:
                break
            leases.revoke_least("memory")
        if leases.leases:
            self._move()
            self.ahead, self.half = ahead, ahead // 2
        self.due = False

    def _look_for_lost(self) -> None:
        assert self.leases is not None
        blocks = self.pool.blocks
        for block, key in list(self.keys.items()):
            if block in self.keys and blocks[block].block_hash != key:
                self.leases.lost(block)

    def _move(self) -> None:
        assert self.leases is not None
        queue, blocks = self.pool.free_block_queue, self.pool.blocks
        now = self.leases.clock()
        moved: set[int] = set()
        order: list[int] = []
        # The most valuable last, and of a chain its root; a block that several hold goes by the most valuable of them.
        for lease in sorted(self.leases.leases.values(), key=lambda lease: lease.worth(now), reverse=True):
            for block in lease.blocks:
                if block not in moved:
                    moved.add(block)
                    order.append(block)
        for block in reversed(order):
            if blocks[block].ref_cnt == 0 and not blocks[block].is_null:
                queue.remove(blocks[block])
                queue.append(blocks[block])
