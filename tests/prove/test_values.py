"""V with a head dim of its own in the mma.sync kernels, executed on the CPU, against the formula in fp64."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from ci.commands import common, options
from ci.plan.profiles import Profile
from ci.prove.gb10 import executable
from ci.prove.gb10.cases import Case
from ci.prove.gb10.executable import Executable
from tests.fakes import fault_kernels
from tests.fakes.case_calls import Shown, execute

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]

PROFILE = Profile(
    name="values",
    dtypes=("bf16",),
    head_dims=(64, 192),
    features=frozenset({"causal", "local", "varlen", "append", "paged", "packgqa", "diff_headdim"}),
    about="what the host code may ask of the few kernels",
)
MLA = Case(op="fwd", dtype="bf16", dim=192, dim_v=128, mask="causal", heads=(2, 2), rows=150, keys=230)
CASES = {
    "prefill 192/128": MLA,
    "176/104": replace(MLA, dim=176, dim_v=104),
    "append 192/128": replace(MLA, mask="full", mode="append", rotary="halves", heads=(4, 2), rows=70),
    "pages 64/256": replace(MLA, dim=64, dim_v=256, mask="full", mode="paged", page=16, batch=3, rows=9),
}


REFUSED: dict[str, dict[str, Any]] = {
    "V headdim 512 takes the kernels for q_v, which this .* build does not have": {"dim": 64, "dim_v": 512},
    "different V headdim with softcap is not built": {"dim": 64, "dim_v": 96, "softcap": 9.0},
    r"we only support Q/K headdim in \(128, 192\]": {"dim": 128, "dim_v": 64},
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=2))
    family = fault_kernels.plan(PROFILE, {"fwd": fault_kernels.text("values_kernels.cu")})
    builder = common.builder(session, common.gather_inputs(session))
    return executable.make(builder, family, output=tmp_path_factory.mktemp("values"))


@pytest.fixture(scope="module")
def shown(library: Executable) -> dict[str, Shown]:
    return execute(library, CASES | {words: replace(MLA, **dims) for words, dims in REFUSED.items()}, 0, 1)


@pytest.mark.parametrize("case", CASES)
def test_kernels_give_what_the_formula_gives(shown: dict[str, Shown], case: str) -> None:
    """What lies behind each head of V is NaN."""
    assert shown[case]["wrong"] == []


def test_a_block_of_many_tiles_does_too(library: Executable) -> None:
    assert execute(library, {"MLA": MLA}, 2, sms=1, lazy=True)["MLA"]["wrong"] == []


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused_before_a_launch(shown: dict[str, Shown], words: str) -> None:
    assert re.search(words, shown[words]["wrong"][0]) and shown[words]["instructions"] == 0
