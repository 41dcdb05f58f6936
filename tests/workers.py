"""How `make test` deals tests out to processes (pytest-xdist): a file at a time, those that take long first.

The files that compile CUDA code go to one process, one after another: a compiler takes up to 5 GB and a core, and they
start as many at once as the machine has room for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
LONG = ("slow", "network", "emulated", "browser")


@functools.cache
def compiles(file: str) -> bool:
    """Whether tests of a file, named from the repository's root, are marked `nvcc`."""
    return "pytest.mark.nvcc" in (ROOT / file).read_text(encoding="utf-8")


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def long_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The same tests, file by file: those that compile, those with long tests, the others."""
    long = {file_of(item.nodeid) for item in items if any(map(item.get_closest_marker, LONG))}

    def rank(item: pytest.Item) -> int:
        file = file_of(item.nodeid)
        return 0 if compiles(file) else 1 if file in long else 2

    return sorted(items, key=rank)


def scope_of(nodeid: str) -> str:
    """What goes to one process together with this test."""
    file = file_of(nodeid)
    return "files that compile" if compiles(file) else file


class FileScheduling(LoadScopeScheduling):
    """xdist's scheduler of whole files, to which all files that compile are one."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
