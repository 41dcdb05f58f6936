"""K and V in e4m3 beside a 16-bit Q, executed on the CPU, against the formula in fp64."""

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


REFUSED = {
    "multiple of 16": replace(WINDOW, dim=56),
    "kernels append nothing to K and V in fp8": replace(DECODE, mode="paged append"),
}


@pytest.fixture(scope="module")
def builder() -> Builder:
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=2))
    return common.builder(session, common.gather_inputs(session))


@pytest.fixture(scope="module")
def library(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Executable:
    return executable.make(builder, kv8_kernels.family(), output=tmp_path_factory.mktemp("kv8"))


@pytest.fixture(scope="module")
def shown(library: Executable) -> dict[str, Shown]:
    return execute(library, CASES | REFUSED, 0)


@pytest.fixture(scope="module")
def many_tiles(library: Executable) -> dict[str, Shown]:
    """One SM, which gives a block many tiles, and copies that land late."""
    return execute(library, {case: CASES[case] for case in ("packed", "pages split")}, 2, sms=1, lazy=True)


@pytest.mark.parametrize("case", CASES)
def test_kernels_give_what_the_formula_gives(shown: dict[str, Shown], case: str) -> None:
    """Scales differ by batch and head, and what lies behind each head and length is NaN."""
    assert shown[case]["wrong"] == []


@pytest.mark.parametrize("case", ["packed", "pages split"])
def test_blocks_of_many_tiles_do_too(many_tiles: dict[str, Shown], case: str) -> None:
    assert many_tiles[case]["wrong"] == []


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_there_is_refused_before_a_launch(shown: dict[str, Shown], words: str) -> None:
    assert words in shown[words]["wrong"][0] and shown[words]["instructions"] == 0


def test_the_host_code_takes_the_calls_of_the_kernels_page(builder: Builder, tmp_path: Path) -> None:
    """`ci kernels` counts what they launch: each of the few kernels, and no call is refused."""
    launched, refused = kv8_kernels.driven(builder, kv8_kernels.FEW, kv8_kernels.PROFILE, output=tmp_path)
    assert refused == set() and len(launched) == len(kv8_kernels.FEW)
    assert all("kv8" in words.split() for words in launched)
