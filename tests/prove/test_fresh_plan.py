"""The fresh machine's pure parts: the two commands, what is carried in, the mounts, the refusals, the result."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest

from ci.console import Narrator
from ci.prove.fresh.carried import Carried, carried
from ci.prove.fresh.inside import enclosed, mounts, script
from ci.prove.fresh.recipe import PACKAGES, Recipe, environment, running_suite, two_commands
from ci.prove.fresh.root import cache_for_user, head_of, require
from ci.prove.fresh.steps import Done, Newcomer, document, failed, plan, wheel_of
from flash_attn3_sm121.errors import ToolchainError, UsageError

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_are_readmes_own() -> None:
    assert two_commands(README) == ("make wheel", "make test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# nothing\n", "found none"),
        ("\n## The two commands\n\nmake wheel\n", "found none"),
        ("\n## The two commands\n\n```sh\nmake wheel\n```\n", "found .'make wheel'."),
        ("\n## The two commands\n\n```sh\nmake test\nmake wheel\n```\n", "found"),
        ("\n## The two commands\n\n```sh\nsudo make wheel\nmake test\n```\n", "sudo"),
        ("\n## The two commands\n\n```sh\nmake wheel\nmake test\nmake more\n```\n", "make more"),
    ],
    ids=["no-heading", "no-block", "one", "swapped", "sudo", "three"],
)
def test_a_readme_that_says_anything_else_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        two_commands(text)


def test_options_of_the_commands_are_kept() -> None:
    text = "\n## The two commands\n\n```sh\n# first\nmake wheel JOBS=2   # that\n\nmake test\n```\n"
    assert two_commands(text) == ("make wheel JOBS=2", "make test")


def test_the_root_has_what_readme_asks_for_and_nothing_else() -> None:
    command = Recipe(suite="trixie", machine="x86_64").debootstrap(Path("/r"))
    assert command == ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "trixie", "/r"]
    assert set(PACKAGES) == {"python3", "python3-venv", "g++", "git", "make", "ca-certificates"}
    (asked,) = (line for line in README.splitlines() if "python3-venv" in line)
    assert all(name in asked for name in set(PACKAGES) - {"python3", "ca-certificates"})


def test_another_recipe_is_another_root() -> None:
    recipes = [
        Recipe(suite="bookworm", machine="x86_64"),
        Recipe(suite="trixie", machine="x86_64"),
        Recipe(suite="bookworm", machine="aarch64"),
        Recipe(suite="bookworm", machine="x86_64", mirror="file:///mirror"),
    ]
    assert len({recipe.key for recipe in recipes}) == 4
    assert recipes[3].debootstrap(Path("/r"))[-1] == "file:///mirror"


@pytest.mark.parametrize(
    ("text", "suite"),
    [
        ('ID=debian\nVERSION_CODENAME=trixie\nPRETTY_NAME="Debian 13"\n', "trixie"),
        ('ID=ubuntu\nVERSION_CODENAME="jammy"\n', "bookworm"),
        ("ID=debian\n", "bookworm"),
        ("", "bookworm"),
    ],
)
def test_the_suite_is_that_of_the_running_debian(text: str, suite: str) -> None:
    assert running_suite(text) == suite


FOLDERS = {Path(name) for name in ("/m", "/mirror/simple", "/srv/a/b/simple", "/srv/a/b", "/wheels")}
FILES = {Path(name) for name in ("/etc/hosts", "/etc/resolv.conf", "/pki/ca.pem", "/c.txt")}


def carry(settings: dict[str, str], environ: dict[str, str]) -> Carried:
    return carried(settings, environ, is_folder=FOLDERS.__contains__, is_file=FILES.__contains__)


def test_where_packages_come_from_is_carried_in_and_nothing_else() -> None:
    settings = {
        "index-url": "file:///srv/a/b/simple",
        "extra-index-url": "https://index.test/simple\nfile:///mirror/simple",
        "find-links": "/wheels /absent",
        "cert": "/pki/ca.pem",
        "constraint": "/c.txt",
        "cache-dir": "/home/me/.cache",
        "user": "yes",
    }
    environ = {"SSL_CERT_FILE": "/pki/ca.pem", "HTTPS_PROXY": "http://proxy.test", "HOME": "/home/me", "TOKEN": "x"}
    found = carry(settings, environ)
    assert found.environ == {"SSL_CERT_FILE": "/pki/ca.pem", "HTTPS_PROXY": "http://proxy.test"}
    # Pages of a mirror name files beside them, so the folder around them is mounted; never half of the machine.
    assert found.folders == (Path("/mirror/simple"), Path("/srv/a/b"), Path("/wheels"))
    assert found.files == (Path("/c.txt"), Path("/etc/hosts"), Path("/etc/resolv.conf"), Path("/pki/ca.pem"))
    assert found.pip_conf.splitlines()[:3] == [
        "[global]",
        "index-url = file:///srv/a/b/simple",
        "extra-index-url = https://index.test/simple file:///mirror/simple",
    ]
    assert "cache-dir" not in found.pip_conf and "user" not in found.pip_conf


def test_nothing_is_carried_where_nothing_is_set() -> None:
    found = carry({}, {"HOME": "/root"})
    assert (found.pip_conf, dict(found.environ), found.folders) == ("[global]\n", {}, ())


def test_uvs_named_index_is_a_folder_too() -> None:
    assert carry({}, {"UV_INDEX": "local=file:///srv/a/b/simple"}).folders == (Path("/srv/a/b"),)


def test_mounts_are_few_and_packages_are_read_only() -> None:
    found = mounts(folders=[Path("/wheels")], cache=Path("/keep"), cache_at="/home/newcomer/.cache/x")
    assert [mount.target for mount in found if mount.kind != "bind"] == ["/proc", "/dev", "/dev/shm", "/dev/pts"]
    binds = {mount.target: mount for mount in found if mount.kind == "bind" and not mount.file}
    assert set(binds) == {"/wheels", "/home/newcomer/.cache/x"}
    assert binds["/wheels"].read_only and not binds["/home/newcomer/.cache/x"].read_only
    assert not any(mount.kind == "bind" and not mount.file for mount in mounts())


def test_the_script_mounts_first_and_runs_as_the_user() -> None:
    text = script(
        Path("/r o"), mounts(), "make wheel", user=1000, folder="/home/x", environ=environment({"A": "b c"}, {})
    )
    lines = text.splitlines()
    assert lines[0] == "set -eu"
    assert "mount -t proc proc '/r o/proc'" in lines
    (run,) = (number for number, line in enumerate(lines) if line.startswith("chroot"))
    assert all(number < run for number, line in enumerate(lines) if line.startswith("mount"))
    assert "--userspec=1000:1000" in lines[run] and "env -i" in lines[run] and "'A=b c'" in lines[run]
    assert "HOME=/home/newcomer" in lines[run]
    subprocess.run(["sh", "-n", "-c", text], check=True)


def test_everything_dies_with_the_program_that_started_it() -> None:
    words = enclosed("true")
    assert words[:3] == ["setpriv", "--pdeathsig", "KILL"]
    assert {"--mount", "--pid", "--fork", "--kill-child"} <= set(words)


def test_it_wants_root_and_says_how() -> None:
    with pytest.raises(ToolchainError, match=r"(?s)wants root.*as-root make fresh"):
        require(effective_user=1000)


def test_missing_tools_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"(?s)needs debootstrap.*apt-get install debootstrap"):
        require(effective_user=0, path=str(tmp_path))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.test")
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    (folder / "a").write_text("1", encoding="utf-8")
    subprocess.run(["git", "-C", str(folder), "add", "a"], check=True)
    subprocess.run(["git", "-C", str(folder), *identity, "commit", "--quiet", "-m", "one"], check=True)
    return folder


def test_what_is_not_committed_is_named_and_refused(repository: Path) -> None:
    clean = head_of(repository, ignore_changes=False)
    assert len(clean) == 40
    (repository / "b").write_text("2", encoding="utf-8")
    with pytest.raises(UsageError, match=r"(?s)1 files here are not: b.*--ignore-changes"):
        head_of(repository, ignore_changes=False)
    assert head_of(repository, ignore_changes=True) == clean


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="git status"):
        head_of(tmp_path, ignore_changes=False)


def test_a_cache_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if tmp_path.stat().st_uid == 1000:
        assert cache_for_user(tmp_path) == tmp_path
        return
    with pytest.raises(UsageError, match="expected a folder of user 1000"):
        cache_for_user(tmp_path)


def test_the_plan_runs_readmes_words_unchanged() -> None:
    steps = plan(two_commands(README), only=None)
    assert (steps[0].command, dict(steps[0].environ)) == ("make wheel", {"PROFILE": "smoke"})
    assert (steps[-1].command, dict(steps[-1].environ)) == ("make test", {})
    assert [step.command for step in plan(two_commands(README), only="test")] == ["make test"]
    assert plan(two_commands(README), only="wheel") == steps[:-1]


def done(command: str, code: int = 0, closing: str = "", skipped: tuple[str, ...] = ()) -> Done:
    return Done(about="", command=command, environ={}, code=code, seconds=1.5, closing=closing, skipped=skipped)


def test_the_result_names_wheel_and_failures() -> None:
    steps = [done("make wheel"), done("ls && sha256sum wheels/*.whl", closing="ab12  wheels/x.whl"), done("make test")]
    assert wheel_of(steps) == {"name": "x.whl", "sha256": "ab12"}
    found = document(date="d", commit="c", suite="s", machine="m", steps=steps)
    assert found["passed"] and len(found["commands"]) == 3
    broken = [done("make wheel", 2)]
    assert failed(broken) == broken and wheel_of(broken) is None
    assert not document(date="d", commit="c", suite="s", machine="m", steps=broken)["passed"]


def test_output_is_followed_to_pytests_own_closing_line(tmp_path: Path) -> None:
    """The reader of a step's output, over the real output of a child process."""
    text = (
        "one\nSKIPPED [2] tests/a.py:3: no nginx\nFAILED tests/b.py::test_x[y] - Assert\n"
        "==== 3 passed, 2 skipped in 1.25s ====\nmake: bye\n"
    )
    log = io.StringIO()
    newcomer = Newcomer(root=tmp_path, mounts=(), environ={}, log=log, narrate=Narrator(quiet=True))
    with subprocess.Popen(["printf", "%s", text], stdout=subprocess.PIPE, text=True) as child:
        closing, skipped, wrong = newcomer._follow(child, begun=0.0)
    assert closing == "3 passed, 2 skipped in 1.25s"
    assert wrong == ["FAILED tests/b.py::test_x[y]"]
    assert skipped == ["SKIPPED [2] tests/a.py:3: no nginx"]
    assert log.getvalue() == text
