"""A place to type commands in: a copy of the clone, a home that is empty, and programs that are this checkout's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from ci.cache.folders import cache_root
from tests.docs.kinds import Run
from tests.fakes.clone import copy_clone
from tests.hub.wheelmaker import write_wheel

PROGRAMS = {
    "python": '"$DOCS_VENV"/bin/python "$@"',
    "python3": '"$DOCS_VENV"/bin/python "$@"',
    "flash-attn3": '"$DOCS_VENV"/bin/python -m flash_attn3_sm121 "$@"',
    "pip": '"$DOCS_PIP" -m pip --python "$DOCS_VENV" "$@"',
}


class Place:
    """One command's surroundings; nothing outside `folder` is written to."""

    def __init__(self, folder: Path, *, build_venv: Path | None = None) -> None:
        """`build_venv`: where make has its environment for building; one of several places costs pip once."""
        self.folder = folder
        self.build_venv = build_venv or folder / "build-venv"
        self.clone = folder / "clone"
        self.home = folder / "home"
        copy_clone(self.clone)
        (self.home / ".config").mkdir(parents=True)
        self.wheel = write_wheel(self.clone / "wheels")
        # An environment of its own, which sees this one's packages: some commands write into the running one.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        (site / "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, body in PROGRAMS.items():
            (self.bin / name).write_text(f"#!/bin/sh\nexec {body}\n", encoding="utf-8")
            (self.bin / name).chmod(0o755)

    @property
    def environ(self) -> dict[str, str]:
        """Packages and certificates as this machine has them; nothing else of it."""
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        config = Path.home() / ".config" / "pip" / "pip.conf"
        return {
            **kept,
            **({"PIP_CONFIG_FILE": str(config)} if config.is_file() else {}),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.folder),
            "PYTHONPATH": f"{self.clone}:{self.clone / 'flash_attn3_sm121' / '_dropin'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "BUILD_VENV": str(self.build_venv),
            "DOCS_PIP": sys.executable,
            "DOCS_VENV": str(self.folder / "venv"),
        }

    def check_out_sources(self, cache: Path) -> None:
        """`fa` in the clone: the pinned sources, as a checkout has them."""
        code, said = self.type(
            "python -m ci fetch --json 2> fetch.log || (cat fetch.log && false)", {"FA3_CACHE": str(cache)}
        )
        assert code == 0, said
        (self.clone / "fa").symlink_to(Path(json.loads(said)["sources"]["hopper"]).parent)

    def popen(self, command: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.clone,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, command: str, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Exit code and everything printed."""
        with self.popen(command, **(environ or {})) as child:
            said, _ = child.communicate()
        return child.returncode, said

    def follow(self, command: str, how: Run) -> None:
        """Type a command of a page as its row of the table says, and look at what came of it."""
        for name, text in how.files.items():
            (self.clone / name).parent.mkdir(exist_ok=True)
            (self.clone / name).write_text(text, encoding="utf-8")
        environ = dict(how.environ)
        if not how.own_cache:
            environ["FA3_CACHE"] = str(cache_root())
        if any(" fa " in line for line in (command, *how.before)):
            self.check_out_sources(cache_root())
        typed = command
        for word, instead in how.puts.items():
            assert word in typed, f"{command}: no {word} to replace"
            typed = typed.replace(word, instead)
        lines = ["set -e", *how.before, f"{typed} {how.adds}".strip(), *how.then]
        code, said = self.type("\n".join(lines), environ)
        assert code == 0, said
        assert re.search(how.says, said), said
