"""The real client packages, their own detection functions and their own call paths, against an install of ours.

What had to be faked is said in each probe script. Each package lives in an environment of its own, in the cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients.envs import TRANSFORMERS, run

HERE = Path(__file__).parent
pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module", params=TRANSFORMERS)
def transformers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("home")
    return run(request.param, HERE / "probe_transformers.py", home=home) | {"client": request.param}


def test_transformers_detects_us(transformers: dict[str, Any]) -> None:
    assert transformers["detected"] is True
    assert transformers["client"].endswith(".".join(transformers["version"].split(".")[:2]))


def test_transformers_asks_for_cuda_first(tmp_path: Path) -> None:
    """So that nobody wonders: on a machine without CUDA it says no, whatever is installed."""
    assert run(TRANSFORMERS[-1], HERE / "probe_transformers.py", "--detect", home=tmp_path) == {"detected": False}


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_tiny_model_equals_eager(transformers: dict[str, Any], name: str) -> None:
    assert max(transformers[name].values()) < 1e-5


def test_tiny_model_in_bf16(transformers: dict[str, Any]) -> None:
    assert max(transformers["llama_bf16"].values()) < 2e-2


def test_sliding_window_arrives_two_sided(transformers: dict[str, Any]) -> None:
    """sliding_window=8 comes as (7, 7) with causal=True: the right side must be clamped, and the models agree."""
    assert transformers["windows"] == [[7, 7]]


def test_packed_documents(transformers: dict[str, Any]) -> None:
    assert transformers["packed"] < 1e-5
    assert transformers["packed_lengths"] in (["int"], ["Tensor"])
    if transformers["client"] != "transformers-4.57":
        assert transformers["packed_lengths"] == ["Tensor"]  # a 0-d tensor


def test_generation_gives_the_same_tokens(transformers: dict[str, Any]) -> None:
    mine, eager = transformers["generated"]
    assert mine == eager


def test_training_gives_the_same_gradients(transformers: dict[str, Any]) -> None:
    assert transformers["trained"] < 1e-5


def test_attention_sinks_are_not_ignored(transformers: dict[str, Any]) -> None:
    """4.57 runs GPT-OSS through the package and passes s_aux; later ones insist on a kernel of the hub for it."""
    if transformers["client"] == "transformers-4.57":
        assert transformers["sinks_passed"] is True
        assert max(transformers["gpt_oss"].values()) < 1e-5
    else:
        assert "kernels" in transformers["gpt_oss"]["refused"]


def test_the_gpu_tests_stage_agrees_and_finds_a_lost_window(tmp_path: Path) -> None:
    """`gpu-test` runs these cases on a device; whether they compare anything shows here."""
    right: dict[str, Any] = run(TRANSFORMERS[-1], HERE / "probe_gputest.py", home=tmp_path)
    assert len(right) == 6 and all(all(findings) and findings for findings in right.values())
    spoilt: dict[str, Any] = run(TRANSFORMERS[-1], HERE / "probe_gputest.py", "--spoil", home=tmp_path)
    assert {name for name, findings in spoilt.items() if not all(findings)} == {n for n in right if "window" in n}


def test_transformers_continuous_batching(tmp_path: Path) -> None:
    """Decode batches are padded to powers of two with rows of cache_seqlens -1; they killed the process once."""
    report: dict[str, Any] = run("transformers-5.24", HERE / "probe_batching.py", home=tmp_path)
    assert report["got"] == report["want"] and [len(tokens) for tokens in report["got"]] == [8, 8, 8]
    assert report["decoded"] > 0 and report["padded"] > 0


def test_diffusers(tmp_path: Path) -> None:
    report: dict[str, Any] = run("diffusers-0.42", HERE / "probe_diffusers.py", home=tmp_path)
    assert (report["detected"], report["imported"]) == (True, True)
    assert report["dense"] < 1e-5
    assert report["lse_shape"] == [2, 12, 4]
    out, plain, layout, *gradients = report["hub"]
    assert max(out, plain, *gradients) < 1e-5
    assert layout == 1.0


def test_diffusers_that_defines_our_op_itself(tmp_path: Path) -> None:
    """0.35 has `flash_attn_3::_flash_attn_forward` of its own, with three arguments."""
    report: dict[str, Any] = run("diffusers-0.35", HERE / "probe_diffusers_op.py", home=tmp_path)
    assert report["detected"] is True
    assert report["arguments"] == 3
    assert max(report["dense"], report["ours"]) < 1e-5


def test_wan(tmp_path: Path) -> None:
    """Its `[0]` meant a pair's first half, and takes a tensor's first token."""
    report: dict[str, Any] = run("wan-2.2", HERE / "probe_wan.py", home=tmp_path)
    assert report.pop("detected") is True
    assert max(report.values()) < 2e-2


def test_programs_of_images_and_videos(tmp_path: Path) -> None:
    report: dict[str, Any] = run("diffusion", HERE / "probe_diffusion.py", home=tmp_path)
    assert len(report) == 10 and max(report.values()) < 2e-2


def test_yunchang(tmp_path: Path) -> None:
    report: dict[str, Any] = run("yunchang-0.6", HERE / "probe_yunchang.py", home=tmp_path)
    assert set(report) == {"ulysses", "ring"} and max(report.values()) < 5e-2


def test_transformer_engine(tmp_path: Path) -> None:
    report: dict[str, Any] = run("transformer-engine-2.20", HERE / "probe_engine.py", home=tmp_path)
    assert report["version"] == "3.0.0"
    assert report["softcap"] is True
    assert report["devices"] == [True, False]  # 9.0 and 12.1
    assert report["out"] < 1e-5
    assert report["gradients"] < 1e-5
