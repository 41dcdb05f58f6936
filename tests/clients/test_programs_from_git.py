"""Programs that are in no package index: their own files of attention, out of their repositories.

Wan2GP, kijai's nodes and LightX2V need nothing but the installed package. ComfyUI knows FlashAttention-2's names only,
HunyuanVideo-1.5 imports both, and XTuner takes the ones that it is told to take. What had to be faked is said in
probe_programs.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkouts import Checkout
from tests.clients.envs import run

HERE = Path(__file__).parent
PROGRAMS = {
    "kijai": Checkout(
        "https://github.com/kijai/ComfyUI-WanVideoWrapper",
        "721cd65e7b5224c70a3d20446d9d561f1732216b",  # 2025-03-04
        ("wanvideo/modules/attention.py",),
    ),
    "wan2gp": Checkout(
        "https://github.com/deepbeepmeep/Wan2GP",
        "8681e9f777f9f847f74a0bdefd13d5b9a6efe12d",  # 2026-08-21
        ("shared/attention.py",),
    ),
    "lightx2v": Checkout(
        "https://github.com/ModelTC/LightX2V",
        "f8aee98b5462cca8d7288888146ebd95592bf266",  # 2026-08-21
        ("lightx2v/common/ops/attn/flash_attn.py",),
    ),
    "hunyuan": Checkout(
        "https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5",
        "60783e704160023913bee78f0b47036d393d4dfa",  # 2026-04-10
        ("hyvideo/utils/flash_attn_no_pad.py",),
    ),
    "comfyui": Checkout(
        "https://github.com/Comfy-Org/ComfyUI",
        "82997188568abe525d2b961fa2d4feae8f98f843",
        ("comfy/ldm/modules/attention.py",),
    ),
    "comfyui-spark": Checkout(  # a ComfyUI for the DGX Spark
        "https://github.com/thebroadercollective/ComfyUI-Spark",
        "5872d72b74a374283f77703d997fa16b74eb5fc1",  # 2026-05-02
        ("comfy/ldm/modules/attention.py",),
    ),
    "xtuner": Checkout(
        "https://github.com/InternLM/xtuner",
        "b934f462095c1e750229de35367c50ae36caa786",  # 2026-08-21
        ("xtuner/v1/ops/flash_attn/gpu.py",),
    ),
}
pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_programs_own_attention(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    folder = program.into(tmp_path)
    for path in program.paths:
        text = (folder / path).read_text(encoding="utf-8")
        (folder / path).write_text(text.replace('"cuda"', '"cpu"'), encoding="utf-8")
    both = name not in ("kijai", "wan2gp")
    script = HERE / "probe_programs.py"
    found = run("x-transformers-2.26", script, name, str(folder), home=tmp_path, as_flash_attn=both)
    assert found and all(isinstance(gap, float) and gap < 2e-2 for gap in found.values())
