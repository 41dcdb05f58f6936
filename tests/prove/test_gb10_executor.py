"""The executor by itself: small kernels, right ones and wrong ones; each wrong one is found by the check for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ci.cache.folders import cache_root
from ci.prove.gb10.build import executor
from ci.prove.gb10.executable import Executable
from flash_attn3_sm121.errors import CompileError
from tests.fakes.ptx_kernels import TEXT

pytestmark = pytest.mark.slow  # the executor is compiled once, about a minute

RIGHT: dict[str, dict[str, Any]] = {
    "fine": {},
    "halves": {},
    "sums": {},
    "quads": {},
    "constants": {},
    "barrier_orders": {"block": 64},
    "arrive_orders_one_way": {"block": 64},
    "waited": {"lazy": True},
    "one_group_open": {"lazy": True},
    "lanes_in_step": {},
    "warps_add": {"block": 64},
    # No race: equal values, and atomics.
    "two_lanes_alike": {},
    "blocks_alike": {"grid": 4},
    "blocks_add": {"grid": 4},
}
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "behind": ({}, "bounds", "global"),
    "read_behind": ({}, "bounds", "global"),
    "odd": ({}, "misaligned", "global"),
    "shared_behind": ({"shared": 128}, "bounds", "shared"),
    "two_lanes": ({}, "conflict", "shared"),
    "warps_race": ({"block": 64}, "race", "shared"),
    "arrive_does_not_wait": ({"block": 64}, "race", "shared"),
    "blocks_race": ({"grid": 2}, "race", "global"),
    "not_waited": ({}, "unwaited", "shared"),
    "lanes_race": ({}, "race", "shared"),
    "lanes_overwrite": ({}, "race", "shared"),
    "lanes_write_twice": ({}, "race", "shared"),
    "lanes_add_then_read": ({}, "race", "shared"),
    "plain_then_added": ({"block": 64}, "race", "shared"),
    "read_then_added": ({"block": 64}, "race", "shared"),
}
OTHER: dict[str, dict[str, Any]] = {
    "never_written": {"poison": 0x3C},
    "not_waited early": {"poison": 0x11},
    "not_waited late": {"poison": 0x11, "lazy": True},
    "nobody_comes": {"block": 64},
    "strange": {},
    "narrow": {},
}
LAUNCHES: dict[str, dict[str, Any]] = {
    **{name: {"name": name, **how} for name, how in RIGHT.items()},
    **{f"{name} {seed}": {"name": name, "seed": seed, **how} for name, (how, *_) in WRONG.items() for seed in (0, 7)},
    **{name: {"name": name.split()[0], **how} for name, how in OTHER.items()},
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    path = tmp_path_factory.mktemp("gb10") / "kernels.ptx"
    path.write_text(TEXT, encoding="utf-8")
    return Executable(library=None, namespace="", ptx=(path,), executor=executor(cache_root()))


@pytest.fixture(scope="module")
def ran(bare: Executable) -> dict[str, dict[str, Any]]:
    """Every launch, in one process."""
    answers = bare.run("tests.fakes.ptx_kernels:every", {"launches": list(LAUNCHES.values())}).result
    return dict(zip(LAUNCHES, answers, strict=True))


def errors(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [found for found in answer["findings"] if not found["note"]]


def test_what_is_compiled_serves_every_clone(bare: Executable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybind11.get_include", lambda: "/another/clone/include")
    assert executor(cache_root()).folder == bare.executor.folder


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_found_right(ran: dict[str, dict[str, Any]], name: str) -> None:
    assert errors(ran[name]) == [] and ran[name]["stopped"] == ""


def test_what_is_right_is_computed(ran: dict[str, dict[str, Any]]) -> None:
    assert ran["halves"]["result"] == [5] * 10 + [2] * 22
    assert ran["sums"]["result"] == [0x43F80000] * 32, "496.0: what the lanes' numbers add up to"
    assert ran["constants"]["result"] == [9] * 10 + [7] * 22
    assert ran["quads"]["result"] == [lane // 4 * 4 + 1 for lane in range(32)]
    assert ran["barrier_orders"]["result"] == [0] * 64
    assert ran["waited"]["result"] == ran["one_group_open"]["result"] == [0] * 32
    assert ran["blocks_add"]["result"][0] == 128
    assert ran["warps_add"]["result"] == [64] * 64


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("seed", [0, 7])
def test_what_is_wrong_is_found(ran: dict[str, dict[str, Any]], name: str, seed: int) -> None:
    _, kind, space = WRONG[name]
    wrong = errors(ran[f"{name} {seed}"])
    assert {(found["kind"], found["space"]) for found in wrong} == {(kind, space)}
    found, who = wrong[0], wrong[0]["who"]
    assert who["text"] + ";" in TEXT.splitlines()[who["line"] - 1], "it names the line"
    if kind == "race":
        other = found["other"]
        party = (other["block"], other["warp"]) != (who["block"], who["warp"])
        assert other["line"] and party != name.startswith("lanes_"), "another warp, or another lane of this one"


def test_unwritten_memory_is_a_note_and_holds_the_poison(ran: dict[str, dict[str, Any]]) -> None:
    answer = ran["never_written"]
    assert errors(answer) == [] and [found["kind"] for found in answer["findings"]] == ["unwritten"]
    assert answer["result"] == [0x3C3C3C3C] * 32


def test_a_late_copy_lands_at_its_wait(ran: dict[str, dict[str, Any]]) -> None:
    assert ran["not_waited early"]["result"] == [0] * 32
    assert ran["not_waited late"]["result"] == [0x11111111] * 32


def test_warps_that_wait_for_nobody_stop(ran: dict[str, dict[str, Any]]) -> None:
    assert "wait for each other" in ran["nobody_comes"]["stopped"]
    assert [found["kind"] for found in errors(ran["nobody_comes"])] == ["barrier"]


def test_an_unknown_instruction_stops_with_its_line(ran: dict[str, dict[str, Any]]) -> None:
    line = next(number for number, text in enumerate(TEXT.splitlines(), 1) if text.startswith("fma.rn.f64"))
    assert f"does not know, PTX line {line}: fma.rn.f64 %rd5" in ran["strange"]["stopped"]


def test_a_store_that_the_race_checks_cannot_see_stops(ran: dict[str, dict[str, Any]]) -> None:
    assert "a store of fewer than 4 bytes" in ran["narrow"]["stopped"]


def test_half_a_file_is_refused(bare: Executable, tmp_path: Path) -> None:
    half = tmp_path / "half.ptx"
    half.write_text(TEXT[: len(TEXT) // 2], encoding="utf-8")
    broken = Executable(library=None, namespace="", ptx=(half,), executor=bare.executor)
    with pytest.raises(CompileError, match="not the PTX of kernels"):
        broken.run("tests.fakes.ptx_kernels:every", {"launches": []})


def test_tensor_core_instructions_are_exact(bare: Executable) -> None:
    answer = bare.run("tests.fakes.ptx_kernels:units", {}).result
    assert answer["mma_bf16"] < 1e-5 and answer["mma_f16"] < 1e-5 and answer["mma_e4m3"] < 1e-5
    assert answer["matrices"] is True and answer["eights"] is True
