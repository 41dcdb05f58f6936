"""Both command lines: versions, misspelt words, the usage of what failed, errors and their exit codes."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

import flash_attn3_sm121
from ci.__main__ import COMMANDS as STAGES
from ci.__main__ import main as ci
from flash_attn3_sm121.cli import COMMANDS, main
from flash_attn3_sm121.commandline import as_error, exit_codes
from flash_attn3_sm121.errors import NEWEST_WHEEL, pip_command
from flash_attn3_sm121.hub.cli import ACTIONS
from tests.fakes.libraries import build

ROOT = Path(__file__).resolve().parents[2]
Main = Callable[[list[str]], int]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def refused(program: Main, *words: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        program(list(words))
    return ended.value.code


@pytest.mark.parametrize(
    ("program", "words", "usage", "said"),
    [
        (main, ["docter"], "usage: flash-attn3 [-h]", "did you mean doctor?"),
        (main, ["hub", "pubish"], "usage: flash-attn3 hub [-h]", "did you mean publish?"),
        (main, ["bench", "--devcie", "cpu"], "usage: flash-attn3 bench [-h]", "did you mean --device?"),
        (main, ["hub", "list", "--jsn"], "usage: flash-attn3 hub list [-h]", "did you mean --json?"),
        (main, ["explain", "--dtype", "bf61"], "usage: flash-attn3 explain [-h]", "did you mean bf16?"),
        (main, ["bench", "--xyzzy"], "usage: flash-attn3 bench [-h]", "unrecognized arguments: --xyzzy\n"),
        (main, ["--versoin"], "usage: flash-attn3 [-h]", "did you mean --version?"),
        (main, ["hub"], "usage: flash-attn3 hub [-h]", "are required: ACTION, one of publish, list, "),
        (main, ["hub", "prune"], "usage: flash-attn3 hub prune [-h]", "are required: --keep"),
        (main, ["hub", "--hlep"], "usage: flash-attn3 hub [-h]", "did you mean --help?"),
        (main, ["explain", "--backend", "nativ"], "usage: flash-attn3 explain [-h]", "did you mean native?"),
        (ci, ["pln"], "usage: python -m ci [-h]", "did you mean plan?"),
        (ci, ["plan", "--shrd", "1/2"], "usage: python -m ci plan [-h]", "did you mean --shard?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_misspelt_word(
    program: Main, words: list[str], usage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(program, *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(usage) and said in err


@pytest.mark.parametrize("option", ["-V", "--version"])
@pytest.mark.parametrize(("program", "name"), [(main, "flash-attn3"), (ci, "python -m ci")], ids=["package", "harness"])
def test_the_version_of_a_folder_says_so(
    program: Main, name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(program, option) == 0
    assert capsys.readouterr().out.startswith(f"{name} {flash_attn3_sm121.__version__}")


@pytest.mark.parametrize("put", [shutil.copy, os.symlink], ids=["copied", "linked"])
def test_the_version_of_an_install_has_its_local_part(put: Callable[[str, str], object], tmp_path: Path) -> None:
    """The checkout may be installed elsewhere at the same time: it is the copy that runs that counts.

    uv links files into its cache where it is told to (`--link-mode symlink`).
    """
    source = Path(flash_attn3_sm121.__file__).absolute().parent
    ignored = shutil.ignore_patterns("__pycache__", "lib")
    shutil.copytree(source, tmp_path / "flash_attn3_sm121", ignore=ignored, copy_function=put)
    info = tmp_path / "flash_attn3_sm121-3.0.0.post1+g3effce8.121.smoke.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Name: flash_attn3_sm121\nVersion: 3.0.0.post1+g3effce8.121.smoke\n")
    command = [sys.executable, "-m", "flash_attn3_sm121", "-V"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "flash-attn3 3.0.0.post1+g3effce8.121.smoke\n"
    facts = build("sm8x", "sm_121", profile="smoke", dtypes=("bf16",))
    (tmp_path / "flash_attn3_sm121" / "lib").mkdir()
    (tmp_path / "flash_attn3_sm121" / "lib" / "sm8x.json").write_text(facts.to_json(), encoding="utf-8")
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == [done.stdout.strip(), f"library sm8x: {facts.line}"]
    assert importlib.metadata.Distribution.at(info).version in done.stdout


def test_an_error_is_a_message_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ci(["plan", "--archs", "99.9"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ci: error: ") and "99.9" in err


@pytest.mark.parametrize(
    ("missing", "words"), [("torch", ["selftest"]), ("torch", ["bench"]), ("shtab", ["completion", "bash"])]
)
def test_a_missing_package_is_named(missing: str, words: list[str]) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from flash_attn3_sm121.cli import main; sys.exit(main({words}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "Traceback" not in done.stderr
    assert f"the Python package {missing} is not installed" in done.stderr and f"pip install {missing}" in done.stderr


@pytest.mark.parametrize("words", [["explain"], ["selftest"], ["bench", "--quick"]], ids=" ".join)
def test_a_device_that_is_not_there_is_a_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--device", "cuda:99"]) == 2
    assert "device cuda:99: torch sees no such device here\n  -> flash-attn3 doctor" in capsys.readouterr().err


def test_the_documented_table_is_the_programs_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    rows = {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.*?) \|", text, re.MULTILINE)}
    assert rows == exit_codes()
    assert refused(main, "--help") == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^ +{code}  \S", shown, re.MULTILINE) for code in rows)


@pytest.mark.parametrize(
    ("program", "words"),
    [(main, [name]) for name in COMMANDS]
    + [(main, ["hub", name]) for name in ACTIONS]
    + [(main, ["override", name]) for name in ("enable", "disable", "status")]
    + [(ci, [name]) for name in STAGES],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_of_every_subcommand_fits_eighty_columns(
    program: Main, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(program, *words, "--help") == 0
    out = capsys.readouterr().out
    usage, about = out.split("\n\n")[:2]
    assert usage.startswith("usage: ") and not about.startswith(("positional arguments:", "options:"))
    assert [line for line in out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["verify", "/nowhere/x.whl"], 2, "no such wheel: /nowhere/x.whl"),
        (["reproduce", "--against", "/nowhere/x.whl"], 2, "no such wheel: /nowhere/x.whl"),
        (["tiles", "--variant", "paged,kausal"], 2, "--variant: unknown word 'kausal'\n  -> known: causal, local"),
        (["wheel", "--jobs", "0"], 2, "--jobs: expected 1 or more, found 0"),
        (["assemble", "/nowhere"], 16, "python -m ci build"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_before_anything_is_fetched(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ci(words) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ci: error: ") and said in err


def test_a_wheel_is_never_of_one_shard(capsys: pytest.CaptureFixture[str]) -> None:
    """It would be refused when all of the shard is compiled."""
    assert refused(ci, "wheel", "--shard", "1/2") == 2
    assert "unrecognized arguments: --shard" in capsys.readouterr().err


def test_completion_knows_commands_actions_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("rollback", "--allow-unverified", "selftest"))
    checked = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p flash-attn3"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0 and "flash-attn3" in checked.stdout, checked.stderr


def test_what_the_system_refuses_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    full, denied = (as_error(OSError(code, os.strerror(code), "/x")) for code in (errno.ENOSPC, errno.EACCES))
    assert (full.exit_code, denied.exit_code) == (17, 18)
    assert "hub gc" in str(full) and str(denied).startswith("/x: Permission denied")


@pytest.mark.parametrize(("program", "words"), [(main, ["hub", "list"]), (ci, ["plan"])], ids=["hub", "ci"])
def test_a_user_without_a_home_is_told_what_to_set(
    program: Main, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `docker run --user 1234` with an emptied environment has it."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "FA3_CACHE", "FLASH_ATTN3_HUB", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert program(words) == 2 and "-> export HOME=DIR" in capsys.readouterr().err


@pytest.mark.slow
def test_an_environment_without_pip_is_told_uvs(tmp_path: Path) -> None:
    venv.create(tmp_path / "made by uv", symlinks=True)
    python = tmp_path / "made by uv" / "bin" / "python"
    code = "from flash_attn3_sm121.errors import pip_command; print(pip_command())"
    said = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == f"UV_PYTHON='{python}' uv pip\n"
    assert pip_command() == f"{shlex.quote(sys.executable)} -m pip"


def test_of_several_wheels_the_last_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "wheels" / "fa2").mkdir(parents=True)
    for age, name in enumerate(("z", "b", "a"), start=1):
        wheel = tmp_path / "wheels" / f"flash_attn3_sm121-1+{name}.whl"
        wheel.touch()
        os.utime(wheel, (age, age))
    command = ["sh", "-c", f"echo {NEWEST_WHEEL}"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said == "wheels/flash_attn3_sm121-1+a.whl\n"
