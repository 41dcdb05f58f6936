"""`flash-attn3 hub publish`, `sign` and `keygen`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flash_attn3_sm121.console import format_bytes
from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.hub.commands.options import (
    add_hub_option,
    add_key_options,
    hub_root,
    open_hub,
    report,
    signing_key,
)
from flash_attn3_sm121.hub.layout import RepoName
from flash_attn3_sm121.hub.sign import SIGNING_ENV, TRUSTED_ENV, SigningKey
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.variants import Flavour, parse_repo

if TYPE_CHECKING:
    from flash_attn3_sm121.hub.publish import Published

EPILOG = """examples:
  flash-attn3 hub publish wheels/*.whl
  flash-attn3 hub publish --repo my-lab/attention wheels/*.whl
  flash-attn3 hub publish --to my-org wheels/*.whl         (changes nothing)
  flash-attn3 hub publish --to my-org --yes wheels/*.whl   (publishes, uploads)"""


def configure_publish(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL", help="a wheel that `make wheel` built")
    add_hub_option(parser)
    parser.add_argument(
        "--repo",
        action="append",
        default=[],
        metavar="ORG/NAME[=FLAVOUR]",
        help="publish under this name as well (flavours: fa3, vllm, sgl)",
    )
    parser.add_argument(
        "--allow-unverified", action="store_true", help="take a wheel that was not verified, or did not pass"
    )
    add_key_options(parser)
    parser.add_argument(
        "--to",
        metavar="ORG",
        help="only list what would be uploaded to this organisation on the Hugging Face hub",
    )
    parser.add_argument("--yes", action="store_true", help="with --to: publish to the hub folder, then upload")


def publish(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.publish import judge, rehearse
    from flash_attn3_sm121.hub.publish import publish as publish_wheels
    from flash_attn3_sm121.hub.push import plan_push, plan_rehearsed, push, render_plan

    if args.yes and not args.to:
        raise UsageError("--yes goes with --to", hint="flash-attn3 hub publish --to ORG --yes WHEEL...")
    started = time.monotonic()
    repos: dict[RepoName, Flavour] = dict(parse_repo(text) for text in args.repo)
    pushed = [RepoName(org=args.to, name=flavour.kernel_name) for flavour in Flavour] if args.to else []
    repos |= dict(zip(pushed, Flavour, strict=False))
    key = signing_key(args)
    wheels = judge(args.wheels, allow_unverified=args.allow_unverified)
    if args.to and not args.yes:
        manifests = rehearse(hub_root(args), wheels, {name: repos[name] for name in pushed})
        print(render_plan(plan_rehearsed(manifests), really=False))
        return 0
    hub = Hub.create(hub_root(args))
    done = publish_wheels(hub, wheels, repos=repos, key=key, unsigned=args.unsigned)
    for text in done.skipped:
        print(f"flash-attn3: warning: {text}", file=sys.stderr)
    lines = _summary(hub, done, time.monotonic() - started, signed_by=key.key_id if key else "")
    report(args, {"hub": str(hub.layout.root), **dataclasses.asdict(done)}, *lines)
    if args.to:
        uploads = plan_push(hub, hub.index(), [str(name) for name in pushed])
        print(render_plan(uploads, really=True), file=sys.stderr if args.json else sys.stdout)
        push(hub, uploads)
    return 0


def _summary(hub: Hub, done: Published, seconds: float, *, signed_by: str) -> Iterator[str]:
    signature = f", signed by {signed_by}" if signed_by else ""
    what = "published" if done.changed else "nothing new"
    yield f"{what}: generation {done.generation} of {hub.layout.root}{signature}"
    for name, wheel in done.wheels.items():
        yield f"  {name}"
        yield f"    {format_bytes(wheel.size)}  sha256 {wheel.sha256}"
        yield f"    {wheel.platform}  {', '.join(wheel.families) or 'Python only'}  verify: {wheel.verify}"
    yield from (f"  {repo}  revision {revision[:12]}" for repo, revision in done.repos.items())
    yield f"done in {seconds:.1f} s; next: flash-attn3 hub serve, or flash-attn3 hub list"


def configure_sign(parser: argparse.ArgumentParser) -> None:
    add_hub_option(parser)
    parser.add_argument(
        "--key", dest="sign", type=Path, metavar="FILE", help=f"the private key (default: ${SIGNING_ENV})"
    )


def sign(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.hub.maintain import sign as sign_generation

    key = signing_key(args)
    if key is None:
        raise UsageError("no key to sign with", hint=f"flash-attn3 hub keygen FILE, then --key FILE or ${SIGNING_ENV}")
    index = sign_generation(open_hub(args), key)
    text = f"generation {index.generation} is signed by the key {key.key_id}"
    return report(args, {"generation": index.generation, "key": key.key_id}, text)


def configure_keygen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the private key; its public half goes to FILE.pub")


def keygen(args: argparse.Namespace) -> int:
    key = SigningKey.generate(args.file)
    print(f"private key {args.file} (keep it to yourself), public key {args.file}.pub, id {key.key_id}")
    print(f"  to sign:   export {SIGNING_ENV}={args.file.absolute()}")
    print(f"  to demand: export {TRUSTED_ENV}={key.public}")
    return 0
