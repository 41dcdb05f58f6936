"""The command for what a wheel was built without: which one, for which calls, and that it is said once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from flash_attn3_sm121.api.explanation import explain
from flash_attn3_sm121.api.interface import flash_attn_func
from flash_attn3_sm121.arch import FAMILIES, Family
from flash_attn3_sm121.builds import MODELS, PREFIX, PROFILES, for_models
from flash_attn3_sm121.call.backend import use_backend
from flash_attn3_sm121.call.facts import CallFacts, DeviceFacts
from flash_attn3_sm121.dispatch.decide import NativeState, decide
from flash_attn3_sm121.native.buildfacts import BuildFacts
from tests.fakes.libraries import CPU, GB10, H100, Kernels, build, engine, install
from tests.fakes.shapes import dense


def wheel(profile: str, family: str = "sm8x", image: str = "sm_121") -> BuildFacts:
    """The facts of a library as the harness builds it."""
    names = profile.removeprefix(PREFIX).split(".")
    chosen = for_models([MODELS[name] for name in names]) if profile.startswith(PREFIX) else PROFILES[profile]
    dtypes, dims, features = chosen.share(FAMILIES[Family(family)])
    backward = dims if "backward" in features else ()
    return build(
        family, image, dtypes=dtypes, head_dims=dims, backward_head_dims=backward, features=tuple(sorted(features)),
        profile=profile,
    )  # fmt: skip


def call(
    *features: str, dim: int, dtype: str = "bf16", dtype_kv: str = "", dim_v: int | None = None, **more: Any
) -> CallFacts:
    return CallFacts(
        device_type="cuda", dtype=dtype, dtype_kv=dtype_kv or dtype, head_dim=dim, head_dim_v=dim_v or dim,
        features=frozenset(features), **more,
    )  # fmt: skip


def hopper(profile: str) -> BuildFacts:
    return wheel(profile, "sm90", "sm_90a")


BACKWARD: dict[str, Any] = {"direction": "backward"}
# name -> device, library, call, the commands
CASES: dict[str, tuple[DeviceFacts, BuildFacts, CallFacts, str | None]] = {
    "gemma 3": (
        GB10, wheel("nanochat"), call("causal", "local", "varlen", "seqused_k", "paged", dim=256),
        'make wheel MODELS="gemma2 gemma3" or make wheel PROFILE=common',
    ),
    "its backward": (
        GB10, wheel("nanochat"), call("causal", "local", dim=256, **BACKWARD),
        'make wheel MODELS="gemma2 gemma3" or make wheel PROFILE=common',
    ),
    "gemma 2": (
        GB10, wheel("common"), call("causal", "softcap", dim=256),
        'make wheel MODELS="gemma2" or make wheel PROFILE=full',
    ),
    "gemma 2 in fp16": (GB10, wheel("common"), call("softcap", dim=256, dtype="fp16"), "make wheel PROFILE=full"),
    "gpt-oss": (
        GB10, wheel("smoke"), call("causal", "local", "sinks", dim=64),
        'make wheel MODELS="gptoss" or make wheel PROFILE=nanochat',
    ),
    "fp16": (GB10, wheel("nanochat"), call("causal", dim=128, dtype="fp16"), "make wheel PROFILE=common"),
    "more models than can be named": (
        GB10, wheel("models.gptoss"), call("causal", dim=128), "make wheel PROFILE=nanochat",
    ),
    "what is there stays": (
        GB10, wheel("models.gptoss.wan"), call("causal", "softcap", dim=128),
        'make wheel MODELS="gemma2 gptoss wan" or make wheel PROFILE=full',
    ),
    "head dim 80": (GB10, wheel("smoke"), call(dim=80), "make wheel PROFILE=nanochat"),
    "chunks": (GB10, wheel("smoke"), call("chunk", dim=64), "make wheel PROFILE=nanochat"),
    "deepseek on hopper": (
        H100, hopper("common"), call("causal", dim=192, dim_v=128),
        'make wheel MODELS="deepseek" or make wheel PROFILE=full',
    ),
    "fp8 on hopper": (H100, hopper("common"), call(dim=128, dtype="e4m3"), "make wheel PROFILE=fp8"),
    "an fp8 cache": (
        GB10, wheel("common"), call("causal", "varlen", "seqused_k", "paged", "split", dim=128, dtype_kv="e4m3"),
        "make wheel PROFILE=fp8",
    ),
    "an fp8 cache for few models": (
        GB10, wheel("models.llama3"), call("causal", dim=64, dtype="fp16", dtype_kv="e4m3"), "make wheel PROFILE=fp8",
    ),
    "an fp8 cache under softcap": (
        GB10, wheel("common"), call("softcap", dim=256, dtype_kv="e4m3"), "make wheel PROFILE=full",
    ),
    "an fp8 cache where more is held": (
        GB10, wheel("models.deepseek"), call("causal", dim=64, dtype_kv="e4m3"), "make wheel PROFILE=full",
    ),
    "fp8": (GB10, wheel("nanochat"), call("causal", "local", dim=256, dtype="e4m3"), "make wheel PROFILE=fp8"),
    "deepseek": (
        GB10, wheel("smoke"), call(dim=192, dim_v=128), 'make wheel MODELS="deepseek" or make wheel PROFILE=full',
    ),
    "deepseek, absorbed": (
        GB10, wheel("common"), call("qv", "causal", "seqused_k", "paged", "split", dim=64, dim_v=512),
        'make wheel MODELS="deepseek" or make wheel PROFILE=full',
    ),
    "a V of 264": (GB10, wheel("common"), call("qv", dim=64, dim_v=264), "make wheel PROFILE=full"),
    "no kernel of it: a V of 520": (GB10, wheel("smoke"), call(dim=64, dim_v=520), None),
    "no kernel of it: fp32": (GB10, wheel("smoke"), call(dim=64, dtype="fp32"), None),
    "no kernel of it: sinks on hopper": (H100, hopper("common"), call("sinks", dim=64), None),
    "no kernel of it: head dim 320": (GB10, wheel("smoke"), call(dim=320), None),
    "no kernel of it: chunk backward": (GB10, wheel("smoke"), call("chunk", dim=64, **BACKWARD), None),
    "another device": (CPU, wheel("smoke"), call(dim=128), None),
    "a wheel for another device": (H100, wheel("smoke"), call(dim=128), None),
    "served": (GB10, wheel("common"), call("causal", dim=128), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_commands(name: str) -> None:
    device, library, asked, commands = CASES[name]
    decision = decide(device=device, native=NativeState(builds=(library,)), call=asked, flex_refusal="off")
    assert decision.remedy == commands
    assert (f"    a wheel whose kernels serve it: {commands}" in str(decision).splitlines()) == (commands is not None)


def test_no_command_where_the_library_does_not_load() -> None:
    state = NativeState(builds=(wheel("nanochat"),), load_errors={"sm8x": "no libc"})
    assert decide(device=GB10, native=state, call=call(dim=256), flex_refusal="off").remedy is None


def test_it_is_said_once_and_only_to_those_who_did_not_ask_for_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = engine(Kernels().open, facts=wheel("nanochat"))
    install(monkeypatch, serving)
    q, k, v = dense(d=256, dtype=torch.bfloat16)
    with use_backend("sdpa"):
        flash_attn_func(q, k, v, causal=True)
    said = r"flash_attn3_sm121: head dimension 256 is larger than those built \(64, 128\)\. .* make wheel MODELS="
    with pytest.warns(RuntimeWarning, match=said) as caught:
        flash_attn_func(q, k, v)
    assert len(caught) == 1 and str(caught[0].message).endswith(" or make wheel PROFILE=common")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for causal in (False, True):  # known, and another class of calls with the same reason
            flash_attn_func(q, k, v, causal=causal)
        with pytest.warns(RuntimeWarning, match="dtype fp16 is not among those"):
            flash_attn_func(q.half(), k.half(), v.half())


def test_explain_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "flash_attn3_sm121.dispatch.engine.engine", lambda: engine(Kernels().open, facts=wheel("common"))
    )
    assert 'make wheel MODELS="gemma2"' in str(explain(capability=(12, 1), head_dim=256, features=("softcap",)))
