"""Run inside an environment with the real diffusers: what it detects, and its FA3 backends through ours.

Faked: diffusers registers its FA3 op for CUDA only, so its own function is registered for the CPU as well; and the
kernels that its hub backend would download are put into its registry by hand. The last line of output is JSON.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    turned = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*turned, is_causal=causal).transpose(1, 2)


def far(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def through_the_hub_ops(dispatch: Any, q: Tensor, k: Tensor, v: Tensor) -> list[float]:
    """The pair of functions that its context parallelism calls, forward then backward."""
    import flash_attn3_sm121

    config = dispatch._HUB_KERNELS_REGISTRY[dispatch.AttentionBackendName._FLASH_3_HUB]
    config.kernel_fn = flash_attn3_sm121.flash_attn_func
    for name in ("wrapped_forward", "wrapped_backward"):
        found: Any = flash_attn3_sm121
        for part in getattr(config, f"{name}_attr").split("."):
            found = getattr(found, part)
        setattr(config, f"{name}_fn", found)
    context = SimpleNamespace()
    context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
    out, lse = dispatch._flash_attention_3_hub_forward_op(context, q, k, v, is_causal=True, return_lse=True)
    grad = torch.randn_like(out)
    gradients = dispatch._flash_attention_3_hub_backward_op(context, grad)[:3]
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    expected = reference(*leaves, True)
    right = torch.autograd.grad(expected, leaves, grad)
    plain = dispatch._flash_attention_3_hub(q, k, v, is_causal=True)
    return [far(out, expected), far(plain, expected), float(lse.shape == q.shape[:3])] + [
        far(a, b) for a, b in zip(gradients, right, strict=True)
    ]


def main() -> None:
    from diffusers.models import attention_dispatch as dispatch
    from diffusers.utils import is_flash_attn_3_available

    report: dict[str, Any] = {"detected": bool(is_flash_attn_3_available())}
    report["imported"] = dispatch.flash_attn_3_func is not None
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 12, 4, 16) for _ in range(3))
    wrapped = dispatch._wrapped_flash_attn_3
    wrapped.register_kernel("cpu")(wrapped._init_fn)
    dispatch._check_attention_backend_requirements(dispatch.AttentionBackendName._FLASH_3)
    out, lse = dispatch._flash_attention_3(q, k, v, is_causal=False, return_lse=True)
    report["dense"] = far(out, reference(q, k, v, False))
    report["lse_shape"] = list(lse.shape)
    report["hub"] = through_the_hub_ops(dispatch, q, k, v)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
