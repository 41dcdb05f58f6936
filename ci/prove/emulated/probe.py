"""Runs inside the emulated Python, after the wheel was installed there: imports it, loads every family library,
lists its ops, compares the fallback with torch, and asks `kernels.get_kernel` through the override. Prints JSON.

It depends on nothing but what is installed there, like a user's own script.
"""

from __future__ import annotations

import json
import platform
import sys
import warnings
from importlib import metadata
from typing import Any


def family_libraries() -> dict[str, Any]:
    """Load each library by its facts and list the schemas it registered."""
    from pathlib import Path

    import torch

    import flash_attn3_sm121
    from flash_attn3_sm121.native.buildfacts import BuildFacts

    libraries: dict[str, Any] = {}
    for path in sorted((Path(flash_attn3_sm121.__file__).parent / "lib").glob("sm*.json")):
        facts = BuildFacts.read(path)
        torch.ops.load_library(str(path.with_name(facts.library)))  # type: ignore[no-untyped-call]
        names = ("fwd", "bwd", "fwd_combine", "get_scheduler_metadata")
        space = getattr(torch.ops, facts.namespace)
        libraries[facts.family] = {
            "images": facts.images,
            "ops": {name: str(getattr(space, name).default._schema) for name in names},
        }
    return libraries


def fallback_errors() -> dict[str, float]:
    """Largest deviation from torch's own attention on three small cases."""
    import torch
    import torch.nn.functional as F
    from flash_attn_interface import flash_attn_func, flash_attn_with_kvcache

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 33, 4, 32) for _ in range(3))
    qh, kh, vh = (x.transpose(1, 2) for x in (q, k, v))
    wanted = F.scaled_dot_product_attention(qh, kh, vh, is_causal=True).transpose(1, 2)
    errors = {"causal": (flash_attn_func(q, k, v, causal=True) - wanted).abs().max().item()}

    index = torch.arange(33)
    band = (index[:, None] >= index) & (index[:, None] - index <= 7)
    wanted = F.scaled_dot_product_attention(qh, kh, vh, attn_mask=band).transpose(1, 2)
    errors["window"] = (flash_attn_func(q, k, v, causal=True, window_size=(7, 0)) - wanted).abs().max().item()

    cache_k, cache_v = torch.zeros(2, 64, 4, 32), torch.zeros(2, 64, 4, 32)
    cache_k[:, :32], cache_v[:, :32] = k[:, :32], v[:, :32]
    lengths = torch.full((2,), 32, dtype=torch.int32)
    step = flash_attn_with_kvcache(
        q[:, 32:], cache_k, cache_v, k=k[:, 32:], v=v[:, 32:], cache_seqlens=lengths, causal=True
    )
    full = flash_attn_func(q, k, v, causal=True)
    errors["decode"] = (step - full[:, 32:]).abs().max().item()
    return errors


def overridden_kernel() -> dict[str, Any]:
    """What a client that says get_kernel(...) is handed."""
    import flash_attn3_sm121.hub

    flash_attn3_sm121.hub.override()
    import kernels

    module = kernels.get_kernel("varunneal/flash-attention-3")
    function = module.flash_attn_interface.flash_attn_func
    return {"kernels": metadata.version("kernels"), "function": f"{function.__module__}.{function.__qualname__}"}


def main() -> int:
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch

    report = {
        "machine": platform.machine(),
        "libc": platform.libc_ver(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "wheel": metadata.version("flash_attn3_sm121"),
        "flash_attn_3": metadata.version("flash_attn_3"),
        "families": family_libraries(),
        "fallback": fallback_errors(),
        "get_kernel": overridden_kernel(),
    }
    json.dump(report, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
