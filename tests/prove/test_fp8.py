"""Q, K and V in e4m3 on the tensor cores, executed on the CPU, against the formula in fp64 with the same roundings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ci.build.family import Builder
from ci.commands import common, options
from ci.prove.gb10 import executable
from ci.prove.gb10.cases import Case
from ci.prove.gb10.executable import Executable
from tests.fakes import kv8_kernels
from tests.fakes.case_calls import Shown, execute

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]

PACKED = Case(
    op="fwd", dtype="bf16", dim=64, mask="causal", mode="packed", heads=(4, 2), batch=3, rows=150, keys=230, kv8=True,
    fp8=True,
)  # fmt: skip
PAGES = replace(
    PACKED, mask="full", mode="paged", page=16, heads=(6, 1), rows=70, keys=300, splits=2, softcap=20.0
)  # fmt: skip
CASES = {
    "packed": PACKED,
    "used": replace(PACKED, mode="used", dim=48),
    "pages split": PAGES,
    "pages leftpad": replace(PAGES, rows=7, page=256, cache="leftpad", sinks=True),
}
REFUSED = {
    "multiple of 16": replace(PACKED, dim=56),
    "kernels append nothing to K and V in fp8": replace(PAGES, mode="paged append"),
}


@pytest.fixture(scope="module")
def builder() -> Builder:
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=2))
    return common.builder(session, common.gather_inputs(session))


@pytest.fixture(scope="module")
def library(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Executable:
    family = kv8_kernels.family(kv8_kernels.FEW_FP8, kv8_kernels.PROFILE_FP8)
    return executable.make(builder, family, output=tmp_path_factory.mktemp("fp8"))


@pytest.fixture(scope="module")
def shown(library: Executable) -> dict[str, Shown]:
    return execute(library, CASES | REFUSED, 0)


def test_metadata_made_before_a_call_has_its_number_of_splits(library: Executable) -> None:
    """It is told of e4m3, and not that Q is in e4m3 too, whose tiles have another number of columns."""
    run = library.run("tests.fakes.fp8_calls:scheduled", {"lengths": [300, 350, 450, 520, 1000]})
    assert [found["wrong"] for found in run.result] == [""] * 5 and all(found["equal"] for found in run.result)
    assert list(run.errors) == []


@pytest.mark.parametrize("case", CASES)
def test_errors_are_those_of_the_roundings(shown: dict[str, Shown], case: str) -> None:
    """Scales differ by batch and head, and what lies behind each head and length is NaN."""
    assert shown[case]["wrong"] == []


@pytest.mark.parametrize("case", ["packed", "pages split"])
def test_blocks_of_many_tiles_give_the_same(library: Executable, case: str) -> None:
    """One SM, which gives a block many tiles, and copies that land late."""
    assert execute(library, {case: CASES[case]}, 2, sms=1, lazy=True)[case]["wrong"] == []


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_there_is_refused_before_a_launch(shown: dict[str, Shown], words: str) -> None:
    assert words in shown[words]["wrong"][0] and shown[words]["instructions"] == 0


def test_the_host_code_takes_the_calls_of_the_kernels_page(builder: Builder, tmp_path: Path) -> None:
    """`ci kernels` counts what they launch: each of the few kernels, and no call is refused."""
    launched, refused = kv8_kernels.driven(builder, kv8_kernels.FEW_FP8, kv8_kernels.PROFILE_FP8, output=tmp_path)
    assert refused == set() and len(launched) == len(kv8_kernels.FEW_FP8)
    assert all("fp8" in words.split() for words in launched)
