"""`python -m ci`: the harness's subcommands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flash_attn3_sm121.commandline import Program, end_in_order

# name -> (module, what `--help` says)
COMMANDS: dict[str, tuple[str, str]] = {
    "fetch": ("ci.commands.fetch", "bring sources, compiler and headers into the content cache, and stop"),
    "lock": ("ci.commands.lock", "pin other sources: make a lock from a checkout, or check one"),
    "wheel": ("ci.commands.wheel", "sources to a checked wheel, published to the local hub"),
    "wheel-fa2": (
        "ci.commands.wheel",
        "FlashAttention-2's names as a small wheel of their own, which nothing installs",
    ),
    "build": ("ci.commands.artifacts", "families, or a shard of them, to artifacts for another machine to assemble"),
    "assemble": ("ci.commands.artifacts", "artifacts to a checked wheel, slim or fat"),
    "verify": ("ci.commands.verify", "check built wheels, reading nothing but them"),
    "reproduce": ("ci.commands.verify", "build twice with cold caches in two folders and compare every byte"),
    "measure": ("ci.commands.measure", "what our units cost against upstream's files and flags, compiled in one run"),
    "plan": ("ci.commands.plan", "print what would be built, with flags and cost, without doing it"),
    "compare": ("ci.commands.compare", "what another CUDA version or pin makes of the same units, side by side"),
    "matrix": ("ci.commands.matrix", "the jobs of a workflow run: family x platform x shard, wheels, tests"),
    "kernels": ("ci.commands.kernels", "what each attention kernel takes and when it is launched, without a GPU"),
    "tiles": ("ci.commands.tiles", "search a tile table: candidates compiled one by one, their work counted, no GPU"),
    "prove": ("ci.commands.prove", "execute 12.1's kernels in software: races, bounds, numbers, without a GPU"),
    "gpu-test": ("ci.prove.gpu.cli", "what a wheel does on this machine's device: numbers, crashes, speed"),
    "fresh": ("ci.prove.fresh", "README's two commands on a bare Debian, as a new user would type them"),
    "emulate": ("ci.prove.emulated.cli", "install an aarch64 wheel under qemu-user and use it there"),
}


def main(argv: Sequence[str] | None = None) -> int:
    end_in_order()  # compilers are stopped, too
    program = Program(
        name="python -m ci", short="ci", about="Build FlashAttention-3 wheels from pinned sources.", commands=COMMANDS
    )
    return program.main(list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
