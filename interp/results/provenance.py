"""What produced a number: library versions and the source's git commit."""

import hashlib
import json
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("dmle", "torch", "transformer-lens", "transformers", "numpy", "xarray")


VERSIONS = {
    "trace": 1,
    "atlas": 1,
    "faithfulness": 1,
    "profile": 1,
    "select": 1,
    "evidence": 1,
    "edit": 2,
    "evaluate": 1,
    "compare": 1,
    "sweep": 1,
    "regret": 1,
    "sequence": 1,
    "tune": 1,
}
"""By step, to be raised when it gives other numbers for the same settings."""


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on, and the git commit of the source (""
    outside a checkout).
    """
    found = {f"version_{name.replace('-', '_')}": metadata.version(name) for name in LIBRARIES}
    return {**found, "git_commit": _git_commit()}


def fingerprint(**values: Any) -> str:
    """Sixteen hex digits that change when any of the values does (canonical JSON, SHA-256).

    >>> fingerprint(a=1, b=2) == fingerprint(b=2, a=1) != fingerprint(a=1, b=3)
    True
    """
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _git_commit() -> str:
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return ""
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
