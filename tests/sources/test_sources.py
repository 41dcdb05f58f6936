"""Every route, their order and the trace; whatever differs from the lock stops the build and is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ci.index import pages
from ci.settings import Settings
from ci.sources import fetch
from ci.sources.lock import SourceLock
from ci.sources.routes import Route
from flash_attn3_sm121.errors import DiskError, SourceError
from tests.fakes.worlds import PREFIX, SCRIPT, World, commit_all, make_world, said, settings_of, with_sdist_of


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small upstream whose source distribution lies in a folder that pip is told of."""
    made = make_world(tmp_path)
    monkeypatch.setattr(pages, "pip_settings", lambda: {"find-links": str(made.index)})
    return made


def get(world: World, source: Path | None = None) -> str:
    tree = fetch(world.lock, settings_of(world.cache, offline=True), source=source)
    assert (tree.hopper / "utils.h").read_bytes() == (world.checkout / "hopper/utils.h").read_bytes()
    assert (tree.cutlass_include / "cute" / "tensor.hpp").is_file()
    assert (tree.hopper / "generate.sh").stat().st_mode & 0o100
    assert not (tree.hopper / "utils.h").stat().st_mode & 0o222
    return tree.route


def test_the_source_distribution_then_the_cache(world: World) -> None:
    assert get(world) == "sdist"
    assert get(world) == "cache"
    assert not list(world.cache.glob("sources/.*"))


def test_a_checkout_fills_the_cache(world: World) -> None:
    assert get(world, source=world.checkout) == "checkout"
    assert get(world) == "cache"


def test_git_at_the_pinned_commits(world: World) -> None:
    cutlass = commit_all(world.checkout / "csrc" / "cutlass")
    (world.checkout / ".gitignore").write_text("/csrc/\n")
    commit = commit_all(world.checkout)
    (world.checkout / "hopper" / "later.h").write_text("")
    commit_all(world.checkout)
    lock = replace(
        world.lock,
        sdist=None,
        upstream=replace(world.lock.upstream, url=str(world.checkout), commit=commit),
        cutlass=replace(world.lock.cutlass, url=str(world.checkout / "csrc/cutlass"), commit=cutlass),
    )
    settings = settings_of(world.cache)
    tree = fetch(lock, settings)
    assert tree.route == "git"
    assert not (tree.hopper / "later.h").exists()
    assert f"fetch --quiet --depth=1 {world.checkout} {commit}" in said(settings)


def edit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("one byte", lambda root: edit(root / "hopper/utils.h"), "changed: utils.h"),
    ("missing", lambda root: (root / "hopper/flash.h").unlink(), "missing: flash.h"),
    ("extra", lambda root: (root / "hopper/new.h").write_text(""), "extra: new.h"),
    ("bit lost", lambda root: (root / SCRIPT).chmod(0o644), "executable bit differs: generate.sh"),
    ("cutlass", lambda root: edit(root / "csrc/cutlass/include/cute/tensor.hpp"), "changed: cute/tensor.hpp"),
]


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_checkout_that_differs_stops_everything_and_names_the_file(
    world: World, damage: Callable[[Path], object], message: str
) -> None:
    get(world)  # even with good sources in the cache
    damage(world.checkout)
    with pytest.raises(SourceError, match=message) as caught:
        fetch(world.lock, settings_of(world.cache, offline=True), source=world.checkout)
    assert "python -m ci lock --source" in str(caught.value)


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_source_distribution_with_other_trees_is_refused(
    world: World, damage: Callable[[Path], object], message: str
) -> None:
    damage(world.checkout)
    with pytest.raises(SourceError, match=message):
        get(with_sdist_of(world))
    assert not list(world.cache.glob("sources/.*"))


def test_a_tampered_cache_is_replaced(world: World) -> None:
    get(world)
    entry = world.cache / "sources" / world.lock.key
    (entry / "hopper/utils.h").chmod(0o644)
    edit(entry / "hopper/utils.h")
    assert get(world) == "sdist"
    assert get(world) == "cache"


def test_a_tampered_cache_is_refused_where_nothing_can_replace_it(world: World) -> None:
    get(world)
    (world.cache / "sources" / world.lock.key / "hopper/flash.h").unlink()
    (world.index / "carrier-1.0.tar.gz").unlink()
    with pytest.raises(SourceError, match=r"cache: damaged, replaced.*missing: flash\.h"):
        get(world)


def test_a_full_disk_is_not_the_fault_of_a_route(world: World) -> None:
    """No further route is asked to write to it."""

    def fill(lock: SourceLock, work: Path, settings: Settings) -> None:
        raise DiskError("no space left")

    def unasked(lock: SourceLock, work: Path, settings: Settings) -> None:
        pytest.fail("another route was tried")

    with pytest.raises(DiskError, match="no space left"):
        fetch(
            world.lock,
            settings_of(world.cache),
            routes=(Route(name="sdist", fill=fill), Route(name="git", fill=unasked)),
        )


def test_the_whole_trace_is_told_when_no_route_works(world: World) -> None:
    edit(world.index / "carrier-1.0.tar.gz")
    with pytest.raises(SourceError) as caught:
        get(world)
    lines = [line.strip(" -") for line in str(caught.value).splitlines()]
    assert [line.partition(":")[0] for line in lines if line.startswith(("checkout", "cache", "sdist", "git"))] == [
        "checkout",
        "cache",
        "sdist",
        "git",
    ]
    assert any("expected sha256" in line for line in lines)


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(link(f"carrier-1.0/{PREFIX}/hopper/l.h", tarfile.SYMTYPE), id="symlink"),
        pytest.param(link(f"carrier-1.0/{PREFIX}/hopper/l.h", tarfile.LNKTYPE), id="hard link"),
        pytest.param(link(f"carrier-1.0/{PREFIX}/hopper/l.h", tarfile.FIFOTYPE), id="pipe"),
        pytest.param(tarfile.TarInfo(f"carrier-1.0/{PREFIX}/hopper/../../../x"), id="dots"),
        pytest.param(tarfile.TarInfo("/tmp/absolute"), id="absolute"),
        pytest.param(tarfile.TarInfo(f"carrier-1.0/{PREFIX}/hopper/utils.h"), id="twice"),
    ],
)
def test_archives_with_tricks_are_refused(world: World, member: tarfile.TarInfo) -> None:
    with pytest.raises(SourceError, match="refused, "):
        get(with_sdist_of(world, member))


def slow_route(lock: SourceLock, into: Path, settings: Settings) -> None:
    """Fills half of it, says so, and would go on for a minute."""
    (into / "hopper").mkdir()
    (into / "hopper" / "utils.h").write_text("half")
    (settings.cache / "started").write_text("")
    time.sleep(60)


def fetch_slowly(world: World) -> None:
    route = Route(name="slow", fill=slow_route)
    fetch(world.lock, settings_of(world.cache, offline=True), routes=[route])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside other tests' threads
def test_a_killed_fetch_leaves_nothing_half_made(world: World) -> None:
    child = multiprocessing.get_context("fork").Process(target=fetch_slowly, args=(world,))
    child.start()
    while not (world.cache / "started").exists():
        assert child.is_alive()
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert not list(world.cache.glob("sources/[!.]*"))
    assert get(world) == "sdist"  # the dead run's lock is free, its litter swept
    assert not list(world.cache.glob("sources/.*"))


def fetch_once(world: World, answers: multiprocessing.SimpleQueue[str]) -> None:
    answers.put(get(world))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside other tests' threads
def test_runs_at_the_same_time_fetch_once(world: World) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [context.Process(target=fetch_once, args=(world, answers)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert sorted(answers.get() for _ in children) == ["cache", "cache", "cache", "sdist"]


def test_narration_goes_to_the_stream_given(world: World) -> None:
    settings = settings_of(world.cache, offline=True)
    fetch(world.lock, settings)
    assert "from sdist, git trees verified" in said(settings)
