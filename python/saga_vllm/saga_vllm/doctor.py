"""`python -m saga_vllm.doctor`: what the connector would do in this environment, and why not more. Exit status 0 if `policy`."""

from __future__ import annotations

import sys
from typing import Any

from . import __version__, native
from .channel import is_loopback
from .settings import BadSetting, Settings


def _check_library() -> str | None:
    try:
        native.load()
        return None
    except native.LibraryMissing as error:
        return str(error)


def examine() -> tuple[str, list[tuple[str, str]]]:
    """The strength, and a line for each thing looked at."""
    lines = [("saga-vllm", __version__)]
    strength = "policy"
    try:
        settings = Settings.read({})
        key = settings.key()
    except BadSetting as error:
        return "none", [*lines, ("settings", f"bad: {error}")]
    strength = settings.strength
    problem = _check_library()
    lines.append(("libsaga", f"{native.candidates()[0]}, version {native.library_version()}" if problem is None else problem))
    if problem is not None and strength == "policy":
        strength = "leases"
    try:
        import zmq

        if key is None and not is_loopback(settings.directive_endpoint):
            lines.append(("directives", f"not at {settings.directive_endpoint}: not loopback, and no directive_key"))
        else:
            lines.append(("directives", f"{settings.directive_endpoint or 'off'}, pyzmq {zmq.__version__}"))
    except ImportError:
        lines.append(("directives", "none: pyzmq is not installed"))
    try:
        import vllm.version
    except Exception as error:  # noqa: BLE001
        return "none", [*lines, ("vLLM", f"cannot be imported: {error}")]
    from .connector import version_problem

    version = vllm.version.__version__
    problem = version_problem(version, settings.allow_untested)
    lines.append(("vLLM", version if problem is None else problem))
    if problem is not None:
        return "none", lines
    problem = queue_problem()
    lines.append(("queue of free blocks", "as expected" if problem is None else problem))
    if problem is not None and strength == "policy":
        strength = "leases"
    lines.append(("model", "decided at start-up: strength policy needs one KV cache group of full attention"))
    return strength, lines


def queue_problem() -> str | None:
    """The self-check of the connector on a small pool."""
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

    from .free_queue import contract_problem

    pool: Any = BlockPool(num_gpu_blocks=8, enable_caching=True, hash_block_size=16)
    return contract_problem(pool, FreeKVCacheBlockQueue, KVCacheBlock)


def main() -> int:
    strength, lines = examine()
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:<{width}}  {text}")
    print(f"{'strength':<{width}}  {strength}")
    return 0 if strength == "policy" else 1


if __name__ == "__main__":
    sys.exit(main())
