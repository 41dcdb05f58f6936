"""`flash-attn3 hub list`."""

from __future__ import annotations

import argparse
import dataclasses

from flash_attn3_sm121.hub.commands.common import add_hub_option, human_size, open_hub, print_json, table
from flash_attn3_sm121.hub.index import Index


def configure(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)


def run(args: argparse.Namespace) -> int:
    hub = open_hub(args)
    index = hub.index()
    if args.json:
        print_json({"hub": str(hub.layout.root), **dataclasses.asdict(index)})
        return 0
    print(f"{hub.layout.root}: generation {index.generation}{f' of {index.created}' if index.created else ''}")
    print(_wheels(index) if index.wheels else "  no wheels yet; flash-attn3 hub publish WHEEL...")
    if index.repos:
        print(_repos(index))
    return 0


def _wheels(index: Index) -> str:
    rows = [
        (name, entry.platform, ", ".join(entry.images) or "-", human_size(entry.size), entry.verify, entry.key or "-")
        for name, entry in sorted(index.wheels.items())
    ]
    return "\n" + table(("WHEEL", "PLATFORM", "MACHINE CODE", "SIZE", "VERIFY", "SIGNED BY"), rows)


def _repos(index: Index) -> str:
    rows = [
        (name, repo.flavour, repo.refs.get("main", "-")[:12], str(len(repo.revisions)), ", ".join(sorted(repo.refs)))
        for name, repo in sorted(index.repos.items())
    ]
    return "\n" + table(("REPOSITORY", "FLAVOUR", "MAIN", "REVISIONS", "REFS"), rows)
