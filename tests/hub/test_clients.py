"""Real versions of the `kernels` library, each in its own environment, through every transport that needs no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from flash_attn3_sm121.cli import main
from flash_attn3_sm121.hub.layout import KNOWN_REPOS
from flash_attn3_sm121.hub.patch import OverrideConfig
from flash_attn3_sm121.hub.run import environment
from flash_attn3_sm121.hub.seed import seed
from flash_attn3_sm121.hub.store import Hub
from tests.kernels_envs import VERSIONS, at_least, clean_environ, python_of

pytestmark = [pytest.mark.network, pytest.mark.slow]
REPOSITORY = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
OLDEST, *_, NEWEST = VERSIONS
EVERY_WAY = {"get", "get version", "get revision", "has", "has version"}
# Nothing may be fetched: whatever is found was already there.
CUT = {"HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}


def script(version: str, name: str, env: Mapping[str, str], *options: str) -> str:
    done = subprocess.run(
        [str(python_of(version)), str(CLIENTS / name), *options],
        env=dict(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{name} with kernels {version}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def works(version: str, env: Mapping[str, str], *options: str) -> tuple[set[str], dict[str, str]]:
    """The ways that gave a kernel, and every answer."""
    answers: dict[str, str] = json.loads(script(version, "probe.py", env, *options).splitlines()[-1])
    return {way for way, answer in answers.items() if answer == "yes"}, answers


def overridden(tmp_path: Path, hub: Hub | None = None) -> dict[str, str]:
    config = OverrideConfig(hub=None if hub is None else str(hub.layout.root))
    return environment(config, clean_environ(tmp_path, {**CUT, "PYTHONPATH": str(REPOSITORY)}))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_override_serves_every_version_every_way_without_a_network(version: str, tmp_path: Path) -> None:
    found, answers = works(version, overridden(tmp_path), "--gb10")
    assert found == EVERY_WAY, answers


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_it_does_where_torch_sees_no_gpu_too(version: str, tmp_path: Path) -> None:
    found, answers = works(version, overridden(tmp_path))
    assert found == EVERY_WAY, answers


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_nanochats_two_ways(version: str, tmp_path: Path) -> None:
    env = overridden(tmp_path)
    for name in ("nanochat_hardcoded.py", "nanochat_has_kernel.py"):
        assert "nanochat ok" in script(version, name, env)


@pytest.mark.parametrize("version", ["0.9.0", "0.13.0", "0.17.2"])
def test_the_override_serves_out_of_a_hub(version: str, tmp_path: Path, hub: Hub) -> None:
    env = overridden(tmp_path, hub)
    found, answers = works(version, env)
    assert found == EVERY_WAY, answers


@pytest.mark.parametrize("version", VERSIONS)
def test_local_kernels_covers_what_hub_env_says(
    version: str, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hub", "env", "--hub", str(hub.layout.root), "--dir", str(tmp_path / "out"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)["LOCAL_KERNELS"]
    found, answers = works(version, clean_environ(tmp_path, {**CUT, "LOCAL_KERNELS": value}), "--gb10")
    expected = set()
    if at_least(version, "0.13"):
        expected |= {"get version", "get revision"}
        expected |= {"has version"} if at_least(version, "0.17") else {"get"}
    assert found == expected, answers


@pytest.mark.parametrize("version", VERSIONS)
def test_a_seeded_cache_covers_what_hub_seed_says(version: str, tmp_path: Path, hub: Hub) -> None:
    seed(hub, hub.index(), sorted(KNOWN_REPOS), tmp_path / "hf" / "hub")
    found, answers = works(version, clean_environ(tmp_path, CUT), "--gb10")
    expected: set[str] = set()
    if not at_least(version, "0.13"):
        expected = {"get", "get revision"}
    elif at_least(version, "0.15"):
        expected = {"get version", "get revision"}
    if at_least(version, "0.17"):
        expected |= {"has version"}
    assert found == expected, answers


@pytest.mark.parametrize("from_hub", [False, True], ids=["installed", "hub"])
def test_sglangs_way_of_asking(tmp_path: Path, hub: Hub, from_hub: bool) -> None:
    """It names a revision, and installs this version of `kernels`."""
    code = (
        "import inspect\nfrom kernels import get_kernel\n"
        "kernel = get_kernel('kernels-community/sgl-flash-attn3', revision='v1')\n"
        "for function in (kernel.flash_attn_with_kvcache, kernel.flash_attn_varlen_func):\n"
        "    print({'sinks', 'only_qv', 'page_table', 'out'} <= set(inspect.signature(function).parameters))"
    )
    done = subprocess.run(
        [str(python_of("0.14.1")), "-c", code], env=overridden(tmp_path, hub if from_hub else None),
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout == "True\nTrue\n", done.stderr


@pytest.mark.parametrize("version", ["0.9.0", "0.12.3", "0.16.2", "0.17.2"])
def test_other_repositories_reach_the_real_function(version: str, tmp_path: Path) -> None:
    """With the network cut the real function fails in its own way, just as it does without the override."""
    code = (
        "from kernels import get_kernel\n"
        "try:\n    get_kernel('kernels-community/activation', revision='main')\n"
        "except BaseException as error:\n    print(type(error).__name__, str(error).splitlines()[0])"
    )
    answers = []
    for env in (overridden(tmp_path), clean_environ(tmp_path, CUT)):
        done = subprocess.run(
            [str(python_of(version)), "-c", code], env=env, capture_output=True, text=True, check=False, timeout=300
        )
        answers.append(done.stdout)
    assert answers[0] == answers[1] != ""


def test_the_command_line_as_a_user_types_it(tmp_path: Path) -> None:
    env = clean_environ(tmp_path, {**CUT, "PYTHONPATH": str(REPOSITORY)})
    command = [sys.executable, "-m", "flash_attn3_sm121", "run", "--", str(python_of("0.17.2"))]
    done = subprocess.run(
        [*command, str(CLIENTS / "nanochat_hardcoded.py")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout == "nanochat ok\n", done.stderr
    assert done.stderr.count("flash-attn3: get_kernel('varunneal/flash-attention-3') is served by") == 1
    assert os.environ.get("FLASH_ATTN3_OVERRIDE") is None
