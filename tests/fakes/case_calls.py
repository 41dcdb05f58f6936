"""A case as `make prove` executes it, in several orders of blocks and warps: how far from the formula, and its bits."""

from __future__ import annotations

from typing import Any

from ci.prove.gb10.cases import Case
from ci.prove.gb10.check import Judge, equal, run_case
from ci.prove.gb10.child import Gpu


def show(gpu: Gpu, case: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """The errors as parts of what is allowed, and how many of the seeds gave other bits than the first."""
    judge, written = Judge(case["dtype"], case["dim"]), []
    gpu.settings.limit = 50_000_000
    for seed in seeds:
        gpu.settings.seed = seed
        found, tensors = run_case(gpu, Case.of(case))
        judge.parts |= {name: max(part, judge.parts.get(name, 0.0)) for name, part in found.parts.items()}
        written.append(tensors)
    others = sum(not all(map(equal, written[0], more)) for more in written[1:])
    return {"parts": judge.parts, "other bits": others}
