"""Faults of upstream's kernels (ci/sources/fault_patches.py): each is there without its edit, and is gone with it.

Two libraries of few kernels, with and without those patches, executed on the CPU. Of the backward, the faulty library
only tells which kernel would have been launched, with which stride: compiling it would cost more than it shows.
"""

from __future__ import annotations

from typing import Any

import pytest

from ci.prove.gb10.executable import Executable, Run
from flash_attn3_sm121.errors import CompileError
from tests.fakes import fault_kernels
from tests.fakes.fault_calls import NEAR

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    return fault_kernels.make(tmp_path_factory.mktemp("mended"), mended=True)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    return fault_kernels.make(tmp_path_factory.mktemp("faulty"), mended=False)


def show(library: Executable, case: str, *ways: dict[str, Any], sms: int = 48) -> Run:
    """One process for all ways of running a case: settings of the executor, none by default."""
    return library.run("tests.fakes.fault_calls:show", {"case": case, "ways": ways or ({},)}, sms=sms)


def far(run: Run) -> dict[str, float]:
    """The figures that are not those of a right result."""
    return {name: value for name, value in run.result.items() if not value <= NEAR[name]}


def check(library: Executable, case: str, *, sms: int = 48) -> None:
    """Right results and no finding, in order and as the seeds have it, copies landing early and late."""
    run = show(library, case, {}, {"seed": 1, "lazy": True}, sms=sms)
    assert far(run) == {} and list(run.errors) == []


def test_the_next_tile_leaves_the_output_alone(mended: Executable, faulty: Executable) -> None:
    """One SM, so that a block has several tiles; in order, its first warp is far enough ahead to do harm."""
    run = show(faulty, "append_and_split", sms=1)
    assert far(run)["out"] > 1
    assert {(found["kind"], found["space"]) for found in run.errors} <= {("race", "shared"), ("unwaited", "shared")}
    scattered = show(faulty, "append_and_split", {"seed": 1}, sms=1)
    assert "race" in {found["kind"] for found in scattered.errors}, "seen in any order, whatever the numbers"
    check(mended, "append_and_split", sms=1)
    check(mended, "append_and_split")


def test_keys_stay_within_their_head(mended: Executable, faulty: Executable) -> None:
    assert far(show(faulty, "rotary_below_the_kernel"))["behind the head"] > 0
    check(mended, "rotary_below_the_kernel")


def test_every_batch_is_combined_as_its_own(mended: Executable, faulty: Executable) -> None:
    run = show(faulty, "used_rows_and_split")
    assert "out" in far(run)
    assert {found["space"] for found in run.errors} == {"global"}, "two batches write the first one's rows"
    check(mended, "used_rows_and_split")


def test_a_backward_knows_used_lengths(mended: Executable, faulty: Executable) -> None:
    with pytest.raises(CompileError, match="no lengths, dk_batch_stride"):
        show(faulty, "used_rows_backward")
    check(mended, "used_rows_backward")


def test_a_packed_q_does_not_pack_k(mended: Executable, faulty: Executable) -> None:
    stride = 150 * 4 * 64
    with pytest.raises(CompileError, match=rf": lengths, dk_batch_stride (?!{stride}\b)-?\d+"):
        show(faulty, "packed_rows_backward")
    check(mended, "packed_rows_backward")


def test_keys_are_counted_in_64_bits(mended: Executable, faulty: Executable) -> None:
    assert set(far(show(faulty, "shared_keys"))) == {"out", "lse"}
    check(mended, "shared_keys")


def test_rows_of_padding_are_skipped(mended: Executable) -> None:
    """No fault of upstream's: transformers pads decode batches with rows of length -1, and relies on this."""
    check(mended, "padded_rows")


def test_what_racecheck_says_of_decoding_from_pages(mended: Executable) -> None:
    """No race; but taken as ordering nothing, named barriers leave just the pairs that racecheck named on a GPU."""
    check(mended, "decode_from_pages")
    blind = show(mended, "decode_from_pages", {"named": False})
    assert far(blind) == {}
    pairs = {(_word(found["who"]), _word(found["other"])) for found in blind.errors}
    output_over_v, next_tile, output_read_back = ("st", "ldmatrix trans"), ("ld v4", "st v4"), ("ld v2", "st")
    assert {output_over_v, next_tile, output_read_back} <= pairs
    assert pairs <= {output_over_v, next_tile, output_read_back, ("st v4", "ld v4")}


def _word(party: dict[str, Any]) -> str:
    """An instruction in a word or two: what it is, and how wide or turned."""
    first, *rest = party["text"].split()[0].split(".")
    return " ".join((first, *(word for word in rest if word in ("v2", "v4", "trans"))))
