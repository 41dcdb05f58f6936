"""Toolchains: the pins, the cache's seal, versions and compilers judged, installed toolkits looked over."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ci.index import Wanted
from ci.settings import this_machine
from ci.sources.treeid import scan, tree_id
from ci.toolchain import resolve, torch_headers
from ci.toolchain.hostcxx import candidates, find_cxx, refusal
from ci.toolchain.installed import nvcc_version
from ci.toolchain.pins import FILE, Package, Pins, TorchHeaders, read_pins
from flash_attn3_sm121.errors import FetchError, ToolchainError
from tests.fakes.serving import Index, make_wheel, pip_looks_at, serving
from tests.fakes.worlds import said, settings_of

NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n"
ROOT = {
    "bin/nvcc": NVCC,
    "bin/ptxas": "",
    "bin/cuobjdump": "",
    "bin/nvdisasm": "",
    "include/crt/host_config.h": "#if __GNUC__ > 15\n",
    "lib/libcudart_static.a": "",
}
needs_cxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")


def package_of(folder: Path, project: str, arch: str, files: dict[str, str]) -> Wanted:
    inside = {f"nvidia/cu13/{path}": text for path, text in files.items()}
    return make_wheel(folder, project, f"py3-none-linux_{arch}", {**inside, "nvidia/x.py": "", "a.pth": ""})


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pins:
    """A compiler in two packages for each machine, in the folder `index`; the headers' wheel is not there."""
    pip_looks_at(monkeypatch, links=tmp_path / "index")
    rest = {path: text for path, text in ROOT.items() if not path.startswith("lib/")}
    runtime = {"lib/libcudart_static.a": ""}
    machines = ("aarch64", "x86_64")
    packages = [
        Package(
            project=project, version="1.0", wheels={m: package_of(tmp_path / "index", project, m, f) for m in machines}
        )
        for project, f in (("the-nvcc", rest), ("the-runtime", runtime))
    ]
    return replace(read_pins(), packages=tuple(packages), runtime="the-runtime")


@needs_cxx
def test_a_toolchain_is_made_once_and_healed_when_tampered_with(tmp_path: Path, pins: Pins) -> None:
    def get() -> str:
        settings = settings_of(tmp_path / "cache", offline=True)
        found = resolve(settings, pins=pins)
        assert found.version == (13, 0)
        assert os.access(found.nvcc, os.X_OK)
        assert (found.cudart_dir / "libcudart_static.a").is_file()
        assert not (found.root / "x.py").exists()
        return said(settings)

    assert "unpacking" in get()
    warm = get()
    assert "from the cache" in warm
    assert "unpacking" not in warm
    nvcc = next((tmp_path / "cache").glob("toolchains/*/root/bin/nvcc"))
    nvcc.chmod(0o755)
    nvcc.write_text(NVCC + "# more\n")
    nvcc.chmod(0o555)
    assert "damaged in the cache, fetched again: root/bin/nvcc: changed" in get()
    (nvcc.parent / "new").write_text("")
    assert "root/bin/new: extra" in get()
    nvcc.unlink()
    assert "root/bin/nvcc: missing" in get()


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, pins: Pins) -> None:
    with (tmp_path / "index" / pins.packages[0].wheels[str(this_machine().platform)].filename).open("ab") as file:
        file.write(b"?")
    with pytest.raises(FetchError, match="Expected sha256"):
        resolve(settings_of(tmp_path / "c", offline=True), pins=pins)
    assert not list((tmp_path / "c").glob("toolchains/*"))


def test_the_pins_are_for_both_machines_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    pins = read_pins()
    assert pins.cuda == (13, 0)
    assert {package.project: package.version for package in pins.packages}["nvidia-cuda-nvcc"] == "13.0.88"
    shutil.copytree(FILE.parent, tmp_path / "t")
    copy = tmp_path / "t" / FILE.name
    data = json.loads(copy.read_text())
    del data["packages"][1]["wheels"]["aarch64"]
    copy.write_text(json.dumps(data))
    with pytest.raises(ToolchainError, match=r"nvidia-nvvm\.wheels: expected \('aarch64', 'x86_64'\)"):
        read_pins(copy)


def test_which_compilers_are_tried_and_taken() -> None:
    assert candidates("x86_64", "x86_64", newest=11) == ["g++", "g++-11", "g++-10", "g++-9"]
    assert candidates("x86_64", "aarch64", newest=9) == ["aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-9"]
    assert refusal("g++", "12.2.0", newest=15) is None
    assert refusal("g++", "16.1.0", newest=15) == "g++ is version 16.1.0; this CUDA wants 9 to 15"
    assert refusal("g++", "8", newest=15) is not None


def test_no_compiler_gives_the_apt_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crt").mkdir()
    (tmp_path / "crt" / "host_config.h").write_text("#if __GNUC__ > 15\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    for target, package in (("x86_64", "g++"), ("aarch64", "g++-aarch64-linux-gnu")):
        with pytest.raises(ToolchainError, match="is not installed") as caught:
            find_cxx("x86_64", target, settings_of(tmp_path / "c"), include=tmp_path)
        assert f"sudo apt-get install {package}" in str(caught.value)


@needs_cxx
def test_an_installed_toolkit(tmp_path: Path) -> None:
    home = tmp_path / "cuda"
    for path, text in ROOT.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text)
    (home / "bin/nvcc").chmod(0o755)
    found = resolve(settings_of(tmp_path / "c"), cuda_home=home)
    assert (found.version, found.origin) == ((13, 0), str(home))
    (home / "bin/nvcc").write_text(NVCC.replace("13.0", "12.8"))
    other = resolve(settings_of(tmp_path / "c"), cuda_home=home)
    assert other.version == (12, 8)
    assert other.fingerprint != found.fingerprint
    (home / "bin/nvdisasm").unlink()
    (home / "lib/libcudart_static.a").unlink()
    with pytest.raises(ToolchainError, match=r"lacks: bin/nvdisasm, libcudart_static\.a"):
        resolve(settings_of(tmp_path / "c"), cuda_home=home)


def test_an_nvcc_without_a_version_is_an_error() -> None:
    with pytest.raises(ToolchainError, match="names no release"):
        nvcc_version("hello")


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "whole wheel"])
def test_headers_are_proven_and_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool) -> None:
    inside = {name: name for name in ("t/include/a/x.h", "t/include/b/y.h", "t/lib/z.so")}
    wheel = make_wheel(tmp_path, "the-project", "cp310-cp310-linux_aarch64", inside)
    (tmp_path / "want" / "a").mkdir(parents=True)
    (tmp_path / "want" / "a" / "x.h").write_text("t/include/a/x.h")
    files = tuple(scan(tmp_path / "want"))
    pin = TorchHeaders(wheel=wheel, version="1.0", prefix="t/include", folders=("a",), id=tree_id(files), files=files)
    pins = replace(read_pins(), torch_headers=pin)
    with serving(Index(files={wheel.filename: (tmp_path / wheel.filename).read_bytes()}, ranges=ranges)) as index:
        pip_looks_at(monkeypatch, index=index.url)
        settings = settings_of(tmp_path / "c")
        found = torch_headers(settings, pins=pins)
        assert ("fetching the whole wheel instead" in said(settings)) is not ranges
        assert [path.name for path in found.folder.rglob("*.h")] == ["x.h"]
        (found.folder / "a" / "more.h").write_text("")
        torch_headers(settings, pins=pins)
        assert "damaged in the cache, fetched again: extra: a/more.h" in said(settings)
        wrong = replace(pins, torch_headers=replace(pin, folders=("b",)))
        with pytest.raises(FetchError, match=r"are not the pinned tree .*missing: a/x\.h; extra: b/y\.h"):
            torch_headers(settings_of(tmp_path / "d"), pins=wrong)
