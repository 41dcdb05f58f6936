"""`flash-attn3 hub export`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.commands.common import add_hub_option, human_size, open_hub, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="DIR", help="a new or empty folder, or an earlier export")
    add_hub_option(parser)
    parser.add_argument(
        "--listen", default="127.0.0.1:8080", metavar="ADDRESS", help="for nginx.conf (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    try:
        from flash_attn3_sm121.hub.export import export
    except ModuleNotFoundError as error:
        raise HubError(f"exporting needs {error.name}", hint='pip install "flash_attn3_sm121[hub]"') from error
    done = export(open_hub(args), args.target, listen=args.listen)
    if args.json:
        print_json(dataclasses.asdict(done))
        return 0
    print(
        f"exported to {done.target}: {done.files} files, {human_size(done.size)} of content (the rest are hard links)"
    )
    print(f"  {done.wheels} wheels under simple/ and files/; repositories: {', '.join(done.repos) or 'none'}")
    print(f"  nginx: include {Path(done.target) / 'nginx.conf'} inside http {{ }}")
    return 0
