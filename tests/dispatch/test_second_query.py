"""Calls with a second query, or a V of more than 256 columns, as the kernels of the mma.sync families get them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import ForwardArgs
from tests.fakes.libraries import SM8X, Kernels, engine

WITHOUT = replace(SM8X, features=tuple(word for word in SM8X.features if word != "qv"))


def decode(dim_v: int = 264, *, qv: bool = True, **more: Any) -> ForwardArgs:
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    given: dict[str, Any] = {"q": made(2, 1, 4, 64), "k": made(2, 9, 1, 64), "v": made(2, 9, 1, dim_v)}
    given |= {"qv": made(2, 1, 4, dim_v) if qv else None, "k_new": made(2, 1, 1, 64), "v_new": made(2, 1, 1, dim_v)}
    lengths = torch.tensor([3, 7], dtype=torch.int32)
    return ForwardArgs(**given, seqused_k=lengths, softmax_scale=0.05, causal=True, window_right=0, **more)


@pytest.mark.parametrize("qv", [True, False])
def test_new_keys_are_written_before_the_kernel_reads(qv: bool) -> None:
    kernels = Kernels()
    args, right = decode(qv=qv), decode(qv=qv)
    out, *_ = engine(kernels.open).forward(args)
    (call,) = kernels.calls
    assert call.k_new is None and call.seqused_k is not None and call.seqused_k.tolist() == [4, 8]
    assert call.qv is args.qv
    torch.testing.assert_close(out, fallback.forward(right)[0])
    assert torch.equal(args.k, right.k) and torch.equal(args.v, right.v)


def test_kernels_write_them_for_other_calls() -> None:
    kernels = Kernels()
    engine(kernels.open).forward(decode(64, qv=False))
    (call,) = kernels.calls
    assert call.k_new is not None


@pytest.mark.parametrize("qv", [True, False])
def test_a_library_without_these_kernels_is_not_asked(qv: bool) -> None:
    kernels = Kernels()
    with pytest.warns(RuntimeWarning, match="built without: qv.* make wheel PROFILE=full"):
        out, *_ = engine(kernels.open, facts=WITHOUT).forward(decode(qv=qv))
    assert not kernels.calls
    torch.testing.assert_close(out, fallback.forward(decode(qv=qv))[0])


def test_these_kernels_have_a_canary_of_their_own() -> None:
    """One with a second query, one for the wide V without; beside that of other calls."""
    kernels = Kernels()
    serving = engine(kernels.open, canary=True)
    for args in (decode(64, qv=False), decode(), decode(), decode(qv=False)):
        serving.forward(args)
    sent = [(call.v.shape[-1], call.qv is not None) for call in kernels.calls if call.q.shape[1] > 1]
    assert sent == [(64, False), (264, True), (264, False)]
    spoilt = Kernels(lambda out: out.mul_(2))
    with pytest.warns(RuntimeWarning, match="the canary found wrong results"):
        engine(spoilt.open, canary=True).forward(decode())
