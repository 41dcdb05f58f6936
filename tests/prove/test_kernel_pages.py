"""The generated pages about kernels: sums are sums, and the same rows give the same text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ci.plan.profiles import find, select
from ci.prove.standin.document import About, Row, choice, to_summary, to_text
from ci.verify.kernels import Variant
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"
ABOUT = About(
    profile="full", image="sm_121", limit=101376, calls=7, unreached=2, pin="3effce8", cuda="13.0", command="this test"
)  # fmt: skip
RAN = {"instructions": 1000, "executed": 995, "cases": 12, "wrong": 0, "largest": {"out": 0.0079, "lse": 2e-6}}
RAN["parts"] = {"out": 0.26, "lse": 0.4}
LOOP = {
    "instructions": 1024, "tensor": 256, "mufu": 66, "fp": 298, "integer": 52, "shared": 583, "spills": 0, "warps": 8,
}  # fmt: skip
PLAIN = Row(
    kind="forward", variant=Variant(dtype="bf16", head_dim=128, flags=frozenset()), tile="128 x 128", warps=8,
    registers=250, spills=0, smem=65920, tensor_core=768, launched=3, executed=RAN, loop=LOOP,
)  # fmt: skip
CAUSAL = replace(
    PLAIN, variant=replace(PLAIN.variant, flags=frozenset({"causal"})), tile="128 x 96", registers=255, spills=16,
    smem=57728, launched=2, loop={},
    executed=RAN | {"executed": 900, "cases": 3, "wrong": 1, "largest": {"out": 0.5}, "parts": {"out": 1.25}},
)  # fmt: skip
OTHER = replace(
    PLAIN, kind="backward", variant=replace(PLAIN.variant, dtype="fp16"), smem=99584, launched=1, executed=None
)
ROWS = (PLAIN, CAUSAL, OTHER)


def test_a_line_a_kernel() -> None:
    text = to_text(ROWS, ABOUT)
    assert (
        "Kernels that spill: 1 of 3. Built, but launched by no call: 2." in text
        and "the largest below asks for 99584." in text
    )
    assert (
        "| forward hd128 bf16 causal | 128 x 96 | 8 | 255 | 16 | 57728 | 768 | 1 | 2 | 90 % | 3 | 5.0e-01 | 125 % | 1 |"
        in text
    )
    assert "(`make prove`, the same PTX): 2 of 3." in text
    assert "| backward hd128 fp16 | 128 x 128 | 8 | 250 | 0 | 99584 | 768 | 1 | 1 | no |  |  |  |  |" in text
    assert "No whole run of `make prove`" in to_text((OTHER,), ABOUT)


def test_the_work_of_a_tile() -> None:
    # 256 x 8 tensor-core instructions of 4096 FLOP at 1024 a clock; 1024 x 8 issued four at a time; 66 x 8 x 32 values
    # of MUFU at 16 a clock; 583 x 8 times 128 bytes. Eight warps of 250 registers fill an SM.
    text = to_text(ROWS, ABOUT)
    assert "| forward hd128 bf16 | 128 x 128 | 8192 | 2048 | 1056 | 4664 | 8 | 2384 | 416 | 51 to 100 % |" in text
    assert "Left out, as their inner loop was not found: 1." in text
    assert "a prediction on paper, never measured" in " ".join(text.split())
    assert "| forward hd128, 1 of them | 128 x 128 | 8192 |" in to_summary(ROWS, ABOUT)


def test_kernels_in_e4m3_have_a_peak_of_their_own() -> None:
    """Half of the tensor-core instructions, each of twice the multiplications: a share of twice bf16's rate."""
    fp8 = replace(PLAIN, variant=replace(PLAIN.variant, flags=frozenset({"fp8"})), loop=LOOP | {"tensor": 128})
    said = "Of kernels with Q in e4m3 (`fp8`) it is a share of 238 TFLOP/s"
    for page in (to_text, to_summary):
        assert said in page((PLAIN, fp8), ABOUT) and said not in page(ROWS, ABOUT)
    assert "| forward hd128 fp8, 1 of them | 128 x 128 | 4096 | 2048 |" in to_summary((fp8,), ABOUT)


def test_kernels_with_another_loop_have_a_line_of_their_own() -> None:
    ordered = replace(OTHER, variant=replace(OTHER.variant, flags=frozenset({"causal", "deterministic"})))
    bytes_ = replace(PLAIN, variant=replace(PLAIN.variant, flags=frozenset({"kv8", "paged"})), executed=None)
    values = replace(PLAIN, variant=replace(PLAIN.variant, head_dim_v=64), executed=RAN | {"parts": {}})
    lines = to_summary((*ROWS, ordered, bytes_, values), ABOUT).splitlines()
    begun = [line.split(" | ")[0] for line in lines if "hd128" in line]
    assert begun == [
        "| backward hd128 fp16", "| backward hd128 deterministic fp16", "| forward hd128 bf16",
        "| forward hd128 kv8 bf16", "| forward hd128/64 bf16", "| backward hd128, 1 of them",
        "| backward hd128 deterministic, 1 of them", "| forward hd128, 1 of them", "| forward hd128 kv8, 1 of them",
        "| forward hd128/64, 1 of them",
    ]  # fmt: skip
    # A record of earlier days does not have the limits.
    assert any(line.endswith("| 12 | 7.9e-03 |  | 0 |") for line in lines)


def test_a_line_a_head_dim_and_dtype() -> None:
    lines = [line for line in to_summary(ROWS, ABOUT).split("## Work")[0].splitlines() if "hd128" in line]
    assert lines == [
        "| backward hd128 fp16 | 1 | 128 x 128 | 250 | 0 | 0 | 99584 | 768 | 1 | no |  |  |  |  |",
        "| forward hd128 bf16 | 2 | 128 x 128, 128 x 96 | 250 to 255 | 1 | 16 | 57728 to 65920 | 768 | 5 "
        "| 2, 90 % or more | 15 | 5.0e-01 | 125 % | 1 |",
    ]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [([], [PLAIN, CAUSAL, OTHER]), (["bf16"], [PLAIN, CAUSAL]), (["hd128", "fp16"], [OTHER]), (["hd64"], [])],
)
def test_only_what_was_asked_for(words: list[str], wanted: list[Row]) -> None:
    assert [row for row in ROWS if choice(words, select(find("full"), Family.SM8X))(row)] == wanted


def test_what_no_kernel_has_is_refused() -> None:
    with pytest.raises(UsageError, match="hd80: not in this profile"):
        choice(["hd80"], select(find("full"), Family.SM8X))


@pytest.mark.parametrize("page", ["", "-fp8", "-full"])
def test_no_forward_kernel_of_a_page_spills(page: str) -> None:
    """Of head dims 192 and 256 some did, until ptxas was told to save registers (ci/plan/flags.py)."""
    head, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (DOCS / f"kernels-12.1{page}.md").read_text(encoding="utf-8").splitlines()
        if line.startswith(("| kernels | of them | tiles ", "| forward ")) and line.count("|") == 15
    )
    spilling = {line[0]: line[head.index("bytes at most")] for line in lines}
    assert len(spilling) >= 6 and set(spilling.values()) == {"0"}, spilling
