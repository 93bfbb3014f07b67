"""FakeExecutor: vLLM's model runner without a model.

Everything else of the server is real: HTTP, scheduler, block pool, hashing, events, connectors. Named to vLLM by
`--distributed-executor-backend vllm_testing.fake_executor.FakeExecutor`; runs in the engine core process. Works with
vLLM 0.15.1 to 0.33.0: methods that a version does not know are never called.

Tokens. A request gets a token in each step that completes what is known of it (its prompt, and after a preemption also
what it had generated). Which token: see tokens.py; a function of the prompt and the position, so two servers give one
prompt the same answer, as a real model at temperature 0 would.

Time. With a step-time model each step takes, from its beginning, what the model says divided by the time scale. The
process sleeps, it does not compute. Without a model no step sleeps. Scheduling hides behind the step before, as with
asynchronous scheduling (step_time.StepClock); with SAGA_STEP_OVERLAP=0 scheduling and steps add up.

Settings, all environment variables, read once:

    SAGA_STEP_MODEL       JSON of step_time.StepTimeModel, or a profile's name; unset or empty: no step sleeps
    SAGA_TIME_SCALE       default 1; 10 = everything ten times as fast as the model says
    SAGA_STEP_OVERLAP     default 1; see above
    SAGA_EXECUTOR_REPORT  file to write counts to, as JSON; renamed into place, at most every 0.2 s
    SAGA_TOKEN_RANGE      "low:high": ids that are emitted, high excluded; default 3 to the vocabulary's size
    SAGA_SCRIPT_FILE      scripted answers: see tokens.py

The report: pid, steps (with tokens in them), busy_seconds (sum of the model's step times, in GPU seconds, not scaled),
late_seconds (in wall seconds), prefill_tokens, decode_tokens (in steps after the prompt), requests (first scheduled),
resumed (scheduled again after a preemption), running, scripted, time_scale, step_model, started (Unix time), updated.
"""

import ctypes
import json
import os
import signal
import threading
import time
from concurrent.futures import Future

import torch
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput

from .step_time import StepClock, StepTimeModel
from .tokens import TokenSource

REPORT_INTERVAL = 0.2


class _Running:
    """A request between its first scheduling and its end."""

    __slots__ = ("answer", "prompt_length")

    def __init__(self, prompt_length, answer):
        self.prompt_length = prompt_length
        self.answer = answer


class _Report:
    """Counts, written to a file by a thread of their own, so that an idle engine's last state is on disk too."""

    def __init__(self, path, counts):
        self._path = path
        self.counts = counts
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._stopped = False
        if path:
            self._write()
            threading.Thread(target=self._loop, name="executor-report", daemon=True).start()

    def changed(self):
        self._changed.set()

    def stop(self):
        self._stopped = True
        self._changed.set()
        if self._path:
            self._write()

    def _loop(self):
        while not self._stopped:
            self._changed.wait()
            self._changed.clear()
            self._write()
            time.sleep(REPORT_INTERVAL)

    def _write(self):
        with self._lock:
            self.counts["updated"] = time.time()
            temporary = f"{self._path}.{os.getpid()}.tmp"
            try:
                with open(temporary, "w") as file:
                    json.dump(dict(self.counts), file)
                os.replace(temporary, self._path)
            except OSError:
                pass  # a folder that was removed must not stop an engine


class FakeExecutor(Executor):
    def _init_executor(self) -> None:
        _die_with_parent()
        text = os.environ.get("SAGA_STEP_MODEL", "")
        self._model = StepTimeModel.parse(text) if text else None
        self._time_scale = float(os.environ.get("SAGA_TIME_SCALE") or 1)
        if not self._time_scale > 0:
            raise ValueError("SAGA_TIME_SCALE must be above 0")
        self._clock = StepClock(overlap=os.environ.get("SAGA_STEP_OVERLAP", "1") != "0")
        self._running: dict[str, _Running] = {}
        self._tokens = TokenSource(
            vocabulary=self.model_config.get_vocab_size(),
            end_of_text=_end_of_text(self.model_config),
            model_folder=self.model_config.model,
        )
        self._report = _Report(
            os.environ.get("SAGA_EXECUTOR_REPORT"),
            {
                "pid": os.getpid(),
                "steps": 0,
                "busy_seconds": 0.0,
                "late_seconds": 0.0,
                "prefill_tokens": 0,
                "decode_tokens": 0,
                "requests": 0,
                "resumed": 0,
                "running": 0,
                "scripted": 0,
                "time_scale": self._time_scale,
                "step_model": json.loads(self._model.to_json()) if self._model else None,
                "started": time.time(),
            },
        )

    # What the engine asks before it starts. The smallest KV cache that vLLM accepts: it is never allocated.

    def get_kv_cache_specs(self):
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size, num_kv_heads=1, head_size=8, dtype=torch.float16
        )
        return [{"layers.0": spec}]

    def get_supported_kv_cache_layouts(self):
        return [["LBNHC"]]

    def set_kv_cache_layout(self, *args):
        pass

    def determine_available_memory(self):
        return [1 << 36]

    def get_simple_cpu_offload_num_blocks(self):
        return None

    def initialize_from_config(self, kv_cache_configs):
        pass

    def compile_or_warm_up_model(self):
        pass

    def get_kv_connector_handshake_metadata(self):
        return [None]

    @property
    def supported_tasks(self):
        return ("generate",)

    def check_health(self):
        pass

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None, non_block=False):
        if non_block:
            return _completed([None])
        return [None]

    def reset_mm_cache(self):
        pass

    def reset_encoder_cache(self):
        pass

    def execute_dummy_batch(self):
        pass

    def shutdown(self):
        self._report.stop()

    # Steps.

    def execute_model(self, scheduler_output, non_block=False):
        output = self._step(scheduler_output)
        return _completed(output) if non_block else output

    def sample_tokens(self, grammar_output, non_block=False):
        raise RuntimeError("execute_model has already returned the tokens of this step")

    def _step(self, scheduled) -> ModelRunnerOutput:
        begin = time.monotonic()
        counts = self._report.counts
        running = self._running
        for request_id in scheduled.finished_req_ids:
            running.pop(request_id, None)
        continued = bool(running)

        number_of = scheduled.num_scheduled_tokens
        request_ids: list[str] = []
        tokens: list[list[int]] = []
        calls = context = prefill = 0
        pairs = 0.0

        for new in scheduled.scheduled_new_reqs:
            prompt = new.prompt_token_ids or []
            answer = self._tokens.answer(prompt, new.sampling_params)
            if answer.scripted:
                counts["scripted"] += 1
            running[new.req_id] = _Running(len(prompt), answer)
            # The newer model runner's protocol resumes a preempted request as a new one, with what it had generated.
            known = max(len(prompt), len(getattr(new, "prefill_token_ids", None) or ()))
            generated = known - len(prompt)
            counts["resumed" if generated else "requests"] += 1
            count = number_of[new.req_id]
            prefill += count
            pairs += count * (new.num_computed_tokens + count * 0.5)
            request_ids.append(new.req_id)
            tokens.append([answer.token(generated)] if new.num_computed_tokens + count >= known else [])

        cached = scheduled.scheduled_cached_reqs
        progress = zip(cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True)
        for request_id, computed, generated in progress:
            request = running[request_id]
            count = number_of[request_id]
            known = request.prompt_length + generated
            if count == 1 and computed + 1 == known and generated > 0:
                calls += 1
                context += known
            else:
                prefill += count
                pairs += count * (computed + count * 0.5)
            request_ids.append(request_id)
            tokens.append([request.answer.token(generated)] if computed + count >= known else [])
        counts["resumed"] += len(cached.resumed_req_ids)

        counts["running"] = len(running)
        if request_ids:
            counts["steps"] += 1
            counts["prefill_tokens"] += prefill
            counts["decode_tokens"] += calls
            if self._model:
                seconds = self._model.seconds(calls, context, prefill, pairs)
                counts["busy_seconds"] += seconds
                remaining = self._clock.end_of_step(begin, seconds / self._time_scale, continued) - time.monotonic()
                counts["late_seconds"] = self._clock.late_seconds
                if remaining > 0:
                    time.sleep(remaining)
        self._report.changed()
        return ModelRunnerOutput(
            req_ids=request_ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(request_ids)},
            sampled_token_ids=tokens,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )


def _completed(value) -> Future:
    future: Future = Future()
    future.set_result(value)
    return future


def _end_of_text(model_config) -> int:
    ids = getattr(model_config.hf_config, "eos_token_id", None)
    if isinstance(ids, (list, tuple)):
        ids = ids[0] if ids else None
    return 2 if ids is None else int(ids)


def _die_with_parent() -> None:
    """No engine core outlives an API server that was killed. Linux only; elsewhere the launcher's care suffices."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    except (AttributeError, OSError):
        pass
