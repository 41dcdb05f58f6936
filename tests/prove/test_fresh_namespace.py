"""What runs in the root ends with the program that started it, and its mounts are never this machine's. For real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ci.prove.fresh import enclosed, remove

# Ctrl-C works in it also where these tests were started in the background, for which shells turn it off.
STARTER = (
    "import signal, subprocess, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "subprocess.run(sys.argv[1:])"
)


def namespaces_work() -> bool:
    """Root alone may make them, and some containers forbid it to root as well."""
    return os.geteuid() == 0 and subprocess.run(enclosed("true"), capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not namespaces_work(), reason="wants root and namespaces (unshare)")


def wait_until(what: str, condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited for: {what}"
        time.sleep(0.02)


def running(word: str) -> bool:
    """Whether some process was started with this word; what is only waiting to be buried does not count."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended just now
        if word.encode() in words:
            return True
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_outlives_its_starter(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "at").mkdir()
    seconds = f"{600 + number}.{os.getpid()}"  # a word that no other process has
    text = f"mount -t tmpfs none {tmp_path}/at && touch {tmp_path}/at/inside && echo mounted && sleep {seconds}; exit"
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, *enclosed(text)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as starter:
        assert starter.stdout is not None and starter.stdout.readline() == "mounted\n"
        assert list((tmp_path / "at").iterdir()) == []  # seen from here, nothing is mounted
        assert not os.path.ismount(tmp_path / "at")
        wait_until("the sleeper", lambda: running(seconds))
        starter.send_signal(number)
        starter.stdout.read()
    wait_until("the end of everything", lambda: not running(seconds))
    assert not os.path.ismount(tmp_path / "at")


def test_exit_codes_and_orphans(tmp_path: Path) -> None:
    assert subprocess.run(enclosed("exit 7"), check=False).returncode == 7
    # What a command leaves running ends with it: the first process of the namespace takes all others along.
    seconds = f"500.{os.getpid()}"
    assert subprocess.run(enclosed(f"sleep {seconds} > /dev/null 2>&1 & exit 0"), check=False).returncode == 0
    wait_until("the end of the orphan", lambda: not running(seconds))


def test_removing_never_follows_a_mount(tmp_path: Path) -> None:
    """Even where something were mounted below a root, in the remover's own namespace, it would stay untouched."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "mnt").mkdir(parents=True)
    outside.mkdir()
    (root / "file").write_text("x", encoding="utf-8")
    code = f"import sys; sys.path[:0] = {sys.path!r}; from ci.prove.fresh import remove; from pathlib import Path; "
    code += f"remove(Path({str(root)!r}))"
    text = f'mount -t tmpfs none {root}/mnt && touch {root}/mnt/precious && {sys.executable} -c "$CODE"; '
    text += f"ls {root}/mnt; exit 0"
    done = subprocess.run(enclosed(text), env={**os.environ, "CODE": code}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["precious"], done.stderr
    assert not (root / "file").exists()
    remove(root)
    assert not root.exists()
