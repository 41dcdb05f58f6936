"""Real packages that know FlashAttention-2 only, run by `flash-attn3 run --as flash_attn`.

What had to be faked is said in each probe script. Programs that are in no package index: test_programs_from_git.py.
"""

from __future__ import annotations

import platform
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from ci.index import Wanted
from ci.index.pages import download_file
from ci.settings import Settings
from flash_attn3_sm121.files import put_file
from tests.clients.envs import OPENRLHF, TRANSFORMERS, run, texts

HERE = Path(__file__).parent
SDIST = Wanted(
    project="flash-attn",
    filename="flash_attn-2.8.3.tar.gz",
    sha256="1e71dd64a9e0280e0447b8a0c2541bad4bf6ac65bdeaa2f90e51a9e57de0370d",
)
pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.mark.parametrize("client", [TRANSFORMERS[0], TRANSFORMERS[-1]])
def test_transformers(client: str, tmp_path: Path) -> None:
    found: dict[str, Any] = run(client, HERE / "probe_transformers.py", "--fa2", home=tmp_path, as_flash_attn=True)
    assert found["detected"] is True
    gaps = (*found["llama"].values(), *found["mistral"].values(), found["packed"], found["trained"])
    assert max(gaps) < 1e-5 and found["modernbert"] < 1e-4
    assert max(found["llama_bf16"].values()) < 2e-2
    assert found["windows"] == [[7, 7]] and set(found["dropout"]) == {0.0}
    assert found["generated"][0] == found["generated"][1]


def test_transformers_continuous_batching(tmp_path: Path) -> None:
    """Its decode batches have rows of padding for FlashAttention-2 as well."""
    found: dict[str, Any] = run(
        "transformers-5.24", HERE / "probe_batching.py", "--fa2", home=tmp_path, as_flash_attn=True
    )
    assert found["got"] == found["want"] and found["decoded"] > 0 and found["padded"] > 0


def test_ring_flash_attn(tmp_path: Path) -> None:
    found: dict[str, Any] = run("ring-flash-attn-0.1", HERE / "probe_ring.py", home=tmp_path, as_flash_attn=True)
    assert len(found) == 6 and max(found.values()) < 5e-2


def test_openrlhf_unpads_slices_and_gathers_a_batch(tmp_path: Path) -> None:
    """Its own file, over ring-flash-attn: it imports `flash_attn.bert_padding` and `flash_attn.utils.distributed`."""
    name = "openrlhf-0.11.2.data/purelib/openrlhf/models/ring_attn_utils.py"
    put_file(tmp_path / "ring_attn_utils.py", texts(OPENRLHF, name)[name].encode())
    script = HERE / "probe_openrlhf.py"
    found: dict[str, Any] = run("ring-flash-attn-0.1", script, str(tmp_path), home=tmp_path, as_flash_attn=True)
    assert found == {"rows": 0.0, "gradients": 0.0}


def test_x_transformers(tmp_path: Path) -> None:
    script = HERE / "probe_x_transformers.py"
    found: dict[str, Any] = run("x-transformers-2.26", script, home=tmp_path, as_flash_attn=True)
    assert found["out"] < 1e-5 and found["gradients"] < 1e-3


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the index has xformers for x86_64 alone")
@pytest.mark.skipif(Version(version("torch")) < Version("2.10"), reason="xformers 0.0.35 wants torch 2.10 or newer")
def test_xformers(tmp_path: Path) -> None:
    """Its op for FlashAttention-3 is for 9.0 at most, whatever is installed; its numbers are looked at all the same."""
    found: dict[str, Any] = run("xformers-0.0.35", HERE / "probe_xformers.py", home=tmp_path, as_flash_attn=True)
    assert found["version"] == "2.8.3" and found["newest GPU of its own op"] == [9, 0]
    for op in ("flash", "flash3"):
        assert len(found[op]) == 5 and max(found[op].values()) < 1e-2


def test_unsloth(tmp_path: Path) -> None:
    found: dict[str, Any] = run("unsloth-2026.10", HERE / "probe_unsloth.py", home=tmp_path, as_flash_attn=True)
    assert found["found"] is True and found["softcap"] is True
    assert found["backends"] == ["flash_dense", "flash_varlen"]
    assert found["implementation"] == "flash_attention_2"
    assert found["functions"] == "flash_attn3_sm121.fa2.interface"
    dense, packed = "flash_attn_func", "flash_attn_varlen_func"
    assert found["calls"] == [dense, packed, dense, dense, packed, packed]
    for model, cases in (("llama", 2), ("gemma2", 4)):
        assert len(found[model]) == cases and max(gap for gaps in found[model] for gap in gaps) < 2e-2


@pytest.mark.parametrize(
    ("client", "program"),
    [
        ("transformer-engine-2.20", "transformer_engine"),
        ("diffusers-0.42", "diffusers"),
    ],
)
def test_a_program_finds_the_names(client: str, program: str, tmp_path: Path) -> None:
    found: dict[str, Any] = run(client, HERE / "probe_fa2_programs.py", program, home=tmp_path, as_flash_attn=True)
    assert found.pop("found") is True
    if program == "diffusers":
        assert found["lse"] == [2, 4, 12] and found["gap"] < 1e-5
    else:
        assert "flash_attn_cuda_bwd" in found["names"] and "_flash_attn_varlen_bwd" in found["names"]


def test_flash_attentions_own_python_files(tmp_path: Path) -> None:
    """Signatures, bert_padding and the modules against the real 2.8.3; its code is fetched and never kept."""
    with tarfile.open(download_file(SDIST, tmp_path, Settings())) as archive:
        wanted = [m for m in archive if m.name.endswith(".py") and "/flash_attn/" in m.name and "/cute/" not in m.name]
        archive.extractall(tmp_path, members=wanted, filter="data")
    folder = tmp_path / SDIST.filename.removesuffix(".tar.gz")
    script = HERE / "probe_fa2_upstream.py"
    found: dict[str, Any] = run("x-transformers-2.26", script, str(folder), home=tmp_path, as_flash_attn=True)
    assert found["signatures"] == []
    assert found["padding"] == 0.0
    assert max(found["rotation"], found["generated"], *found["modules"].values()) < 1e-4
