"""The source lock: which upstream commits and git trees are built, and where they may come from.

The pins of this repository are the locks in `third_party/flash-attention/`: `lock.json` is the default one, and
`lock-NAME.json` the pin NAME. Another lock is made from a checkout with `python -m ci lock --source DIR --output
OTHER.json` and used with `--lock OTHER.json`. Beside a lock lies one manifest a tree (mode, blob id and path of every
file), which must hash to the tree id that the lock gives.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ci import ROOT
from ci.sources.treeid import Entry, compare, format_manifest, parse_manifest, scan, tree_id
from flash_attn3_sm121.errors import SourceError, UsageError
from flash_attn3_sm121.files import put_file

SCHEMA = 1
PINS = ROOT / "third_party" / "flash-attention"
DEFAULT_LOCK = PINS / "lock.json"
DEFAULT_PIN = "default"

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHORTEST = 7  # digits of a commit that name it


@dataclass(frozen=True, kw_only=True)
class Repository:
    """Where git can get a tree: a url and the one commit that is wanted (None: unknown, git is not a route)."""

    url: str
    commit: str | None


@dataclass(frozen=True, kw_only=True)
class LockedTree:
    """One folder of upstream's: its path in a checkout, its git tree id, and every file in it."""

    path: str
    id: str
    files: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Sdist:
    """A source distribution that carries the checkout under `prefix`."""

    project: str
    version: str
    filename: str
    sha256: str
    prefix: str


@dataclass(frozen=True, kw_only=True)
class SourceLock:
    """The pin, complete and checked against itself: reading it proves that manifests and tree ids agree."""

    upstream: Repository
    cutlass: Repository
    hopper: LockedTree
    cutlass_include: LockedTree
    sdist: Sdist | None
    licenses: tuple[Path, ...]

    @property
    def key(self) -> str:
        """Names the pair of trees: equal keys mean equal sources."""
        return f"{self.hopper.id}-{self.cutlass_include.id}"

    @property
    def short(self) -> str:
        """The commit as a version suffix wants it (`3effce8`), or the tree id's head where no commit is known."""
        return (self.upstream.commit or self.hopper.id)[:7]

    @property
    def title(self) -> str:
        """The commit and both trees, for people."""
        return f"{self.short} (hopper {self.hopper.id[:7]}, cutlass {self.cutlass_include.id[:7]})"

    @property
    def trees(self) -> tuple[LockedTree, LockedTree]:
        return (self.hopper, self.cutlass_include)


def read_lock(path: Path = DEFAULT_LOCK) -> SourceLock:
    """Read and check a lock. Raises SourceError that names the key, what was expected and what was found."""
    origin = str(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"cannot read the source lock {path}: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{origin}: not JSON: {error}") from error
    root = _table(data, origin, {"schema", "upstream", "cutlass", "trees", "sdist", "licenses"})
    if root["schema"] != SCHEMA:
        raise SourceError(f"{origin}: schema: expected {SCHEMA}, found {root['schema']!r}")
    trees = _table(root["trees"], f"{origin}: trees", {"hopper", "cutlass_include"})
    licenses = root["licenses"]
    if not isinstance(licenses, list) or not all(isinstance(name, str) for name in licenses):
        raise SourceError(f"{origin}: licenses: expected a list of file names, found {licenses!r}")
    for name in licenses:
        if not (path.parent / name).is_file():
            raise SourceError(f"{origin}: licenses: no file {name} beside the lock")
    return SourceLock(
        upstream=_repository(root["upstream"], f"{origin}: upstream"),
        cutlass=_repository(root["cutlass"], f"{origin}: cutlass"),
        hopper=_tree(trees["hopper"], f"{origin}: trees.hopper", path.parent),
        cutlass_include=_tree(trees["cutlass_include"], f"{origin}: trees.cutlass_include", path.parent),
        sdist=None if root["sdist"] is None else _sdist(root["sdist"], f"{origin}: sdist"),
        licenses=tuple(path.parent / name for name in licenses),
    )


def pin_file(name: str) -> Path:
    """Where the lock of a pin of that name is, or would be."""
    return DEFAULT_LOCK if name == DEFAULT_PIN else PINS / f"lock-{name}.json"


def pins() -> dict[str, Path]:
    """The lock of every pin of this repository, by the pin's name; the default first."""
    others = sorted(PINS.glob("lock-*.json"))
    return {DEFAULT_PIN: DEFAULT_LOCK} | {path.stem.removeprefix("lock-"): path for path in others}


def find_pin(text: str) -> Path:
    """The lock of the pin of that name, or of the commit that begins so. Raises UsageError with the nearest name."""
    known = pins()
    if text in known:
        return known[text]
    commits = {path: read_lock(path).upstream.commit or "" for path in known.values()}
    if len(text) >= _SHORTEST and (found := [path for path, commit in commits.items() if commit.startswith(text)]):
        return found[0]
    close = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.5)
    rows = ", ".join(f"{name} ({commits[path][:_SHORTEST]})" for name, path in known.items())
    raise UsageError(
        f"unknown pin {text!r}" + (f"; did you mean {close[0]}?" if close else ""),
        hint=f"pins: {rows}; a lock of your own: --lock FILE (LOCK=FILE)",
    )


def lock_of(key: str) -> Path:
    """The lock of the pin with these trees; the default one, where no pin has them."""
    return next((path for path in pins().values() if read_lock(path).key == key), DEFAULT_LOCK)


def _table(data: object, where: str, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise SourceError(f"{where}: expected a table, found {type(data).__name__}")
    missing, unknown = sorted(keys - set(data)), sorted(set(data) - keys)
    if missing or unknown:
        raise SourceError(f"{where}: missing keys {missing}, unknown keys {unknown}")
    return data


def _matching(data: Mapping[str, Any], key: str, where: str, pattern: re.Pattern[str]) -> str:
    value = data[key]
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise SourceError(f"{where}.{key}: expected {pattern.pattern}, found {value!r}")
    return value


def _repository(data: object, where: str) -> Repository:
    table = _table(data, where, {field.name for field in fields(Repository)})
    if not isinstance(table["url"], str) or not table["url"]:
        raise SourceError(f"{where}.url: expected an address, found {table['url']!r}")
    commit = None if table["commit"] is None else _matching(table, "commit", where, _SHA1)
    return Repository(url=table["url"], commit=commit)


def _tree(data: object, where: str, folder: Path) -> LockedTree:
    table = _table(data, where, {"path", "id", "manifest"})
    expected = _matching(table, "id", where, _SHA1)
    manifest = folder / str(table["manifest"])
    try:
        files = parse_manifest(manifest.read_text(encoding="utf-8"), origin=str(manifest))
    except OSError as error:
        raise SourceError(f"{where}.manifest: cannot read {manifest}: {error.strerror}") from error
    found = tree_id(files)
    if found != expected:
        raise SourceError(
            f"{where}.id: the lock says {expected}, but {manifest.name} hashes to {found}",
            hint="restore both files from the repository's history; they are never edited by hand",
        )
    return LockedTree(path=str(table["path"]), id=expected, files=files)


def _sdist(data: object, where: str) -> Sdist:
    table = _table(data, where, {field.name for field in fields(Sdist)})
    _matching(table, "sha256", where, _SHA256)
    return Sdist(**{key: str(value) for key, value in table.items()})


def write_lock(path: Path, lock: SourceLock) -> tuple[Path, ...]:
    """Write a lock, its manifests and its licence texts; returns the files written."""
    names = {"hopper": f"{path.stem}.hopper.tree", "cutlass_include": f"{path.stem}.cutlass-include.tree"}
    trees = {"hopper": lock.hopper, "cutlass_include": lock.cutlass_include}
    data = {
        "schema": SCHEMA,
        "upstream": asdict(lock.upstream),
        "cutlass": asdict(lock.cutlass),
        "trees": {k: {"path": tree.path, "id": tree.id, "manifest": names[k]} for k, tree in trees.items()},
        "sdist": None if lock.sdist is None else asdict(lock.sdist),
        "licenses": [license.name for license in lock.licenses],
    }
    texts = {path.parent / names[key]: format_manifest(tree.files) for key, tree in trees.items()}
    texts[path] = json.dumps(data, indent=2) + "\n"
    for license in lock.licenses:
        texts[path.parent / license.name] = license.read_text(encoding="utf-8")
    for file, text in texts.items():
        put_file(file, text)
    return tuple(texts)


def check_checkout(root: Path, lock: SourceLock) -> None:
    """Raise SourceError, naming the files, unless `root` holds both locked trees at their places."""
    problems = [problem for tree in lock.trees if (problem := mismatch(root, tree)) is not None]
    if problems:
        raise SourceError("; ".join(problems))


def mismatch(root: Path, tree: LockedTree) -> str | None:
    """Why `root/<tree.path>` is not the locked tree, or None."""
    folder = root / tree.path
    if not folder.is_dir():
        return f"{folder}: no such folder"
    found = scan(folder)
    difference = compare(tree.files, found)
    identity = tree_id(found)
    if not difference and identity == tree.id:
        return None
    return f"{folder}: expected git tree {tree.id}, found {identity}: {difference}"
