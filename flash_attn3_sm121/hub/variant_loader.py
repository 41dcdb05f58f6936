"""FlashAttention-3 of flash_attn3_sm121, loaded out of a kernel repository's variant folder.

This file becomes the variant's `__init__.py`, so it needs nothing but Python. It picks the payload of this machine,
imports the package from there (once per process: its operators can be registered only once) and exports its functions.
Modules are compiled from their source each time: byte code lying beside them is neither read nor written.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "flash_attn3_sm121"
INFO_FILE = "flash_attn3_variant.json"


class SourceOnlyLoader(SourceFileLoader):
    """Imports a module from its source alone."""

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class PackageFinder(MetaPathFinder):
    """Finds the submodules of the package below one folder, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for entry in path or () if fullname.startswith(f"{PACKAGE}.") else ():
            if entry.startswith(self.folder):
                spec = FileFinder(entry, (SourceOnlyLoader, SOURCE_SUFFIXES)).find_spec(fullname)
                if spec is not None:
                    return spec
        return None


def payload_folder(folder: Path, system: str, machine: str) -> Path:
    """The package's folder for this machine, else the Python-only one."""
    for name in (f"{system.lower()}_{machine}", "any"):
        package = folder / "payload" / name / PACKAGE
        if (package / "__init__.py").is_file():
            return package
    raise ImportError(f"{folder} holds no payload for {system} {machine}", path=str(folder))


def load_package(folder: Path, version: str) -> ModuleType:
    """Import the package from this folder. One that is loaded already is used instead; a line says so if it differs."""
    loaded = sys.modules.get(PACKAGE)
    if loaded is not None:
        here = str(loaded.__file__).startswith(str(folder))
        if not here and loaded.__version__.partition("+")[0] != version:
            print(
                f"flash-attn3: {PACKAGE} {loaded.__version__} is loaded already ({loaded.__file__}); "
                f"it is used instead of {version} in {folder}",
                file=sys.stderr,
            )
        return loaded
    package = payload_folder(folder, platform.system(), platform.machine())
    sys.meta_path.insert(0, PackageFinder(package))
    loader = SourceOnlyLoader(PACKAGE, str(package / "__init__.py"))
    spec = importlib.util.spec_from_file_location(
        PACKAGE, package / "__init__.py", loader=loader, submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[PACKAGE]
        raise
    return module


def load(folder: Path, namespace: dict[str, Any]) -> None:
    """Load the package of this machine and export its functions."""
    info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    load_package(folder, info["version"])
    importlib.import_module(f"{PACKAGE}.hub.kernel_module").export(namespace, info["flavour"])


if (Path(__file__).parent / INFO_FILE).is_file():
    load(Path(__file__).parent, globals())
