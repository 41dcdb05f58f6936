"""The reasons why FlexAttention cannot serve a call. Pure: facts in, a sentence or None out."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from dataclasses import dataclass

from flash_attn3_sm121.arch import capability
from flash_attn3_sm121.call.facts import CallFacts, DeviceFacts

MIN_TORCH = (2, 9)  # AuxRequest, the way to ask for the LSE that will stay
MIN_TRITON_OF_121 = (3, 6)  # brings a ptxas that knows sm_121a; torch 2.10 is the first to come with it
DTYPES = ("bf16", "fp16", "fp32")
# Above this head dim torch's backward template finds no tile for devices with 99 KB of shared memory a block.
SMALL_SMEM_LIMIT = 101376
SMALL_SMEM_BACKWARD_HEAD_DIM = 128

# Words of CallFacts.features -> why FlexAttention has no answer to them.
UNSERVED: dict[str, str] = {
    "paged": "FlexAttention reads dense keys and values, not a page table",
    "append": "FlexAttention cannot write new keys and values into a cache",
    "qv": "FlexAttention has no second query (qv)",
    "rotary": "FlexAttention does not rotate",
    "batch_idx": "FlexAttention reads cache rows in order; cache_batch_idx would need a copy of the cache",
    "sinks": "attention sinks (s_aux) are served by the sdpa backend",
}
FP8 = "FlexAttention takes no descale factors, so fp8 inputs would be read unscaled"


@dataclass(frozen=True, kw_only=True)
class Software:
    """The versions of torch and triton, which decide whether FlexAttention can be compiled here."""

    torch: tuple[int, int]
    triton: str | None
    ptxas: bool = False  # TRITON_PTXAS_PATH names another one than triton's own


@functools.cache
def software() -> Software:
    """The installed versions, read from package metadata once. Neither torch nor triton is imported."""
    major, minor = importlib.metadata.version("torch").split(".")[:2]
    triton = None
    for name in ("triton", "pytorch-triton"):
        try:
            triton = importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    return Software(torch=(int(major), int(minor)), triton=triton, ptxas=bool(os.environ.get("TRITON_PTXAS_PATH")))


def refusal(call: CallFacts, device: DeviceFacts | None = None, versions: Software | None = None) -> str | None:
    """Why FlexAttention cannot serve a call, or None if it can.

    Args:
        device: default: a device of the call's type, of which nothing else is known.
        versions: default: the installed ones.
    """
    device = device or DeviceFacts(type=call.device_type)
    versions = versions or software()
    for feature, why in UNSERVED.items():
        if feature in call.features:
            return why
    if "e4m3" in (call.dtype, call.dtype_kv):
        return FP8
    if call.dtype not in DTYPES:
        return f"FlexAttention serves {', '.join(DTYPES)}; q is {call.dtype}"
    if call.dtype != call.dtype_kv:
        return f"FlexAttention needs one dtype; q is {call.dtype} and k, v are {call.dtype_kv}"
    if versions.torch < MIN_TORCH:
        have, need = (".".join(map(str, version)) for version in (versions.torch, MIN_TORCH))
        return f"FlexAttention with LSE needs torch {need} or later; this is torch {have}"
    if device.type == "cpu":
        return "torch's FlexAttention has no backward on CPU" if call.direction == "backward" else None
    return _gpu_refusal(call, device, versions)


def _gpu_refusal(call: CallFacts, device: DeviceFacts, versions: Software) -> str | None:
    if device.type != "cuda":
        return f"torch's FlexAttention gives no LSE on {device.type}"
    if versions.triton is None:
        return "FlexAttention compiles through triton, which is not installed"
    if device.capability == (12, 1) and not versions.ptxas and _numbers(versions.triton) < MIN_TRITON_OF_121:
        return (
            f"the ptxas of triton {versions.triton} does not know 12.1: triton 3.6 (torch 2.10) or later, or "
            "TRITON_PTXAS_PATH=<CUDA 12.9 or later>/bin/ptxas"
        )
    narrow, wide = sorted((call.head_dim, call.head_dim_v))
    if narrow < 16:
        return f"FlexAttention's CUDA kernels need head dims of 16 or more; found {narrow}"
    limit = _smem_limit(device)
    if (
        call.direction == "backward"
        and wide > SMALL_SMEM_BACKWARD_HEAD_DIM
        and limit is not None
        and limit <= SMALL_SMEM_LIMIT
    ):
        return (
            f"FlexAttention's backward above head dim {SMALL_SMEM_BACKWARD_HEAD_DIM} needs more shared memory a block "
            f"than the {limit} bytes of this device; found {wide}"
        )
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _smem_limit(device: DeviceFacts) -> int | None:
    if device.smem_limit is not None or device.capability is None:
        return device.smem_limit
    row = capability(*device.capability)
    return None if row is None else row.smem_limit
