"""Determinism: the same call again gives the same bits. Backward too, where it was asked to be deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ci.prove.gpu.probes.compare import Finding, GpuCase, Rule, random, same_bits
from ci.prove.gpu.probes.forward import CAUSAL, LOCAL, PACKED, Dense, offsets
from flash_attn3_sm121 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache

TIMES = 5


def repeated(name: str, make: Callable[[torch.device, torch.dtype], Callable[[], tuple[Tensor, ...]]]) -> GpuCase:
    """`make` gives a call without arguments; it is called again and again, other work in between."""

    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        call = make(device, dtype)
        first = tuple(x.clone() for x in call())
        for again in range(1, TIMES):
            random(device, dtype, 64, 1024).sum()
            for place, (one, two) in enumerate(zip(first, call(), strict=True)):
                yield same_bits(f"result {place}, time {again + 1}", two, one)

    return GpuCase(name=f"again: {name}", findings=findings)


def _forward(facts: Dense) -> GpuCase:
    def make(device: torch.device, dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
        q, k, v = facts.tensors(device, dtype)
        return lambda: tuple(flash_attn_func(q, k, v, **facts.arguments, return_attn_probs=True))

    return repeated(f"forward, {facts.name}", make)


def _backward(facts: Dense) -> GpuCase:
    def make(device: torch.device, dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
        q, k, v = tensors = facts.tensors(device, dtype)
        for tensor in tensors:
            tensor.requires_grad_()
        weight = random(device, dtype, 2, facts.lengths[0], facts.heads[0], facts.dim)

        def call() -> tuple[Tensor, ...]:
            out = flash_attn_func(q, k, v, **facts.arguments, deterministic=True)
            return torch.autograd.grad(out, tensors, weight)

        return call

    return repeated(f"deterministic backward, {facts.name}", make)


def _varlen(dim: int) -> GpuCase:
    def make(device: torch.device, dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
        cu, total, largest = offsets(PACKED, device), sum(PACKED), max(PACKED)
        q, k, v = (random(device, dtype, total, 4, dim) for _ in range(3))
        return lambda: tuple(
            flash_attn_varlen_func(q, k, v, cu, cu, largest, largest, causal=True, return_attn_probs=True)
        )

    return repeated(f"packed, d {dim}", make)


def _paged(dim: int, splits: int) -> GpuCase:
    def make(device: torch.device, dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
        q = random(device, dtype, 3, 1, 6, dim)
        k, v = (random(device, dtype, 24, 64, 2, dim) for _ in range(2))
        table = torch.randperm(24).reshape(3, 8).to(torch.int32).to(device)
        lengths = torch.tensor((70, 500, 381), dtype=torch.int32, device=device)

        def call() -> tuple[Tensor, ...]:
            out, lse, *_ = flash_attn_with_kvcache(
                q, k, v, page_table=table, cache_seqlens=lengths, num_splits=splits, return_softmax_lse=True
            )
            return out, lse

        return call

    return repeated(f"paged, d {dim}, num_splits {splits}", make)


def ordered_backward() -> tuple[GpuCase, ...]:
    shapes = [(dim, mask) for dim in (64, 128, 192) for mask in (CAUSAL, LOCAL)]
    return tuple(_backward(Dense(dim=dim, rule=Rule(mask=mask), lengths=(1024, 1024))) for dim, mask in shapes)


def cases() -> tuple[GpuCase, ...]:
    cases = [
        _forward(Dense(dim=dim, rule=Rule(mask=m), lengths=(512, 513)))
        for dim in (64, 128, 256)
        for m in (CAUSAL, LOCAL)
    ]
    cases += ordered_backward()
    cases += [_varlen(dim) for dim in (64, 128)]
    cases += [_paged(dim, splits) for dim in (64, 128) for splits in (1, 4)]
    return tuple(cases)
