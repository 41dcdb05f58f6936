"""Cases of used lengths and of appended keys that kernels of upstream's get wrong (csrc/README.md says which)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flash_attn3_sm121.selftest import reference
from flash_attn3_sm121.selftest.reference import Case, Mask, random

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROWS, KEYS = 100, 150


def _used(device: torch.device, *counts: int) -> Tensor:
    import torch

    return torch.tensor(counts, dtype=torch.int32, device=device)


def _forward(*, splits: int) -> Case:
    """The rows and keys in use, of sequences that are not packed."""

    def results(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
        from flash_attn3_sm121 import flash_attn_varlen_func

        rows, keys = (9, 100, 1), (150, 37, 129)
        q = random(device, dtype, 3, ROWS, 4, 64)
        k, v = (random(device, dtype, 3, KEYS, 2, 64) for _ in range(2))
        out = flash_attn_varlen_func(
            q,
            k,
            v,
            None,
            None,
            None,
            None,
            seqused_q=_used(device, *rows),
            seqused_k=_used(device, *keys),
            num_splits=splits,
        )
        wanted = q.new_zeros(q.shape).cpu().double()
        for b, (m, n) in enumerate(zip(rows, keys, strict=True)):
            wanted[b, :m] = reference.sequence(q[b, :m].cpu(), k[b, :n].cpu(), v[b, :n].cpu(), Mask())[0]
        yield "out", out, wanted

    return Case(name=f"forward: used rows and keys, num_splits {splits}", results=results)


def _backward(*, packed: bool, kv_heads: int) -> Case:
    """Gradients of the same, or of packed rows of Q against keys that are not packed."""

    def results(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
        import torch

        from flash_attn3_sm121 import flash_attn_varlen_func

        rows, keys = ((ROWS,) * 3, (KEYS,) * 3) if packed else ((9, 100, 1), (150, 37, 129))
        q, weight = random(device, dtype, 3, ROWS, 4, 64).requires_grad_(), torch.randn(3, ROWS, 4, 64)
        k, v = (random(device, dtype, 3, KEYS, kv_heads, 64).requires_grad_() for _ in range(2))
        if packed:
            cu = _used(device, *range(0, 4 * ROWS, ROWS))
            out = flash_attn_varlen_func(q.flatten(0, 1), k, v, cu, None, ROWS, None).view_as(q)
        else:
            used_q, used_k = _used(device, *rows), _used(device, *keys)
            out = flash_attn_varlen_func(q, k, v, None, None, None, None, seqused_q=used_q, seqused_k=used_k)
        grads = torch.autograd.grad(out, (q, k, v), weight.to(out))
        plain = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
        total = torch.zeros((), dtype=torch.float64)
        for b, (m, n) in enumerate(zip(rows, keys, strict=True)):
            right, _ = reference.sequence(plain[0][b, :m], plain[1][b, :n], plain[2][b, :n], Mask())
            total = total + (right * weight[b, :m].to(dtype).double()).sum()
        yield from zip(("dq", "dk", "dv"), grads, torch.autograd.grad(total, plain), strict=True)

    kind = "packed rows against keys that are not" if packed else "used rows and keys"
    return Case(name=f"backward: {kind}{', grouped heads' if kv_heads < 4 else ''}", results=results)


PAGE, CAPACITY = 64, 256


def _paged(cache: Tensor, table: Tensor) -> Tensor:
    """A cache (b, s, hk, d) as pages that lie where the table says."""
    pages = cache.new_empty(table.numel(), PAGE, *cache.shape[2:])
    pages[table.flatten().long()] = cache.view(-1, PAGE, *cache.shape[2:])
    return pages


def append(
    *,
    held: Sequence[int],
    new: int,
    splits: int,
    dim: int = 64,
    turned: int = 0,
    interleaved: bool = False,
    kv_heads: int = 2,
    paged: bool = False,
) -> Case:
    """New keys at the end of a cache whose other positions must stay as they are.

    Args:
        held: how many keys each sequence has before.
        turned: how many dimensions of a head are rotated.
    """

    def results(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
        import torch

        from flash_attn3_sm121 import flash_attn_with_kvcache

        batch = len(held)
        whole = [random(device, dtype, batch, CAPACITY, kv_heads, dim) for _ in range(2)]
        q, k, v = (random(device, dtype, batch, new, heads, dim) for heads in (2 * kv_heads, kv_heads, kv_heads))
        angles = torch.arange(CAPACITY)[:, None] * (10.0 ** -torch.linspace(0, 3, max(turned // 2, 1)))[None, :]
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        wanted = [cache.cpu().double() for cache in whole]
        rows = []
        for b, first in enumerate(held):
            one, two, three = (x[b].cpu() for x in (q, k, v))
            if turned:
                pair = (reference.rotate(x, cos, sin, first, interleaved=interleaved) for x in (one, two))
                one, two = (x.to(dtype) for x in pair)
            for cache, part in zip(wanted, (two, three), strict=True):
                cache[b, first : first + new] = part.double()
            keys, values = (cache[b, : first + new] for cache in wanted)
            rows.append(reference.sequence(one, keys, values, Mask(causal=True))[0])
        table = torch.randperm(batch * CAPACITY // PAGE).view(batch, -1).to(device, torch.int32)
        stored = [_paged(cache, table) for cache in whole] if paged else whole
        out = flash_attn_with_kvcache(
            q,
            stored[0],
            stored[1],
            k=k,
            v=v,
            cache_seqlens=_used(device, *held),
            page_table=table if paged else None,
            rotary_cos=cos.to(device) if turned else None,
            rotary_sin=sin.to(device) if turned else None,
            rotary_interleaved=interleaved,
            causal=True,
            num_splits=splits,
        )
        if paged:
            stored = [pages[table.flatten().long()].view_as(whole[0]) for pages in stored]
        yield "out", out, torch.stack(rows)
        yield "k_cache", stored[0], wanted[0]
        yield "v_cache", stored[1], wanted[1]

    words = [f"d {dim}", f"append {new} to {len(held)} ragged sequences", "paged" if paged else "plain"]
    words += [f"rotary {turned}, {'neighbours' if interleaved else 'halves'}"] if turned else []
    return Case(name=f"cache: {', '.join(words)}, num_splits {splits}", results=results)


def _held(batch: int) -> list[int]:
    return [(37 * b + 5) % 180 for b in range(batch)]


def cases() -> tuple[Case, ...]:
    return (
        _forward(splits=1),
        _forward(splits=3),
        _backward(packed=False, kv_heads=4),
        _backward(packed=False, kv_heads=2),
        _backward(packed=True, kv_heads=4),
        *(append(held=_held(3), new=5, splits=1, dim=dim, turned=dim) for dim in (16, 48, 80)),
        # More tiles than a GPU has blocks for, so that blocks work on several.
        *(append(held=_held(8), new=70, splits=splits, dim=dim, kv_heads=8) for dim in (64, 192) for splits in (0, 3)),
    )
