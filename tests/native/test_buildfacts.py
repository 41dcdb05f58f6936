"""Build facts: one class writes and reads them, and says what is wrong with a damaged file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flash_attn3_sm121.arch import FAMILIES, Family
from flash_attn3_sm121.errors import FactsError
from flash_attn3_sm121.native.buildfacts import BuildFacts

FACTS = BuildFacts(
    family="sm8x",
    effective_arch=86,
    library="flash_attn3_sm8x.so",
    sha256="0" * 64,
    namespace="flash_attn3_sm8x",
    images=("sm_120", "sm_121"),
    ptx=("compute_121",),
    dtypes=("bf16",),
    head_dims=(64, 128),
    backward_head_dims=(64,),
    features=("causal", "varlen"),
    smem_limit=101376,
    profile="nanochat",
    platform="linux_aarch64",
    cuda="13.0",
    upstream="3effce8",
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "sm8x.json"
    path.write_text(FACTS.to_json(), encoding="utf-8")
    assert BuildFacts.read(path) == FACTS


def test_a_line_for_people_names_pin_profile_and_capabilities() -> None:
    without = ", ".join(sorted(FAMILIES[Family.SM8X].features - {"causal", "varlen"}))
    assert FACTS.line == (
        "pin 3effce8, profile nanochat, sm_120, sm_121, compute_121, CUDA 13.0; bf16; head dims 64, 128; "
        f"without {without}"
    )
    whole = replace(FACTS, features=tuple(FAMILIES[Family.SM8X].features))
    assert whole.line.endswith("; head dims 64, 128")


@pytest.mark.parametrize(
    ("device", "code"), [((12, 1), "sm_121"), ((12, 0), "sm_120"), ((9, 0), None), ((13, 0), "compute_121")]
)
def test_the_closest_image_is_chosen(device: tuple[int, int], code: str | None) -> None:
    assert FACTS.code_for(*device) == code


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 99}, "expected build facts of schema 1"),
        ({"family": "sm7x"}, "expected one of"),
        ({"effective_arch": 90}, "expected 86, found 90"),
        ({"smem_limit": 163840}, "expected at most 101376"),
        ({"dtypes": ["bf16", "e4m3"]}, "dtypes: expected some of bf16, fp16, found e4m3 too"),
        ({"head_dims": [64, 80]}, "head_dims: expected some of 128, 192, 256, 64, 96, found 80 too"),
        ({"backward_head_dims": [512]}, "backward_head_dims: .* found 512 too"),
        ({"features": ["causal", "alibi"]}, "features: .* found alibi too"),
        ({"images": None}, "missing fields .'images'."),
        ({"surprise": 1}, "unknown fields .'surprise'."),
        ({"images": ["sm121"]}, "not a machine-code name"),
    ],
)
def test_damaged_facts_name_what_is_wrong(change: dict[str, object], words: str) -> None:
    data = json.loads(FACTS.to_json()) | change
    data = {key: value for key, value in data.items() if value is not None}
    with pytest.raises(Exception, match=words) as caught:
        BuildFacts.from_json(json.dumps(data), origin="somewhere")
    assert hasattr(caught.value, "exit_code")


def test_text_that_is_not_json_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(FactsError, match="not JSON"):
        BuildFacts.from_json("{", origin="x")
    with pytest.raises(FactsError, match="cannot read"):
        BuildFacts.read(tmp_path / "absent.json")
