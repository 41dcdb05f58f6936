"""Attention sinks and the gradient of the LSE in the kernels, executed on the CPU, against the formula in fp64."""

from __future__ import annotations

import pytest

from ci.prove.gb10.executable import Executable
from tests.prove.test_faults import NEAR, make

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    return make(tmp_path_factory.mktemp("sinks"), mended=True)


@pytest.mark.parametrize("case", ["window", "gpt_oss", "split_pages", "gradients"])
def test_kernels_give_what_the_formula_gives(library: Executable, case: str) -> None:
    for sms, settings in ((48, {}), (1, {"seed": 1, "lazy": True})):
        run = library.run("tests.fakes.sink_calls:show", {"case": case}, sms=sms, settings=settings)
        assert {name: value for name, value in run.result.items() if not value <= NEAR[name]} == {}
        assert list(run.errors) == []


@pytest.mark.parametrize("case", ["window", "split_pages", "gradients"])
def test_without_them_the_figures_are_far(library: Executable, case: str) -> None:
    """What the comparison would say, had the kernels not looked at the argument."""
    run = library.run("tests.fakes.sink_calls:show_ignored", {"case": case})
    assert max(value / NEAR[name] for name, value in run.result.items()) > 10


def test_sinks_cost_a_few_instructions_in_a_hundred_at_most(library: Executable) -> None:
    """Where they weigh most, which is under a narrow window at head dim 64, three; none of them on the tensor cores."""
    counts = [
        sum(
            launch["instructions"]
            for launch in library.run(f"tests.fakes.sink_calls:{name}", {"case": "gpt_oss"}).launches
        )
        for name in ("show", "show_ignored")
    ]
    assert counts[1] < counts[0] < 1.035 * counts[1]
