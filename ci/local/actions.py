"""What stands in for GitHub's own actions here. An action without a row is an error: it would go untried unseen."""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flash_attn3_sm121.errors import UsageError

# These talk to GitHub and have no meaning elsewhere; the summary lists them as not done.
ONLY_THERE = frozenset(
    {
        "actions/attest-build-provenance",
        "actions/deploy-pages",
        "actions/github-script",  # what it asks GitHub for; a launcher then uses this machine's own cache
        "actions/upload-pages-artifact",
    }
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Folders of one job instance."""

    workspace: Path
    temp: Path
    artifacts: Path  # shared by all jobs of the run

    @property
    def venv(self) -> Path:
        return self.temp / "python"


def perform(uses: str, given: Mapping[str, Any], place: Place) -> tuple[bool, str]:
    """(was it done, what is said about it)."""
    name = uses.partition("@")[0]
    if name in ONLY_THERE:
        return False, "talks to GitHub: not done here"
    if name == "actions/checkout":
        return True, "a copy of this working tree"
    if name == "actions/cache":
        return True, "this machine's content cache"
    if name == "actions/setup-python":
        return True, _python(str(given.get("python-version", "")), place)
    if name == "actions/upload-artifact":
        return True, _upload(given, place)
    if name == "actions/download-artifact":
        return True, _download(given, place)
    raise UsageError(f"no stand-in for {uses}", hint="add one to ci/local/actions.py")


def _python(version: str, place: Place) -> str:
    """A fresh virtual environment of the Python that is asked for, or of this one where that is not installed."""
    found = shutil.which(f"python{version}")
    works = found and subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0
    python = found if found and works else sys.executable
    subprocess.run([python, "-m", "venv", str(place.venv)], check=True)
    return f"a virtual environment of {python}" + ("" if works else f" (no usable Python {version} here)")


def _upload(given: Mapping[str, Any], place: Place) -> str:
    name, text = str(given["name"]), str(given["path"]).strip()
    if "\n" in text:
        raise UsageError(f"upload-artifact {name}: one path, please: several are not known here")
    target = place.artifacts / name
    if target.exists():
        raise UsageError(f"upload-artifact: {name} is there already: names must be unique in a run")
    root, files = _selected(place.workspace, text)
    if not files:
        if given.get("if-no-files-found") == "error":
            raise UsageError(f"upload-artifact {name}: nothing matches {text}")
        return f"{name}: nothing matches {text}"
    for path in files:
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return f"{name}: {len(files)} files"


def _selected(workspace: Path, text: str) -> tuple[Path, list[Path]]:
    """The folder that names in the artifact are relative to, and the files: GitHub's least common ancestor."""
    parts = text.split("/")
    fixed = next((index for index, part in enumerate(parts) if "*" in part), len(parts))
    root = workspace.joinpath(*parts[:fixed])
    if fixed < len(parts):
        found = root.glob("/".join(parts[fixed:]))
    elif root.is_dir():
        found = root.rglob("*")
    else:
        return root.parent, [root] if root.is_file() else []
    return root, sorted(path for path in found if path.is_file())


def _download(given: Mapping[str, Any], place: Place) -> str:
    target = place.workspace / str(given.get("path", "."))
    have = sorted(path.name for path in place.artifacts.iterdir()) if place.artifacts.is_dir() else []
    if "name" in given:
        names = [name for name in have if name == given["name"]]
        if not names:
            raise UsageError(f"download-artifact: no {given['name']}", hint=f"this run made: {', '.join(have) or '-'}")
    else:
        names = fnmatch.filter(have, str(given.get("pattern", "*")))
    apart = "name" not in given and str(given.get("merge-multiple", "false")).lower() != "true"
    for name in names:
        shutil.copytree(place.artifacts / name, target / name if apart else target, dirs_exist_ok=True)
    return ", ".join(names) or "nothing matches"
