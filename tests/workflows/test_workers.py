"""`make test` runs files side by side, but one compiling file after another."""

from __future__ import annotations

import itertools

import pytest

from tests.workers import compiles, file_of, long_first, scope_of


def test_compiling_files_go_to_one_process() -> None:
    scopes = [scope_of(f"tests/{name}::test_x[a::b]") for name in ("prove/test_gates.py", "build/test_build_nvcc.py")]
    assert scopes[0] == scopes[1] != scope_of("tests/core/test_readme.py::test_x") == "tests/core/test_readme.py"


def test_every_file_with_a_test_that_compiles_is_known(request: pytest.FixtureRequest) -> None:
    """Of the files of this run: a mark that a file has from elsewhere would not be seen."""
    marked = {file_of(item.nodeid) for item in request.session.items if item.get_closest_marker("nvcc")}
    assert [file for file in sorted(marked) if not compiles(file)] == []


def test_long_files_come_first_and_stay_whole(request: pytest.FixtureRequest) -> None:
    items = request.session.items
    ordered = long_first(items[::-1])
    files = [file_of(item.nodeid) for item in ordered]
    assert set(ordered) == set(items)
    assert [compiles(file) for file in files] == sorted((compiles(file) for file in files), reverse=True)
    assert len(list(itertools.groupby(files))) == len(set(files))
