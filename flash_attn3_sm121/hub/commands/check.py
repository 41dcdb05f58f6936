"""`flash-attn3 hub check`."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from flash_attn3_sm121.errors import IntegrityError
from flash_attn3_sm121.hub.commands.common import add_hub_option, human_size, open_hub, print_json
from flash_attn3_sm121.hub.maintain import check
from flash_attn3_sm121.hub.sign import TrustedKeys


def configure(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)
    parser.add_argument(
        "--keys", metavar="KEYS", help="demand signatures by these keys (default: $FLASH_ATTN3_TRUSTED_KEYS)"
    )


def run(args: argparse.Namespace) -> int:
    hub = open_hub(args)
    keys = TrustedKeys.parse(args.keys) if args.keys else TrustedKeys.from_env()
    report = check(hub, keys)
    if args.json:
        print_json({"hub": str(hub.layout.root), "ok": report.ok, **dataclasses.asdict(report)})
    else:
        for finding in report.findings:
            print(f"  {finding}", file=sys.stderr)
        print(
            f"{'ok' if report.ok else 'DAMAGED'}: generation {report.generation} of {hub.layout.root}: "
            f"{report.wheels} wheels, {report.revisions} revisions, {report.objects} objects "
            f"({human_size(report.size)}) hashed{', signatures checked' if report.signed else ''}"
        )
        if report.orphans:
            print(f"  {report.orphans} objects are not needed by this generation: flash-attn3 hub gc")
    return 0 if report.ok else IntegrityError.exit_code
