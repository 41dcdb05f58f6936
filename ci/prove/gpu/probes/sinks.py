"""Attention sinks and gradients of the LSE, forward and backward, against autograd through the plain formula."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from ci.prove.gpu.probes.compare import Finding, GpuCase, close, close_lse, random
from ci.prove.gpu.probes.forward import MASKS
from flash_attn3_sm121 import flash_attn_func
from flash_attn3_sm121.selftest.reference import Mask

NAMES = ("dq", "dk", "dv", "dsinks")


def _formula(tensors: tuple[Tensor, ...], mask: Mask, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """(inputs, out, lse) of q, k, v and perhaps sinks, every product in `dtype`, the softmax in fp32 at least."""
    q, k, v, *sinks = inputs = [x.detach().to(dtype).requires_grad_() for x in tensors]
    wide_k, wide_v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, wide_k * q.shape[-1] ** -0.5)
    hidden = ~mask.keep(q.shape[1], k.shape[1]).to(q.device)
    scores = scores.masked_fill(hidden, -torch.inf)
    every = [scores, *(sink[None, :, None, None].expand(*scores.shape[:3], 1) for sink in sinks)]
    wide = torch.promote_types(dtype, torch.float32)
    lse = torch.cat(every, -1).to(wide).logsumexp(-1)
    weights = (scores.to(wide) - lse[..., None]).exp().to(dtype)
    return inputs, torch.einsum("bhqk,bkhd->bqhd", weights, wide_v), lse


def _case(dim: int, mask: str, *, sinks: bool, dlse: bool, heads: tuple[int, int]) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        q = random(device, dtype, 2, 130, heads[0], dim)
        k, v = (random(device, dtype, 2, 200, heads[1], dim) for _ in range(2))
        rule = MASKS[mask]
        sink: tuple[Tensor, ...] = (3.0 + torch.randn(heads[0]).to(device),) if sinks else ()
        given = tuple(x.requires_grad_() for x in (q, k, v, *sink))
        out, lse = flash_attn_func(
            q, k, v, causal=rule.causal, window_size=(rule.left, rule.right), return_attn_probs=True,
            s_aux=sink[0] if sinks else None,
        )  # fmt: skip
        weights = random(device, dtype, *out.shape), torch.randn(*lse.shape).to(device) * (1.0 if dlse else 0.0)
        sides = [_formula(given, rule, kind) for kind in (torch.float64, dtype)]
        (_, exact, exact_lse), (_, low, _) = sides
        yield close("out", out, exact, low)
        yield close_lse(lse.detach(), exact_lse.detach())
        loss = (out * weights[0]).sum() + ((lse * weights[1]).sum() if dlse else 0.0)
        found = torch.autograd.grad(loss, given)
        wanted = [
            torch.autograd.grad((o * weights[0].to(o)).sum() + (s * weights[1].to(s)).sum(), inputs)
            for inputs, o, s in sides
        ]
        for name, got, want, near in zip(NAMES, found, *wanted, strict=False):
            # The sinks' gradient is a sum over all rows of a head, whose terms the formula rounds one by one.
            yield close(name, got, want, near, extra=2e-2 * float(want.abs().max()) if name == "dsinks" else 0.0)

    words = ["sinks"] * sinks + ["a gradient of the LSE"] * dlse
    return GpuCase(name=f"{' and '.join(words)}: d {dim}, {mask}, heads {heads[0]}/{heads[1]}", findings=findings)


def cases() -> tuple[GpuCase, ...]:
    kinds = ((True, False), (False, True), (True, True))
    return tuple(
        _case(dim, mask, sinks=sinks, dlse=dlse, heads=heads)
        for (sinks, dlse), mask, dim, heads in product(kinds, ("causal", "window (64, 0)"), (64, 128), ((4, 2), (8, 1)))
    )
