"""build.ninja as text. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ci.plan.costs import Concurrency, Cost

POOL = "hungry"


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
