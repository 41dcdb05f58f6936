"""Cases that go wrong in every way a case can, for the loop and the runner to survive."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import torch

from ci.prove.gpu.probes.compare import Finding, GpuCase, Rule
from ci.prove.gpu.probes.forward import CAUSAL, Dense, dense
from flash_attn3_sm121.errors import BackendError


def _right(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    yield from dense(Dense(dim=16, rule=Rule(mask=CAUSAL), lengths=(8, 8))).findings(device, dtype)


def _wrong(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    yield Finding(what="out", error=float("nan"), allowed=1.0)


def _fault(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    os.kill(os.getpid(), signal.SIGSEGV)
    yield Finding(what="never", error=0.0, allowed=0.0)


def _poison(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
    yield


def _refuse(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    raise BackendError("the backend native cannot serve\n  not native: head dimension 16 is not built")
    yield


def _broken(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    raise BackendError("the backend native cannot serve\n  not native: the canary found wrong results on cuda:0")
    yield


def _hang(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    time.sleep(600)
    yield Finding(what="never", error=0.0, allowed=0.0)


def mishaps() -> tuple[GpuCase, ...]:
    runs = {
        "right": _right, "fault": _fault, "wrong": _wrong, "poison": _poison, "refuse": _refuse,
        "broken": _broken, "right again": _right,
    }  # fmt: skip
    return tuple(GpuCase(name=name, findings=findings) for name, findings in runs.items())


def hang() -> tuple[GpuCase, ...]:
    return (
        GpuCase(name="right", findings=_right),
        GpuCase(name="hang", findings=_hang),
        GpuCase(name="right again", findings=_right),
    )


def fine() -> tuple[GpuCase, ...]:
    return (GpuCase(name="right", findings=_right),)
