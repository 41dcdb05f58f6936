"""The interface of a contender."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from flash_attn3_sm121.bench.case import Case
from flash_attn3_sm121.bench.check import Results

Runner = Callable[[], Results]


class Refused(Exception):
    """This contender does not serve this workload; the message says why. Not an error of the run."""


def load(name: str) -> ModuleType:
    """A package that may not be here: then it refuses, with the reason."""
    try:
        if importlib.util.find_spec(name) is None:
            raise Refused(f"{name} is not installed")
        return importlib.import_module(name)
    except ImportError as error:
        raise Refused(f"{name} cannot be imported: {error}") from error


class Contender(Protocol):
    """`prepare` does what a caller does once (casts, imports); the Runner does what a caller does on every call.

    One that takes e4m3 says so (`fp8 = True`), one whose arithmetic is coarser by design has a `slack`.
    """

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def devices(self) -> frozenset[str]: ...

    def prepare(self, case: Case) -> Runner: ...


def with_backward(case: Case, forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Runner:
    """A Runner from a forward function: plain inference, or forward and backward where the workload has one."""
    if case.dout is None:

        def infer() -> Results:
            with torch.no_grad():
                return {"out": forward(case.q, case.k, case.v)}

        return infer
    q, k, v = (x.detach().clone().requires_grad_() for x in (case.q, case.k, case.v))
    dout = case.dout

    def train() -> Results:
        out = forward(q, k, v)
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), dout)
        return {"out": out.detach(), "dq": dq, "dk": dk, "dv": dv}

    return train
