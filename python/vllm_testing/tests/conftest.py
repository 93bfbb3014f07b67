"""One server for all tests of this folder. SAGA_VLLM_TEST_ENV names its environment; default latest."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

PYTHON = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PYTHON))

STEP_MODEL = {"base": 0.02, "per_call": 0.001, "per_prefill_token": 0.0001}
TIME_SCALE = 10
ENVIRONMENT = os.environ.get("SAGA_VLLM_TEST_ENV", "latest")
BLOCK_SIZE = 32 if ENVIRONMENT == "cpu" else 16
BLOCKS = 2048 // BLOCK_SIZE

SCRIPT = [
    {"last": "<tool_response>", "say": "It is sunny in Paris."},
    {
        "last": "weather in Paris",
        "say": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    },
]


class RunningServer:
    def __init__(self, ready: dict):
        self.ready = ready
        self.url = ready["url"]

    def post(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(
            self.url + path, json.dumps({"model": "tiny"} | body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def complete(self, prompt: list[int], max_tokens: int, **more) -> dict:
        return self.post(
            "/v1/completions", {"prompt": prompt, "max_tokens": max_tokens, "return_token_ids": True} | more
        )

    def report(self) -> dict:
        return json.loads(Path(self.ready["report"]).read_text())


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT))
    command = [sys.executable, "-m", "vllm_testing.server", "--env", ENVIRONMENT, "--executor", "fake"]
    command += ["--work-folder", str(folder / "work"), "--tokenizer", "--script", str(script), "--byte-hashes"]
    command += ["--blocks", str(BLOCKS), "--block-size", str(BLOCK_SIZE)]
    command += ["--step-model", json.dumps(STEP_MODEL), "--time-scale", str(TIME_SCALE)]
    environment = dict(os.environ, PYTHONPATH=str(PYTHON))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        ready = json.loads(process.stdout.readline() or '{"ready": false, "error": "no answer"}')
        if not ready["ready"]:
            pytest.fail(f"the server did not start: {ready['error']}")
        yield RunningServer(ready)
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(ready["url"] + "/health", timeout=2)
