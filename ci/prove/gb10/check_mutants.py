"""In the executing process: a kernel with one line changed, run until a case comes out wrong."""

from __future__ import annotations

from typing import Any

import torch

from ci.prove.gb10.cases import Case
from ci.prove.gb10.check import one
from ci.prove.gb10.child import Gpu
from ci.prove.gb10.report import wrong

LIMIT = 30_000_000  # a mutant may never end: instructions of warps that a launch may take


def run(gpu: Gpu, wanted: list[dict[str, Any]], texts: dict[str, str]) -> list[str]:
    """For each mutant, what was wrong in the first of its cases that came out wrong; "" if none did."""
    torch.set_num_threads(1)
    gpu.settings.limit = LIMIT
    said = []
    for item in wanted:
        mutant = item["mutant"]
        lines = texts[mutant["kernel"]].split("\n")
        at = mutant["line"] - 1
        assert lines[at].strip() == mutant["before"], f"line {mutant['line']} holds {lines[at]}"
        lines[at] = mutant["after"]
        gpu.machine.load("\n".join(lines))
        caught = ""
        for document in item["cases"]:
            found = wrong(one(gpu, Case.of(document)))
            if found:
                caught = found[0]
                break
        gpu.machine.load(texts[mutant["kernel"]])
        said.append(caught)
    return said
