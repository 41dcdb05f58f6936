"""Whether torch's FlashAttention serves a call: each kind of call is tried once, beside the same on the CPU."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import attention

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.fallback import flash, host, static
from flash_attn3_sm121.fallback.kernels import sums_in_order
from flash_attn3_sm121.fallback.problem import facts
from flash_attn3_sm121.fallback.selfcheck import LIMITS

log = logging.getLogger(__name__)
KERNEL = flash.Kernel()
Args = TypeVar("Args", ForwardArgs, BackwardArgs)
_verdicts: dict[tuple[Any, ...], str | None] = {}


def pick(args: ForwardArgs | BackwardArgs) -> flash.Kernel | None:
    """The operators, if they serve a call on CUDA; tries them on the first call of a kind."""
    if args.q.device.type != "cuda":
        return None
    info, backward = facts(args), isinstance(args, BackwardArgs)
    if not flash.serves(args, info):
        return None
    if isinstance(args, BackwardArgs) and args.deterministic and not sums_in_order():
        return None
    current = getattr(attention, "current_flash_attention_impl", None)  # torch 2.11 and later
    if current is not None and current() is not None:
        return None  # another implementation has taken the operators' place, ours perhaps
    key = (args.q.device, info.out_dtype, info.dim, info.group > 1, backward)
    if key not in _verdicts:
        if torch.cuda.is_current_stream_capturing():
            return None  # comparing needs a synchronisation, which a capture forbids
        with torch.no_grad():
            _verdicts[key] = failure(KERNEL, *key)
        if _verdicts[key] is not None:
            log.warning(
                "torch's flash attention on %s (%s, head dim %d) is not used, the fallback will be slow: %s",
                *(*key[:3], _verdicts[key]),
            )
    return KERNEL if _verdicts[key] is None else None


def _calls(dtype: torch.dtype, dim: int, heads: int, kv_heads: int) -> Iterator[tuple[str, ForwardArgs]]:
    """Small calls that reach each way through `flash.py`: empty sequences, rows without a key, long capacities."""
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dim, generator=generator, device="cpu").to(dtype)

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device="cpu")

    call = functools.partial(ForwardArgs, softmax_scale=dim**-0.5, causal=True, window_right=0)
    q, k, v = random(46, heads), random(60, kv_heads), random(60, kv_heads)
    offsets: dict[str, Any] = {"cu_seqlens_q": ints(0, 5, 5, 45, 46), "cu_seqlens_k": ints(0, 9, 12, 52, 52)}
    packed = functools.partial(call, q=q, k=k, v=v, **offsets, max_seqlen_q=40, max_seqlen_k=40)
    yield "packed, causal", packed()
    yield "packed, window", packed(window_left=7)
    yield "dense, causal", call(q=random(2, 40, heads), k=random(2, 33, kv_heads), v=random(2, 33, kv_heads))
    cache: dict[str, Any] = {
        "k": random(3, 640, kv_heads),
        "v": random(3, 640, kv_heads),
        "seqused_k": ints(70, 0, 640),
    }
    yield "cache, one row", call(q=random(3, 1, heads), **cache)
    yield "cache, window", call(q=random(3, 3, heads), **cache, window_left=20)
    pages: dict[str, Any] = {name: cache[name].view(30, 64, kv_heads, dim) for name in ("k", "v")}
    table = torch.arange(29, -1, -1, dtype=torch.int32, device="cpu").view(3, 10)
    yield "pages", call(q=random(3, 1, heads), **pages, seqused_k=cache["seqused_k"], page_table=table)


def _moved(args: Args, device: torch.device | str, dtype: torch.dtype) -> Args:
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    tensors = {name: x for name, x in fields.items() if isinstance(x, Tensor)}
    moved: dict[str, Any] = {
        name: x.to(device, dtype if x.is_floating_point() else x.dtype) for name, x in tensors.items()
    }
    return dataclasses.replace(args, **moved)


def failure(
    kernel: flash.Kernel, device: torch.device, dtype: torch.dtype, dim: int, grouped: bool, backward: bool
) -> str | None:
    """Run small calls on the device; None where they agree with the CPU's, else what is wrong."""
    heads, kv_heads = (4, 2) if grouped else (2, 2)
    try:
        for name, args in _calls(dtype, dim, heads, kv_heads):
            want = host.forward(_moved(args, "cpu", torch.float32))
            found = static.forward(_moved(args, device, dtype), kernel=kernel)
            pairs = list(zip(("out", "lse"), found, want, strict=True))
            if backward and args.seqused_k is None:
                pairs += zip(("dq", "dk", "dv"), *_gradients(kernel, args, want, device, dtype), strict=True)
            for what, mine, expected in pairs:
                pair = (x.float().cpu().nan_to_num(nan=torch.nan, neginf=-1e4) for x in (mine, expected))
                worst = float(torch.sub(*pair).abs().max())
                if not worst <= (1e-2 if what == "lse" else LIMITS[dtype]):
                    return f"torch {torch.__version__}: {what} ({name}) is off by {worst:.2g}"
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel, and the answer is remembered
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        return f"torch {torch.__version__} refuses: {error}"
    return None


def _gradients(
    kernel: flash.Kernel, args: ForwardArgs, results: tuple[Tensor, Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(dq, dk, dv) found, and those of the CPU."""
    shared = {field.name for field in dataclasses.fields(BackwardArgs)} & {f.name for f in dataclasses.fields(args)}
    call = {name: getattr(args, name) for name in shared} | {"out": results[0], "softmax_lse": results[1]}
    given = BackwardArgs(dout=args.q.flip(-1), **call)
    mine = _moved(given, device, dtype)
    mine = dataclasses.replace(mine, softmax_lse=results[1].to(device))
    return flash.backward(kernel, mine, facts(mine))[:3], host.backward(_moved(given, "cpu", torch.float32))[:3]
