"""The way of today's nanochat: look at the device, ask has_kernel, then get_kernel, and swallow every failure."""

from __future__ import annotations

from types import ModuleType

import faked_gb10
import torch
import torch.nn.functional as F

faked_gb10.fake()


def load() -> ModuleType | None:
    if not torch.cuda.is_available():
        return None
    try:
        major, _ = torch.cuda.get_device_capability()
        from kernels import get_kernel, has_kernel

        repo = "varunneal/flash-attention-3" if major == 9 else "kernels-community/flash-attn3"
        return get_kernel(repo).flash_attn_interface if has_kernel(repo) else None
    except Exception as error:  # noqa: BLE001 - the client's own way; the reason is printed for the test
        print(f"swallowed {error!r}")
        return None


def main() -> None:
    flash_attn = load()
    assert flash_attn is not None, "the client would run without FlashAttention-3"
    torch.manual_seed(0)
    for dim in (16, 32, 64):
        q = torch.randn(2, 64, 4, dim, dtype=torch.bfloat16)
        k, v = (torch.randn(2, 64, 2, dim, dtype=torch.bfloat16) for _ in range(2))
        for left in (-1, 16):
            got = flash_attn.flash_attn_func(q, k, v, causal=True, window_size=(left, 0))
            row, column = torch.arange(64)[:, None], torch.arange(64)[None, :]
            mask = (column <= row) & ((left < 0) | (column >= row - left))
            heads = [x.float().transpose(1, 2) for x in (q, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2))]
            expected = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)
            torch.testing.assert_close(got.float(), expected, rtol=1e-2, atol=1e-2)
    print("nanochat ok")


if __name__ == "__main__":
    main()
