"""vLLM's real scheduler without server, processes or model: for tests and benchmarks.

Engine.step() is one turn of the engine core: schedule(), a made-up output, update_from_output(). Tokens are a function of the
request and the position, so that no two requests generate the same blocks.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ.setdefault("PYTHONHASHSEED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

BLOCK = 16
VOCABULARY = 32000
_folder: tempfile.TemporaryDirectory | None = None


def model_folder() -> str:
    """A folder with the config.json of a tiny model; kept for the life of the process."""
    global _folder
    if _folder is None:
        _folder = tempfile.TemporaryDirectory(prefix="saga-vllm-model-")
        Path(_folder.name, "config.json").write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
            "max_position_embeddings": 1 << 20, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 10000.0}))
    return _folder.name


class Engine:
    def __init__(self, blocks: int, *, connector: dict[str, Any] | None = None, transfer: dict[str, Any] | None = None,
                 max_num_seqs: int = 64, max_num_batched_tokens: int = 4096, max_model_len: int | None = None,
                 specs: list[Any] | None = None, caching: bool = True, events: bool = True) -> None:
        """`connector`: extra config of a SagaConnector; `transfer`: a whole kv_transfer_config instead."""
        import torch
        from vllm.config import KVTransferConfig
        from vllm.config.kv_events import KVEventsConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core import kv_cache_utils
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        if connector is not None:
            transfer = {"kv_connector": "SagaConnector", "kv_connector_module_path": "saga_vllm.connector",
                        "kv_role": "kv_producer", "kv_connector_extra_config": connector}
        config = EngineArgs(
            model=model_folder(), skip_tokenizer_init=True, load_format="dummy", dtype="float32", enforce_eager=True,
            max_model_len=max_model_len or (blocks - 1) * BLOCK, block_size=BLOCK, max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens, enable_prefix_caching=caching, async_scheduling=False,
            prefix_caching_hash_algo="sha256_cbor", num_gpu_blocks_override=blocks,
            kv_transfer_config=KVTransferConfig(**transfer) if transfer is not None else None,
            kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="null") if events else None,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = blocks
        register_all_kvcache_specs(config)
        function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        kv_cache_utils.init_none_hash(function)
        if specs is None:
            specs = [FullAttentionSpec(block_size=BLOCK, num_kv_heads=4, head_size=16, dtype=torch.float32)]
        groups = [KVCacheGroupSpec([f"layer.{i}"], spec) for i, spec in enumerate(specs)]
        self.config = config
        self.scheduler = Scheduler(
            vllm_config=config, kv_cache_config=KVCacheConfig(blocks, [], groups),
            structured_output_manager=StructuredOutputManager(config), block_size=BLOCK, hash_block_size=BLOCK,
            log_stats=True)
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.hasher = kv_cache_utils.get_request_block_hasher(BLOCK, function)
        self.requests: dict[str, Any] = {}
        self.hits: dict[str, int] = {}
        self.events: list[Any] = []
        self.count = 0
        self.scheduler.kv_event_publisher.publish = lambda batch: self.events.extend(batch.events)

    @property
    def connector(self) -> Any:
        return self.scheduler.connector

    def request(self, tokens: list[int], max_tokens: int = 1, *, session: str | None = None, saga: Any = None,
                name: str | None = None) -> str:
        """Adds a request and returns its id."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        self.count += 1
        name = name or f"r{self.count}"
        extra = {"kv_transfer_params": {"saga": saga}} if saga is not None else None
        request = Request(request_id=name, prompt_token_ids=list(tokens), pooling_params=None, session_id=session,
                          sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, extra_args=extra),
                          block_hasher=self.hasher)
        self.requests[name] = request
        self.scheduler.add_request(request)
        return name

    def step(self) -> list[str]:
        """Returns the requests that ended."""
        from vllm.v1.outputs import ModelRunnerOutput

        output = self.scheduler.schedule()
        names = list(output.num_scheduled_tokens)
        for new in output.scheduled_new_reqs:
            self.hits.setdefault(new.req_id, new.num_computed_tokens)
        tokens = []
        for name in names:
            request = self.requests[name]
            done = request.num_computed_tokens >= request.num_tokens  # counted by schedule() already
            number = sum(name.encode()) * 131 + request.num_tokens * 7919 + len(name)
            tokens.append([3 + number % (VOCABULARY - 3)] if done else [])
        result = ModelRunnerOutput(req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)},
                                   sampled_token_ids=tokens, logprobs=None, prompt_logprobs_dict={}, pooler_output=[])
        before = set(self.scheduler.requests)
        self.scheduler.update_from_output(output, result)
        return sorted(before - set(self.scheduler.requests))

    def run(self, most: int = 100000) -> None:
        """Until no request is left."""
        while self.scheduler.has_unfinished_requests():
            self.step()
            most -= 1
            assert most > 0, "the engine makes no progress"

    def serve(self, tokens: list[int], max_tokens: int = 1, **given: Any) -> int:
        """One request alone, to its end; how many of its tokens were found in the cache."""
        name = self.request(tokens, max_tokens, **given)
        self.run()
        return self.hits[name]

    def cached(self, tokens: list[int]) -> int:
        """Leading full blocks of a prompt that are in the cache; touches nothing."""
        from vllm.v1.core.kv_cache_utils import hash_block_tokens
        from vllm.utils.hashing import get_hash_fn_by_name

        function = get_hash_fn_by_name("sha256_cbor")
        parent = None
        count = 0
        for first in range(0, len(tokens) - BLOCK + 1, BLOCK):
            parent = hash_block_tokens(function, parent, tokens[first:first + BLOCK])
            if self.pool.cached_block_hash_to_block.get_one_block(parent + b"\0\0\0\0") is None:
                break
            count += 1
        return count

    def close(self) -> None:
        if self.connector is not None:
            self.connector.shutdown()


def prompt(seed: int, length: int, before: list[int] | None = None) -> list[int]:
    """Tokens that no other seed gives."""
    return list(before or []) + [3 + (seed * 1009 + i * 31 + (seed * i) % 97) % (VOCABULARY - 3) for i in range(length)]
