"""What the hub's subcommands share: the folder option, and how sizes and tables look."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flash_attn3_sm121.hub.layout import default_root
from flash_attn3_sm121.hub.store import Hub


def add_hub_option(parser: argparse.ArgumentParser, *, json_too: bool = True) -> None:
    parser.add_argument(
        "--hub", type=Path, metavar="DIR", help="the hub folder (default: $FLASH_ATTN3_HUB or your own)"
    )
    if json_too:
        parser.add_argument("--json", action="store_true", help="for programs")


def hub_root(args: argparse.Namespace) -> Path:
    return args.hub if args.hub is not None else default_root()


def open_hub(args: argparse.Namespace) -> Hub:
    return Hub.open(hub_root(args))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, sort_keys=True))


def human_size(size: int) -> str:
    value = float(size)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
