"""The tree on the disk, for web servers that know nothing of a hub: one folder a generation, and a link that moves.

    trees/revisions/<sha>/         the files of one revision of a repository; made once, shared by the generations
    trees/generated/<sha256>/      its generated files in the same way, called like the object that lists them
    trees/00000017/                what generation 17 serves, under the very addresses that clients ask
    www -> trees/00000017          what a web server is pointed at; renaming this link swaps the whole tree

Files are hard links to objects (copies where there are none). Their time is made from their content, because nginx
makes its ETag of time and size: the same content has the same ETag everywhere, and another content another.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.files import beside, hash_file, put_folder
from flash_attn3_sm121.hub.index import FileEntry, Index
from flash_attn3_sm121.hub.store import Generation, Hub

KINDS = ("revision", "tree")  # of generated files: /api/models/ORG/NAME/KIND/SHA/...
LONGEST_TIME = 1_600_000_000  # seconds since 1970: never in the future


def time_of(entry: FileEntry) -> int:
    """The modification time that files of this content are given."""
    return 86400 + int(entry.sha256[:8], 16) % LONGEST_TIME


def etag_of(entry: FileEntry) -> str:
    """The ETag that nginx makes of time and size; our own server says the same."""
    return f'"{time_of(entry):x}-{entry.size:x}"'


@dataclass(frozen=True, kw_only=True)
class Trees:
    """Where trees lie: `trees/` and `www` in a hub, or in the folder of an export."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "trees"

    @property
    def www(self) -> Path:
        return self.root / "www"

    def generation(self, number: int) -> Path:
        return self.folder / f"{number:08d}"

    def revision(self, sha: str) -> Path:
        return self.folder / "revisions" / sha

    def generated(self, listing: str) -> Path:
        return self.folder / "generated" / listing

    @property
    def current(self) -> int | None:
        """The number of the generation that `www` shows."""
        name = self.www.readlink().name if self.www.is_symlink() else ""
        return int(name) if name.isdecimal() else None

    def swap(self, number: int) -> None:
        """Have `www` show another generation: one rename."""
        new = beside(self.www)
        new.symlink_to(f"trees/{number:08d}")
        new.replace(self.www)


def links(index: Index) -> Iterator[tuple[str, str]]:
    """Yield (address, relative target) of the symbolic links: refs, the other repository type, revisions."""
    for name, repo in sorted(index.repos.items()):
        yield f"kernels/{name}", f"../../{name}"
        yield f"api/kernels/{name}", f"../../models/{name}"
        for sha, revision in repo.revisions.items():
            yield f"{name}/resolve/{sha}", f"../../../../revisions/{sha}"
            for kind in KINDS if revision.listing else ():
                inner = f"api/models/{name}/{kind}/{sha}"
                yield inner, f"../../../../../../generated/{revision.listing}/{inner}"
        for ref, sha in repo.refs.items():
            yield f"{name}/resolve/{ref}", sha
            yield f"api/models/{name}/revision/{ref}", sha
            yield f"api/models/{name}/tree/{ref}", sha


def files(index: Index) -> Iterator[tuple[str, FileEntry]]:
    """Yield (address, content) of everything that does not belong to one revision."""
    yield from index.site.items()
    for name, wheel in index.wheels.items():
        yield f"files/{name}", FileEntry(sha256=wheel.sha256, size=wheel.size)
        yield f"files/{name}.metadata", FileEntry(sha256=wheel.metadata_sha256, size=wheel.metadata_size)


def write(hub: Hub, generation: Generation, *, into: Trees, checked: bool = False) -> None:
    """Write the tree of a generation beside the others; nothing shows it yet.

    Args:
        hub: Holds the objects.
        generation: What the tree is of. Its very bytes are in it too: pulled hubs check their signature.
        into: The hub's own trees, or those of an export.
        checked: Hash each object before it is linked (for an export), instead of when it came in.
    """
    index = generation.index
    source: Callable[[FileEntry], Path] = hub.verified if checked else lambda entry: hub.layout.object(entry.sha256)
    for target, manifest in shared(index, into):
        if not target.is_dir():
            with put_folder(target) as out:
                for path, entry in hub.manifest(manifest).files.items():
                    _link(source(entry), out / path, entry)
    target = into.generation(index.generation)
    if target.is_dir():
        shutil.rmtree(target)  # of a publish that was killed before it was committed
    with put_folder(target) as out:
        for path, entry in files(index):
            _link(source(entry), out / path, entry)
        (out / "hub").mkdir(exist_ok=True)
        for name, content in (("generation.json", generation.data), ("generation.sig", generation.signature)):
            if content is not None:
                file = out / "hub" / name
                file.write_bytes(content)
                wanted = time_of(FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content)))
                os.utime(file, (wanted, wanted))
        for path, to in links(index):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).symlink_to(to)


def shared(index: Index, trees: Trees) -> Iterator[tuple[Path, str]]:
    """Yield (folder, sha256 of the manifest of what is in it) of what generations share: each revision's files."""
    for _, sha, revision in index.revisions():
        yield trees.revision(sha), revision.manifest
        if revision.listing:
            yield trees.generated(revision.listing), revision.listing


def _link(source: Path, target: Path, entry: FileEntry) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = time_of(entry)
    if source.stat().st_mtime != wanted:
        os.utime(source, (wanted, wanted))
    try:
        os.link(source, target)
    except OSError:  # no hard links on this file system, or too many of one file: write it once more
        shutil.copy2(source, target)


def damage(hub: Hub, index: Index) -> Iterator[str]:
    """What in the current tree is not what the generation says; a tree that nothing shows yet is not looked at.

    The objects are hashed elsewhere: here it is enough that a file is one of them, or has the right bytes.
    """
    trees = Trees(root=hub.layout.root)
    if trees.current != index.generation:
        return
    wanted = dict(files(index))
    found = {path for path in _names(trees.www) if not path.startswith("hub/generation.")}
    linked = dict(links(index))
    for path in sorted(found - set(wanted)):
        if (trees.www / path).is_symlink() and str((trees.www / path).readlink()) == linked.get(path):
            continue
        yield f"www/{path} was put there by somebody else"
    for path, entry in wanted.items():
        yield from _fault(hub, trees.www / path, entry, f"www/{path}")
    for path in sorted(set(linked) - found):
        yield f"www/{path}: the link is missing"
    for folder, manifest in shared(index, trees):
        held, who = hub.manifest(manifest).files, folder.relative_to(trees.root)
        for path in sorted(set(_names(folder)) - set(held)):
            yield f"{who}/{path} was put there by somebody else"
        for path, entry in held.items():
            yield from _fault(hub, folder / path, entry, f"{who}/{path}")


def _names(folder: Path) -> Iterator[str]:
    """Every file and every link below a folder."""
    for place, folders, names in os.walk(folder):
        for name in (*names, *(inner for inner in folders if (Path(place) / inner).is_symlink())):
            yield (Path(place) / name).relative_to(folder).as_posix()


def _fault(hub: Hub, path: Path, entry: FileEntry, who: str) -> Iterator[str]:
    try:
        info, held = os.lstat(path), os.lstat(hub.layout.object(entry.sha256))
    except OSError as error:
        yield f"{who}: {error.strerror}"
        return
    if info.st_ino != held.st_ino and (path.is_symlink() or hash_file(path) != (entry.sha256, entry.size)):
        yield f"{who}: content is not what was published"


def heal(hub: Hub) -> None:
    """Have `www` show the current generation: a publish that was killed late may have left it one behind."""
    current, trees = hub.current(), Trees(root=hub.layout.root)
    number = current.index.generation
    if number == 0 or not current.index.site:
        return
    if not trees.generation(number).is_dir():
        write(hub, current, into=trees)
    if trees.current != number:
        trees.swap(number)


def drop(trees: Trees, kept: Sequence[Index]) -> None:
    """Remove the trees of generations that are not kept, what only they shared, and unfinished trees."""
    wanted = {trees.generation(index.generation) for index in kept}
    wanted |= {folder for index in kept for folder, _ in shared(index, trees)}
    parents = {folder.parent for folder in wanted}
    for place in (trees.folder, *parents - {trees.folder}):
        for path in place.iterdir() if place.is_dir() else ():
            if path not in wanted | parents:
                shutil.rmtree(path)
