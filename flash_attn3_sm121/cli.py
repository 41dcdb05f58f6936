"""`flash-attn3`: one subcommand a job. This module only finds the subcommand and turns errors into exit codes.

A subcommand is a module with `configure(parser)` and `run(args) -> int`; it is imported only when asked for, so
`flash-attn3 --help` needs neither torch nor the network.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from flash_attn3_sm121 import closedpipe
from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.errors import FlashAttn3Error

# name -> (module, what `--help` says)
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("flash_attn3_sm121.hub.run", "run a command with get_kernel() of the kernels library served from here"),
    "override": ("flash_attn3_sm121.hub.override_cli", "the same for every Python of a virtual environment, to stay"),
    "hub": ("flash_attn3_sm121.hub.cli", "the local kernel hub: publish, serve, check, export wheels and kernels"),
    "explain": (
        "flash_attn3_sm121.api.explain_cli",
        "which backend would serve a call, and why each other one would not",
    ),
    "bench": ("flash_attn3_sm121.bench.command", "every attention this machine has, checked and timed side by side"),
    "selftest": ("flash_attn3_sm121.selftest.cli", "every feature on this device against plain fp64 arithmetic"),
    "doctor": ("flash_attn3_sm121.doctor.cli", "what this machine has, what is wrong, and the command that mends it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="flash-attn3", description="FlashAttention-3 for GPUs that upstream leaves out (GB10, RTX 50, ...)."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == wanted:
            loaded = importlib.import_module(module)
            loaded.configure(sub)
            sub.set_defaults(run=loaded.run)
    args = parser.parse_args(arguments)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return closedpipe.give_up()
    except FlashAttn3Error as error:
        print(f"flash-attn3: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("flash-attn3: interrupted", file=sys.stderr)
        return 130
