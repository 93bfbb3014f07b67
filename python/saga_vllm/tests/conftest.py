"""Paths, and what can run here: tests that need vLLM or libsaga are skipped without, with the reason."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")

needs_vllm = {"test_scheduler.py", "test_server.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = None
    if importlib.util.find_spec("vllm") is None:
        missing = "vLLM is not installed in this environment"
    for item in items:
        if missing and item.path.name in needs_vllm:
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture
def library() -> None:
    from saga_vllm import native

    try:
        native.load()
    except native.LibraryMissing as error:
        pytest.skip(str(error))
