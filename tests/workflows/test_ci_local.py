"""What a workflow's job does is a make target, and `make ci-local` runs the same targets in the same order."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflows.files import FILES, ROOT, steps_of

WHEELS = ROOT / ".github" / "workflows" / "wheels.yml"
# Steps that prepare a hosted machine or talk to GitHub; nothing of a wheel depends on them.
SET_UP = {
    ".ci/packages qemu-user-static debootstrap debian-archive-keyring",
    ".ci/packages debootstrap debian-archive-keyring",
    ".ci/pages-fit site",
    ".ci/release dist",
}
OTHERS = {".ci/run", ".ci/as-root make fresh"}
TOOLS = ("x86_64-linux-gnu-g++", "aarch64-linux-gnu-g++", "qemu-aarch64-static", "debootstrap")


def targets_of(path: Path) -> list[str]:
    """The make targets of a workflow's steps, in the order of its jobs."""
    runs = [str(step["run"]).strip() for _, step in steps_of(path) if "run" in step]
    return [word for run in runs if run.startswith("make ") for word in run.split()[1:] if "=" not in word]


def make(*words: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *words], cwd=cwd, env=plain | environ, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_step_is_a_make_target_or_a_known_script(path: Path) -> None:
    for job, step in steps_of(path):
        run = str(step.get("run", "make help")).strip()
        assert run.startswith("make ") or run in SET_UP | OTHERS, f"{job}: {run}"
        assert not run.startswith("make ") or not set(run) & set(";&|$\n"), f"{job}: {run}"
        assert step.get("working-directory") is None, f"{job}: {run}"


@pytest.mark.parametrize("target", sorted({word for path in FILES for word in targets_of(path)}))
def test_make_knows_the_target(target: str) -> None:
    done = make("--dry-run", target)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Path]:
    """A tree with .ci/local alone, and a folder of programs whose `make` writes down what it is asked for."""
    tools, tree = tmp_path / "bin", tmp_path / "tree"
    tools.mkdir()
    (tree / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "local", tree / ".ci" / "local")
    for name in TOOLS:
        (tools / name).write_text("#!/bin/sh\n", encoding="utf-8")
    folders = 'for word; do case $word in DIST=*) mkdir -p "${word#DIST=}";; esac; done'
    (tools / "make").write_text(f'#!/bin/sh\necho "$* ($PROFILE, $ARCHS)" >> asked\n{folders}\n', encoding="utf-8")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return tree, tools


def local(tree: Path, tools: Path, **environ: str) -> tuple[list[str], str]:
    """(what make was asked for, what was printed) of a run that finds no programs but the recorded and basic ones."""
    words = ("bash", "dirname", "env", "mkdir", "rm", "uname")
    for name in words:
        if not (tools / name).exists():
            (tools / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        [tree / ".ci" / "local"],
        env={"PATH": str(tools)} | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return (tree / "asked").read_text(encoding="utf-8").splitlines(), done.stdout


def once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def test_ci_local_runs_the_workflows_targets_in_its_order(recorded: tuple[Path, Path]) -> None:
    asked, said = local(*recorded, LAUNCHER="sccache")
    wanted = targets_of(WHEELS)
    if platform.machine() == "aarch64":  # its own wheels need no emulation
        wanted.remove("ci-emulate")
    assert once([line.split()[1] for line in asked]) == wanted
    builds = [line for line in asked if " ci-build " in line]
    assert ["PLATFORM=x86_64" in build or "PLATFORM=aarch64" in build for build in builds] == [True, True]
    assert all(line.endswith("(smoke, 12.1)") for line in asked)
    assert "passed" in said


def test_ci_local_names_what_the_machine_cannot_do(recorded: tuple[Path, Path]) -> None:
    tree, tools = recorded
    (tools / "debootstrap").unlink()
    asked, said = local(tree, tools)
    assert not any(" ci-emulate " in line for line in asked)
    assert ("not done here: emulation" in said) is (platform.machine() != "aarch64")
    (tree / "asked").unlink()
    for name in TOOLS[:2]:
        (tools / name).unlink()
    asked, said = local(tree, tools, ARCHS="9.0 12.1")
    names = [line.split()[1] for line in asked]
    assert names.count("ci-build") == 1 and "ci-emulate" not in names and "ci-launcher" not in names
    assert all(line.endswith("(smoke, 9.0 12.1)") for line in asked)
    assert "not done here: a wheel for" in said and "emulation" not in said


def test_ci_local_stops_where_a_target_fails(recorded: tuple[Path, Path]) -> None:
    tree, tools = recorded
    (tools / "make").write_text('#!/bin/sh\necho "$*" >> asked\n[ "$2" != ci-build ]\n', encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        local(tree, tools)
    assert (tree / "asked").read_text(encoding="utf-8").splitlines()[-1].split()[1] == "ci-build"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with the Makefile, a list of no packages, and a harness that prints a request's architectures."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements-build.txt").touch()
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "__main__.py").write_text("import sys; print('asked', *sys.argv[1:])\n", encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_containers_variables_are_not_for_the_pinned_tools(bare: Path) -> None:
    """NVIDIA's image has constraints for pip and a list of architectures; others have user installs."""
    done = make(
        "plan", f"PYTHON={sys.executable}", cwd=bare, PIP_CONSTRAINT="/no/constraint.txt", PIP_USER="1",
        PYTHONSAFEPATH="1", TORCH_CUDA_ARCH_LIST="7.5 8.0", NVIDIA_PYTORCH_VERSION="25.10",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "asked plan\n"), done.stderr


@pytest.mark.slow
def test_an_environment_that_was_cut_short_is_made_again(bare: Path) -> None:
    """Ctrl-C while pip is put into it, or a Debian without python3-venv, leaves a Python without pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare / ".venv-build"], check=True)
    done = make("plan", f"PYTHON={sys.executable}", cwd=bare)
    assert (done.returncode, done.stdout) == (0, "asked plan\n"), done.stderr


def test_a_runs_inputs_are_data(tmp_path: Path) -> None:
    """Neither make nor the shell runs what somebody typed into the workflow's form."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"), encoding="utf-8")
    python = tmp_path / ".venv-build" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / "requirements-build.txt").touch()
    (tmp_path / ".venv-build" / ".stamp").touch()
    typed = '$(shell touch made); touch made; `touch made` "; touch made #'
    for target in ("ci-plan", "ci-build"):
        done = make(target, cwd=tmp_path, ARCHS=typed, PROFILE=typed, LAUNCHER=typed, PLATFORM=typed)
        assert done.returncode == 0, done.stderr
        assert f"<--archs><{typed}>" in done.stdout and f"<--profile><{typed}>" in done.stdout
    assert not (tmp_path / "made").exists()
