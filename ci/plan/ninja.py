"""build.ninja as text, and how many compilers run at once. Pure.

Ninja counts jobs, not gigabytes. So the hungry units are put into a pool of their own, whose depth keeps any choice of
running units within the machine's memory: two backward units need 14 GB where two of the small ones need 3.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ci.plan.costs import Cost

MEMORY_MARGIN_GB = 1.0  # left to everything else on the machine
POOL = "hungry"


@dataclass(frozen=True, kw_only=True)
class Concurrency:
    """How many compilers run at once: `jobs` in all, and of those that need more than `hungry_gb` at most `hungry`."""

    jobs: int
    hungry: int
    hungry_gb: float

    def is_hungry(self, cost: Cost) -> bool:
        return cost.rss_gb > self.hungry_gb

    def seconds(self, costs: Sequence[Cost]) -> float:
        """The least time that compiling takes.

        It is the largest of: all units over all jobs, the hungry units over theirs, and the longest unit.
        """
        hungry = sum(cost.cpu_s for cost in costs if self.is_hungry(cost))
        longest = max((cost.cpu_s for cost in costs), default=0.0)
        return max(sum(cost.cpu_s for cost in costs) / self.jobs, hungry / max(1, self.hungry), longest)


def concurrency(costs: Sequence[Cost], *, cores: int, memory_gb: float, wanted: int | None) -> Concurrency:
    """The fastest choice for these units that memory holds, whichever of them run together; at least one runs.

    Args:
        wanted: as many jobs as the user asks for (`JOBS=`), instead of one a core; memory limits them all the same.
    """
    room = memory_gb - MEMORY_MARGIN_GB
    needs = sorted({cost.rss_gb for cost in costs}, reverse=True)
    best = Concurrency(jobs=1, hungry=1, hungry_gb=max(needs, default=0.0))
    for light in needs:  # the largest need that does not count as hungry
        for jobs in range(2, (wanted or cores) + 1):
            hungry = jobs
            while hungry > 0 and hungry * needs[0] + (jobs - hungry) * light > room:
                hungry -= 1
            choice = Concurrency(jobs=jobs, hungry=hungry, hungry_gb=light)
            if hungry > 0 and choice.seconds(costs) < best.seconds(costs):
                best = choice
    return best


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One file to compile: the command, run in `folder`, that makes `output`."""

    name: str  # what people see
    folder: str  # relative to build.ninja
    source: str
    output: str
    options: tuple[str, ...]  # of the measuring program: what to do with the object
    command: tuple[str, ...]
    cost: Cost


def ninja_text(edges: Sequence[Edge], *, measure: Sequence[str], at_once: Concurrency) -> str:
    """The whole file. `measure` is the program in front of each compiler; edges run in their order."""
    hungry = any(at_once.is_hungry(edge.cost) for edge in edges)
    pool = [f"pool {POOL}", f"  depth = {at_once.hungry}"]
    lines = [
        "# What `make wheel` compiles. Ask ninja about it: ninja -n -d explain, ninja -t compdb.",
        "ninja_required_version = 1.10",
        f"measure = {_escaped(shlex.join(measure))}",
        "",
        *([f"# Units that need more than {at_once.hungry_gb:g} GB.", *pool, ""] if hungry else []),
        "rule compile",
        "  command = cd $folder && $measure $options -- $compiler",
        "  description = $name",
        "  # An output is named by the hash of all that it depends on: where it exists it is right, whatever ninja's",
        "  # log says of its command. That is what `generator` means.",
        "  generator = 1",
    ]
    for edge in edges:
        lines += [
            "",
            f"build {_escaped_path(edge.output)}: compile || {_escaped_path(str(PurePath(edge.folder) / edge.source))}",
            f"  name = {_escaped(edge.name)}",
            f"  folder = {_escaped(edge.folder)}",
            f"  options = {_escaped(shlex.join(edge.options))}",
            f"  compiler = {_escaped(shlex.join(edge.command))}",
            *([f"  pool = {POOL}"] if at_once.is_hungry(edge.cost) else []),
        ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("$", "$$")


def _escaped_path(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
