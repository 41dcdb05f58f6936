"""The cases: what is called, and what the plain formula gives for it. Small shapes, every feature, seeded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from flash_attn3_sm121.selftest import lengths, reference
from flash_attn3_sm121.selftest.reference import Case, Mask, random

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def _dense(mask: Mask, *, dim: int, sq: int = 113, sk: int = 203, kv_heads: int = 2, softcap: float = 0.0) -> Case:
    def results(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
        from flash_attn3_sm121 import flash_attn_func

        q = random(device, dtype, 2, sq, 4, dim)
        k, v = (random(device, dtype, 2, sk, kv_heads, dim) for _ in range(2))
        window = (mask.left, mask.right)
        out, lse = flash_attn_func(
            q,
            k,
            v,
            causal=mask.causal,
            window_size=window,
            attention_chunk=mask.chunk,
            softcap=softcap,
            return_attn_probs=True,
        )
        wanted, wanted_lse = reference.batch(q.cpu(), k.cpu(), v.cpu(), mask, softcap=softcap)
        yield "out", out, wanted
        yield "lse", lse, wanted_lse

    parts = [f"d {dim}", "causal" if mask.causal else "full"]
    parts += [f"window ({mask.left}, {mask.right})"] if mask.left >= 0 or mask.right >= 0 else []
    parts += [f"chunk {mask.chunk}"] if mask.chunk else []
    parts += [f"softcap {softcap:g}"] if softcap else []
    parts += [f"{4 // kv_heads} heads a kv head"] if kv_heads != 4 else []
    parts += ["more queries than keys"] if sq > sk else []
    return Case(name=f"forward: {', '.join(parts)}", results=results)


def _backward(mask: Mask, *, dim: int, softcap: float = 0.0) -> Case:
    def results(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
        import torch

        from flash_attn3_sm121 import flash_attn_func

        q = random(device, dtype, 2, 97, 4, dim).requires_grad_()
        k, v = (random(device, dtype, 2, 97, 2, dim).requires_grad_() for _ in range(2))
        weight = torch.randn(2, 97, 4, dim)
        window = (mask.left, mask.right)
        out = flash_attn_func(q, k, v, causal=mask.causal, window_size=window, softcap=softcap)
        grads = torch.autograd.grad(out, (q, k, v), weight.to(out))
        plain = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
        wanted_out, _ = reference.batch(plain[0], plain[1], plain[2], mask, softcap=softcap)
        wanted_grads = torch.autograd.grad(wanted_out, plain, weight.to(dtype).double())
        yield from zip(("dq", "dk", "dv"), grads, wanted_grads, strict=True)

    kind = "causal" if mask.causal else "full"
    local = f", window ({mask.left}, {mask.right})" if mask.left >= 0 else ""
    return Case(name=f"backward: d {dim}, {kind}{local}{', softcap' if softcap else ''}", results=results)


def _varlen() -> Case:
    def results(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
        import torch

        from flash_attn3_sm121 import flash_attn_varlen_func

        lengths = (5, 0, 64, 33)
        ends = torch.tensor((0, *lengths)).cumsum(0)
        q = random(device, dtype, int(ends[-1]), 4, 64)
        k, v = (random(device, dtype, int(ends[-1]), 2, 64) for _ in range(2))
        cu = ends.to(torch.int32).to(device)
        out = flash_attn_varlen_func(q, k, v, cu, cu, max(lengths), max(lengths), causal=True)
        mask = Mask(causal=True)
        rows = [
            reference.sequence(q.cpu()[a:b], k.cpu()[a:b], v.cpu()[a:b], mask)[0]
            for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ]
        yield "out", out, torch.cat(rows)

    return Case(name="forward: packed sequences, one of them empty", results=results)


def _combine() -> Case:
    def results(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
        import torch

        from flash_attn3_sm121 import flash_attn_combine

        parts = torch.randn(3, 2, 17, 4, 64)
        lse = torch.randn(3, 2, 17, 4)
        lse[1, 0, 3] = float("-inf")
        strided = lse.transpose(-1, -2).contiguous().transpose(-1, -2).to(device)
        out, total = flash_attn_combine(parts.to(device), strided)
        wanted_lse = torch.logsumexp(lse.double(), dim=0)
        wanted = (torch.exp(lse.double() - wanted_lse)[..., None] * parts.double()).sum(0)
        yield "out", out, wanted
        yield "lse", total, wanted_lse

    return Case(name="combine: three splits, one empty", results=results)


def cases() -> tuple[Case, ...]:
    """All of them; about fifty, each a fraction of a second."""
    causal, full = Mask(causal=True), Mask()
    chosen = [_dense(mask, dim=dim) for dim in (16, 32, 64, 96, 128, 192, 256) for mask in (causal, full)]
    chosen += [_dense(Mask(left=17, right=0), dim=dim) for dim in (64, 128, 256)]
    chosen += [_dense(Mask(left=9, right=21), dim=64), _dense(Mask(causal=True, chunk=32), dim=64)]
    chosen += [_dense(causal, dim=dim, softcap=15.0) for dim in (64, 128)]
    chosen += [_dense(causal, dim=64, kv_heads=heads) for heads in (1, 4)]
    chosen += [_dense(causal, dim=128, sq=200, sk=77)]  # rows that see no key at all
    chosen += [_backward(mask, dim=dim) for dim in (32, 64, 128, 256) for mask in (causal, full)]
    chosen += [_backward(Mask(left=17, right=0), dim=64), _backward(causal, dim=64, softcap=15.0)]
    chosen += [_varlen(), _combine()]
    ragged = partial(lengths.append, held=(70, 0, 181), interleaved=True)
    chosen += [ragged(new=3, splits=splits, paged=paged) for paged in (False, True) for splits in (1, 4)]
    chosen += [ragged(new=3, splits=1, turned=32), ragged(new=1, splits=1, turned=32, paged=True)]
    return (*chosen, *lengths.cases())
