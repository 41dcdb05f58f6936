"""The clients of docs/clients.md that are packages: what an installed one gets from us, in a line each.

A test holds the names and the page's table to one another. transformers, torch and kernels are asked by probes instead.
"""

from __future__ import annotations

from flash_attn3_sm121.doctor.facts import Client

ASKED = ("transformers", "torch", "kernels")  # by the probes in clients.py
# No distribution tells that these are there.
PROGRAMS = ("nanochat", "modded-nanogpt", "Wan, Wan2GP, kijai's nodes", "ComfyUI")

AS_FA2 = "flash-attn3 run --as flash_attn serves it"

# distribution -> how it comes to us
KNOWN: dict[str, str] = {
    "diffusers": 'set_attention_backend("_flash_3") works',
    "transformer-engine": "finds us by itself",
    "torchtitan": "after flash_attn3_sm121.activate(), what torch serves",
    "megatron-core": "its paged inference finds us by itself; training goes through transformer-engine",
    "yunchang": "AttnType.FA3 works",
    "xformers": "its fa3 op finds us by itself",
    "vllm": "flash-attn3 run serves its hub kernel, but it refuses FlashAttention-3 on 12.1 by itself",
    "sglang": "flash-attn3 run serves its hub kernel, but it refuses FlashAttention-3 on 12.1 by itself",
    "ring-flash-attn": AS_FA2,
    "x-transformers": AS_FA2,
    "unsloth": AS_FA2,
}


def installed(versions: dict[str, str]) -> tuple[Client, ...]:
    """A line for each known client among the installed distributions (name -> version)."""
    there = [name for name in KNOWN if name in versions]
    return tuple(Client(name=f"{name} {versions[name]}", gets=KNOWN[name], ours=True) for name in there)
