"""The modules named `flash_attn`: what they hold, what they refuse to stand beside, `run --as`, and their wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ci.__main__ import main as ci
from ci.wheel import wheel
from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.doctor.clients import fa2_names
from flash_attn3_sm121.fa2 import names
from flash_attn3_sm121.files import put_file
from tests.environments import Environment

ROOT = Path(__file__).parents[2]
PROBE = """
import importlib.metadata as m, json, torch
import flash_attn, flash_attn_2_cuda
import flash_attn.bert_padding, flash_attn.layers.rotary, flash_attn.modules.mha, flash_attn.ops.triton.rotary
import flash_attn.utils.distributed
from flash_attn import flash_attn_func
from flash_attn.flash_attn_interface import flash_attn_cuda, flash_attn_gpu, maybe_contiguous, round_multiple
assert maybe_contiguous(None) is None and round_multiple(129, 128) == 256  # XTuner's, beside flash_attn_gpu
assert flash_attn_gpu.varlen_bwd is flash_attn_cuda.varlen_bwd is flash_attn_2_cuda.varlen_bwd
x = torch.randn(1, 4, 2, 16)
shape = list(flash_attn_func(x, x, x, 0.0, None, True).shape)
tops = m.packages_distributions()
versions = [m.version("flash-attn"), flash_attn.__version__]
print(json.dumps([*versions, tops["flash_attn"], tops["flash_attn_2_cuda"], shape]))
"""
FOUND = ["2.8.3", "2.8.3", ["flash_attn"], ["flash_attn"], [1, 4, 2, 16]]


def real(folder: Path) -> str:
    """A folder of an import path with somebody else's flash_attn in it."""
    (folder / "flash_attn").mkdir(parents=True)
    (folder / "flash_attn" / "__init__.py").write_text('__version__ = "2.7.4"\n', encoding="utf-8")
    return str(folder)


def newer(folder: Path) -> str:
    """FlashAttention-4 has no __init__.py: its `flash_attn` is a namespace with `cute` in it."""
    (folder / "flash_attn" / "cute").mkdir(parents=True)
    (folder / "flash_attn" / "cute" / "__init__.py").touch()
    return str(folder)


def run(code: str, *options: str, path: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Python code by `flash-attn3 run`, in a process whose PYTHONPATH has these folders."""
    return subprocess.run(
        [sys.executable, "-m", "flash_attn3_sm121", "run", *options, "--", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *path))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_run_as_serves_every_name_without_installing_any() -> None:
    done = run(PROBE, "--as", "flash_attn")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == FOUND


def test_run_as_reaches_pythons_that_have_no_package_of_ours(tmp_path: Path) -> None:
    """As where flash-attn3 is a tool with an environment of its own (uv tool, pipx)."""
    code = (
        f"import sys; sys.path.remove({str(ROOT)!r}); import flash_attn3_sm121, flash_attn.bert_padding; print('ours')"
    )
    command = [sys.executable, "-m", "flash_attn3_sm121", "run", "--as", "flash_attn", "--", sys.executable, "-c", code]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "ours\n", done.stderr


def test_by_default_there_is_no_such_name() -> None:
    done = run("import flash_attn")
    assert "No module named 'flash_attn'" in done.stderr


def test_run_as_reaches_through_an_empty_environment() -> None:
    code = "import flash_attn; print(flash_attn.__version__)"
    command = [sys.executable, "-m", "flash_attn3_sm121", "run", "--as", "flash_attn", "--"]
    done = subprocess.run(
        [*command, "env", "-i", f"PYTHONPATH={ROOT}", sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "2.8.3\n", done.stderr


@pytest.mark.parametrize(("other", "said"), [(real, "is not flash_attn3_sm121's"), (newer, "FlashAttention-4 is")])
def test_another_flash_attn_is_refused_before_and_at_the_import(tmp_path: Path, other: object, said: str) -> None:
    assert callable(other)
    folder = other(tmp_path / "theirs")
    before = run("print('ran')", "--as", "flash_attn", path=(folder,))
    assert before.returncode == 32 and before.stdout == ""
    assert said in before.stderr and "-m pip uninstall -y flash_attn" in before.stderr
    code = f"import sys; sys.path.append({folder!r})\nimport flash_attn"
    late = run(code, "--as", "flash_attn")
    assert late.returncode == 1 and "ImportError: " in late.stderr and said in late.stderr


def test_what_stands_where_and_who_is_in_the_way(tmp_path: Path) -> None:
    ours, theirs, cute = str(names.FOLDER), real(tmp_path / "real"), newer(tmp_path / "cute")
    whole = real(tmp_path / "whole")  # FlashAttention-2's own files have a `cute` as well
    (Path(whole) / "flash_attn" / "cute").mkdir()
    assert names.conflict([ours, str(tmp_path), ours]) is None
    assert [found.ours for found in names.look([ours, theirs])] == [True, False]
    for path, said in (([ours, theirs], "is installed"), ([ours, cute], "FlashAttention-4"), ([whole], "two of that")):
        assert said in str(names.conflict(path))


def test_doctor_says_who_serves_the_name(tmp_path: Path) -> None:
    ours, theirs = str(names.FOLDER), real(tmp_path / "real")
    absent, mine, other, both = (fa2_names(path) for path in ([], [ours], [theirs], [ours, theirs]))
    assert "--as flash_attn" in absent.gets and absent.problem is None
    assert mine.ours and mine.problem is None
    assert not other.ours and other.problem is None and "another package's" in other.gets
    assert both.problem is not None and both.fix is not None


def test_the_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ci(["wheel-fa2", "--output", str(tmp_path / "a")]) == 0
    assert "flash_attn-2.8.3-py3-none-any.whl" in capsys.readouterr().out
    assert ci(["wheel-fa2", "--output", str(tmp_path / "b")]) == 0
    first, second = (next((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        described = archive.read("flash_attn-2.8.3.dist-info/METADATA").decode()
        inside = {name for name in archive.namelist() if name.endswith(".py")}
    assert f"\nRequires-Dist: flash_attn3_sm121=={__version__}\n" in described
    assert "\nName: flash_attn\nVersion: 2.8.3\n" in described and "Provides-Extra" not in described
    assert inside == {path.relative_to(names.FOLDER).as_posix() for path in names.FOLDER.rglob("*.py")}


def test_a_build_beside_another_flash_attn_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(real(tmp_path / "theirs"))
    assert ci(["wheel-fa2", "--output", str(tmp_path / "out")]) == 32
    assert "two of that name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_pip_installs_it_over_ours_and_takes_it_away(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    name = wheel.pure_name()
    files = wheel.wheel_files(name, libraries={}, licenses=wheel.license_files(()))
    environment.install(put_file(tmp_path / name.file, wheel.wheel_bytes(name, files)))
    before = environment.files()
    assert ci(["wheel-fa2", "--output", str(tmp_path)]) == 0
    # Without --no-deps: the one distribution that it wants is there, in exactly its version.
    environment.pip("install", "--no-index", str(tmp_path / "flash_attn-2.8.3-py3-none-any.whl"))
    assert json.loads(environment.run(PROBE)) == FOUND
    (environment.site / "flash_attn" / "cute").mkdir()
    assert "FlashAttention-4 is installed" in environment.run(
        "try:\n    import flash_attn\nexcept ImportError as error:\n    print(error)"
    )
    (environment.site / "flash_attn" / "cute").rmdir()
    environment.pip("uninstall", "-y", "flash_attn")
    assert environment.files() == before
