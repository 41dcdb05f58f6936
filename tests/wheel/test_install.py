"""Real pip: what a wheel of ours leaves in an environment, beside an upstream package and after an uninstall."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from ci.wheel import wheel
from flash_attn3_sm121.files import put_file
from tests.environments import Environment

pytestmark = pytest.mark.slow

PROBE = """
import importlib, importlib.metadata as m, importlib.util, json
found = {"transformers_4_57": m.version("flash_attn_3"), "te": m.version("flash-attn-3")}
found["spec"] = importlib.util.find_spec("flash_attn_3") is not None
found["distributions"] = sorted(set(m.packages_distributions().get("flash_attn_interface", [])))
found["origin"] = importlib.util.find_spec("flash_attn_interface").origin
found["version"] = importlib.import_module("flash_attn_3").__version__
found["config"] = sorted(importlib.import_module("flash_attn_config").CONFIG)
print(json.dumps(found))
"""
UPSTREAM = {
    "flash_attn_interface.py": b"def flash_attn_func(*args):\n    return 'upstream'\n",
    "flash_attn_config.py": b"CONFIG = {'build_flags': {}}\n",
    "flash_attn_3/__init__.py": b"__version__ = '3.0.0b1'\n",
}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "env")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = wheel.pure_name()
    files = wheel.wheel_files(name, libraries={}, licenses=wheel.license_files(()))
    return put_file(tmp_path_factory.mktemp("wheel") / name.file, wheel.wheel_bytes(name, files))


def upstream_like(folder: Path) -> Path:
    """A wheel that looks like upstream's: same names, an earlier version."""
    info = "flash_attn_3-3.0.0b1.dist-info"
    files: Mapping[str, bytes] = {
        **UPSTREAM,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: flash_attn_3\nVersion: 3.0.0b1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    import zipfile

    path = folder / "flash_attn_3-3.0.0b1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, f"{info}/RECORD": wheel.record(files, info=info)}.items():
            archive.writestr(name, data)
    return path


def test_install_is_found_by_every_way_of_looking_and_uninstall_leaves_nothing(
    environment: Environment, ours: Path
) -> None:
    before = environment.files()
    environment.install(ours)
    found = json.loads(environment.run(PROBE))
    assert found["transformers_4_57"] == found["te"] == found["version"] == "3.0.0"
    assert found["spec"] is True
    assert found["distributions"] == ["flash_attn_3"]
    assert found["origin"] == str(environment.site / "flash_attn3_sm121" / "_dropin" / "flash_attn_interface.py")
    assert found["config"] == ["build_flags"]
    out = environment.run(
        "import torch, flash_attn_3._C, flash_attn_3.flash_attn_interface as f\n"
        "x = torch.randn(1, 4, 2, 16)\n"
        "print(f.flash_attn_func(x, x, x).shape, torch.ops.flash_attn_3.fwd(x, x, x)[0].shape)"
    )
    assert out.split("\n")[0] == "torch.Size([1, 4, 2, 16]) torch.Size([1, 4, 2, 16])"
    assert str(environment.call([str(environment.folder / "bin" / "flash-attn3"), "explain"])).startswith("device: cpu")
    environment.pip("uninstall", "-y", "flash_attn3_sm121")
    assert environment.files() == before
    assert not (environment.folder / "bin" / "flash-attn3").exists()


def test_the_dropin_alone_can_be_uninstalled(environment: Environment, ours: Path) -> None:
    environment.install(ours)
    environment.pip("uninstall", "-y", "flash_attn_3")
    out = environment.run(
        "import importlib.util as u, flash_attn3_sm121\n"
        "print(u.find_spec('flash_attn_interface'), u.find_spec('flash_attn_3'))"
    )
    assert out.strip() == "None None"
    environment.pip("uninstall", "-y", "flash_attn3_sm121")
    assert not (environment.site / "flash_attn3_sm121").exists()


@pytest.mark.parametrize("first", ["upstream", "ours"])
def test_upstream_is_never_overwritten_and_the_conflict_is_named(
    environment: Environment, ours: Path, tmp_path: Path, first: str
) -> None:
    theirs = upstream_like(tmp_path)
    environment.install(theirs if first == "upstream" else ours)
    if first == "upstream":
        environment.install(ours)
    else:  # asking for another flash_attn_3 by name: pip sees ours as the installed one
        environment.pip("install", "--no-deps", "--no-index", "--force-reinstall", str(theirs))
    for name, data in UPSTREAM.items():
        assert (environment.site / name).read_bytes() == data
    assert environment.run("import flash_attn_interface as f; print(f.flash_attn_func())").strip() == "upstream"
    text = environment.call([str(environment.folder / "bin" / "flash-attn3"), "explain"])
    assert f"finds another package, {environment.site / 'flash_attn_interface.py'}, and not ours" in text
    assert "-m pip uninstall flash_attn_3" in text
    if first == "upstream":  # the command that was named does it
        environment.pip("uninstall", "-y", "flash_attn_3")
        assert "/_dropin/" in environment.run("import flash_attn_interface as f; print(f.__file__)")
