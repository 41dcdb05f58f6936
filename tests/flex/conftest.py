from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from torch import Tensor

from flash_attn3_sm121.flex import backend
from flash_attn3_sm121.flex.compiled import KernelCache, ShapeClass, plain_kernel


@pytest.fixture(autouse=True)
def _fresh_masks() -> Iterator[None]:
    backend.MASKS.clear()
    torch.manual_seed(0)
    yield


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, Any]]:
    """FlexAttention's own mathematics without a compiler, LSE included: what the CUDA path asks of torch."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)

    def run(cls: ShapeClass, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Any]:
        return plain_kernel(dataclasses.replace(cls, want_lse=True))(q, k, v, mask)

    return run


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelCache]:
    """The real kernel cache over a compiler that only traces; torch's "no backward on CPU" check is lifted for it."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    torch.compiler.reset()
    from torch._dynamo.backends.debugging import aot_eager

    yield KernelCache(compiler=aot_eager, narrate=lambda line: None)
    torch.compiler.reset()
