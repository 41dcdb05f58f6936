"""The self test agrees with a right implementation, and does not with a wrong one."""

from __future__ import annotations

import json

import pytest
import torch

import flash_attn3_sm121
from flash_attn3_sm121 import cli
from flash_attn3_sm121.selftest.cases import cases
from flash_attn3_sm121.selftest.cli import deviation
from flash_attn3_sm121.selftest.reference import Mask, sequence


def test_names_are_unique_and_every_feature_has_a_case() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    for word in ("causal", "window", "chunk", "softcap", "packed", "paged", "rotary", "combine", "backward", "d 16"):
        assert any(word in name for name in names), word


@pytest.mark.parametrize(
    "match", ["d 32, causal", "backward: d 64, full, window", "append 3 to 3 ragged sequences, paged"]
)
def test_the_fallback_passes(match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--device", "cpu", "--dtype", "bf16", "--match", match, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["results"] and all(row["good"] for row in report["results"])


def test_a_wrong_kernel_is_caught(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def empty_kernel(q: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(q), torch.zeros(q.shape[0], q.shape[2], q.shape[1])

    monkeypatch.setattr(flash_attn3_sm121, "flash_attn_func", empty_kernel)
    assert cli.main(["selftest", "--device", "cpu", "--dtype", "bf16", "--match", "forward: d 64, causal"]) == 15
    shown = capsys.readouterr()
    assert "WRONG bf16 forward: d 64, causal" in shown.err and "flash-attn3 doctor" in shown.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--match", "no such thing"], "--list"), (["--device", "teapot"], "'teapot' is not a device")],
)
def test_nonsense_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (torch.tensor([1.0, float("-inf")]), 0.0),
        (torch.tensor([1.5, float("-inf")]), 0.5),
        (torch.tensor([1.0, 3.0]), float("inf")),
        (torch.tensor([1.0]), float("inf")),
    ],
)
def test_deviation(got: torch.Tensor, expected: float) -> None:
    assert deviation(got, torch.tensor([1.0, float("-inf")], dtype=torch.float64)) == expected


def test_a_nan_is_never_good() -> None:
    gap = deviation(torch.tensor([float("nan")]), torch.tensor([1.0], dtype=torch.float64))
    assert not gap <= 1e9


def test_the_reference_itself_on_numbers_done_by_hand() -> None:
    # One query, two keys, scores 0 and ln 3: weights 1/4 and 3/4.
    q = torch.ones(1, 1, 1)
    k = torch.tensor([[[0.0]], [[float(torch.log(torch.tensor(3.0)))]]])
    v = torch.tensor([[[0.0]], [[4.0]]])
    out, lse = sequence(q, k, v, Mask(), scale=1.0)
    assert out.item() == pytest.approx(3.0) and lse.item() == pytest.approx(float(torch.log(torch.tensor(4.0))))
    out, lse = sequence(q.expand(2, 1, 1), k[:1], v[:1] + 5, Mask(causal=True), scale=1.0)
    assert out[0].item() == 0.0 and lse[0, 0].item() == float("-inf") and out[1].item() == 5.0
