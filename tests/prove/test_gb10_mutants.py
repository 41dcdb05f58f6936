"""Which calls are executed, and which changed instructions no call can notice."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ci import ROOT
from ci.plan.profiles import find, select
from ci.prove.gb10.build import Executor
from ci.prove.gb10.cases import cases
from ci.prove.gb10.executable import Executable
from ci.prove.gb10.mutants import Mutant, check, choose, reason, to_blocks
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.console import Table
from flash_attn3_sm121.errors import CompileError

KERNEL = "_ZN7cutlass13device_kernelIN5flash19enable_sm80_to_sm89INS1_16FlashAttnFwdSm80SingleTileScheduler"
BODY = """\
.entry kernel()
.maxntid 128
{
\tmov.u32 \t%r1, %tid.x;
\tand.b32 \t%r2, %r1, 3;
\tcp.async.wait_group 1;
\tcp.async.wait_group 0;
\tbar.sync \t0;
\tsetp.lt.u32 \t%p1, %r1, 128;
\tsetp.lt.u32 \t%p2, %r2, 128;
\tbar.sync \t0;
\tsetp.ne.s32 \t%p3, %r2, 0;
\tst.f32 \t[%rd1], %f1;
\tsetp.ne.s32 \t%p4, %r2, 0;
\tst.u32 \t[%rd1], %r1;
\tcp.async.wait_group 1;
\tbar.sync \t0;
\tcp.async.wait_group 1;
$L__BB0_1:
\tcp.async.wait_group 1;
\tld.shared.u32 \t%r3, [%r4];
}
"""


@pytest.mark.parametrize(
    ("kind", "line", "words"),
    [
        ("barrier dropped", 8, "one tile"),
        ("bound strict", 9, "128 threads"),
        ("bound strict", 10, ""),
        ("barrier dropped", 11, "nothing was read or stored"),
        ("barrier dropped", 17, ""),
        ("bound off by one", 12, "all four hold"),
        ("bound off by one", 14, ""),
        ("wait later", 16, ""),
        ("wait later", 18, "no copies were committed"),
        ("wait later", 20, ""),
    ],
    ids=[
        "first barrier",
        "threads",
        "another register",
        "second barrier",
        "barrier behind a wait",
        "LSE",
        "another store",
        "first wait",
        "same wait",
        "wait behind a label",
    ],
)
def test_a_survivor_has_a_reason_only_where_there_is_one(kind: str, line: int, words: str) -> None:
    before = BODY.split("\n")[line - 1].strip()
    mutant = Mutant(kind=kind, kernel=KERNEL, line=line, before=before, after="")
    found = reason(mutant, {KERNEL: BODY})
    assert words in found and bool(found) == bool(words)


def _column(register: str, at: int) -> str:
    """How a kernel with a window hides a column: behind its right edge, or left of its left edge and no sink token."""
    return f"""\
\tsetp.lt.s32 \t%p1, {register}, 41;
\t@%p1 bra \t$L{at};
\tsetp.lt.s32 \t%p2, %r20, 41;
\tsetp.gt.s32 \t%p3, %r21, 40;
\tor.pred  \t%p4, %p2, %p3;
\t@%p4 bra \t$L{at + 1};
$L{at}:
\tmov.f32 \t%f1, 0fFF800000;
$L{at + 1}:
"""


LOOPS = f"""\
.entry kernel()
{{
\tneg.s32 \t%r21, %r22;
$L1:
\tmma.sync a;
{_column("%r30", 10)}\tmma.sync a;
$L2:
{_column("%r31", 20)}\tmma.sync b;
\t@%p5 bra \t$L2;
$L3:
\tmma.sync c;
{_column("%r32", 30)}\t@%p5 bra \t$L3;
\tbra.uni \t$L1;
}}
"""


# The same, where tiles that no edge cuts have a loop inside that of the tiles that the left edge cuts.
SHARED = LOOPS.replace("$L3:\n\tmma.sync c;\n", "$L3:\n\tmma.sync c;\n$L4:\n\tmma.sync d;\n\t@%p5 bra \t$L4;\n")


@pytest.mark.parametrize("text", [LOOPS, SHARED], ids=["loops", "a loop inside"])
@pytest.mark.parametrize(
    ("register", "words"),
    [("%r30", ""), ("%r31", ""), ("%r32", "left edge"), ("%r20", ""), ("%r21", "sink tokens")],
    ids=["before the loops", "first loop", "last loop", "left edge", "sinks"],
)
def test_a_windows_bounds(register: str, words: str, text: str) -> None:
    """Only the last loop's tiles are known to lie left of every right edge."""
    made = json.loads((ROOT / "docs/results/executed-full.json").read_text(encoding="utf-8"))
    kernel = next(row["kernel"] for row in made["kernels"] if "local" in row["variant"] and row["kind"] == "forward")
    lines = text.split("\n")
    line = max(number for number, each in enumerate(lines, 1) if each.startswith("\tsetp") and f" {register}," in each)
    mutant = Mutant(kind="bound strict", kernel=kernel, line=line, before=lines[line - 1].strip(), after="")
    found = reason(mutant, {kernel: text})
    assert words in found and bool(found) == bool(words)


BOUNDS = """\
.entry kernel()
{
\tsetp.eq.s32 \t%p1, %r1, 1;
\tsetp.lt.s32 \t%p2, %r1, 1;
\tsetp.lt.s32 \t%p3, %r2, 1;
\tmul.lo.s32 \t%r3, %r4, %r5;
\tsetp.ge.s32 \t%p4, %r6, %r3;
\tmov.b64 \t%rd2, 0;
\tst.v2.u64 \t[%rd1], {%rd2, %rd2};
\tshfl.sync.idx.b32\t%r7|%p5, %r8, 2, 7199, -1;
\tadd.s32 \t%r9, %r10, %r7;
\tsetp.gt.s32 \t%p6, %r9, 1;
\tshfl.sync.idx.b32\t%r11|%p7, %r8, 3, 7199, -1;
\tadd.s32 \t%r12, %r10, %r11;
\tsetp.gt.s32 \t%p8, %r12, 1;
\tsetp.gt.s32 \t%p9, %r12, 8;
\tsetp.ge.s32 \t%p10, %r13, %r14;
\tld.global.u32 \t%r15, [%rd3];
\tsetp.ge.s32 \t%p11, %r13, %r14;
\tld.global.u32 \t%r16, [%rd4];
\tmul.lo.s32 \t%r17, %r16, %r15;
}
"""


@pytest.mark.parametrize(
    ("variant", "predicate", "words"),
    [
        ("hd64 bf16 local packgqa", "%p2", "a chunk of one key"),
        ("hd64 bf16 causal packgqa", "%p2", ""),
        ("hd64 bf16 local packgqa", "%p3", ""),
        ("hd64 bf16 causal packgqa", "%p4", "fill whole tiles"),
        ("hd64 bf16 causal packgqa varlen", "%p4", ""),
        ("hd64 bf16 causal packgqa", "%p8", "so low that it sees this key"),
        ("hd64 bf16 packgqa", "%p8", ""),
        ("hd64 bf16 causal packgqa", "%p6", ""),
        ("hd64 bf16 causal packgqa", "%p9", ""),
        ("hd64 bf16 packgqa split varlen", "%p10", "the other factor is 0"),
    ],
)
def test_bounds_that_no_call_of_a_kernel_meets(variant: str, predicate: str, words: str) -> None:
    made = json.loads((ROOT / "docs/results/executed-full.json").read_text(encoding="utf-8"))
    kernel = next(row["kernel"] for row in made["kernels"] if row["variant"] == variant)
    line, text = next((at, text) for at, text in enumerate(BOUNDS.split("\n"), 1) if f"\t{predicate}," in text)
    found = reason(
        Mutant(kind="bound strict", kernel=kernel, line=line, before=text.strip(), after=""), {kernel: BOUNDS}
    )
    assert words in found and bool(found) == bool(words)


def test_a_wait_before_one_for_all_is_left_alone() -> None:
    combine = "_ZN5flash19FlashAttnFwdCombineILi64EEclEv"
    chosen = choose({combine: BODY}, {combine: [1] * 12}, 100)
    assert [mutant.line for mutant in chosen if mutant.kind == "wait later"] == [7]
    between = BODY.replace("\tcp.async.wait_group 0;", "\tld.param.u32 \t%r9, [%rd1];\n\tcp.async.wait_group 0;")
    chosen = choose({combine: between}, {combine: [1] * 13}, 100)
    assert [mutant.line for mutant in chosen if mutant.kind == "wait later"] == [8]


def test_the_mutants_table_in_the_documents_is_that_of_the_results() -> None:
    made = json.loads((ROOT / "docs/results/mutants-smoke.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs/building.md").read_text(encoding="utf-8")
    tried = made["mutants"]
    assert made["failed"] == [] and len(tried) == 100 and sum(bool(mutant["caught"]) for mutant in tried) >= 95
    table = next(block for block in to_blocks(tried) if isinstance(block, Table))
    assert f"<!-- mutants: begin -->\n```\n{table}```\n<!-- mutants: end -->" in text
    for mutant in tried:
        if not mutant["caught"]:
            row = next(row for row in text.splitlines() if row.startswith("| ") and f", line {mutant['line']} |" in row)
            assert mutant["reason"] and mutant["reason"] in row


@pytest.mark.parametrize(
    ("caught", "by"),
    [
        ("race in shared memory: a store of 0x10, line 3 (st.shared), block 0 warp 1", "race"),
        ("lse is off by 0.1", "result"),
        ("behind is off by 64", "result"),
        ("the warps of block 3 wait for each other: kernel", "no end"),
        ("", ""),
    ],
)
def test_which_check_caught_a_mutant(caught: str, by: str) -> None:
    assert check(caught) == by


def test_the_full_profile_is_executed_in_both_types_with_every_way_to_hold_a_cache() -> None:
    found = cases(select(find("full"), Family.SM8X))
    assert len({case.name for case in found}) == len(found)
    for dtype in ("bf16", "fp16"):
        mine = [case for case in found if case.dtype == dtype]
        assert {"full", "causal", "local", "wide", "chunk", "causal chunk", "own chunk"} == {case.mask for case in mine}
        for mode in ("cache", "append", "paged", "paged append"):
            assert {"", "leftpad", "picked"} == {case.cache for case in mine if case.mode == mode}
        assert {case.rotary for case in mine if case.cache == "leftpad"} == {"", "halves", "pairs"}


@pytest.mark.parametrize(("code", "error"), [(-15, KeyboardInterrupt), (-2, KeyboardInterrupt), (-11, CompileError)])
def test_a_stopped_run_has_no_result(code: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash is a finding. A process that somebody stopped is none, and must not be kept as a failed case."""
    done = subprocess.CompletedProcess([], code, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    library = Executable(library=None, namespace="", ptx=(), executor=Executor(folder=Path()))
    with pytest.raises(error):
        library.run("a:b", {})
