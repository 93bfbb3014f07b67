"""The evictor of libsaga (native/include/saga/evictor.h) for block ids of a pool, through ctypes.

Every method makes one crossing with whole arrays. Crossings cost 1 to 2 microseconds, arrays some 50 ns an element. A status that
is not SAGA_OK is a NativeError: all of them mean that the caller's view and the library's have parted.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ABI_VERSION = 1
NO_THREAD = 2**64 - 1
NOT_DECLARED = 2**64 - 1
NONE = 2**32 - 1

NOT_FOUND = 2
_STATUS = {
    1: "invalid argument", 2: "not found", 3: "full", 4: "wrong state", 5: "time reversed", 9: "out of memory",
    10: "version mismatch", 11: "out of blocks",
}

START, TOOL, USER = 0, 1, 2  # saga_prompt_kind_t
UNKNOWN, TOOL_USE, END_TURN = 0, 1, 2  # saga_stop_reason_t


class NativeError(RuntimeError):
    """A function of libsaga refused."""


class LibraryMissing(RuntimeError):
    """No libsaga, or one of another interface."""


class Outcome(NamedTuple):
    """How a call ended, as far as known."""

    stop_reason: int = UNKNOWN
    tool_class: int = 0
    session_end: bool = False
    output_tokens: int = 0
    declared_gap_us: int = NOT_DECLARED


class _Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in
                ("struct_size", "block_count", "block_tokens", "max_calls", "ghosts", "policy")]


class _Outcome(ctypes.Structure):
    _fields_ = [("stop_reason", ctypes.c_uint32), ("tool_class", ctypes.c_uint32), ("session_end", ctypes.c_uint32),
                ("output_tokens", ctypes.c_uint32), ("declared_gap_us", ctypes.c_uint64)]


class _Stats(ctypes.Structure):
    _fields_ = ([(name, ctypes.c_uint32) for name in
                 ("free_blocks", "pages", "hollow", "ghosts", "heads", "reserved")]
                + [(name, ctypes.c_uint64) for name in
                   ("taken_total", "taken_without_hash_total", "taken_copies_total", "evicted_total", "bypassed_total",
                    "forgotten_total", "requested_pages_total", "missed_pages_total", "memory_bytes")])


def candidates() -> list[Path]:
    """Where libsaga is looked for: SAGA_LIBRARY alone if it is set, else in the package."""
    given = os.environ.get("SAGA_LIBRARY")
    if given:
        return [Path(given)]
    name = {"darwin": "libsaga.dylib", "win32": "saga.dll"}.get(sys.platform, "libsaga.so")
    return [Path(__file__).parent / "_lib" / name]


_library: ctypes.PyDLL | None = None


def load() -> ctypes.PyDLL:
    """libsaga, of the right version; LibraryMissing says why not."""
    global _library
    if _library is not None:
        return _library
    path = candidates()[0]
    if not path.exists():
        raise LibraryMissing(f"libsaga is not at {path} (set SAGA_LIBRARY to where it is)")
    try:
        # Calls take microseconds: giving the interpreter lock away for them would cost more than they do.
        library = ctypes.PyDLL(str(path))
        library.saga_abi_version.restype = ctypes.c_uint32
        version = library.saga_abi_version()
        if version != ABI_VERSION:
            raise LibraryMissing(f"{path} has interface version {version}, wanted is {ABI_VERSION}")
        _declare(library)
    except (OSError, AttributeError) as error:
        raise LibraryMissing(f"{path} cannot be used: {error}") from error
    _library = library
    return library


def library_version() -> str:
    """The version that libsaga states."""
    library = load()
    library.saga_version.restype = ctypes.c_char_p
    return library.saga_version().decode()


def _declare(library: ctypes.PyDLL) -> None:
    pointer, u32, u64, size = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t
    for name, arguments in {
        "create": [pointer, pointer],
        "start": [pointer, u32, u64, pointer, size, ctypes.c_int, u64, pointer],
        "end": [pointer, pointer, size, u64],
        "preempt": [pointer, pointer, size, u64],
        "told": [pointer, u64, pointer, u64],
        "threads_left": [pointer, pointer, size, u64],
        "store": [pointer, pointer, pointer, pointer, size],
        "drop": [pointer, pointer, size],
        "pin": [pointer, pointer, size],
        "unpin": [pointer, pointer, size],
        "prefer": [pointer, pointer, size],
        "take": [pointer, pointer, size, u64],
        "clear": [pointer],
        "stats": [pointer, pointer],
        "verify": [pointer, pointer],
    }.items():
        function = getattr(library, f"saga_evictor_{name}")
        function.argtypes = arguments
        function.restype = ctypes.c_int
    library.saga_evictor_options_init_sized.argtypes = [pointer, u32]
    library.saga_evictor_options_init_sized.restype = None
    library.saga_evictor_destroy.argtypes = [pointer]
    library.saga_evictor_destroy.restype = None


def _check(status: int, function: str) -> None:
    if status:
        raise NativeError(f"saga_evictor_{function}: {_STATUS.get(status, status)}")


def _address(values: array) -> int:
    return values.buffer_info()[0]


def _to_c(outcome: Outcome) -> _Outcome:
    return _Outcome(outcome.stop_reason, outcome.tool_class, outcome.session_end, outcome.output_tokens,
                    outcome.declared_gap_us)


class Evictor:
    """One evictor. Blocks are sequences of ints, hashes arrays of type 'Q', times microseconds."""

    def __init__(self, blocks: int, block_tokens: int, *, lru: bool = False, ghosts: int | None = None,
                 max_calls: int = 16384) -> None:
        self._handle: int | None = None
        library = self._library = load()
        options = _Options()
        library.saga_evictor_options_init_sized(ctypes.byref(options), ctypes.sizeof(options))
        options.block_count, options.block_tokens, options.max_calls = blocks, block_tokens, max_calls
        options.policy = 0 if lru else 1
        if ghosts is not None:
            options.ghosts = ghosts
        handle = ctypes.c_void_p()
        _check(library.saga_evictor_create(ctypes.byref(options), ctypes.byref(handle)), "create")
        self._handle = handle.value
        self._word = ctypes.c_uint32()
        self._word_address = ctypes.addressof(self._word)
        self._parent = ctypes.c_uint64()
        self._parent_address = ctypes.addressof(self._parent)
        # A saga_evictor_end_t in words: call, last block, stop reason, tool class, session end, output tokens, declared gap (two).
        # It is kept, and most of it stays as it is: making a Structure costs more than the call.
        self._ending = array("I", (0, 0, UNKNOWN, 0, 0, 0, NONE, NONE))
        self._ending_as: Outcome | None = None
        # What is called often, with its first arguments bound: looking names up costs as much as a crossing.
        self._start = functools.partial(library.saga_evictor_start, self._handle)
        self._store = functools.partial(library.saga_evictor_store, self._handle)
        self._pin = functools.partial(library.saga_evictor_pin, self._handle)
        self._unpin = functools.partial(library.saga_evictor_unpin, self._handle)
        self._prefer = functools.partial(library.saga_evictor_prefer, self._handle)
        self._take = functools.partial(library.saga_evictor_take, self._handle)
        self.take_one = self._make_take_one()
        self._preempt_one = functools.partial(library.saga_evictor_preempt, self._handle, self._word_address, 1)
        self._end_one = functools.partial(library.saga_evictor_end, self._handle, _address(self._ending), 1)

    def _make_take_one(self) -> Callable[[int], int]:
        """take_one(now): one block. What is called more often than all others together neither makes an array nor looks anything
        up."""
        word = self._word
        take = functools.partial(self._library.saga_evictor_take, self._handle, self._word_address, 1)

        def take_one(now: int) -> int:
            status = take(now)
            if status:
                _check(status, "take")
            return word.value

        return take_one

    def close(self) -> None:
        """Frees it. Nothing else may be called afterwards."""
        if self._handle is not None:
            self._library.saga_evictor_destroy(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()

    def start(self, call: int, thread: int, hashes: array, kind: int, now: int) -> int:
        status = self._start(call, thread, hashes.buffer_info()[0], len(hashes), kind, now, self._word_address)
        if status:
            _check(status, "start")
        return self._word.value

    def end(self, call: int, last_block: int, outcome: Outcome | None, output_tokens: int, now: int) -> None:
        """`outcome` as far as it was told; the tokens of the answer are counted here."""
        ending = self._ending
        if outcome is not self._ending_as:
            gap = NOT_DECLARED if outcome is None else outcome.declared_gap_us
            ending[2:5] = array("I", (UNKNOWN, 0, 0) if outcome is None else outcome[:3])
            ending[6:8] = array("I", gap.to_bytes(8, sys.byteorder))
            self._ending_as = outcome
        ending[0] = call
        ending[1] = last_block
        ending[5] = output_tokens
        status = self._end_one(now)
        if status:
            _check(status, "end")

    def preempt(self, calls: Sequence[int], now: int) -> None:
        values = array("I", calls)
        _check(self._library.saga_evictor_preempt(self._handle, _address(values), len(values), now), "preempt")

    def preempt_one(self, call: int, now: int) -> None:
        self._word.value = call
        status = self._preempt_one(now)
        if status:
            _check(status, "preempt")

    def told(self, thread: int, outcome: Outcome, now: int) -> bool:
        """False if the thread is not in a gap."""
        told = _to_c(outcome)
        status = self._library.saga_evictor_told(self._handle, thread, ctypes.byref(told), now)
        if status == NOT_FOUND:
            return False
        _check(status, "told")
        return True

    def threads_left(self, threads: Sequence[int], now: int) -> None:
        values = array("Q", threads)
        _check(self._library.saga_evictor_threads_left(self._handle, _address(values), len(values), now), "threads_left")

    def store(self, parent: int | None, hashes: array, blocks: Sequence[int]) -> None:
        before = None
        if parent is not None:
            self._parent.value = parent
            before = self._parent_address
        ids = array("I", blocks)
        status = self._store(before, hashes.buffer_info()[0], ids.buffer_info()[0], len(ids))
        if status:
            _check(status, "store")

    def drop(self, blocks: Sequence[int]) -> None:
        ids = array("I", blocks)
        _check(self._library.saga_evictor_drop(self._handle, _address(ids), len(ids)), "drop")

    def pin(self, blocks: Sequence[int]) -> None:
        ids = array("I", blocks)
        status = self._pin(ids.buffer_info()[0], len(ids))
        if status:
            _check(status, "pin")

    def unpin(self, blocks: Sequence[int]) -> None:
        ids = array("I", blocks)
        status = self._unpin(ids.buffer_info()[0], len(ids))
        if status:
            _check(status, "unpin")

    def prefer(self, blocks: Sequence[int]) -> None:
        ids = array("I", blocks)
        status = self._prefer(ids.buffer_info()[0], len(ids))
        if status:
            _check(status, "prefer")

    def unpin_and_prefer(self, blocks: Sequence[int]) -> None:
        """Both, with one array."""
        ids = array("I", blocks)
        address, count = ids.buffer_info()
        status = self._unpin(address, count)
        if status:
            _check(status, "unpin")
        status = self._prefer(address, count)
        if status:
            _check(status, "prefer")

    def take(self, count: int, now: int) -> Sequence[int]:
        ids = array("I", bytes(4 * count))
        status = self._take(ids.buffer_info()[0], count, now)
        if status:
            _check(status, "take")
        return ids

    def clear(self) -> None:
        _check(self._library.saga_evictor_clear(self._handle), "clear")

    def stats(self) -> dict[str, int]:
        stats = _Stats()
        _check(self._library.saga_evictor_stats(self._handle, ctypes.byref(stats)), "stats")
        return {name: getattr(stats, name) for name, _ in _Stats._fields_ if name != "reserved"}

    def verify(self) -> bool:
        _check(self._library.saga_evictor_verify(self._handle, self._word_address), "verify")
        return self._word.value == 1
