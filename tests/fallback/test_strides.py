"""Any stride but the last, any place in a larger tensor: results are those of plain copies, for made-up shapes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.validation import check_backward
from flash_attn3_sm121.fallback import host, static
from tests.fallback.compare import assert_close

AXES = (0, 1, 2)


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """(b, s, h, d) numbers in an odd layout: permuted axes, gaps, an offset, a broadcast batch."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    order = draw(st.permutations(AXES))
    gaps = [draw(st.integers(0, 2)) for _ in range(3)] + [draw(st.sampled_from((0, 8)))]
    sizes = [shape[axis] for axis in order] + [shape[3]]
    room = torch.full([size + gap for size, gap in zip(sizes, gaps, strict=True)], float("nan"))
    view = room[tuple(slice(gap, gap + size) for size, gap in zip(sizes, gaps, strict=True))]
    view = view.permute(*(order.index(axis) for axis in AXES), 3)
    view.copy_(values)
    if draw(st.booleans()) and shape[0] > 0:
        view = view[:1].expand(shape)
    return view


@st.composite
def calls(draw: st.DrawFn) -> ForwardArgs:
    batch, rows, keys = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dim, dim_v = draw(st.sampled_from((8, 16, 24))), draw(st.sampled_from((8, 16)))
    return ForwardArgs(
        q=draw(strided((batch, rows, kv_heads * group, dim), 1)),
        k=draw(strided((batch, keys, kv_heads, dim), 2)),
        v=draw(strided((batch, keys, kv_heads, dim_v), 3)),
        softmax_scale=0.3,
        window_left=draw(st.integers(-1, 9)),
        window_right=draw(st.integers(-1, 9)),
        attention_chunk=draw(st.sampled_from((0, 0, 3))),
        softcap=draw(st.sampled_from((0.0, 0.0, 3.0))),
    )


def plain(args: ForwardArgs) -> ForwardArgs:
    names = ("q", "k", "v")
    return dataclasses.replace(args, **{name: getattr(args, name).clone().contiguous() for name in names})


@pytest.mark.parametrize("cuts", ["usual", "tiny"], indirect=True)
@pytest.mark.parametrize("engine", [host.forward, static.forward], ids=["host", "static"])
def test_forward(engine: object, cuts: str) -> None:
    @settings(max_examples=60)
    @given(calls())
    def holds(args: ForwardArgs) -> None:
        for found, want in zip(engine(args), engine(plain(args)), strict=True):
            assert found.is_contiguous()
            assert_close(found, want.double(), 2e-6, "result")

    holds()


@pytest.mark.parametrize("cuts", ["usual", "tiny"], indirect=True)
def test_backward(cuts: str) -> None:
    @settings(max_examples=60)
    @given(calls(), st.data())
    def holds(args: ForwardArgs, data: st.DataObject) -> None:
        out, lse = fallback.forward(args)
        dout = data.draw(strided(tuple(out.shape), 4))
        odd_lse = lse.transpose(1, 2).contiguous().transpose(1, 2)
        shared = {"softmax_scale": 0.3, "softcap": args.softcap, "attention_chunk": args.attention_chunk}
        shared |= {"window_left": args.window_left, "window_right": args.window_right}
        odd = BackwardArgs(dout=dout, q=args.q, k=args.k, v=args.v, out=out, softmax_lse=odd_lse, **shared)
        copy = plain(args)
        even = BackwardArgs(dout=dout.clone(), q=copy.q, k=copy.k, v=copy.v, out=out, softmax_lse=lse, **shared)
        for found, want in zip(fallback.backward(odd)[:3], fallback.backward(even)[:3], strict=True):
            assert found.is_contiguous()
            assert_close(found, want.double(), 2e-5, "gradient")

    holds()


def test_a_last_stride_other_than_one_works_too() -> None:
    q, k, v = (torch.randn(2, 5, 16, 2).transpose(2, 3) for _ in range(3))
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.3)
    for engine in (host.forward, static.forward):
        assert_close(engine(args)[0], engine(plain(args))[0].double(), 1e-6, "out")


@pytest.mark.parametrize(("field", "message"), [("qv", "qv is forward only"), ("fp8", "fp16 and bf16 data type")])
def test_what_has_no_backward_says_so(field: str, message: str) -> None:
    q = torch.randn(1, 3, 2, 16)
    args = BackwardArgs(dout=q, q=q, k=q, v=q, out=q, softmax_lse=torch.zeros(1, 2, 3), softmax_scale=0.3)
    if field == "qv":
        args.qv = q
    else:
        args.q = args.k = args.v = q.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=message):
        check_backward(args)
