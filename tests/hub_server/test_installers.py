"""Real pip and real uv install from the served index, with hashes required."""

from __future__ import annotations

import html
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.store import Hub
from tests.hub.wheelmaker import write_wheel
from tests.hub_server.harness import PROJECT, Server, behind_nginx, environ, needs_nginx, running

TOKEN = "correct-horse-battery"
Install = Callable[[Path, list[str]], "subprocess.CompletedProcess[str]"]


def call(command: list[str], tmp: Path) -> subprocess.CompletedProcess[str]:
    """Nobody's pip or uv settings, nothing from a cache."""
    clean = {name: value for name, value in environ().items() if not name.startswith(("PIP_", "UV_"))}
    clean |= {"HOME": str(tmp), "PIP_CONFIG_FILE": "/dev/null", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    clean.pop("PYTHONPATH")
    return subprocess.run(command, env=clean, cwd=tmp, capture_output=True, text=True, timeout=300, check=False)


def pip(home: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install"]
    return call([*command, "--no-cache-dir", "--disable-pip-version-check", *arguments], home.parent)


def uv(home: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    program = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    assert program is not None, "uv is not installed: it is in requirements-dev.txt"
    command = [program, "pip", "install", "--no-config", "--no-cache", "--python", str(home / "bin" / "python")]
    return call([*command, *arguments], home.parent)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty virtual environment."""
    venv.create(tmp_path / "venv", with_pip=False)
    return tmp_path / "venv"


def wheel_for_here(hub: Hub) -> tuple[str, str]:
    """Version and hash of the wheel of this machine."""
    entries = hub.index().wheels
    entry = next(value for name, value in entries.items() if name.endswith(f"{platform.machine()}.whl"))
    return entry.version, entry.sha256


def installed(home: Path) -> str:
    script = f"import importlib.metadata as m; print(m.version('{PROJECT}'))"
    return call([str(home / "bin" / "python"), "-c", script], home.parent).stdout.strip()


@pytest.mark.parametrize("install", [pip, uv], ids=["pip", "uv"])
def test_install_with_hashes(server: Server, hub: Hub, home: Path, install: Install) -> None:
    version, sha256 = wheel_for_here(hub)
    requirements = home.parent / "requirements.txt"
    requirements.write_text(f"{PROJECT}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    done = install(home, ["--require-hashes", "--index-url", f"{server.url}/simple/", "-r", str(requirements)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(home) == version
    found = list(home.glob("lib/python*/site-packages/flash_attn3_sm121/lib/sm8x.json"))
    assert len(found) == 1


@pytest.mark.parametrize("install", [pip, uv], ids=["pip", "uv"])
def test_a_wrong_hash_stops_it(server: Server, hub: Hub, home: Path, install: Install) -> None:
    version, _ = wheel_for_here(hub)
    requirements = home.parent / "requirements.txt"
    requirements.write_text(f"{PROJECT}=={version} --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    done = install(home, ["--require-hashes", "--index-url", f"{server.url}/simple/", "-r", str(requirements)])
    assert done.returncode != 0
    assert installed(home) == ""


@pytest.mark.parametrize("install", [pip, uv], ids=["pip", "uv"])
def test_the_newest_by_name_through_a_token(hub: Hub, home: Path, install: Install) -> None:
    with running(hub.layout.root, "--access-log", env={"FLASH_ATTN3_HUB_TOKEN": TOKEN}) as server:
        host = server.url.removeprefix("http://")
        refused = install(home, ["--index-url", f"http://hub:wrong-{TOKEN}@{host}/simple/", PROJECT])
        assert refused.returncode != 0
        done = install(home, ["--index-url", f"http://hub:{TOKEN}@{host}/simple/", PROJECT])
        assert done.returncode == 0, done.stdout + done.stderr
    assert installed(home) == wheel_for_here(hub)[0]  # the local version sorts behind the bare one
    if install is uv or Version(importlib.metadata.version("pip")) >= Version("23.2"):  # Debian 12 has 23.0
        assert ".whl.metadata" in server.log  # PEP 658: decided without the wheel
    assert '.whl" 200 ' in server.log
    assert TOKEN not in server.log


@pytest.mark.parametrize("install", [pip, uv], ids=["pip", "uv"])
def test_the_line_on_the_page(server: Server, hub: Hub, home: Path, install: Install) -> None:
    """The page's own line for a requirements file pins the wheel and its hash; a GPU's own index offers it too."""
    version, sha256 = wheel_for_here(hub)
    line = f"flash_attn3_sm121=={version} \\\n    --hash=sha256:{sha256}"
    assert line in html.unescape(server.ask("/").text)
    (home.parent / "requirements.txt").write_text(line + "\n", encoding="utf-8")
    done = install(home, ["--no-deps", "--index-url", f"{server.url}/simple/sm121/", "-r", "requirements.txt"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(home) == version


@needs_nginx
@pytest.mark.parametrize("install", [pip, uv], ids=["pip", "uv"])
def test_two_publishes_behind_nginx_without_a_reload(own_hub: Hub, home: Path, install: Install) -> None:
    with behind_nginx(own_hub.layout.root, home.parent) as server:
        for number in ("", "3.0.1"):
            if number:
                publish(own_hub, judge([write_wheel(home.parent / "new", platform=None, version=number)]))
            entry = max(own_hub.index().wheels.values(), key=lambda wheel: (wheel.platform == "any", wheel.added))
            line = f"flash_attn3_sm121==={entry.version} \\\n    --hash=sha256:{entry.sha256}"
            assert line in html.unescape(server.ask("/").text), "the page's own line"
            (home.parent / "requirements.txt").write_text(line + "\n", encoding="utf-8")
            done = install(home, ["--require-hashes", "--index-url", f"{server.url}/simple/", "-r", "requirements.txt"])
            assert done.returncode == 0, done.stdout + done.stderr
            assert installed(home) == entry.version
    assert installed(home) == "3.0.1"
