"""check, remove, gc: damage is found and named, and only litter goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.files import hash_file
from flash_attn3_sm121.hub.checkout import resolve
from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.layout import KNOWN_REPOS
from flash_attn3_sm121.hub.maintain import check, collect, remove
from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.store import Hub

REPO = "varunneal/flash-attention-3"


def library(hub: Hub) -> FileEntry:
    files = resolve(hub, hub.index(), REPO).manifest.files
    return next(entry for path, entry in files.items() if path.endswith("linux_x86_64/flash_attn3_sm121/lib/sm8x.json"))


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_whole_hub_is_ok(hub: Hub) -> None:
    report = check(hub)
    assert report.ok and report.wheels == 3 and report.revisions == len(KNOWN_REPOS) and report.orphans == 0
    assert report.objects > 50 and report.size > 100_000


def test_a_flipped_bit_is_found_and_every_user_named(hub: Hub) -> None:
    entry = library(hub)
    path = hub.layout.object(entry.sha256)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(path, bytes(data))
    report = check(hub)
    assert not report.ok
    assert len([text for text in report.findings if "sm8x.json" in text and REPO in text]) == 2, "cuda and universal"


@pytest.mark.parametrize("kind", ["truncated", "missing", "link"])
def test_other_damage_is_found(hub: Hub, kind: str, tmp_path: Path) -> None:
    path = hub.layout.object(library(hub).sha256)
    data = path.read_bytes()
    if kind == "truncated":
        overwrite(path, data[:-1])
    else:
        path.unlink()
        if kind == "link":
            (tmp_path / "same").write_bytes(data)
            path.symlink_to(tmp_path / "same")
    report = check(hub)
    assert not report.ok and "sm8x.json" in report.findings[0]


def test_a_damaged_manifest_is_found(hub: Hub) -> None:
    revision = next(hub.index().revisions())[2]
    overwrite(hub.layout.object(revision.manifest), b"{}")
    report = check(hub)
    assert len(report.findings) <= 2 and "manifest: object" in report.findings[0]
    assert report.objects > 50, "the other revisions are hashed all the same"


def test_a_file_that_is_no_object_is_found(hub: Hub) -> None:
    (hub.layout.objects / "00").mkdir(exist_ok=True)
    (hub.layout.objects / "00" / "backdoor").write_text("x")
    assert "does not belong" in check(hub).findings[0]


def test_removed_things_are_gone_and_their_space_comes_back(hub: Hub, newer_wheel: Path) -> None:
    publish(hub, judge([newer_wheel]))
    before = check(hub)
    _, done = remove(hub, [newer_wheel.name, "kernels-community/vllm-flash-attn3"])
    index = hub.index()
    assert len(done) == 2 and newer_wheel.name not in index.wheels and len(index.repos) == len(KNOWN_REPOS) - 1
    planned = collect(hub, keep=1, dry_run=True)
    assert check(hub).orphans == planned.objects > 0
    taken = collect(hub, keep=1)
    assert taken == planned and check(hub).ok and check(hub).orphans == 0
    assert check(hub).size < before.size


def test_gc_keeps_what_kept_generations_need(hub: Hub, newer_wheel: Path) -> None:
    publish(hub, judge([newer_wheel]))
    remove(hub, [newer_wheel.name])
    held = hub.layout.object(hash_file(newer_wheel)[0])
    collect(hub, keep=2)
    assert held.is_file(), "the generation before still has the wheel"
    assert collect(hub, keep=1).objects > 0 and not held.exists()


def test_gc_removes_unfinished_writes(hub: Hub) -> None:
    (hub.layout.tmp / "half").write_bytes(b"x")
    (hub.layout.tmp / "folder").mkdir()
    assert collect(hub).unfinished == 2 and not list(hub.layout.tmp.iterdir())


def test_a_revision_may_go_but_not_the_one_that_main_names(hub: Hub, newer_wheel: Path) -> None:
    publish(hub, judge([newer_wheel]))
    repo = hub.index().repos[REPO]
    old, main = repo.refs["3.0.0.post1"], repo.refs["main"]
    with pytest.raises(HubError, match="is what `main` names"):
        remove(hub, [f"{REPO}@{main}"])
    remove(hub, [f"{REPO}@{old[:12]}"])
    after = hub.index().repos[REPO]
    assert set(after.revisions) == {main} and "3.0.0.post1" not in after.refs
    remove(hub, [f"{REPO}@main"])
    assert REPO not in hub.index().repos


@pytest.mark.parametrize("name", ["no/such", "x.whl", f"{REPO}@0000000"], ids=["repo", "wheel", "revision"])
def test_removing_what_is_not_there_is_an_error(hub: Hub, name: str) -> None:
    with pytest.raises(HubError):
        remove(hub, [name])
    assert hub.generation() == 1


def test_removed_names_come_back_with_the_next_publish(hub: Hub, wheels: Mapping[str, Path]) -> None:
    remove(hub, [REPO])
    publish(hub, judge(wheels.values()))
    assert REPO in hub.index().repos


@pytest.mark.parametrize("place", ["www/index.html", f"www/{REPO}/resolve/main/README.md"], ids=["page", "file"])
@pytest.mark.parametrize("kind", ["changed", "missing", "added", "linked"])
def test_a_tree_that_somebody_changed_is_found(hub: Hub, place: str, kind: str) -> None:
    path = hub.layout.root / place
    if kind == "added":
        path.with_name("evil.py").write_text("x")
    elif kind == "linked":
        path.with_name("evil.py").symlink_to("/etc")
    else:
        path.unlink()
        if kind == "changed":
            path.write_text("<script>")
    report = check(hub)
    assert not report.ok and ("evil.py" if kind in ("added", "linked") else Path(place).name) in report.findings[0]
