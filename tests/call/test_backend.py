"""Forcing a backend: per thread, per process, by environment; and what explain says."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from flash_attn3_sm121 import cli
from flash_attn3_sm121.api import eager
from flash_attn3_sm121.call import backend
from flash_attn3_sm121.call.backend import set_backend, use_backend
from flash_attn3_sm121.call.facts import Settings
from flash_attn3_sm121.dispatch.engine import Engine, engine
from flash_attn3_sm121.errors import BackendError, UsageError
from tests.fakes.shapes import dense, fa3


def test_forcing_what_cannot_serve_raises_and_says_why() -> None:
    q, k, v = dense()
    with use_backend("native"), pytest.raises(BackendError) as caught:
        fa3.flash_attn_func(q, k, v)
    text = str(caught.value)
    assert "the backend native was asked for" in text
    assert "not native: it runs on CUDA devices and the tensors are on cpu" in text
    assert "ask for sdpa" in text


def test_blocks_nest_and_restore() -> None:
    assert engine().forced() is None
    with use_backend("sdpa"):
        assert engine().forced() == "sdpa"
        with use_backend("fa3"):
            assert engine().forced() == "native"
        with use_backend(None):
            assert engine().forced() is None
        assert engine().forced() == "sdpa"
    assert engine().forced() is None


def test_each_thread_has_its_own() -> None:
    barrier = threading.Barrier(4)

    def inside(name: str | None) -> str | None:
        with use_backend(name):
            barrier.wait(timeout=30)  # everyone is inside at once
            forced = engine().forced()
            barrier.wait(timeout=30)
            return forced

    names = ["sdpa", "flex", "native", None]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(inside, names)) == names
    assert engine().forced() is None


def test_a_forced_backend_holds_in_the_backward_of_the_same_thread() -> None:
    q, k, v = dense(grad=True)
    out = fa3.flash_attn_func(q, k, v)
    with use_backend("native"), pytest.raises(BackendError, match="native was asked for"):
        out.sum().backward()


@pytest.mark.parametrize("compiling", [False, True], ids=["eager", "functional"])
def test_a_backward_takes_its_forwards_block_to_whichever_thread_runs_it(
    compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch runs the backward of CUDA tensors in a thread of its own; here another thread is started by hand."""
    if compiling:  # the way through the functional op, as under a compiler, run eagerly
        monkeypatch.setattr(eager, "serves", lambda args: False)
    seen: list[str | None] = []
    real = type(engine()).backward

    def watched(self: Engine, *args: Any, **more: Any) -> Any:
        seen.append(self.forced())
        return real(self, *args, **more)

    monkeypatch.setattr(Engine, "backward", watched)
    outs = []
    for name in ("sdpa", "auto"):
        q, k, v = dense(grad=True)
        with use_backend(name):
            outs.append(fa3.flash_attn_func(q, k, v).sum())
    outs.append(fa3.flash_attn_func(*dense(grad=True)).sum())

    def elsewhere() -> None:
        for out in outs:
            out.backward()

    with use_backend("sdpa"):  # of this thread: no matter
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == ["sdpa", None, None]


def test_process_wide_setting_and_nanochats_habit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_override_impl", None)
    set_backend("sdpa")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(engine().forced).result() == "sdpa"
    with use_backend("auto"):
        assert engine().forced() is None
    backend._override_impl = "fa3"
    assert engine().forced() == "native"
    set_backend(None)
    assert engine().forced() is None


@pytest.mark.parametrize("name", ["cutlass", "SDPA2"])
def test_unknown_names_are_refused_at_once(name: str) -> None:
    with pytest.raises(UsageError, match="expected auto, native, flex or sdpa"), use_backend(name):
        pass
    with pytest.raises(UsageError, match="set_backend"):
        set_backend(name)


def test_environment_becomes_settings() -> None:
    environ = {"FLASH_ATTN3_BACKEND": "SDPA", "FLASH_ATTN3_CANARY": "0", "FLASH_ATTN3_CHECK_CACHE": "off"}
    assert Settings.from_environ(environ) == Settings(backend="sdpa", canary=False, check_cache=False)
    assert Settings.from_environ({}) == Settings()
    for name, value in (("FLASH_ATTN3_BACKEND", "fast"), ("FLASH_ATTN3_CANARY", "maybe")):
        with pytest.raises(UsageError, match=f"{name}: expected"):
            Settings.from_environ({name: value})


def test_environment_forces_the_whole_process() -> None:
    code = (
        "import torch, flash_attn3_sm121 as f\n"
        "x = torch.randn(1, 4, 2, 16)\n"
        "try:\n    f.flash_attn_func(x, x, x)\nexcept f.errors.BackendError as e:\n    print('refused', e)\n"
        "with f.use_backend('sdpa'):\n    print(f.flash_attn_func(x, x, x).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"FLASH_ATTN3_BACKEND": "native", "PATH": ""}, capture_output=True, text=True,
        check=False, cwd=str(fa3.__path__[0] + "/.."),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused the backend native was asked for")
    assert "torch.Size([1, 4, 2, 16])" in done.stdout


def test_a_compiled_function_asks_when_it_runs() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: fa3.flash_attn_func(q, k, v), fullgraph=True, backend="aot_eager")
    q, k, v = dense()
    compiled(q, k, v)
    with use_backend("native"), pytest.raises(BackendError, match="native was asked for"):
        compiled(q, k, v)


# -- explain


def test_explain_for_tensors() -> None:
    q, k, v = dense(dtype=torch.bfloat16)
    found = fa3.explain(q, k, v, causal=True, window_size=(2, 0), s_aux=torch.zeros(4))
    assert found.forward.backend == "sdpa"
    assert found.call.features == {"causal", "local", "sinks"}
    assert found.backward is not None
    text = str(found)
    assert "causal mask, sliding window, attention sinks (s_aux)" in text
    assert text.count("not native: it runs on CUDA devices") == 2


def test_explain_names_the_reason_of_a_machine_one_does_not_have() -> None:
    found = fa3.explain(capability=(12, 1), head_dim=64, features=("varlen", "paged"))
    assert found.device.name == "GB10 (DGX Spark)"
    assert found.backward is None  # a paged cache has no gradient
    assert "not native: this install has no kernel library" in str(found)


def test_explain_knows_another_dtype_of_keys_and_values() -> None:
    described = fa3.explain(device="cpu", dtype_kv="e4m3", head_dim=16)
    q, k, v = (x.to(torch.bfloat16) for x in dense())
    given = fa3.explain(q, k.to(torch.float8_e4m3fn), v.to(torch.float8_e4m3fn), causal=True)
    assert described.call == replace(given.call, head_dim=16, head_dim_v=16) and given.backward is None
    assert "call: bf16 (keys and values e4m3), head dim 16, causal mask" in str(described)


def test_explain_checks_the_call_first() -> None:
    q, k, v = dense(h=3)
    with pytest.raises(RuntimeError, match="Number of heads"):
        fa3.explain(q, k, v)
    with pytest.raises(UsageError, match="unknown features"):
        fa3.explain(features=("magic",))
    with pytest.raises(UsageError, match="go with tensors"):
        fa3.explain(causal=True)
    with pytest.raises(UsageError, match="a head dim of 1 or more, found 0"):
        fa3.explain(head_dim_v=0)
    with pytest.raises(UsageError, match="unexpected keyword"):
        fa3.explain(*dense(), dropout_p=0.1)


def test_explain_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--capability", "9.0", "--feature", "qv", "--head-dim", "64", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["device"]["capability"] == [9, 0]
    assert {refusal["backend"] for refusal in answer["forward"]["refusals"]} == {"native", "flex"}
    assert cli.main(["explain", "--capability", "8.6", "--dtype-kv", "e4m3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["call"]["dtype_kv"] == "e4m3"
    assert cli.main(["explain", "--device", "cpu", "--backend", "native"]) == 0
    assert "backend: none (forced: native)" in capsys.readouterr().out
    assert cli.main(["explain", "--capability", "twelve"]) == 2
    assert "--capability: expected for example 12.1" in capsys.readouterr().err
