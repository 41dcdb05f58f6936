"""Bad values: an exception that says what was found and expected, and a cache that nobody touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import ForwardArgs


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def decode(*, paged: bool = False, **fields: Any) -> ForwardArgs:
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn((6, 4, 2, 16) if paged else (2, 8, 2, 16), generator=generator) for _ in range(2))
    k_new, v_new = (torch.randn(2, 2, 2, 16, generator=generator) for _ in range(2))
    table = {"page_table": ints(0, 1, 2, 3).view(2, 2)} if paged else {}
    defaults = {"seqused_k": ints(3, 4), "softmax_scale": 0.25, "causal": True, "window_right": 0, **table}
    q = torch.randn(2, 2, 4, 16, generator=generator)
    new = {"k_new": k_new, "v_new": v_new}
    return ForwardArgs(q=q, k=k, v=v, **{**new, **defaults, **fields})


ROTARY = {"rotary_cos": torch.ones(5, 8), "rotary_sin": torch.zeros(5, 8)}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "overflow": ({"seqused_k": ints(3, 7)}, r"sequence 1: cache_seqlens 7 \+ 2 new .* capacity of 8"),
    "overflow of one page table": ({"paged": True, "seqused_k": ints(7, 0)}, r"sequence 0: cache_seqlens 7 \+ 2"),
    "missing page": ({"paged": True, "page_table": ints(0, -1, 2, 3).view(2, 2)}, r"page_table\[0, 1\] is -1"),
    "page beyond": ({"paged": True, "page_table": ints(0, 1, 2, 6).view(2, 2)}, r"page_table\[1, 1\] is 6"),
    "batch index beyond": ({"kv_batch_idx": ints(0, 2)}, r"cache_batch_idx\[1\] is 2"),
    "batch index negative": ({"kv_batch_idx": ints(-1, 1)}, r"cache_batch_idx\[0\] is -1"),
    "padding negative": ({"leftpad_k": ints(0, -2)}, r"cache_leftpad\[1\] is -2"),
    "offsets falling": ({"cu_seqlens_k_new": ints(0, 3, 1), "k_new": torch.ones(4, 2, 16)}, "cu_seqlens_k_new"),
    "rotary table too short": ({"seqused_k": ints(3, 4), **ROTARY}, "hold 5 positions, but sequence 1"),
    "used queries beyond": ({"seqused_q": ints(1, 3)}, r"seqused_q\[1\] is 3"),
    "new tokens without lengths": ({"seqused_k": None}, "cache_seqlens"),
    "fp8 cache, other tokens": ({"k_new": torch.ones(2, 2, 2, 16).to(torch.float8_e4m3fn)}, "must have the same dtype"),
}


@pytest.mark.parametrize("name", BAD)
def test_nothing_is_written_before_everything_is_checked(name: str) -> None:
    fields, message = BAD[name]
    args = decode(**fields)
    if args.cu_seqlens_k_new is not None:
        args.v_new = torch.ones_like(args.k_new)
    before = args.k.clone(), args.v.clone()
    with pytest.raises(ValueError, match=message):
        fallback.forward(args)
    assert torch.equal(args.k, before[0]) and torch.equal(args.v, before[1])


@pytest.mark.parametrize("paged", [False, True], ids=["dense", "paged"])
def test_a_cache_may_be_filled_to_the_last_slot(paged: bool) -> None:
    args = decode(paged=paged, seqused_k=ints(6, 6))
    fallback.forward(args)
    stored = args.k[3, 2:] if paged else args.k[1, 6:]
    assert torch.equal(stored, args.k_new[1])


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("cu_seqlens_q", (0, 3, 9)),
        ("cu_seqlens_k", (0, 5, 4)),
        ("cu_seqlens_k", (-1, 2, 4)),
        ("cu_seqlens_k", (1, 5, 8)),
    ],
)
def test_offsets_must_rise_and_stay_inside(field: str, values: tuple[int, ...]) -> None:
    tensors = torch.randn(3, 8, 2, 16).unbind(0)
    args = ForwardArgs(q=tensors[0], k=tensors[1], v=tensors[2], softmax_scale=0.25)
    args.cu_seqlens_q, args.cu_seqlens_k = ints(0, 3, 8), ints(0, 5, 8)
    setattr(args, field, ints(*values))
    with pytest.raises(ValueError, match=f"{field} must rise"):
        fallback.forward(args)


def test_used_keys_beyond_the_row() -> None:
    args = decode(seqused_k=ints(3, 9))
    args.k_new = args.v_new = None
    with pytest.raises(ValueError, match=r"cache_seqlens\[1\] is 9"):
        fallback.forward(args)
