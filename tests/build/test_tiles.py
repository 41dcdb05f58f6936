"""The tile table in csrc/, compiled for the host alone: every variant's tile is legal and fits 99 KB."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ci.cache.includes import Closures
from ci.plan.profiles import find, select
from ci.plan.units import forwards, units
from ci.verify.kernels import Tile, forward_bytes
from flash_attn3_sm121.arch import FAMILIES, Family

CSRC = Path(__file__).resolve().parents[2] / "csrc"
NAMES = ("causal", "local", "paged", "varlen_split", "softcap", "append", "kv8")
DIMS = tuple(dict.fromkeys((f.head_dim, f.head_dim_v) for f in forwards(select(find("full"), Family.SM8X)) if not f.qv))
LIMIT = FAMILIES[Family.SM8X].smem_limit

PROGRAM = r"""
#include <cstdio>
#include "fa3_tiles.h"
// The table is for compile time: it must be usable there.
static_assert(fa3::forward_tile(64, 64, {}).block_m == 128);
int main() {
    int dims[][2] = {{64, 64}, {96, 96}, {128, 128}, {192, 192}, {256, 256}, {64, 128}, {64, 256}, {192, 128}};
    for (auto [dim, dim_v] : dims) {
        for (int bits = 0; bits < 128; ++bits) {
            auto bit = [&](int i) { return (bits >> i & 1) != 0; };
            fa3::Tile t = fa3::forward_tile(dim, dim_v, {bit(0), bit(1), bit(2), bit(3), bit(4), bit(5), bit(6)});
            std::printf("[%d,%d,%d,", dim, dim_v, bits);
            std::printf("%d,%d,%d,%d,%d]\n", t.block_m, t.block_n, t.warps, t.stages, t.q_in_regs);
        }
    }
}
"""

Table = dict[tuple[tuple[int, int], frozenset[str]], Tile]


def printed(program: str, work: Path) -> list[list[int]]:
    """The lines that a program prints, compiled for the host alone."""
    compiler = shutil.which("g++")
    assert compiler, "g++ is needed (it is what the library's host code is compiled with)"
    (work / "tiles.cpp").write_text(program)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, "tiles.cpp", "-o", "tiles"], cwd=work, check=True)
    lines = subprocess.run([str(work / "tiles")], capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    found: Table = {}
    for dim, dim_v, bits, *tile in printed(PROGRAM, tmp_path_factory.mktemp("tiles")):
        flags_set = frozenset(name for index, name in enumerate(NAMES) if bits >> index & 1)
        if "kv8" in flags_set and dim != dim_v:
            continue  # no kernel has both
        block_m, block_n, warps, stages, in_regs = tile
        found[(dim, dim_v), flags_set] = Tile(
            block_m=block_m, block_n=block_n, head_dim=dim, warps=warps, stages=stages, q_in_regs=bool(in_regs),
            head_dim_v=dim_v, kv8="kv8" in flags_set,
        )  # fmt: skip
    return found


def test_every_head_dim_of_the_family_is_covered(table: Table) -> None:
    assert {dim for dim, _ in table} == set(DIMS)
    assert len(table) == sum(64 + 64 * (dim == dim_v) for dim, dim_v in DIMS)


@pytest.mark.parametrize("dim", DIMS)
def test_every_variant_fits(table: Table, dim: tuple[int, int]) -> None:
    for flags, varlen in itertools.product({flags for d, flags in table if d == dim}, (False, True)):
        asked = forward_bytes(table[dim, flags], split="varlen_split" in flags, varlen=varlen)
        assert asked <= LIMIT, f"{dim} {sorted(flags)} {table[dim, flags]} asks {asked}"


@pytest.mark.parametrize("dim", DIMS)
def test_every_tile_is_legal(table: Table, dim: tuple[int, int]) -> None:
    for (found, flags), tile in table.items():
        if found != dim:
            continue
        what = f"{dim} {sorted(flags)} {tile}"
        assert tile.warps in (4, 8), what
        assert tile.block_m % (16 * tile.warps) == 0, what
        assert tile.block_m <= 32 * tile.warps, what
        assert tile.block_n % 16 == 0, what
        # Threads that copy rows of Q together: 8 where a row has a multiple of 128 bytes, else 4.
        rows = 32 * tile.warps // (8 if dim[0] % 64 == 0 else 4)
        assert tile.block_m % rows == 0, what


@pytest.mark.parametrize("dim", DIMS)
def test_rows_do_not_depend_on_the_variant(table: Table, dim: tuple[int, int]) -> None:
    """get_scheduler_metadata() counts row blocks for a call that may turn out to be of another variant."""
    assert len({tile.block_m for (found, _), tile in table.items() if found == dim}) == 1


FP8_PROGRAM = r"""
#include <cstdio>
#include <initializer_list>
#include "fa3_fp8_tile.h"
#include "fa3_tiles.h"
int main() {
    for (int dim : {64, 96, 128, 192, 256}) {
        for (int bits = 0; bits < 32; ++bits) {
            auto bit = [&](int i) { return (bits >> i & 1) != 0; };
            fa3::Variant const variant = {bit(0), bit(1), bit(2), bit(3), bit(4), false, true};
            fa3::Tile t = fa3::fp8_tile(dim, variant);
            int const rows = fa3::forward_tile(dim, dim, variant).block_m;
            std::printf("[%d,%d,%d,%d,%d,%d,%d]\n", dim, t.block_m, t.block_n, t.warps, t.stages, t.q_in_regs, rows);
        }
    }
}
"""


def test_fp8_tiles_are_legal_and_fit(tmp_path: Path) -> None:
    """As many rows as beside another Q: get_scheduler_metadata() is told of e4m3, and not of which."""
    for dim, block_m, block_n, warps, stages, in_regs, rows in printed(FP8_PROGRAM, tmp_path):
        of = {"block_m": block_m, "block_n": block_n, "warps": warps, "stages": stages}
        tile = Tile(head_dim=dim, q_in_regs=False, fp8=True, **of)
        assert (block_m, in_regs, stages) == (rows, 0, 2) and block_n % 32 == 0, tile
        assert warps in (4, 8) and block_m % (16 * warps) == 0 and block_m <= 32 * warps, tile
        assert max(forward_bytes(tile, split=split, varlen=True) for split in (False, True)) <= LIMIT, tile


QV_PROGRAM = r"""
#include <cstdio>
#include <initializer_list>
#include "fa3_tiles.h"
int main() {
    for (int dim_v : {257, 512}) {
        fa3::Tile t = fa3::forward_tile(64, dim_v, {});
        std::printf("[%d,%d,%d,%d,%d]\n", t.block_m, t.block_n, t.warps, t.stages, fa3::kQvColumnGroups);
    }
}
"""


def test_the_tile_of_a_second_query_is_legal_and_fits(tmp_path: Path) -> None:
    """Warps share rows, so that a warp has 16 of them and a part of the columns."""
    for block_m, block_n, warps, stages, groups in printed(QV_PROGRAM, tmp_path):
        tile = Tile(
            block_m=block_m, block_n=block_n, head_dim=64, head_dim_v=512, warps=warps, stages=stages, q_in_regs=False,
            qv=True,
        )  # fmt: skip
        assert block_m * groups == 16 * warps and block_n % 16 == 0 and 16 * groups == 64 and stages == 2
        assert max(forward_bytes(tile, split=split, varlen=True) for split in (False, True)) <= LIMIT, tile


# What compiled kernels were seen to ask: tile -> bytes.
SEEN = [
    (Tile(block_m=128, block_n=64, head_dim=64, warps=4, stages=1, q_in_regs=False), 33152),
    (Tile(block_m=128, block_n=96, head_dim=64, warps=4, stages=1, q_in_regs=False), 41344),
    (Tile(block_m=128, block_n=80, head_dim=64, warps=4, stages=1, q_in_regs=False), 37248),
    (Tile(block_m=128, block_n=64, head_dim=64, warps=4, stages=1, q_in_regs=True), 24960),
    (Tile(block_m=128, block_n=128, head_dim=64, warps=8, stages=1, q_in_regs=True), 33152),
    (Tile(block_m=128, block_n=128, head_dim=64, warps=8, stages=1, q_in_regs=False), 49536),
    (Tile(block_m=128, block_n=128, head_dim=128, warps=8, stages=1, q_in_regs=True), 65920),
    (Tile(block_m=64, block_n=64, head_dim=256, warps=4, stages=1, q_in_regs=False), 98688),
    (Tile(block_m=128, block_n=64, head_dim=256, warps=8, stages=1, q_in_regs=True), 98688),
    (
        Tile(block_m=32, block_n=32, head_dim=64, head_dim_v=512, warps=8, stages=2, q_in_regs=False, qv=True),
        90496,
    ),
    # Upstream's tiles for head dim 256 on small devices: the output is larger than V and K, and pads them.
    (Tile(block_m=128, block_n=48, head_dim=256, warps=8, stages=1, q_in_regs=True), 106752),
    (Tile(block_m=128, block_n=32, head_dim=256, warps=8, stages=1, q_in_regs=False), 131328),
]


@pytest.mark.parametrize(("tile", "expected"), SEEN)
def test_the_arithmetic_agrees_with_compiled_kernels(tile: Tile, expected: int) -> None:
    assert forward_bytes(tile) == expected


@pytest.mark.parametrize("family", [Family.SM80, Family.SM8X, Family.SM90])
def test_a_kernels_file_depends_on_the_tiles_of_its_own_head_dim_alone(family: Family) -> None:
    """Else one column more in one head dim would compile all of them anew."""
    found = Closures(CSRC.parent, ("csrc",))
    for unit in units(select(find("full"), family)):
        own = {name for name in found.of(unit.text, origin=f"units/{unit.file}") if "fa3_tile" in name}
        wanted = {"csrc/fa3_tile.h", f"csrc/fa3_tile_{unit.head_dim}.h"} if unit.kind == "fwd" else set()
        wanted -= {f"csrc/fa3_tile_{unit.head_dim}.h"} if {"fp8", "qv"} & set(unit.name.split("_")) else set()
        assert own - {"csrc/fa3_tile_kv8.h", "csrc/fa3_tile_values.h"} == wanted, unit.name
        assert ("fa3_tile_values.h" in unit.text) == unit.name.startswith("fwd_hd64_256_split"), unit.name
        if "fa3_tile_kv8.h" in unit.text:
            assert {"kv8", "softcap"} <= set(unit.name.split("_")) and unit.head_dim in (64, 128)
