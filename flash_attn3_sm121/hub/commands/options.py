"""What the hub's subcommands share: the folder option, the keys, and JSON."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from flash_attn3_sm121.hub.layout import default_root
from flash_attn3_sm121.hub.sign import SIGNING_ENV, SigningKey, TrustedKeys
from flash_attn3_sm121.hub.store import Hub


def add_hub_option(parser: argparse.ArgumentParser, *, json_too: bool = True) -> None:
    parser.add_argument(
        "--hub", type=Path, metavar="DIR", help="the hub folder (default: see `flash-attn3 hub --help`)"
    )
    if json_too:
        parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_key_options(parser: argparse.ArgumentParser) -> None:
    """For every command that makes a generation: a signed hub stays signed unless its owner says otherwise."""
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help=f"sign with this private key (default: ${SIGNING_ENV})"
    )
    parser.add_argument("--unsigned", action="store_true", help="do not sign, although the hub is signed")


def trusted_keys(args: argparse.Namespace) -> TrustedKeys | None:
    """The keys of --keys or the environment; None where there is neither."""
    return TrustedKeys.parse(args.keys) if args.keys else TrustedKeys.from_env()


def hub_root(args: argparse.Namespace) -> Path:
    return args.hub if args.hub is not None else default_root()


def open_hub(args: argparse.Namespace) -> Hub:
    return Hub.open(hub_root(args))


def signing_key(args: argparse.Namespace) -> SigningKey | None:
    """The key of --sign or the environment; None where there is neither."""
    if getattr(args, "unsigned", False):
        return None
    wanted = args.sign or (Path(os.environ[SIGNING_ENV]) if os.environ.get(SIGNING_ENV) else None)
    return SigningKey.load(wanted) if wanted else None


def counted(number: int, noun: str) -> str:
    """`1 wheel`, `2 wheels`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, sort_keys=True))


def report(args: argparse.Namespace, value: Any, *lines: str) -> int:
    """The end of a command: its result as JSON where that was asked for, else as lines for people."""
    if args.json:
        print_json(value)
    else:
        print("\n".join(lines))
    return 0
