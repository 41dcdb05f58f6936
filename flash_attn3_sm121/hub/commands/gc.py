"""`flash-attn3 hub gc`."""

from __future__ import annotations

import argparse
import dataclasses

from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.hub.commands.common import add_hub_option, human_size, open_hub, print_json
from flash_attn3_sm121.hub.maintain import collect
from flash_attn3_sm121.hub.store import KEEP_GENERATIONS


def configure(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)
    parser.add_argument(
        "--keep",
        type=int,
        default=KEEP_GENERATIONS,
        metavar="N",
        help="generations to keep, the current one included (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def run(args: argparse.Namespace) -> int:
    if args.keep < 1:
        raise UsageError(f"--keep {args.keep}: expected at least 1, the current generation")
    done = collect(open_hub(args), keep=args.keep, dry_run=args.dry_run)
    if args.json:
        print_json({"dry_run": args.dry_run, **dataclasses.asdict(done)})
        return 0
    print(
        f"{'would remove' if args.dry_run else 'removed'} {done.objects} objects ({human_size(done.size)}), "
        f"{done.generations} generations, {done.unfinished} unfinished writes"
    )
    return 0
