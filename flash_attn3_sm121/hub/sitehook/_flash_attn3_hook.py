"""Waits for `import kernels`, and only then loads the override.

Loaded by path too, in interpreters that flash_attn3_sm121 is not installed for: nothing of the package at the top.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

CONFIG_ENV = "FLASH_ATTN3_OVERRIDE"
PACKAGE = "flash_attn3_sm121"


def _package() -> None:
    """Have the package importable: the installed one, else the one that this file is part of."""
    if PACKAGE in sys.modules or importlib.util.find_spec(PACKAGE) is not None:
        return
    folder = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


class LazyFinder:
    """First in `sys.meta_path` until `kernels` is asked for; then it makes way for the real override."""

    def __init__(self, config: str) -> None:
        self.config = config

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "kernels":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        _package()
        patch = importlib.import_module(f"{PACKAGE}.hub.patch")
        if patch.active() is None:  # what the program itself has asked for goes first
            patch.activate(patch.OverrideConfig.from_json(self.config))
        return patch.find_spec_through_finder(path, target)


def install(config: str) -> None:
    """Wait for `kernels`. FLASH_ATTN3_OVERRIDE=0 in the environment switches this off."""
    if os.environ.get(CONFIG_ENV) != "0" and sys.version_info >= (3, 10):
        sys.meta_path.insert(0, LazyFinder(config))
