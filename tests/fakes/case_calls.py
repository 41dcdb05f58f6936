"""Cases as `make prove` executes them, in several orders of blocks and warps: how far from the formula, and their bits.

`show` runs in the executing process, and `execute` asks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ci.prove.gb10.cases import Case
from ci.prove.gb10.check import Judge, equal, run_case
from ci.prove.gb10.child import Gpu
from ci.prove.gb10.executable import Executable

Shown = dict[str, Any]


def execute(
    library: Executable, cases: Mapping[str, Case], *seeds: int, sms: int = 48, lazy: bool = False
) -> dict[str, Shown]:
    """Every case with each seed, all in one process: what `show` says of each."""
    arguments = {"cases": [case.document for case in cases.values()], "seeds": list(seeds), "lazy": lazy}
    answers = library.run("tests.fakes.case_calls:show", arguments, sms=sms).result
    return dict(zip(cases, answers, strict=True))


def show(gpu: Gpu, cases: list[dict[str, Any]], seeds: list[int], lazy: bool) -> list[Shown]:
    gpu.settings.limit, gpu.settings.lazy = 50_000_000, lazy
    return [_shown(gpu, Case.of(case), seeds) for case in cases]


def _shown(gpu: Gpu, case: Case, seeds: list[int]) -> Shown:
    """What is wrong (a refusal, a finding, a figure that is not a right result's), other bits than the first seed gave,
    and the instructions that it took."""
    judge, written, wrong = Judge(case.dtype, case.dim), [], []
    gpu.findings, gpu.launches = [], []
    try:
        for seed in seeds:
            gpu.settings.seed = seed
            found, tensors = run_case(gpu, case)
            judge.parts |= {name: max(part, judge.parts.get(name, 0.0)) for name, part in found.parts.items()}
            written.append(tensors)
    except RuntimeError as error:
        wrong.append(str(error))
    wrong += [f"{name}: {part} times what is allowed" for name, part in judge.parts.items() if not part <= 1]
    return {
        "wrong": wrong + [str(finding) for finding in gpu.errors],
        "other bits": sum(not all(map(equal, written[0], more)) for more in written[1:]),
        "instructions": sum(launch["instructions"] for launch in gpu.launches),
    }
