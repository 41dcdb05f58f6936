"""Backward cases: gradients of q, k and v against autograd through the plain formula."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ci.prove.gpu.probes.compare import Finding, GpuCase, Rule, attention, close, random
from ci.prove.gpu.probes.forward import CAUSAL, FULL, HEAD_DIMS, LOCAL, MASKS, PACKED, Dense, offsets
from flash_attn3_sm121 import flash_attn_func, flash_attn_varlen_func

LENGTHS = ((97, 97), (113, 203), (203, 113), (512, 512))
NAMES = ("dq", "dk", "dv")
SOFTCAP_EXTRA = 3e-4  # upstream's allowance


def plain_gradients(tensors: tuple[Tensor, ...], weight: Tensor, rule: Rule, dtype: torch.dtype) -> tuple[Tensor, ...]:
    inputs = [x.detach().to(dtype).requires_grad_() for x in tensors]
    out, _ = attention(inputs[0], inputs[1], inputs[2], rule)
    return torch.autograd.grad(out, inputs, weight.to(dtype))


def judged(grads: tuple[Tensor, ...], tensors: tuple[Tensor, ...], weight: Tensor, rule: Rule) -> Iterator[Finding]:
    exact = plain_gradients(tensors, weight, rule, torch.float64)
    low = plain_gradients(tensors, weight, rule, tensors[0].dtype)
    extra = SOFTCAP_EXTRA if rule.softcap else 0.0
    for name, got, want, near in zip(NAMES, grads, exact, low, strict=True):
        yield close(name, got, want, near, softcap=rule.softcap, extra=extra)


def dense(facts: Dense) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        q, k, v = tensors = facts.tensors(device, dtype)
        for tensor in tensors:
            tensor.requires_grad_()
        out = flash_attn_func(q, k, v, **facts.arguments)
        weight = random(device, dtype, *out.shape)
        yield from judged(torch.autograd.grad(out, tensors, weight), tensors, weight, facts.rule)

    return GpuCase(name=f"backward: {facts.name}", findings=findings)


def _varlen(dim: int, mask_name: str) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        rule, cu, total = Rule(mask=MASKS[mask_name]), offsets(PACKED, device), sum(PACKED)
        q = random(device, dtype, total, 4, dim).requires_grad_()
        k, v = (random(device, dtype, total, 2, dim).requires_grad_() for _ in range(2))
        mask, largest = rule.mask, max(PACKED)
        out = flash_attn_varlen_func(
            q, k, v, cu, cu, largest, largest, causal=mask.causal, window_size=(mask.left, mask.right)
        )
        weight = random(device, dtype, *out.shape)
        grads = torch.autograd.grad(out, (q, k, v), weight)
        for row, (start, length) in enumerate(zip(cu.tolist()[:-1], PACKED, strict=True)):
            if length:
                part = slice(start, start + length)
                mine, own = (tuple(x[part][None] for x in tensors) for tensors in (grads, (q, k, v)))
                for finding in judged(mine, own, weight[part][None], rule):
                    yield Finding(what=f"{finding.what} {row}", error=finding.error, allowed=finding.allowed)

    return GpuCase(name=f"backward: packed, d {dim}, {mask_name}, one empty", findings=findings)


def cases() -> tuple[GpuCase, ...]:
    cases = [
        dense(Dense(dim=dim, rule=Rule(mask=mask), lengths=lengths))
        for lengths in LENGTHS
        for mask in (FULL, CAUSAL, LOCAL)
        for dim in HEAD_DIMS
    ]
    cases += [dense(Dense(dim=dim, rule=Rule(mask=mask, softcap=15.0))) for dim in HEAD_DIMS for mask in (FULL, CAUSAL)]
    cases += [
        dense(Dense(dim=64, rule=Rule(mask=CAUSAL), heads=heads, about=f"heads {heads[0]}/{heads[1]}"))
        for heads in ((6, 1), (6, 2), (4, 4))
    ]
    cases += [
        dense(Dense(dim=dim, rule=Rule(mask=CAUSAL), about="deterministic", options={"deterministic": True}))
        for dim in HEAD_DIMS
    ]
    cases += [_varlen(dim, name) for dim in HEAD_DIMS for name in ("full", "causal", "window (64, 0)")]
    return tuple(cases)
