"""`flash-attn3 hub`: finds the subcommand; the work is in `hub/commands/` and `hub/server/`."""

from __future__ import annotations

import argparse
import importlib

_COMMANDS = "flash_attn3_sm121.hub.commands"
# name -> (module, what `--help` says)
ACTIONS: dict[str, tuple[str, str]] = {
    "publish": (f"{_COMMANDS}.publish", "put verified wheels into the hub, for pip and for get_kernel"),
    "list": (f"{_COMMANDS}.listing", "the wheels and the kernel repositories of the hub"),
    "show": (f"{_COMMANDS}.show", "one repository or one wheel in full"),
    "check": (f"{_COMMANDS}.check", "hash everything again (and check signatures, with trusted keys)"),
    "remove": (f"{_COMMANDS}.remove", "take out wheels, repositories or revisions"),
    "gc": (f"{_COMMANDS}.gc", "delete what no generation needs any more"),
    "env": (f"{_COMMANDS}.env", "the LOCAL_KERNELS line for clients on this machine"),
    "seed": (f"{_COMMANDS}.seed", "fill a Hugging Face cache, for HF_HUB_OFFLINE=1"),
    "export": (f"{_COMMANDS}.export", "write the hub as plain files for nginx, an object store or a CDN"),
    "serve": ("flash_attn3_sm121.hub.server.cli", "serve the hub: a kernel hub, a package index, a page"),
    "keygen": (f"{_COMMANDS}.keygen", "make a key to sign with"),
    "sign": (f"{_COMMANDS}.sign", "sign what is in the hub"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The hub folder is --hub, else $FLASH_ATTN3_HUB, else flash-attn3-sm121/hub in the user's data folder."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, text) in ACTIONS.items():
        loaded = importlib.import_module(module)
        sub = actions.add_parser(name, help=text, description=text, formatter_class=parser.formatter_class)
        loaded.configure(sub)
        sub.set_defaults(hub_action=loaded.run)


def run(args: argparse.Namespace) -> int:
    return int(args.hub_action(args))
