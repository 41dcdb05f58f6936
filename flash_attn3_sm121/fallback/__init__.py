"""The complete fallback: everything FlashAttention-3 does, exactly, on plain PyTorch and any device.

`forward` and `backward` take the arguments of one call and return fresh, contiguous results. Arguments are expected
to agree in shape (the public functions validate); what depends on values (lengths, page numbers, capacity) is
checked here, before anything is written into a cache; on CUDA, where that is stream-ordered, writes alone are checked.

How it works: on CUDA, torch's own FlashAttention serves what it can (16-bit types, `flash.py`), lengths and all, and
lengths that calls with a cache bring stay on the device (`static.py`: no synchronisation). On a CPU, a plain dense call
goes straight to torch's fused kernel (`whole.py`). Otherwise lengths are read on the host (`host.py`: each sequence
gets just the work that its mask leaves): masks are cut into pieces that need little masking (`geometry.py`), pieces go
to the fused kernel (`pieces.py`; on a CPU, few rows against a cache: `decode.py`), and what that kernel can't do
(softcap, qv, gradients of the LSE) goes through blocked plain arithmetic (`blocked.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.fallback import append, flash, host, static, trial, whole
from flash_attn3_sm121.fallback.combine import combine
from flash_attn3_sm121.fallback.problem import FP8, facts

__all__ = ["appended", "backward", "combine", "dense_op", "forward"]


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No autograd, and no autocast: products of the blocked path must stay in the type that it chose."""
    with torch.no_grad():
        if torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield


def lengths_stay_on_device(args: ForwardArgs) -> bool:
    """Whether a call must not wait for the device: CUDA with per-sequence lengths, as in decoding or a graph capture.

    A packed call without a cache that torch's FlashAttention does not serve is better served by reading its lengths
    once, unless a CUDA graph is being captured.
    """
    if args.q.device.type != "cuda":
        return False
    on_cache = (args.seqused_k, args.page_table, args.kv_batch_idx, args.leftpad_k, args.k_new)
    if any(tensor is not None for tensor in on_cache):
        return True
    packed = args.cu_seqlens_q is not None or args.cu_seqlens_k is not None or args.seqused_q is not None
    return packed and torch.cuda.is_current_stream_capturing()


def forward(args: ForwardArgs, *, check_cache: bool = True) -> tuple[Tensor, Tensor]:
    """The forward pass of one call.

    Args:
        args: the call.
        check_cache: whether the device checks the lengths before new keys are written; where lengths are read on the
            host, they are checked anyway.

    Returns:
        (out, lse): out in q's type (bf16 for fp8), lse in fp32; fresh, or written to `args.out`.

    Raises:
        CallError: lengths, page numbers or positions that the tensors do not have. Nothing was written then.
    """
    with _plain_arithmetic(args.q.device):
        if whole.serves(args):
            out, lse = whole.attend(args.q, args.k, args.v, args.softmax_scale, args.causal)
            return out, lse.contiguous()
        kernel = trial.pick(args)
        if kernel is not None or lengths_stay_on_device(args):
            return static.forward(args, check=check_cache, kernel=kernel)
        return host.forward(args)


def appended(args: ForwardArgs) -> ForwardArgs:
    """The call that is left once its new keys are written into the cache: Q is turned, and the lengths are longer.

    An fp8 Q that was turned comes in bf16, multiplied by its scale. Nothing is read on the host. The caller has checked
    that there is room.
    """
    assert args.k_new is not None and args.seqused_k is not None  # validated
    info = facts(args)
    with _plain_arithmetic(args.q.device):
        new = append.prepare(args, info)
        q, descale = host.rotated_queries(args, info), args.q_descale
        if q is not args.q and args.q.dtype in FP8:
            q, descale = host.scaled_queries(q, args, info).to(torch.bfloat16), None
        if new is not None:
            append.write(args, new)
        cu, held = args.cu_seqlens_k_new, args.seqused_k
        total = held + (info.new_rows if cu is None else cu[1:] - cu[:-1])
        lengths = torch.where(held < 0, torch.zeros_like(held), total)
    return replace(
        args, q=q, q_descale=descale, seqused_k=lengths, k_new=None, v_new=None, cu_seqlens_k_new=None, rotary_cos=None,
        rotary_sin=None, seqlens_rotary=None,
    )  # fmt: skip


def dense_op(args: ForwardArgs) -> Callable[..., Any] | None:
    """The function that answers dense calls of these shapes and flags alone, if there is one (see `whole.dense_op`)."""
    return whole.dense_op if whole.serves(args) else None


def backward(args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(dq, dk, dv, ds_aux), each in its input's type; ds_aux is None without sinks."""
    with _plain_arithmetic(args.q.device):
        kernel = trial.pick(args)
        return host.backward(args) if kernel is None else flash.backward(kernel, args, facts(args))
