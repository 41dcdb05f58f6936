"""`flash-attn3 override enable | disable | status`: the override for every Python of one virtual environment.

Enabling writes one `.pth` file into site-packages, and into the wheel's RECORD, so that `pip uninstall` takes it away
too. Its line costs the start of an interpreter less than a millisecond: it puts an object in front of the importers
that waits for `import kernels`, and where the package is gone by then it does nothing.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import re
import sys
import sysconfig
from pathlib import Path

from flash_attn3_sm121.errors import OverrideError
from flash_attn3_sm121.files import put_file
from flash_attn3_sm121.hub.layout import PACKAGE
from flash_attn3_sm121.hub.patch import OverrideConfig
from flash_attn3_sm121.hub.run import add_override_options, config_of

PTH_NAME = "flash_attn3_sm121_override.pth"
_HOOK = f"{PACKAGE}.hub.sitehook._flash_attn3_hook"
# Imports nothing that an interpreter has not loaded by then. What it calls is looked for when `kernels` is imported.
_WAIT = f"""
class _Wait:
    def find_spec(self, name, path=None, target=None):
        if name != "kernels":
            return None
        sys.meta_path.remove(self)
        try:
            hook = __import__("{_HOOK}", fromlist=["LazyFinder"])
        except ModuleNotFoundError:
            return None
        return hook.LazyFinder(config).find_spec(name, path, target)
os.environ.get("FLASH_ATTN3_OVERRIDE") == "0" or sys.meta_path.insert(0, _Wait())
"""
_LINE = re.compile(r"'config': (?P<config>'.*'|\".*\")\}\)\s*$")


def pth_line(config: OverrideConfig) -> str:
    """The `.pth` file's content; parse_line is its inverse."""
    return f"import os, sys; exec({_WAIT!r}, {{'os': os, 'sys': sys, 'config': {config.to_json()!r}}})\n"


def parse_line(text: str) -> OverrideConfig | None:
    match = _LINE.search(text)
    return OverrideConfig.from_json(ast.literal_eval(match["config"])) if match else None


def site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def is_virtual_environment() -> bool:
    """True if venv, conda, mamba or pixi made this Python's environment. conda's base environment is not counted."""
    prefix = Path(sys.prefix)
    condas = (prefix / "conda-meta").is_dir() and not (prefix / "condabin").is_dir()
    return condas or sys.prefix != sys.base_prefix


def enable(folder: Path, config: OverrideConfig) -> Path:
    target = folder / PTH_NAME
    try:
        put_file(target, pth_line(config))
        _record(folder, target)
    except OSError as error:
        hint = "flash-attn3 run -- COMMAND does it for one command, and writes nothing there"
        raise OverrideError(f"cannot write {target}: {error.strerror}", hint=hint) from error
    return target


def disable(folder: Path) -> bool:
    """Remove the file. Returns whether there was one."""
    target = folder / PTH_NAME
    was = target.is_file()
    try:
        target.unlink(missing_ok=True)
        _record(folder, None)
    except OSError as error:
        raise OverrideError(f"cannot remove {target}: {error.strerror}") from error
    return was


def _record(folder: Path, target: Path | None) -> None:
    """Add our file to the RECORD of the installed package, or take it out. A source tree has no RECORD."""
    for dist in importlib.metadata.distributions(name=PACKAGE, path=[str(folder)]):
        for file in dist.files or ():
            if file.name != "RECORD":
                continue
            record = Path(str(file.locate()))
            rows = [
                row for row in record.read_text(encoding="utf-8").splitlines() if not row.startswith(f"{PTH_NAME},")
            ]
            rows += [f"{PTH_NAME},,"] if target is not None else []
            put_file(record, "\n".join(rows) + "\n")


def read(folder: Path) -> OverrideConfig | None:
    """The override that is enabled in a site-packages folder, or None."""
    target = folder / PTH_NAME
    if not target.is_file():
        return None
    config = parse_line(target.read_text(encoding="utf-8"))
    if config is None:
        raise OverrideError(f"{target} is not what `override enable` writes", hint="remove it, or enable again")
    return config


def configure_override(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    about = "override get_kernel for every Python of this virtual environment"
    on = actions.add_parser("enable", help=about, description=about)
    add_override_options(on)
    on.add_argument("--system", action="store_true", help="allow it outside of a virtual environment")
    actions.add_parser("disable", help="take the override back", description="take the override back")
    status = actions.add_parser("status", help="what is overridden here", description="what is overridden here")
    status.add_argument("--json", action="store_true", help="for programs")


def do_override(args: argparse.Namespace) -> int:
    folder = site_packages()
    if args.action == "enable":
        if not is_virtual_environment() and not args.system:
            raise OverrideError(
                f"{sys.prefix} is not a virtual environment: this would change every program of that Python",
                hint="say --system to do it all the same, or use `flash-attn3 run -- COMMAND`",
            )
        config = config_of(args, stand_in=False)
        target = enable(folder, config)
        print(f"enabled for {sys.prefix} ({target})")
        _describe(config)
        print("take it back with: flash-attn3 override disable")
        return 0
    if args.action == "disable":
        print(f"disabled for {sys.prefix}" if disable(folder) else f"was not enabled for {sys.prefix}")
        return 0
    found = read(folder)
    if args.json:
        config_json = None if found is None else json.loads(found.to_json())
        print(json.dumps({"enabled": found is not None, "environment": sys.prefix, "config": config_json}))
        return 0
    print(f"{'enabled' if found else 'not enabled'} for {sys.prefix}")
    if found is not None:
        _describe(found)
    return 0


def _describe(config: OverrideConfig) -> None:
    for name, flavour in sorted(config.repos.items()):
        print(f"  {name}  ({flavour})")
    print(f"  served from {config.hub or 'the installed package'}")
