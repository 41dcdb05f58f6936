"""Run inside an environment with diffusers 0.35, which defines the custom op `_flash_attn_forward` itself.

Faked: its FA3 op is for CUDA only, so its own function is registered for the CPU as well. The last line is JSON.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F


def main() -> None:
    import flash_attn_interface  # first, so that its op is the one that is replaced
    from diffusers.models import attention_dispatch as dispatch

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 12, 4, 16) for _ in range(3))
    turned = [x.transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*turned).transpose(1, 2)
    theirs = dispatch._wrapped_flash_attn_3_original
    dispatch.flash_attn_3_func = lambda *x: flash_attn_interface.flash_attn_func(*x, return_attn_probs=True)
    theirs.register_kernel("cpu")(theirs._init_fn)
    op = torch.ops.flash_attn_3._flash_attn_forward
    report = {
        "detected": dispatch._CAN_USE_FLASH_ATTN_3,
        "arguments": len(op.default._schema.arguments),
        "dense": float((theirs(q, k, v)[0] - expected).abs().max()),
        "ours": float((flash_attn_interface.flash_attn_func(q, k, v) - expected).abs().max()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
