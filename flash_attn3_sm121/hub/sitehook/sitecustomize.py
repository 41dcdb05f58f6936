"""Found first, because this folder leads PYTHONPATH: starts the override, then runs the sitecustomize it hides."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - no pathlib: this runs in every interpreter


def _start() -> None:
    config = os.environ.get("FLASH_ATTN3_OVERRIDE")
    if config:
        importlib.import_module("_flash_attn3_hook").install(config)


def _chain() -> None:
    """Run the sitecustomize that would have been found without us."""
    others = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


_start()
_chain()
