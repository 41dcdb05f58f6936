"""Which fused kernel of torch serves a problem, if any; found out once per kind of problem."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from flash_attn3_sm121.fallback import cpu_kernel, cuda_kernel, selfcheck
from flash_attn3_sm121.fallback.blocked import Scoring

log = logging.getLogger(__name__)


@functools.cache
def refusal(device: torch.device, dtype: torch.dtype, dim: int, group: int, *, ordered: bool = False) -> str | None:
    """Why torch's fused kernel is not used for such problems, or None; runs the self-check on the first call."""
    kernel = cpu_kernel if device.type == "cpu" else cuda_kernel
    if dtype not in kernel.TYPES:
        return f"{dtype} is not served"
    with torch.no_grad():
        reason = selfcheck.failure(kernel, device=device, dtype=dtype, dim=dim, group=group)
    if reason is not None:
        log.warning(
            "torch's fused attention on %s (%s, head dim %d) is not used, the fallback will be slow: %s",
            *(device, dtype, dim, reason),
        )
    return reason


def sums_in_order() -> bool:
    """Whether torch's CUDA kernels give the same gradients each time: only where the whole process asked for it.

    The efficient kernel's num_splits_key=1 looks like a way to ask for one call, and is none: torch takes the larger of
    that and its own number (seen to differ in bits on an H200, torch 2.11).
    """
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def pick(
    q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None, scoring: Scoring, *, ordered: bool = False
) -> selfcheck.Kernel | None:
    """The fused kernel for q (B, S, H, d), k and v (B, T, Hk, d | dv), or None: then the blocked path serves.

    `ordered`: its backward must give the same bits each time, as the blocked path's does.
    """
    if qv is not None or scoring.softcap != 0.0 or v.shape[-1] > q.shape[-1]:
        return None
    if q.device.type == "cpu":
        # One class of code for every head dim and type: fp64 shows any difference.
        return cpu_kernel if refusal(torch.device("cpu"), torch.float64, 8, 2) is None else None
    if q.device.type != "cuda":
        return None
    if ordered and not sums_in_order():
        return None  # slow, and the same bits each time
    if torch.cuda.is_current_stream_capturing():
        return None  # the self-check can't run inside a capture, nor may a replay depend on whether it ran before
    group = 2 if q.shape[2] != k.shape[2] else 1
    return cuda_kernel if refusal(q.device, q.dtype, q.shape[-1], group) is None else None
