"""Run inside an environment with the real x-transformers: a decoder over packed documents, and each document alone.

Faked: `torch.cuda.get_device_capability`, which it asks before it takes flash_attn. The last line of output is JSON.
"""

from __future__ import annotations

import json

import torch

torch.cuda.get_device_capability = lambda *_: (12, 1)

from x_transformers import Decoder, TransformerWrapper  # noqa: E402

LENGTHS = (7, 13, 4)


def made(packed: bool) -> TransformerWrapper:
    layers = Decoder(
        dim=64, depth=2, heads=4, attn_dim_head=16, rotary_pos_emb=True, attn_flash=packed, attn_flash_pack_seq=packed
    )
    return TransformerWrapper(num_tokens=97, max_seq_len=64, use_abs_pos_emb=False, attn_layers=layers)


def main() -> None:
    torch.manual_seed(0)
    mine, plain = made(True), made(False)
    plain.load_state_dict(mine.state_dict())
    tokens = torch.randint(97, (1, sum(LENGTHS)))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    where = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds, "max_seqlen_q": max(LENGTHS), "max_seqlen_k": max(LENGTHS)}
    together = mine(tokens, pos=positions, flash_pack_seq_kwargs=where)
    apart = torch.cat([plain(piece) for piece in tokens.split(LENGTHS, dim=1)], dim=1)
    together.square().sum().backward()
    apart.square().sum().backward()
    pairs = zip(mine.parameters(), plain.parameters(), strict=True)
    gradients = max(float((a.grad - b.grad).abs().max()) for a, b in pairs if b.grad is not None)
    print(json.dumps({"out": float((together - apart).abs().max()), "gradients": gradients}))


if __name__ == "__main__":
    main()
