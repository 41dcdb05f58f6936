"""torch's public `context_parallel` on two processes, over our activation with faked kernels; run by a test.

Faked beside the kernels: on CPU tensors `scaled_dot_product_attention` takes an op that the ring does not know, so the
one that it takes on CUDA is called in its place. Printed are the largest gaps of out, dq, dk and dv to one process's,
and how often the kernels of the first process were called, forward and backward.
"""

from __future__ import annotations

import os
import tempfile

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import context_parallel_unshard

from flash_attn3_sm121.api import activation
from tests.fakes.libraries import Kernels, engine

LENGTH_AXIS = 2


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]
    return out


def main(rank: int, meet: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    kernels = Kernels()
    serving = engine(kernels.open)
    activation.engine = lambda: serving
    torch.manual_seed(0)
    whole = [torch.randn(1, heads, 16, 64, dtype=torch.bfloat16) for heads in (4, 2, 2, 4)]
    leaves = [x.clone().requires_grad_() for x in whole[:3]]
    right = F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
    wanted = [right.detach(), *torch.autograd.grad(right, leaves, whole[3])]

    activation.activate("cpu")
    F.scaled_dot_product_attention = scaled_dot_product_attention  # type: ignore[assignment]
    mesh = init_device_mesh("cpu", (2,))
    with context_parallel(mesh, buffers=whole, buffer_seq_dims=[LENGTH_AXIS] * 4):
        leaves = [x.detach().clone().requires_grad_() for x in whole[:3]]
        out = F.scaled_dot_product_attention(*leaves, is_causal=True)
        parts = [out.detach(), *torch.autograd.grad(out, leaves, whole[3])]
    found = context_parallel_unshard(mesh, parts, [LENGTH_AXIS] * 4)
    gaps = [float((mine - one).abs().max()) for mine, one in zip(found, wanted, strict=True)]
    if rank == 0:
        print(*gaps, len(kernels.calls), kernels.backward_calls, flush=True)
    dist.destroy_process_group()
    os._exit(0)  # torch's gloo threads outlive the group here, and may abort an interpreter that ends


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(main, (f"file://{folder}/meet",), nprocs=2)
