"""The deterministic backward of the mma.sync families, executed on the CPU with blocks and warps in many orders."""

from __future__ import annotations

from dataclasses import replace

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
    name="order",
    dtypes=("bf16",),
    head_dims=(64,),
    features=frozenset({"causal", "local", "varlen", "packgqa", "backward", "deterministic"}),
    about="what the host code may ask of the few kernels",
)
FULL = Case(op="ordered", dtype="bf16", dim=64, heads=(4, 2), rows=200, keys=700)
CAUSAL = replace(FULL, mask="causal", mode="packed", batch=4, rows=257, keys=300, heads=(3, 1))
CASES = {
    "full": FULL,
    "causal": CAUSAL,
    "more rows than keys": replace(CAUSAL, rows=400, keys=129),
    "wider values": replace(CAUSAL, dim=40, dim_v=64, rows=130, keys=150),
    "narrower values": replace(CAUSAL, dim_v=40, rows=130, keys=150),
    "local": replace(FULL, mask="local", mode="used", batch=4, rows=330, keys=400, heads=(2, 2)),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=2))
    family = fault_kernels.plan(PROFILE, {"bwd": fault_kernels.text("order_kernels.cu")})
    builder = common.builder(session, common.gather_inputs(session))
    return executable.make(builder, family, output=tmp_path_factory.mktemp("order"))


@pytest.fixture(scope="module")
def in_any_order(library: Executable) -> dict[str, Shown]:
    """The order of blocks and warps is the seed's; there is room for all blocks at once."""
    return execute(library, CASES | {"without an order": replace(FULL, op="bwd")}, 0, 1, 2, 3)


@pytest.fixture(scope="module")
def one_by_one(library: Executable) -> dict[str, Shown]:
    """One block after another, as the grid has them: one that waited for a later one would never end."""
    return execute(library, CASES, 0, sms=1, lazy=True)


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_the_same_in_any_order(in_any_order: dict[str, Shown], case: str) -> None:
    assert in_any_order[case]["wrong"] == [] and in_any_order[case]["other bits"] == 0


@pytest.mark.parametrize("case", CASES)
def test_no_block_waits_for_one_that_starts_later(one_by_one: dict[str, Shown], case: str) -> None:
    assert one_by_one[case]["wrong"] == []


def test_an_order_costs_few_instructions(library: Executable) -> None:
    """Of one block after another, so that none of them is spent on waiting."""
    both = execute(library, {op: replace(FULL, op=op) for op in ("ordered", "bwd")}, 0, sms=1)
    assert both["bwd"]["instructions"] < both["ordered"]["instructions"] < 1.02 * both["bwd"]["instructions"]


def test_without_an_order_the_bits_differ(in_any_order: dict[str, Shown]) -> None:
    assert in_any_order["without an order"]["wrong"] == [] and in_any_order["without an order"]["other bits"] > 0
