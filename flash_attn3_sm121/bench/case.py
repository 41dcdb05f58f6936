"""A workload's tensors. They are seeded, and memory that a call must not read holds large values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.bench.workloads import Workload

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "e4m3": torch.float8_e4m3fn}
POISON = 30.0  # the value beyond the used length of a cache: reading it changes the result visibly


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Tensors of one call in upstream's layouts. `k` and `v` are pages when `page_table` is there."""

    workload: Workload
    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor | None = None
    cu_seqlens: Tensor | None = None
    cache_seqlens: Tensor | None = None
    page_table: Tensor | None = None

    @property
    def scale(self) -> float:
        return float(self.workload.head_dim**-0.5)

    def sequence(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(q, k, v, dout) of one sequence, (s, h, d) each, gathered from pages where need be."""
        rows, keys = self.workload.sequences[i]
        if self.workload.kind == "packed":
            start = sum(self.workload.lengths[:i])
            part = slice(start, start + rows)
            return self.q[part], self.k[part], self.v[part], None if self.dout is None else self.dout[part]
        if self.page_table is not None:
            k, v = (_pages(x, self.page_table[i].long()).flatten(0, 1)[:keys] for x in (self.k, self.v))
            return self.q[i], k, v, None
        return self.q[i], self.k[i, :keys], self.v[i, :keys], None if self.dout is None else self.dout[i]


def _pages(cache: Tensor, table: Tensor) -> Tensor:
    """The pages of one sequence; e4m3 by bytes, as torch 2.9 does not index it on a CPU."""
    return cache.view(torch.uint8)[table].view(cache.dtype) if cache.dtype.itemsize == 1 else cache[table]


def build(workload: Workload, device: torch.device, *, seed: int = 0) -> Case:
    """The tensors of a workload: the same numbers in every run and on every machine."""
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[workload.dtype]
    dtype_kv = DTYPES[workload.dtype_kv or workload.dtype]

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        if device.type == "meta":  # shapes alone: what `--count` asks for
            return torch.empty(shape, dtype=dtype, device=device)
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    heads, heads_kv, dim = workload.heads, workload.heads_kv, workload.head_dim
    if workload.kind == "packed":
        total = sum(workload.lengths)
        bounds = torch.tensor([0, *workload.lengths]).cumsum(0).to(torch.int32).to(device)
        q, k, v = normal(total, heads, dim), normal(total, heads_kv, dim), normal(total, heads_kv, dim)
        return Case(
            workload=workload, q=q, k=k, v=v, cu_seqlens=bounds, dout=normal(*q.shape) if workload.backward else None
        )
    q = normal(workload.batch, workload.q_len, heads, dim)
    k, v = (normal(workload.batch, workload.k_len, heads_kv, dim, dtype=dtype_kv) for _ in range(2))
    if workload.kind == "dense":
        return Case(workload=workload, q=q, k=k, v=v, dout=normal(*q.shape) if workload.backward else None)
    used = torch.tensor(workload.lengths, dtype=torch.int32)
    for b, length in enumerate(workload.lengths):
        k[b, length:] = POISON
        v[b, length:] = POISON
    if workload.kind == "cache":
        return Case(workload=workload, q=q, k=k, v=v, cache_seqlens=used.to(device))
    pages = workload.k_len // workload.page_size
    order = torch.randperm(workload.batch * pages, generator=generator)
    table = order.view(workload.batch, pages)

    def paged(x: Tensor) -> Tensor:
        out = torch.empty_like(x).view(-1, workload.page_size, heads_kv, dim)
        out[table.flatten().to(device)] = x.view(-1, workload.page_size, heads_kv, dim)
        return out

    return Case(
        workload=workload,
        q=q,
        k=paged(k),
        v=paged(v),
        cache_seqlens=used.to(device),
        page_table=table.to(torch.int32).to(device),
    )
