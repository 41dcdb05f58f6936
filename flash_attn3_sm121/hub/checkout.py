"""A revision of the hub as a folder that Python can import from, or that another transport can point at.

A checkout is made once beside the caches. Before every use it is compared with the manifest: nothing may be missing,
changed, added, or a link. The override's copies lie in folders that nobody else may write to.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from flash_attn3_sm121.errors import HubError, IntegrityError, OverrideError
from flash_attn3_sm121.files import hash_file, put_folder
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest
from flash_attn3_sm121.hub.layout import PACKAGE, RepoName
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.trust import cache_root, trusted
from flash_attn3_sm121.hub.variant_loader import PackageFinder, SourceOnlyLoader
from flash_attn3_sm121.hub.variants import INFO_FILE, Variant

DEFAULT_REF = "main"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """One revision of one repository."""

    repo: RepoName
    revision: str
    ref: str  # the name it was found under
    manifest: Manifest


def resolve(hub: Hub, index: Index, repo: str, revision: str | None = None) -> Resolved:
    """Find a revision. A name that the hub does not know (a branch of the real repository) means the newest."""
    entry = index.repo(repo)
    ref = revision if revision is not None and entry.resolve(revision) else DEFAULT_REF
    sha = entry.resolve(ref)
    if sha is None:
        raise HubError(f"{repo} has no revision yet", hint="flash-attn3 hub publish WHEEL...")
    manifest = hub.manifest(entry.revisions[sha].manifest)
    if manifest.flavour != entry.flavour:
        raise IntegrityError(f"{repo}@{sha[:12]} is of flavour {manifest.flavour}, the repository of {entry.flavour}")
    return Resolved(repo=RepoName.parse(repo), revision=sha, ref=ref, manifest=manifest)


def place(hub: Hub, files: Mapping[str, FileEntry], target: Path) -> None:
    """Write files below `target`, each proven first. A reader sees all of them or none."""
    try:
        with put_folder(target) as new:
            for path, entry in files.items():
                out = new / path
                out.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(hub.verified(entry), out)
    except OSError as error:
        raise HubError(f"cannot write {target}: {error}") from error


def differing(files: Mapping[str, FileEntry], folder: Path) -> list[str]:
    """The paths in a folder that differ from a manifest: changed, missing and added files, and every link."""
    found = dict(_walk(folder, ""))
    bad = [path for path, plain in found.items() if not plain or path not in files]
    bad += [p for p, entry in files.items() if not found.get(p) or hash_file(folder / p) != (entry.sha256, entry.size)]
    return sorted(set(bad))


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, bool]]:
    """Yield (path, whether it is a plain file) of everything but folders. Links are yielded, not followed."""
    if folder.is_symlink():
        yield prefix, False
        return
    for entry in os.scandir(folder):
        inner = f"{prefix}/{entry.name}" if prefix else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), inner)
        else:
            yield inner, entry.is_file(follow_symlinks=False)


def checkout(hub: Hub, found: Resolved, *, under: Path | None = None) -> Path:
    """The folder of a revision, made where it is missing. Raises IntegrityError where it was changed."""
    root = under if under is not None else cache_root() / "checkouts"
    target = root / found.repo.org / f"{found.repo.name}-{found.revision}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            for variant in found.manifest.variants:  # what `kernels` compiled of the loader when it imported it
                shutil.rmtree(target / Variant.parse(variant).folder(found.repo) / "__pycache__", ignore_errors=True)
        else:
            place(hub, found.manifest.files, target)
    except OSError as error:
        raise HubError(f"cannot write {target}: {error.strerror}", hint="name another folder with --dir") from error
    demand_same(found, target)
    return target


def private_checkout(hub: Hub, found: Resolved) -> Path:
    """A checkout to import from, in folders that only this user (or root) may change."""
    root = cache_root() / "override"
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise HubError(f"cannot make {root}: {error.strerror}", hint="set FA3_CACHE to a folder of yours") from error
    info = root.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o022:
        raise IntegrityError(
            f"{root} can be changed by others (owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):o})",
            hint=f"rm -r {root}, or set FA3_CACHE to a folder of yours",
        )
    target = root / f"{found.repo.org}--{found.repo.name}-{found.revision}"
    if not target.is_dir():
        place(hub, found.manifest.files, target)
    demand_same(found, target)
    return target


def demand_same(found: Resolved, target: Path) -> None:
    """Raise IntegrityError where a folder is not what the manifest says."""
    if bad := differing(found.manifest.files, target):
        raise IntegrityError(
            f"{target}: {len(bad)} files are not what the hub's manifest says, first {bad[0]}",
            hint=f"rm -r {target}, then try again",
        )


def variant_for(torch: ModuleType) -> Variant:
    """The variant that the `kernels` library would take with this torch."""
    return Variant.TORCH_CPU if torch.version.cuda is None else Variant.TORCH_CUDA


def _forget(names: Iterable[str]) -> None:
    for name in list(names):
        if name == f"{PACKAGE}.hub.patch":
            continue  # the override that is in force lives in it
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            del sys.modules[name]


_loaded: dict[str, ModuleType] = {}


def load_from_hub(root: Path, repo: str, revision: str | None) -> tuple[ModuleType, str]:
    """Import a revision from a hub folder. Returns (module, where it is from, for messages)."""
    import torch

    hub = Hub.open(root)
    found = resolve(hub, trusted(hub).index, repo, revision)
    origin = f"{repo}@{found.revision[:12]} ({found.manifest.version}) of the hub {root}"
    variant = variant_for(torch)
    name = f"_flash_attn3_hub_{found.revision[:12]}_{variant.name.lower()}"
    if name in _loaded:
        return _loaded[name], origin
    folder = private_checkout(hub, found) / variant.folder(found.repo)
    if not (folder / INFO_FILE).is_file():
        raise OverrideError(f"{origin} has no variant {variant}")
    own = sys.modules.get(PACKAGE)
    if own is not None and not str(own.__file__).startswith(str(folder)):
        if f"{PACKAGE}.api.interface" in sys.modules:
            raise OverrideError(
                f"{PACKAGE} is in use already ({own.__file__}), so {origin} can't be loaded into this process",
                hint="override before anything imports the package, or serve without --hub",
            )
        # The package that runs this override makes way for the asked one; its operators are not registered yet.
        _forget(sys.modules)
    loader = SourceOnlyLoader(name, str(folder / "__init__.py"))
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", loader=loader, submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise OverrideError(f"cannot load {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.meta_path.insert(0, PackageFinder(folder))
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a revision's own loader may be an old one
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    _loaded[name] = module
    return module, origin
