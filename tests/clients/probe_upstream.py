"""Run inside an environment with einops: a sample of upstream's own tests, in the folder that is the first argument.

The folder has upstream's files with the device "cuda" read as "cpu". Faked: the capability, which they ask when they
are imported, and pytest's `parametrize`: it would make 90,000 tests. Cases are drawn from its values instead. Left out:
the tests that repeat a call 100 and 1000 times to find a GPU's races, long sequences, and the test of schemas, where
the pin wants eight returns of `bwd` and 3.0.0 five, which is what our op has.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

COUNTS = {
    "test_flash_attn_output": 10,
    "test_flash_attn_varlen_output": 10,
    "test_flash_attn_kvcache": 8,
    "test_flash_attn_combine": 6,
}
PAIRS, WIDTH = 9_000, 128  # queries times keys, or rows times splits, of the largest case; its head dim
AXES: dict[str, list[tuple[list[str], list[Any]]]] = {}


def parametrize(names: str, values: list[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        AXES.setdefault(function.__name__, []).append((names.split(","), list(values)))
        return function

    return note


def drawn(name: str, dice: random.Random) -> dict[str, Any]:
    """The arguments of a random case that is small enough."""
    while True:
        case: dict[str, Any] = {}
        for names, values in AXES.get(name, ()):
            value = dice.choice(values)
            case |= dict(zip(names, value if len(names) > 1 else (value,), strict=True))
        size = case.get("seqlen_q", 1) * case.get("seqlen_k", 1) * case.get("seqlen", 1) * case.get("num_splits", 1)
        if size <= PAIRS and case.get("d", 1) <= WIDTH:
            return case


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    seed, factor = (int(text) for text in sys.argv[2:4])
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    pytest.mark.parametrize = parametrize
    suite = importlib.import_module("test_flash_attn")
    dice, passed, failed = random.Random(seed), 0, []
    for name, count in COUNTS.items():
        done = 0
        while done < count * factor:
            case = drawn(name, dice)
            try:
                with contextlib.redirect_stdout(None):
                    getattr(suite, name)(**case)
            except pytest.skip.Exception:
                continue
            except AssertionError as error:
                failed.append(f"{name}({case}): {error}")
            done += 1
            passed += 1
    print(json.dumps({"passed": passed - len(failed), "failed": failed}))


if __name__ == "__main__":
    main()
