"""Where the virtual environments lie that `node scripts/vllm.mjs install` makes; the same rules as there.

One folder for each lock file, <name>-<first 12 hexadecimal digits of its SHA-256>, in $SAGA_VLLM_HOME, else in
$XDG_CACHE_HOME/saga-vllm, else in ~/.cache/saga-vllm. Standard library only.
"""

import hashlib
import os
from pathlib import Path

NAMES = ("latest", "cpu", "baseline")
_MARKER = "saga-vllm-complete"  # written when an installation is complete; holds the version of vLLM
_LOCKS = Path(__file__).resolve().parent / "locks"


class MissingEnvironment(RuntimeError):
    """The environment was never installed, or not completely, or from another lock file."""


def home() -> Path:
    given = os.environ.get("SAGA_VLLM_HOME")
    if given:
        return Path(given).absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "saga-vllm"


def folder(name: str) -> Path:
    digest = hashlib.sha256((_LOCKS / f"{name}.txt").read_bytes()).hexdigest()
    return home() / f"{name}-{digest[:12]}"


def interpreter(name: str) -> Path:
    """The environment's Python."""
    path = folder(name)
    if not (path / _MARKER).exists():
        raise MissingEnvironment(f"the environment {name} is missing: node scripts/vllm.mjs install {name}")
    return path / "bin" / "python"


def version(name: str) -> str:
    """The version of vLLM in it."""
    interpreter(name)
    return (folder(name) / _MARKER).read_text().strip()
