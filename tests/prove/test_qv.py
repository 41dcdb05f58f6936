"""A second query for V (absorbed MLA), and V of up to 512 columns, executed on the CPU, against the formula in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci.commands import common, options
from ci.prove.gb10 import executable
from ci.prove.gb10.cases import Case
from ci.prove.gb10.executable import Executable
from tests.fakes import kv8_kernels
from tests.fakes.case_calls import Shown, execute

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]

PACKED = Case(
    op="fwd", dtype="bf16", dim=64, dim_v=512, mask="causal", mode="packed", heads=(16, 1), batch=3, rows=21, keys=130,
    qv=True,
)  # fmt: skip
PAGES = replace(PACKED, mask="full", mode="paged", page=16, heads=(20, 1), rows=1, keys=300, splits=2)
CASES = {
    "packed": PACKED,
    "used": replace(PACKED, mode="used", dim=48, dim_v=392, heads=(6, 2), sinks=True),
    "V of 512 alone": replace(PACKED, qv=False),
    "window": replace(PACKED, dtype="fp16", mask="local", mode="dense", batch=2, rows=70),
    "pages split": PAGES,
    "pages leftpad": replace(PAGES, rows=3, page=7, dim_v=256, cache="leftpad", sinks=True),
    "pages of 256": replace(PAGES, page=256, cache="picked"),
}
REFUSED = {
    "we only support Q/K headdim in (128, 192]": replace(PACKED, dim_v=520, qv=False),
    "different V headdim with softcap is not built": replace(PACKED, softcap=9.0),
    "q_v is only supported for hdim_v >= 256": replace(PACKED, dim_v=128),
    "kernels append nothing beside q_v or a V headdim above 256": replace(PAGES, mode="paged append"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=2))
    builder = common.builder(session, common.gather_inputs(session))
    family = kv8_kernels.family(kv8_kernels.FEW_QV, kv8_kernels.PROFILE_QV)
    return executable.make(builder, family, output=tmp_path_factory.mktemp("qv"))


@pytest.fixture(scope="module")
def shown(library: Executable) -> dict[str, Shown]:
    return execute(library, CASES | REFUSED, 0, 1)


@pytest.mark.parametrize("case", CASES)
def test_kernels_give_what_the_formula_gives(shown: dict[str, Shown], case: str) -> None:
    """What lies behind each head and length is NaN; in both orders of blocks and warps the bits are the same."""
    assert shown[case]["wrong"] == [] and shown[case]["other bits"] == 0


@pytest.mark.parametrize("case", ["packed", "pages split"])
def test_blocks_of_many_tiles_give_the_same(library: Executable, case: str) -> None:
    """One SM, which gives a block many tiles, and copies that land late."""
    assert execute(library, {case: CASES[case]}, 2, sms=1, lazy=True)[case]["wrong"] == []


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_there_is_refused_before_a_launch(shown: dict[str, Shown], words: str) -> None:
    assert words in shown[words]["wrong"][0] and shown[words]["instructions"] == 0
