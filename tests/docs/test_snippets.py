"""The Python of README.md and docs/clients.md, taken from the pages and run with the real packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import attention

from flash_attn3_sm121.api import activation
from flash_attn3_sm121.errors import BackendError
from tests.clients.envs import python_of, run
from tests.docs.pages import PAGES, ROOT, blocks, section
from tests.fakes.libraries import Kernels
from tests.fakes.torch_hook import hooked

CLIENTS = ROOT / "docs" / "clients.md"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("snippet.py")
NEWEST = "transformers-5.24"


def inline(start: str) -> str:
    """README's one piece of inline code that starts so."""
    (code,) = {found for found in re.findall(r"`([^`\n]+)`", README) if found.startswith(start)}
    return code


def in_client(client: str, kind: str, code: str, readme: str, folder: Path) -> dict[str, Any]:
    file = folder / "code.py"
    file.write_text(code, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return run(client, SCRIPT, kind, str(file), readme, home=folder)
    finally:
        os.chdir(before)


def test_readmes_python_runs() -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    assert len(block.strip().splitlines()) <= 9
    path = os.pathsep.join((str(ROOT), str(ROOT / "flash_attn3_sm121" / "_dropin")))
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", block], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "backend: " in done.stdout


def test_no_python_block_is_forgotten() -> None:
    found = {page.relative_to(ROOT).as_posix(): len(blocks(page, "python")) for page in PAGES}
    assert {name: count for name, count in found.items() if count} == {"README.md": 1, "docs/clients.md": 3}


@pytest.mark.network
@pytest.mark.slow
def test_transformers(tmp_path: Path) -> None:
    readme = inline("AutoModelForCausalLM.from_pretrained(")
    found = in_client(NEWEST, "transformers", section(CLIENTS, "transformers"), readme, tmp_path)
    assert found["new"] == [1, 40] and found["gap"] < 2e-2
    assert found["readme"] == "flash_attention_3" and found["calls"]


@pytest.mark.network
@pytest.mark.slow
def test_diffusers(tmp_path: Path) -> None:
    readme = inline("pipe.transformer.")
    found = in_client("diffusers-0.42", "diffusers", section(CLIENTS, "diffusers"), readme, tmp_path)
    assert found["gap"] < 3e-2 and found["calls"] == ["flash_attn_func"]
    assert found["readme"] > 0


@pytest.mark.network
@pytest.mark.slow
def test_the_transformers_example_for_real(tmp_path: Path) -> None:
    code = (ROOT / "examples" / "transformers_llama.py").read_text(encoding="utf-8")
    found = in_client(NEWEST, "example", code, "", tmp_path)
    assert found["code"] == 0 and found["calls"]


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_the_transformers_example_without_cuda_says_so() -> None:
    command = [str(python_of(NEWEST)), "transformers_llama.py"]
    done = subprocess.run(command, cwd=ROOT / "examples", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no CUDA device" in done.stdout


@hooked
def test_torchs_hook(native: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    restore = attention.restore_flash_attention_impl

    def watched(**keywords: bool) -> None:
        seen.append(attention.current_flash_attention_impl())
        restore(**keywords)

    monkeypatch.setattr(attention, "restore_flash_attention_impl", watched)
    names: dict[str, Any] = {}
    exec(section(CLIENTS, "Plain torch").replace('"cuda"', '"cpu"'), names)
    assert seen == [activation.IMPLEMENTATION]
    assert names["out"].shape == (1, 8, 256, 64)
    assert inline("flash_attn3_sm121.activate(") == "flash_attn3_sm121.activate()"


@hooked
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_torchs_hook_without_cuda_says_so() -> None:
    with pytest.raises(BackendError, match="torch sees no CUDA device here"):
        exec("import flash_attn3_sm121\n" + inline("flash_attn3_sm121.activate("), {})
