"""torch.compile, one graph without breaks, forward and backward, against the plain formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ci.prove.gpu.probes import backward, forward
from ci.prove.gpu.probes.compare import Finding, GpuCase, Rule, random
from ci.prove.gpu.probes.forward import CAUSAL, LOCAL, PACKED, Dense, offsets
from flash_attn3_sm121 import flash_attn_func, flash_attn_varlen_func


def compiled(function: Any, device: torch.device) -> Any:
    """The backend of torch.compile. On a CPU only tracing is tested: Inductor takes a C++ compiler and minutes."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="inductor" if device.type == "cuda" else "aot_eager")


def _forward(tensors: tuple[Tensor, ...], out: Tensor, lse: Tensor, rule: Rule) -> Iterator[Finding]:
    q, k, v = (x.detach() for x in tensors)
    yield from forward.judged(q, k, v, out.detach(), lse.detach(), rule)


def _dense(facts: Dense) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        tensors = facts.tensors(device, dtype)
        for tensor in tensors:
            tensor.requires_grad_()

        def model(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            out, lse = flash_attn_func(q * 1.0, k, v, **facts.arguments, return_attn_probs=True)
            return out, lse

        out, lse = compiled(model, device)(*tensors)
        yield from _forward(tensors, out, lse, facts.rule)
        weight = random(device, dtype, *out.shape)
        yield from backward.judged(torch.autograd.grad(out, tensors, weight), tensors, weight, facts.rule)

    return GpuCase(name=f"compile: {facts.name}", findings=findings)


def _varlen() -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        cu, largest = offsets(PACKED, device), max(PACKED)
        tensors = tuple(random(device, dtype, sum(PACKED), heads, 64).requires_grad_() for heads in (4, 2, 2))

        def model(q: Tensor, k: Tensor, v: Tensor) -> Any:
            return flash_attn_varlen_func(q, k, v, cu, cu, largest, largest, causal=True, return_attn_probs=True)

        out, lse = compiled(model, device)(*tensors)
        weight = random(device, dtype, *out.shape)
        grads = torch.autograd.grad(out, tensors, weight)
        start, length = int(cu[-2]), PACKED[-1]
        part = slice(start, start + length)
        own, mine = (tuple(x.detach()[part][None] for x in some) for some in (tensors, grads))
        rule = Rule(mask=CAUSAL)
        yield from _forward(own, out[part][None], lse[:, part][None], rule)
        yield from backward.judged(mine, own, weight[part][None], rule)

    return GpuCase(name="compile: packed, d 64, causal", findings=findings)


def cases() -> tuple[GpuCase, ...]:
    return (
        _dense(Dense(dim=64, rule=Rule(mask=CAUSAL))),
        _dense(Dense(dim=128, rule=Rule(mask=LOCAL))),
        _varlen(),
    )
