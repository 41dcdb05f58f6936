"""torch's own `scaled_dot_product_attention`, one backend at a time, for workloads that need no mask tensor."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flash_attn3_sm121.bench.case import Case
from flash_attn3_sm121.bench.contenders.base import Refused, Runner, with_backward

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
