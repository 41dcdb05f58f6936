"""A wheel, installed into a folder by pip without an index, or unzipped where pip is missing or refuses it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ci.process import execute
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.files import hash_file
from flash_attn3_sm121.native.buildfacts import BuildFacts

PACKAGE = "flash_attn3_sm121"


@dataclass(frozen=True, kw_only=True)
class OpenedWheel:
    """The folder that a wheel was opened into, and the facts about its libraries."""

    folder: Path
    name: str
    sha256: str
    facts: tuple[BuildFacts, ...]

    @property
    def proxy(self) -> bool:
        return any(build.proxy for build in self.facts)

    @property
    def paths(self) -> tuple[Path, Path]:
        """For PYTHONPATH; the second is what the wheel's .pth file would add in an installed one."""
        return self.folder, self.folder / PACKAGE / "_dropin"

    def described(self) -> Mapping[str, Any]:
        libraries = [asdict(facts) for facts in self.facts]
        return {"name": self.name, "sha256": self.sha256, "proxy": self.proxy, "libraries": libraries}


def _pip(wheel: Path, folder: Path) -> bool:
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    narrate = Narrator()
    argv += ["--disable-pip-version-check", "--root-user-action=ignore", "--target", str(folder), str(wheel)]
    try:
        done = execute(argv, narrate=narrate, timeout=120)
    except subprocess.TimeoutExpired:
        narrate.note("pip did not end; the wheel is unzipped instead")
        return False
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        narrate.note(f"pip does not take it ({said[-1] if said else 'it says nothing'}); the wheel is unzipped instead")
    return done.returncode == 0


def open_wheel(wheel: Path, folder: Path) -> OpenedWheel:
    """Open a wheel into a folder that does not exist yet.

    Raises:
        UsageError: the file is not a wheel of this package.
    """
    if not wheel.is_file() or not zipfile.is_zipfile(wheel):
        raise UsageError(
            f"{wheel} is not a wheel", hint="make wheel builds one; then: make test-gpu WHEEL=wheels/NAME.whl"
        )
    folder.mkdir(parents=True)
    if not _pip(wheel, folder):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)  # which leaves out what leads out of the folder
    package = folder / PACKAGE
    if not (package / "__init__.py").is_file():
        raise UsageError(f"{wheel.name} holds no package {PACKAGE}", hint="give a wheel that `make wheel` made")
    return OpenedWheel(
        folder=folder,
        name=wheel.name,
        sha256=hash_file(wheel)[0],
        facts=tuple(
            BuildFacts.read(path)
            for path in sorted((package / "lib").glob("*.json"))
            if path.name not in ("executed.json", "provenance.json", "verify.json")
        ),
    )
