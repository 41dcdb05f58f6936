"""`flash-attn3 hub env`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from flash_attn3_sm121.hub.commands.common import add_hub_option, open_hub, print_json
from flash_attn3_sm121.hub.envline import COVERS, local_kernels


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'Use it as: eval "$(flash-attn3 hub env)"'
    parser.add_argument("repos", nargs="*", metavar="ORG/NAME", help="default: every repository of the hub")
    add_hub_option(parser)
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where the checkouts go (default: the user's cache)")


def run(args: argparse.Namespace) -> int:
    hub = open_hub(args)
    index = hub.index()
    under = args.dir.absolute() if args.dir else None
    value = local_kernels(
        hub, index, args.repos or sorted(index.repos), under=under, old=os.environ.get("LOCAL_KERNELS", "")
    )
    if args.json:
        print_json({"LOCAL_KERNELS": value, "covers": list(COVERS)})
        return 0
    print(f"export LOCAL_KERNELS={shlex.quote(value)}")
    for text in COVERS:
        print(f"# {text}", file=sys.stderr)
    return 0
