"""The version, the wheel and the sdist for a build front end (pip, build, uv). The environment alone decides them.

setup.py is thin: it hands setuptools the two commands below.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.sdist import sdist

from ci import ROOT
from ci.commands import options
from ci.process import execute
from ci.settings import this_machine
from ci.sources.lock import read_lock
from ci.toolchain.installed import planned_version
from ci.wheel import wheel
from flash_attn3_sm121.errors import FlashAttn3Error
from flash_attn3_sm121.files import put_file

SKIP = "FLASH_ATTN3_SKIP_CUDA"


def skips_cuda(environ: Mapping[str, str]) -> bool:
    """Tell whether FLASH_ATTN3_SKIP_CUDA asks for a wheel without libraries. Empty, 0, false, no and off are a no."""
    return environ.get(SKIP, "").strip().lower() not in ("", "0", "false", "no", "off")


def version(environ: Mapping[str, str]) -> str:
    """The version that a wheel built with this environment gets. Fetches nothing."""
    if skips_cuda(environ):
        return wheel.pure_name().version
    request = options.from_environment(environ)
    plan = options.plan_of(request, machine=this_machine(), cuda=planned_version())
    targets = [target.name for target in plan.targets]
    return wheel.native_version(read_lock(request.lock).short, targets, profile=plan.profile, proxy=False)


def build_wheel(environ: Mapping[str, str], folder: Path) -> Path:
    """Build the wheel that the environment asks for into `folder`."""
    if skips_cuda(environ):
        name = wheel.pure_name()
        # Only our own licence: nothing of FlashAttention's or CUTLASS' is compiled in.
        files = wheel.wheel_files(name, libraries={}, licenses=wheel.license_files(()))
        return put_file(folder / name.file, wheel.wheel_bytes(name, files))
    from ci.commands import common

    session = common.begin(options.from_environment(environ))
    builder = common.builder(session, common.gather_inputs(session))
    return common.build_wheel(builder, session.plan, output=folder).path


class BdistWheel(bdist_wheel):  # type: ignore[misc]  # setuptools is untyped
    """setuptools' bdist_wheel. The harness makes the wheel and checks it."""

    def run(self) -> None:
        try:
            path = build_wheel(os.environ, Path(self.dist_dir))
        except FlashAttn3Error as error:
            # pip shows the traceback's last line and nothing else of worth: make that line the message.
            raise SystemExit(f"flash_attn3_sm121: error: {error}") from error
        self.distribution.dist_files.append(("bdist_wheel", "any", str(path)))


class Sdist(sdist):  # type: ignore[misc]
    """setuptools' sdist, of everything that git tracks, so that a wheel can be built from the archive."""

    def add_defaults(self) -> None:
        super().add_defaults()
        done = execute(["git", "ls-files", "-z"], cwd=ROOT)
        if done.returncode == 0:
            self.filelist.extend(name for name in done.stdout.split("\0") if name and Path(name).is_file())
