"""Killed at any moment, or twice at once: the hub is the old one or the new one."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flash_attn3_sm121.hub.index import Index
from flash_attn3_sm121.hub.maintain import check, collect
from flash_attn3_sm121.hub.publish import ALIASES, judge, publish
from flash_attn3_sm121.hub.site.tree import Trees
from flash_attn3_sm121.hub.store import Hub
from tests.hub.wheelmaker import copy_hub, write_wheel

REPOSITORY = Path(__file__).parents[2]
AT_EVENTS, AT_TIMES = 150, 50


class Crasher:
    """The helper process of crasher.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests/hub/crasher.py")],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def publish(self, hub: Path, wheel: Path, **when: float) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"hub": str(hub), "wheel": str(wheel), **when}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(30) == 0


@pytest.fixture(scope="module")
def crasher() -> Iterator[Crasher]:
    running = Crasher()
    yield running
    running.close()


def content(index: Index) -> Index:
    """An index without what differs from run to run."""
    wheels = {name: replace(entry, published="", added=0) for name, entry in index.wheels.items()}
    repos = {}
    for name, repo in index.repos.items():
        same = {sha: replace(item, created="", added=0, listing="") for sha, item in repo.revisions.items()}
        repos[name] = replace(repo, revisions=same)
    return replace(index, hub="", generation=0, created="", wheels=wheels, repos=repos, site={})


def fresh(template: Path, target: Path) -> Path:
    if target.exists():
        shutil.rmtree(target)
    copy_hub(template, target)
    return target


@pytest.fixture(scope="module")
def newer_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheel(tmp_path_factory.mktemp("small"), version="3.0.1", library=b"newer", small=True)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where the system has that: a kill is the same there, and 200 copies of a hub cost little."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def hub(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Few files, as the crasher makes few: what is killed here are the steps of a publish."""
    for name in list(ALIASES)[1:]:
        monkeypatch.delitem(ALIASES, name)
    hub = Hub.create(memory / "hub", durable=False)
    publish(hub, judge([write_wheel(memory / "small", small=True)]))
    return hub


def test_killed_200_times_the_hub_is_whole_each_time(
    hub: Hub, newer_wheel: Path, memory: Path, crasher: Crasher
) -> None:
    template, root = hub.layout.root, memory / "victim"
    old = content(hub.index())
    whole = crasher.publish(fresh(template, root), newer_wheel)
    assert not whole["killed"] and whole["events"] > 50
    new = content(Hub.open(root).index())
    assert new != old
    random.seed(20261121)
    plans: list[dict[str, float]] = [
        {"event": number * whole["events"] // AT_EVENTS} for number in range(AT_EVENTS)
    ] + [{"delay": random.uniform(0.0, 0.25)} for _ in range(AT_TIMES)]
    seen = {"old": 0, "new": 0}
    for plan in plans:
        answer = crasher.publish(fresh(template, root), newer_wheel, **plan)
        assert answer["killed"] or "delay" in plan, f"{plan} -> {answer}"
        victim = Hub.open(root)
        report = check(victim)
        assert report.ok, f"{plan}: {report.findings}"
        now = content(victim.index())
        assert now in (old, new), f"{plan}: neither the old nor the new hub"
        seen["new" if now == new else "old"] += 1
    assert seen["old"] > AT_EVENTS // 2, seen
    # Whatever the last one left behind, the next publisher gets through, and gc takes the litter away.
    publish(Hub.open(root), judge([newer_wheel]))
    collect(Hub.open(root), keep=1)
    final = Hub.open(root)
    assert content(final.index()) == new
    assert Trees(root=root).current == final.generation()
    assert check(final).orphans == 0 and check(final).ok and not list(final.layout.tmp.iterdir())


def test_killed_while_the_hub_is_made(memory: Path, newer_wheel: Path, crasher: Crasher) -> None:
    root = memory / "first"
    events = crasher.publish(root, newer_wheel)["events"]
    for number in range(0, min(events, 16)):
        shutil.rmtree(root)
        assert crasher.publish(root, newer_wheel, event=number)["killed"]
        again = crasher.publish(root, newer_wheel)
        assert again["code"] == 0 and check(Hub.open(root)).ok


def test_two_publishers_at_once_both_get_in(tmp_path: Path, wheels: Mapping[str, Path], newer_wheel: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flash_attn3_sm121.hub.publish import judge, publish\n"
        "from flash_attn3_sm121.hub.store import Hub\n"
        "wheels = judge([Path(p) for p in sys.argv[2:]]); sys.stdin.readline()\n"
        "publish(Hub.create(Path(sys.argv[1]), durable=False), wheels)"
    )
    for number in range(4):
        root = tmp_path / f"hub{number}"
        groups = [[wheels["x86_64"], wheels["pure"]], [newer_wheel], [wheels["aarch64"]]]
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(root), *map(str, group)],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for group in groups
        ]
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
        hub = Hub.open(root)
        index = hub.index()
        assert check(hub).ok and index.generation >= 3
        assert set(index.wheels) == {path.name for group in groups for path in group}
        for repo in index.repos.values():
            assert repo.revisions[repo.refs["main"]].version == "3.0.1"
            release = repo.revisions[repo.refs["3.0.0.post1"]]
            assert set(release.wheels) == {path.name for path in wheels.values()}
