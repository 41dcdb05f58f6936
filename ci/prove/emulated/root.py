"""The emulated root: Debian's arm64 packages unpacked into a folder, run by qemu-user. No binfmt, chroot or container.

`debootstrap --foreign` downloads and verifies the packages (signatures and hashes are its business); unpacking all of
them is enough, since no maintainer script has to run for a Python. A second folder holds torch and `kernels`, put
there by the root's own pip under emulation, so that wheel tags and markers are judged as on the real machine. Both
are cached under a key made of everything that went in.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ci.process import output_of
from ci.settings import Settings
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import ToolchainError

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "libgomp1", "libstdc++6", "ca-certificates")
PYTHON = "usr/bin/python3.11"
REQUIREMENTS = Path(__file__).with_name("requirements-aarch64.txt")
QEMU = "qemu-aarch64-static"
LAYOUT = 1  # raise it when what `prepare` makes changes in kind


def key() -> str:
    """The content key of the root: suite, packages and pinned requirements."""
    text = f"{LAYOUT}|{SUITE}|{PACKAGES}|{REQUIREMENTS.read_text(encoding='utf-8')}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class EmulatedRoot:
    """A prepared root. `command` gives the host command that runs the emulated Python."""

    folder: Path

    @property
    def system(self) -> Path:
        return self.folder / "system"

    @property
    def site(self) -> Path:
        return self.folder / "site"

    @property
    def pip(self) -> Path:
        return next((self.system / "usr/share/python-wheels").glob("pip-*.whl"))

    def command(self, *arguments: str, python: Path | None = None) -> list[str]:
        return [QEMU, "-L", str(self.system), str(python or self.system / PYTHON), *arguments]

    def make_environment(self, folder: Path) -> Path:
        """A fresh virtual environment that sees torch and kernels; returns its python."""
        output_of(self.command("-m", "venv", "--without-pip", str(folder)))
        packages = folder / "lib" / Path(PYTHON).name / "site-packages"
        (packages / "base.pth").write_text(f"{self.site}\n", encoding="utf-8")
        return folder / "bin" / Path(PYTHON).name

    def pip_install(self, python: Path, *arguments: str) -> str:
        """Debian's own pip, under emulation, into the environment of `python`."""
        flags = ("--no-compile", "--disable-pip-version-check", "--root-user-action=ignore")
        return output_of(
            self.command("-m", "pip", "install", *flags, *arguments, python=python),
            env={**os.environ, "PYTHONPATH": str(self.pip)},
        )


def require_tools() -> None:
    """Say what is missing and how to get it, before anything is downloaded."""
    missing = [tool for tool in (QEMU, "debootstrap", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise ToolchainError(
            f"emulation needs {', '.join(missing)}, not found on PATH",
            hint="apt-get install qemu-user-static debootstrap debian-archive-keyring",
        )
    if os.geteuid() != 0:
        raise ToolchainError("debootstrap wants root", hint="run this as root, or under fakeroot")


def prepare(settings: Settings) -> EmulatedRoot:
    """The cached root, made on first use (about two minutes, 700 MB). Whole or absent, like every cache entry."""
    require_tools()
    folder = settings.provide(
        f"emulated/{key()}", "the emulated root", lambda work: _fill(EmulatedRoot(folder=work), settings.narrate)
    )
    return EmulatedRoot(folder=folder)


def _fill(root: EmulatedRoot, narrate: Narrator) -> None:
    command = ["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    command += [SUITE, str(root.system)]
    output_of(command, narrate=narrate)
    archives = sorted((root.system / "var/cache/apt/archives").glob("*.deb"))
    with narrate.progress("unpacking arm64 packages", len(archives), unit="packages") as progress:
        for archive in archives:
            output_of(["dpkg-deb", "-x", str(archive), str(root.system)])
            archive.unlink()
            progress.advance(detail=archive.name.partition("_")[0])
    narrate.note(f"installing {REQUIREMENTS.name} with the emulated pip")
    # The list is whole. Left to resolve, pip asks for the newest of what is wanted with an extra, and refuses it.
    arguments = ("--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", str(REQUIREMENTS))
    root.pip_install(root.system / PYTHON, *arguments, "--target", str(root.site))
