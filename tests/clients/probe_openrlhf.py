"""Run with the folder of OpenRLHF's real ring_attn_utils.py: two processes share a batch, and put it together again.

Nothing is faked. A batch with padding is packed, sliced, gathered and padded. The last line of output is a JSON object:
the largest difference of the rows to those of the batch, and of their gradients.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from ranks import Differences, print_largest

sys.path.insert(0, sys.argv[1])
import ring_attn_utils as ring

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])  # five tokens: one of padding for two processes


def work(rank: int) -> Differences:
    group = dist.group.WORLD
    ring.set_ring_attn_group(group)
    tokens = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    part, _, _, padded, indices = ring.unpad_and_slice_tensor(tokens, MASK, group)
    leaf = part.float().requires_grad_()
    whole = ring.gather_and_pad_tensor(leaf, group, padded, indices, *MASK.shape)
    (found,) = torch.autograd.grad(whole, leaf, tokens * 10.0)  # the sum over both processes: twice as much
    return {
        "rows": float((whole - tokens).abs().max()),
        "gradients": float((found - 20.0 * part).abs().max()),
    }


if __name__ == "__main__":
    print_largest(work)
