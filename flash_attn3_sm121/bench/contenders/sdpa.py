"""torch's own `scaled_dot_product_attention`: one backend at a time without a mask tensor, and with a dense mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flash_attn3_sm121.bench.case import Case
from flash_attn3_sm121.bench.contenders.base import Refused, Runner, with_backward
from flash_attn3_sm121.bench.workloads import Workload

BACKENDS = {
    "flash": (SDPBackend.FLASH_ATTENTION, frozenset({"cpu", "cuda"})),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, frozenset({"cuda"})),
    "cudnn": (SDPBackend.CUDNN_ATTENTION, frozenset({"cuda"})),
    "math": (SDPBackend.MATH, frozenset({"cpu", "cuda", "mps"})),
}
# The words of torch's error where the one allowed backend does not serve a call (CUDA, CPU).
NO_KERNEL = ("No available kernel", "No viable backend")


class TorchSdpa:
    def __init__(self, backend: str) -> None:
        self.name = f"torch-{backend}"
        self.about = f"torch's scaled_dot_product_attention, {backend} backend, no mask tensor"
        self._backend, self.devices = BACKENDS[backend]

    def prepare(self, case: Case) -> Runner:
        work = case.workload
        if work.kind == "packed":
            raise Refused("SDPA takes no packed sequences without a mask")
        if work.kind == "paged":
            raise Refused("SDPA takes no page table")
        if work.window >= 0:
            raise Refused("SDPA takes no window without a mask")
        if not work.uniform:
            raise Refused("SDPA takes no unlike lengths without a mask")
        rows, keys = work.sequences[0]
        if work.causal and rows not in (1, keys):
            raise Refused("SDPA's is_causal is aligned to the top left")
        causal = work.causal and rows == keys
        gqa = work.heads != work.heads_kv

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            qt, kt, vt = (x.transpose(1, 2) for x in (q, k[:, :keys], v[:, :keys]))
            with sdpa_kernel(self._backend):
                return F.scaled_dot_product_attention(qt, kt, vt, is_causal=causal, enable_gqa=gqa).transpose(1, 2)

        run = with_backward(case, forward)
        try:
            run()
        except RuntimeError as error:
            if not any(words in str(error) for words in NO_KERNEL):
                raise
            raise Refused(f"torch has no {self.name.removeprefix('torch-')} kernel for this call") from error
        return run


def _mask(rows: int, keys: int, window: int, device: torch.device) -> Tensor:
    at = torch.arange(rows, device=device)[:, None] + (keys - rows)
    key = torch.arange(keys, device=device)[None]
    allowed = key <= at
    return allowed & (at - key <= window) if window >= 0 else allowed


def _attend(q: Tensor, k: Tensor, v: Tensor, work: Workload, mask: Tensor | None = None) -> Tensor:
    """(b, s, h, d) in and out; the shortcuts a careful writer takes, then the mask."""
    gqa = q.size(2) != k.size(2)
    rows, keys = q.size(1), k.size(1)
    q, k, v = (x.to(torch.bfloat16) if x.dtype == torch.float8_e4m3fn else x for x in (q, k, v))
    qt, kt, vt = (x.transpose(1, 2) for x in (q, k, v))
    window = work.window if 0 <= work.window < keys else -1
    if mask is None and rows == 1:
        if window >= 0:
            kt, vt = kt[:, :, keys - window - 1 :], vt[:, :, keys - window - 1 :]
        out = F.scaled_dot_product_attention(qt, kt, vt, enable_gqa=gqa)
    elif mask is None and window < 0 and rows == keys:
        out = F.scaled_dot_product_attention(qt, kt, vt, is_causal=work.causal, enable_gqa=gqa)
    else:
        mask = _mask(rows, keys, window, q.device) if mask is None else mask
        out = F.scaled_dot_product_attention(qt, kt, vt, attn_mask=mask, enable_gqa=gqa)
    return out.transpose(1, 2)


class DenseMask:
    """What nanochat-like code does without FlashAttention: a (Tq, Tk) bool mask for SDPA. Written from its description.

    Its known faults are kept, since they are what is compared against: it holds tensors the other way round (heads
    before time) and so transposes, it writes out the whole mask, and of a cache it reads the first row's length only.
    So are its shortcuts: plain causal squares take is_causal, one token takes no mask and slices its window, grouped
    heads go through enable_gqa and are not repeated, and everything stays in the tensors' own type, but for e4m3, which
    SDPA does not take: each call makes bf16 of it.
    """

    name = "dense-mask"
    about = "nanochat-style fallback: SDPA with a dense (Tq, Tk) bool mask"
    devices = frozenset({"cpu", "cuda", "mps"})
    fp8 = True

    def prepare(self, case: Case) -> Runner:
        work = case.workload
        if work.kind == "paged":
            raise Refused("it knows no page table")
        if work.kind == "dense":
            return with_backward(case, lambda q, k, v: _attend(q, k, v, work))
        if work.kind == "cache":
            return with_backward(case, lambda q, k, v: self._cached(case, q, k, v))
        return with_backward(case, lambda q, k, v: self._packed(case, q, k, v))

    @staticmethod
    def _cached(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert case.cache_seqlens is not None
        used = int(case.cache_seqlens[0])
        return _attend(q, k[:, :used], v[:, :used], case.workload)

    @staticmethod
    def _packed(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert case.cu_seqlens is not None
        at = torch.arange(q.size(0), device=q.device)
        document = torch.searchsorted(case.cu_seqlens[1:], at, right=True)
        same = document[:, None] == document[None]
        mask = same & _mask(q.size(0), k.size(0), case.workload.window, q.device)
        return _attend(q[None], k[None], v[None], case.workload, mask)[0]
