"""Tries the ways of asking for a kernel and prints, as JSON, which of them gave one that computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

if "--gb10" in sys.argv:
    import faked_gb10

    faked_gb10.fake()

import torch
import torch.nn.functional as F
from kernels import get_kernel, has_kernel

REPO = "kernels-community/flash-attn3"


def computes(kernel: Any) -> bool:
    """Whether a kernel's functions give the right numbers, on top and below."""
    q = torch.randn(1, 8, 2, 64)
    expected = F.scaled_dot_product_attention(*[q.transpose(1, 2)] * 3, is_causal=True).transpose(1, 2)
    outs = [module.flash_attn_func(q, q, q, causal=True) for module in (kernel, kernel.flash_attn_interface)]
    return all(torch.allclose(out, expected, atol=1e-4) for out in outs)


def attempt(ask: Callable[[], bool]) -> str:
    try:
        return "yes" if ask() else "no"
    except BaseException as error:  # noqa: BLE001 - whatever a client would see is the answer
        return f"{type(error).__name__}: {str(error)[:200]}"


ways: dict[str, Callable[[], bool]] = {
    "get": lambda: computes(get_kernel(REPO)),
    "get version": lambda: computes(get_kernel(REPO, version=1)),
    "get revision": lambda: computes(get_kernel(REPO, revision="main")),
    "has": lambda: has_kernel(REPO),
    "has version": lambda: has_kernel(REPO, version=1),
}
print(json.dumps({name: attempt(ask) for name, ask in ways.items()}))
