"""The list of contenders: everything that can compute a workload. One refuses with a reason or gives a call to time."""

from __future__ import annotations

import torch

from flash_attn3_sm121.bench.contenders.base import Contender, Refused, Runner
from flash_attn3_sm121.bench.contenders.external import FlashAttention2, FlashAttention4
from flash_attn3_sm121.bench.contenders.ours import Ours
from flash_attn3_sm121.bench.contenders.peers import CudnnFrontend, FlashInfer, SageAttention, TorchVarlen
from flash_attn3_sm121.bench.contenders.sdpa import DenseMask, TorchSdpa

__all__ = ["Contender", "Refused", "Runner", "contenders"]

BASELINE = "dense-mask"


def contenders(device: torch.device) -> tuple[Contender, ...]:
    """The contenders for a kind of device, ours first. Those that never run on it are left out."""
    ours: tuple[Contender, ...] = (Ours("native"), Ours("sdpa"), Ours("flex"))
    raw: tuple[Contender, ...] = tuple(TorchSdpa(name) for name in ("flash", "efficient", "cudnn", "math"))
    others: tuple[Contender, ...] = (TorchVarlen(), FlashAttention2(), FlashAttention4(), FlashInfer(), SageAttention())
    others += (CudnnFrontend(),)
    everyone = (*ours, *raw, *others, DenseMask())
    return tuple(c for c in everyone if device.type in c.devices)
