"""What goes wrong around a hub: full disks, folders of others, lost files, everybody at once, false clocks."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from flash_attn3_sm121.cli import main
from flash_attn3_sm121.errors import HubError, IntegrityError, MissingPackageError
from flash_attn3_sm121.hub import publish as publishing
from flash_attn3_sm121.hub.checkout import resolve
from flash_attn3_sm121.hub.index import Index, dump_json
from flash_attn3_sm121.hub.maintain import check
from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.site.address import Directory
from flash_attn3_sm121.hub.site.tree import Trees, heal
from flash_attn3_sm121.hub.store import Hub
from tests.hub.wheelmaker import write_wheel

ROOT = Path(__file__).parents[2]
REPO = "varunneal/flash-attention-3"


def call(*argv: str, code: str = "", **more: object) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "flash_attn3_sm121"]
    return subprocess.run(
        [sys.executable, *start, *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=300,
        **{"stdout": subprocess.PIPE, **more},  # type: ignore[call-overload]
    )


def test_a_full_disk_is_a_sentence_and_leaves_the_hub_as_it_was(hub: Hub, tmp_path: Path) -> None:
    """No file may grow past 300 kB here: what a full disk does, to this one process."""
    wheel = write_wheel(tmp_path / "big", version="3.1.0", library=os.urandom(2_000_000))
    done = call(
        "hub", "publish", str(wheel), "--hub", str(hub.layout.root),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )  # fmt: skip
    assert done.returncode == 17, done.stderr
    assert "File too large" in done.stderr and "hub gc" in done.stderr and "Traceback" not in done.stderr
    assert not list(hub.layout.tmp.iterdir()), "half an object stays"
    report = check(hub)
    assert report.ok and report.generation == 1
    assert main(["hub", "gc", "--hub", str(hub.layout.root)]) == 0 and check(hub).orphans == 0


# Publishes, and sends itself a signal when the first object is written and about to get its name.
STOPPED = """
import os, signal, sys
from flash_attn3_sm121.cli import main
number, folder, *words = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def hook(event, args):
    if event == "os.chmod" and str(args[0]).startswith(folder):
        assert os.path.getsize(args[0]) > 2_000_000
        os.kill(os.getpid(), int(number))
sys.addaudithook(hook)
sys.exit(main(words))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_publish_that_is_told_to_stop_leaves_nothing(hub: Hub, tmp_path: Path, number: signal.Signals) -> None:
    wheel = write_wheel(tmp_path / "big", version="3.1.0", library=os.urandom(2_000_000))
    words = ["hub", "publish", str(wheel), "--hub", str(hub.layout.root)]
    done = call(str(int(number)), str(hub.layout.tmp), *words, code=STOPPED)
    assert (done.returncode, done.stderr) == (128 + number, "flash-attn3: interrupted\n")
    assert not list(hub.layout.tmp.iterdir()), "half an object stays"
    report = check(hub)
    assert report.ok and report.generation == 1 and report.orphans == 0
    assert main(words) == 0, "nobody holds the lock"


def test_output_that_cannot_be_written_is_a_sentence(hub: Hub) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = call("hub", "list", "--hub", str(hub.layout.root), stdout=full)
    assert done.returncode == 17 and done.stderr.startswith("flash-attn3: error: the output: No space left"), (
        done.stderr
    )


def test_a_folder_of_somebody_else_is_a_sentence(hub: Hub, newer_wheel: Path) -> None:
    code = (
        "import os, sys, flash_attn3_sm121.hub.cli, flash_attn3_sm121.hub.publish, flash_attn3_sm121.hub.push\n"
        "from flash_attn3_sm121.cli import main\n"
        "from flash_attn3_sm121.hub.commands import inspection, publishing, transport, upkeep\n"
        "import flash_attn3_sm121.hub.server.cli\n"
        "from pathlib import Path; flash_attn3_sm121.hub.publish.judge([Path(sys.argv[3])])\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for folder in (hub.layout.root, *hub.layout.root.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    wheel = hub.layout.root / newer_wheel.name
    wheel.write_bytes(newer_wheel.read_bytes())
    hub.layout.root.chmod(0o555)
    hub.layout.lock.chmod(0o444)
    try:
        done = call("hub", "publish", str(wheel), "--hub", str(hub.layout.root), code=code)
    finally:
        hub.layout.root.chmod(0o755)
    assert done.returncode == 18, done.stderr
    assert "Permission denied" in done.stderr and "-> name a place" in done.stderr and "Traceback" not in done.stderr


def test_a_lost_current_is_not_an_empty_hub(hub: Hub) -> None:
    hub.layout.current.unlink()
    with pytest.raises(IntegrityError, match="CURRENT is missing, though generations were published"):
        hub.index()


def test_eight_first_publishes_at_once_all_get_in(tmp_path: Path) -> None:
    wheels = [write_wheel(tmp_path / "w", platform=None, version=f"3.0.{number}", small=True) for number in range(8)]
    code = (
        "import sys; from pathlib import Path; from flash_attn3_sm121.hub.publish import judge, publish\n"
        "from flash_attn3_sm121.hub.store import Hub\n"
        "wheels = judge([Path(sys.argv[2])]); print('ready', flush=True); sys.stdin.readline()\n"
        "publish(Hub.create(Path(sys.argv[1]), durable=False), wheels)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "hub"), str(wheel)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for wheel in wheels
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 8, errors
    hub = Hub.open(tmp_path / "hub")
    assert set(hub.index().wheels) == {wheel.name for wheel in wheels} and check(hub).ok


def test_the_last_publish_counts_and_not_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheels: Mapping[str, Path]
) -> None:
    """A build from a machine whose clock is ahead does not win for good."""
    hub = Hub.create(tmp_path / "hub")
    ahead = write_wheel(tmp_path / "a", library=b"a", local="g3effce8.121.a")
    behind = write_wheel(tmp_path / "b", library=b"b", local="g3effce8.121.b")
    monkeypatch.setattr(publishing, "now", lambda: "2099-01-01T00:00:00Z")
    publish(hub, judge([ahead]))
    monkeypatch.setattr(publishing, "now", lambda: "2026-01-01T00:00:00Z")
    publish(hub, judge([behind]))
    publish(hub, judge([wheels["pure"]]))  # names neither: the newest of the hub is taken
    index = hub.index()
    revision = index.repos[REPO].revisions[resolve(hub, index, REPO).revision]
    assert behind.name in revision.wheels and ahead.name not in revision.wheels


MISSING = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "packaging markdown_it jinja2 cryptography huggingface_hub aiohttp uvloop".split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
from flash_attn3_sm121.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_extra_a_command_says_which_one_it_wants(hub: Hub, newer_wheel: Path) -> None:
    where = ("--hub", str(hub.layout.root))
    for argv in (["hub", "--help"], ["hub", "publish", "--help"], ["hub", "list", *where], ["hub", "check", *where]):
        done = call(*argv, code=MISSING)
        assert done.returncode == 0, done.stderr
    for argv in (["hub", "publish", str(newer_wheel), *where], ["hub", "serve", *where], ["hub", "keygen", "/x/y"]):
        done = call(*argv, code=MISSING)
        assert (
            done.returncode == MissingPackageError.exit_code and 'pip install "flash_attn3_sm121[hub]"' in done.stderr
        ), done.stderr
        assert "Traceback" not in done.stderr


def test_a_hub_of_schema_2_is_read_and_upgraded(hub: Hub, newer_wheel: Path) -> None:
    """It listed the generated files of every revision in the index, and had them in each generation's tree."""
    index = hub.index()
    value = {"schema": 2, **dataclasses.asdict(index)}
    for _, _, revision in index.revisions():
        value["site"] |= {path: dataclasses.asdict(entry) for path, entry in hub.generated(revision).items()}
    for repo in value["repos"].values():
        for item in repo["revisions"].values():
            del item["listing"]
    hub.layout.generation(1).write_bytes(dump_json(value))
    trees = Trees(root=hub.layout.root)
    shutil.rmtree(trees.folder)
    heal(hub)
    assert not (trees.folder / "generated").exists() and check(hub).ok
    address = f"api/models/{REPO}/tree/main/index.json"
    old = Directory(index=hub.index(), read_manifest=hub.manifest).find(address)
    assert old is not None and (trees.www / address).read_bytes() == hub.read(old.entry)
    publish(hub, judge([newer_wheel]))
    assert check(hub).ok and all(revision.listing for _, _, revision in hub.index().revisions())
    address = address.replace("main", index.repos[REPO].refs["main"])
    assert Directory(index=hub.index(), read_manifest=hub.manifest).find(address).entry == old.entry  # type: ignore[union-attr]
    assert (trees.www / address).read_bytes() == hub.read(old.entry)


def test_a_hub_of_schema_1_is_read_and_upgraded(hub: Hub, newer_wheel: Path) -> None:
    index = hub.index()
    value = {"schema": 1, **dataclasses.asdict(index)}
    del value["hub"], value["site"]
    for wheel in value["wheels"].values():
        del wheel["added"], wheel["checks"]
        wheel |= {"signature": "", "key": ""}
    for repo in value["repos"].values():
        for revision in repo["revisions"].values():
            del revision["added"], revision["listing"]
    old = dump_json(value)
    hub.layout.generation(1).write_bytes(old)
    assert set(hub.index().wheels) == set(index.wheels) and hub.index().hub == ""
    publish(hub, judge([newer_wheel]))
    upgraded = hub.index()
    assert upgraded.hub and set(upgraded.wheels) == {*index.wheels, newer_wheel.name} and check(hub).ok
    with pytest.raises(HubError, match="expected an object of schema 1"):
        Index.from_bytes(old.replace(b'"schema": 1', b'"schema": 9'), origin="x")
