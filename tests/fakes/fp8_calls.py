"""Called where kernels are executed on the CPU: decoding in e4m3 by metadata that was made before."""

from __future__ import annotations

from typing import Any

import torch

E4M3 = torch.float8_e4m3fn


def scheduled(gpu: Any, lengths: list[int]) -> list[dict[str, Any]]:
    """For each number of keys, whether a call by metadata gave what one without it does, and what went wrong."""
    shown = []
    for count in lengths:
        torch.manual_seed(count)
        pages = -(-count // 16)
        q = torch.randn(2, 1, 6, 64).to(E4M3)
        k, v = (torch.randn(2 * pages, 16, 1, 64).to(E4M3) for _ in range(2))
        used = torch.tensor([count, count // 2 + 1], dtype=torch.int32)
        call = {
            "q": q, "k": k, "v": v, "seqused_k": used, "softcap": 20.0, "softmax_scale": 0.125, "num_splits": 0,
            "page_table": torch.arange(2 * pages, dtype=torch.int32).view(2, pages),
        }  # fmt: skip
        made = gpu.call(
            "get_scheduler_metadata", batch_size=2, max_seqlen_q=1, max_seqlen_k=16 * pages, num_heads=6,
            num_heads_k=1, headdim=64, headdim_v=64, qkv_dtype=E4M3, seqused_k=used, page_size=16, has_softcap=True,
            num_splits=0,
        )  # fmt: skip
        try:
            out, *_ = gpu.call("fwd", **call, scheduler_metadata=made)
            right, *_ = gpu.call("fwd", **call)
            shown.append({"equal": torch.equal(out, right), "wrong": ""})
        except RuntimeError as error:
            shown.append({"equal": False, "wrong": str(error)})
    return shown
