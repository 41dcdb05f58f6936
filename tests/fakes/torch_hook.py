"""torch's hook for a flash attention, over kernels that are faked: a fixture, and the mark of tests that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import attention

from flash_attn3_sm121.api import activation
from tests.fakes.libraries import Kernels, engine

# torch has the hook since 2.11; `activate` says so to an older one.
hooked = pytest.mark.skipif(
    not hasattr(attention, "restore_flash_attention_impl"), reason=f"torch {torch.__version__} has no hook"
)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    """The CPU, taken for a GB10 whose kernels are faked. What a test activates is undone."""
    kernels = Kernels()
    serving = engine(kernels.open)
    monkeypatch.setattr(activation, "engine", lambda: serving)
    before = dict(attention._registry._FLASH_ATTENTION_IMPLS)
    yield kernels
    attention.restore_flash_attention_impl(_raise_warn=False)
    attention._registry._FLASH_ATTENTION_IMPLS.clear()
    attention._registry._FLASH_ATTENTION_IMPLS.update(before)
