"""Other people's kernels, when they are installed: FlashAttention 2 and FlashAttention 4 (CuTe)."""

from __future__ import annotations

from torch import Tensor

from flash_attn3_sm121.bench.case import Case
from flash_attn3_sm121.bench.contenders.base import Refused, Runner, load, with_backward


def _window(case: Case, unlimited: int | None) -> tuple[int | None, int | None]:
    work = case.workload
    left = work.window if work.window >= 0 else unlimited
    return left, 0 if work.causal else unlimited


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


class FlashAttention2:
    name = "flash-attn-2"
    about = "the flash_attn package (FlashAttention 2)"
    devices = frozenset({"cuda"})

    def prepare(self, case: Case) -> Runner:
        module, work = load("flash_attn"), case.workload
        if module.flash_attn_func.__module__.startswith("flash_attn3_sm121."):
            raise Refused("the flash_attn that is installed is flash_attn3_sm121 under that name")
        window = _window(case, -1)
        if work.kind == "paged" and work.page_size % 256:
            raise Refused(f"its pages must be multiples of 256; these are {work.page_size}")

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if work.kind == "dense":
                return _first(module.flash_attn_func(q, k, v, causal=work.causal, window_size=window))
            if work.kind == "packed":
                cu, longest = case.cu_seqlens, max(work.lengths)
                return _first(
                    module.flash_attn_varlen_func(
                        q, k, v, cu, cu, longest, longest, causal=work.causal, window_size=window
                    )
                )
            return _first(
                module.flash_attn_with_kvcache(
                    q, k, v, cache_seqlens=case.cache_seqlens, block_table=case.page_table, causal=work.causal,
                    window_size=window,
                )
            )  # fmt: skip

        return with_backward(case, forward)


class FlashAttention4:
    name = "flash-attn-4"
    about = "flash_attn.cute (FlashAttention 4, CuTe DSL)"
    devices = frozenset({"cuda"})

    def prepare(self, case: Case) -> Runner:
        module, work = load("flash_attn.cute"), case.workload
        if work.kind in ("cache", "paged"):
            raise Refused("it has no KV cache interface")
        window = _window(case, None)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if work.kind == "dense":
                return _first(module.flash_attn_func(q, k, v, causal=work.causal, window_size=window))
            return _first(
                module.flash_attn_varlen_func(
                    q, k, v, cu_seqlens_q=case.cu_seqlens, cu_seqlens_k=case.cu_seqlens, causal=work.causal,
                    window_size=window,
                )
            )  # fmt: skip

        return with_backward(case, forward)
