"""Real checkouts of nanochat, where this machine has them. None is ever part of this repository.

NANOCHAT_CHECKOUTS is a folder with two of them, `january` (commit 2ff7d51 of 2026-01-11) and `newest`;
NANOCHAT_PYTHON is a Python that has what they need (torch, tiktoken, rustbpe, tokenizers, kernels, ...).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
