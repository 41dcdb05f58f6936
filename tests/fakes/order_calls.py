"""Backward calls as they are executed for `make prove`: how far from the formula, and whether the bits stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ci.prove.gb10.cases import Case
from ci.prove.gb10.check import Judge, equal, run_case
from ci.prove.gb10.child import Gpu

FULL = Case(op="ordered", dtype="bf16", dim=64, heads=(4, 2), rows=200, keys=700)
CASES: dict[str, Case] = {
    "full": FULL,
    "causal": replace(FULL, mask="causal", mode="packed", batch=4, rows=257, keys=300, heads=(3, 1)),
    "more rows than keys": replace(FULL, mask="causal", mode="packed", batch=4, rows=400, keys=129, heads=(3, 1)),
    "local": replace(FULL, mask="local", mode="used", batch=4, rows=330, keys=400, heads=(2, 2)),
    "unordered": replace(FULL, op="bwd"),
}


def show(gpu: Gpu, case: str, seeds: list[int]) -> dict[str, Any]:
    """The errors as parts of what is allowed, and how many of the seeds gave other bits than the first."""
    judge, written = Judge("bf16"), []
    gpu.settings.limit = 50_000_000
    for seed in seeds:
        gpu.settings.seed = seed
        found, tensors = run_case(gpu, replace(CASES[case], seed=0))
        judge.parts |= {name: max(part, judge.parts.get(name, 0.0)) for name, part in found.parts.items()}
        written.append(tensors)
    others = sum(not all(map(equal, written[0], more)) for more in written[1:])
    return {"parts": judge.parts, "other bits": others}
