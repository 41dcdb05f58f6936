"""Gradients against fp64 autograd of the reference, over random calls, and by finite differences of the engine."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import ForwardArgs
from tests.fallback import generate, reference
from tests.fallback.compare import GRADIENT_TOLERANCE, assert_close, backward_args


def with_leaves(args: ForwardArgs) -> tuple[ForwardArgs, list[Tensor]]:
    """The same call in fp64 with q, k, v (and the sinks) as leaves."""
    fields = {name: getattr(args, name) for name in args.__slots__}
    leaves = []
    for name in ("q", "k", "v", "s_aux"):
        if fields[name] is not None:
            fields[name] = fields[name].double().requires_grad_()
            leaves.append(fields[name])
    return ForwardArgs(**fields), leaves


def check(args: ForwardArgs, generator: torch.Generator, *, through_lse: bool) -> None:
    exact, leaves = with_leaves(args)
    want = reference.expected(exact)
    dout = torch.randn(want.out.shape, generator=generator).to(args.q.dtype)
    dlse = torch.randn(want.lse.shape, generator=generator) if through_lse else None
    loss = (want.out * dout.double()).sum()
    if dlse is not None:
        loss = loss + (torch.where(want.lse.isinf(), 0.0, want.lse) * dlse.double()).sum()
    gradients = [None] * len(leaves)
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    out, lse = fallback.forward(args)
    found = fallback.backward(backward_args(args, out, lse, dout, dlse))
    assert (found[3] is None) == (args.s_aux is None)
    for name, gradient, leaf, result in zip(("dq", "dk", "dv", "ds_aux"), gradients, leaves, found, strict=False):
        expected = gradient if gradient is not None else torch.zeros_like(leaf)
        source = getattr(args, {"dq": "q", "dk": "k", "dv": "v", "ds_aux": "s_aux"}[name])
        assert result.dtype == source.dtype and result.is_contiguous()
        assert_close(result, expected, GRADIENT_TOLERANCE[args.q.dtype], name)


def run(start: int, count: int, *, through_lse: bool) -> None:
    for seed in range(start, start + count):
        args = generate.dense(seed, limit=12)
        args.qv = None  # upstream has no backward for it
        if args.q.dtype in (torch.bfloat16, torch.float16):
            args.softmax_scale = 0.125  # sharp softmaxes amplify rounding of the saved out
        try:
            check(args, torch.Generator().manual_seed(seed), through_lse=through_lse)
        except Exception as error:
            raise AssertionError(f"generate.dense({seed}, limit=12): {error}") from error


@pytest.mark.parametrize("cuts", ["usual", "tiny", "plain"], indirect=True)
@pytest.mark.parametrize("through_lse", [False, True], ids=["out", "out and lse"])
@pytest.mark.parametrize("start", range(500_000, 500_160, 20))
def test_against_autograd_of_the_reference(start: int, through_lse: bool, cuts: str) -> None:
    run(start, 20, through_lse=through_lse)


@pytest.mark.slow
@pytest.mark.parametrize("cuts", ["usual", "tiny", "plain"], indirect=True)
@pytest.mark.parametrize("start", range(600_000, 601_000, 100))
def test_more(start: int, cuts: str) -> None:
    run(start, 100, through_lse=start % 200 == 0)


class Function(torch.autograd.Function):
    """The engine as an autograd function, for finite differences."""

    @staticmethod
    def forward(ctx, q, k, v, s_aux, options):  # type: ignore[no-untyped-def]
        args = ForwardArgs(q=q, k=k, v=v, s_aux=s_aux, **options)
        out, lse = fallback.forward(args)
        ctx.save_for_backward(q, k, v, s_aux, out, lse)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx, dout):  # type: ignore[no-untyped-def]
        q, k, v, s_aux, out, lse = ctx.saved_tensors
        args = ForwardArgs(q=q, k=k, v=v, s_aux=s_aux, **ctx.options)
        return (*fallback.backward(backward_args(args, out, lse, dout)), None)


FINITE = {
    "causal": {"causal": True, "window_right": 0},
    "window": {"window_left": 2, "window_right": 1},
    "chunk": {"attention_chunk": 3, "causal": True, "window_right": 0},
    "softcap": {"softcap": 1.5},
    "softcap window": {"softcap": 1.5, "window_left": 1, "window_right": 0},
}


@pytest.mark.parametrize("cuts", ["usual", "tiny"], indirect=True)
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("name", FINITE)
def test_finite_differences(name: str, sinks: bool, cuts: str) -> None:
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(1, 5, 4, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 7, 2, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    s_aux = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True) if sinks else None
    options = {"softmax_scale": 0.4, **FINITE[name]}
    assert torch.autograd.gradcheck(lambda *x: Function.apply(*x, options), (q, k, v, s_aux), atol=1e-5)


def test_fully_masked_rows_have_zero_gradients() -> None:
    generator = torch.Generator().manual_seed(5)
    q, dout = (torch.randn(1, 6, 2, 16, generator=generator) for _ in range(2))
    k, v = (torch.randn(1, 4, 2, 16, generator=generator) for _ in range(2))
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, causal=True, window_right=0)
    out, lse = fallback.forward(args)
    assert torch.equal(lse[:, :, :2], torch.full((1, 2, 2), -torch.inf)) and not out[:, :2].any()
    dq, dk, dv, _ = fallback.backward(backward_args(args, out, lse, dout))
    assert not dq[:, :2].any() and dq[:, 2:].any()
    assert all(not gradient.isnan().any() for gradient in (dq, dk, dv))
    dout[:, :2] = 1e4  # must not matter
    again = fallback.backward(backward_args(args, out, lse, dout))
    assert torch.equal(again[0], dq) and torch.equal(again[1], dk) and torch.equal(again[2], dv)


def test_unused_rows_and_keys_have_zero_gradients() -> None:
    generator = torch.Generator().manual_seed(6)
    q, dout = (torch.randn(2, 6, 2, 16, generator=generator) for _ in range(2))
    k, v = (torch.randn(2, 5, 1, 16, generator=generator) for _ in range(2))
    used = {"seqused_q": torch.tensor([3, 0], dtype=torch.int32), "seqused_k": torch.tensor([2, 5], dtype=torch.int32)}
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, **used)
    out, lse = fallback.forward(args)
    dq, dk, dv, _ = fallback.backward(backward_args(args, out, lse, dout))
    assert not dq[0, 3:].any() and not dq[1].any() and dq[0, :3].all()
    for gradient in (dk, dv):
        assert not gradient[0, 2:].any() and not gradient[1].any() and gradient[0, :2].any()


def test_mixed_types_come_back_in_their_own() -> None:
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(1, 6, 2, 16, generator=generator)
    k, v = (torch.randn(1, 6, 2, 16, generator=generator).bfloat16() for _ in range(2))
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25)
    out, lse = fallback.forward(args)
    dq, dk, dv, _ = fallback.backward(backward_args(args, out, lse, torch.ones_like(out)))
    assert (dq.dtype, dk.dtype, dv.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)


ONE_KEY = {
    "one key": (5, 1, {}),
    "causal": (6, 6, {"causal": True, "window_right": 0}),
    "itself": (6, 6, {"window_left": 0, "window_right": 0}),
    "chunks": (7, 7, {"attention_chunk": 3, "causal": True, "window_right": 0}),
    "softcap": (5, 1, {"softcap": 3.0}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ONE_KEY)
def test_a_row_that_sees_one_key_has_gradients_of_zero(name: str, dtype: torch.dtype) -> None:
    rows, keys, options = ONE_KEY[name]
    generator = torch.Generator().manual_seed(7)
    q, dout = (torch.randn(2, rows, 4, 16, generator=generator).to(dtype) for _ in range(2))
    k, v = (torch.randn(2, keys, 2, 16, generator=generator).to(dtype) for _ in range(2))
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, **options)
    out, lse = fallback.forward(args)
    dq, dk, dv, _ = fallback.backward(backward_args(args, out, lse, dout))
    band = {"left": args.window_left, "right": 0 if args.causal else args.window_right, "chunk": args.attention_chunk}
    seen = [[j for j in range(keys) if reference.sees(i, j, rows, keys, **band)] for i in range(rows)]
    single = [i for i, found in enumerate(seen) if len(found) == 1]
    shared = {j for found in seen if len(found) > 1 for j in found}
    assert single and not dq[:, single].any()
    assert not dk[:, [j for j in range(keys) if j not in shared]].any()
    assert dv.any() and all(bool(dq[:, i].any()) for i in range(rows) if i not in single)


def test_a_part_of_the_keys_keeps_its_gradients() -> None:
    """A ring passes out and LSE of all keys: a row that sees one key of this part has a gradient from it."""
    generator = torch.Generator().manual_seed(8)
    q, k, v, dout = (torch.randn(1, 4, 2, 16, generator=generator, dtype=torch.float64) for _ in range(4))
    whole = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25)
    out, lse = fallback.forward(whole)
    want = fallback.backward(backward_args(whole, out, lse, dout))
    found = [
        fallback.backward(
            backward_args(dataclasses.replace(whole, k=k[:, j : j + 1], v=v[:, j : j + 1]), out, lse, dout)
        )
        for j in range(4)
    ]
    torch.testing.assert_close(sum(part[0] for part in found), want[0])
    torch.testing.assert_close(torch.cat([part[1] for part in found], dim=1), want[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_gradients_of_grouped_heads_are_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(9)
    q, dout = (torch.randn(1, 96, 8, 32, generator=generator).to(dtype) for _ in range(2))
    k, v = (torch.randn(1, 96, 1, 32, generator=generator).to(dtype) for _ in range(2))
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.2, causal=True, window_right=0)
    out, lse = fallback.forward(args)
    found = fallback.backward(backward_args(args, out, lse, dout))
    wide = dataclasses.replace(args, q=q.float(), k=k.float(), v=v.float())
    want = fallback.backward(backward_args(wide, out.float(), lse, dout.float()))
    for name, mine, right in zip(("dk", "dv"), found[1:3], want[1:3], strict=True):
        assert torch.equal(mine, right.to(dtype)), name
