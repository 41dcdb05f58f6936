"""Real `kernels` clients of eight versions with nothing but HF_ENDPOINT set: they load, and it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import REPO, Server, running
from tests.kernels_envs import VERSIONS, at_least, clean_environ, run_python

pytestmark = pytest.mark.network

TOKEN = "correct-horse-battery"
COMMUNITY = "kernels-community/flash-attn3"
# A machine of capability 12.1 as torch would describe it. The tensors stay on the CPU, where the fallback computes.
FAKE_CUDA = """
import torch
torch.version.cuda = "13.0"
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda device=None: (12, 1)
"""
USE = """
import torch
from kernels import get_kernel, has_kernel
q, k, v = (torch.randn(1, 16, 2, 64, dtype=torch.bfloat16) for _ in range(3))
expected = torch.nn.functional.scaled_dot_product_attention(
    *(x.transpose(1, 2).float() for x in (q, k, v)), is_causal=True
).transpose(1, 2)
for repo, keywords in {asks!r}:
    assert has_kernel(repo, **keywords), (repo, keywords)
    kernel = get_kernel(repo, **keywords)
    for module in (kernel, kernel.flash_attn_interface):
        out = module.flash_attn_func(q, k, v, causal=True)
        assert out.dtype == torch.bfloat16 and torch.allclose(out.float(), expected, atol=2e-2)
    print("loaded", repo, keywords, kernel.__file__)
"""
ONE = USE.format(asks=[(REPO, {"version": 1})])


def idioms(version: str) -> list[dict[str, object]]:
    """The ways to ask that a version knows: bare to 0.14, with a whole number from 0.12 on, by branch always."""
    bare: list[dict[str, object]] = [{}] if not at_least(version, "0.15.0") else []
    number: list[dict[str, object]] = [{"version": 1}] if at_least(version, "0.12.0") else []
    return [*bare, *number, {"revision": "main"}]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_gets_its_kernel(server: Server, tmp_path: Path, version: str) -> None:
    asks = [(repo, keywords) for repo in (COMMUNITY, REPO) for keywords in idioms(version)]
    environ = clean_environ(tmp_path, {"HF_ENDPOINT": server.url})
    done = run_python(version, FAKE_CUDA + USE.format(asks=asks), environ)
    assert done.returncode == 0, done.stdout + done.stderr
    variant = "torch-universal" if version == "0.9.0" else "torch-cuda"
    assert done.stdout.count(f"/build/{variant}/") == done.stdout.count("loaded ") == len(asks)


@pytest.mark.parametrize("version", ["0.12.3", "0.17.2"])
def test_without_a_gpu_the_variant_of_torchs_build_is_taken(server: Server, tmp_path: Path, version: str) -> None:
    environ = clean_environ(tmp_path, {"HF_ENDPOINT": server.url})
    done = run_python(version, ONE, environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"/build/{'torch-cpu' if torch.version.cuda is None else 'torch-cuda'}/" in done.stdout


@pytest.mark.parametrize("version", ["0.12.3", "0.17.2"])
def test_the_token_travels_as_hf_token(hub: Hub, tmp_path: Path, version: str) -> None:
    with running(hub.layout.root, env={"FLASH_ATTN3_HUB_TOKEN": TOKEN}) as server:
        for token, works in ((None, False), (TOKEN, True)):
            folder = tmp_path / str(works)
            folder.mkdir()
            more = {"HF_TOKEN": token} if token else {}
            done = run_python(version, ONE, clean_environ(folder, {"HF_ENDPOINT": server.url, **more}))
            assert (done.returncode == 0) is works, done.stdout + done.stderr
    assert TOKEN not in server.log


def test_a_client_asks_nobody_else(server: Server, tmp_path: Path) -> None:
    """With every other address unreachable the newest client still works: all it needs is on the hub."""
    nowhere = "http://127.0.0.1:9"
    proxies = {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "ALL_PROXY": nowhere, "NO_PROXY": "127.0.0.1"}
    environ = clean_environ(tmp_path, {"HF_ENDPOINT": server.url, **proxies})
    done = run_python("0.17.2", ONE, environ)
    assert done.returncode == 0, done.stdout + done.stderr
