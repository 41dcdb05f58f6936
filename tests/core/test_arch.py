"""The arch table: complete, consistent, and true to CUDA's rules of what runs where."""

from __future__ import annotations

import dataclasses

import pytest

from flash_attn3_sm121 import arch
from flash_attn3_sm121.errors import ArchError, TableError

WANTED = ("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")


@pytest.mark.parametrize("name", WANTED)
def test_each_promised_capability_has_a_row(name: str) -> None:
    row = arch.CAPABILITIES[name]
    assert row.name == name
    assert arch.Image.parse(row.target).runs_on(row.major, row.minor)
    assert row.smem_limit >= arch.FAMILIES[row.family].smem_limit


@pytest.mark.parametrize(
    ("image", "device", "runs"),
    [
        ("sm_121", (12, 1), True),
        ("sm_120", (12, 1), True),
        ("sm_121", (12, 0), False),
        ("sm_120f", (12, 1), True),
        ("sm_120a", (12, 1), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_100", (10, 3), True),
        ("sm_100", (12, 0), False),
        ("compute_120", (12, 1), True),
        ("compute_80", (12, 1), True),
        ("compute_90a", (12, 1), False),
        ("compute_121", (12, 0), False),
    ],
)
def test_binary_compatibility(image: str, device: tuple[int, int], runs: bool) -> None:
    assert arch.Image.parse(image).runs_on(*device) is runs


@pytest.mark.parametrize("text", ["sm_121", "sm_90a", "compute_120f", "sm_80"])
def test_image_names_round_trip(text: str) -> None:
    assert str(arch.Image.parse(text)) == text


@pytest.mark.parametrize("text", ["", "sm121", "sm_12.1", "compute_", "sm_121x", "SM_121"])
def test_nonsense_image_names_are_refused(text: str) -> None:
    with pytest.raises(ArchError, match="not a machine-code name"):
        arch.Image.parse(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "sm_120"}, "expected a number of 121, found sm_120"),
        ({"target": "sm_121a", "variants": ("",)}, "expected 'a' among"),
        ({"smem_limit": 100}, "expected at least 101376, found 100"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    change: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = dataclasses.replace(arch.CAPABILITIES["12.1"], **change)  # type: ignore[arg-type]
    monkeypatch.setitem(arch.CAPABILITIES, "12.1", broken)
    with pytest.raises(TableError, match=words):
        arch.validate()
