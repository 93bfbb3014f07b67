"""Runs one real vLLM server on this machine's CPU: python -m vllm_testing.server --env latest [--port N] ..

Prints one line of JSON on standard output when /health answers,

    {"ready": true, "url": .., "events": .., "replay": .., "report": .., "model": .., "model_folder": .., "log": ..,
     "env": .., "version": .., "pid": .., "startup_seconds": ..}

or {"ready": false, "error": .., "log": ..} with the end of the log on standard error and exit status 1. Then it waits:
it ends on SIGTERM, SIGINT, when the server ends, and when its parent ends (--until); the server's processes end with
it, also when this process is killed. Standard library only: it runs under any Python and starts the environment's own
for vLLM.

Arguments after a lone `--` go to vLLM's server as they are.
"""

import argparse
import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import environments
from .step_time import StepTimeModel

PACKAGE_PARENT = Path(__file__).resolve().parent.parent
STOP_PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL


def parse_arguments(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    own, passed = given, []
    if "--" in given:
        own, passed = given[: given.index("--")], given[given.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        prog="vllm_testing.server",
        description="A real vLLM server without a GPU.",
        epilog="-- ARGUMENTS: for vLLM itself",
    )
    add = parser.add_argument
    add("--env", choices=environments.NAMES, default="latest", help="which vLLM")
    add("--executor", choices=("fake", "real"), help="real: the tiny model computes (cpu only, and the default there)")
    add("--port", type=int, default=0, help="of HTTP; 0: a free one")
    add("--events-port", type=int, default=0, help="of KV events (ZeroMQ PUB); 0: a free one")
    add("--replay-port", type=int, default=0, help="of their replay (ZeroMQ ROUTER); 0: a free one")
    add("--events-endpoint", help="instead of --events-port: an address without * makes vLLM connect to it")
    add("--no-events", action="store_true")
    add("--topic", help="of events; default kv@127.0.0.1:PORT@MODEL")
    add("--byte-hashes", action="store_true", help="events carry whole digests, not their last 64 bits")
    add("--hash-algo", default="sha256_cbor", help="of block hashes")
    add("--hash-seed", default="0", help="PYTHONHASHSEED")
    add("--blocks", type=int, default=2048, help="of the KV cache")
    add("--block-size", type=int, help="tokens; default 16, cpu 32")
    add("--max-model-len", type=int, help="default: what the KV cache holds, at most 32768")
    add("--max-num-seqs", type=int, help="requests in one step")
    add("--max-num-batched-tokens", type=int, help="tokens in one step: the size of prefill chunks")
    add("--priority", action="store_true", help="--scheduling-policy priority")
    add("--model-name", default="tiny")
    add("--tokenizer", action="store_true", help="make a tokenizer: chat, tools, tokenize, render")
    add("--connector", help="JSON of --kv-transfer-config")
    add("--python-path", action="append", default=[], help="folder to import from, for a connector; may be repeated")
    add("--step-model", help="JSON of step_time.StepTimeModel or h100-tp4, h100-tp8, a100-tp4, a100-tp8")
    add("--time-scale", type=float, default=1.0, help="divides the modelled times")
    add("--no-step-overlap", action="store_true", help="scheduling and steps add up")
    add("--script", type=Path, help="SAGA_SCRIPT_FILE: scripted answers")
    add("--report", type=Path, help="file for the executor's counts; default in the work folder")
    add("--log", type=Path, help="file for vLLM's output; default in the work folder")
    add("--log-level", default="WARNING")
    add("--work-folder", type=Path, help="kept at the end; default: a temporary one, removed at the end")
    add(
        "--until",
        choices=("parent", "stdin", "forever"),
        default="parent",
        help="ends with the parent, or with standard input",
    )
    add("--timeout", type=float, default=300.0, help="seconds to become ready")
    arguments = parser.parse_args(own)

    if arguments.executor is None:
        arguments.executor = "real" if arguments.env == "cpu" else "fake"
    if arguments.executor == "real" and arguments.env != "cpu":
        parser.error("--executor real needs --env cpu")
    if arguments.executor == "real" and (arguments.step_model or arguments.script):
        parser.error("--step-model and --script need --executor fake")
    if arguments.block_size is None:
        arguments.block_size = 32 if arguments.env == "cpu" else 16
    if arguments.max_model_len is None:
        arguments.max_model_len = min(32768, (arguments.blocks - 1) * arguments.block_size)
    # vLLM keeps block 0 for itself.
    if arguments.max_model_len > (arguments.blocks - 1) * arguments.block_size:
        parser.error("one less than --blocks, times --block-size, must be at least --max-model-len")
    if arguments.step_model:
        try:
            arguments.step_model = StepTimeModel.parse(arguments.step_model).to_json()
        except ValueError as error:
            parser.error(str(error))
    if not arguments.time_scale > 0:
        parser.error("--time-scale must be above 0")
    if arguments.connector:
        try:
            json.loads(arguments.connector)
        except json.JSONDecodeError as error:
            parser.error(f"--connector is not JSON: {error}")
    return arguments, passed


def free_port() -> int:
    """Free now; somebody else may take it before vLLM does, then the start fails and says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Failure(RuntimeError):
    """The server did not become ready."""


class Server:
    def __init__(self, arguments: argparse.Namespace, passed: list[str]):
        self.arguments = arguments
        self.python = environments.interpreter(arguments.env)
        self.temporary = arguments.work_folder is None
        self.folder = (
            Path(tempfile.mkdtemp(prefix="saga-vllm-")) if self.temporary else arguments.work_folder.absolute()
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = (arguments.log or self.folder / "vllm.log").absolute()
        self.report = (arguments.report or self.folder / "executor.json").absolute()
        self.model_folder = self.folder / "model"
        self.port = arguments.port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.events = self.replay = None
        self.events_config = {"enable_kv_cache_events": False}
        if not arguments.no_events:
            self._configure_events()
        self.passed = passed
        self.process: subprocess.Popen | None = None

    def _configure_events(self):
        arguments = self.arguments
        replay_port = arguments.replay_port or free_port()
        self.replay = f"tcp://127.0.0.1:{replay_port}"
        if arguments.events_endpoint:
            endpoint = self.events = arguments.events_endpoint
        else:
            # vLLM binds only to endpoints with a wildcard: this one socket listens on every interface.
            port = arguments.events_port or free_port()
            endpoint, self.events = f"tcp://*:{port}", f"tcp://127.0.0.1:{port}"
        self.events_config = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": endpoint,
            "replay_endpoint": self.replay,
            "topic": arguments.topic or f"kv@127.0.0.1:{self.port}@{arguments.model_name}",
        }

    def environment(self) -> dict[str, str]:
        arguments = self.arguments
        environment = dict(os.environ)
        paths = [str(PACKAGE_PARENT), *(str(Path(path).absolute()) for path in arguments.python_path)]
        if environment.get("PYTHONPATH"):
            paths.append(environment["PYTHONPATH"])
        environment.update(
            PYTHONPATH=os.pathsep.join(paths),
            PYTHONHASHSEED=arguments.hash_seed,
            VLLM_TARGET_DEVICE="cpu",
            VLLM_SERVER_DEV_MODE="1",
            VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES="0" if arguments.byte_hashes else "1",
            VLLM_LOGGING_LEVEL=arguments.log_level,
            VLLM_NO_USAGE_STATS="1",
            DO_NOT_TRACK="1",
            HF_HUB_OFFLINE="1",
            TRANSFORMERS_OFFLINE="1",
            TOKENIZERS_PARALLELISM="false",
            OMP_NUM_THREADS="1",
            CUDA_VISIBLE_DEVICES="",
            VLLM_CPU_KVCACHE_SPACE="1",
            VLLM_CPU_OMP_THREADS_BIND="nobind",
            SAGA_TIME_SCALE=repr(arguments.time_scale),
            SAGA_STEP_OVERLAP="0" if arguments.no_step_overlap else "1",
            SAGA_EXECUTOR_REPORT=str(self.report),
        )
        # Compiled modules are kept: without them every start takes half as long again.
        for name in ("SAGA_STEP_MODEL", "SAGA_SCRIPT_FILE", "PYTHONDONTWRITEBYTECODE"):
            environment.pop(name, None)
        if arguments.step_model:
            environment["SAGA_STEP_MODEL"] = arguments.step_model
        if arguments.script:
            environment["SAGA_SCRIPT_FILE"] = str(arguments.script.absolute())
        return environment

    def command(self) -> list[str]:
        arguments = self.arguments
        command = [str(self.python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model_folder), "--served-model-name", arguments.model_name]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--load-format", "dummy", "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", str(arguments.max_model_len), "--block-size", str(arguments.block_size)]
        command += ["--num-gpu-blocks-override", str(arguments.blocks)]
        command += ["--enable-prefix-caching", "--prefix-caching-hash-algo", arguments.hash_algo]
        command += ["--enable-prompt-tokens-details", "--kv-events-config", json.dumps(self.events_config)]
        if arguments.executor == "fake":
            command += ["--distributed-executor-backend", "vllm_testing.fake_executor.FakeExecutor"]
        if arguments.env != "baseline":
            command += ["--enable-scale-out"]  # /v1/*/render and /inference/v1/generate
        if arguments.tokenizer:
            command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        else:
            command += ["--skip-tokenizer-init"]
        if arguments.max_num_seqs:
            command += ["--max-num-seqs", str(arguments.max_num_seqs)]
        if arguments.max_num_batched_tokens:
            command += ["--max-num-batched-tokens", str(arguments.max_num_batched_tokens)]
        if arguments.priority:
            command += ["--scheduling-policy", "priority"]
        if arguments.connector:
            command += ["--kv-transfer-config", arguments.connector]
        return command + self.passed

    def start(self) -> float:
        """Returns the seconds until /health answered."""
        began = time.monotonic()
        environment = self.environment()
        self._write_model(environment)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder,
                preexec_fn=_end_with_launcher,
            )
        while True:
            if self.process.poll() is not None:
                raise Failure(
                    f"vLLM ended with status {self.process.returncode} before it was ready{self.first_error()}"
                )
            if self._healthy():
                return time.monotonic() - began
            if time.monotonic() - began > self.arguments.timeout:
                raise Failure(f"vLLM was not ready within {self.arguments.timeout:.0f} s")
            time.sleep(0.1)

    def _write_model(self, environment: dict[str, str]):
        command = [str(self.python), "-m", "vllm_testing.make_model", str(self.model_folder)]
        command += ["--max-positions", str(max(131072, self.arguments.max_model_len))]
        if self.arguments.tokenizer:
            command += ["--tokenizer"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            raise Failure(f"the model folder could not be made: {result.stderr.strip()}")
        text_tokens = json.loads(result.stdout)["text_tokens"]
        if text_tokens and "SAGA_TOKEN_RANGE" not in environment:
            environment["SAGA_TOKEN_RANGE"] = f"{text_tokens[0]}:{text_tokens[1]}"

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self):
        """Ends the server's process group, gently first, and removes a temporary folder."""
        process = self.process
        if process is not None:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_PATIENCE)
                except subprocess.TimeoutExpired:
                    pass
            try:
                os.killpg(process.pid, signal.SIGKILL)  # what is left of it: an engine core that did not follow
            except ProcessLookupError:
                pass
            process.wait()
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def first_error(self) -> str:
        """The first exception in the log: the root cause, where the log's end shows only what followed."""
        try:
            match = re.search(
                r"(?:^|\] )(\w+(?:Error|Exception): .*)$", self.log.read_text(errors="replace"), re.MULTILINE
            )
        except OSError:
            return ""
        return f": {match[1]}" if match else ""

    def log_tail(self, lines: int = 40) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def _parent_death_signal(number: int):
    try:
        ctypes.CDLL(None).prctl(1, number, 0, 0, 0)
    except (AttributeError, OSError):
        pass  # not Linux


def _end_with_launcher():
    os.setsid()  # a process group of its own, ended as a whole
    _parent_death_signal(signal.SIGTERM)


class _Stop(Exception):
    pass


def _raise_stop(number, frame):
    raise _Stop


def _wait_for_end(server: Server, until: str, parent: int):
    while server.process.poll() is None:
        if until == "stdin":
            readable, _, _ = select.select([sys.stdin.fileno()], [], [], 0.5)
            if readable and not os.read(sys.stdin.fileno(), 4096):
                return
        else:
            if until == "parent" and os.getppid() != parent:
                return
            try:
                server.process.wait(0.5)
            except subprocess.TimeoutExpired:
                pass


def main() -> int:
    parent = os.getppid()
    arguments, passed = parse_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, _raise_stop)
    signal.signal(signal.SIGINT, _raise_stop)
    if arguments.until == "parent":
        _parent_death_signal(signal.SIGTERM)
    try:
        server = Server(arguments, passed)
    except environments.MissingEnvironment as error:
        print(json.dumps({"ready": False, "error": str(error)}), flush=True)
        return 1
    status = 1
    try:
        seconds = server.start()
        ready = {
            "ready": True,
            "url": server.url,
            "events": server.events,
            "replay": server.replay,
            "report": str(server.report) if arguments.executor == "fake" else None,
            "model": arguments.model_name,
            "model_folder": str(server.model_folder),
            "log": str(server.log),
            "env": arguments.env,
            "version": environments.version(arguments.env),
            "pid": server.process.pid,
            "startup_seconds": round(seconds, 1),
        }
        print(json.dumps(ready), flush=True)
        _wait_for_end(server, arguments.until, parent)
        ended_itself = server.process.poll() is not None
        status = 1 if ended_itself else 0
        if ended_itself:
            print(server.log_tail(), file=sys.stderr)
    except _Stop:
        status = 0
    except Failure as error:
        print(server.log_tail(), file=sys.stderr)
        log = None if server.temporary else str(server.log)
        print(json.dumps({"ready": False, "error": str(error), "log": log}), flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        server.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
