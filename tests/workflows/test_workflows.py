"""Our workflow files: pinned actions, least permissions, no injection; and the real linters over them."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ci.cache.folders import cache_root, locked, making
from ci.plan.matrix import PYTHONS
from flash_attn3_sm121.arch import CAPABILITIES
from tests.workflows.files import FILES, ROOT, steps_of

WRITING = {  # who may write what; everything else only reads the repository
    ("release.yml", "attest"): {"id-token", "attestations"},
    ("release.yml", "pages"): {"pages", "id-token"},
    ("release.yml", "assets"): {"contents"},
}
by_name = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


@by_name
def test_actions_are_pinned_by_commit_with_their_version(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if re.search(r"\buses: (?!\./)", line)]
    assert lines
    for line in lines:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_an_action_has_one_version_everywhere() -> None:
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for name, pin in re.findall(r"uses: ([\w/-]+)@(\S+ # \S+)", path.read_text(encoding="utf-8")):
            pins.setdefault(name, set()).add(pin)
    assert pins and all(len(found) == 1 for found in pins.values()), pins


@by_name
def test_permissions_are_the_least(path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert data["permissions"] == {"contents": "read"} and "concurrency" in data
    for name, job in data["jobs"].items():
        writes = {scope for scope, right in (job.get("permissions") or {}).items() if right == "write"}
        assert writes == WRITING.get((path.name, name), set()), name
        assert "uses" in job or "timeout-minutes" in job, name


@by_name
def test_no_expression_in_shell_text(path: Path) -> None:
    """Values reach scripts as environment variables only: text that someone else writes is never code."""
    for job, step in steps_of(path):
        assert "${{" not in str(step.get("run", "")), job
        if str(step.get("uses", "")).startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_no_architecture_is_typed_in_a_workflow() -> None:
    """Families, shards and runners of builds come from `python -m ci matrix`."""
    text = (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
    for row in CAPABILITIES.values():
        assert not re.search(rf"(?<![\d.]){re.escape(row.name)}(?![\d.])", re.sub(r"# v[\d.]+", "", text)), row.name
        assert str(row.family) not in text.replace("flash-attn3-sm121", "").replace("flash_attn3_sm121", "")


def test_hooks_have_the_versions_of_the_requirements() -> None:
    pinned = dict(
        line.split("==")
        for name in ("requirements-dev.txt", "requirements-ci.txt")
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    wanted = [text.split("==") for hook in hooks for text in hook.get("additional_dependencies", ())]
    assert len(wanted) >= 6
    for name, version in wanted:
        assert pinned[name] == version, name


def test_a_package_has_one_version_in_all_requirements() -> None:
    found: dict[tuple[str, str], set[str]] = {}
    for path in sorted(ROOT.glob("requirements-*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            pin, _, condition = line.partition(" ; ")
            name, equals, version = pin.partition("==")
            assert equals or line.startswith("#") or not line, f"{path.name}: not pinned: {line}"
            if equals and not line.startswith("#"):
                found.setdefault((name, condition), set()).add(version)
    assert len(found) > 15 and all(len(versions) == 1 for versions in found.values()), found


def test_every_python_and_the_oldest_middle_and_newest_torch() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    pythons = jobs["quick"]["strategy"]["matrix"]["python"]
    assert pythons == [f"3.{minor}" for minor in range(10, 15)] and (pythons[0], pythons[-1]) == PYTHONS
    rows = jobs["torch"]["strategy"]["matrix"]["include"]
    oldest, middle, newest = (tuple(int(part) for part in row["torch"].split(".")) for row in rows)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"torch>{oldest[0]}.{oldest[1] - 1}"' in project
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH ?= {'.'.join(map(str, middle))}\n" in makefile and newest > middle
    assert [rows[0]["python"], rows[-1]["python"]] == [*PYTHONS]


@pytest.fixture(scope="module")
def tools() -> Path:
    """The pinned linters, installed once into the content cache."""
    recipe = (ROOT / "requirements-ci.txt").read_bytes() + sys.version.encode()
    key = f"ci-envs/{hashlib.sha256(recipe).hexdigest()[:16]}"
    cache = cache_root()
    with locked(cache, key):
        if not (cache / key).is_dir():
            with making(cache, key) as folder:
                subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
                pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
                subprocess.run([*pip, "-r", str(ROOT / "requirements-ci.txt")], check=True)
    return cache / key / "bin"


def _call(tools: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Console scripts carry the path that they were made under: the module is asked instead."""
    command = [str(tools / "python"), "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _binary(tools: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(tools / words[0]), *map(str, words[1:])], cwd=ROOT, capture_output=True, text=True, check=False
    )


INJECTED = """
on: {issues: {types: [opened]}}
permissions: write-all
jobs:
  greet:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: echo ${{ github.event.issue.title }}
"""


@pytest.mark.network
def test_zizmor_finds_nothing(tools: Path, tmp_path: Path) -> None:
    done = _binary(tools, "zizmor", "--offline", "--strict-collection", "--no-progress", *FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / "bad.yml"
    bad.write_text(INJECTED, encoding="utf-8")
    found = _binary(tools, "zizmor", "--offline", "--strict-collection", "--no-progress", bad)
    assert found.returncode != 0 and "template-injection" in found.stdout + found.stderr


@pytest.mark.network
def test_workflows_fit_the_schema(tools: Path, tmp_path: Path) -> None:
    schema = ("check_jsonschema", "--builtin-schema", "vendor.github-workflows")
    done = _call(tools, *schema, *FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / "bad.yml"
    bad.write_text("on: push\njobs: {a: {runs-on: x, step: []}}\n", encoding="utf-8")
    assert _call(tools, *schema, bad).returncode != 0


@pytest.mark.network
def test_cibuildwheel_reads_its_configuration(tools: Path) -> None:
    for machine in ("x86_64", "aarch64"):
        done = _call(tools, "cibuildwheel", "--platform", "linux", "--archs", machine, "--print-build-identifiers")
        assert done.returncode == 0, done.stderr
        versions = ("310", "311", "312", "313", "314")
        assert done.stdout.split() == [f"cp{version}-manylinux_{machine}" for version in versions]


def _installed(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A binary that `make venv` puts beside the running Python."""
    return subprocess.run(
        [str(Path(sys.executable).with_name(name)), *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_shell_scripts_are_clean(tmp_path: Path) -> None:
    done = _installed("shellcheck", *sorted((ROOT / ".ci").iterdir()))
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "bad"
    bad.write_text("#!/bin/sh\nrm $1\n", encoding="utf-8")
    assert _installed("shellcheck", bad).returncode != 0


def test_headers_are_formatted(tmp_path: Path) -> None:
    check = ("--dry-run", "-Werror", f"--style=file:{ROOT / 'csrc' / '.clang-format'}")
    done = _installed("clang-format", *check, *sorted((ROOT / "csrc").glob("*.h")))
    assert done.returncode == 0, done.stderr
    bad = tmp_path / "bad.h"
    bad.write_text("int   a ;\n", encoding="utf-8")
    assert _installed("clang-format", *check, bad).returncode != 0


def test_make_lint_runs_every_linter() -> None:
    said = subprocess.run(["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for words in ("ruff check .", "ruff format --check .", "-m mypy", "clang-format --dry-run -Werror", "shellcheck"):
        assert words in said, words
