"""FlexAttention compiled once per shape class, with a line on stderr while it compiles.

On CPU a shape class holds the exact lengths (torch's C++ template does not compile with symbolic lengths); elsewhere
lengths are left out of it and torch turns them symbolic when they change.
"""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from flash_attn3_sm121.errors import BackendError
from flash_attn3_sm121.flex.blocks import BLOCK

Kernel = Callable[[Tensor, Tensor, Tensor, BlockMask], tuple[Tensor, Tensor | None]]
Compiler = Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]

COMPILE_HINT = (
    "if ptxas does not know the GPU: triton 3.6 or later, or TRITON_PTXAS_PATH=<the CUDA toolkit's ptxas> with 3.5 "
    "(docs/performance.md); if Python.h or a C++ compiler is missing, on a CPU: apt-get install python3-dev g++; "
    "or FLASH_ATTN3_BACKEND=sdpa"
)


@dataclass(frozen=True, kw_only=True)
class ShapeClass:
    """The calls that one compiled kernel serves. `lengths` is (batch, rows, keys), or only which of them are 1."""

    device: str
    dtype: str
    head_dim: int
    head_dim_v: int
    heads: int
    heads_kv: int
    scale: float
    softcap: float
    want_lse: bool
    grad: bool
    lengths: tuple[int, ...]
    whole_keys: bool = False  # never torch's split-key template, which has no tile for these rows

    def __str__(self) -> str:
        cap = f" softcap {self.softcap:g}" if self.softcap else ""
        way = "forward + backward" if self.grad else "forward"
        return f"{self.device} {self.dtype} d={self.head_dim} heads={self.heads}/{self.heads_kv}{cap} {way}"


def shape_class(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, softcap: float, want_lse: bool, grad: bool
) -> ShapeClass:
    """The class of a call with (b, h, s, d) tensors."""
    on_cpu = q.device.type == "cpu"
    sizes = (q.size(0), q.size(2), k.size(2))
    few_rows = int(q.size(2) < BLOCK)  # torch picks its split-key decoding template below that
    lengths = sizes if on_cpu else (*(min(size, 2) for size in sizes), few_rows)
    # That template takes all rows of a kv head as one tile, and finds none where that is larger than a mask's block:
    # "NoValidChoicesError", seen on an H200 with torch 2.11.
    whole_keys = not on_cpu and bool(few_rows) and q.size(2) * q.size(1) > BLOCK * k.size(1)
    return ShapeClass(
        device=str(q.device),
        dtype=str(q.dtype).removeprefix("torch."),
        head_dim=q.size(3),
        head_dim_v=v.size(3),
        heads=q.size(1),
        heads_kv=k.size(1),
        scale=scale,
        softcap=softcap,
        want_lse=want_lse,
        grad=grad,
        lengths=lengths,
        whole_keys=whole_keys,
    )


def plain_kernel(cls: ShapeClass) -> Kernel:
    """The function that is compiled for a class; called as it is, torch runs it unfused."""
    scale, softcap, gqa = cls.scale, cls.softcap, cls.heads != cls.heads_kv

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    score_mod = capped if softcap else None
    given: dict[str, Any] = {"scale": scale, "enable_gqa": gqa}
    if cls.whole_keys:
        given["kernel_options"] = {"FORCE_USE_FLEX_ATTENTION": True}

    def with_lse(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor | None]:
        out, aux = flex_attention(q, k, v, score_mod, mask, **given, return_aux=AuxRequest(lse=True))
        return out, aux.lse

    def without_lse(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor | None]:
        return flex_attention(q, k, v, score_mod, mask, **given), None

    return with_lse if cls.want_lse else without_lse


def _inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    return cast("Callable[..., Any]", compile_fx(graph, inputs))


class KernelCache:
    """The compiled kernel of each shape class. A class that did not compile is remembered too, and not tried again."""

    def __init__(self, *, compiler: Compiler = _inductor, narrate: Callable[[str], None] | None = None) -> None:
        self._compiler = compiler
        self._narrate = narrate or (lambda line: print(line, file=sys.stderr, flush=True))
        self._kernels: dict[ShapeClass, Kernel] = {}
        self._failed: dict[ShapeClass, str] = {}
        self._lock = threading.RLock()
        self.compiles = 0

    def __call__(self, cls: ShapeClass, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Any]:
        from torch._dynamo.exc import TorchDynamoException

        with self._lock:
            if cls in self._failed:
                raise BackendError(self._failed[cls], hint=COMPILE_HINT)
            kernel = self._kernels.get(cls)
            if kernel is None:
                kernel = self._kernels[cls] = self._build(cls)
        try:
            return kernel(q, k, v, mask)
        except TorchDynamoException as error:
            text = f"FlexAttention did not compile for {cls}: {type(error).__name__}: {error}"
            self._failed[cls] = text
            raise BackendError(text, hint=COMPILE_HINT) from error

    def _build(self, cls: ShapeClass) -> Kernel:
        def announced(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            self.compiles += 1
            self._narrate(f"flash-attn3: compiling FlexAttention for {cls} (once per shape class; up to a minute)")
            started = time.monotonic()
            done = self._compiler(graph, inputs)
            self._narrate(f"flash-attn3: compiled in {time.monotonic() - started:.1f} s")
            return done

        kernel = plain_kernel(cls)
        # torch counts recompilations per code object and gives up at eight: each class gets a code object of its own.
        assert isinstance(kernel, types.FunctionType)
        own = types.FunctionType(
            kernel.__code__.replace(co_name=f"flex_{len(self._kernels)}"),
            kernel.__globals__,
            kernel.__name__,
            kernel.__defaults__,
            kernel.__closure__,
        )
        dynamic = False if cls.device.startswith("cpu") else None
        compiled: Kernel = torch.compile(own, backend=announced, fullgraph=True, dynamic=dynamic)
        return compiled
