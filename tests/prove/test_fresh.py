"""The fresh machine's parts: the two commands, what is carried in, the refusals, the result; and all of it, marked."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from ci.prove import fresh
from ci.prove.fresh import PACKAGES, TOOLS, carried, committed, document, ended, require, steps, two_commands
from flash_attn3_sm121.errors import ToolchainError, UsageError
from tests.fakes.worlds import commit_all

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = [sys.executable, "-m", "ci", "fresh"]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or any(shutil.which(tool) is None for tool in TOOLS),
    reason="wants root and debootstrap: .ci/packages debootstrap debian-archive-keyring",
)


@pytest.mark.fresh
@pytest.mark.slow
@pytest.mark.network
@pytest.mark.nvcc
@needs_root
def test_a_newcomer_types_the_two_commands() -> None:
    done = subprocess.run([*COMMAND, "--ignore-changes"], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    result = json.loads(done.stdout)
    assert done.returncode == 0, result
    assert [step["command"] for step in result["commands"]][:1] == ["make wheel"]
    assert result["passed"] and " passed" in result["commands"][-1]["closing"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# nothing\n", "found \\[\\]"),
        ("\n## The two commands\n\nmake wheel\n", "found \\[\\]"),
        ("\n## The two commands\n\n```sh\nmake test\nmake wheel\n```\n", "found"),
        ("\n## The two commands\n\n```sh\nsudo make wheel\nmake test\n```\n", "sudo"),
        ("\n## The two commands\n\n```sh\nmake wheel\nmake test\nmake more\n```\n", "make more"),
    ],
    ids=["no-heading", "no-block", "swapped", "sudo", "three"],
)
def test_a_readme_that_says_anything_else_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        two_commands(text)


def test_readmes_words_are_typed_unchanged() -> None:
    text = "\n## The two commands\n\n```sh\n# first\nmake wheel JOBS=2   # that\n\nmake test\n```\n"
    assert two_commands(text) == ("make wheel JOBS=2", "make test")
    every = steps(two_commands(README), only=None)
    assert every[0][1:] == ("make wheel", {"PROFILE": "smoke"}) and every[-1][1:] == ("make test", {})
    assert steps(two_commands(README), only="test") == every[-1:]
    assert steps(two_commands(README), only="wheel") == every[:-1]


def test_the_machine_has_what_readme_asks_for() -> None:
    (asked,) = (line for line in README.splitlines() if "python3-venv" in line)
    assert all(name in asked for name in {*PACKAGES} - {"python3", "ca-certificates"})


def test_where_packages_come_from_is_carried_in_and_nothing_else(tmp_path: Path) -> None:
    for name in ("mirror/simple", "wheels"):
        (tmp_path / name).mkdir(parents=True)
    settings = {
        "index-url": f"file://{tmp_path}/mirror/simple",
        "extra-index-url": "https://index.test/simple\nfile:///absent/simple",
        "find-links": f"{tmp_path}/wheels /absent",
        "cert": "/pki/ca.pem",
        "cache-dir": "/home/me/.cache",
        "user": "yes",
    }
    conf, folders, files = carried(settings, {"SSL_CERT_FILE": "/pki/other.pem", "HOME": "/home/me"})
    assert folders == [tmp_path / "mirror", tmp_path / "wheels"]  # a mirror's pages name files beside them
    assert files == [Path("/pki/ca.pem"), Path("/pki/other.pem")]
    assert conf.splitlines()[:3] == [
        "[global]",
        f"index-url = file://{tmp_path}/mirror/simple",
        "extra-index-url = https://index.test/simple file:///absent/simple",
    ]
    assert "cache-dir" not in conf and "user" not in conf
    assert carried({}, {"HOME": "/root"}) == ("[global]\n", [], [])


@pytest.mark.parametrize(
    ("text", "suite"),
    [
        ('ID=debian\nVERSION_CODENAME=trixie\nPRETTY_NAME="Debian 13"\n', "trixie"),
        ("ID=ubuntu\nVERSION_CODENAME=jammy\n", "bookworm"),
        ("ID=debian\n", "bookworm"),
    ],
)
def test_the_suite_is_that_of_the_running_debian(text: str, suite: str) -> None:
    assert fresh.running_suite(text) == suite


def test_nothing_of_a_run_or_of_a_killed_one_stays(tmp_path: Path) -> None:
    (tmp_path / "tmp" / "fresh.killed" / "etc").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), fresh.new_folder(tmp_path) as root:
        (root / "file").touch()
        assert [path for path in root.parent.iterdir()] == [root]
        raise ZeroDivisionError
    assert not list((tmp_path / "tmp").iterdir())


def test_it_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"(?s)wants root.*as-root make fresh"):
        require(user=1000)
    with pytest.raises(ToolchainError, match=r"(?s)needs debootstrap.*apt-get install debootstrap"):
        require(user=0, path=str(tmp_path))


def test_what_is_not_committed_is_named_and_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1", encoding="utf-8")
    head = commit_all(tmp_path)
    assert committed(tmp_path, ignore_changes=False) == head
    (tmp_path / "b").write_text("2", encoding="utf-8")
    with pytest.raises(UsageError, match=r"(?s)\?\? b.*--ignore-changes"):
        committed(tmp_path, ignore_changes=False)
    assert committed(tmp_path, ignore_changes=True) == head


def test_how_a_command_ended_is_read_from_its_output() -> None:
    """Through a shell in the place of the namespaces: the reader sees a real child's output."""
    text = (
        "one\nSKIPPED [2] tests/a.py:3: no nginx\nFAILED tests/b.py::test_x[y] - Assert\n"
        "==== 3 passed, 2 skipped in 1.25s ====\nmake: bye\n"
    )
    found = ended(2, 1.5, text.splitlines())
    assert (found["code"], found["closing"]) == (2, "3 passed, 2 skipped in 1.25s")
    assert found["failed"] == ["FAILED tests/b.py::test_x[y]"]
    assert found["skipped"] == ["SKIPPED [2] tests/a.py:3: no nginx"]
    assert ended(0, 0.1, ["ab12  wheels/x.whl", ""])["closing"] == "ab12  wheels/x.whl"
    assert ended(0, 0.1, [])["closing"] == ""


def test_the_result_has_the_form_of_the_one_in_docs() -> None:
    step = {"about": "", "command": "ls && sha256sum wheels/*.whl", "environ": {}}
    good = step | ended(0, 0.1, ["ab12  wheels/x.whl"])
    made = document("d", "c", "s", [good])
    kept = json.loads((ROOT / "docs" / "results" / "fresh.json").read_text(encoding="utf-8"))
    assert list(made) == list(kept) and set(made["commands"][0]) == set(kept["commands"][0])
    assert made["passed"] and made["wheel"] == {"name": "x.whl", "sha256": "ab12"}
    broken = document("d", "c", "s", [good | {"code": 2}])
    assert not broken["passed"] and broken["wheel"] is None


def test_a_command_is_typed_as_the_user_and_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The namespaces replaced by a plain shell, and chroot by a program that shows how it was called."""
    chroot = tmp_path / "chroot"
    chroot.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\nexit 3\n', encoding="utf-8")
    chroot.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SSL_CERT_FILE", "/pki/ca.pem")
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setattr(fresh, "enclosed", lambda text: ["/bin/sh", "-c", text])
    said = io.StringIO()
    with redirect_stderr(said):
        found = fresh.typed("make wheel", {"PROFILE": "a b"}, root=tmp_path / "r o", mounts="true")
    words = said.getvalue().splitlines()
    assert found["code"] == 3 and found["closing"] == f"<cd {fresh.CLONE} && make wheel>"
    assert {"<--userspec=1000:1000>", f"<{tmp_path}/r o>", "<PROFILE=a b>", "<SSL_CERT_FILE=/pki/ca.pem>"} <= set(words)
    assert not any("secret" in word for word in words) and "newcomer$ PROFILE=a b make wheel" in words
