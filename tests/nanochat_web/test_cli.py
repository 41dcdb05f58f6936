"""What the command line says where something is missing: what was looked for, and the next command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nanochat_web.harness import SERVE, World, running

Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ask(world: World) -> Ask:
    def go(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(SERVE), *arguments],
            env=world.environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return go


def test_help_teaches(ask: Ask) -> None:
    done = ask("--help")
    assert done.returncode == 0
    assert "serve.py --nanochat ~/nanochat" in done.stdout and "flash-attn3 run" in done.stdout
    assert "--max-models" in done.stdout and "--allow-host" in done.stdout


def test_a_folder_that_is_not_there_or_no_checkout(ask: Ask, world: World) -> None:
    done = ask("--nanochat", str(world.root / "nowhere"))
    assert done.returncode == 2 and "there is no such folder" in done.stderr and "git clone" in done.stderr
    done = ask("--nanochat", str(world.base))
    assert done.returncode == 2 and f"expected {world.base}/nanochat/engine.py" in done.stderr


def test_its_python_is_missing_or_unfit(ask: Ask, world: World, tmp_path: Path) -> None:
    where = ("--nanochat", str(world.nanochat))
    done = ask(*where)
    assert done.returncode == 2 and f"{world.nanochat}/.venv/bin/python" in done.stderr and "uv sync" in done.stderr
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    broken.chmod(0o755)
    done = ask(*where, "--python", str(broken))
    assert done.returncode == 2 and "exit code 3: broken" in done.stderr
    fake = '{"version": [3, 9, 1], "torch": true, "kernels": true, "flash_attn3_sm121": true}'
    broken.write_text(f"#!/bin/sh\necho '{fake}'\n")
    done = ask(*where, "--python", str(broken))
    assert done.returncode == 2 and "Python 3.9, expected 3.10 or newer" in done.stderr
    broken.write_text(f"#!/bin/sh\necho '{fake.replace('9, 1', '10, 1').replace('true', 'false', 1)}'\n")
    done = ask(*where, "--python", str(broken))
    assert done.returncode == 2 and "has no torch" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--slots", "0"), "expected 1 or more, found 0"),
        (("--idle", "0"), "expected more than 0, found 0"),
        (("--token", "two words"), "printable ASCII characters without spaces"),
        (("--port", "99999"), "expected 0 to 65535, found 99999"),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1 port 0"),
    ],
)
def test_values_that_make_no_sense(world: World, arguments: tuple[str, ...], words: str) -> None:
    done = subprocess.run(
        world.command(*arguments), env=world.environ(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode in (2, 34) and words in done.stderr and "Traceback" not in done.stderr


def test_a_port_or_a_state_folder_in_use(world: World) -> None:
    with running(world) as server:
        for arguments, words in (
            (("--port", str(server.port)), "--port 0 takes any free one"),
            ((), f"in use by another server (process {server.process.pid})"),
        ):
            done = subprocess.run(
                world.command(*arguments), env=world.environ(), capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode in (2, 34) and words in done.stderr


def test_no_checkpoints_is_no_error_but_is_said(tmp_path: Path) -> None:
    world = World.make(tmp_path / "empty")
    with running(world) as server:
        assert "models      0" in server.log and str(world.base / "chatsft_checkpoints") in server.log
        assert "NANOCHAT_BASE_DIR" in server.log
        assert server.ask("/chat/completions", {"messages": [{"role": "user", "content": "x"}]})[0] == 404
        told = server.json("/models")
        assert told["models"] == [] and str(world.base / "base_checkpoints") in told["looked_at"]


def test_the_start_says_what_was_found(world: World) -> None:
    world.put("mid_checkpoints", "d1", 3).joinpath("meta_000003.json").write_text("{")
    with running(world) as server:
        assert server.url == f"http://127.0.0.1:{server.port}/"
        assert "models      3" in server.log and "cannot be loaded: mid/d1/3" in server.log
        assert "command     flash-attn3 run -- " in server.log and "worker.py --source sft --tag d12" in server.log


def test_the_server_needs_no_torch(world: World) -> None:
    """Nothing but what requirements.txt names, and the standard library."""
    code = f"import sys; sys.path[0] = {str(SERVE.parent.parent)!r}; sys.path.append({str(SERVE.parents[2])!r})\n"
    code += "sys.modules['torch'] = sys.modules['numpy'] = None\nimport nanochat_web.cli, nanochat_web.api"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_pins_are_those_of_the_tests_and_every_file_is_short() -> None:
    folder = SERVE.parent
    pins = [line for line in (folder / "requirements.txt").read_text().splitlines() if "==" in line]
    tested = (SERVE.parents[2] / "requirements-dev.txt").read_text().splitlines()
    assert len(pins) == 3 and set(pins) <= set(tested)
    files = [path for path in folder.rglob("*") if path.suffix in (".py", ".js", ".css", ".html")]
    assert len(files) > 20
    assert [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []
