"""Faults of upstream's kernels (ci/mends.py): each is there in sources without its edit, and is gone with it.

Two libraries of few kernels, with and without the mends, executed on the CPU. Of the backward, the unmended library only
tells which kernel would have been launched, and with which strides: compiling it would cost more than it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ci import options
from ci.commands import common
from ci.mends import MENDS
from ci.narrate import Narrator
from ci.prove.gb10 import executable
from ci.prove.gb10.executable import Executable, Run
from flash_attn3_sm121.errors import CompileError
from tests.prove import few

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]

# Distances to the formula in fp64 of results that are right: bf16 in and out, sums in fp32.
NEAR = {"out": 8e-3, "lse": 1e-4, "cache": 0.0, "behind the head": 0.0, "dq": 2.3e-2, "dk": 2.3e-2, "dv": 2.3e-2}
MEND = {edit.name for edit in MENDS}


def _make(folder: Path, *, mended: bool) -> Executable:
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=1), Narrator(quiet=True))
    inputs = common.gather(session, without=frozenset() if mended else frozenset(MEND))
    return executable.make(common.builder(session, inputs), few.family(backward=mended), output=folder)


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    return _make(tmp_path_factory.mktemp("mended"), mended=True)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    return _make(tmp_path_factory.mktemp("faulty"), mended=False)


def show(library: Executable, case: str, *, sms: int = 4, **settings: Any) -> Run:
    return library.run("tests.prove.few_calls:show", {"case": case}, sms=sms, settings=settings)


def far(run: Run) -> dict[str, float]:
    """The figures that are not those of a right result."""
    return {name: value for name, value in run.result.items() if not value <= NEAR[name]}


def races(run: Run) -> list[dict[str, Any]]:
    return [found for found in run.errors if found["kind"] == "race"]


def test_a_block_with_several_tiles_keeps_its_output(mended: Executable, faulty: Executable) -> None:
    found = races(show(faulty, "append_and_split", sms=1))
    assert [race for race in found if race["space"] == "shared"], "append-barrier: no race without it"
    for settings in ({}, {"lazy": True}, {"seed": 1}, {"seed": 2, "lazy": True}):
        run = show(mended, "append_and_split", sms=1, **settings)
        assert far(run) == {} and list(run.errors) == [], settings


def test_keys_stay_within_their_head(mended: Executable, faulty: Executable) -> None:
    assert far(show(faulty, "rotary_below_the_kernel")).get("behind the head", 0) > 0
    run = show(mended, "rotary_below_the_kernel")
    assert far(run) == {} and list(run.errors) == []


def test_every_batch_is_combined_as_its_own(mended: Executable, faulty: Executable) -> None:
    assert "out" in far(show(faulty, "used_rows_and_split"))
    run = show(mended, "used_rows_and_split")
    assert far(run) == {} and list(run.errors) == []


def test_a_backward_knows_used_lengths(mended: Executable, faulty: Executable) -> None:
    with pytest.raises(CompileError, match="no lengths, dk_batch_stride"):
        show(faulty, "used_rows_backward")
    run = show(mended, "used_rows_backward")
    assert far(run) == {} and list(run.errors) == []


def test_a_packed_q_does_not_pack_k(mended: Executable, faulty: Executable) -> None:
    stride = 150 * 4 * 64
    with pytest.raises(CompileError, match=rf": lengths, dk_batch_stride (?!{stride}\b)-?\d+"):
        show(faulty, "packed_rows_backward")
    run = show(mended, "packed_rows_backward")
    assert far(run) == {} and list(run.errors) == []
