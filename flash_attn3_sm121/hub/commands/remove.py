"""`flash-attn3 hub remove`."""

from __future__ import annotations

import argparse

from flash_attn3_sm121.hub.commands.common import add_hub_option, open_hub, print_json
from flash_attn3_sm121.hub.maintain import remove


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="WHEEL | ORG/NAME | ORG/NAME@REVISION")
    add_hub_option(parser)


def run(args: argparse.Namespace) -> int:
    index, done = remove(open_hub(args), args.names)
    if args.json:
        print_json({"generation": index.generation, "removed": done})
        return 0
    for name in done:
        print(f"removed {name}")
    print(f"generation {index.generation}; the space comes back with: flash-attn3 hub gc")
    return 0
