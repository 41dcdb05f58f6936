"""`flash-attn3 hub publish`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.hub.commands.common import add_hub_option, hub_root, human_size, print_json
from flash_attn3_sm121.hub.layout import RepoName
from flash_attn3_sm121.hub.publish import Published, judge, publish
from flash_attn3_sm121.hub.push import plan_push, push, render_plan
from flash_attn3_sm121.hub.sign import SIGNING_ENV, SigningKey
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.variants import Flavour, parse_repo

EPILOG = """examples:
  flash-attn3 hub publish wheels/*.whl
  flash-attn3 hub publish --repo my-lab/attention wheels/*.whl
  flash-attn3 hub publish --to my-org wheels/*.whl          (says what would be uploaded)
  flash-attn3 hub publish --to my-org --yes wheels/*.whl    (uploads)"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    add_hub_option(parser)
    parser.add_argument(
        "--repo",
        action="append",
        default=[],
        metavar="ORG/NAME[=FLAVOUR]",
        help="publish under this name as well (flavours: fa3, vllm)",
    )
    parser.add_argument(
        "--allow-unverified", action="store_true", help="take a wheel whose verify report is not a pass"
    )
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help=f"sign with this private key (default: ${SIGNING_ENV})"
    )
    parser.add_argument("--to", metavar="ORG", help="also push to this organisation on the Hugging Face hub; a dry run")
    parser.add_argument("--yes", action="store_true", help="with --to: really upload")


def signing_key(path: Path | None) -> SigningKey | None:
    wanted = path or (Path(os.environ[SIGNING_ENV]) if os.environ.get(SIGNING_ENV) else None)
    return SigningKey.load(wanted) if wanted else None


def run(args: argparse.Namespace) -> int:
    if args.yes and not args.to:
        raise UsageError("--yes goes with --to", hint="flash-attn3 hub publish --to ORG --yes WHEEL...")
    started = time.monotonic()
    repos: dict[RepoName, Flavour] = dict(parse_repo(text) for text in args.repo)
    pushed = [RepoName(org=args.to, name=flavour.kernel_name) for flavour in Flavour] if args.to else []
    repos |= dict(zip(pushed, Flavour, strict=False))
    key = signing_key(args.sign)
    wheels = judge(args.wheels, allow_unverified=args.allow_unverified)
    hub = Hub.create(hub_root(args))
    done = publish(hub, wheels, repos=repos, key=key)
    for text in done.skipped:
        print(f"flash-attn3: warning: {text}", file=sys.stderr)
    if args.json:
        print_json({"hub": str(hub.layout.root), **dataclasses.asdict(done)})
    else:
        _summary(hub, done, time.monotonic() - started)
    if args.to:
        plan = plan_push(hub, hub.index(), [str(name) for name in pushed])
        print(render_plan(plan, really=args.yes), file=sys.stderr if args.json else sys.stdout)
        if args.yes:
            push(hub, plan)
    return 0


def _summary(hub: Hub, done: Published, seconds: float) -> None:
    print(f"{'published' if done.changed else 'nothing new'}: generation {done.generation} of {hub.layout.root}")
    for name, wheel in done.wheels.items():
        print(f"  {name}")
        print(f"    {human_size(wheel.size)}  sha256 {wheel.sha256}")
        families = ", ".join(wheel.families) or "Python only"
        print(
            f"    {wheel.platform}  {families}  verify: {wheel.verify}{f'  signed by {wheel.key}' if wheel.key else ''}"
        )
    for repo, revision in done.repos.items():
        print(f"  {repo}  revision {revision[:12]}")
    print(f"done in {seconds:.1f} s; next: flash-attn3 hub serve, or flash-attn3 hub list")
