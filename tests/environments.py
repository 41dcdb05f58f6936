"""Virtual environments with real versions of other packages, made once and kept in the content cache.

torch is big and the same everywhere: a `.pth` file shares the one of the running environment, behind everything that
the environment has itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from ci.cache.folders import cache_root, locked, making

SHARED = "zz_shared_torch.pth"


def python_with(name: str, wanted: Sequence[str], *, ours: Path | None = None) -> Path:
    """The interpreter of an environment with these packages (what pip install takes); made if the cache has none.

    Args:
        name: names its folder in the cache, before a hash.
        wanted: requirements and options of pip install.
        ours: a checkout whose package is put there the way the wheel does it: the package's folder (as a link) and
            the `.pth` line that adds the drop-in modules behind site-packages.
    """
    shared = sysconfig.get_path("purelib")
    recipe = json.dumps([wanted, sys.version, shared, *([str(ours)] if ours else []), 2])
    key = f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    cache = cache_root()
    python = cache / key / "bin" / "python"
    with locked(cache, key):
        if not python.exists():
            _remove_orphans(cache, name)
            with making(cache, key) as folder:
                _call(sys.executable, "-m", "venv", "--without-pip", str(folder))
                target = str(folder / "bin" / "python")
                # Clients are large, and little of them is imported: what is, Python compiles once.
                _call(sys.executable, "-m", "pip", "--python", target, "install", "--quiet", "--no-compile", *wanted)
                (site,) = folder.glob("lib/python*/site-packages")
                (site / SHARED).write_text(shared + "\n", encoding="utf-8")
                if ours:
                    (site / "flash_attn3_sm121").symlink_to(ours / "flash_attn3_sm121")
                    (site / "flash_attn3_sm121.pth").write_text("flash_attn3_sm121/_dropin\n", encoding="utf-8")
    return python


def _remove_orphans(cache: Path, name: str) -> None:
    """Remove the environments of this name whose shared torch is gone, with the clone that had it."""
    for shared in cache.glob(f"{name}-*/lib/python*/site-packages/{SHARED}"):
        if not Path(shared.read_text(encoding="utf-8").strip()).exists():
            shutil.rmtree(shared.parents[3])


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"


class Environment:
    """A fresh virtual environment that sees this one's torch and is served by this one's pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.call([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        (self.site / "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def call(self, command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder.parent)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def pip(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(self.python)]
        return self.call([*command, *arguments])

    def install(self, file: Path) -> str:
        return self.pip("install", "--no-deps", "--no-index", str(file))

    def run(self, code: str) -> str:
        return self.call([str(self.python), "-c", code])

    def files(self) -> set[str]:
        return {str(path.relative_to(self.site)) for path in self.site.rglob("*")}
