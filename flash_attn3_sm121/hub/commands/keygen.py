"""`flash-attn3 hub keygen`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flash_attn3_sm121.hub.sign import SIGNING_ENV, TRUSTED_ENV, SigningKey


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the private key; its public half goes to FILE.pub")


def run(args: argparse.Namespace) -> int:
    key = SigningKey.generate(args.file)
    print(f"private key {args.file} (keep it to yourself), public key {args.file}.pub, id {key.key_id}")
    print(f"  to sign:   export {SIGNING_ENV}={args.file.absolute()}")
    print(f"  to demand: export {TRUSTED_ENV}={key.public}")
    return 0
