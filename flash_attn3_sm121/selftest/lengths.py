"""Cases of used lengths and of appended keys that kernels of upstream's get wrong (csrc/README.md says which)."""

from __future__ import annotations

from collections.abc import Iterator
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


def _append(*, dim: int, turned: int, new: int, batch: int, kv_heads: int, splits: int) -> Case:
    """New keys at the end of a cache whose other rows must stay as they are; rotary that is not interleaved."""

    def results(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
        import torch

        from flash_attn3_sm121 import flash_attn_with_kvcache

        held = [(37 * b + 5) % 180 for b in range(batch)]
        caches = [random(device, dtype, batch, 256, kv_heads, dim) for _ in range(2)]
        q, k, v = (random(device, dtype, batch, new, heads, dim) for heads in (2 * kv_heads, kv_heads, kv_heads))
        angles = torch.arange(256)[:, None] * (10.0 ** -torch.linspace(0, 3, max(turned // 2, 1)))[None, :]
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        wanted = [cache.cpu().double() for cache in caches]
        rows = []
        for b, first in enumerate(held):
            one, two, three = (x[b].cpu() for x in (q, k, v))
            if turned:
                one, two = (reference.rotate(x, cos, sin, first, interleaved=False).to(dtype) for x in (one, two))
            for whole, part in zip(wanted, (two, three), strict=True):
                whole[b, first : first + new] = part.double()
            keys, values = (whole[b, : first + new] for whole in wanted)
            rows.append(reference.sequence(one, keys, values, Mask(causal=True))[0])
        out = flash_attn_with_kvcache(
            q,
            caches[0],
            caches[1],
            k=k,
            v=v,
            cache_seqlens=_used(device, *held),
            rotary_cos=cos.to(device) if turned else None,
            rotary_sin=sin.to(device) if turned else None,
            rotary_interleaved=False,
            causal=True,
            num_splits=splits,
        )
        yield "out", out, torch.stack(rows)
        yield "k_cache", caches[0], wanted[0]
        yield "v_cache", caches[1], wanted[1]

    words = [f"d {dim}", f"append {new} of {batch} sequences", f"num_splits {splits}"]
    return Case(name=f"cache: {', '.join(words + [f'rotary {turned}, halves'] * (turned > 0))}", results=results)


def cases() -> tuple[Case, ...]:
    return (
        _forward(splits=1),
        _forward(splits=3),
        _backward(packed=False, kv_heads=4),
        _backward(packed=False, kv_heads=2),
        _backward(packed=True, kv_heads=4),
        *(_append(dim=dim, turned=dim, new=5, batch=3, kv_heads=2, splits=1) for dim in (16, 48, 80)),
        # More tiles than a GPU has blocks for, so that blocks work on several.
        *(
            _append(dim=dim, turned=0, new=70, batch=8, kv_heads=8, splits=splits)
            for dim in (64, 192)
            for splits in (0, 3)
        ),
    )
