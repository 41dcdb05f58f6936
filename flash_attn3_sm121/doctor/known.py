"""The clients of docs/clients.md that are packages: what an installed one gets from us, in a line each.

A test holds the names and the page's table to one another. transformers, torch and kernels are asked by probes instead.
"""

from __future__ import annotations

from flash_attn3_sm121.doctor.facts import Client

ASKED = ("transformers", "torch", "kernels")  # by the probes in clients.py
PROGRAMS = ("nanochat", "modded-nanogpt")  # no distribution tells that they are there

# distribution -> how it comes to us
KNOWN: dict[str, str] = {
    "diffusers": 'set_attention_backend("_flash_3") works',
    "transformer-engine": "finds us by itself",
    "torchtitan": "after flash_attn3_sm121.activate(), what torch serves",
    "yunchang": "AttnType.FA3 works",
    "xformers": "its fa3 op finds us by itself",
}


def installed(versions: dict[str, str]) -> tuple[Client, ...]:
    """A line for each known client among the installed distributions (name -> version)."""
    there = [name for name in KNOWN if name in versions]
    return tuple(Client(name=f"{name} {versions[name]}", gets=KNOWN[name], ours=True) for name in there)
