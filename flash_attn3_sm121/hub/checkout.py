"""A revision of the hub as a folder that Python can import from, or that another transport can point at.

A checkout is made once beside the caches, and every load of it is checked again: against the manifest, and against
the trusted keys where some are configured.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from flash_attn3_sm121.errors import HubError, IntegrityError, OverrideError
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest
from flash_attn3_sm121.hub.layout import PACKAGE, RepoName
from flash_attn3_sm121.hub.sign import TrustedKeys
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.variants import SIGNATURE_FILE, SIGNED_FILE, Variant

DEFAULT_REF = "main"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """One revision of one repository."""

    repo: RepoName
    revision: str
    ref: str  # the name it was found under
    manifest: Manifest


def resolve(hub: Hub, index: Index, repo: str, revision: str | None = None) -> Resolved:
    """The asked revision; a name that the hub has no revision for (a branch of somebody else's) means the newest."""
    entry = index.repo(repo)
    ref = revision if revision is not None and entry.resolve(revision) else DEFAULT_REF
    sha = entry.resolve(ref)
    if sha is None:
        raise HubError(f"{repo} has no revision yet", hint="flash-attn3 hub publish WHEEL...")
    manifest = hub.manifest(entry.revisions[sha].manifest)
    return Resolved(repo=RepoName.parse(repo), revision=sha, ref=ref, manifest=manifest)


def verify_signatures(hub: Hub, found: Resolved, keys: TrustedKeys) -> None:
    """Every variant must be signed by a trusted key, and be exactly what was signed."""
    for variant in found.manifest.variants:
        folder = Variant.parse(variant).folder(found.repo)
        unit = found.manifest.under(folder)
        origin = f"{found.repo}@{found.revision[:12]} {variant}"
        texts = [hub.read(unit[name]) if name in unit else b"" for name in (SIGNED_FILE, SIGNATURE_FILE)]
        if not all(texts):
            raise IntegrityError(
                f"{origin} is not signed, and trusted keys are configured", hint="flash-attn3 hub sign"
            )
        hashes = {path: e.sha256 for path, e in unit.items() if path not in (SIGNED_FILE, SIGNATURE_FILE)}
        keys.verify_unit(hashes, *texts, origin=origin)


def place(hub: Hub, files: Mapping[str, FileEntry], target: Path) -> None:
    """Write files below `target`, each proven first. Beside, then renamed: a reader sees all of it or nothing."""
    beside = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        for path, entry in files.items():
            out = beside / path
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(hub.read(entry))
        beside.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise HubError(f"cannot write {target}: {error}") from error
    finally:
        if beside.exists():
            shutil.rmtree(beside)


def differing(files: Mapping[str, FileEntry], folder: Path) -> list[str]:
    """What in a folder is not as the manifest says; byte code that Python wrote itself does not count."""
    bad = []
    for path, entry in files.items():
        target = folder / path
        if not target.is_file() or hashlib.sha256(target.read_bytes()).hexdigest() != entry.sha256:
            bad.append(path)
    known = set(files)
    for found in folder.rglob("*"):
        inner = found.relative_to(folder).as_posix()
        if found.is_file() and inner not in known and "__pycache__" not in found.parts:
            bad.append(inner)
    return sorted(bad)


def cache_root() -> Path:
    """Where checkouts lie: below FA3_CACHE or the user's cache folder."""
    if os.environ.get("FA3_CACHE"):
        return Path(os.environ["FA3_CACHE"]) / "checkouts"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flash-attn3-sm121" / "checkouts"


def checkout(hub: Hub, found: Resolved, *, under: Path | None = None) -> Path:
    """The folder of a revision (with `build/` in it), made if it is not there, refused if it is not what it was."""
    keys = TrustedKeys.from_env()
    if keys is not None:
        verify_signatures(hub, found, keys)
    root = under if under is not None else cache_root()
    target = root / found.repo.org / f"{found.repo.name}-{found.revision}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        place(hub, found.manifest.files, target)
    if bad := differing(found.manifest.files, target):
        raise IntegrityError(
            f"{target}: {len(bad)} files are not what the hub's manifest says, first {bad[0]}",
            hint=f"rm -r {target}, then try again",
        )
    return target


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
    """Import a repository's revision out of a hub folder; (module, where it is from)."""
    import torch

    hub = Hub.open(root)
    found = resolve(hub, hub.index(), repo, revision)
    origin = f"{repo}@{found.revision[:12]} ({found.manifest.version}) of the hub {root}"
    variant = variant_for(torch)
    name = f"_flash_attn3_hub_{found.revision[:12]}_{variant.name.lower()}"
    if name in _loaded:
        return _loaded[name], origin
    folder = checkout(hub, found) / variant.folder(found.repo)
    own = sys.modules.get(PACKAGE)
    if own is not None and not str(own.__file__).startswith(str(folder)):
        if f"{PACKAGE}.api.interface" in sys.modules:
            raise OverrideError(
                f"{PACKAGE} is in use already ({own.__file__}), so {origin} can't be loaded into this process",
                hint="override before anything imports the package, or serve without --hub",
            )
        # The package that runs this override makes way for the asked one; its operators are not registered yet.
        _forget(sys.modules)
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise OverrideError(f"cannot load {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    _loaded[name] = module
    return module, origin
