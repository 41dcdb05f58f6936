"""The search for tiles: arithmetic that agrees with compiled kernels, what is pruned, the page. No CUDA compiler."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci.plan.costs import work_of
from ci.prove import tiles
from ci.prove.standin.document import Row
from ci.prove.tiles import Backward, Forward, Trial
from ci.prove.tiles_page import Search, page, verdict
from ci.verify import kernels
from ci.verify.kernels import Variant
from flash_attn3_sm121.errors import UsageError, VerifyError

PLAIN, CAUSAL = frozenset[str](), frozenset({"causal"})
F64 = Forward(head_dim=64, block_m=128, block_n=64, warps=4, q_in_regs=False)
F128 = Forward(head_dim=128, block_m=128, block_n=128, warps=8, q_in_regs=True)
B128 = Backward(
    head_dim=128, block_m=64, block_n=96, stages=2, stages_do=1, m_sdp=2, n_dkv=2, m_dq=2, v_in_regs=True
)  # fmt: skip
B64 = replace(B128, head_dim=64, block_n=128, stages_do=2, n_dkv=4)
B256 = replace(B128, head_dim=256, block_m=32, block_n=64, stages=1, m_dq=1)
# What docs/kernels-12.1.md says of compiled kernels: bytes, clocks of the tensor cores, fewest clocks of shared memory.
SEEN = [
    (F64, 33152, 2048, 812),
    (F128, 65920, 8192, 4664),
    (B64, 83200, 5120, 3120),
    (B128, 99584, 7680, 4080),
    (B256, 90624, 5120, 3280),
]


@pytest.mark.parametrize(("trial", "smem", "tensor", "shared"), SEEN)
def test_the_arithmetic_agrees_with_compiled_kernels(trial: Trial, smem: int, tensor: int, shared: int) -> None:
    counted = trial.clocks
    assert (trial.smem, counted[0]) == (smem, tensor)
    assert 0.94 * shared < counted[2] <= shared  # what is left out: row sums, LSE, the copies' own reads


def fits(trial: Trial) -> bool:
    return trial.smem <= 101376 and trial.sums <= 192


def worse(trial: Trial, table: Trial) -> bool:
    return tiles.share(trial) < 0.9 * tiles.share(table)


@pytest.mark.parametrize("table", [F64, F128, B64, B128, B256])
def test_candidates_fit_and_are_few(table: Trial) -> None:
    direction = "forward" if isinstance(table, Forward) else "backward"
    found, later, left = tiles.candidates(direction, table.head_dim, table, most=4)
    assert table not in found and len(set(found)) == len(found) == 4
    assert all(fits(trial) and not worse(trial, table) for trial in found)
    chosen, *_ = tiles.candidates(direction, table.head_dim, table, most=4, only=[str(found[3])])
    assert chosen == found[3:]
    with pytest.raises(UsageError, match="no candidate '1 x 1'"):
        tiles.candidates(direction, table.head_dim, table, most=4, only=["1 x 1"])
    legal = sum(trial != table for trial in tiles.grid(direction, table.head_dim))
    assert legal == len(found) + len(later) + sum(left.values())
    assert left["registers"] and left["shared memory"] + left["traffic of shared memory"]


def test_a_tile_asked_for_by_name_is_compiled_though_arithmetic_speaks_against_it() -> None:
    slow = next(trial for trial in tiles.grid("forward", 64) if fits(trial) and worse(trial, F64))
    found, later, left = tiles.candidates("forward", 64, F64, most=4)
    assert slow not in (*found, *later)
    assert left["traffic of shared memory"]
    assert tiles.candidates("forward", 64, F64, most=4, only=[str(slow)])[0] == (slow,)


def test_a_unit_has_a_kernel_for_each_variant() -> None:
    made = tiles.unit(F64, (PLAIN, CAUSAL))
    assert (
        "return {128, 64, 4, 1, false};" in made.text
        and made.text.count("template void run_flash_fwd<86, 64, 64,") == 2
    )
    assert "bfloat16_t, true, false, false, false, false, false, false, true, false, false>" in made.text
    assert work_of(made, images=("sm_121",)).kind == "tile"  # no row of the plan's costs
    assert (
        "bfloat16_t, true, false, false, false, false, true, 1, 2, false, false, false, 2, 2, 2, 2, true>"
        in tiles.unit(B128, [frozenset({"causal", "gqa"})]).text
    )


def test_the_tile_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    element, flags = "cutlass::bfloat16_t, float, cutlass::arch::Sm80", ", true, false, false, false, false"
    forward, backward = (
        f"flash::FlashAttn{way}Sm80<flash::CollectiveMainloop{way}Sm80<{{}}cute::tuple<cute::C<{{}}>, cute::C<{{}}>, "
        f"cute::C<128> >, {{}}{element}{flags}{{}}>"
        for way in ("Fwd", "Bwd")
    )
    names = {
        "f": forward.format("8, 1, true, ", 128, 128, "128, ", ", false, true, false"),
        "two": forward.format("8, 2, true, ", 128, 128, "128, ", ", false, true, false"),
        "b": backward.format("2, 1, ", 64, 96, "", ", false, false, false, 2, 2, 2, 2, true"),
        "swapped": backward.format("2, 1, ", 64, 96, "", ", false, true, false, 2, 2, 2, 2, true"),
    }
    monkeypatch.setattr(kernels, "_SIGNATURES", names)
    assert (tiles.of_kernel("f"), tiles.of_kernel("b")) == (F128, B128)
    for name in ("two", "swapped"):
        with pytest.raises(VerifyError, match=f"found {name}"):
            tiles.of_kernel(name)


def row(trial: Trial, flags: frozenset[str], *, shared: int, spills: int = 0, loop: bool = True) -> tuple[Trial, Row]:
    counted = {"instructions": 1024, "tensor": 256, "mufu": 66, "integer": 41, "shared": shared, "warps": 8}
    made = Row(
        kind="forward", variant=Variant(dtype="bf16", head_dim=128, flags=flags), tile=str(trial), warps=8,
        registers=255, spills=spills, smem=trial.smem, tensor_core=768, launched=0, loop=counted if loop else {},
    )  # fmt: skip
    return trial, made


def test_the_page() -> None:
    other, wide = replace(F128, block_n=112), replace(F128, block_n=144)
    rows = (
        row(F128, PLAIN, shared=583), row(F128, CAUSAL, shared=583, spills=216), row(other, PLAIN, shared=480),
        row(other, CAUSAL, shared=600), row(wide, PLAIN, shared=100, spills=64),
        row(wide, CAUSAL, shared=1, loop=False),
    )  # fmt: skip
    search = Search(name="forward hd128 bf16", rows=rows, later=(F64,), left={"registers": 15})
    text = page([search], image="sm_121", pin="3effce8", cuda="13.0", command="this test")
    tile = "**128 x 128, 8 warps, Q in registers** (the table's)"
    assert f"| {tile} | no mask | 255 | 0 | 65920 | 1 | 8192 | 2048 | 1056 | 4664 | 8 | 51 to 100 % |" in text
    assert "| 51 to 100 % | tensor, 43 % spare | 8 |" in text
    assert "| causal | 255 | 0 | 74112 | 1 | no loop found |" in text and "no candidates: 15 for registers." in text
    assert "(the table's: 59 %, 160): 128 x 64, 4 warps (62 %, 128 registers)." in text
    # 15136 clocks where nothing overlaps against 15960; the wide tile spills, and is none of those that count.
    assert "no mask: 128 x 112, 8 warps, Q in registers is predicted +5.4 %" in verdict(search, "no mask")
    assert "overlaps, with 0 bytes spilled instead of 216: worth a run" in verdict(search, "causal")
    assert verdict(search, "causal").endswith("worth a run on a GPU.")
    small = replace(search, rows=(rows[0], row(other, PLAIN, shared=570)))
    assert verdict(small, "no mask").endswith("too little for a change.")
    assert "the best by this count" in verdict(replace(search, rows=rows[:1]), "no mask")
    # 128 copies and 41 x 8 integer instructions, four a clock, of 15960 clocks.
    assert "Together they are 114 of 2048 clocks of issue" in text.replace("\n", " ")
    assert "a tile would be 0.7 % shorter" in text.replace("\n", " ")
