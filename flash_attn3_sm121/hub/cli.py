"""`flash-attn3 hub`: finds the subcommand; the work is in `hub/commands/` and `hub/server/`."""

from __future__ import annotations

import argparse
import importlib

from flash_attn3_sm121.commandline import end_in_order
from flash_attn3_sm121.errors import MissingPackageError, pip_command

_COMMANDS = "flash_attn3_sm121.hub.commands"
# name -> (module, its function, what `--help` says); `configure_<name>` beside the function makes the options
ACTIONS: dict[str, tuple[str, str, str]] = {
    "publish": (f"{_COMMANDS}.publishing", "publish", "put verified wheels into the hub, for pip and for get_kernel"),
    "list": (f"{_COMMANDS}.inspection", "list_all", "list the wheels and the kernel repositories of the hub"),
    "show": (f"{_COMMANDS}.inspection", "show", "show one repository or one wheel in full"),
    "check": (f"{_COMMANDS}.inspection", "check", "hash every file again and, with trusted keys, check the signature"),
    "remove": (f"{_COMMANDS}.upkeep", "remove", "take out wheels, repositories or revisions"),
    "prune": (f"{_COMMANDS}.upkeep", "prune", "take out all but the newest releases"),
    "rollback": (
        f"{_COMMANDS}.upkeep",
        "rollback",
        "go back to an earlier generation; also mends a hub whose last one is damaged",
    ),
    "gc": (f"{_COMMANDS}.upkeep", "gc", "delete old generations, and the files that only they need"),
    "env": (f"{_COMMANDS}.transport", "env", "print the LOCAL_KERNELS line for `kernels` clients on this machine"),
    "seed": (f"{_COMMANDS}.transport", "seed", "fill a Hugging Face cache, for clients with HF_HUB_OFFLINE=1"),
    "export": (f"{_COMMANDS}.transport", "export", "write the hub as plain files for nginx, an object store or a CDN"),
    "pull": (f"{_COMMANDS}.transport", "pull", "make or renew a verified copy of a hub that is served elsewhere"),
    "serve": (
        "flash_attn3_sm121.hub.server.cli",
        "serve",
        "serve the hub over HTTP: kernels, an index for pip, pages for people",
    ),
    "nginx": ("flash_attn3_sm121.hub.server.cli", "nginx", "print the nginx configuration that serves this hub"),
    "keygen": (f"{_COMMANDS}.publishing", "keygen", "make a pair of keys to sign with"),
    "sign": (f"{_COMMANDS}.publishing", "sign", "sign what the hub holds, as a new generation"),
}
# What the extra `[hub]` brings; without it a command that needs one says so.
EXTRA = frozenset({"aiohttp", "cryptography", "huggingface_hub", "jinja2", "markdown_it", "packaging", "uvloop"})


def configure_hub(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The hub folder is --hub, else $FLASH_ATTN3_HUB, else ~/.local/share/flash-attn3-sm121/hub (in $XDG_DATA_HOME "
        "where that is set). Each change of a hub makes a new generation of it, whole or not at all."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, function, text) in ACTIONS.items():
        loaded = importlib.import_module(module)
        sub = actions.add_parser(name, help=text, description=text, formatter_class=parser.formatter_class)
        getattr(loaded, f"configure_{name}")(sub)
        sub.set_defaults(hub_action=getattr(loaded, function))


def do_hub(args: argparse.Namespace) -> int:
    end_in_order()
    try:
        return int(args.hub_action(args))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
        raise MissingPackageError(
            f"`flash-attn3 hub {args.action}` needs the Python package {missing}",
            hint=f'{pip_command()} install "flash_attn3_sm121[hub]" brings everything that the hub needs',
        ) from error
