"""The same random calls on a CUDA device, where there is one: its kernels, and no waiting while decoding."""

from __future__ import annotations

import copy
import dataclasses
from typing import TypeVar

import pytest
import torch

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from tests.fallback import generate, reference
from tests.fallback.compare import GRADIENT_TOLERANCE, LSE_TOLERANCE, TOLERANCE, assert_close, backward_args

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

Args = TypeVar("Args", ForwardArgs, BackwardArgs)


def on_device(args: Args) -> Args:
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    moved = {name: value.cuda() for name, value in fields.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(args, **moved)


@pytest.mark.parametrize("cuts", ["usual", "tiny"], indirect=True)
@pytest.mark.parametrize("make", ["dense", "cache"])
@pytest.mark.parametrize("start", range(700_000, 700_200, 50))
def test_forward(make: str, start: int, cuts: str) -> None:
    for seed in range(start, start + 50):
        args = getattr(generate, make)(seed)
        want, mine = reference.expected(args), on_device(copy.deepcopy(args))
        out, lse = fallback.forward(mine)
        assert_close(out.cpu(), want.out, max(TOLERANCE[args.q.dtype], 1e-4), f"out of {make}({seed})")
        assert_close(lse.cpu(), want.lse, max(LSE_TOLERANCE[args.q.dtype], 1e-4), f"lse of {make}({seed})")
        assert torch.equal(mine.v.cpu(), want.v)


@pytest.mark.parametrize("cuts", ["usual", "tiny"], indirect=True)
@pytest.mark.parametrize("start", range(800_000, 800_100, 50))
def test_backward(start: int, cuts: str) -> None:
    for seed in range(start, start + 50):
        args = generate.dense(seed, limit=12)
        args.qv = None
        args.softmax_scale = 0.125
        out, lse = fallback.forward(args)
        dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
        given = backward_args(args, out, lse, dout)
        want, found = fallback.backward(given), fallback.backward(on_device(given))
        for name, a, b in zip(("dq", "dk", "dv", "ds_aux"), found, want, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                limit = 2 * max(GRADIENT_TOLERANCE[args.q.dtype], 1e-4)
                assert_close(a.cpu(), b.double(), limit, f"{name} of dense({seed})")


def test_a_decoding_step_can_be_captured() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, k_new, v_new = (
        torch.randn(shape, generator=generator).bfloat16().cuda()
        for shape in ((2, 1, 4, 64), (2, 256, 2, 64), (2, 256, 2, 64), (2, 1, 2, 64), (2, 1, 2, 64))
    )
    lengths = torch.tensor([3, 200], dtype=torch.int32, device="cuda")
    args = ForwardArgs(
        q=q, k=k, v=v, k_new=k_new, v_new=v_new, softmax_scale=0.125, causal=True, window_right=0, seqused_k=lengths
    )
    fallback.forward(args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = fallback.forward(args)
    for step in ([10, 100], [10, -1], [255, 0]):  # -1: a row of padding
        lengths.copy_(torch.tensor(step, dtype=torch.int32))
        before = k.clone()
        graph.replay()
        if step[1] < 0:
            assert torch.equal(k[1], before[1]) and not out[1].any() and lse[1].isneginf().all()
        want = fallback.forward(args)
        assert_close(out.cpu(), want[0].cpu().double(), TOLERANCE[torch.bfloat16], "out")
        assert_close(lse.cpu(), want[1].cpu().double(), LSE_TOLERANCE[torch.bfloat16], "lse")
