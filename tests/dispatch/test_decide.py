"""The choice of a backend as a table: device, libraries and call in; backend and reasons out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flash_attn3_sm121.arch import FAMILIES, Family
from flash_attn3_sm121.call.facts import CallFacts, DeviceFacts
from flash_attn3_sm121.dispatch.decide import Decision, NativeState, decide
from flash_attn3_sm121.native.buildfacts import BuildFacts
from tests.fakes.libraries import CPU, GB10, H100, RTX5090, SM8X, SM90, TURING, build

NO_SOFTCAP = build("sm8x", "sm_121", features=tuple(sorted(FAMILIES[Family.SM8X].features - {"softcap", "paged"})))
NO_KV8 = build("sm8x", "sm_121", features=tuple(sorted(FAMILIES[Family.SM8X].features - {"kv8"})))
NO_QV = build("sm8x", "sm_121", features=tuple(sorted(FAMILIES[Family.SM8X].features - {"qv"})))
A100 = DeviceFacts(type="cuda", name="A100", capability=(8, 0), smem_limit=166912)
PROXY = build("sm8x", "sm_90", proxy=True)


def bf16(*features: str, **change: Any) -> CallFacts:
    facts = CallFacts(device_type="cuda", dtype="bf16", dtype_kv="bf16", head_dim=128, head_dim_v=128)
    return replace(facts, features=frozenset(features), **change)


def choose(device: DeviceFacts, builds: tuple[BuildFacts, ...], call: CallFacts, **more: Any) -> Decision:
    forced = more.pop("forced", None)
    state = NativeState(builds=builds, **{k: v for k, v in more.items() if k != "flex_refusal"})
    return decide(
        device=device, native=state, call=call, flex_refusal=more.get("flex_refusal", "off in this test"), forced=forced
    )


BACKWARD: dict[str, Any] = {"direction": "backward"}
# name -> device, libraries, call, a piece of native's refusal (None: native serves)
NATIVE: dict[str, tuple[DeviceFacts, tuple[BuildFacts, ...], CallFacts, str | None]] = {
    "gb10 training": (GB10, (SM8X,), bf16("causal", "local"), None),
    "gb10 backward": (GB10, (SM8X,), bf16("causal", **BACKWARD), None),
    "gb10 head dim 16": (GB10, (SM8X,), bf16(head_dim=16, head_dim_v=16), None),
    "gb10 decode": (GB10, (SM8X,), bf16("varlen", "append", "split", "paged"), None),
    "h100 picks its own family": (H100, (SM8X, SM90), bf16("causal"), None),
    "h100 fp8": (H100, (SM90,), bf16(dtype="e4m3", dtype_kv="e4m3"), None),
    "cpu": (CPU, (SM8X,), bf16(), "the tensors are on cpu"),
    "rocm": (replace(GB10, rocm=True), (SM8X,), bf16(), "ROCm"),
    "no library": (GB10, (), bf16(), "no kernel library"),
    "wrong family": (H100, (SM8X,), bf16(), "wants the family sm90 and this install has sm8x"),
    "unknown capability": (TURING, (SM8X,), bf16(), "no kernel family is known for capability 7.5"),
    "newer image": (RTX5090, (SM8X,), bf16(), "machine code sm_121, which capability 12.0 does not run"),
    "older image of the same major": (GB10, (build("sm8x", "sm_120"),), bf16(), None),
    "little shared memory": (replace(GB10, smem_limit=65536), (SM8X,), bf16(), "65536"),
    "fp32": (GB10, (SM8X,), bf16(dtype="fp32", dtype_kv="fp32"), "dtype fp32"),
    "fp8 rotary": (H100, (SM90,), bf16("append", "rotary", dtype="e4m3", dtype_kv="e4m3"), "vectors of 16"),
    "gb10 fp8": (GB10, (SM8X,), bf16("causal", "sinks", dtype="e4m3", dtype_kv="e4m3"), None),
    "gb10 fp8 alone": (GB10, (NO_KV8,), bf16("causal", "paged", dtype="e4m3", dtype_kv="e4m3"), None),
    "gb10 fp8 cache": (GB10, (SM8X,), bf16("varlen", "append", "rotary", "split", "paged", dtype_kv="e4m3"), None),
    "gb10 fp8 not built": (
        GB10,
        (NO_KV8,),
        bf16(dtype_kv="e4m3"),
        "(profile test) is built without: keys and values in",
    ),
    "gb10 fp8 rotary": (GB10, (SM8X,), bf16("append", "rotary", dtype="e4m3", dtype_kv="e4m3"), None),
    "gb10 fp8 rotary, fp8 alone": (
        GB10,
        (NO_KV8,),
        bf16("append", "rotary", dtype="e4m3", dtype_kv="e4m3"),
        "(profile test) is built without: keys and values in",
    ),
    "gb10 fp8 backward": (GB10, (SM8X,), bf16(dtype_kv="e4m3", **BACKWARD), "no fp8 backward"),
    "gb10 fp8 dv != d": (GB10, (SM8X,), bf16(dtype_kv="e4m3", head_dim_v=64), "have one head dimension"),
    "gb10 fp8 under fp32": (GB10, (SM8X,), bf16(dtype="fp32", dtype_kv="e4m3"), "dtype fp32 is not among"),
    "h100 fp8 cache": (H100, (SM90,), bf16(dtype_kv="e4m3"), "mixed dtypes"),
    "fp8 on an a100": (
        A100,
        (build("sm80", "sm_80"),),
        bf16(dtype="e4m3", dtype_kv="e4m3"),
        "capability 8.0 cannot convert e4m3: 8.9 and later can",
    ),
    "fp8 cache, older code": (
        replace(GB10, name="L4", capability=(8, 9)),
        (build("sm8x", "sm_86", "sm_121"),),
        bf16(dtype_kv="e4m3"),
        "capability 8.9 runs sm_86 of the sm8x library",
    ),
    "fp8 cache, its own code": (
        replace(GB10, name="L4", capability=(8, 9)),
        (build("sm8x", "sm_86", "sm_89", "sm_121"),),
        bf16(dtype_kv="e4m3"),
        None,
    ),
    "mixed cache": (GB10, (SM8X,), bf16(dtype="fp16"), "mixed dtypes"),
    "head dim 256": (GB10, (SM8X,), bf16(head_dim=256, head_dim_v=256), "larger than those built (64, 128)"),
    "backward dims fewer": (
        GB10,
        (build("sm8x", "sm_121", backward_head_dims=(64,)),),
        bf16(**BACKWARD),
        "larger than those built with a backward (64)",
    ),
    "no backward at all": (
        GB10,
        (build("sm8x", "sm_121", features=("causal",), backward_head_dims=()),),
        bf16(**BACKWARD),
        "is built without backward",
    ),
    "dv != d": (GB10, (SM8X,), bf16(head_dim_v=64), "no tile for d = 128 with dv = 64"),
    "dv != d not built": (GB10, (build("sm8x", "sm_121", features=("causal",)),), bf16(head_dim_v=64), "dv != d"),
    "wider v": (GB10, (SM8X,), bf16("varlen", "paged", "split", head_dim=64, head_dim_v=256), None),
    "narrower v": (GB10, (SM8X,), bf16(head_dim=64, head_dim_v=32), None),
    "mla": (GB10, (build("sm8x", "sm_121", head_dims=(64, 192)),), bf16(head_dim=192), None),
    "mla without its tile": (GB10, (SM8X,), bf16(head_dim=192), "takes head dimension 64 or 192, built are 64, 128"),
    "mla backward": (
        GB10,
        (build("sm8x", "sm_121", backward_head_dims=(64, 192)),),
        bf16("softcap", head_dim=192, **BACKWARD),
        None,
    ),
    "v of 512": (GB10, (SM8X,), bf16(head_dim=64, head_dim_v=512), None),
    "v of 512 not built": (GB10, (NO_QV,), bf16(head_dim=64, head_dim_v=512), "built without: qv, whose kernels"),
    "qv": (GB10, (SM8X,), bf16("qv", "varlen", "paged", "split", "append", head_dim=64, head_dim_v=512), None),
    "qv of 256": (GB10, (SM8X,), bf16("qv", "local", "sinks", head_dim=32, head_dim_v=256), None),
    "qv not built": (GB10, (NO_QV,), bf16("qv", head_dim=64, head_dim_v=256), "built without: qv"),
    "a narrow qv": (GB10, (SM8X,), bf16("qv", head_dim=64, head_dim_v=128), "qv needs d <= 64 and dv >= 256"),
    "qv and an fp8 cache": (
        GB10,
        (SM8X,),
        bf16("qv", head_dim=64, head_dim_v=512, dtype_kv="e4m3"),
        "one head dimension in the kernels, not 64 and 512",
    ),
    "v of 512 on hopper": (H100, (SM90,), bf16(head_dim=64, head_dim_v=512), None),
    "wider v with softcap": (GB10, (SM8X,), bf16("softcap", head_dim=64, head_dim_v=128), "dv != d with softcap"),
    "a wide V on hopper": (H100, (SM90,), bf16(head_dim=64, head_dim_v=256), None),
    "a wide V in fp8": (
        H100,
        (SM90,),
        bf16(dtype="e4m3", dtype_kv="e4m3", head_dim=64, head_dim_v=128),
        "dv = 128 is more than the e4m3 kernel for d = 64 has room for: 64",
    ),
    "a wide V, head dim 64 not built": (
        H100,
        (build("sm90", "sm_90a", head_dims=(192,)),),
        bf16(head_dim=64, head_dim_v=256),
        "has room for: 192",
    ),
    "sinks": (GB10, (SM8X,), bf16("sinks"), None),
    "sinks on hopper": (H100, (SM90,), bf16("sinks"), "built without: attention sinks"),
    "dlse": (GB10, (SM8X,), bf16("dlse", "sinks", **BACKWARD), None),
    "dlse on hopper": (H100, (SM90,), bf16("dlse", **BACKWARD), "built without: gradient of the LSE"),
    "used lengths backward": (GB10, (SM8X,), bf16("varlen", "seqused_q", "seqused_k", **BACKWARD), None),
    "used lengths, hopper's backward": (H100, (SM90,), bf16("varlen", "seqused_k", **BACKWARD), "past seqused_q"),
    "used lengths on hopper": (H100, (SM90,), bf16("varlen", "seqused_q"), None),
    "chunk backward": (GB10, (SM8X,), bf16("chunk", **BACKWARD), "does not know attention_chunk"),
    "softcap not built": (GB10, (NO_SOFTCAP,), bf16("softcap"), "built without: softcap"),
    "two not built": (GB10, (NO_SOFTCAP,), bf16("softcap", "paged"), "built without: softcap, paged"[:22]),
    "no backward built": (
        GB10,
        (build("sm8x", "sm_121", features=("causal",)),),
        bf16(**BACKWARD),
        "built without backward",
    ),
    "deterministic": (GB10, (SM8X,), bf16("deterministic", "causal", **BACKWARD), None),
    "deterministic not built": (
        GB10,
        (build("sm8x", "sm_121", features=("backward", "causal")),),
        bf16("deterministic", **BACKWARD),
        "built without: deterministic backward",
    ),
    "deterministic 256 on hopper": (
        H100,
        (build("sm90", "sm_90a", backward_head_dims=(256,)),),
        bf16("deterministic", head_dim=256, head_dim_v=256, **BACKWARD),
        "deterministic backward stops",
    ),
    "qv shape": (H100, (SM90,), bf16("qv"), "qv needs d <= 64"),
    "fp8 backward": (H100, (SM90,), bf16(dtype="e4m3", dtype_kv="e4m3", **BACKWARD), "no fp8 backward"),
    "proxy is not served by itself": (H100, (PROXY,), bf16(), "wants the family sm90 and this install has none"),
}


@pytest.mark.parametrize("name", NATIVE)
def test_native(name: str) -> None:
    device, builds, call, refusal = NATIVE[name]
    decision = choose(device, builds, call)
    if refusal is None:
        assert decision.backend == "native"
        assert {r.backend for r in decision.refusals} == {"flex", "sdpa"}
    else:
        assert decision.backend == "sdpa"
        (reason,) = [r.reason for r in decision.refusals if r.backend == "native"]
        assert refusal in reason


def test_decision_names_family_and_machine_code() -> None:
    decision = choose(GB10, (SM8X,), bf16())
    assert (decision.family, decision.code) == ("sm8x", "sm_121")
    assert "native (family sm8x, machine code sm_121)" in str(decision)


def test_proxy_serves_only_when_allowed() -> None:
    decision = choose(H100, (SM90, PROXY), bf16(), allow_proxy=True)
    assert (decision.backend, decision.family) == ("native", "sm8x")


def test_load_error_and_canary_are_reasons() -> None:
    broken = choose(GB10, (SM8X,), bf16(), load_errors={"sm8x": "libcudart.so.13: cannot open"})
    assert "cannot be loaded: libcudart.so.13: cannot open" in str(broken)
    off = choose(GB10, (SM8X,), bf16(), turned_off="the canary found wrong results")
    assert "not native: the canary found wrong results" in str(off)


@pytest.mark.parametrize(
    ("forced", "flex_refusal", "expected"),
    [
        ("sdpa", None, "sdpa"),
        ("flex", None, "flex"),
        ("flex", "no triton", None),
        ("native", None, None),
        (None, None, "sdpa"),
    ],
)
def test_forcing_on_a_cpu(forced: str | None, flex_refusal: str | None, expected: str | None) -> None:
    decision = choose(CPU, (SM8X,), bf16(), forced=forced, flex_refusal=flex_refusal)
    assert decision.backend == expected
    if expected is None:
        assert f"(forced: {forced})" in str(decision)


def test_flex_is_never_chosen_unasked() -> None:
    state = NativeState(builds=())
    chosen = decide(device=GB10, native=state, call=bf16(), flex_refusal=None)
    assert chosen.backend == "sdpa"
    assert "  not flex: not measured to be faster here; it can be asked for" in str(chosen)


def test_every_backend_but_the_chosen_one_has_a_reason() -> None:
    for device, builds, call, _ in NATIVE.values():
        for forced in (None, "sdpa"):
            decision = choose(device, builds, call, forced=forced, flex_refusal=None)
            others = {"native", "flex", "sdpa"} - {decision.backend}
            assert {refusal.backend for refusal in decision.refusals} == others
