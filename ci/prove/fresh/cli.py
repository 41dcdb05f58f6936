"""`python -m ci fresh`: README's two commands on a machine that has never seen this project."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import datetime, timezone
from pathlib import Path

from ci import ROOT
from ci.cache.folders import cache_root
from ci.console import Narrator, format_seconds
from ci.index.pip import settings as pip_settings
from ci.prove.fresh.carried import carried
from ci.prove.fresh.inside import mounts
from ci.prove.fresh.recipe import CLONE, FIRST, HOME, SECOND, Recipe, running_suite, two_commands
from ci.prove.fresh.root import cache_for_user, copy_of, furnish, head_of, move_in, prepare, require
from ci.prove.fresh.steps import Done, Newcomer, document, failed, in_order, plan, wheel_of
from flash_attn3_sm121.errors import VerifyError

EPILOG = """\
What happens: debootstrap makes a Debian with python3, python3-venv, g++, git and make (kept in the content cache);
a copy of it gets a new user with a clone of this repository's HEAD; the two commands are read from README.md and run
as that user: the first with PROFILE=smoke (about 100 CPU seconds of compiling), then its wheel is installed and used,
then the second. Nothing of this machine is in there but where packages come from (pip's settings, proxies,
certificates).

It wants root, because of debootstrap and chroot. Everything runs in namespaces of its own: nothing stays mounted.
Expect half an hour to an hour, and 6 GB while it runs (more where torch comes with CUDA's libraries).

  python -m ci fresh                   all of it (make fresh)
  python -m ci fresh --only wheel      the first command and its wheel, five minutes
  python -m ci fresh --cache DIR       keep compiled objects in DIR, for the next run
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--suite", help="the Debian suite (default: that of the running Debian, else bookworm)")
    parser.add_argument("--mirror", help="where debootstrap gets Debian from (default: its own)")
    parser.add_argument("--only", choices=("wheel", "test"), help=f"only `{FIRST}`, or only `{SECOND}`")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="mount DIR as the new user's build cache")
    parser.add_argument("--ignore-changes", action="store_true", help="run HEAD although there is uncommitted work")
    parser.add_argument("--keep", action="store_true", help="leave the root for a look, until the next run")
    parser.add_argument("--log", type=Path, help="where the whole output goes (default: logs/ in the content cache)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    narrate, cache, begun = Narrator(), cache_root(), time.monotonic()
    require(effective_user=os.geteuid())
    commit = head_of(ROOT, ignore_changes=args.ignore_changes)
    suite = args.suite or running_suite(Path("/etc/os-release").read_text(encoding="utf-8"))
    recipe = Recipe(suite=suite, machine=platform.machine(), mirror=args.mirror)
    date = datetime.now(timezone.utc)
    log = args.log or cache / "logs" / f"fresh-{date:%Y%m%d-%H%M%S}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    shared = None if args.cache is None else cache_for_user(args.cache)
    done: list[Done] = []
    bare = prepare(recipe, cache, narrate)
    with copy_of(bare, cache, narrate, keep=args.keep) as root, log.open("w", encoding="utf-8") as output:
        narrate.note(f"the whole output goes to {log}")
        goods = carried(pip_settings(), os.environ)
        furnish(root, goods)
        move_in(root, ROOT, commit, narrate)
        readme = root / CLONE.lstrip("/") / "README.md"
        commands = two_commands(readme.read_text(encoding="utf-8"))
        newcomer = Newcomer(
            root=root,
            mounts=mounts(folders=goods.folders, cache=shared, cache_at=f"{HOME}/.cache/flash-attn3-sm121"),
            environ=goods.environ,
            log=output,
            narrate=narrate,
        )
        for step in plan(commands, only=args.only):
            done.append(newcomer.run(step))
            if done[-1].code:
                break
    result = document(date=f"{date:%Y-%m-%d %H:%M} UTC", commit=commit, suite=suite, machine=recipe.machine, steps=done)
    print(json.dumps(result, indent=1) if args.json else _summary(result, done, begun))
    if wrong := failed(done):
        raise VerifyError(
            f"on a fresh {suite}, {wrong[0].command!r} ended with exit code {wrong[0].code}: {wrong[0].closing}",
            hint=f"the whole output: {log}",
        )
    return 0


def _summary(result: dict[str, object], done: list[Done], begun: float) -> str:
    wheel = wheel_of(done)
    lines = [f"Debian {result['suite']} ({result['machine']}), commit {str(result['commit'])[:12]}", in_order(done)]
    if wheel is not None:
        lines.append(f"{wheel['name']}\n  sha256 {wheel['sha256']}")
    lines.append(f"all of it: {format_seconds(time.monotonic() - begun)}")
    return "\n".join(lines)
