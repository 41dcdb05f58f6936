"""Eager training takes the short way over the engine, and gives what the functional op gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import flash_attn3_sm121 as fa3
from flash_attn3_sm121.api import eager
from flash_attn3_sm121.errors import CallError


def _inputs(*, requires_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 33, 4, 16), torch.randn(2, 40, 2, 16), torch.randn(2, 40, 2, 16)
    q, k, v = (x.requires_grad_(requires_grad) for x in (q, k, v))
    return q, k, v


def _gradients(inputs: tuple[Tensor, ...], **more: Any) -> tuple[Tensor, ...]:
    out, lse = fa3.flash_attn_func(*inputs[:3], causal=True, window_size=(9, 0), return_attn_probs=True, **more)
    return torch.autograd.grad((out.square().sum() + lse.sum()), inputs)


def test_same_gradients_as_through_the_functional_op(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    apply = eager._Attention.apply
    monkeypatch.setattr(eager._Attention, "apply", lambda *args: (seen.append(True), apply(*args))[1])
    short = _gradients(_inputs())
    assert seen
    monkeypatch.setattr(eager, "serves", lambda args: False)
    for a, b in zip(short, _gradients(_inputs()), strict=True):
        torch.testing.assert_close(a, b)
    assert len(seen) == 1


def test_sinks_have_a_gradient_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[Tensor, ...]:
        q, k, v = _inputs()
        sinks = torch.linspace(-1, 1, 4).requires_grad_()
        out = fa3.flash_attn_func(q, k, v, causal=True, s_aux=sinks)
        return torch.autograd.grad(out.square().sum(), (q, k, v, sinks))

    short = run()
    monkeypatch.setattr(eager, "serves", lambda args: False)
    for a, b in zip(short, run(), strict=True):
        torch.testing.assert_close(a, b)


def test_packed_and_checkpointed() -> None:
    cu = torch.tensor([0, 12, 12, 33], dtype=torch.int32)
    q, k, v = (x[0, :33].detach().requires_grad_() for x in _inputs())

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = fa3.flash_attn_varlen_func(q, k, v, cu, cu, 21, 21, causal=True)
        return out

    plain = torch.autograd.grad(call(q, k, v).square().sum(), (q, k, v))
    again = torch.autograd.grad(checkpoint(call, q, k, v, use_reentrant=False).square().sum(), (q, k, v))
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_saved_goes_through_autograds_hooks() -> None:
    saved: list[torch.Size] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.shape)
        return x.clone()

    q, k, v = _inputs()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = fa3.flash_attn_func(q, k, v, causal=True)
    assert {q.shape, k.shape, torch.Size((2, 4, 33))} <= set(saved)
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert dq.shape == q.shape


def test_one_derivative_with_create_graph_and_no_second() -> None:
    q, k, v = _inputs()
    out = fa3.flash_attn_func(q, k, v, causal=True)
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    torch.testing.assert_close(dq, _single(q, k, v))
    with pytest.raises(CallError, match="double backward"):
        torch.autograd.grad(dq.sum(), q)


def _single(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    (dq,) = torch.autograd.grad(fa3.flash_attn_func(q, k, v, causal=True).square().sum(), q)
    return dq


def test_an_input_written_to_before_the_backward_is_noticed() -> None:
    q, k, v = _inputs()
    out = fa3.flash_attn_func(q, k, v)
    with torch.no_grad():
        k.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
