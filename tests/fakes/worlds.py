"""A small upstream in a folder: a checkout, its lock, its source distribution, its git repositories."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

from ci.settings import Settings
from ci.sources.lock import LockedTree, Repository, Sdist, SourceLock
from ci.sources.treeid import scan, tree_id
from flash_attn3_sm121.call.schemas import PUBLIC
from flash_attn3_sm121.console import Narrator

FILES = {
    "hopper/utils.h": b"#pragma once\nint utils();\n",
    "hopper/flash.h": b"struct Params {};\n",
    "hopper/setup.py": b'if bare_metal_version < Version("12.3"):\n    raise RuntimeError\n',
    "hopper/flash_api_stable.cpp": "".join(f'm.def("{name}{text}");\n' for name, text in PUBLIC.items()).encode(),
    "hopper/instantiations/fwd_sm80.cu": b"template int forward<80>();\n",
    "csrc/cutlass/include/cute/tensor.hpp": b"namespace cute {}\n",
    "csrc/cutlass/include/cutlass/cutlass.h": b"namespace cutlass {}\n",
}
SCRIPT = "hopper/generate.sh"  # executable
PREFIX = "third_party/flash-attention"


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything a test of the routes needs."""

    checkout: Path
    index: Path  # a find-links folder that holds the source distribution
    cache: Path
    lock: SourceLock


def narrator() -> Narrator:
    return Narrator(stream=io.StringIO())


def settings_of(cache: Path, *, offline: bool = False) -> Settings:
    """Settings with a cache of a test's own, whose narration `said` returns."""
    return Settings(cache=cache, narrate=narrator(), offline=offline)


def said(settings: Settings) -> str:
    stream = settings.narrate.stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def make_world(folder: Path) -> World:
    checkout = folder / "checkout"
    for name, content in FILES.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(content)
    (checkout / SCRIPT).write_bytes(b"#!/bin/sh\n")
    (checkout / SCRIPT).chmod(0o755)
    index = folder / "index"
    index.mkdir()
    archive = index / "carrier-1.0.tar.gz"
    write_sdist(archive, checkout)
    lock = SourceLock(
        upstream=Repository(url=str(folder / "nowhere"), commit="1" * 40),
        cutlass=Repository(url=str(folder / "nowhere"), commit="2" * 40),
        hopper=_tree(checkout, "hopper"),
        cutlass_include=_tree(checkout, "csrc/cutlass/include"),
        sdist=Sdist(
            project="carrier",
            version="1.0",
            filename=archive.name,
            sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
            prefix=PREFIX,
        ),
        licenses=(),
    )
    return World(checkout=checkout, index=index, cache=folder / "cache", lock=lock)


def _tree(checkout: Path, path: str) -> LockedTree:
    files = tuple(scan(checkout / path))
    return LockedTree(path=path, id=tree_id(files), files=files)


def write_sdist(archive: Path, checkout: Path, *extra: tarfile.TarInfo) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(checkout, arcname=f"carrier-1.0/{PREFIX}")
        for member in extra:
            tar.addfile(member)


def with_sdist_of(world: World, *extra: tarfile.TarInfo) -> World:
    """The same world, its source distribution written anew (with more members) and pinned anew."""
    assert world.lock.sdist is not None
    archive = world.index / world.lock.sdist.filename
    write_sdist(archive, world.checkout, *extra)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return replace(world, lock=replace(world.lock, sdist=replace(world.lock.sdist, sha256=digest)))


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit_all(folder: Path) -> str:
    git(folder, "init", "--quiet", ".")
    git(folder, "add", "--all", "--force", ".")
    git(folder, "commit", "--quiet", "--no-verify", "-m", "all")
    return git(folder, "rev-parse", "HEAD")
