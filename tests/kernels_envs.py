"""Environments with real versions of the `kernels` library, and what runs in them."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.environments import python_with

# kernels -> the huggingface_hub that its users had; both pinned, so that a run in a year tests the same pair.
VERSIONS: dict[str, str] = {
    "0.9.0": "0.36.2",
    "0.11.7": "1.33.0",
    "0.12.3": "1.33.0",
    "0.13.0": "1.33.0",
    "0.14.1": "2.4.0",
    "0.15.2": "2.4.0",
    "0.16.2": "2.4.0",
    "0.17.2": "2.4.0",
}


def at_least(version: str, floor: str) -> bool:
    return [int(part) for part in version.split(".")] >= [int(part) for part in floor.split(".")]


@functools.cache
def python_of(version: str, extra: tuple[str, ...] = ()) -> Path:
    """The interpreter of an environment with this version of `kernels`; made if the cache has none."""
    wanted = [f"kernels=={version}", f"huggingface_hub=={VERSIONS[version]}", *extra]
    return python_with(f"kernels-envs/{version}", wanted)


def clean_environ(tmp: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment without anybody's Hugging Face settings, caches or proxies; everything lands in `tmp`."""
    keep = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LD_LIBRARY_PATH")}
    return {
        **keep,
        "HOME": str(tmp),
        "HF_HOME": str(tmp / "hf"),
        "FA3_CACHE": str(tmp / "fa3"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **(more or {}),
    }


def run_python(
    version: str, code: str, environ: Mapping[str, str], *, command: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run code in a version's environment, `command` in front of it (such as `flash-attn3 run --`)."""
    argv = [*command, str(python_of(version)), "-c", code]
    return subprocess.run(argv, env=dict(environ), capture_output=True, text=True, check=False, timeout=600)
