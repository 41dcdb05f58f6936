"""`python -m ci build`: families, or a shard of them, to artifacts. `python -m ci assemble`: artifacts to a wheel.

A wheel is slim from one family, fat from several; shards are joined. Any machine can assemble.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ci.build import artifact
from ci.commands import common, options, wheel
from ci.commands.options import Request
from ci.sources.lock import lock_of
from ci.wheel.assemble import check_together
from ci.wheel.finish import make_wheel
from flash_attn3_sm121.console import format_bytes
from flash_attn3_sm121.errors import AssembleError


def configure_build(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    options.add_shard_argument(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("build/artifacts"), help="folder for the artifacts (default: %(default)s)"
    )


def do_build(args: argparse.Namespace) -> int:
    session = common.begin(options.from_arguments(args))
    builder = common.builder(session, common.gather_inputs(session))
    with builder.folder() as work:
        for part in builder.build(session.plan, work=work):
            print(artifact.write(args.output, part))
    return 0


def configure_assemble(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifacts", nargs="+", type=Path, help="folders that `python -m ci build` wrote")
    parser.add_argument("--output", type=Path, default=Path("wheels"), help="folder for the wheel (default: wheels)")
    options.add_pin_arguments(parser)
    options.add_input_arguments(parser)
    parser.add_argument("--no-publish", action="store_true", help="do not put the wheel into the local hub")


def do_assemble(args: argparse.Namespace) -> int:
    parts = [artifact.read(folder) for folder in args.artifacts]
    identity = check_together(parts)
    targets = " ".join(dict.fromkeys(target for part in parts for target in part.artifact.targets))
    base = Request(
        profile=identity.profile,
        archs=targets,
        platform=identity.platform,
        proxy=identity.proxy,
        source=args.source,
        lock=args.lock or lock_of(identity.sources),
        cuda_home=args.cuda_home,
    )
    session = common.begin(base)
    inputs = common.gather_inputs(session)
    if inputs.edited.digest != identity.edits or inputs.tree.lock.key != identity.sources:
        raise AssembleError(
            "the artifacts were made from other sources or edits than this checkout holds",
            hint="assemble with the checkout that built them",
        )
    builder = common.builder(session, inputs)
    with builder.folder() as work:
        finished = make_wheel(
            parts,
            builder=builder,
            work=work,
            schemas=common.upstream_schemas(inputs),
            output=args.output,
        )
    if not finished.proxy and not args.no_publish:
        wheel.publish(finished.path, session.settings.narrate)
    print(f"wheel   {finished.path}\nsize    {format_bytes(finished.size)}\nsha256  {finished.sha256}")
    return 0
