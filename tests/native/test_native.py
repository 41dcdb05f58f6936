"""The native path with a library that is faked by arguments: what is handed to it, and when it is not trusted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.backend import use_backend
from flash_attn3_sm121.errors import BackendError, FactsError, NativeLoadError
from flash_attn3_sm121.native import library as native
from flash_attn3_sm121.native.buildfacts import BuildFacts
from tests.fakes.libraries import CAUSAL, FULL, SM8X, Kernels, build, engine, half, install
from tests.fakes.shapes import dense, packed


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    yield Kernels()


def test_native_serves_and_gets_the_call_as_it_was_made(kernels: Kernels) -> None:
    q, k, v = half()
    serving = engine(kernels.open)
    args = ForwardArgs(
        q=q, k=k, v=v, softmax_scale=0.5, causal=True, window_left=3, softcap=2.0, pack_gqa=True, sm_margin=4
    )
    out, lse, *_ = serving.forward(args)
    (seen,) = kernels.calls
    assert seen.q is q and seen.k is k
    assert (seen.softmax_scale, seen.causal, seen.window_left, seen.softcap) == (0.5, True, 3, 2.0)
    assert (seen.pack_gqa, seen.sm_margin, seen.rotary_interleaved) == (True, 4, True)
    right = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.5, causal=True, window_left=3, window_right=0, softcap=2.0)
    expected, expected_lse = fallback.forward(right)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_fp32_goes_to_the_fallback(kernels: Kernels) -> None:
    q, k, v = dense()
    engine(kernels.open).forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert kernels.calls == []


def test_strided_inputs_are_made_readable(kernels: Kernels) -> None:
    q, k, v = half()
    turned = q.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert turned.stride(-1) != 1
    engine(kernels.open).forward(ForwardArgs(q=turned, k=k, v=v, **CAUSAL))
    assert kernels.calls[0].q.stride(-1) == 1
    assert kernels.calls[0].k is k


def test_split_heuristics_are_off_where_splitting_is_not_built(kernels: Kernels) -> None:
    q, k, v = half()
    without = build("sm8x", "sm_121", features=("causal", "backward", "varlen"))
    engine(kernels.open, facts=without).forward(ForwardArgs(q=q, k=k, v=v, num_splits=0, **CAUSAL))
    engine(kernels.open).forward(ForwardArgs(q=q, k=k, v=v, num_splits=0, **CAUSAL))
    assert [call.num_splits for call in kernels.calls] == [1, 0]


def test_overflow_is_stopped_before_the_kernel_writes(kernels: Kernels) -> None:
    q, k, v = half(sq=1, sk=1)
    cache = torch.zeros(2, 16, 2, 16, dtype=torch.bfloat16)
    args = {"q": q, "k": cache, "v": cache.clone(), "k_new": k, "v_new": v, **CAUSAL}
    serving = engine(kernels.open)
    with pytest.raises(RuntimeError, match="KV cache overflow"):
        serving.forward(ForwardArgs(**args, seqused_k=torch.tensor([0, 16], dtype=torch.int32)))
    assert kernels.calls == []
    serving.forward(ForwardArgs(**args, seqused_k=torch.tensor([0, 15], dtype=torch.int32)))
    assert len(kernels.calls) == 1


@pytest.mark.parametrize("layout", ["dense", "packed"])
def test_rows_past_seqused_q_are_zero(layout: str) -> None:
    def garbage(out: Tensor) -> None:
        out[out == 0] = 99.0  # what a kernel leaves in rows it never writes

    kernels = Kernels(spoil=garbage)
    used = torch.tensor([2, 3], dtype=torch.int32)
    if layout == "dense":
        q, k, v = half()
        args = ForwardArgs(q=q, k=k, v=v, seqused_q=used, **CAUSAL)
    else:
        q, k, v, cu = packed((4, 5))
        q, k, v = (x.bfloat16() for x in (q, k, v))
        lengths = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 5, "max_seqlen_k": 5}
        args = ForwardArgs(q=q, k=k, v=v, seqused_q=used, **lengths, **CAUSAL)
    out, lse, *_ = engine(kernels.open).forward(args)
    rows = out if layout == "dense" else torch.nn.utils.rnn.pad_sequence([out[:4], out[4:]], batch_first=True)
    assert (rows[0, 2:] == 0).all() and (rows[1, 3:] == 0).all()
    assert (rows[0, :2] != 0).all() and (rows[1, :3] != 0).all()
    first = lse[0, :, 2:] if layout == "dense" else lse[:, 2:4]
    assert torch.isneginf(first).all()


def test_backward_goes_native_with_the_gradient_of_the_lse(kernels: Kernels) -> None:
    q, k, v = half()
    serving = engine(kernels.open)
    out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    args = {"dout": torch.randn_like(out), "q": q, "k": k, "v": v, "out": out, "softmax_lse": lse, **CAUSAL}
    first = serving.backward(BackwardArgs(**args))
    assert kernels.backward_calls == 1
    assert first.softmax_d is not None
    same = torch.zeros(()).expand(lse.shape)  # as autograd hands a sum's gradient on; kernels read it row by row
    second = serving.backward(BackwardArgs(**args, dlse=same))
    assert kernels.backward_calls == 2
    torch.testing.assert_close(first.dq, second.dq, atol=2e-2, rtol=2e-2)  # bf16, by two ways


@pytest.mark.parametrize("layout", ["dense", "packed", "used"])
def test_sinks_go_native_and_their_gradient_is_arithmetic_afterwards(kernels: Kernels, layout: str) -> None:
    q, k, v = half(sq=6, sk=6)
    sinks = torch.linspace(-1, 1, q.shape[2]).bfloat16()
    given: dict[str, Any] = {}
    if layout == "packed":
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        cu = torch.tensor([0, 3, 12], dtype=torch.int32)
        given = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 9, "max_seqlen_k": 9}
    if layout == "used":
        given = {
            "seqused_q": torch.tensor([2, 3], dtype=torch.int32),
            "seqused_k": torch.tensor([3, 0], dtype=torch.int32),
        }
    serving = engine(kernels.open)
    out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, s_aux=sinks, **given, **CAUSAL))
    assert kernels.calls[0].s_aux is not None and kernels.calls[0].s_aux.dtype == torch.float32
    args = BackwardArgs(
        dout=torch.randn_like(out), dlse=torch.randn(lse.shape), q=q, k=k, v=v, out=out, softmax_lse=lse, s_aux=sinks,
        **given, **CAUSAL,
    )  # fmt: skip
    found = serving.backward(args).ds_aux
    assert kernels.backward_calls == 1 and found is not None and found.dtype == torch.bfloat16
    right = fallback.backward(args)[3]
    assert right is not None
    torch.testing.assert_close(found, right, atol=2e-2, rtol=2e-2)


# -- trust


def test_what_is_ours_has_a_canary_of_its_own(kernels: Kernels) -> None:
    q, k, v = half()
    serving = engine(kernels.open, canary=True)
    for sinks in (None, torch.zeros(q.shape[2]), torch.ones(q.shape[2])):
        out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, s_aux=sinks, **CAUSAL))
    assert [seen.s_aux is not None for seen in kernels.calls] == [False, False, True, True, True]
    for dlse in (None, torch.ones_like(lse), torch.zeros_like(lse)):
        serving.backward(BackwardArgs(dout=out, dlse=dlse, q=q, k=k, v=v, out=out, softmax_lse=lse, **CAUSAL))
    assert kernels.backward_calls == 5


def spoiled(out: Tensor) -> None:
    out += 0.5


def nothing_written(out: Tensor) -> None:
    out.fill_(float("nan"))


def test_a_good_library_passes_the_canary_once_per_direction(kernels: Kernels) -> None:
    q, k, v = half()
    serving = engine(kernels.open, canary=True)
    for _ in range(3):
        out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert len(kernels.calls) == 4
    args = {"dout": torch.randn_like(out), "q": q, "k": k, "v": v, "out": out, "softmax_lse": lse, **CAUSAL}
    for _ in range(2):
        serving.backward(BackwardArgs(**args))
    assert kernels.backward_calls == 3


def test_each_type_has_a_canary(kernels: Kernels) -> None:
    q, k, v = half()
    serving = engine(kernels.open, canary=True)
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16, torch.float16):
        serving.forward(ForwardArgs(q=q.to(dtype), k=k.to(dtype), v=v.to(dtype), **CAUSAL))
    assert [seen.q.dtype for seen in kernels.calls].count(torch.float16) == 3  # two calls and the canary
    assert len(kernels.calls) == 6


def test_the_canary_leaves_the_random_state_alone(kernels: Kernels) -> None:
    q, k, v = half()
    before = torch.get_rng_state()
    engine(kernels.open, canary=True).forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64, torch.device("meta")], ids=str)
def test_no_default_of_the_users_reaches_the_canary(kernels: Kernels, default: torch.dtype | torch.device) -> None:
    """Sinks of another type would be refused, and native would go off; a default device draws no numbers of a CPU's."""
    q, k, v = half()
    call = ForwardArgs(q=q, k=k, v=v, s_aux=torch.zeros(4), **CAUSAL)
    before = torch.get_default_dtype()
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
        with default if isinstance(default, torch.device) else contextlib.nullcontext():
            engine(kernels.open, canary=True).forward(call)
    finally:
        torch.set_default_dtype(before)
    assert len(kernels.calls) == 2


def refuses(_: Tensor) -> None:
    raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version\nand a trace")


@pytest.mark.parametrize("spoil", [spoiled, nothing_written, refuses])
def test_wrong_results_turn_native_off_loudly(spoil: Callable[[Tensor], None]) -> None:
    kernels = Kernels(spoil)
    q, k, v = half()
    serving = engine(kernels.open, canary=True)
    with pytest.warns(RuntimeWarning, match="canary found wrong results") as caught:
        out, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert "Native kernels are OFF" in str(caught[0].message)
    torch.testing.assert_close(out, fallback.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))[0])
    serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert len(kernels.calls) == 1  # the canary itself; no user's call
    with use_backend("native"), pytest.raises(BackendError, match="canary found wrong results"):
        serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))


def test_a_wrong_backward_turns_native_off_as_well() -> None:
    kernels = Kernels()
    q, k, v = half()
    serving = engine(kernels.open, canary=True)
    out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    kernels.spoil = spoiled
    args = BackwardArgs(dout=torch.randn_like(out), q=q, k=k, v=v, out=out, softmax_lse=lse, **CAUSAL)
    with pytest.warns(RuntimeWarning, match=r"in the backward of family sm8x \(dq"):
        result = serving.backward(args)
    torch.testing.assert_close(result.dq, fallback.backward(args)[0])
    before = len(kernels.calls)
    serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert len(kernels.calls) == before


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), FULL], ids=["torch's", "a library's"])
def test_a_full_memory_is_no_verdict_on_the_kernels(error: RuntimeError) -> None:
    def full(_: Tensor) -> None:
        raise error

    kernels = Kernels(full)
    q, k, v = half()
    serving = engine(kernels.open, canary=True)
    with pytest.raises(torch.OutOfMemoryError):
        serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    kernels.spoil = lambda _: None
    serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert len(kernels.calls) == 3  # the canary twice, then the user's call


def test_canary_can_be_skipped() -> None:
    kernels = Kernels(spoiled)
    q, k, v = half()
    engine(kernels.open, canary=False).forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert len(kernels.calls) == 1


def test_one_canary_for_many_threads(kernels: Kernels) -> None:
    serving = engine(kernels.open, canary=True)
    q, k, v = half()
    threads = [threading.Thread(target=lambda: serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kernels.calls) == 9


# -- loading


def test_a_library_that_cannot_be_loaded_says_why_and_is_not_tried_again(tmp_path: Path) -> None:
    broken = tmp_path / "flash_attn3_sm8x.so"
    broken.write_bytes(b"not a library")
    attempts = 0

    def opener(_: Path, facts: BuildFacts) -> native.LoadedOps:
        nonlocal attempts
        attempts += 1
        return native.load_ops(broken, facts)

    q, k, v = half()
    serving = engine(opener)
    with pytest.warns(RuntimeWarning, match="cannot load .*flash_attn3_sm8x.so"):
        serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    serving.forward(ForwardArgs(q=q, k=k, v=v, causal=True, softmax_scale=1.0, softcap=3.0))
    assert attempts == 1
    with use_backend("native"), pytest.raises(BackendError, match="cannot be loaded: cannot load"):
        serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))


def test_forced_native_raises_the_load_error_with_its_cause(tmp_path: Path) -> None:
    q, k, v = half()
    serving = engine(lambda _, facts: native.load_ops(tmp_path / "absent.so", facts))
    with use_backend("native"), pytest.raises(NativeLoadError, match=r"absent\.so") as caught:
        serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_library_without_its_ops_is_a_missing_symbol() -> None:
    import torch._C as extension

    facts = build("sm8x", "sm_121", namespace="flash_attn3_absent")
    with pytest.raises(NativeLoadError, match=r"registers no op fwd, get_scheduler_metadata in namespace"):
        native.load_ops(Path(extension.__file__), facts)


def test_a_second_file_with_the_same_ops_is_not_loaded(tmp_path: Path) -> None:
    """torch ends the process there, by a segmentation fault (seen with a copy of a real library)."""
    held = torch.library.Library("flash_attn3_held", "DEF")
    held.define("fwd(Tensor q) -> Tensor")
    facts = build("sm8x", "sm_121", namespace="flash_attn3_held")
    with pytest.raises(NativeLoadError, match="another file registered the ops of flash_attn3_held"):
        native.load_ops(tmp_path / "copy.so", facts)


def test_libraries_are_found_by_their_facts(tmp_path: Path) -> None:
    (tmp_path / "sm8x.json").write_text(SM8X.to_json(), encoding="utf-8")
    (tmp_path / "provenance.json").write_text("{}", encoding="utf-8")
    (tmp_path / "executed.json").write_text("{}", encoding="utf-8")
    (library,) = native.find(tmp_path)
    assert (library.facts, library.path) == (SM8X, tmp_path / "flash_attn3_sm8x.so")
    (tmp_path / "sm8x.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FactsError, match=r"sm8x\.json: expected build facts of schema"):
        native.find(tmp_path)


# -- the fast path of plain decoding


def decode(caches: list[Tensor], lengths: Tensor, token: tuple[Tensor, ...], **more: Any) -> Any:
    from flash_attn3_sm121.api.kvcache import flash_attn_with_kvcache

    q, k, v = token
    return flash_attn_with_kvcache(q, *caches, k, v, cache_seqlens=lengths, causal=True, **more)


def test_decoding_takes_the_fast_path_once_settled(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = engine(kernels.open)
    install(monkeypatch, serving)
    engine_calls = 0
    forward = serving.forward

    def counting(args: ForwardArgs) -> Any:
        nonlocal engine_calls
        engine_calls += 1
        return forward(args)

    monkeypatch.setattr(serving, "forward", counting)
    caches = [torch.zeros(2, 8, 2, 16, dtype=torch.bfloat16) for _ in range(2)]
    mirror = [cache.clone() for cache in caches]
    lengths = torch.tensor([0, 2], dtype=torch.int32)
    for _ in range(5):
        token = half(sq=1, sk=1)
        found = decode(caches, lengths, token)
        right = ForwardArgs(
            q=token[0], k=mirror[0], v=mirror[1], k_new=token[1], v_new=token[2], seqused_k=lengths, **CAUSAL
        )
        torch.testing.assert_close(found, fallback.forward(right)[0])
        lengths += 1
    assert (engine_calls, len(kernels.calls)) == (1, 5)
    torch.testing.assert_close(caches, mirror)
    with pytest.raises(RuntimeError, match="KV cache overflow"):
        decode(caches, torch.tensor([0, 8], dtype=torch.int32), token)
    with use_backend("sdpa"):
        decode(caches, lengths - 5, token)
    assert len(kernels.calls) == 5
    results = decode(caches, lengths - 5, token, return_softmax_lse=True)
    assert (len(results), results[1].shape) == (4, (2, 4, 1))


def test_a_failed_canary_closes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels()
    serving = engine(kernels.open, canary=True)
    install(monkeypatch, serving)
    caches = [torch.zeros(2, 8, 2, 16, dtype=torch.bfloat16) for _ in range(2)]
    lengths, token = torch.tensor([0, 2], dtype=torch.int32), half(sq=1, sk=1)
    for _ in range(3):
        decode(caches, lengths, token)
    q, k, v = half()
    out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    kernels.spoil = spoiled
    with pytest.warns(RuntimeWarning, match="canary"):
        serving.backward(BackwardArgs(dout=out, q=q, k=k, v=v, out=out, softmax_lse=lse, **CAUSAL))
    before = len(kernels.calls)
    decode(caches, lengths, token)
    assert len(kernels.calls) == before
