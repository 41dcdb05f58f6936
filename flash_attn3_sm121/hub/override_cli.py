"""`flash-attn3 override enable | disable | status`: the override for every Python of one virtual environment.

Enabling writes one `.pth` file into site-packages. It waits for `import kernels` and costs nothing before that, and a
line that finds the package gone does nothing.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import sysconfig
import uuid
from pathlib import Path

from flash_attn3_sm121.errors import OverrideError
from flash_attn3_sm121.hub.layout import PACKAGE
from flash_attn3_sm121.hub.patch import OverrideConfig
from flash_attn3_sm121.hub.run import add_override_options, config_of

PTH_NAME = "flash_attn3_sm121_override.pth"
_HOOK = f"{PACKAGE}.hub.sitehook._flash_attn3_hook"
_LINE = re.compile(r"\.install\((?P<config>'.*'|\".*\")\)\s*$")


def pth_line(config: OverrideConfig) -> str:
    """The `.pth` file's content; parse_line is its inverse."""
    return (
        f"import importlib.util as u; u.find_spec({PACKAGE!r}) is not None and "
        f"__import__({_HOOK!r}, fromlist=['install']).install({config.to_json()!r})\n"
    )


def parse_line(text: str) -> OverrideConfig | None:
    match = _LINE.search(text)
    return OverrideConfig.from_json(ast.literal_eval(match["config"])) if match else None


def site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def is_virtual_environment() -> bool:
    return sys.prefix != sys.base_prefix


def enable(folder: Path, config: OverrideConfig) -> Path:
    target = folder / PTH_NAME
    beside = folder / f".{PTH_NAME}.{uuid.uuid4().hex}"
    try:
        beside.write_text(pth_line(config), encoding="utf-8")
        beside.replace(target)
    except OSError as error:
        raise OverrideError(f"cannot write {target}: {error.strerror}") from error
    return target


def read(folder: Path) -> OverrideConfig | None:
    """What is enabled there; None where nothing is."""
    target = folder / PTH_NAME
    if not target.is_file():
        return None
    config = parse_line(target.read_text(encoding="utf-8"))
    if config is None:
        raise OverrideError(f"{target} is not what `override enable` writes", hint="remove it, or enable again")
    return config


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    on = actions.add_parser("enable", help="override get_kernel for every Python of this virtual environment")
    add_override_options(on)
    on.add_argument("--system", action="store_true", help="allow it outside of a virtual environment")
    actions.add_parser("disable", help="take it back")
    status = actions.add_parser("status", help="what is overridden here")
    status.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
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
        target = folder / PTH_NAME
        was = target.is_file()
        target.unlink(missing_ok=True)
        print(f"disabled for {sys.prefix}" if was else f"was not enabled for {sys.prefix}")
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
