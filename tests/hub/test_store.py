"""Generations and objects: what is committed is whole, what is not does not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.generation import commit
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, Repo, Revision, dump_json
from flash_attn3_sm121.hub.store import Generation, Hub


def a_revision(txn: object, text: bytes) -> tuple[str, Revision]:
    entry = txn.add_bytes(text)  # type: ignore[attr-defined]
    manifest = Manifest(flavour="fa3", version="1", files={"build/torch-cpu/__init__.py": entry})
    held = txn.add_bytes(manifest.to_bytes()).sha256  # type: ignore[attr-defined]
    return manifest.revision, Revision(manifest=held, version="1", created="", added=1, wheels=())


def test_an_empty_hub_has_generation_zero(tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub")
    assert hub.generation() == 0 and hub.index() == Index()
    assert Hub.create(tmp_path / "hub").index() == Index()


def test_nothing_shows_before_the_commit(tmp_path: Path) -> None:
    hub = Hub.create(tmp_path)
    with hub.transaction() as txn:
        sha, revision = a_revision(txn, b"x = 1\n")
        repo = Repo(flavour="fa3", refs={"main": sha}, revisions={sha: revision})
        assert hub.index() == Index()
        done = txn.numbered(txn.base.with_repo("a/b", repo))
        assert hub.index() == Index()
        txn.commit(Generation(index=done, data=done.to_bytes()))
    assert done.generation == 1 and hub.index() == done
    assert hub.manifest(revision.manifest).revision == sha


def test_the_same_content_makes_no_generation(hub: Hub) -> None:
    with hub.transaction() as txn:
        assert commit(txn, txn.base) is txn.base
    assert hub.generation() == 1


def test_an_index_survives_its_json(hub: Hub) -> None:
    index = hub.index()
    assert index.wheels and index.repos
    assert Index.from_bytes(index.to_bytes(), origin="test") == index


@pytest.mark.parametrize("change", [b"tampered", None], ids=["changed", "missing"])
def test_a_tampered_object_is_never_handed_out(hub: Hub, change: bytes | None) -> None:
    entry = next(FileEntry(sha256=w.sha256, size=w.size) for w in hub.index().wheels.values())
    path = hub.verified(entry)
    path.chmod(0o644)
    path.unlink() if change is None else path.write_bytes(change)
    for read in (hub.verified, hub.read):
        with pytest.raises(IntegrityError):
            read(entry)


def test_a_tampered_object_of_the_same_size_and_time_is_found(hub: Hub) -> None:
    entry = next(FileEntry(sha256=w.sha256, size=w.size) for w in hub.index().wheels.values())
    path = hub.verified(entry)
    times = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"x" * entry.size)
    import os

    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(IntegrityError, match="tampered"):
        hub.verified(entry)


def test_an_object_that_is_a_link_is_refused(hub: Hub, tmp_path: Path) -> None:
    entry = next(FileEntry(sha256=w.sha256, size=w.size) for w in hub.index().wheels.values())
    path = hub.layout.object(entry.sha256)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError):
        hub.verified(entry)


def test_putting_content_in_again_mends_a_damaged_object(hub: Hub, wheels: dict[str, Path]) -> None:
    entry = next(FileEntry(sha256=w.sha256, size=w.size) for n, w in hub.index().wheels.items() if "x86_64" in n)
    hub.layout.object(entry.sha256).chmod(0o644)
    hub.layout.object(entry.sha256).write_bytes(b"rotten")
    with hub.transaction() as txn:
        assert txn.add_file(wheels["x86_64"]) == entry
    assert hub.verified(entry).stat().st_size == entry.size


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(HubError, match="not a hub and not empty"):
        Hub.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "marker", [b"{}", b"not json", dump_json({"schema": 1, "kind": "other"})], ids=["empty", "junk", "other"]
)
def test_a_foreign_marker_is_refused(tmp_path: Path, marker: bytes) -> None:
    (tmp_path / "hub.json").write_bytes(marker)
    with pytest.raises(HubError):
        Hub.open(tmp_path)


def test_a_missing_hub_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="flash-attn3 hub publish"):
        Hub.open(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5"], ids=repr)
def test_a_damaged_current_is_said(hub: Hub, text: str) -> None:
    hub.layout.current.write_text(text)
    with pytest.raises(IntegrityError, match="expected a number"):
        hub.index()


def test_a_generation_that_lies_about_its_number_is_refused(hub: Hub) -> None:
    hub.layout.generation(2).write_bytes(hub.layout.generation(1).read_bytes())
    hub.layout.current.write_text("2\n")
    with pytest.raises(IntegrityError, match="expected generation 2"):
        hub.index()


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/passwd", "a/../../b", "a\x00b"], ids=["up", "absolute", "inside", "nul"]
)
def test_a_manifest_with_a_hostile_path_is_refused(path: str) -> None:
    data = dump_json({"schema": 1, "flavour": "fa3", "version": "1", "files": {path: {"sha256": "0" * 64, "size": 1}}})
    with pytest.raises(HubError, match="safe path"):
        Manifest.from_bytes(data, origin="test")
