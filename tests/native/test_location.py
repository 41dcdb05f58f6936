"""A clone shadows the installed wheel: the wheel's libraries serve it, and `explain` and `doctor` say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flash_attn3_sm121
from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.native.location import PACKAGE, locate
from tests.fakes.libraries import SM8X

NAME = "flash_attn3_sm121"


def source_tree(folder: Path) -> Path:
    """A clone with a package in it that has no libraries."""
    package = folder / "clone" / NAME
    package.mkdir(parents=True)
    (folder / "clone" / "pyproject.toml").touch()
    return package


def wheel(folder: Path, version: str = f"{__version__}+cu130") -> Path:
    """A folder of installed distributions that has our wheel, with one library's facts."""
    site = folder / "site"
    library = site / NAME / "lib"
    library.mkdir(parents=True)
    (library / "sm8x.json").write_text(SM8X.to_json(), encoding="utf-8")
    metadata = site / f"{NAME}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n", encoding="utf-8")
    return site


def test_an_installed_wheel_has_nothing_to_say(tmp_path: Path) -> None:
    package = wheel(tmp_path) / NAME
    location = locate(package, [str(package.parent)])
    assert (location.folder, location.note) == (package / "lib", None)
    shutil.rmtree(package / "lib")  # a wheel without machine code
    assert locate(package, [str(package.parent)]).note is None


def test_a_source_tree_takes_the_libraries_of_the_wheel(tmp_path: Path) -> None:
    package, site = source_tree(tmp_path), wheel(tmp_path)
    location = locate(package, [str(package.parent), str(site)])
    assert location.folder == site / NAME / "lib"
    assert location.note is not None and f"imports the source tree {package.parent}" in location.note
    assert "start python in another folder" in location.note


def test_a_source_tree_alone_says_what_to_do(tmp_path: Path) -> None:
    package = source_tree(tmp_path)
    location = locate(package, [str(package.parent), str(tmp_path)])
    assert location.folder == package / "lib"
    assert location.note is not None and '-m pip install "$(ls -t wheels/' in location.note


def test_libraries_of_another_version_are_not_taken(tmp_path: Path) -> None:
    package, site = source_tree(tmp_path), wheel(tmp_path, "2.9.0.post7")
    location = locate(package, [str(site)])
    assert location.folder == package / "lib"
    assert location.note is not None and "another version (2.9.0.post7)" in location.note


def test_libraries_of_the_source_tree_itself_come_first(tmp_path: Path) -> None:
    package, site = source_tree(tmp_path), wheel(tmp_path)
    (package / "lib").mkdir()
    assert locate(package, [str(site)]).folder == package / "lib"
    assert locate(package, [str(site)]).note is None


@pytest.mark.skipif((PACKAGE / "lib").is_dir(), reason="this clone has libraries of its own")
@pytest.mark.parametrize("command", ["explain", "doctor"])
def test_the_commands_say_it(command: str, tmp_path: Path) -> None:
    site = wheel(tmp_path)
    clone = Path(flash_attn3_sm121.__file__).parent.parent
    environ = {**os.environ, "PYTHONPATH": f"{clone}{os.pathsep}{site}", "COLUMNS": "1000"}
    arguments = {"explain": ["--capability", "12.1"], "doctor": []}[command]
    done = subprocess.run(
        [sys.executable, "-m", NAME, command, *arguments],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"imports the source tree {clone}" in done.stdout, done.stderr
    assert f"the libraries of the installed wheel, {site / NAME / 'lib'}" in " ".join(done.stdout.split())
    if command == "explain":
        assert "native (family sm8x, machine code sm_121)" in done.stdout
