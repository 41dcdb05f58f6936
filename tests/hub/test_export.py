"""The tree: whole, swapped in by one rename, followed by nginx without a reload, and copied by an export."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.export import MARKER, export
from flash_attn3_sm121.hub.generation import upgrade
from flash_attn3_sm121.hub.layout import KNOWN_REPOS
from flash_attn3_sm121.hub.maintain import collect, prune, pruned, rollback, sign
from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.site.tree import Trees
from flash_attn3_sm121.hub.store import Hub
from tests.hub.wheelmaker import write_wheel
from tests.hub_server.harness import behind_nginx, needs_nginx
from tests.kernels_envs import VERSIONS, clean_environ, python_of

REPO = "varunneal/flash-attention-3"
COMMUNITY = "kernels-community/flash-attn3"


def test_every_file_of_every_repository_is_in_the_tree(hub: Hub) -> None:
    www, index = Trees(root=hub.layout.root).www, hub.index()
    for name, repo in index.repos.items():
        sha = repo.refs["main"]
        for prefix in ("", "kernels/"):
            for revision in (sha, "main", "v1"):
                root = www / prefix / name / "resolve" / revision
                found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
                assert found == set(hub.manifest(repo.revisions[sha].manifest).files)
        info = json.loads((www / "api/models" / name / "revision/main/index.json").read_text())
        assert info["sha"] == sha
        listing = json.loads((www / "api/kernels" / name / "tree" / sha / "build/index.json").read_text())
        assert [item["path"] for item in listing] == ["build/torch-cpu", "build/torch-cuda", "build/torch-universal"]
    overview = json.loads((www / "api/organizations/kernels-community/overview/index.json").read_text())
    assert overview["trustedKernelPublisher"] is True
    for name, wheel in index.wheels.items():
        assert (www / "files" / name).read_bytes() == hub.layout.object(wheel.sha256).read_bytes()
        assert f"#sha256={wheel.sha256}" in (www / "simple/flash-attn3-sm121/index.html").read_text()
    assert (www / "hub/generation.json").read_bytes() == hub.layout.generation(1).read_bytes()


def test_two_contents_never_share_an_etag_of_time_and_size(hub: Hub) -> None:
    seen: dict[tuple[int, int], bytes] = {}
    for path in (hub.layout.root / "www" / REPO / "resolve/main").rglob("*"):
        if path.is_file():
            stat = path.stat()
            assert seen.setdefault((int(stat.st_mtime), stat.st_size), path.read_bytes()) == path.read_bytes()
    assert len(seen) > 30


def test_a_tree_shares_the_bytes_of_the_objects(hub: Hub, newer_wheel: Path) -> None:
    """Generations cost names, not content."""
    publish(hub, judge([newer_wheel]))
    inodes = {path.stat().st_ino for path in hub.layout.objects.glob("*/*")}
    for folder, _, names in os.walk(hub.layout.root / "trees"):
        for name in names:
            path = Path(folder) / name
            assert path.is_symlink() or path.stat().st_ino in inodes or path.parent.name == "hub"


def test_a_late_kill_is_healed_by_the_next_writer(hub: Hub, newer_wheel: Path) -> None:
    trees = Trees(root=hub.layout.root)
    publish(hub, judge([newer_wheel]))
    trees.swap(1)  # as a publish leaves it that was killed between its last two renames
    assert publish(hub, judge([newer_wheel])).changed is False
    assert trees.current == hub.generation() == 2


def test_gc_takes_old_trees_and_their_revisions(hub: Hub, newer_wheel: Path) -> None:
    publish(hub, judge([newer_wheel]))
    prune(hub, 1)
    collect(hub, keep=1)
    index = hub.index()
    assert set(index.wheels) == {newer_wheel.name} and set(index.repos[REPO].revisions) == {
        index.repos[REPO].refs["main"]
    }
    trees = hub.layout.root / "trees"
    assert {path.name for path in trees.iterdir()} == {"revisions", "generated", f"{index.generation:08d}"}
    assert {path.name for path in (trees / "revisions").iterdir()} == {
        repo.refs["main"] for repo in index.repos.values()
    }
    assert {path.name for path in (trees / "generated").iterdir()} == {
        revision.listing for _, _, revision in index.revisions()
    }


def test_prune_says_what_it_would_take(hub: Hub, newer_wheel: Path) -> None:
    publish(hub, judge([newer_wheel]))
    before = hub.index()
    planned = pruned(before, 1)[1]
    assert len(planned) == 3 + len(KNOWN_REPOS)
    assert prune(hub, 1)[1] == planned and prune(hub, 5)[1] == []


def test_rollback_is_a_new_generation_with_the_old_content(hub: Hub, newer_wheel: Path) -> None:
    old = hub.index()
    publish(hub, judge([newer_wheel]))
    back = rollback(hub)
    assert (back.generation, set(back.wheels)) == (3, set(old.wheels)) and back.repos == old.repos
    assert Trees(root=hub.layout.root).current == 3
    assert set(rollback(hub, 2).wheels) == {*old.wheels, newer_wheel.name}
    with pytest.raises(HubError, match="no generation 77"):
        rollback(hub, 77)


@pytest.mark.parametrize("damage", ["lost", "empty", "ahead", "garbled"])
def test_rollback_mends_a_damaged_current(hub: Hub, newer_wheel: Path, damage: str) -> None:
    publish(hub, judge([newer_wheel]))
    current = hub.layout.current
    if damage == "lost":
        current.unlink()
    elif damage == "garbled":
        hub.layout.generation(2).chmod(0o644)
        hub.layout.generation(2).write_text("{")
    else:
        current.write_text("" if damage == "empty" else "9\n")
    with pytest.raises(IntegrityError):
        hub.index()
    assert rollback(hub).generation == (1 if damage == "garbled" else 2)
    assert publish(hub, judge([write_wheel(newer_wheel.parent / "x", version="3.0.9", platform=None)])).changed


def test_an_old_hub_gets_its_tree(hub: Hub) -> None:
    """A generation of the schema before has none: serving or exporting it makes one."""
    from dataclasses import replace

    data = replace(hub.index(), site={}).to_bytes()
    hub.layout.generation(1).write_bytes(data)
    (hub.layout.root / "www").unlink()
    assert upgrade(hub).generation == 2 and (hub.layout.root / "www/index.html").is_file()
    assert upgrade(hub).generation == 2


def test_an_export_is_a_copy(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "out"
    done = export(hub, target)
    assert done.generation == 1 and done.wheels == 3 and (target / "nginx.conf").is_file()

    def content(root: Path) -> dict[str, bytes]:
        found = [Path(folder) / name for folder, _, names in os.walk(root, followlinks=True) for name in names]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}

    assert content(target / "www") == content(hub.layout.root / "www")


def test_the_next_export_swaps_and_nothing_foreign_is_touched(hub: Hub, tmp_path: Path, newer_wheel: Path) -> None:
    target = tmp_path / "out"
    export(hub, target)
    conf = (target / "nginx.conf").read_text()
    publish(hub, judge([newer_wheel]))
    export(hub, target)
    assert (target / "www").readlink().name == "00000002" and (target / "nginx.conf").read_text() == conf
    assert sorted(path.name for path in (target / "trees").iterdir()) == ["00000002", "generated", "revisions"]
    (target / "thesis.tex").write_text("precious")
    with pytest.raises(HubError, match=r"holds what no export wrote: thesis\.tex"):
        export(hub, target)
    assert (target / "thesis.tex").read_text() == "precious"
    (target / "thesis.tex").unlink()
    (target / MARKER).unlink()
    with pytest.raises(HubError, match="not empty and not an export"):
        export(hub, target)


def test_a_tampered_object_stops_it_and_leaves_the_old_one(hub: Hub, tmp_path: Path, newer_wheel: Path) -> None:
    target = tmp_path / "out"
    export(hub, target)
    publish(hub, judge([newer_wheel]))
    path = hub.layout.object(hub.index().wheels[newer_wheel.name].sha256)
    path.chmod(0o644)
    path.write_bytes(b"evil")
    with pytest.raises(IntegrityError, match="tampered"):
        export(hub, target)
    assert (target / "www").readlink().name == "00000001"


def test_nothing_unsigned_is_handed_on_where_keys_are_configured(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    from flash_attn3_sm121.hub.sign import SigningKey

    key = SigningKey.generate(tmp_path / "key")
    monkeypatch.setenv("FLASH_ATTN3_TRUSTED_KEYS", key.public)
    with pytest.raises(IntegrityError, match="not signed"):
        export(hub, tmp_path / "out")
    sign(hub, key)
    assert export(hub, tmp_path / "out").wheels == 3
    assert (tmp_path / "out/www/hub/generation.sig").is_file()


@needs_nginx
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_real_clients_load_from_nginx(hub: Hub, newer_wheel: Path, tmp_path: Path, version: str) -> None:
    """nginx runs since before the last publish, and was told nothing of it."""
    probe = Path(__file__).parent / "clients" / "probe.py"
    export(hub, tmp_path / "out")
    with behind_nginx(tmp_path / "out", tmp_path) as server:
        assert server.ask(f"/api/models/{COMMUNITY}").status == 200
        publish(hub, judge([newer_wheel]))
        export(hub, tmp_path / "out")
        done = subprocess.run(
            [str(python_of(version)), str(probe), "--gb10"],
            env=clean_environ(tmp_path, {"HF_ENDPOINT": server.url, "NO_PROXY": "127.0.0.1"}),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    answers = json.loads(done.stdout.splitlines()[-1])
    bare = version in ("0.9.0", "0.11.7", "0.12.3")
    ways = {"get revision", *(("get", "has") if bare else ("get version", "has version"))}
    assert {way for way in ways if answers[way] != "yes"} == set(), answers
    refs = {file.read_text() for file in (tmp_path / "hf").glob("hub/*--flash-attn3/refs/main")}
    assert refs == {hub.index().repos[COMMUNITY].refs["main"]}
