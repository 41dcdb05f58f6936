"""The command line and environment that every building stage shares, read once, at the edge, into a `Request`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ci.plan import archs as archlist
from ci.plan import profiles
from ci.plan.archs import Platform
from ci.plan.plan import BuildPlan, Shard, make_plan
from ci.settings import Machine
from ci.sources.lock import DEFAULT_LOCK, DEFAULT_PIN, find_pin, pins
from flash_attn3_sm121.arch import FAMILIES, Family
from flash_attn3_sm121.builds import DEFAULT, MODELS, PROFILES
from flash_attn3_sm121.errors import UsageError

LAUNCHERS = ("ccache", "sccache")
# TORCH_CUDA_ARCH_LIST as NVIDIA's PyTorch containers set it, for x86_64 and aarch64: what their torch was built for.
CONTAINER_LISTS = ("7.5 8.0 8.6 9.0 10.0 12.0+PTX", "8.0 8.6 9.0 10.0 11.0 12.0+PTX")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A build as the user asked for it. Nothing of it has been checked or looked up."""

    profile: str = DEFAULT
    archs: str | None = None
    platform: str | None = None
    families: tuple[str, ...] = ()
    shard: str = "1/1"
    proxy: str = ""
    jobs: int | None = None
    launcher: str | None = None
    source: Path | None = None
    lock: Path = DEFAULT_LOCK
    cuda_home: Path | None = None


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that decide the plan."""
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--profile", help=f"one of {', '.join(PROFILES)} (default: {DEFAULT})")
    part.add_argument(
        "--models",
        dest="profile",
        type=profiles.profile_name,
        metavar="NAMES",
        help=f"no more than these models need: {', '.join(MODELS)}",
    )
    parser.add_argument(
        "--archs", metavar="LIST", help='as TORCH_CUDA_ARCH_LIST: "12.1", "9.0 10.0 12.1", "12.0f;12.1+PTX", Blackwell'
    )
    parser.add_argument("--platform", help="aarch64 or x86_64 (default: this machine's)")
    parser.add_argument("--family", action="append", default=[], help="only this family of the list; may be repeated")
    add_pin_arguments(parser)
    parser.add_argument("--proxy", metavar="CAP", help="machine code for another device (9.0), to test on it")
    parser.add_argument("--jobs", type=int, help="compilers at once (default: as many as cores and memory allow)")


def add_pin_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that choose upstream's commit."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--pin",
        dest="lock",
        type=find_pin,
        metavar="PIN",
        help=f"which of upstream's commits: {', '.join(pins())} (default: {DEFAULT_PIN}), or its first digits",
    )
    which.add_argument("--lock", type=Path, metavar="FILE", help="a source lock of your own instead")


def add_shard_argument(parser: argparse.ArgumentParser) -> None:
    """For the stages that end with artifacts. A wheel needs all shards."""
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="only part I of N, for one of N machines")


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of stages that compile."""
    add_plan_arguments(parser)
    parser.add_argument("--launcher", choices=LAUNCHERS, help="run compilers through this cache as well")
    add_input_arguments(parser)


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say where sources and compiler come from."""
    parser.add_argument(
        "--source",
        type=Path,
        default=_source(os.environ),
        help="a flash-attention checkout, submodules included, to take the sources from (default: $FA3_SOURCE)",
    )
    parser.add_argument("--cuda-home", type=Path, help="an installed CUDA toolkit instead of the pinned packages")


def _source(environ: Mapping[str, str]) -> Path | None:
    return Path(environ["FA3_SOURCE"]) if environ.get("FA3_SOURCE") else None


def _jobs(text: str | None, *, origin: str) -> int | None:
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"{origin}: expected a number of jobs, found {text!r}")
    return int(text)


def from_environment(environ: Mapping[str, str]) -> Request:
    """The request that environment variables alone make (`pip install .` has nothing else).

    NVIDIA's PyTorch container sets TORCH_CUDA_ARCH_LIST itself. That list is not a user's wish, and is not read.
    """
    jobs = _jobs(environ.get("JOBS"), origin="JOBS")
    archs = environ.get("TORCH_CUDA_ARCH_LIST")
    if "NVIDIA_PYTORCH_VERSION" in environ and archs in CONTAINER_LISTS:
        archs = None
    return Request(
        profile=environ.get("FLASH_ATTN3_PROFILE") or DEFAULT,
        archs=archs or None,
        platform=environ.get("FLASH_ATTN3_PLATFORM") or None,
        jobs=jobs if jobs is not None else _jobs(environ.get("MAX_JOBS"), origin="MAX_JOBS"),
        launcher=environ.get("FLASH_ATTN3_LAUNCHER") or None,
        source=_source(environ),
        lock=find_pin(environ["FLASH_ATTN3_PIN"]) if environ.get("FLASH_ATTN3_PIN") else DEFAULT_LOCK,
    )


def from_arguments(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Request:
    """The request of a command line. What it leaves out comes from the environment."""
    base = from_environment(os.environ if environ is None else environ)
    if args.jobs is not None and args.jobs < 1:
        raise UsageError(f"--jobs: expected 1 or more, found {args.jobs}")
    return Request(
        profile=args.profile or base.profile,
        archs=args.archs or base.archs,
        platform=args.platform or base.platform,
        families=tuple(args.family),
        shard=getattr(args, "shard", "1/1"),
        proxy=args.proxy or "",
        jobs=args.jobs or base.jobs,
        launcher=getattr(args, "launcher", None) or base.launcher,
        source=getattr(args, "source", None) or base.source,
        lock=args.lock or base.lock,
        cuda_home=getattr(args, "cuda_home", None),
    )


def _family(name: str) -> Family:
    known = {str(family): family for family in FAMILIES}
    if name not in known:
        raise UsageError(f"unknown family {name!r}", hint=f"allowed: {', '.join(known)}")
    return known[name]


def plan_of(request: Request, *, machine: Machine, cuda: tuple[int, int]) -> BuildPlan:
    """The plan that a request comes to on a machine, with a toolchain of that version. Pure."""
    return make_plan(
        profile=profiles.find(request.profile),
        targets=archlist.parse(request.archs, cuda=cuda, native=machine.gpus),
        platform=Platform.parse(request.platform) if request.platform else machine.platform,
        cuda=cuda,
        families=tuple(_family(name) for name in request.families),
        shard=Shard.parse(request.shard),
        proxy=request.proxy,
    )
