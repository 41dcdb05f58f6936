"""Attention over one long sequence on two machines: torch's own context-parallel ring over flash_attn_3's functions.

    python examples/two_sparks.py

starts two processes on this CPU. On two machines, run this on each, FIRST being the name of one of them:

    torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 two_sparks.py
"""

import os
import tempfile

import torch
import torch.distributed as dist
from flash_attn_interface import _flash_attn_backward, flash_attn_func

try:  # private to torch, and moved in 2.10
    from torch.distributed.tensor.experimental._context_parallel import _attention as engine
except ImportError:
    from torch.distributed.tensor.experimental import _attention as engine


def forward(q, k, v, is_causal):
    out, lse = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=is_causal, return_attn_probs=True)
    return out.transpose(1, 2), lse


def backward(dout, query, key, value, out, logsumexp, is_causal):
    dout, q, k, v, out = (x.transpose(1, 2).contiguous() for x in (dout, query, key, value, out))
    written = {name: torch.empty_like(x) for name, x in (("dq", q), ("dk", k), ("dv", v))}
    _flash_attn_backward(dout, q, k, v, out, logsumexp, **written, is_causal=is_causal)
    return [x.transpose(1, 2) for x in written.values()]


def share(x):
    """This process's tokens: with a piece from each end, all have equally many keys to look at."""
    pieces = x.chunk(2 * dist.get_world_size(), dim=2)
    return torch.cat((pieces[dist.get_rank()], pieces[-1 - dist.get_rank()]), dim=2)


def main(rank=-1, meet="env://", size=-1):
    device = "cuda" if rank < 0 and torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo", init_method=meet, rank=rank, world_size=size)
    torch.manual_seed(0)
    whole = [torch.randn(1, heads, 2048, 64, dtype=torch.bfloat16, device=device) for heads in (8, 2, 2, 8)]
    q, k, v, dout = (share(x) for x in whole)
    out, lse = engine._templated_ring_attention(dist.group.WORLD, 2, forward, q, k, v, True)
    gradients = engine._templated_ring_attention_backward(
        dist.group.WORLD, 2, backward, dout, "dout", q, k, v, out.to(q.dtype), lse, True
    )
    right, right_lse = forward(*whole[:3], True)  # the same on one machine
    pairs = zip((out, *gradients), (right, *backward(whole[3], *whole[:3], right, right_lse, True)), strict=True)
    gaps = torch.stack([(mine - share(one)).abs().max().float() for mine, one in pairs])
    dist.all_reduce(gaps, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print("out, dq, dk and dv differ from one machine's by", *(f"{gap:.4f}" for gap in gaps.tolist()), flush=True)
    dist.destroy_process_group()
    if device == "cpu":  # torch's gloo threads outlive the group here, and may abort an interpreter that ends
        os._exit(0)


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(main, (f"file://{folder}/meet", 2), nprocs=2)
