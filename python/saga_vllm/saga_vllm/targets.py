"""What directives speak of: from hashes, tokens, requests and threads to blocks of the pool.

RequestBook remembers which block hashes belong to requests that run or have just ended, and to the newest call of a thread. It
holds references to vLLM's own lists of hashes, no copies; those that ended go, oldest first, when they have four times as many
hashes as the pool has blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .envelope import Target

MOST_ENDED = 1024
FRESH = 16  # requests that have ended and are filed together: one at a time costs several times as much


class Unsupported(Exception):
    """A target that cannot be resolved here."""


class RequestBook:
    def __init__(self, most_hashes: int) -> None:
        self.most_hashes = most_hashes
        self.open: dict[str, tuple[Any, int | None]] = {}  # request_id -> request, thread
        self.ended: OrderedDict[str, list[bytes]] = OrderedDict()
        self.threads: OrderedDict[int, list[bytes]] = OrderedDict()
        self._fresh: list[tuple[str, list[bytes], int | None]] = []  # ended, not filed yet
        self._ended_hashes = 0
        self._thread_hashes = 0

    def came(self, request: Any, thread: int | None) -> None:
        self.open[request.request_id] = (request, thread)

    def went(self, request: Any) -> None:
        found = self.open.pop(request.request_id, None)
        if found is None:
            return
        self._fresh.append((request.request_id, request.block_hashes, found[1]))
        if len(self._fresh) >= FRESH:
            self._file()

    def _file(self) -> None:
        for request_id, hashes, thread in self._fresh:
            self._ended_hashes += len(hashes) - len(self.ended.pop(request_id, ()))
            self.ended[request_id] = hashes
            if thread is not None:
                self._thread_hashes += len(hashes) - len(self.threads.pop(thread, ()))
                self.threads[thread] = hashes
        self._fresh.clear()
        while len(self.ended) > MOST_ENDED or (self._ended_hashes > self.most_hashes and len(self.ended) > 1):
            self._ended_hashes -= len(self.ended.popitem(last=False)[1])
        while self._thread_hashes > self.most_hashes and len(self.threads) > 1:
            self._thread_hashes -= len(self.threads.popitem(last=False)[1])

    def of_request(self, request_id: str) -> list[bytes] | None:
        """By vLLM's id, or by the one that the client knows: vLLM puts a prefix and suffixes around it."""
        self._file()
        if request_id in self.open:
            return self.open[request_id][0].block_hashes
        if request_id in self.ended:
            return self.ended[request_id]
        for known in reversed(list(self.open)):
            if _is_within(request_id, known):
                return self.open[known][0].block_hashes
        for known in reversed(self.ended):
            if _is_within(request_id, known):
                return self.ended[known]
        return None

    def of_thread(self, thread: int) -> list[bytes] | None:
        for request, of in reversed(list(self.open.values())):
            if of == thread:
                return request.block_hashes
        self._file()
        return self.threads.get(thread)


def _is_within(request_id: str, known: str) -> bool:
    """As in cmpl-<request_id>-0-<suffix>."""
    at = known.find(request_id)
    return at >= 0 and (at == 0 or known[at - 1] == "-") and known[at + len(request_id):][:1] in ("", "-")


class Resolver:
    """`hash_tokens` gives the digests of the full blocks of a token list, or raises Unsupported; `block_of_low` a block by the
    low 8 bytes, if there is somebody who knows."""

    def __init__(self, pool: Any, book: RequestBook, hash_tokens: Callable[[Target], list[bytes]],
                 block_of_low: Callable[[int], Any | None] | None) -> None:
        self.pool = pool
        self.book = book
        self.hash_tokens = hash_tokens
        self.block_of_low = block_of_low
        self._scan: dict[int, Any] | None = None

    def forget_scan(self) -> None:
        """Blocks have moved since: look anew."""
        self._scan = None

    def blocks(self, target: Target) -> tuple[list[Any], int]:
        """The blocks of the chain that are there, up to the first that is not, and how many are missing; both without those
        before `from_block`."""
        if target.hashes is not None:
            digests: list[bytes] | None = list(target.hashes)
        elif target.token_ids is not None:
            digests = self.hash_tokens(target)
        elif target.request_id is not None:
            digests = self.book.of_request(target.request_id)
        else:
            assert target.thread is not None
            digests = self.book.of_thread(target.thread)
        if digests is None:
            return [], 0
        found = []
        for digest in digests:
            block = self.block(digest)
            if block is None:
                break
            found.append(block)
        first = target.from_block
        return found[first:], len(digests) - max(len(found), min(first, len(digests)))

    def block(self, digest: bytes) -> Any | None:
        """One block with this hash, of group 0."""
        if len(digest) > 8:
            return self.pool.cached_block_hash_to_block.get_one_block(digest + b"\0\0\0\0")
        low = int.from_bytes(digest, "big")
        if self.block_of_low is not None:
            block = self.block_of_low(low)
            if block is not None:
                return block
        if self._scan is None:
            self._scan = {}
            for block in self.pool.blocks:
                key = block.block_hash
                if key is not None and key[-4:] == b"\0\0\0\0":
                    self._scan[int.from_bytes(key[-12:-4], "big")] = block
        block = self._scan.get(low)
        if block is None or block.block_hash is None or int.from_bytes(block.block_hash[-12:-4], "big") != low:
            return None
        return block
