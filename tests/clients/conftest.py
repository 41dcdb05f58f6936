"""Tensors here are tiny: a second thread only waits, badly so on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.fakes.torch_hook import native as native


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
