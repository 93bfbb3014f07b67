"""The queue of free blocks of a vLLM block pool, in an order of our own.

vLLM keeps the free blocks of a pool in a doubly linked list, FreeKVCacheBlockQueue, and takes victims from its head. OrderedQueue
is a subclass with the same data: the list, the count and every link stay as vLLM keeps them (in the order of release), so whoever
walks the list finds what is free, and taking the subclass off again (`detach`) leaves a stock queue in a stock order. What
differs is which blocks `popleft` and `popleft_n` give: those that the `order` names.

contract_problem() says what of vLLM's classes is not as expected; with anything unexpected the queue is not used.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Protocol

QUEUE_METHODS = {"popleft", "popleft_n", "remove", "append", "append_n", "prepend_n", "get_all_free_blocks",
                 "iter_blocks_after"}
QUEUE_ATTRIBUTES = {"num_free_blocks", "fake_free_list_head", "fake_free_list_tail"}
BLOCK_FIELDS = {"block_id", "ref_cnt", "pool", "_block_hash", "_block_hash_num_tokens", "prev_free_block",
                "next_free_block", "is_null"}
BLOCK_METHODS = {"block_hash", "block_hash_num_tokens", "set_block_hash", "reset_hash"}


class Order(Protocol):
    """Who names the victims. None of it raises."""

    def take_one(self) -> Any | None:
        """The block that goes now; None: the head of the list."""

    def take(self, count: int) -> list[Any] | None:
        """The `count` blocks that go now, all of them in the list; None: the head of the list."""

    def removed(self, block: Any) -> None:
        """A free block is used again."""

    def freed(self, blocks: list[Any]) -> None:
        """Blocks with a hash whose last user has gone, of each request the last block first."""

    def freed_first(self, blocks: list[Any]) -> None:
        """Blocks to be taken next, the first of them first."""


def ordered_queue_class(base: type) -> type:
    """The subclass of vLLM's queue class."""

    class OrderedQueue(base):  # type: ignore[misc, valid-type]
        order: Order

        def popleft(self) -> Any:
            if self.num_free_blocks == 0:
                return base.popleft(self)
            return self.popleft_n(1)[0]

        def popleft_n(self, n: int) -> list[Any]:
            if n == 1 and self.num_free_blocks > 0:
                block = self.order.take_one()
                if block is None:
                    return base.popleft_n(self, 1)
                before, after = block.prev_free_block, block.next_free_block
                before.next_free_block = after
                after.prev_free_block = before
                block.prev_free_block = block.next_free_block = None
                self.num_free_blocks -= 1
                return [block]
            if n <= 0 or n > self.num_free_blocks:
                return base.popleft_n(self, n)
            blocks = self.order.take(n)
            if blocks is None:
                return base.popleft_n(self, n)
            for block in blocks:
                before, after = block.prev_free_block, block.next_free_block
                before.next_free_block = after
                after.prev_free_block = before
                block.prev_free_block = block.next_free_block = None
            self.num_free_blocks -= n
            return blocks

        def remove(self, block: Any) -> None:
            base.remove(self, block)
            self.order.removed(block)

        def append(self, block: Any) -> None:
            base.append(self, block)
            self.order.freed([block])

        def append_n(self, blocks: list[Any]) -> None:
            if blocks:
                base.append_n(self, blocks)
                self.order.freed(blocks)

        def prepend_n(self, blocks: list[Any]) -> None:
            if blocks:
                base.prepend_n(self, blocks)
                self.order.freed_first(blocks)

        def move_first(self, blocks: list[Any]) -> None:
            """Free blocks to the head of the list, the first of them first, without telling the order."""
            for block in blocks:
                base.remove(self, block)
            base.prepend_n(self, blocks)

    return OrderedQueue


def attach(queue: Any, order: Order) -> type:
    """Makes `queue` an ordered one in place and returns the class that it had."""
    base = type(queue)
    queue.order = order
    queue.__class__ = ordered_queue_class(base)
    return base


def detach(queue: Any, base: type) -> None:
    """The queue as it was, with the blocks that are free now."""
    queue.__class__ = base
    queue.__dict__.pop("order", None)


def contract_problem(pool: Any, queue_class: type, block_class: type) -> str | None:
    """What is not as it has to be for an order of our own; None: all is."""
    queue = pool.free_block_queue
    if type(queue) is not queue_class:
        return f"the pool's queue is a {type(queue).__name__}"
    if queue_class.__mro__[1:] != (object,):
        return "FreeKVCacheBlockQueue has base classes"
    methods = {name for name in vars(queue_class) if not name.startswith("__")}
    if methods - QUEUE_METHODS:
        return f"FreeKVCacheBlockQueue has more than is known: {', '.join(sorted(methods - QUEUE_METHODS))}"
    if QUEUE_METHODS - methods - {"iter_blocks_after"}:
        return f"FreeKVCacheBlockQueue lacks {', '.join(sorted(QUEUE_METHODS - methods))}"
    if set(vars(queue)) != QUEUE_ATTRIBUTES:
        return f"a queue has the attributes {', '.join(sorted(vars(queue)))}"
    names = {field.name for field in fields(block_class)}
    if names - BLOCK_FIELDS or BLOCK_FIELDS - names - {"pool", "_block_hash_num_tokens"}:
        return f"KVCacheBlock has the fields {', '.join(sorted(names))}"
    known = {name for name in vars(block_class) if not name.startswith("_")}
    if known - BLOCK_FIELDS - BLOCK_METHODS or not {"block_hash", "reset_hash"} <= known:
        return f"KVCacheBlock has the members {', '.join(sorted(known))}"
    needed = {"blocks", "cached_block_hash_to_block", "evict_blocks", "null_block", "enable_caching", "hash_block_size",
              "num_gpu_blocks", "get_num_free_blocks"}
    missing = {name for name in needed if not hasattr(pool, name)}
    if missing:
        return f"the pool lacks {', '.join(sorted(missing))}"
    if not hasattr(pool.cached_block_hash_to_block, "get_one_block"):
        return "the pool's map of hashes lacks get_one_block"
    free = [block.block_id for block in queue.get_all_free_blocks()]
    if free != list(range(1, pool.num_gpu_blocks)) or queue.num_free_blocks != len(free):
        return "the pool is in use already"
    return _dry_run(queue_class, block_class)


class _HeadOrder:
    """Names what a stock queue would give, by rules of its own: a deque of ids."""

    def __init__(self, blocks: list[Any]) -> None:
        self.blocks = blocks
        self.ids = [block.block_id for block in blocks]

    def take_one(self) -> Any:
        return self.take(1)[0]

    def take(self, count: int) -> list[Any]:
        taken, self.ids = self.ids[:count], self.ids[count:]
        return [self.blocks[i] for i in taken]

    def removed(self, block: Any) -> None:
        self.ids.remove(block.block_id)

    def freed(self, blocks: list[Any]) -> None:
        self.ids += [block.block_id for block in blocks]

    def freed_first(self, blocks: list[Any]) -> None:
        self.ids = [block.block_id for block in blocks] + self.ids


def _exercise(queue: Any, blocks: list[Any]) -> list[Any]:
    """What each operation of the contract gives on a queue of eight blocks."""
    seen: list[Any] = []

    def look() -> None:
        seen.append(([block.block_id for block in queue.get_all_free_blocks()], queue.num_free_blocks))

    seen.append(queue.popleft().block_id)
    seen.append([block.block_id for block in queue.popleft_n(3)])
    queue.remove(blocks[5])
    look()
    queue.append_n([blocks[2], blocks[1]])
    queue.append(blocks[0])
    queue.prepend_n([blocks[3], blocks[5]])
    look()
    seen.append([block.block_id for block in queue.popleft_n(6)])
    look()
    seen.append([block.block_id for block in queue.popleft_n(2)])
    look()
    return seen


def _dry_run(queue_class: type, block_class: type) -> str | None:
    results = []
    for ordered in (False, True):
        blocks = [block_class(i) for i in range(8)]
        queue = queue_class(blocks)
        if ordered:
            attach(queue, _HeadOrder(blocks))
        try:
            results.append(_exercise(queue, blocks))
        except Exception as error:  # noqa: BLE001 - whatever it is, the queue is not what was expected
            return f"a queue does not do what it should: {error!r}"
        if any(block.prev_free_block is not None or block.next_free_block is not None for block in blocks):
            return "a block that was taken keeps its links"
    expected = [0, [1, 2, 3], ([4, 6, 7], 3), ([3, 5, 4, 6, 7, 2, 1, 0], 8), [3, 5, 4, 6, 7, 2], ([1, 0], 2), [1, 0],
                ([], 0)]
    if results[0] != expected:
        return f"a queue gives {results[0]}, wanted was {expected}"
    if results[1] != expected:
        return "the ordered queue differs from the stock queue"
    return None
