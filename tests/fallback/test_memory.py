"""No temporary grows with queries times keys where the mask is a band, lengths differ, or one token is decoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.fallback import host, static
from tests.fallback.operators import Largest


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def largest(engine: Any, args: ForwardArgs) -> int:
    with Largest(args.q, args.k, args.v) as seen:
        engine(args)
    assert seen.bytes > 0
    return seen.bytes


MASKS = {
    "window": {"causal": True, "window_left": 127, "window_right": 0},
    "chunk": {"causal": True, "attention_chunk": 128, "window_right": 0},
    "causal": {"causal": True, "window_right": 0},
    "window, softcap": {"causal": True, "window_left": 127, "window_right": 0, "softcap": 5.0},
}


@pytest.mark.parametrize("name", MASKS)
def test_forward_grows_with_the_rows_only(name: str) -> None:
    found = []
    for length in (4096, 8192):
        q, k, v = tensors((1, length, 2, 16), (1, length, 1, 16), (1, length, 1, 16))
        found.append(largest(host.forward, ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, **MASKS[name])))
    assert found[1] <= 2.1 * found[0], "twice the length must not take four times the memory"
    assert found[1] < 8192 * 8192 // 8


@pytest.mark.parametrize("dlse", [False, True], ids=["out", "lse"])
@pytest.mark.parametrize("name", ["window", "causal", "window, softcap"])
def test_backward_grows_with_the_rows_only(name: str, dlse: bool) -> None:
    found = []
    for length in (2048, 4096):
        q, k, v, dout = tensors((1, length, 2, 16), (1, length, 1, 16), (1, length, 1, 16), (1, length, 2, 16))
        out, lse = fallback.forward(ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, **MASKS[name]))
        gradient = torch.ones_like(lse) if dlse else None
        args = BackwardArgs(
            dout=dout, q=q, k=k, v=v, out=out, softmax_lse=lse, dlse=gradient, softmax_scale=0.25, **MASKS[name]
        )
        with Largest(q, k, v, out, lse, dout) as seen:
            fallback.backward(args)
        found.append(seen.bytes)
    limit = 2.1 * found[0] if "causal" not in name or not dlse else 16 << 20
    assert found[1] <= max(limit, 5 << 20)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_packed_sequences_never_meet(softcap: float) -> None:
    offsets = torch.arange(0, 8193, 512, dtype=torch.int32)
    q, k, v = tensors((8192, 2, 16), (8192, 1, 16), (8192, 1, 16))
    args = ForwardArgs(
        q=q, k=k, v=v, softmax_scale=0.25, softcap=softcap, cu_seqlens_q=offsets, cu_seqlens_k=offsets, causal=True
    )
    assert largest(host.forward, args) <= 16 << 20  # 8192 squared would be 64 Mi entries


@pytest.mark.parametrize("window", [-1, 1023], ids=["full", "window"])
@pytest.mark.parametrize("engine", [host.forward, static.forward], ids=["host", "static"])
def test_decoding_copies_no_cache(engine: Any, window: int) -> None:
    q, k, v = tensors((4, 1, 4, 16), (4, 16384, 2, 16), (4, 16384, 2, 16))
    lengths = torch.tensor([16384, 100, 9000, 0], dtype=torch.int32)
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, causal=True, window_left=window, seqused_k=lengths)
    found = largest(engine, args)
    assert found < k.untyped_storage().nbytes(), "less than the cache itself"
    if engine is host.forward:
        assert found < 1 << 16


def test_a_window_reads_only_the_pages_it_sees() -> None:
    q, k, v = tensors((1, 1, 4, 16), (256, 64, 2, 16), (256, 64, 2, 16))
    table = torch.randperm(256, generator=torch.Generator().manual_seed(0)).to(torch.int32).view(1, 256)
    lengths = torch.tensor([256 * 64], dtype=torch.int32)
    args = ForwardArgs(
        q=q, k=k, v=v, softmax_scale=0.25, causal=True, window_left=127, seqused_k=lengths, page_table=table
    )
    assert largest(host.forward, args) <= 4 * 64 * 2 * 16 * 4
