"""`flash-attn3`: its subcommands. `flash-attn3 --help` needs neither torch nor the network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flash_attn3_sm121.commandline import Program

# name -> (module, what `--help` says)
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("flash_attn3_sm121.hub.run", "run a command with get_kernel() of the kernels library served from here"),
    "override": (
        "flash_attn3_sm121.hub.override_cli",
        "override get_kernel() for every Python of a virtual environment",
    ),
    "hub": ("flash_attn3_sm121.hub.cli", "the local kernel hub: publish, serve, check, export wheels and kernels"),
    "explain": (
        "flash_attn3_sm121.api.explain_cli",
        "which backend would serve a call, and why each other one would not",
    ),
    "bench": ("flash_attn3_sm121.bench.command", "every attention this machine has, checked and timed side by side"),
    "selftest": ("flash_attn3_sm121.selftest.cli", "every feature on this device against plain fp64 arithmetic"),
    "doctor": ("flash_attn3_sm121.doctor.cli", "what this machine has, what is wrong, and the command that fixes it"),
    "completion": ("flash_attn3_sm121.cli", "print a script with which bash or zsh completes this command line"),
}


def libraries() -> list[str]:
    """A line for each kernel library of this install: pin, profile, capabilities."""
    from flash_attn3_sm121.native.buildfacts import BuildFacts
    from flash_attn3_sm121.native.location import locate

    found = [BuildFacts.read(path) for path in sorted(locate().folder.glob("sm*.json"))]
    return [f"library {facts.family}: {facts.line}" for facts in found]


PROGRAM = Program(
    name="flash-attn3",
    short="flash-attn3",
    about="FlashAttention-3 for GPUs that upstream leaves out (GB10, RTX 50, ...).",
    commands=COMMANDS,
    holds=libraries,
)


def main(argv: Sequence[str] | None = None) -> int:
    return PROGRAM.main(list(sys.argv[1:] if argv is None else argv))


def configure_completion(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'Use it as: eval "$(flash-attn3 completion bash)"'
    parser.add_argument("shell", choices=("bash", "zsh"))


def do_completion(args: argparse.Namespace) -> int:
    """Print a script, made by shtab, that completes commands, actions and options."""
    import shtab

    print(shtab.complete(PROGRAM.parser(), shell=args.shell))
    return 0
