"""`python -m ci fetch`: bring everything that a build needs into the content cache, each piece proven, and stop."""

from __future__ import annotations

import argparse
import json
import sys
import time

from ci.commands.common import check_cuda
from ci.commands.options import add_input_arguments, add_pin_arguments
from ci.plan.archs import Platform
from ci.settings import Settings
from ci.sources import fetch
from ci.sources.lock import DEFAULT_LOCK, read_lock
from ci.sources.patched import edited_tree
from ci.toolchain import resolve, torch_headers
from ci.toolchain.installed import planned_version
from flash_attn3_sm121.console import format_seconds


def configure_fetch(parser: argparse.ArgumentParser) -> None:
    add_pin_arguments(parser)
    add_input_arguments(parser)
    parser.add_argument(
        "--platform", type=Platform.parse, help="what the libraries will run on: aarch64 or x86_64 (default: this one)"
    )
    parser.add_argument(
        "--edits", action="store_true", help="apply our edits too, and name those that do not fit these sources"
    )
    parser.add_argument("--offline", action="store_true", help="ask no network: the cache and local folders only")
    parser.add_argument("--json", action="store_true", help="the result for programs")


def do_fetch(args: argparse.Namespace) -> int:
    settings, started = Settings(offline=args.offline), time.monotonic()
    tree = fetch(read_lock(args.lock or DEFAULT_LOCK), settings, source=args.source)
    check_cuda(tree, planned_version(args.cuda_home))
    edited = edited_tree(tree, settings) if args.edits else None
    toolchain = resolve(
        settings, target=None if args.platform is None else str(args.platform), cuda_home=args.cuda_home
    )
    headers = torch_headers(settings)
    result: dict[str, object] = {
        "cache": str(settings.cache),
        "sources": {
            "commit": tree.lock.upstream.commit,
            "route": tree.route,
            "hopper": str(tree.hopper),
            "hopper_tree": tree.lock.hopper.id,
            "cutlass_include": str(tree.cutlass_include),
            "cutlass_include_tree": tree.lock.cutlass_include.id,
        },
        "toolchain": {
            "origin": toolchain.origin,
            "cuda": toolchain.cuda,
            "host": toolchain.host,
            "target": toolchain.target,
            "nvcc": str(toolchain.nvcc),
            "cxx": f"{toolchain.cxx} {toolchain.cxx_version}",
            "fingerprint": toolchain.fingerprint,
        },
        "torch_headers": {"version": headers.version, "folder": str(headers.folder), "tree": headers.id},
    }
    if edited is not None:
        result["edits"] = f"{len(edited.edits)} fit"
    if args.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        for title, rows in result.items():
            pairs = rows.items() if isinstance(rows, dict) else [("", rows)]
            sys.stdout.write("".join(f"{title + ' ' + key:32} {value}\n" for key, value in pairs))
    settings.narrate.note(f"everything is at hand, in {format_seconds(time.monotonic() - started)}")
    return 0
