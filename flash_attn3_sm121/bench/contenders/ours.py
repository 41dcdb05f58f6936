"""This package, through its public functions, with one backend forced: what a user's call costs, dispatch included."""

from __future__ import annotations

from torch import Tensor

import flash_attn3_sm121 as fa3
from flash_attn3_sm121.bench.case import Case
from flash_attn3_sm121.bench.check import Results
from flash_attn3_sm121.bench.contenders.base import Refused, Runner, with_backward
from flash_attn3_sm121.errors import BackendError

ABOUT = {
    "native": ("our kernels, compiled for this device", frozenset({"cuda"})),
    "sdpa": ("our fallback: exact blockwise attention on torch's own kernels", frozenset({"cpu", "cuda", "mps"})),
    "flex": ("our FlexAttention backend, compiled per shape class", frozenset({"cpu", "cuda"})),
}


class Ours:
    fp8 = True

    def __init__(self, backend: str) -> None:
        self.name = backend
        self._backend = backend
        self.about, self.devices = ABOUT[backend]

    def prepare(self, case: Case) -> Runner:
        run = with_backward(case, lambda q, k, v: self._call(case, q, k, v))

        def forced() -> Results:
            with fa3.use_backend(self._backend):
                return run()

        try:
            forced()  # also compiles, loads and plans
        except BackendError as error:
            raise Refused(_reason(error, self._backend)) from error
        return forced

    @staticmethod
    def _call(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        work = case.workload
        window = (work.window, 0 if work.causal else -1) if work.window >= 0 else (-1, -1)
        out: Tensor
        if work.kind == "dense":
            out = fa3.flash_attn_func(q, k, v, causal=work.causal, window_size=window)
        elif work.kind == "packed":
            longest = max(work.lengths)
            out = fa3.flash_attn_varlen_func(
                q, k, v, case.cu_seqlens, case.cu_seqlens, longest, longest, causal=work.causal, window_size=window
            )
        else:
            out = fa3.flash_attn_with_kvcache(
                q,
                k,
                v,
                cache_seqlens=case.cache_seqlens,
                page_table=case.page_table,
                causal=work.causal,
                window_size=window,
            )
        return out


def _reason(error: BackendError, backend: str) -> str:
    """The line about the forced backend in the error's list of refusals; else its first line."""
    for line in str(error).splitlines():
        head, _, reason = line.strip().partition(f"not {backend}: ")
        if not head and reason:
            return reason
    return str(error).splitlines()[0]
