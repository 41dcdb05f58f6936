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


class PackageFinder:
    """Last in `sys.meta_path`: finds the package that this file is part of, if no other finder has found one."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != PACKAGE:
            return None
        folder = Path(__file__).parents[2]
        return importlib.util.spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


class LazyFinder:
    """First in `sys.meta_path` until `kernels` is asked for; then it makes way for the real override."""

    def __init__(self, config: str) -> None:
        self.config = config

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "kernels":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        patch = importlib.import_module(f"{PACKAGE}.hub.patch")
        if patch.active() is None:  # what the program itself has asked for goes first
            patch.activate(patch.OverrideConfig.from_json(self.config))
        return patch.find_spec_through_finder(path, target)


def install(config: str) -> None:
    """Wait for `kernels`, and make the package importable.

    FLASH_ATTN3_OVERRIDE=0 in the environment switches this off.
    """
    if os.environ.get(CONFIG_ENV) != "0" and sys.version_info >= (3, 10):
        sys.meta_path.insert(0, LazyFinder(config))
        sys.meta_path.append(PackageFinder())  # FlashAttention-2's names import the package
