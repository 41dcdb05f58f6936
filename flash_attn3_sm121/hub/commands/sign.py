"""`flash-attn3 hub sign`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.hub.commands.common import add_hub_option, open_hub, print_json
from flash_attn3_sm121.hub.commands.publish import signing_key
from flash_attn3_sm121.hub.maintain import sign
from flash_attn3_sm121.hub.sign import SIGNING_ENV


def configure(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)
    parser.add_argument("--key", type=Path, metavar="FILE", help=f"the private key (default: ${SIGNING_ENV})")


def run(args: argparse.Namespace) -> int:
    key = signing_key(args.key)
    if key is None:
        raise UsageError("no key to sign with", hint=f"flash-attn3 hub keygen FILE, then --key FILE or ${SIGNING_ENV}")
    index, count = sign(open_hub(args), key)
    if args.json:
        print_json({"generation": index.generation, "signed": count, "key": key.key_id})
    else:
        print(f"signed {count} wheels and revisions with the key {key.key_id}; generation {index.generation}")
    return 0
