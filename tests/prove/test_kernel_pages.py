"""The generated pages about kernels: sums are sums, and the same rows give the same text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci.plan.profiles import find, select
from ci.prove.standin.document import About, Row, choice, to_summary, to_text
from ci.verify.kernels import Variant
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.errors import UsageError

ABOUT = About(
    profile="full", image="sm_121", limit=101376, calls=7, unreached=2, pin="3effce8", cuda="13.0", command="this test"
)  # fmt: skip
PLAIN = Row(
    kind="forward", variant=Variant(dtype="bf16", head_dim=128, flags=frozenset()), tile="128 x 128", warps=8,
    registers=250, spills=0, smem=65920, tensor_core=768, launched=3,
)  # fmt: skip
CAUSAL = replace(
    PLAIN, variant=replace(PLAIN.variant, flags=frozenset({"causal"})), tile="128 x 96", registers=255, spills=16,
    smem=57728, launched=2,
)  # fmt: skip
OTHER = replace(PLAIN, kind="backward", variant=replace(PLAIN.variant, dtype="fp16"), smem=99584, launched=1)
ROWS = (PLAIN, CAUSAL, OTHER)


def test_a_line_a_kernel() -> None:
    text = to_text(ROWS, ABOUT)
    assert (
        "Kernels that spill: 1 of 3. Built, but launched by no call: 2." in text
        and "the largest below asks for 99584." in text
    )
    assert "| forward hd128 bf16 causal | 128 x 96 | 8 | 255 | 16 | 57728 | 768 | 1 | 2 |" in text


def test_a_line_a_head_dim_and_dtype() -> None:
    lines = to_summary(ROWS, ABOUT).splitlines()
    assert lines[-2:] == [
        "| backward hd128 fp16 | 1 | 128 x 128 | 250 | 0 | 0 | 99584 | 768 | 1 |",
        "| forward hd128 bf16 | 2 | 128 x 128, 128 x 96 | 250 to 255 | 1 | 16 | 57728 to 65920 | 768 | 5 |",
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
