"""Each reason for which FlexAttention is passed over, and that it is never chosen unasked without evidence."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from flash_attn3_sm121.call.facts import FEATURE_WORDS, CallFacts, DeviceFacts
from flash_attn3_sm121.flex import Software, refusal, software
from flash_attn3_sm121.flex.refuse import UNSERVED

NOW = Software(torch=(2, 13), triton="3.6.0")
GB10 = DeviceFacts(type="cuda", name="GB10", capability=(12, 1), smem_limit=101376)
H100 = DeviceFacts(type="cuda", name="H100", capability=(9, 0), smem_limit=232448)
CPU = DeviceFacts(type="cpu")
CALL = CallFacts(
    device_type="cuda", dtype="bf16", dtype_kv="bf16", head_dim=128, head_dim_v=128, features=frozenset({"causal"})
)


def call(**changes: object) -> CallFacts:
    return dataclasses.replace(CALL, **changes)  # type: ignore[arg-type]


def test_an_ordinary_call_is_served() -> None:
    for device in (GB10, H100, CPU):
        assert refusal(CALL, device, NOW) is None
    for words in ({"local", "softcap"}, {"varlen", "causal"}, {"chunk"}, {"seqused_q", "varlen"}):
        assert refusal(call(features=frozenset(words)), GB10, NOW) is None


@pytest.mark.parametrize(
    "changes,device,versions,said",
    [
        ({"dtype": "e4m3", "dtype_kv": "e4m3"}, H100, NOW, "fp8"),
        ({"dtype": "fp64", "dtype_kv": "fp64"}, CPU, NOW, "q is fp64"),
        ({"dtype": "fp32"}, CPU, NOW, "one dtype"),
        ({}, GB10, Software(torch=(2, 8), triton="3.4.0"), "needs torch 2.9"),
        ({}, GB10, Software(torch=(2, 13), triton=None), "triton, which is not installed"),
        ({}, GB10, Software(torch=(2, 9), triton="3.5.1"), "the ptxas of triton 3.5.1 does not know 12.1"),
        ({"direction": "backward"}, CPU, NOW, "no backward on CPU"),
        ({}, DeviceFacts(type="mps"), NOW, "no LSE on mps"),
        ({"head_dim": 8, "head_dim_v": 8}, GB10, NOW, "16 or more"),
        ({"direction": "backward", "head_dim": 256, "head_dim_v": 256}, GB10, NOW, "101376 bytes"),
        (
            {"direction": "backward", "head_dim": 192, "head_dim_v": 128},
            dataclasses.replace(GB10, smem_limit=None),
            NOW,
            "found 192",
        ),
    ],
    ids=[
        "fp8",
        "fp64",
        "mixed",
        "old-torch",
        "no-triton",
        "ptxas",
        "cpu-backward",
        "mps",
        "tiny-head",
        "smem",
        "smem-table",
    ],
)
def test_refused_with_the_reason(
    changes: dict[str, object], device: DeviceFacts, versions: Software, said: str
) -> None:
    reason = refusal(call(**changes), device, versions)
    assert reason is not None and said in reason


def test_another_ptxas_or_another_device_is_served_with_the_older_triton() -> None:
    older = Software(torch=(2, 9), triton="3.5.1")
    assert refusal(CALL, GB10, dataclasses.replace(older, ptxas=True)) is None
    assert refusal(CALL, H100, older) is None


def test_a_wide_backward_is_served_where_shared_memory_allows() -> None:
    assert refusal(call(direction="backward", head_dim=256, head_dim_v=256), H100, NOW) is None


@pytest.mark.parametrize("feature", UNSERVED)
def test_unserved_features(feature: str) -> None:
    assert feature in FEATURE_WORDS
    assert refusal(call(features=frozenset({feature, "causal"})), GB10, NOW) == UNSERVED[feature]


def test_versions_come_from_metadata_and_refusing_imports_no_torch() -> None:
    assert software().torch >= (2, 9)
    code = "import sys; import flash_attn3_sm121.flex as f; f.software(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
