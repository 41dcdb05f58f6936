"""Writing wheels: names, layout, metadata that installers accept, and the same bytes whatever the time and place."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.utils import parse_wheel_filename

from ci.commands import frontend
from ci.wheel import metadata, wheel
from ci.wheel.wheel import WheelName
from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.hub.cli import EXTRA
from flash_attn3_sm121.hub.wheelfile import read_wheel
from tests.fakes.clone import copy_clone
from tests.hub.wheelmaker import write_wheel

ROOT = wheel.ROOT
NATIVE = WheelName.native(
    pin="3effce8", targets=["12.0", "12.1+PTX"], profile="nanochat", proxy=False, platform_tag="manylinux_2_34_aarch64"
)


def test_names() -> None:
    assert NATIVE.file == (
        f"flash_attn3_sm121-{__version__}+g3effce8.120.121ptx.nanochat-py3-none-manylinux_2_34_aarch64.whl"
    )
    name, version, _, tags = parse_wheel_filename(NATIVE.file)
    assert name == "flash-attn3-sm121" and str(version) == NATIVE.version
    assert {str(tag) for tag in tags} == {"py3-none-manylinux_2_34_aarch64"}
    proxy = WheelName.native(pin="3effce8", targets=["12.1"], profile="smoke", proxy=True, platform_tag="any")
    assert proxy.version.endswith(".smoke.proxy")


def test_the_wheel_is_the_same_at_another_time_in_another_place(tmp_path: Path) -> None:
    project = tmp_path / "other place"
    for name in ("flash_attn3_sm121", "LICENSE", "README.md", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            project.mkdir(exist_ok=True)
            shutil.copyfile(source, project / name)
    for path in project.rglob("*"):
        os.utime(path, (time.time() - 1e6, time.time() - 1e6))
    made = []
    for root in (ROOT, project):
        files = wheel.wheel_files(
            NATIVE, libraries={"x.so": b"\x7fELF"}, licenses=wheel.license_files((), root), root=root
        )
        made.append(wheel.wheel_bytes(NATIVE, files))
    assert made[0] == made[1]
    with zipfile.ZipFile(io.BytesIO(wheel.wheel_bytes(NATIVE, files))) as archive:
        infos = archive.infolist()
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    names = [info.filename for info in infos]
    assert names[:-1] == sorted(names[:-1]) and names[-1].endswith(".dist-info/RECORD")


def test_stray_files_stay_out(tmp_path: Path) -> None:
    package = tmp_path / "flash_attn3_sm121"
    for name in ("__init__.py", "lib/old.so", "__pycache__/x.pyc", ".hidden/x.py", "hub/a.py", "hub/.x.swp"):
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="ascii")
    files = wheel.package_files(tmp_path)
    assert sorted(files) == [
        "flash_attn3_sm121.pth", "flash_attn3_sm121/__init__.py", "flash_attn3_sm121/hub/a.py"
    ]  # fmt: skip
    assert files["flash_attn3_sm121.pth"] == b"flash_attn3_sm121/_dropin\n"


def test_metadata_is_what_pyproject_says() -> None:
    project = metadata.read_project(ROOT)
    text = metadata.metadata(project, version="1.0+x", licenses=("LICENSE",))
    parsed = Metadata.from_email(text.encode())
    assert parsed.name == "flash_attn3_sm121" and str(parsed.version) == "1.0+x"
    assert parsed.license_expression == "BSD-3-Clause"
    (torch,) = (item.specifier for item in parsed.requires_dist or [] if item.name == "torch")
    assert not torch.contains("2.8.0+cu129") and torch.contains("2.9.0")
    # What NVIDIA's containers and nightly builds have stays where it is installed; none is chosen for an install.
    for version in ("2.9.0a0+145a3a7bda.nv25.10", "2.10.0a0+b4e4ee81d3.nv25.12", "2.13.0.dev20261101+cu130"):
        assert torch.contains(version, prereleases=True) and not torch.contains(version)
    assert Parser().parsestr(text).get_payload() == project.readme
    assert "flash-attn3 = flash_attn3_sm121.cli:main" in metadata.entry_points(project)


def test_extras_keep_their_markers(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("about", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname="x"\ndescription="d"\nreadme="README"\nrequires-python=">=3.10"\nlicense="MIT"\n'
        '[project.optional-dependencies]\nsign=["cryptography>=42", "a; python_version < \'3.11\'"]\n',
        encoding="utf-8",
    )
    text = metadata.metadata(metadata.read_project(tmp_path), version="1", licenses=())
    assert 'Requires-Dist: cryptography>=42 ; extra == "sign"' in text
    assert "Requires-Dist: a ; (python_version < '3.11') and extra == \"sign\"" in text
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be used for a wheel"):
        metadata.read_project(tmp_path)


def test_file_names_that_record_cannot_hold() -> None:
    with pytest.raises(UsageError, match="comma or a quote"):
        wheel.record({"a,b": b""}, info="x.dist-info")


@pytest.mark.parametrize(("value", "skips"), [("1", True), ("true", True), ("0", False), ("", False), ("no", False)])
def test_skip_cuda(value: str, skips: bool) -> None:
    assert frontend.skips_cuda({"FLASH_ATTN3_SKIP_CUDA": value}) is skips


def test_version_of_a_build_is_known_without_building() -> None:
    assert frontend.version({"FLASH_ATTN3_SKIP_CUDA": "1"}) == __version__
    env = {"TORCH_CUDA_ARCH_LIST": "9.0 12.1", "FLASH_ATTN3_PROFILE": "full"}
    assert frontend.version(env) == f"{__version__}+g3effce8.90a.121.full"


@pytest.mark.slow
def test_pip_installs_the_pure_package(tmp_path: Path) -> None:
    """Real pip, through setup.py: installs, runs, is found under both names, and leaves nothing behind."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    env = {**os.environ, "FLASH_ATTN3_SKIP_CUDA": "1"}
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"
    copy_clone(source, without=("wheels", "tests"))
    subprocess.run([*pip, "wheel", *options, "-w", str(tmp_path / "w"), str(source)], env=env, check=True)
    (made,) = (tmp_path / "w").iterdir()
    judged = read_wheel(made)
    assert made.name == f"flash_attn3_sm121-{__version__}-py3-none-any.whl" and judged.verify == "no-library"
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", *options, str(made)], check=True)
    code = (
        "import importlib.metadata as m, importlib.util as u\n"
        "print(m.version('flash_attn_3'), u.find_spec('flash_attn_interface').origin)"
    )
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert said.startswith("3.0.0 ") and "_dropin" in said
    version = subprocess.run([home / "bin" / "flash-attn3", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in version.stdout
    subprocess.run([*pip, "--python", str(python), "uninstall", "-y", "flash_attn3_sm121"], check=True)
    assert not [path for path in home.glob("lib/python*/site-packages/**/*") if path.is_file()]


def test_the_build_environment_can_publish(tmp_path: Path) -> None:
    """`make wheel` publishes with the Python that it builds with, which has what requirements-build.txt names alone."""
    lines = (ROOT / "requirements-build.txt").read_text(encoding="utf-8").splitlines()
    there = {line.split("==")[0].replace("-py", "").replace("-", "_") for line in lines if "==" in line}
    code = (
        "import sys\n"
        "for name in sys.argv[1].split(): sys.modules[name] = None\n"
        "from flash_attn3_sm121.cli import main\n"
        "sys.exit(main(['hub', 'publish', sys.argv[2]]))\n"
    )
    wheel_file = write_wheel(tmp_path)
    words = [sys.executable, "-c", code, " ".join(EXTRA - there), str(wheel_file)]
    env = {**os.environ, "FLASH_ATTN3_HUB": str(tmp_path / "hub")}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
