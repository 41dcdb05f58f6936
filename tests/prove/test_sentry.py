"""What sentryward is given: a kernel's numbers, its text without generic stores. The program itself is not run here."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ci.commands.prove import asked_calls
from ci.prove.gb10.executable import Executable, Run
from ci.prove.gb10.sentry import Kernel, document, opinion
from flash_attn3_sm121.errors import CompileError, MissingPackageError, UsageError

TEXT = """.version 9.0
.entry other(
\t.param .align 8 .b8 other_param_0[8]
)
{
\tst.u32 [%rd9], %r1;
\tret;
}
.entry mine(
\t.param .align 8 .b8 mine_param_0[40]
)
{
\tmov.b64 %rd2, mine_param_0;
\tmov.u64 %rd1, %rd2;
\tld.param.u64 %rd3, [%rd1+8];
\tld.param.v2.u32 {%r1, %r2}, [%rd1+16];
\tld.param.f32 %f1, [mine_param_0+24];
\tld.param.u64 %rd4, [mine_param_0];
\t@%p1 st.v2.u64 \t[%rd9], {%rd3, %rd4};
\tst.global.u32 [%rd8], %r1;
\tst.shared.v4.u32 [%rd7], {%r1, %r1, %r1, %r1};
\tret;
}
"""
BYTES = struct.pack("<QQIIf", 4096, 0, 7, 9, 0.125) + bytes(12)
LAUNCH = {
    "kernel": "mine", "grid": [1, 2, 1], "block": [128, 1, 1], "shared": 33152, "bytes": BYTES.hex(),
    "spans": [[4096, 8192]],
}  # fmt: skip


def test_numbers_are_given_and_pointers_are_not() -> None:
    kernel = Kernel.of(TEXT, "mine")
    assert kernel.reads == ((0, "u64"), (8, "u64"), (16, "u32"), (20, "u32"), (24, "f32"))
    found = document(kernel, LAUNCH)
    assert found["entry"] == "mine"
    assert found["launch"] == {"grid_dim": [1, 2, 1], "block_dim": [128, 1, 1], "dynamic_shared_bytes": 33152}
    values = {argument["offset"]: argument["value"] for argument in found["arguments"]}
    assert values == {8: 0, 16: 7, 20: 9, 24: 0.125}, "the pointer to a tensor stays open, a null is told"


def test_only_generic_stores_of_the_kernel_go() -> None:
    text, removed = Kernel.of(TEXT, "mine").edited
    assert removed == 1 and "st.v2.u64" not in text
    assert text.replace("\t// a store of the output", "\t@%p1 st.v2.u64 \t[%rd9], {%rd3, %rd4};") == TEXT


def test_a_parameter_that_is_read_some_other_way_is_told() -> None:
    with pytest.raises(CompileError, match="read through %rd5, which is not followed"):
        Kernel.of(TEXT.replace("[%rd1+8]", "[%rd5+8]"), "mine")


@pytest.mark.parametrize(
    ("result", "more"), [("race_free", ', "pipeline_elapsed_seconds": 1.2, "peak_rss_mib": 2.5'), ("timeout", "")]
)
def test_its_word_is_handed_on(result: str, more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ptx = tmp_path / "few_fwd.ptx"
    ptx.write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(Executable, "run", lambda *_, **__: Run(result=LAUNCH, findings=(), launches=()))
    executable = Executable(library=None, namespace="x", ptx=(ptx,), executor=None)  # type: ignore[arg-type]
    tool = tmp_path / "tool"
    said = f'{{"result": "{result}"{more}}}'
    tool.write_text(f"#!/bin/sh\ncat <<'E'\n{said}\nE\n", encoding="utf-8")
    tool.chmod(0o755)
    found = opinion(executable, "window", 64, tool=str(tool), folder=tmp_path, timeout=1)
    assert (found["result"], found["kernel"], found["stores_left_out"]) == (result, "mine", 1)
    with pytest.raises(MissingPackageError, match=r"there is no .*gone"):
        opinion(executable, "window", 64, tool=str(tmp_path / "gone"), folder=tmp_path, timeout=1)


def test_it_is_asked_about_calls_that_have_kernels_and_about_no_others() -> None:
    every = frozenset({"local"})
    assert asked_calls(every, []) == ["dense", "window"] == asked_calls(every, ["window,dense"])
    assert asked_calls(every, ["window"]) == ["window"] and asked_calls(frozenset(), []) == ["dense"]
    for features, only in ((every, "causal"), (frozenset[str](), "window")):
        with pytest.raises(UsageError, match=f"--only {only}: sentryward is not asked that"):
            asked_calls(features, [only])
