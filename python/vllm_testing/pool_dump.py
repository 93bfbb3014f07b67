"""Schedulers that write down the engine's block pool on request: what a tracker's view must equal.

    --scheduler-cls vllm_testing.pool_dump.PoolDumpScheduler        where vLLM would take Scheduler
    --scheduler-cls vllm_testing.pool_dump.AsyncPoolDumpScheduler   where it would take AsyncScheduler

A request with `"vllm_xargs": {"saga_pool_dump": "/a/file"}` makes the engine write, at the end of the step that ends the request
and before its answer leaves,

    {"blocks": {"<key>": copies, ..}, "map": {"<key>": copies, ..}, "free": n, "usage": 0.0}

`blocks` counts the pool's blocks by their keys (hash, then group as 4 bytes, hexadecimal), `map` the entries of
cached_block_hash_to_block; `free`: length of the free queue. All events of what is written
down have been handed to the publisher: where no other request is there, a tracker that has read them must know exactly this.

For tests alone: whoever may send requests chooses where the engine writes.
"""

import json
import os
from collections import Counter

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

ARGUMENT = "saga_pool_dump"


class _PoolDump:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._dumps: dict[str, str] = {}

    def add_request(self, request):
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        if ARGUMENT in extra:
            self._dumps[request.request_id] = str(extra[ARGUMENT])
        super().add_request(request)

    def update_from_output(self, *args, **kwargs):
        outputs = super().update_from_output(*args, **kwargs)
        if self._dumps:
            for request_id in [one for one in self._dumps if one not in self.requests]:
                _write(self.kv_cache_manager.block_pool, self._dumps.pop(request_id))
        return outputs


def _write(pool, path: str) -> None:
    mapped = {
        bytes(key).hex(): len(held) if isinstance(held, dict) else 1
        for key, held in pool.cached_block_hash_to_block._cache.items()
    }
    blocks = Counter(bytes(block.block_hash).hex() for block in pool.blocks if block.block_hash is not None)
    content = {"blocks": blocks, "map": mapped, "free": pool.get_num_free_blocks(), "usage": pool.get_usage()}
    with open(path + ".tmp", "w") as file:
        json.dump(content, file)
    os.replace(path + ".tmp", path)


class PoolDumpScheduler(_PoolDump, Scheduler):
    pass


class AsyncPoolDumpScheduler(_PoolDump, AsyncScheduler):
    pass
