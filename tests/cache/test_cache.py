"""Object keys: everything that an object depends on changes its key, and nothing else does."""

from __future__ import annotations

import hashlib
import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ci.cache.folders import remove_tree
from ci.cache.includes import Closures, names
from ci.cache.objects import ObjectReport, ObjectStore, Sources, Tools, object_key
from ci.plan.costs import Cost
from ci.plan.plan import PlannedUnit
from ci.plan.units import Unit
from flash_attn3_sm121.errors import CompileError

TOOLS = Tools(toolchain="cuda 13.0", cxx="g++ 12", torch_headers="2.13")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        "hopper/launch.h": '#include "tile.h"\n#if 0\n#include "never.h"\n#endif\n#include <cutlass/core.h>\n',
        "hopper/tile.h": "constexpr int n = 1;\n",
        "hopper/never.h": "// behind a condition, and a dependency all the same\n",
        "hopper/other.h": "// nobody includes this\n",
        "cutlass/include/cutlass/core.h": '#  include "detail.h"\n/* #include "commented.h" */\n#include <vector>\n',
        "cutlass/include/cutlass/detail.h": "#pragma once\n#include <cutlass/core.h>\n",
        "cutlass/include/cutlass/commented.h": "",
        "csrc/tile.h": "// shadows or is shadowed: both count\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def unit(**changes: object) -> PlannedUnit:
    made = Unit(name="fwd", kind="fwd", head_dim=64, kernels=1, text='#include "launch.h"\n', contents=())
    return PlannedUnit(unit=replace(made, **changes), flags=("-O3",), cost=Cost(cpu_s=1, rss_gb=1), shard=1)  # type: ignore[arg-type]


def key(tree: Path, planned: PlannedUnit | None = None, tools: Tools = TOOLS, launcher: str | None = None) -> str:
    return object_key(planned or unit(), sources=Sources(tree), tools=tools, launcher=launcher)


def test_closure_is_conservative(tree: Path) -> None:
    closure = Closures(tree, ("csrc", "hopper", "cutlass/include")).of('#include "launch.h"\n', origin="units/fwd.cu")
    assert closure == (
        "csrc/tile.h",
        "cutlass/include/cutlass/core.h",
        "cutlass/include/cutlass/detail.h",
        "hopper/launch.h",
        "hopper/never.h",
        "hopper/tile.h",
    )


@pytest.mark.parametrize("name", ["hopper/tile.h", "hopper/never.h", "csrc/tile.h", "cutlass/include/cutlass/detail.h"])
def test_a_byte_in_any_dependency_changes_the_key(tree: Path, name: str) -> None:
    before = key(tree)
    (tree / name).write_text((tree / name).read_text() + " ", encoding="utf-8")
    assert key(tree) != before


def test_a_file_that_appears_counts(tree: Path) -> None:
    before = key(tree)
    (tree / "csrc" / "launch.h").write_text("// found first now\n", encoding="utf-8")
    assert key(tree) != before


def test_unrelated_files_and_places_do_not_matter(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = key(tree)
    (tree / "hopper" / "other.h").write_text("changed", encoding="utf-8")
    assert key(tree) == before
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deep"
    tree.rename(elsewhere)
    assert key(elsewhere) == before


def test_everything_else_that_matters(tree: Path) -> None:
    api = unit(kind="api")
    keys = {
        key(tree),
        key(tree, replace(unit(), flags=("-O2",))),
        key(tree, unit(name="fwd2")),
        key(tree, unit(text='#include "launch.h"\n\n')),
        key(tree, tools=replace(TOOLS, toolchain="cuda 13.1")),
        key(tree, tools=replace(TOOLS, cxx="g++ 13")),
        key(tree, launcher="sccache"),
        key(tree, api),
        key(tree, api, tools=replace(TOOLS, torch_headers="2.14")),
    }
    assert len(keys) == 9
    assert key(tree, tools=replace(TOOLS, torch_headers="2.14")) == key(tree), "kernels see no torch header"


def test_a_computed_include_is_an_error_not_a_guess() -> None:
    with pytest.raises(CompileError, match="cannot tell what this includes"):
        names("#include HEADER\n", origin="x.h")
    assert names("#include CUDA_STD_HEADER(tuple)\n#include <a> // b\n", origin="x.h") == ("a",)


def report(made: Path, key: str) -> ObjectReport:
    data = made.read_bytes()
    return ObjectReport(
        unit="fwd",
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        cpu_s=1.0,
        wall_s=1.0,
        rss_gb=1.0,
        usage=(),
    )


def test_the_store_gives_back_whole_objects_only(tmp_path: Path) -> None:
    made = tmp_path / "made.o"
    made.write_bytes(b"machine code")
    store, name = ObjectStore(cache=tmp_path / "cache"), "cd" * 32
    assert store.find(name) is None
    path = store.put(report(made, name), made=made, log="what the compiler said")
    found = store.find(name)
    assert found is not None and found[0].read_bytes() == b"machine code" and found[1].unit == "fwd"
    path.write_bytes(b"machine cod")
    assert store.find(name) is None, "a damaged object counts as absent"
    store.put(report(made, name), made=made, log="")
    assert store.find(name) is not None
    (path.parent / "report.json").write_text('{"schema": ')
    assert store.find(name) is None and store.measured() == {}, "so does one with a damaged report"
    (path.parent / "report.json").unlink()
    assert store.find(name) is None


def test_the_store_keeps_ptx_beside_its_object(tmp_path: Path) -> None:
    made = tmp_path / "made.o"
    made.write_bytes(b"machine code")
    store, name, text = ObjectStore(cache=tmp_path / "cache"), "cd" * 32, b".target sm_121\n"
    known = replace(report(made, name), ptx={"fwd.ptx": hashlib.sha256(text).hexdigest()})
    path = store.put(known, made=made, log="", ptx={"fwd.ptx": text})
    found = store.find(name)
    assert found is not None and store.ptx(found[1]) == {"fwd.ptx": text.decode()}
    assert ObjectReport.from_json(known.to_json()) == known
    kept = path.parent / "fwd.ptx.xz"
    kept.write_bytes(lzma.compress(b".target sm_120\n"))
    with pytest.raises(CompileError, match="expected PTX with sha256"):
        store.ptx(known)
    kept.write_bytes(kept.read_bytes()[:20])
    with pytest.raises(CompileError, match="cannot be read"):
        store.ptx(known)
    kept.unlink()
    assert store.find(name) is None, "an entry without its PTX is compiled again"


def test_a_folder_goes_although_a_stopped_compiler_removes_its_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, real = tmp_path / "keep", shutil.rmtree
    (keep / "inner").mkdir(parents=True)
    (keep / "inner" / "unit.ptx").touch()
    (keep / "inner").chmod(0o555)

    def first(root: Path) -> None:
        monkeypatch.setattr(shutil, "rmtree", real)
        (keep / "inner" / "unit.ptx").unlink()
        raise FileNotFoundError(root)

    monkeypatch.setattr(shutil, "rmtree", first)
    remove_tree(keep)
    assert not keep.exists()
