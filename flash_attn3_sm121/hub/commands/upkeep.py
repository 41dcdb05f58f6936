"""`flash-attn3 hub remove`, `prune`, `rollback` and `gc`."""

from __future__ import annotations

import argparse
import dataclasses

from flash_attn3_sm121.console import format_bytes
from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.hub.commands.options import (
    add_hub_option,
    add_key_options,
    counted,
    open_hub,
    report,
    signing_key,
)
from flash_attn3_sm121.hub.store import KEEP_GENERATIONS

# What a removal leaves on the disk is what a rollback needs.
SPACE = "`flash-attn3 hub gc --keep 1` gives the space back; until then `hub rollback` undoes this"


def configure_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="a wheel's file name, ORG/NAME or ORG/NAME@REVISION")
    add_hub_option(parser)
    add_key_options(parser)


def remove(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.maintain import remove as remove_names

    index, done = remove_names(open_hub(args), args.names, key=signing_key(args), unsigned=args.unsigned)
    next_step = f"generation {index.generation}; {SPACE}"
    value = {"generation": index.generation, "removed": done}
    return report(args, value, *(f"removed {name}" for name in done), next_step)


def configure_gc(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)
    parser.add_argument(
        "--keep",
        type=int,
        default=KEEP_GENERATIONS,
        metavar="N",
        help="how many generations stay, the current one included (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def gc(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.maintain import collect

    if args.keep < 1:
        raise UsageError(f"--keep {args.keep}: expected at least 1, the current generation")
    done = collect(open_hub(args), keep=args.keep, dry_run=args.dry_run)
    text = (
        f"{'would remove' if args.dry_run else 'removed'} {counted(done.objects, 'object')} "
        f"({format_bytes(done.size)}), {counted(done.generations, 'generation')}, "
        f"{counted(done.unfinished, 'unfinished write')}"
    )
    return report(args, {"dry_run": args.dry_run, **dataclasses.asdict(done)}, text)


def configure_prune(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)
    add_key_options(parser)
    parser.add_argument("--keep", type=int, required=True, metavar="N", help="how many releases stay")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def prune(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.maintain import prune as prune_releases
    from flash_attn3_sm121.hub.maintain import pruned

    if args.keep < 1:
        raise UsageError(f"--keep {args.keep}: expected at least 1 release")
    hub = open_hub(args)
    if args.dry_run:
        index = hub.index()
        gone = pruned(index, args.keep)[1]
    else:
        index, gone = prune_releases(hub, args.keep, key=signing_key(args), unsigned=args.unsigned)
    lines = [f"{'would remove' if args.dry_run else 'removed'} {name}" for name in gone]
    after = "nothing was changed" if args.dry_run or not gone else SPACE
    value = {"generation": index.generation, "dry_run": args.dry_run, "removed": gone}
    return report(args, value, *lines, f"generation {index.generation}; {after}")


def configure_rollback(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)
    add_key_options(parser)
    parser.add_argument(
        "--to", type=int, metavar="N", help="the generation to go back to (default: the one before the current)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would come back")


def rollback(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.maintain import rollback as roll_back
    from flash_attn3_sm121.hub.maintain import rollback_target

    hub = open_hub(args)
    if args.dry_run:
        index = rollback_target(hub, args.to)
        text = f"would go back to generation {index.generation} of {index.created}"
    else:
        index = roll_back(hub, args.to, key=signing_key(args), unsigned=args.unsigned)
        text = f"generation {index.generation} holds what was in the earlier one"
    value = {"generation": index.generation, "dry_run": args.dry_run, "wheels": sorted(index.wheels)}
    after = ["nothing was changed"] if args.dry_run else []
    return report(
        args, value, f"{text}: {counted(len(index.wheels), 'wheel')}", *(f"  {w}" for w in sorted(index.wheels)), *after
    )
