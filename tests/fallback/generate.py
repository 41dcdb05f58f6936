"""Random calls over the whole grid of features, from one seed; every call is legal."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import ForwardArgs

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DIMS = (8, 16, 24, 32, 40, 64)


@dataclass
class Source:
    """Random choices and tensors; a case is named by its seed alone."""

    seed: int

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def tensor(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Normal numbers; now and then a view with odd strides (the last dimension stays dense)."""
        if self.chance(0.25) and len(shape) >= 3:
            wide = torch.randn(*shape[:-2], shape[-2] + 1, shape[-1] + 8, generator=self.generator)
            return wide.to(dtype)[..., : shape[-2], : shape[-1]]
        return torch.randn(*shape, generator=self.generator).to(dtype)

    def lengths(self, count: int, limit: int) -> list[int]:
        return [self.random.choice((0, limit, self.random.randint(0, limit))) for _ in range(count)]

    def ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)


def offsets(lengths: list[int]) -> list[int]:
    total = [0]
    for length in lengths:
        total.append(total[-1] + length)
    return total


def mask_choice(source: Source, limit: int) -> dict[str, int | bool]:
    kind = source.random.choice(("none", "causal", "window", "window", "causal window", "chunk", "mixed"))
    near = source.random.randint(0, max(limit // 2, 1))
    far = source.random.randint(0, limit + 1)
    chunk = source.random.randint(1, limit + 1)
    return {
        "none": {},
        "causal": {"causal": True, "window_right": 0},
        "window": {"window_left": source.random.choice((near, -1)), "window_right": source.random.choice((far, -1, 0))},
        "causal window": {"causal": True, "window_left": near, "window_right": 0},
        "chunk": {"attention_chunk": chunk, "causal": source.chance(0.5)},
        "mixed": {"attention_chunk": chunk, "window_left": near, "window_right": source.random.choice((-1, 1, 3))},
    }[kind]


def scoring_choice(source: Source, heads: int) -> dict[str, object]:
    return {
        "softmax_scale": source.random.choice((0.125, 0.3, 1.0)),
        "softcap": source.random.choice((0.0, 0.0, 0.0, 2.0)),
        "s_aux": source.tensor(heads, dtype=torch.float32) if source.chance(0.2) else None,
    }


def heads_choice(source: Source) -> tuple[int, int, int, int]:
    """(heads, kv heads, d, dv)."""
    kv_heads, group = source.random.choice((1, 2, 3)), source.random.choice((1, 1, 2, 4))
    dim = source.random.choice(DIMS)
    return kv_heads * group, kv_heads, dim, source.random.choice((dim, dim, dim, *DIMS))


def dense(seed: int, *, limit: int = 24) -> ForwardArgs:
    """Queries and keys dense or packed, in any of the four combinations, with used lengths on top."""
    source = Source(seed)
    dtype = source.random.choice(DTYPES)
    heads, kv_heads, dim, dim_v = heads_choice(source)
    batch = source.random.randint(1, 4)
    fields: dict[str, object] = {}
    same = source.chance(0.4)
    lengths_q = source.lengths(batch, limit) if not same else [source.random.randint(1, limit)] * batch
    lengths_k = lengths_q if same else source.lengths(batch, limit)
    if source.chance(0.6):
        total = sum(lengths_q) + source.random.choice((0, 0, 3))
        q_shape: tuple[int, ...] = (total,)
        fields["cu_seqlens_q"], fields["max_seqlen_q"] = source.ints(offsets(lengths_q)), max(lengths_q)
    else:
        q_shape = (batch, max(lengths_q))
        if source.chance(0.5):
            fields["seqused_q"] = source.ints(lengths_q)
    if source.chance(0.6):
        k_shape: tuple[int, ...] = (sum(lengths_k),)
        fields["cu_seqlens_k"], fields["max_seqlen_k"] = source.ints(offsets(lengths_k)), max(lengths_k)
        if source.chance(0.3):
            fields["seqused_k"] = source.ints([source.random.randint(0, length) for length in lengths_k])
    else:
        k_shape = (batch, max(lengths_k))
        if source.chance(0.5):
            fields["seqused_k"] = source.ints(lengths_k)
    if source.chance(0.15):
        fields["qv"] = source.tensor(*q_shape, heads, dim_v, dtype=dtype)
    return ForwardArgs(
        q=source.tensor(*q_shape, heads, dim, dtype=dtype),
        k=source.tensor(*k_shape, kv_heads, dim, dtype=dtype),
        v=source.tensor(*k_shape, kv_heads, dim_v, dtype=dtype),
        **mask_choice(source, limit),
        **scoring_choice(source, heads),
        **fields,
    )


def cache(seed: int, *, limit: int = 40) -> ForwardArgs:
    """A call on a key-value cache: paged or dense, appended to or not, padded, picked by index, rotated."""
    source = Source(seed)
    dtype = source.random.choice(DTYPES)
    cache_dtype = source.random.choice((dtype, dtype, dtype, torch.bfloat16))
    heads, kv_heads, dim, dim_v = heads_choice(source)
    batch, new = source.random.randint(1, 4), source.random.choice((0, 1, 1, 5))
    lengths_new = [new] * batch
    fields: dict[str, object] = {}
    if new and source.chance(0.3):
        lengths_new = [source.random.randint(0, new) for _ in range(batch)]
        fields["cu_seqlens_k_new"] = source.ints(offsets(lengths_new))
        new_shape: tuple[int, ...] = (sum(lengths_new) + source.random.choice((0, 2)),)
    else:
        new_shape = (batch, new)
    rows_q = source.random.choice((1, 1, new or 3, 7))
    if source.chance(0.25):
        lengths_q = source.lengths(batch, rows_q)
        fields["cu_seqlens_q"], fields["max_seqlen_q"] = source.ints(offsets(lengths_q)), rows_q
        q_shape: tuple[int, ...] = (sum(lengths_q),)
    else:
        q_shape = (batch, rows_q)
    capacity = source.random.randint(new + 1, limit)
    rows = batch + 2 if source.chance(0.3) else batch
    if source.chance(0.4):
        k_shape, table = _pages(source, rows, capacity)
        fields["page_table"], capacity = table, table.shape[1] * k_shape[1]
    else:
        k_shape = (rows, capacity)
    if rows > batch:
        fields["kv_batch_idx"] = source.ints(source.random.sample(range(rows), batch))
    if new or source.chance(0.8):
        fields["seqused_k"] = source.ints([source.random.randint(0, capacity - n) for n in lengths_new])
        if source.chance(0.3):
            fields["leftpad_k"] = source.ints([source.random.randint(0, int(n)) for n in fields["seqused_k"]])
    if new:
        fields["k_new"] = source.tensor(*new_shape, kv_heads, dim, dtype=dtype)
        fields["v_new"] = source.tensor(*new_shape, kv_heads, dim_v, dtype=dtype)
        if dim >= 16 and source.chance(0.5):
            fields.update(_rotary(source, dim, capacity, rows_q, batch, dtype))
    if source.chance(0.1):
        fields["qv"] = source.tensor(*q_shape, heads, dim_v, dtype=dtype)
    return ForwardArgs(
        q=source.tensor(*q_shape, heads, dim, dtype=dtype),
        k=source.tensor(*k_shape, kv_heads, dim, dtype=cache_dtype),
        v=source.tensor(*k_shape, kv_heads, dim_v, dtype=cache_dtype),
        **mask_choice(source, limit),
        **scoring_choice(source, heads),
        **fields,
    )


def _pages(source: Source, rows: int, capacity: int) -> tuple[tuple[int, int], Tensor]:
    size = source.random.choice((1, 3, 8, 16))
    per_row = -(-capacity // size)
    total = rows * per_row + 2
    numbers = torch.randperm(total, generator=source.generator)[: rows * per_row]
    return (total, size), numbers.view(rows, per_row).to(torch.int32)


def _rotary(source: Source, dim: int, capacity: int, rows: int, batch: int, dtype: torch.dtype) -> dict[str, object]:
    turned = source.random.choice([width for width in (16, 32, 48, 64) if width <= dim])
    length = capacity + rows + 8
    angles = torch.rand(length, turned // 2, generator=source.generator) * 6.28
    fields: dict[str, object] = {
        "rotary_cos": angles.cos().to(dtype),
        "rotary_sin": angles.sin().to(dtype),
        "rotary_interleaved": source.chance(0.5),
    }
    if source.chance(0.3):
        fields["seqlens_rotary"] = source.ints([source.random.randint(0, capacity) for _ in range(batch)])
    return fields
