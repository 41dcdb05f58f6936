"""`python -m ci wheel-fa2`: FlashAttention-2's names as a wheel of their own. Nothing else builds or installs it."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from ci.wheel import fa2
from ci.wheel.wheel import wheel_bytes
from flash_attn3_sm121.console import format_bytes
from flash_attn3_sm121.errors import OverrideError
from flash_attn3_sm121.fa2 import names
from flash_attn3_sm121.files import put_file


def configure_wheel_fa2(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("wheels/fa2"), help="folder for the wheel (default: wheels/fa2)"
    )


def do_wheel_fa2(args: argparse.Namespace) -> int:
    found = names.conflict()
    if found is not None:
        raise OverrideError(found.text, hint=found.hint)
    name = fa2.wheel_name()
    data = wheel_bytes(name, fa2.wheel_files(name))
    path = put_file(args.output / name.file, data)
    print(f"wheel   {path}")
    print(f"size    {format_bytes(len(data))}")
    print(f"sha256  {hashlib.sha256(data).hexdigest()}")
    print(f"use     pip install {path}, where flash_attn3_sm121 is installed and no other flash_attn is")
    return 0
