"""`python -m ci wheel`: sources to a checked wheel, published to the local hub.

`python -m ci wheel-fa2`: FlashAttention-2's names as a wheel of their own, which nothing else builds or installs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

from ci.commands import common, options
from ci.process import execute, failure_text
from ci.wheel.finish import Finished
from ci.wheel.wheel import fa2_files, fa2_name, wheel_bytes
from flash_attn3_sm121.console import Narrator, format_bytes, format_seconds
from flash_attn3_sm121.errors import CompileError, OverrideError
from flash_attn3_sm121.fa2 import names
from flash_attn3_sm121.files import put_file


def configure_wheel(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("wheels"), help="folder for the wheel (default: wheels)")
    parser.add_argument("--no-publish", action="store_true", help="do not put the wheel into the local hub")
    parser.add_argument("--json", action="store_true", help="the summary for programs, on stdout")


def do_wheel(args: argparse.Namespace) -> int:
    begun = time.monotonic()
    session = common.begin(options.from_arguments(args))
    builder = common.builder(session, common.gather_inputs(session))
    finished = common.build_wheel(builder, session.plan, output=args.output)
    published = not finished.proxy and not args.no_publish
    if published:
        publish(finished.path, session.settings.narrate)
    _summary(finished, seconds=time.monotonic() - begun, published=published, as_json=args.json)
    return 0


def publish(path: Path, narrate: Narrator) -> None:
    """Hand the wheel to the hub's own command."""
    argv = [sys.executable, "-m", "flash_attn3_sm121", "hub", "publish", str(path)]
    done = execute(argv, narrate=narrate)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        hint = f"the wheel is good and stays at {path}; only the hub did not take it"
        raise CompileError(failure_text(argv, done.returncode, said), hint=hint)
    narrate.note(said.rstrip())


def _summary(finished: Finished, *, seconds: float, published: bool, as_json: bool) -> None:
    if as_json:
        value = {
            "file": str(finished.path),
            "size": finished.size,
            "sha256": finished.sha256,
            "proof": finished.proof,
            "seconds": round(seconds, 2),
            "published": published,
            "proxy": finished.proxy,
        }
        print(json.dumps(value, indent=1))
        return
    print(f"wheel   {finished.path}")
    print(f"size    {format_bytes(finished.size)}, {finished.kernels} kernels, {finished.checks} checks passed")
    print(f"proof   {finished.proof}")
    print(f"sha256  {finished.sha256}")
    print(f"time    {format_seconds(seconds)}{'' if published else ', not published'}")
    if not finished.proxy:
        print(f"next    pip install {finished.path}")


def configure_wheel_fa2(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("wheels/fa2"), help="folder for the wheel (default: wheels/fa2)"
    )


def do_wheel_fa2(args: argparse.Namespace) -> int:
    found = names.conflict()
    if found is not None:
        raise OverrideError(found.text, hint=found.hint)
    name = fa2_name()
    data = wheel_bytes(name, fa2_files(name))
    path = put_file(args.output / name.file, data)
    print(f"wheel   {path}")
    print(f"size    {format_bytes(len(data))}")
    print(f"sha256  {hashlib.sha256(data).hexdigest()}")
    print(f"use     pip install {path}, where flash_attn3_sm121 is installed and no other flash_attn is")
    return 0
