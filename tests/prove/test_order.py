"""The deterministic backward of the mma.sync families, executed on the CPU with blocks and warps in many orders."""

from __future__ import annotations

import pytest

from ci.commands import common, options
from ci.plan.profiles import Profile
from ci.prove.gb10 import executable
from ci.prove.gb10.executable import Executable
from flash_attn3_sm121.console import Narrator
from tests.fakes import fault_kernels

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]

PROFILE = Profile(
    name="order",
    dtypes=("bf16",),
    head_dims=(64,),
    features=frozenset({"causal", "local", "varlen", "packgqa", "backward", "deterministic"}),
    about="what the host code may ask of the few kernels",
)
SHOW = "tests.fakes.order_calls:show"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=2), Narrator(quiet=True))
    family = fault_kernels.plan(PROFILE, {"bwd": fault_kernels.text("order_kernels.cu")})
    builder = common.builder(session, common.gather_inputs(session))
    return executable.make(builder, family, output=tmp_path_factory.mktemp("order"))


@pytest.mark.parametrize("case", ["full", "causal", "more rows than keys", "local"])
def test_the_bits_are_the_same_in_any_order(library: Executable, case: str) -> None:
    """The order of blocks and warps is the seed's; there is room for all blocks at once."""
    run = library.run(SHOW, {"case": case, "seeds": [0, 1, 2, 3]})
    assert {name: part for name, part in run.result["parts"].items() if part > 1} == {}
    assert run.result["other bits"] == 0 and list(run.errors) == []


@pytest.mark.parametrize("case", ["full", "causal", "more rows than keys", "local"])
def test_no_block_waits_for_one_that_starts_later(library: Executable, case: str) -> None:
    """One block after another, as the grid has them: one that waited for a later one would never end."""
    run = library.run(SHOW, {"case": case, "seeds": [0]}, sms=1, settings={"lazy": True})
    assert {name: part for name, part in run.result["parts"].items() if part > 1} == {}


def test_an_order_costs_few_instructions(library: Executable) -> None:
    """Of one block after another, so that none of them is spent on waiting."""
    ordered, unordered = (
        sum(launch["instructions"] for launch in library.run(SHOW, {"case": case, "seeds": [0]}, sms=1).launches)
        for case in ("full", "unordered")
    )
    assert unordered < ordered < 1.02 * unordered


def test_without_an_order_the_bits_differ(library: Executable) -> None:
    run = library.run(SHOW, {"case": "unordered", "seeds": [0, 1, 2, 3]})
    assert {name: part for name, part in run.result["parts"].items() if part > 1} == {}
    assert run.result["other bits"] > 0
