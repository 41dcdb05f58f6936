"""K and V in e4m3 beside a 16-bit Q, executed on the CPU, against the formula in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci.commands import common, options
from ci.prove.gb10 import executable
from ci.prove.gb10.cases import Case
from ci.prove.gb10.executable import Executable
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import CompileError
from tests.fakes import kv8_kernels
from tests.prove.test_order import show

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]

WINDOW = Case(
    op="fwd", dtype="bf16", dim=64, mask="local", softcap=20.0, heads=(4, 2), rows=150, keys=230, sinks=True, kv8=True
)
PACKED = replace(WINDOW, mask="causal", mode="packed", softcap=0.0, batch=3, sinks=False)
DECODE = replace(PACKED, mask="full", mode="paged", page=16, heads=(6, 1), rows=1, keys=300, splits=3)
CASES = {
    "window": WINDOW,
    "packed": PACKED,
    "used": replace(PACKED, mode="used", dim=48),
    "pages split": DECODE,
    "pages leftpad": replace(DECODE, rows=7, page=256, cache="leftpad", sinks=True),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=2), Narrator(quiet=True))
    builder = common.builder(session, common.gather_inputs(session))
    return executable.make(builder, kv8_kernels.family(), output=tmp_path_factory.mktemp("kv8"))


@pytest.mark.parametrize("case", CASES)
def test_kernels_give_what_the_formula_gives(library: Executable, case: str) -> None:
    """Scales differ by batch and head, and what lies behind each head and length is NaN."""
    assert list(show(library, CASES[case], 0).errors) == []


@pytest.mark.parametrize("case", ["packed", "pages split"])
def test_blocks_of_many_tiles_do_too(library: Executable, case: str) -> None:
    assert list(show(library, CASES[case], 2, sms=1, lazy=True).errors) == []


def test_what_is_not_there_is_refused_before_a_launch(library: Executable) -> None:
    with pytest.raises(CompileError, match="multiple of 16"):
        show(library, replace(WINDOW, dim=56), 0)
    with pytest.raises(CompileError, match="kernels append nothing to K and V in fp8"):
        show(library, replace(DECODE, mode="paged append"), 0)
