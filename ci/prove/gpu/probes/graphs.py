"""CUDA graphs: a decoding step is captured once and replayed with other queries, other lengths and a longer cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ci.prove.gpu.probes.compare import Finding, GpuCase, Rule, attention, close, close_lse, gap, random, same_bits
from flash_attn3_sm121 import flash_attn_with_kvcache
from flash_attn3_sm121.selftest.reference import Mask

PAGE, PAGES = 64, 8
# Lengths at capture, then at each replay; the last is longer than anything the capture saw. -1 is a row of padding.
STEPS = ((70, 1, 200), (71, 2, 201), (300, 128, 5), (40, -1, 7), (510, 509, 64))


def captured(call: Callable[[], tuple[Tensor, Tensor]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]:
    """Warmed up on a side stream first, as torch asks for."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def _step(dim: int, *, paged: bool, append: bool, splits: int) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        q = random(device, dtype, 3, 1, 6, dim)
        new = [random(device, dtype, 3, 1, 2, dim) for _ in range(2)]
        k_cache, v_cache = (random(device, dtype, 3 * PAGES, PAGE, 2, dim) for _ in range(2))
        table = torch.arange(3 * PAGES, dtype=torch.int32, device=device).reshape(3, PAGES)
        lengths = torch.tensor(STEPS[0], dtype=torch.int32, device=device)
        fresh = new if append else (None, None)
        shown = [x if paged else x.view(3, PAGE * PAGES, 2, dim) for x in (k_cache, v_cache)]

        def call() -> tuple[Tensor, Tensor]:
            out, lse, *_ = flash_attn_with_kvcache(
                q, shown[0], shown[1], k=fresh[0], v=fresh[1], cache_seqlens=lengths, num_splits=splits,
                page_table=table if paged else None, causal=True, return_softmax_lse=True,
            )  # fmt: skip
            return out, lse

        graph, (out, lse) = captured(call)
        for number, step in enumerate(STEPS):
            for tensor in (q, *new):
                tensor.copy_(random(device, dtype, *tensor.shape))
            lengths.copy_(torch.tensor(step, dtype=torch.int32))
            before = k_cache.clone()
            graph.replay()
            torch.cuda.synchronize(device)
            for row, used in enumerate(step):
                if used < 0:
                    nothing, none = torch.zeros_like(out[row]), torch.full_like(lse[row], -torch.inf)
                    yield Finding(what=f"out of padding, step {number}", error=gap(out[row], nothing), allowed=0.0)
                    yield Finding(what=f"lse of padding, step {number}", error=gap(lse[row], none), allowed=0.0)
                    kept = (x.view(3, -1, 2, dim)[row] for x in (k_cache, before))
                    yield same_bits(f"cache of padding, step {number}", *kept)
                    continue
                total = used + append
                keys, values = (x.view(3, -1, 2, dim)[row, :total][None] for x in (k_cache, v_cache))
                if append:  # what the replay must have written
                    yield same_bits(f"key written, step {number} row {row}", keys[0, -1], new[0][row, 0])
                rule = Rule(mask=Mask(causal=True))
                exact, exact_lse = attention(q[row][None].double(), keys.double(), values.double(), rule)
                low, _ = attention(q[row][None], keys, values, rule)
                yield close(f"out, step {number} row {row}", out[row][None], exact, low)
                yield close_lse(lse[row][None], exact_lse)

    kind = "paged" if paged else "plain"
    return GpuCase(
        name=f"graph: decode, d {dim}, {kind}{', appending' if append else ''}, num_splits {splits}", findings=findings
    )


def cases() -> tuple[GpuCase, ...]:
    return tuple(
        _step(dim, paged=paged, append=append, splits=splits)
        for dim in (64, 128)
        for paged in (False, True)
        for append in (False, True)
        for splits in (1, 0)
    )
