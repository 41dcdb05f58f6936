"""The hub as plain files: whole, replaceable, and enough for unmodified clients behind nginx."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.store import Hub
from tests.kernels_envs import clean_environ, python_of

pytest.importorskip("aiohttp")
from flash_attn3_sm121.hub.export import MARKER, export

REPO = "varunneal/flash-attention-3"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_every_file_of_every_repository_is_there(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "out"
    done = export(hub, target)
    index = hub.index()
    assert done.files == sum(len(files) for _, _, files in os.walk(target)) and done.wheels == 3
    for name, repo in index.repos.items():
        sha = repo.refs["main"]
        for prefix in ("", "kernels/"):
            for revision in (sha, "main", "v1"):
                root = target / prefix / name / "resolve" / revision
                found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
                assert found == set(hub.manifest(repo.revisions[sha].manifest).files)
        info = json.loads((target / "api/models" / name / "revision/main/index.json").read_text())
        assert info["sha"] == sha
        listing = json.loads((target / "api/kernels" / name / "tree" / sha / "build/index.json").read_text())
        assert [item["path"] for item in listing] == ["build/torch-cpu", "build/torch-cuda", "build/torch-universal"]
    overview = json.loads((target / "api/organizations/kernels-community/overview/index.json").read_text())
    assert overview["trustedKernelPublisher"] is True
    for name, wheel in index.wheels.items():
        assert (target / "files" / name).read_bytes() == hub.layout.object(wheel.sha256).read_bytes()
        assert f"#sha256={wheel.sha256}" in (target / "simple/flash-attn3-sm121/index.html").read_text()


def test_two_contents_never_share_an_etag_of_time_and_size(hub: Hub, tmp_path: Path) -> None:
    export(hub, tmp_path / "out")
    seen: dict[tuple[int, int], bytes] = {}
    for path in (tmp_path / "out" / REPO / "resolve/main").rglob("*"):
        if path.is_file():
            stat = path.stat()
            assert seen.setdefault((int(stat.st_mtime), stat.st_size), path.read_bytes()) == path.read_bytes()
    assert len(seen) > 30


def test_an_earlier_export_is_replaced_and_anything_else_refused(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "out"
    export(hub, target)
    (target / "stale").write_text("x")
    export(hub, target)
    assert not (target / "stale").exists() and (target / MARKER).is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out"]
    (target / MARKER).unlink()
    with pytest.raises(HubError, match="not empty and not an export"):
        export(hub, target)


def test_a_tampered_object_stops_it_and_leaves_the_old_one(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "out"
    export(hub, target)
    wheel = next(iter(hub.index().wheels.values()))
    path = hub.layout.object(wheel.sha256)
    path.chmod(0o644)
    path.write_bytes(b"evil")
    with pytest.raises(IntegrityError, match="tampered"):
        export(hub, target)
    assert (target / MARKER).is_file() and not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


def test_nothing_unsigned_is_handed_on_where_keys_are_configured(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    from flash_attn3_sm121.hub.maintain import sign
    from flash_attn3_sm121.hub.sign import SigningKey

    key = SigningKey.generate(tmp_path / "key")
    monkeypatch.setenv("FLASH_ATTN3_TRUSTED_KEYS", key.public)
    with pytest.raises(IntegrityError, match="not signed"):
        export(hub, tmp_path / "out")
    sign(hub, key)
    assert export(hub, tmp_path / "out").wheels == 3


@pytest.fixture
def served(hub: Hub, tmp_path: Path) -> Iterator[str]:
    """The export behind nginx, with the very configuration that the export wrote."""
    address = f"127.0.0.1:{free_port()}"
    export(hub, tmp_path / "out", listen=address)
    folders = "".join(
        f"{kind}_temp_path {tmp_path}/nginx-tmp; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.main"
    config.write_text(
        # pytest's folders are the user's alone, so the workers have to be that user.
        f"user {getpass.getuser()}; daemon off; pid {tmp_path}/nginx.pid;\n"
        f"error_log {tmp_path}/error.log;\nevents {{ }}\n"
        f"http {{ access_log off; {folders} include {tmp_path}/out/nginx.conf; }}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", str(config), "-p", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                break
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    yield f"http://{address}"
    process.terminate()
    process.communicate(timeout=30)


@needs_nginx
def test_nginx_gives_the_headers_that_huggingface_hub_needs(served: str, hub: Hub) -> None:
    sha = hub.index().repos[REPO].refs["main"]
    for revision in ("main", sha):
        with urllib.request.urlopen(f"{served}/{REPO}/resolve/{revision}/README.md") as answer:
            assert answer.headers["X-Repo-Commit"] == sha and answer.headers["ETag"]
            assert int(answer.headers["Content-Length"]) == len(answer.read())
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"{served}/kernels/{REPO}/resolve/main/kernel-status.toml")
    with missing.value as answer:
        assert answer.code == 404 and answer.headers["X-Error-Code"] == "EntryNotFound"


@needs_nginx
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.9.0", "0.13.0", "0.17.2"])
def test_real_clients_load_from_nginx(served: str, tmp_path: Path, version: str) -> None:
    probe = Path(__file__).parent / "clients" / "probe.py"
    done = subprocess.run(
        [str(python_of(version)), str(probe), "--gb10"],
        env=clean_environ(tmp_path, {"HF_ENDPOINT": served, "NO_PROXY": "127.0.0.1"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    answers = json.loads(done.stdout.splitlines()[-1])
    ways = {"get revision", *(("get", "has") if version == "0.9.0" else ("get version", "has version"))}
    assert {way for way in ways if answers[way] != "yes"} == set(), answers


@needs_nginx
def test_pip_installs_from_nginx_with_hashes(served: str, hub: Hub, tmp_path: Path) -> None:
    name, wheel = next((n, w) for n, w in hub.index().wheels.items() if w.platform == "any")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"flash_attn3_sm121=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--isolated",
        "--no-deps",
        "--require-hashes",
        "-r",
        "requirements.txt",
    ]
    done = subprocess.run(
        [*command, "-r", requirements.name, "--target", "site", "--no-cache-dir", "--index-url", f"{served}/simple/"],
        cwd=tmp_path,
        env=clean_environ(tmp_path, {"NO_PROXY": "127.0.0.1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert name in done.stdout and (tmp_path / "site/flash_attn3_sm121/__init__.py").is_file()
