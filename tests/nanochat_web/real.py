"""Real checkouts of nanochat, where this machine has them. None is ever part of this repository.

NANOCHAT_CHECKOUTS is a folder with two of them, `january` (commit 2ff7d51 of 2026-01-11) and `newest`;
NANOCHAT_PYTHON is a Python that has what they need (torch, tiktoken, rustbpe, tokenizers, kernels, ...).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from examples.nanochat_web.checkout import open_checkout
from examples.nanochat_web.checkpoints import SOURCES, Checkpoint


def checkout_of(name: str) -> Path:
    """The folder of one of them; skips the test where there is none."""
    folder = os.environ.get("NANOCHAT_CHECKOUTS")
    if not folder:
        pytest.skip("no checkout of nanochat at hand: NANOCHAT_CHECKOUTS names the folder with `january` and `newest`")
    found = Path(folder) / name
    assert (found / "nanochat" / "engine.py").is_file(), f"{found} is no nanochat checkout"
    return found


def python() -> Path:
    """The Python that runs them; skips the test where there is none."""
    given = os.environ.get("NANOCHAT_PYTHON")
    if not given:
        pytest.skip("no Python with nanochat's packages: NANOCHAT_PYTHON names it")
    return Path(given)


def untrained(root: Path, interpreter: Path, base: Path, *, depth: int, stage: str = "sft") -> None:
    """A model that nobody trained, and a small tokenizer, written by the checkout's own code."""
    checkout = open_checkout(root, interpreter, {**os.environ, "NANOCHAT_BASE_DIR": str(base)})
    nothing = Checkpoint(source=SOURCES[0], tag="", step=0, size=0, modified=0.0)
    script = Path(__file__).parents[2] / "examples" / "nanochat_web" / "untrained.py"
    done = subprocess.run(
        [str(interpreter), str(script), "--depth", str(depth), "--stage", stage, "--context", "512"],
        cwd=root,
        env=checkout.environment(nothing, os.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
