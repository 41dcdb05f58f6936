"""Called where kernels are executed on the CPU, with einops: FlashAttention-3's own tests, through these kernels.

The folder has upstream's files with the device "cuda" read as "cpu"; the tests and their tolerances are upstream's. Our
engine takes the CPU for a GB10 whose library is the executed one. Faked: the capability, which they ask when imported.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flash_attn3_sm121.builds import PROFILES as BUILDS
from tests.fakes import kv8_kernels, libraries

PROFILES = {"fp8": kv8_kernels.PROFILE_FP8, "qv": kv8_kernels.PROFILE_QV, "full": BUILDS["full"]}
SIZE = 30_000  # queries times keys of the largest drawn case
Case = dict[str, Any]
TESTS = ("test_flash_attn_output", "test_flash_attn_varlen_output")
# Kind of case: upstream's tests, and which of their cases. With softcap, a V of another head dim has no kernel.
KINDS: dict[str, tuple[tuple[str, ...], Callable[[Case], bool]]] = {
    "fp8": ((*TESTS, "test_flash_attn_kvcache"), lambda case: case["dtype"] == "float8_e4m3fn"),
    "qv": (TESTS, lambda case: case["has_qv"] and case["d"] == 64 and not case["softcap"]),
}


def show(gpu: Any, folder: str, profile: str, cases: list[Case]) -> list[Case]:
    """Of each case, what upstream's test says that is wrong, the plans of its calls, and the kernels that ran.

    A case names the test, its arguments, and under `without` the features that upstream's own switches leave out.
    """
    suite = _suite(gpu, folder)
    return [_shown(gpu, suite, profile, case) for case in cases]


def sample(gpu: Any, folder: str, kind: str, seed: int) -> Case:
    """The same of a random case of that kind, a key of `KINDS`."""
    suite, dice = _suite(gpu, folder), random.Random(seed)
    while True:
        case = _drawn(suite, kind, dice)
        found = _shown(gpu, suite, "full", case)
        if not found["wrong"].startswith("Skipped"):
            return found | {"case": {name: str(value) for name, value in case.items()}}


def _suite(gpu: Any, folder: str) -> Any:
    sys.path.insert(0, folder)
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    gpu.settings.limit = 500_000_000
    return importlib.import_module("test_flash_attn")


def _drawn(suite: Any, kind: str, dice: random.Random) -> Case:
    tests, asked = KINDS[kind]
    while True:
        case: Case = {"test": dice.choice(tests), "without": ""}
        for names, values in (mark.args for mark in getattr(suite, case["test"]).pytestmark):
            value = dice.choice(values)
            case |= dict(zip(names.split(","), value if "," in names else (value,), strict=True))
        case["dtype"] = str(case["dtype"]).removeprefix("torch.")
        if case["seqlen_q"] * case["seqlen_k"] <= SIZE and asked(case):
            return case


def _shown(gpu: Any, suite: Any, profile: str, case: Case) -> Case:
    serving, wrong, before = libraries.executed(gpu, PROFILES[profile]), "", len(gpu.launches)
    arguments = {name: value for name, value in case.items() if name not in ("test", "without")}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
        libraries.install(patch, serving)
        for word in case["without"].split():
            patch.setattr(suite, f"DISABLE_{word.upper()}", True)
        try:
            getattr(suite, case["test"])(**arguments | {"dtype": getattr(torch, case["dtype"])})
        except (AssertionError, RuntimeError, pytest.skip.Exception) as error:
            wrong = f"{type(error).__name__}: {error}"
    return {
        "wrong": wrong,
        "plans": sorted({type(plan).__name__ for plan in serving.plans.values()}),
        "kernels": sorted({launch["kernel"] for launch in gpu.launches[before:]}),
    }
