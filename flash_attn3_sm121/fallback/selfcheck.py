"""A fused operator is private to torch: it is believed only after it has computed a small problem correctly.

The problem has grouped heads, and is run with no mask, with a causal mask, and with an explicit one whose keys are only
a part of all keys (so the backward gets an LSE from elsewhere, as a band in pieces gives it).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Kernel(Protocol):
    """What a fused kernel offers; both sides are (B, H, S, d), keys and values may have fewer heads."""

    @property
    def TYPES(self) -> tuple[torch.dtype, ...]:
        """The types that it serves."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(out, lse); top-left causal, for squares only; the additive mask hides no row completely."""

    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        *,
        scale: float,
        causal: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dv) for the keys at hand, given out and lse over all keys."""


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    scores = scale * q @ k.repeat_interleave(group, 1).transpose(-1, -2) + mask
    weights = scores.softmax(-1)
    return weights @ v.repeat_interleave(group, 1), scores.logsumexp(-1), weights


def _part(kernel: Kernel, tensors: tuple[Tensor, ...], mask: Tensor, scale: float, *, kind: str) -> str | None:
    """Forward, then the backward of the first half of the keys with out and lse of all; None, or what is wrong."""
    q, k, v, dout = tensors
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    # On the CPU: a process that asked for deterministic algorithms may be refused a product on the device.
    exact = [tensor.cpu().to(wide) for tensor in tensors]
    want, want_lse, weights = _plain(exact[0], exact[1], exact[2], mask.cpu().to(wide), scale)
    causal = kind == "causal"
    given = mask.to(q.dtype) if kind == "explicit mask" else None
    out, lse = kernel.forward(q, k, v, scale=scale, causal=causal, mask=given)
    keys = k.shape[2] if causal else k.shape[2] // 2
    part = given[:, :keys] if given is not None else None
    dq, dk, dv = kernel.backward(
        dout, q, k[:, :, :keys], v[:, :, :keys], out, lse, scale=scale, causal=causal, mask=part
    )
    group = q.shape[1] // k.shape[1]

    def per_kv(tensor: Tensor) -> Tensor:
        return tensor.view(tensor.shape[0], -1, group, *tensor.shape[2:]).sum(2)

    slopes = exact[3] @ exact[2].repeat_interleave(group, 1).transpose(-1, -2) - (exact[3] * want).sum(-1, keepdim=True)
    slopes = (slopes * weights * scale)[..., :keys]
    seen_k = exact[1][:, :, :keys].repeat_interleave(group, 1)
    pairs = {
        "out": (out, want),
        "lse": (lse, want_lse),
        "dq": (dq, slopes @ seen_k),
        "dk": (dk, per_kv(slopes.transpose(-1, -2) @ exact[0])),
        "dv": (dv, per_kv(weights[..., :keys].transpose(-1, -2) @ exact[3])),
    }
    for name, (found, expected) in pairs.items():
        if found.shape != expected.shape:
            return f"{name} with {kind} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
        worst = float((found.cpu().to(wide) - expected).abs().max())
        if not worst <= LIMITS[q.dtype]:
            return f"{name} with {kind} is off by {worst:.2g}"
    return None


def failure(kernel: Kernel, *, device: torch.device, dtype: torch.dtype, dim: int, group: int) -> str | None:
    """Run the kernel on the small problem; None when it computes what it should, else what is wrong with it."""
    generator = torch.Generator("cpu").manual_seed(0)

    def random(heads: int, rows: int) -> Tensor:
        numbers = torch.randn(2, rows, heads, dim, generator=generator, dtype=torch.float64, device="cpu")
        return numbers.to(device=device, dtype=dtype).transpose(1, 2)

    rows, scale = 24, dim**-0.5
    tensors = (random(2 * group, rows), random(2, rows), random(2, rows), random(2 * group, rows))
    index = torch.arange(rows, device=device)
    later = index[None] > index[:, None]
    far = (index[None] - index[:, None]).abs() > 15
    kinds = {"no mask": torch.zeros_like(later), "causal": later, "explicit mask": far}
    try:
        for kind, hidden in kinds.items():
            mask = torch.zeros(
                rows, rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device
            ).masked_fill_(hidden, -torch.inf)
            wrong = _part(kernel, tensors, mask, scale, kind=kind)
            if wrong is not None:
                return f"torch {torch.__version__}: {wrong}"
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel, and the answer is remembered
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        return f"torch {torch.__version__} refuses: {error}"
    return None
