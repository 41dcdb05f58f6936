"""Watching the operators that a call runs: what they allocate, and whether they read from the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.unique_consecutive.default,
}


class Largest(TorchDispatchMode):
    """Remembers the largest new allocation that any operator returned."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


class NoReads(TorchDispatchMode):
    """Fails on any operator whose result the host has to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in READS, f"{func} waits for the device"
        for argument in args:
            if isinstance(argument, (list, tuple)):  # a boolean index has a size that only the device knows
                masks = [a for a in argument if isinstance(a, torch.Tensor) and a.dtype == torch.bool]
                assert not masks, f"{func} with a boolean index waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`tolist` does not go through the dispatcher, so it is forbidden by name."""

    def forbidden(tensor: torch.Tensor) -> None:
        raise AssertionError("tolist() waits for the device")

    with monkeypatch.context() as patch, NoReads():
        patch.setattr(torch.Tensor, "tolist", forbidden)
        yield
