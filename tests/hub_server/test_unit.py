"""The systemd unit of docs/serving.md: what it starts is a command line of ours, and systemd itself takes it."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from flash_attn3_sm121.cli import PROGRAM
from flash_attn3_sm121.hub.server.cli import serve, to_config
from tests.hub_server.harness import ROOT


@pytest.fixture
def unit() -> str:
    found = re.search(r"```ini\n(.*?)```", (ROOT / "docs/serving.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_unit_starts_a_server_with_a_token(unit: str, tmp_path: Path) -> None:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(unit)
    program, *words = shlex.split(parsed["Service"]["ExecStart"])
    assert program.endswith("/bin/flash-attn3")
    token = tmp_path / "token"
    token.write_text("correct-horse-battery")
    args = PROGRAM.parser("hub").parse_args([str(token) if word == "/etc/hub-token" else word for word in words])
    assert args.hub_action is serve and to_config(args).token == "correct-horse-battery"
    assert int(parsed["Service"]["LimitNOFILE"]) > 2 * 4096, "two for each connection, and some more"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(unit: str, tmp_path: Path) -> None:
    file = tmp_path / "flash-attn3-hub.service"
    file.write_text(unit.replace("/opt/flash-attn3/bin/flash-attn3", "/bin/true").replace("User=hub", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and file.name not in done.stderr, done.stderr
