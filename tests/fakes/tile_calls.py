"""In the executing process: what more tiles of keys cost a forward kernel, and how many splits a plan has."""

from __future__ import annotations

from typing import Any

import torch

from ci.prove.gb10.child import Gpu

CLASSES = {"tensor": "mma.sync", "mufu": "ex2.approx", "matrices": "ldmatrix.sync.aligned.x4", "copies": "cp.async.cg"}
BLOCK_N = 64


def _call(gpu: Gpu, dim: int, keys: int) -> str:
    """One block of 128 rows over that many keys; the name of its kernel."""
    q, k, v = (torch.randn(1, length, 1, dim).bfloat16() for length in (128, keys, keys))
    gpu.call("fwd", q=q, k=k, v=v, num_splits=1)
    (launch,) = gpu.launches[-1:]
    return str(launch["kernel"])


def work(gpu: Gpu, dim: int, keys: int, tiles: int) -> dict[str, Any]:
    """By class, how many instructions of warps `tiles` more tiles of keys take."""
    totals: list[dict[str, int]] = [dict.fromkeys(CLASSES, 0)]
    for length in (keys, keys + tiles * BLOCK_N):
        kernel = _call(gpu, dim, length)
        counts = [(text, count) for _, text, count in gpu.machine.counts(kernel)]
        totals.append({name: sum(n for text, n in counts if text.startswith(head)) for name, head in CLASSES.items()})
    before, first, second = totals
    more = {name: (second[name] - first[name]) - (first[name] - before[name]) for name in CLASSES}
    return {"kernel": kernel, **more}


def splits(gpu: Gpu, dim: int, calls: list[list[int]]) -> list[list[int]]:
    """The splits of each sequence by the library's own plan, of calls (batch, heads, kv heads, tokens of each)."""
    found = []
    for batch, heads, kv_heads, tokens in calls:
        plan = gpu.call(
            "get_scheduler_metadata", batch_size=batch, max_seqlen_q=1, max_seqlen_k=tokens, num_heads=heads,
            num_heads_k=kv_heads, headdim=dim, headdim_v=dim, qkv_dtype=torch.bfloat16,
            seqused_k=torch.full((batch,), tokens, dtype=torch.int32), num_splits=0,
        )  # fmt: skip
        found.append(plan[:batch].tolist())
    return found


def metadata_lengths(gpu: Gpu, calls: list[dict[str, Any]]) -> list[int]:
    """How long the metadata of these calls is, each the op's arguments by name but for its tensor and type."""
    return [
        gpu.call(
            "get_scheduler_metadata", qkv_dtype=torch.bfloat16,
            seqused_k=torch.full((call["batch_size"],), call["max_seqlen_k"], dtype=torch.int32), **call,
        ).numel()
        for call in calls
    ]  # fmt: skip
