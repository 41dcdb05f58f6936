"""What a build front end (pip, build, uv) asks for, from the environment alone: the version, and the wheel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ci.cache.folders import put_file
from ci.commands import options
from ci.machine import this_machine
from ci.plan import cuda
from ci.sources.lock import read_lock
from ci.wheel import wheel
from flash_attn3_sm121.console import Narrator

SKIP = "FLASH_ATTN3_SKIP_CUDA"


def skips_cuda(environ: Mapping[str, str]) -> bool:
    """Whether only the Python side is wanted; the usual spellings of no mean no."""
    return environ.get(SKIP, "").strip().lower() not in ("", "0", "false", "no", "off")


def version(environ: Mapping[str, str]) -> str:
    """The version that a wheel built with this environment gets. Fetches nothing."""
    if skips_cuda(environ):
        return wheel.pure_name().version
    plan = options.plan_of(options.from_environment(environ), machine=this_machine(), cuda=cuda.pinned())
    targets = [target.name for target in plan.targets]
    return wheel.native_version(read_lock().short, targets, profile=plan.profile, proxy=False)


def build_wheel(environ: Mapping[str, str], folder: Path) -> Path:
    """Build the wheel that the environment asks for into `folder`."""
    if skips_cuda(environ):
        name = wheel.pure_name()
        # Only our own licence: nothing of FlashAttention's or CUTLASS' is compiled in.
        files = wheel.wheel_files(name, libraries={}, licenses=wheel.license_files(()))
        return put_file(folder / name.file, wheel.wheel_bytes(name, files))
    from ci.commands import common

    session = common.begin(options.from_environment(environ), Narrator())
    builder = common.builder(session, common.gather_inputs(session))
    return common.build_wheel(builder, session.plan, output=folder).path
