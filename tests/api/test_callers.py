"""What callers do that once failed, was silently misread, or got a message that told them nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import flash_attn3_sm121 as fa3
from flash_attn3_sm121 import fallback
from flash_attn3_sm121.api.private import _flash_attn_backward, _flash_attn_forward
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.facts import Settings
from flash_attn3_sm121.dispatch.engine import Engine
from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.native import library as native
from tests.fakes.dropin import python
from tests.fakes.libraries import CAUSAL, Kernels, engine, half, install
from tests.fakes.shapes import dense, packed

INT = torch.int32


def cached(**fields: Any) -> Any:
    q, k, v = dense(sq=1, sk=1)
    kc, vc = torch.zeros(2, 8, 2, 16), torch.zeros(2, 8, 2, 16)
    defaults = {"q": q, "k_cache": kc, "v_cache": vc, "k": k, "v": v, "cache_seqlens": torch.tensor([3, 4], dtype=INT)}
    return fa3.flash_attn_with_kvcache(**{**defaults, **fields})


def varlen(**fields: Any) -> Any:
    q, k, v, cu = packed((3, 4))
    defaults = {"q": q, "k": k, "v": v, "cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 4, "max_seqlen_k": 4}
    return fa3.flash_attn_varlen_func(**{**defaults, **fields})


def sparse() -> Tensor:
    return dense()[0].to_sparse()


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.randn(3, 2, 16), torch.randn(4, 2, 16)], layout=torch.jagged)


Case = tuple[Callable[[], Any], type[Exception], str]
MESSAGES: dict[str, Case] = {
    "list": (lambda: fa3.flash_attn_func([1.0], *dense()[1:]), TypeError, r"q must be a torch\.Tensor, found list"),  # type: ignore[arg-type]
    "numpy": (lambda: fa3.flash_attn_func(np.ones(3), *dense()[1:]), TypeError, "q must be .*, found ndarray"),  # type: ignore[arg-type]
    "sparse": (lambda: fa3.flash_attn_func(sparse(), *dense()[1:]), CallError, "found the layout torch.sparse_coo"),
    "nested": (lambda: fa3.flash_attn_func(*[nested()] * 3), CallError, r"dense tensor, found a nested one"),
    "a list of lengths": (lambda: varlen(max_seqlen_q=[3, 4]), CallError, r"max_seqlen_q must be a whole number"),
    "list of offsets": (lambda: varlen(cu_seqlens_q=[0, 3, 7]), TypeError, "cu_seqlens_q must be .*, found list"),
    "window of three": (
        lambda: fa3.flash_attn_func(*dense(), window_size=(1, 2, 3)), CallError, "window_size must be two numbers",
    ),
    "window of strings": (
        lambda: fa3.flash_attn_func(*dense(), window_size=("a", "b")), CallError, "window_size must be two numbers",  # type: ignore[arg-type]
    ),
    "half a window": (lambda: fa3.flash_attn_func(*dense(), window_size=(1.5, 0)), CallError, "must be two numbers"),  # type: ignore[arg-type]
    "causal is a word": (lambda: fa3.flash_attn_func(*dense(), causal="yes"), CallError, "causal must be True or F"),  # type: ignore[arg-type]
    "softcap is a word": (lambda: fa3.flash_attn_func(*dense(), softcap="1"), CallError, "softcap must be a number"),  # type: ignore[arg-type]
    "scale is a word, of a kind of call that is known": (
        lambda: [fa3.flash_attn_func(*dense(), softmax_scale=scale) for scale in (None, "1")],  # type: ignore[arg-type]
        CallError, "softmax_scale must be a number, found '1'",
    ),
    "FA2's order": (lambda: fa3.flash_attn_func(*dense(), 0.1, None, True), CallError, "causal must .*found None"),  # type: ignore[arg-type]
    "FA2's order, no dropout": (
        lambda: fa3.flash_attn_func(*dense(), 0.0, None, True), CallError, "FlashAttention-2 has dropout_p in this",  # type: ignore[arg-type]
    ),
    "FA2's order, packed": (
        lambda: fa3.flash_attn_varlen_func(*packed((3, 4))[:3], *packed((3, 4))[3:] * 2, 4, 4, 0.0, None, True),
        TypeError,
        "seqused_q must be a torch.Tensor, found float. FlashAttention-2's order",
    ),
    "qv is a flag": (lambda: fa3.flash_attn_func(*dense(), qv=True), TypeError, "qv must be .*, found bool"),  # type: ignore[arg-type]
    "lengths of a cache": (
        lambda: cached(cache_seqlens=torch.tensor([3, 4])), CallError, "cache_seqlens must have dtype torch.int32",
    ),
    "too long a cache": (
        lambda: cached(cache_seqlens=torch.tensor([3, 9], dtype=INT)), CallError, r"cache_seqlens 9 \+ 1 new token",
    ),
    "rows of a cache": (
        lambda: cached(cache_batch_idx=torch.tensor([0, 1])), CallError, "cache_batch_idx must have dtype torch.int32",
    ),
    "list of pages": (lambda: cached(page_table=[[0], [1]]), TypeError, "page_table must be .*, found list"),
    "new keys": (lambda: cached(k=torch.zeros(2, 1, 2, 16).double()), CallError, r"k \(the new keys\) must have"),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_the_message_names_what_was_passed(name: str) -> None:
    call, kind, words = MESSAGES[name]
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize("keys", [5, 7], ids=["fast path", "engine"])
def test_a_sparse_tensor_is_named_in_second_calls_too(keys: int) -> None:
    q, k, v = dense(sk=keys, hk=4)
    for _ in range(2):
        fa3.flash_attn_func(q, k, v, causal=True)
    with pytest.raises(CallError, match=r"q must be a dense tensor, found the layout torch\.sparse_coo"):
        fa3.flash_attn_func(q.to_sparse(), k, v, causal=True)


# -- silent mistakes


def test_a_scale_of_zero_is_refused_on_every_call() -> None:
    q, k, v = dense()
    fa3.flash_attn_func(q, k, v)
    for function in (fa3.flash_attn_func, lambda *a: cached(softmax_scale=a[3])):
        with pytest.raises(CallError, match="softmax_scale is 0"):
            function(q, k, v, 0.0)
    meant = fa3.flash_attn_func(q * 0, k, v)
    torch.testing.assert_close(meant[:, 0, 0], v[:, :, 0].mean(1))


def test_a_bound_below_the_lengths_is_refused() -> None:
    with pytest.raises(CallError, match="max_seqlen_k is 2, but the longest sequence of cu_seqlens_k has 4"):
        varlen(max_seqlen_k=2, window_size=(1, 0))


def test_a_bound_is_one_of_the_used_lengths() -> None:
    """As xformers packs padded keys: room for four behind each start, of which 2 and 3 are used."""
    q, k, v, cu = packed((4, 4))
    used, given = torch.tensor([2, 3], dtype=INT), {"causal": True, "window_size": (1, 0)}
    out = fa3.flash_attn_varlen_func(q, k, v, cu, cu, 4, 3, seqused_k=used, **given)
    for row, (start, keys) in enumerate(((0, 2), (4, 3))):
        one = [x[start : start + count][None] for x, count in ((q, 4), (k, keys), (v, keys))]
        torch.testing.assert_close(out[4 * row : 4 * row + 4], fa3.flash_attn_func(*one, **given)[0])
    some = fa3.flash_attn_varlen_func(q, k, v, cu, cu, 3, 4, seqused_q=used, causal=True)
    torch.testing.assert_close(some[:2], fa3.flash_attn_func(q[None, :2], k[None, :4], v[None, :4], causal=True)[0])
    with pytest.raises(CallError, match="max_seqlen_k is 2, but the longest sequence of seqused_k has 3"):
        fa3.flash_attn_varlen_func(q, k, v, cu, cu, 4, 2, seqused_k=used)


def test_offsets_that_do_not_start_at_zero_are_refused() -> None:
    with pytest.raises(CallError, match="cu_seqlens_k must rise from 0"):
        varlen(cu_seqlens_k=torch.tensor([1, 3, 7], dtype=INT))


def test_an_expanded_cache_is_not_appended_to() -> None:
    cache = torch.zeros(1, 8, 2, 16).expand(2, -1, -1, -1)
    for name in ("k_cache", "v_cache"):
        with pytest.raises(CallError, match=rf"{name} is an expanded tensor"):
            cached(**{name: cache})
    assert not cache.any()
    cached(k_cache=cache, v_cache=cache, k=None, v=None)


# -- second calls, which take the fast path


@pytest.mark.parametrize("window", [(None, None), (None, 0), (torch.tensor(2), -1)], ids=str)
def test_windows_of_none_and_tensors_reach_a_kernel_as_numbers(
    window: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = Kernels()
    install(monkeypatch, engine(kernels.open))
    caches = [torch.zeros(2, 8, 2, 16, dtype=torch.bfloat16) for _ in range(2)]
    lengths = torch.tensor([3, 4], dtype=INT)
    for _ in range(3):
        fa3.flash_attn_with_kvcache(half(sq=1)[0], *caches, cache_seqlens=lengths, window_size=window)
        fa3.flash_attn_func(*half(), window_size=window)
    for call in kernels.calls:
        assert type(call.window_left) is int and type(call.window_right) is int
    assert len(kernels.calls) == 6


def test_padding_reaches_kernels_as_rows_that_they_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel skips a row whose length, new keys counted in, is not above zero."""
    kernels = Kernels()
    install(monkeypatch, engine(kernels.open))
    lengths = torch.tensor([4, -1], dtype=INT)
    table = torch.tensor([[0, 1], [-1, -1]], dtype=INT)
    pages = [torch.zeros(8, 16, 2, 16, dtype=torch.bfloat16) for _ in range(2)]
    for new in (1, 1, 3):
        q, k, v = half(sq=new, sk=new)
        out = fa3.flash_attn_with_kvcache(
            q, *pages, k, v, cache_seqlens=lengths, page_table=table, causal=True, cache_batch_idx=None
        )
        assert out[0].any() and not out[1].any()
        seen = kernels.calls[-1].seqused_k
        assert seen is not None and seen[0] == 4 and seen[1] + new <= 0
    assert len(kernels.calls) == 3


@pytest.mark.parametrize("word", ["0", "off", "false", "no"])
def test_every_word_for_off_switches_both_checks_off(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback once knew "0" alone. Here its way for GPUs serves the CPU."""
    monkeypatch.setattr(fallback, "lengths_stay_on_device", lambda args: args.k_new is not None)
    monkeypatch.setitem(os.environ, "FLASH_ATTN3_CHECK_CACHE", word)
    settings = Settings.from_environ(os.environ)
    assert not settings.check_cache
    q, k, v = dense(sq=1, sk=1)
    cache = torch.zeros(2, 2, 4, 2, 16)
    args = ForwardArgs(q=q, k=cache[0], v=cache[1], k_new=k, v_new=v, seqused_k=torch.tensor([0, 4]).int(), **CAUSAL)
    seen: list[bool] = []
    forward = fallback.static.forward
    monkeypatch.setattr(
        fallback.static, "forward", lambda args, check, **_: (seen.append(check), forward(args, check=False))[1]
    )
    inside = replace(args, seqused_k=torch.tensor([0, 3]).int())
    Engine(settings=settings).forward(inside)
    Engine(settings=Settings()).forward(inside)
    assert seen == [False, True]


def test_softmax_d_is_found_by_name_in_either_form_of_a_backward() -> None:
    """The pin returns three gradients and five workspaces, later releases the workspaces alone."""
    workspaces = tuple(torch.full((1,), float(i)) for i in range(5))
    args = BackwardArgs(
        **dict.fromkeys(("dout", "q", "k", "v", "out", "softmax_lse"), torch.zeros(1)), softmax_scale=1.0
    )
    for results in (workspaces, (*args.q.expand(3, 1), *workspaces)):
        ops = native.LoadedOps(
            fwd=print, bwd=lambda *_, found=results: found, fwd_combine=None, get_scheduler_metadata=print
        )
        found = native.run_backward(ops, args, args.q, args.k, args.v)
        assert found is workspaces[0]


# -- what upstream takes, and we refused


def test_a_packed_backward_takes_the_lse_with_a_leading_one() -> None:
    q, k, v, cu = packed((3, 4))
    lengths = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 4, "max_seqlen_k": 4}
    out, lse, *_ = _flash_attn_forward(q, k, v, **lengths, causal=True)
    results = []
    for given in (lse, lse[None]):
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        names = dict(zip(("dq", "dk", "dv"), gradients, strict=True))
        softmax_d = _flash_attn_backward(torch.ones_like(out), q, k, v, out, given, **lengths, **names, is_causal=True)
        results.append((*gradients, softmax_d))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    with pytest.raises(CallError, match="softmax_lse must have shape"):
        _flash_attn_backward(out, q, k, v, out, lse[None, None], **lengths)


# -- functorch and tracing


def mapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fa3.flash_attn_func(q, k, v, causal=True)


def test_functorch_transforms_in_any_order() -> None:
    q, k, v = (torch.stack([x, x + 1, x - 1]) for x in dense(sq=4, sk=4))
    loss = lambda *x: mapped(*x).square().sum()  # noqa: E731
    expected = torch.stack([mapped(*x) for x in zip(q, k, v, strict=True)])
    torch.testing.assert_close(torch.vmap(mapped)(q, k, v), expected)
    torch.testing.assert_close(torch.vmap(mapped, in_dims=(0, None, None))(q, k[0], v[0])[0], expected[0])
    leaf = q[0].clone().requires_grad_()
    (right,) = torch.autograd.grad(loss(leaf, k[0], v[0]), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(q[0], k[0], v[0]), right)
    out, pull = torch.func.vjp(mapped, q[0], k[0], v[0])
    torch.testing.assert_close(pull(2 * out)[0], right)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(q, k, v)[0], right)
    with pytest.raises(CallError, match="double backward is not supported"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x, k[0], v[0]).sum())(q[0])


def test_functorch_transforms_of_transforms() -> None:
    q, k, v = (torch.stack([x, x + 1, x - 1]) for x in dense(sq=4, sk=4))
    many, loss = torch.vmap(mapped), lambda *x: mapped(*x).square().sum()
    one_by_one = torch.stack([torch.func.grad(loss)(*x) for x in zip(q, k, v, strict=True)])
    torch.testing.assert_close(torch.func.grad(lambda *x: many(*x).square().sum())(q, k, v), one_by_one)
    out, pull = torch.func.vjp(many, q, k, v)
    torch.testing.assert_close(pull(2 * out)[0], one_by_one)
    stacked = [torch.stack((x, x)) for x in (q, k, v)]
    torch.testing.assert_close(torch.vmap(many)(*stacked)[1], out)
    torch.testing.assert_close(torch.vmap(torch.vmap(torch.func.grad(loss)))(*stacked)[1], one_by_one)
    jacobian = torch.func.jacrev(mapped)(q[0], k[0], v[0])
    torch.testing.assert_close((jacobian * 2 * out[0][..., None, None, None, None]).sum((0, 1, 2, 3)), one_by_one[0])


@pytest.mark.parametrize("first", ["torch.vmap(f)(x, x, x)", "torch.func.grad(lambda q: f(q, one, one).sum())(one)"])
def test_a_transform_may_be_the_first_call_of_a_process(first: str) -> None:
    """Nothing is remembered then; vmap raised."""
    code = "import torch\nfrom flash_attn_interface import flash_attn_func as f\nx = torch.randn(3, 2, 4, 2, 16)\n"
    done = python("-c", f"{code}one = x[0]\nprint({first}.isfinite().all().item())")
    assert done.stdout == "True\n", done.stderr


class Windowed(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, left: Tensor) -> Any:
        return fa3.flash_attn_func(q, k, v, causal=True, window_size=(left, 0))


def test_a_window_held_by_a_tensor_can_be_traced() -> None:
    q, k, v = dense(sq=6, sk=6)
    exported = torch.export.export(Windowed(), (q, k, v, torch.tensor(1)), strict=False).module()
    for left in (1, 3):
        expected = fa3.flash_attn_func(q, k, v, causal=True, window_size=(left, 0))
        torch.testing.assert_close(exported(q, k, v, torch.tensor(left)), expected)


def test_no_module_of_the_fallback_reads_the_environment() -> None:
    folder = Path(fallback.__file__).parent
    assert not [path.name for path in folder.glob("*.py") if "environ" in path.read_text(encoding="utf-8")]
