"""Calls on K and V in e4m3 as a kernel of the mma.sync families gets them: a 16-bit Q, and nothing to append."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.native.buildfacts import BuildFacts
from tests.fakes.libraries import SM8X, Kernels, engine
from tests.fallback.reference import FP8


def decode(*, paged: bool = False, q: torch.dtype = torch.bfloat16, **more: Any) -> ForwardArgs:
    generator = torch.Generator().manual_seed(0)
    shape = (6, 4, 2, 16) if paged else (3, 8, 2, 16)
    k, v = (torch.randn(shape, generator=generator).to(FP8) for _ in range(2))
    given: dict[str, Any] = {"q": torch.randn(3, 2, 4, 16, generator=generator).to(q), "k": k, "v": v}
    given |= {name: torch.rand(3, 2, generator=generator) + 0.5 for name in ("q_descale", "k_descale", "v_descale")}
    if paged:
        given["page_table"] = torch.tensor([[5, 1], [2, 0], [4, 3]], dtype=torch.int32)
    lengths = torch.tensor([0, -1, 5], dtype=torch.int32)
    return ForwardArgs(**given, seqused_k=lengths, softmax_scale=0.25, causal=True, window_right=0, **more)


def new(kind: torch.dtype, **rotary: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {name: (torch.randn(3, 2, 2, 16, generator=generator) * 9).to(kind) for name in ("k_new", "v_new")} | rotary


COS, SIN = torch.linspace(0, 1, 64).view(8, 8).bfloat16(), torch.linspace(1, 0, 64).view(8, 8).bfloat16()
ANGLES = {"rotary_cos": COS.to(FP8), "rotary_sin": SIN.to(FP8)}  # in the type of Q, as upstream has it
NEW = {
    "converted": new(torch.bfloat16),
    "as they are": new(FP8),
    "turned": new(torch.bfloat16, rotary_cos=COS, rotary_sin=SIN, rotary_interleaved=False),
}


@pytest.mark.parametrize("paged", [False, True], ids=["dense", "paged"])
@pytest.mark.parametrize("name", NEW)
def test_new_keys_are_written_before_the_kernel_reads(name: str, paged: bool) -> None:
    """The fallback appends by itself: the same bytes, and the same output but for a padded row, which has no key."""
    kernels = Kernels()
    args, right = (decode(paged=paged, **NEW[name]) for _ in range(2))
    out, lse, *_ = engine(kernels.open).forward(args)
    wanted, wanted_lse = fallback.forward(right)
    (call,) = kernels.calls
    assert call.k_new is None and call.rotary_cos is None and call.seqused_k is not None
    assert call.seqused_k.tolist() == [2, 0, 7] and call.q_descale is None
    for cache, other in ((args.k, right.k), (args.v, right.v)):
        assert torch.equal(cache.view(torch.uint8), other.view(torch.uint8))
    torch.testing.assert_close(out[::2], wanted[::2])
    torch.testing.assert_close(lse[::2], wanted_lse[::2])
    assert (out[1] == 0).all()


def test_what_is_written_is_divided_by_its_scale_and_stays_finite() -> None:
    args = decode(**new(torch.bfloat16))
    assert args.k_new is not None and args.k_descale is not None
    args.k_new[0, 0, 0, 0] = 3000.0
    wanted = (args.k_new[0].float() / args.k_descale[0, None, :, None]).clamp(-448, 448).to(FP8)
    fallback.forward(args)
    assert torch.equal(args.k[0, :2].float(), wanted.float()) and args.k[0, 0, 0, 0].float() == 448


WITHOUT = replace(SM8X, features=tuple(word for word in SM8X.features if word != "fp8"))


def test_a_q_in_fp8_is_widened_and_keeps_its_scale() -> None:
    kernels = Kernels()
    args = decode(q=FP8)
    out, *_ = engine(kernels.open, facts=WITHOUT).forward(args)
    (call,) = kernels.calls
    assert call.q.dtype == out.dtype == torch.bfloat16 and torch.equal(call.q.float(), args.q.float())
    assert call.q_descale is args.q_descale


def test_a_q_in_fp8_stays_where_kernels_multiply_it() -> None:
    kernels = Kernels()
    args = decode(q=FP8, **NEW["as they are"])
    engine(kernels.open).forward(args)
    (call,) = kernels.calls
    assert call.q is args.q and call.q_descale is args.q_descale and call.k_new is None


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_a_q_in_fp8_that_is_turned_has_16_bits_and_its_scale_in_it(packed: bool, scaled: bool) -> None:
    """The fallback keeps fp32 there, so the outputs are as near as a Q in bf16 is."""
    kernels = Kernels()
    turned = new(FP8, **ANGLES, rotary_interleaved=False)
    args, right = (decode(q=FP8, **turned) for _ in range(2))
    if packed:
        flat = {"q": args.q.flatten(0, 1), "cu_seqlens_q": torch.tensor([0, 2, 4, 6], dtype=torch.int32)}
        args, right = (replace(some, **flat, max_seqlen_q=2) for some in (args, right))
    if not scaled:
        args, right = (replace(some, q_descale=None) for some in (args, right))
    out, lse, *_ = engine(kernels.open).forward(args)
    wanted, wanted_lse = fallback.forward(right)
    (call,) = kernels.calls
    assert call.q.dtype == out.dtype == wanted.dtype == torch.bfloat16 and call.k.dtype == FP8
    assert (call.k_new, call.rotary_cos, call.q_descale) == (None, None, None)
    assert torch.equal(args.k.view(torch.uint8), right.k.view(torch.uint8))
    mine, theirs = (x.view(3, 2, 4, 16)[::2].float() for x in (out, wanted))
    torch.testing.assert_close(mine, theirs, atol=3e-2, rtol=3e-2)
    pick = slice(None) if packed else slice(None, None, 2)
    torch.testing.assert_close(lse[pick], wanted_lse[pick], atol=3e-2, rtol=1e-2)


def test_a_q_in_fp8_is_tried_with_both_kinds_of_kernels() -> None:
    """The canary of the kernels that multiply it says nothing of those that widen."""
    kernels = Kernels()
    serving = engine(kernels.open, canary=True)
    serving.forward(decode(q=FP8))
    serving.forward(decode(q=FP8, **new(FP8, **ANGLES)))
    assert [call.q.dtype for call in kernels.calls] == [FP8, FP8, torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize(("facts", "kind"), [(WITHOUT, torch.bfloat16), (SM8X, FP8)], ids=["widened", "as it is"])
def test_the_canary_is_sent_in_the_types_of_the_kernel(facts: BuildFacts, kind: torch.dtype) -> None:
    kernels = Kernels()
    serving = engine(kernels.open, facts=facts, canary=True)
    serving.forward(decode(q=FP8))
    first, *_ = kernels.calls
    assert (first.q.dtype, first.k.dtype, len(kernels.calls)) == (kind, FP8, 2)
    spoilt = Kernels(lambda out: out.mul_(2))
    with pytest.warns(RuntimeWarning, match="the canary found wrong results"):
        engine(spoilt.open, canary=True).forward(decode())
    assert len(spoilt.calls) == 1
