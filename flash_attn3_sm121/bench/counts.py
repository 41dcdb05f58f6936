"""What a call of the fallback on CUDA launches and moves, beside a dense mask's; counted on tensors without numbers.

A launch is an operator that is no view; torch's own attention counts as one, whatever it launches inside. Each operand
is read once, each result written once; attention reads the keys that are in use, unless it is under a mask, which says
nothing about what to skip. Time is not in it: a GPU's is `bench` on that GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from flash_attn3_sm121.bench.case import Case, build
from flash_attn3_sm121.bench.contenders.base import Refused
from flash_attn3_sm121.bench.contenders.sdpa import DenseMask
from flash_attn3_sm121.bench.machine import stamped
from flash_attn3_sm121.bench.workloads import CUDA, Workload
from flash_attn3_sm121.call.arguments import ForwardArgs, normal_form
from flash_attn3_sm121.console import Block, Table, format_bytes
from flash_attn3_sm121.fallback import flash, static

# Views, allocations, and what only looks at a tensor's facts.
NO_LAUNCH = (
    *("view", "_unsafe_view", "_reshape_alias", "slice", "select", "transpose", "permute", "expand", "unsqueeze"),
    *("squeeze", "alias", "detach", "as_strided", "t", "unfold", "split", "empty", "empty_like", "new_empty"),
    *("empty_strided", "promote_types", "diagonal", "unbind", "_local_scalar_dense"),
)
GATHERS = ("index", "index_select", "embedding", "gather")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One call. `waits`: how often the host waits for the device."""

    launches: int
    read: int
    written: int
    waits: int


def _extent(tensor: Tensor) -> int:
    """The bytes of a tensor, what it repeats (stride 0) counted once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else min(length, 1)
    return size


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values and in their lists; empty ones are nothing."""
    flat = (x for value in values for x in (value if isinstance(value, (list, tuple)) else (value,)))
    return [x for x in flat if isinstance(x, Tensor) and x.numel()]


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators of a call for a workload; a length that is read is the workload's first."""

    def __init__(self, work: Workload) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches, self.read, self.written, self.waits = 0, 0, 0, 0
        self.first_length = work.lengths[0] if work.lengths else 0
        self.keys = sum(work.keys_seen) * work.key_bytes

    def attention(self, tensors: Sequence[Tensor], results: Sequence[Tensor], *, skips: bool) -> None:
        """One launch of attention over (q, k, v, ...); `skips`: it knows the lengths, and reads no key in vain."""
        q, k, v, *others = map(_extent, tensors)
        self.launches += 1
        self.read += q + (min(k + v, self.keys) if skips else k + v) + sum(others)
        self.written += sum(map(_extent, results))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.waits += 1
            return self.first_length
        result = func(*args, **(kwargs or {}))
        given, results = _tensors((*args, *(kwargs or {}).values())), _tensors((result,))
        if name in NO_LAUNCH or not results:
            return result
        if "_attention" in name:
            self.attention(given, results[:2], skips="flash" in name)
            return result
        self.launches += 1
        self.written += sum(map(_extent, results))
        self.read += sum(map(_extent, results if name in GATHERS else given))
        return result


class _Sdpa(TorchFunctionMode):
    """scaled_dot_product_attention as the one launch that it is on a GPU."""

    def __init__(self, counting: Counting) -> None:
        super().__init__()
        self.counting = counting

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        out = torch.empty_like(args[0])
        mask = (kwargs or {}).get("attn_mask")
        self.counting.attention((*args[:3], *([] if mask is None else [mask])), (out,), skips=False)
        return out


def cost(work: Workload, call: Callable[[Case], object]) -> Cost:
    """Run a call on a workload's shapes and count."""
    case = build(work, torch.device("meta"))
    counting = Counting(work)
    with torch.no_grad(), _Sdpa(counting), counting:
        call(case)
    return Cost(launches=counting.launches, read=counting.read, written=counting.written, waits=counting.waits)


def ours(case: Case) -> object:
    """The fallback's forward as it is on CUDA, where torch's FlashAttention serves it."""
    return static.forward(normal_form(arguments(case)), check=False, kernel=flash.Kernel())


def arguments(case: Case) -> ForwardArgs:
    """A workload's call as a backend gets it."""
    work, packed = case.workload, case.cu_seqlens is not None
    longest = max(work.lengths) if packed else None
    return ForwardArgs(
        q=case.q,
        k=case.k,
        v=case.v,
        softmax_scale=case.scale,
        causal=work.causal,
        window_left=work.window,
        window_right=0 if work.causal else -1,
        cu_seqlens_q=case.cu_seqlens,
        cu_seqlens_k=case.cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        seqused_k=case.cache_seqlens,
        page_table=case.page_table,
    )


def dense_mask(case: Case) -> object:
    return DenseMask().prepare(case)()


HEAD = ("workload", "contender", "launches", "read", "written", "of the least", "waits")
Row = tuple[str, ...]


def rows() -> list[Row]:
    """The cells of `HEAD` for the forward calls of the workloads for a GPU; `of the least`: of what has to be moved."""
    found: list[Row] = []
    for work in CUDA:
        if work.backward:
            continue
        for name, call in (("fallback", ours), ("dense-mask", dense_mask)):
            try:
                one = cost(work, call)
            except Refused:
                continue
            share = f"{(one.read + one.written) / work.bytes:.2f}"
            moved = format_bytes(one.read), format_bytes(one.written), share
            found.append((work.name, name, str(one.launches), *moved, str(one.waits)))
    return found


def to_json() -> str:
    return stamped("count", rows=rows())


def table() -> list[Block]:
    return [Table(head=HEAD, rows=rows())]
