"""The smoke profile's kernels, executed whole: every case right, every attention kernel reached, and faults noticed."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ci.commands import common, options
from ci.prove.gb10 import executable, mutants, report
from ci.prove.gb10.cases import Case, cases
from ci.prove.gb10.executable import Executable
from ci.prove.gb10.pool import Counts, Pool, Results
from ci.verify import kernels
from ci.verify.reading import Disassembler
from flash_attn3_sm121.api import ops
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.console import Narrator, plain
from flash_attn3_sm121.native.library import metadata_length

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]
QUIET = Narrator(quiet=True)
# Changes that no case may miss, of the few dozen kinds of instruction.
NOTICED = ("barrier dropped", "copy dropped", "load shifted", "max for min", "transposition flipped", "wait later")


@dataclass(frozen=True, kw_only=True)
class Smoke:
    """The executed profile."""

    executable: Executable
    pool: Pool
    cases: tuple[Case, ...]
    results: Results
    counts: Counts


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    session = common.begin(options.Request(profile="smoke", archs="12.1"))
    (family,) = session.plan.families
    inputs = common.gather_inputs(session)
    folder = tmp_path_factory.mktemp("smoke")
    made = executable.make(common.builder(session, inputs), family, output=folder)
    pool = Pool(executable=made, folder=folder, jobs=2, narrate=QUIET)
    wanted = cases(family.selection, times=1)
    results, counts = pool.run(wanted)
    return Smoke(executable=made, pool=pool, cases=wanted, results=results, counts=counts)


def test_every_case_is_right_and_every_attention_kernel_was_executed(smoke: Smoke) -> None:
    made = report.document(smoke.results, smoke.counts, all_kernels=smoke.executable.kernels, about={})
    assert made["failed"] == []
    assert report.good(made), made["unreached"]
    attention = [row for row in made["kernels"] if row["kind"] == "forward"]
    assert len(attention) == 4 and all(row["executed"] > 0.8 * row["instructions"] for row in attention)
    assert {missing["kind"] for missing in made["unreached"]} <= {"library", "prepare"}
    assert made["second_poison"]["cases"] == made["second_poison"]["equal"] > 0
    text = plain(report.to_blocks(made))
    assert f"4 attention kernels and {len(made['kernels']) - 4} others" in text and "0 cases wrong" in text
    assert json.loads(report.to_json(made))["cases"] == len(smoke.cases)


def test_the_work_of_a_tile_is_what_the_machine_code_says(smoke: Smoke) -> None:
    """What four tiles more execute in the PTX, against one iteration of the loop that `verify` finds in the SASS."""
    counted = smoke.executable.run("tests.fakes.tile_calls:work", {"dim": 64, "keys": 256, "tiles": 4}).result
    session = common.begin(options.Request(profile="smoke", archs="12.1"))
    (family,) = session.plan.families
    inputs = common.gather_inputs(session)
    build = common.builder(session, inputs)
    (unit,) = [key for key in build.keys(family.units) if key.planned.unit.name.startswith("fwd_hd64")]
    listing = Disassembler.of(inputs.toolchain, QUIET).listing("-sass", build.store.object(unit.key))
    loop = kernels.loop_of(counted["kernel"], kernels.parse_sass(listing)["sm_121", counted["kernel"]].loop)
    assert loop["warps"] == 4
    for name in ("tensor", "mufu", "matrices", "copies"):
        assert counted[name] % (4 * loop["warps"]) == 0, name
    tile = {name: counted[name] // (4 * loop["warps"]) for name in ("tensor", "mufu", "matrices", "copies")}
    assert (tile["tensor"], tile["mufu"]) == (loop["tensor"], loop["mufu"])
    # Four clocks of shared memory each; the rest are a few shuffles and loads of the thread's own numbers.
    assert 0 <= loop["shared"] - 4 * (tile["matrices"] + tile["copies"]) <= 16


def test_scheduler_metadata_is_as_long_as_compiled_programs_are_told(smoke: Smoke) -> None:
    sizes = {"batch_size": 5, "max_seqlen_k": 64, "num_heads": 4, "num_heads_k": 2, "headdim_v": 64}
    choices = itertools.product(
        (1, 3), (64, 128), (None, 16), (True, False), ((-1, -1), (5, 0), (63, 2)), (0, 8), (1, 2)
    )
    names = ("max_seqlen_q", "headdim", "page_size", "is_causal", "window", "attention_chunk", "num_splits")
    calls = [{**sizes, **dict(zip(names, choice, strict=True))} for choice in choices]
    for call in calls:
        call["window_size_left"], call["window_size_right"] = call.pop("window")
    found = smoke.executable.run("tests.fakes.tile_calls:metadata_lengths", {"calls": calls}).result
    for call, length in zip(calls, found, strict=True):
        given = {**ops.METADATA_DEFAULTS, "qkv_dtype": None, "seqused_k": None, **call}
        assert length == metadata_length(tuple(given[name] for name in schemas.METADATA_NAMES), major=12), call


def test_what_is_known_is_not_executed_again(smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("executed again")

    monkeypatch.setattr(Executable, "run", refuse)
    assert smoke.pool.run(smoke.cases) == (smoke.results, smoke.counts)


def test_a_case_in_which_the_process_dies_is_told(smoke: Smoke, tmp_path: Path) -> None:
    (good, *_) = [case for case in smoke.cases if case.op == "fwd" and not case.sweep]
    bad = Case(op="no such op", dtype="bf16", dim=64, sms=good.sms)
    pool = Pool(executable=smoke.executable, folder=tmp_path, jobs=1, narrate=QUIET)
    results, _ = pool.run([bad, good])
    assert "the process ended" in results[0]["error"] and report.wrong(results[0])
    assert report.wrong(results[1]) == []


def test_one_changed_instruction_is_noticed(smoke: Smoke, tmp_path: Path) -> None:
    texts = mutants.texts_of(smoke.executable.ptx)
    chosen = [mutant for mutant in mutants.choose(texts, smoke.counts, 44, seed=1) if mutant.kind in NOTICED]
    assert {mutant.kind for mutant in chosen} == set(NOTICED)
    trial = mutants.Trial(executable=smoke.executable, folder=tmp_path, jobs=2, narrate=QUIET)
    tried = trial.run(chosen, texts, smoke.results, smoke.cases)
    survived = [mutant for mutant in tried if not mutant["caught"]]
    assert sum(not mutant["reason"] for mutant in survived) <= len(tried) // 20, survived
    barriers = [mutant["caught"] for mutant in tried if mutant["kind"] == "barrier dropped"]
    assert any(caught.startswith("race in shared memory") and "; the other: line" in caught for caught in barriers)
    assert re.search(rf"\nall +{len(tried) - len(survived)} +{len(tried)}\n", plain(mutants.to_blocks(tried)))


def test_a_mutant_is_one_line_of_its_file(smoke: Smoke) -> None:
    texts = mutants.texts_of(smoke.executable.ptx)
    files = {path.name: path.read_text(encoding="utf-8").splitlines() for path in smoke.executable.ptx}
    for mutant in mutants.choose(texts, smoke.counts, 30, seed=2):
        there = [lines[mutant.line - 1].strip() for lines in files.values() if len(lines) >= mutant.line]
        assert mutant.before in there
        assert mutant.after != mutant.before
