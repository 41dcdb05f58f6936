"""`flash-attn3 hub seed`: fill a Hugging Face cache, so that `HF_HUB_OFFLINE=1` finds kernels without a server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from flash_attn3_sm121.files import put_file, put_folder
from flash_attn3_sm121.hub.checkout import Resolved, demand_same, place, resolve
from flash_attn3_sm121.hub.index import Index
from flash_attn3_sm121.hub.store import Hub

REPO_TYPES = ("model", "kernel")  # kernels asks for models to 0.13 and for kernels from 0.14 on
COVERS = (
    "kernels 0.9 to 0.12: get_kernel, bare (not has_kernel)",
    "kernels 0.13 and 0.14: not at all, they ask for the file list even offline",
    "kernels 0.15 and 0.16: get_kernel(..., version=1)",
    "kernels 0.17 and newer: get_kernel and has_kernel with version=1",
)


def default_cache(environ: Mapping[str, str] | None = None) -> Path:
    """The hub cache that huggingface_hub would use: HF_HUB_CACHE, HF_HOME/hub, or ~/.cache/huggingface/hub."""
    env = os.environ if environ is None else environ
    if env.get("HF_HUB_CACHE"):
        return Path(env["HF_HUB_CACHE"])
    if env.get("HF_HOME"):
        return Path(env["HF_HOME"]) / "hub"
    cache = Path(env["XDG_CACHE_HOME"]) if env.get("XDG_CACHE_HOME") else Path.home() / ".cache"
    return cache / "huggingface" / "hub"


def seed(hub: Hub, index: Index, repos: Sequence[str], cache: Path) -> list[Path]:
    """Put the newest revision of each repository into a cache; existing files of the same revision are checked."""
    done = []
    for name in repos:
        found = resolve(hub, index, name)
        refs = [ref for ref, sha in index.repo(name).refs.items() if sha == found.revision]
        first: Path | None = None
        for repo_type in REPO_TYPES:
            folder = cache / found.repo.cache_folder(repo_type)
            snapshot = folder / "snapshots" / found.revision
            _fill(hub, found, snapshot, first)
            first = first or snapshot
            for ref in refs:
                put_file(folder / "refs" / ref, found.revision)
            done.append(folder)
    return done


def _fill(hub: Hub, found: Resolved, snapshot: Path, twin: Path | None) -> None:
    if not snapshot.is_dir():
        if twin is None:
            place(hub, found.manifest.files, snapshot)
        else:
            _link_tree(twin, snapshot)
    demand_same(found, snapshot)


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder, by hard links where the file system has them."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # no hard links here: a copy is as good, only bigger
            shutil.copy2(one, other)

    with put_folder(target) as new:
        ours = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, new, copy_function=link, ignore=ours, dirs_exist_ok=True)
