"""ptxas' verbose output, read into records. Pure."""

from __future__ import annotations

import re

from ci.cache.objects import KernelUsage

_COMPILING = re.compile(r"Compiling entry function '(?P<kernel>[^']+)' for '(?P<image>[^']+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SMEM = re.compile(r"(\d+) bytes smem")


def parse(text: str) -> tuple[KernelUsage, ...]:
    """One record a kernel and image, in the order of the output."""
    found: list[KernelUsage] = []
    kernel: tuple[str, str] | None = None
    spills = (0, 0, 0)
    for line in text.splitlines():
        if match := _COMPILING.search(line):
            kernel, spills = (match["kernel"], match["image"]), (0, 0, 0)
        elif match := _SPILLS.search(line):
            spills = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _USED.search(line)) and kernel is not None:
            smem = _SMEM.search(line)
            found.append(
                KernelUsage(
                    kernel=kernel[0],
                    image=kernel[1],
                    registers=int(match[1]),
                    stack=spills[0],
                    spill_stores=spills[1],
                    spill_loads=spills[2],
                    static_smem=int(smem[1]) if smem else 0,
                )
            )
            kernel = None
    return tuple(found)
