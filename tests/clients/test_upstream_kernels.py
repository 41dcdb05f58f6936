"""FlashAttention-3's own tests of fp8 and of a second query, through kernels that are executed on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ci.commands import common, options
from ci.prove.gb10 import executable
from ci.verify import kernels
from tests.clients.envs import python_of
from tests.clients.probe_upstream_kernels import PROFILES
from tests.clients.upstream_kernels import lay
from tests.fakes import kv8_kernels

pytestmark = [pytest.mark.nvcc, pytest.mark.network, pytest.mark.slow]

# Left out are splits and chunks, for which these small libraries (test_fp8.py's and test_qv.py's) have no kernel.
COMMON: dict[str, Any] = {"d": 64, "softcap": 0.0, "deterministic": False, "without": "local split"}
VARLEN = {**COMMON, "test": "test_flash_attn_varlen_output", "causal": True, "local": False}
FP8 = {**VARLEN, "dtype": "float8_e4m3fn", "has_qv": False}
QV = {**VARLEN, "dtype": "bfloat16", "has_qv": True}
WINDOW = {**COMMON, "test": "test_flash_attn_output", "dtype": "float16", "has_qv": True, "local": True}
HEADS = ("mha", "mqa", "gqa")
SIZES = ((2, 1), (64, 128), (128, 128), (113, 203), (128, 217), (108, 256))
CASES: dict[str, list[dict[str, Any]]] = {
    "fp8": [
        {**FP8, "seqlen_q": rows, "seqlen_k": keys, "mha_type": HEADS[number % 3], "add_unused_qkv": number % 2 == 0}
        for number, (rows, keys) in enumerate(SIZES)
    ],
    "qv": [
        {**QV, "seqlen_q": 64, "seqlen_k": 128, "mha_type": "mqa", "add_unused_qkv": True},
        {**QV, "seqlen_q": 2, "seqlen_k": 1, "mha_type": "gqa", "add_unused_qkv": False},
        {**WINDOW, "seqlen_q": 64, "seqlen_k": 128, "mha_type": "gqa", "causal": True, "V_colmajor": False},
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_upstreams_tests_pass_on_the_kernels(name: str, tmp_path: Path) -> None:
    lay(tmp_path)
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=2))
    builder = common.builder(session, common.gather_inputs(session))
    few = {"fp8": kv8_kernels.FEW_FP8, "qv": kv8_kernels.FEW_QV}[name]
    library = executable.make(builder, kv8_kernels.family(few, PROFILES[name]), output=tmp_path)
    arguments = {"folder": str(tmp_path), "profile": name, "cases": CASES[name]}
    run = library.run("tests.clients.probe_upstream_kernels:show", arguments, python=str(python_of("upstream")))
    assert list(run.errors) == []
    for case, found in zip(CASES[name], run.result, strict=True):
        assert (found["wrong"], found["plans"]) == ("", ["NativePlan"]), case
        assert "forward" in map(kernels.kind, found["kernels"]), case
