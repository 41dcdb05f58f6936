"""The real thing: sources, compiler and headers from the configured index; then machine code for 12.1."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ci.__main__ import main
from ci.cache.folders import cache_root
from ci.toolchain import Toolchain, resolve
from flash_attn3_sm121.arch import CAPABILITIES
from tests.fakes.worlds import settings_of

KERNEL = "__global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }\nint main() { twice<<<1, 1>>>(nullptr); }\n"


@pytest.mark.network
@pytest.mark.slow
def test_from_an_empty_cache_and_again_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FA3_CACHE", str(tmp_path))
    monkeypatch.delenv("FA3_SOURCE", raising=False)
    assert main(["fetch", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["sources"]["route"] in {"sdist", "git"}
    assert main(["fetch", "--json", "--offline"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["sources"].pop("route") == "cache"
    del first["sources"]["route"]
    assert again == first
    assert not list((tmp_path / "downloads").iterdir())


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return resolve(settings_of(cache_root()))


@pytest.mark.network
@pytest.mark.nvcc
@pytest.mark.parametrize("name", list(CAPABILITIES))
def test_the_pinned_compiler_makes_code_for_each_target(toolchain: Toolchain, tmp_path: Path, name: str) -> None:
    target = CAPABILITIES[name].target
    (tmp_path / "twice.cu").write_text(KERNEL)
    code = f"arch={target.replace('sm', 'compute')},code={target}"
    command = [toolchain.nvcc, "-ccbin", toolchain.cxx, "-gencode", code, "-c", "twice.cu", "-o", "twice.o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        [toolchain.cuobjdump, "-lelf", "twice.o"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert f".{target}.cubin" in listed.stdout
    link = [toolchain.cxx, "twice.o", f"-L{toolchain.cudart_dir}", "-lcudart_static", "-ldl", "-lpthread", "-lrt"]
    subprocess.run([*link, "-o", "twice"], cwd=tmp_path, check=True)
