"""`flash-attn3 hub seed`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flash_attn3_sm121.hub.commands.common import add_hub_option, open_hub, print_json
from flash_attn3_sm121.hub.seed import COVERS, default_cache, seed


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repos", nargs="*", metavar="ORG/NAME", help="default: every repository of the hub")
    add_hub_option(parser)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="default: $HF_HUB_CACHE, $HF_HOME/hub, or the user's")


def run(args: argparse.Namespace) -> int:
    hub = open_hub(args)
    index = hub.index()
    cache = args.cache if args.cache is not None else default_cache()
    folders = seed(hub, index, args.repos or sorted(index.repos), cache)
    if args.json:
        print_json({"cache": str(cache), "folders": [str(path) for path in folders], "covers": list(COVERS)})
        return 0
    print(f"seeded {cache}")
    for path in folders:
        print(f"  {path.name}")
    print("set HF_HUB_OFFLINE=1 for the client; this covers")
    for text in COVERS:
        print(f"  {text}")
    return 0
