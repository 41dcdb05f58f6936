"""Pushing to the real hub: a dry run says every file; a real one makes exactly those commits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flash_attn3_sm121.cli import main
from flash_attn3_sm121.hub.layout import RepoName
from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.push import plan_push, push, render_plan
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.variants import Flavour

pytest.importorskip("huggingface_hub")
REPO = "kernels-community/flash-attn3"
NAMES = ("my-org/flash-attn3", "my-org/vllm-flash-attn3", "my-org/sgl-flash-attn3")


class Recorder:
    """Stands where huggingface_hub's HfApi would: remembers what it was told, and has one old file."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Mapping[str, Any]]] = []
        self.operations: dict[str, list[Any]] = {}

    def create_repo(self, repo_id: str, **more: Any) -> None:
        self.calls.append(("create_repo", repo_id, more))

    def create_branch(self, repo_id: str, **more: Any) -> None:
        self.calls.append(("create_branch", repo_id, more))

    def list_repo_files(self, repo_id: str, **more: Any) -> list[str]:
        return [".gitattributes", "build/torch-cuda/gone.py", "README.md"]

    def create_commit(self, repo_id: str, operations: list[Any], *, revision: str, **more: Any) -> None:
        self.calls.append(("create_commit", repo_id, more))
        self.operations[revision] = operations


def test_a_push_uploads_the_revision_to_both_branches(hub: Hub) -> None:
    api = Recorder()
    (plan,) = plan_push(hub, hub.index(), [REPO])
    push(hub, [plan], api)
    assert [name for name, _, _ in api.calls] == ["create_repo", "create_commit", "create_branch", "create_commit"]
    assert all(repo == REPO and more["repo_type"] == "kernel" for _, repo, more in api.calls)
    for branch in ("main", "v1"):
        first, *added = api.operations[branch]
        assert first.path_in_repo == "build/torch-cuda/gone.py"
        assert {item.path_in_repo for item in added} == set(plan.manifest.files)
        for item in added:
            entry = plan.manifest.files[item.path_in_repo]
            assert Path(item.path_or_fileobj).read_bytes() == hub.read(entry)


def test_a_dry_run_says_every_file_and_touches_nothing(
    tmp_path: Path, wheels: Mapping[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flash_attn3_sm121.hub.push._api", lambda: pytest.fail("a dry run reached for the network"))
    assert main(["hub", "publish", str(wheels["pure"]), "--hub", str(tmp_path / "hub"), "--to", "my-org"]) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "hub").exists()
    hub = Hub.create(tmp_path / "hub")
    own = {RepoName.parse(name): flavour for name, flavour in zip(NAMES, Flavour, strict=True)}
    publish(hub, judge([wheels["pure"]]), repos=own)
    assert main(["hub", "publish", str(wheels["pure"]), "--hub", str(tmp_path / "hub"), "--to", "my-org"]) == 0
    assert capsys.readouterr().out == text and hub.generation() == 1
    for name in NAMES:
        (plan,) = plan_push(hub, hub.index(), [name])
        assert render_plan([plan], really=False).splitlines()[0] in text
        for path, entry in plan.manifest.files.items():
            assert f"{entry.sha256}  {entry.size:>10}  {path}" in text
    assert "nothing was uploaded or published: say --yes" in text


def test_yes_needs_to(wheels: Mapping[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hub", "publish", str(wheels["pure"]), "--yes"]) == 2
    assert "--yes goes with --to" in capsys.readouterr().err
