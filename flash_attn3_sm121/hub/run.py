"""`flash-attn3 run -- CMD`: any command, its children included, with `get_kernel` overridden.

`--as flash_attn` also puts FlashAttention-2's names in front of the command's path.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flash_attn3_sm121.errors import OverrideError, UsageError
from flash_attn3_sm121.fa2 import names
from flash_attn3_sm121.hub.layout import KNOWN_REPOS
from flash_attn3_sm121.hub.patch import OverrideConfig
from flash_attn3_sm121.hub.variants import parse_repo

HOOK_FOLDER = Path(__file__).absolute().parent / "sitehook"
CONFIG_ENV = "FLASH_ATTN3_OVERRIDE"
EPILOG = """examples:
  flash-attn3 run -- python -m scripts.chat_cli -i sft -p "Test"
  flash-attn3 run --repo my-lab/attn -- torchrun --nproc_per_node=8 train.py
  flash-attn3 run --hub /srv/hub -- python train.py
  flash-attn3 run --as flash_attn -- python train.py

The override travels in PYTHONPATH. `run` passes it on through `env -i`, and
says so where a Python ignores it (-I, -E, -S). `flash-attn3 override enable`
reaches Pythons under -I and -E."""
_PYTHON = re.compile(r"(python|pypy)[0-9.]*t?")
_OWN_PATH = "PYTHONPATH="


def add_override_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is overridden and by what; `run` and `override enable` share them."""
    parser.add_argument(
        "--repo", action="append", default=[], metavar="ORG/NAME[=FLAVOUR]", help="override this repository as well"
    )
    parser.add_argument(
        "--only", action="store_true", help="override the --repo ones only, not the well-known names too"
    )
    parser.add_argument("--hub", type=Path, metavar="DIR", help="serve from this hub folder, not the installed package")
    parser.add_argument("--quiet", action="store_true", help="don't say on stderr what was overridden")


def config_of(args: argparse.Namespace, *, stand_in: bool) -> OverrideConfig:
    extra = {str(name): str(flavour) for name, flavour in map(parse_repo, args.repo)}
    if args.only and not extra:
        raise UsageError("--only without --repo would override nothing", hint="add --repo ORG/NAME")
    if args.hub is not None:
        from flash_attn3_sm121.hub.store import Hub

        Hub.open(args.hub)  # a wrong folder is said now, not in the middle of somebody's training run
    return OverrideConfig(
        repos=extra if args.only else {**KNOWN_REPOS, **extra},
        hub=None if args.hub is None else str(args.hub.absolute()),
        quiet=args.quiet,
        stand_in=stand_in,
    )


def environment(
    config: OverrideConfig, environ: Mapping[str, str], folders: Sequence[Path] = (HOOK_FOLDER,)
) -> dict[str, str]:
    """The child's environment: our folders lead PYTHONPATH, the configuration travels beside it."""
    ours = [str(folder) for folder in folders]
    rest = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry not in ours]
    return {**environ, "PYTHONPATH": os.pathsep.join([*ours, *rest]), CONFIG_ENV: config.to_json()}


def carried(argv: Sequence[str], config: str, folders: Sequence[Path] = (HOOK_FOLDER,)) -> tuple[list[str], list[str]]:
    """Change a command so that the override reaches it. Returns (argv, warnings).

    What `env` in front of a command would remove is given to it again. A Python that ignores its environment is
    warned about.
    """
    words, warnings, at = list(argv), [], 0
    hook = os.pathsep.join(str(folder) for folder in folders)
    if words and Path(words[0]).name == "env":
        lost: list[str] = []
        at = 1
        while at < len(words) and (words[at].startswith("-") or "=" in words[at]):
            if words[at] in ("-", "-i", "--ignore-environment"):
                lost = [f"{_OWN_PATH}{hook}", f"{CONFIG_ENV}={config}"]
            elif words[at : at + 2] in (["-u", "PYTHONPATH"], ["--unset", "PYTHONPATH"]):
                lost = [f"{_OWN_PATH}{hook}"]
            elif words[at].startswith(_OWN_PATH):
                rest = words[at].removeprefix(_OWN_PATH)
                words[at], lost = _OWN_PATH + os.pathsep.join([hook, *([rest] if rest else [])]), lost[1:]
            at += 2 if words[at] in ("-u", "--unset") else 1
        words[at:at] = lost
        at += len(lost)
    if at < len(words) and _PYTHON.fullmatch(Path(words[at]).name):
        for word in words[at + 1 :]:
            if not word.startswith("-") or word.startswith("--") or word[:2] in ("-c", "-m", "-X", "-W"):
                break
            if set(word[1:]) & set("IES"):
                warnings.append(f"`{words[at]} {word}` ignores what carries the override: it will not be in force")
    return words, warnings


def configure_run(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.usage = "flash-attn3 run [options] -- COMMAND [ARGUMENT ...]"
    add_override_options(parser)
    parser.add_argument(
        "--as",
        dest="names",
        choices=[names.PACKAGE],
        help="serve FlashAttention-2's names as well, not installed",
    )
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run")


def _folders(as_name: str | None) -> tuple[Path, ...]:
    """The folders that go in front of the command's PYTHONPATH."""
    if as_name is None:
        return (HOOK_FOLDER,)
    if (found := names.conflict()) is not None:
        raise OverrideError(f"--as {as_name}: {found.text}", hint=found.hint)
    return HOOK_FOLDER, names.FOLDER


def do_run(args: argparse.Namespace) -> int:
    argv: Sequence[str] = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    if not argv:
        raise UsageError("no command to run", hint='flash-attn3 run -- python -m scripts.chat_cli -i sft -p "Test"')
    config = config_of(args, stand_in=True)
    folders = _folders(args.names)
    env = environment(config, os.environ, folders)
    argv, warnings = carried(argv, config.to_json(), folders)
    for text in warnings:
        print(f"flash-attn3: warning: {text}\n  -> flash-attn3 override enable", file=sys.stderr)
    program = shutil.which(argv[0])
    if program is None:
        print(f"flash-attn3: error: {argv[0]}: command not found", file=sys.stderr)
        return 127
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, list(argv), env)
