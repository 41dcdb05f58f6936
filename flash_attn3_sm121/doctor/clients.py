"""What each client on this machine would get when it looks for FlashAttention-3, and who serves a few typical calls."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import flash_attn3_sm121
from flash_attn3_sm121.doctor import probes
from flash_attn3_sm121.doctor.facts import Call, Client, Gpu
from flash_attn3_sm121.errors import NEWEST_WHEEL, pip_command
from flash_attn3_sm121.fa2 import names
from flash_attn3_sm121.hub.layout import KNOWN_REPOS
from flash_attn3_sm121.native.location import locate

_AS_FA2 = "flash-attn3 run --as flash_attn serves it"
# distribution -> what it gets from us. A test holds this table and the one of docs/clients.md to one another.
KNOWN_CLIENTS: dict[str, str] = {
    "diffusers": 'set_attention_backend("_flash_3") works',
    "transformer-engine": f"finds us by itself on 9.0; elsewhere it refuses FlashAttention-3, and {_AS_FA2}",
    "torchtitan": "after flash_attn3_sm121.activate(), what torch serves",
    "megatron-core": "its paged inference finds us by itself; training goes through transformer-engine",
    "fairseq2": "its Flash3SDPA finds us by itself",
    "yunchang": "AttnType.FA3 works",
    "xformers": f"{_AS_FA2}; it refuses FlashAttention-3 on 12.1 by itself",
    **dict.fromkeys(("diffsynth", "ltx-core", "sam3", "xfuser"), "finds us by itself"),
    "vllm": "--attention-backend CUSTOM is its own backend over our kernels (0.33)",
    "sglang": "flash-attn3 run serves its hub kernel, but it refuses FlashAttention-3 on 12.1 by itself",
    "lmdeploy": "its PyTorch engine finds us by itself",
    "ring-flash-attn": _AS_FA2,
    "openrlhf": _AS_FA2,
    "x-transformers": _AS_FA2,
    "unsloth": _AS_FA2,
}


def _install() -> str:
    again = "--force-reinstall --no-deps " if _installed("flash_attn3_sm121") else ""
    return f"make wheel && {pip_command()} install {again}{NEWEST_WHEEL}"


def _unread() -> Path | None:
    """The modules of an install whose `.pth` file python does not read, as that of `pip install --target`."""
    dropin = Path(flash_attn3_sm121.__file__).absolute().parent / "_dropin"
    installed = _installed("flash_attn3_sm121") is not None and locate().note is None
    return dropin if installed and (dropin / "flash_attn_interface.py").is_file() else None


def _module(name: str) -> Client:
    """What `import NAME` finds, without importing it."""
    spec = importlib.util.find_spec(name)
    title = f"import {name}"
    if spec is None or spec.origin is None:
        unread = _unread()
        return Client(
            name=title,
            gets="ModuleNotFoundError",
            ours=False,
            problem="python reads no .pth file where flash_attn3_sm121 is installed"
            if unread
            else "not importable here",
            fix=f'export PYTHONPATH="$PYTHONPATH:{unread}"' if unread else _install(),
        )
    ours = "flash_attn3_sm121" in Path(spec.origin).parts
    if ours:
        return Client(name=title, gets=spec.origin, ours=True)
    fix = f"{pip_command()} uninstall -y flash_attn_3"
    return Client(name=title, gets=spec.origin, ours=False, problem="finds another package's module", fix=fix)


def fa2_names(path: Sequence[str] | None = None) -> Client:
    """What `import flash_attn` finds, FlashAttention-2's name, without importing it; nobody has to have it."""
    title = "import flash_attn (FlashAttention-2's name)"
    found = names.look(path)
    if not found:
        gets = f"ModuleNotFoundError; flash-attn3 run --as flash_attn, or {names.BUILD}, serves it"
        return Client(name=title, gets=gets, ours=False)
    gets = ", then ".join(str(one.folder) for one in found)
    clash = names.conflict(path) if any(one.ours for one in found) else None
    if clash is not None:
        return Client(name=title, gets=gets, ours=False, problem=clash.text, fix=clash.hint)
    return Client(name=title, gets=gets if found[0].ours else f"{gets}: another package's", ours=found[0].ours)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _transformers() -> Client | None:
    version = _installed("transformers")
    if version is None:
        return None
    title = f"transformers {version}"
    answer = probes.ask("transformers")
    if "error" in answer:
        return Client(name=title, gets="nothing", ours=False, problem=str(answer["error"]))
    if answer["detects"]:
        return Client(name=title, gets='attn_implementation="flash_attention_3" works', ours=True)
    why = "it asks for a CUDA device first" if not answer["cuda"] else "it does not see the flash_attn_3 distribution"
    fix = None if not answer["cuda"] else _install()
    return Client(name=title, gets="no flash_attention_3", ours=False, problem=why, fix=fix)


def _xformers() -> Client | None:
    """A word for the xformers whose check of the op's results is older than upstream's 3.0.0."""
    version = _installed("xformers")
    if version is None or tuple(map(int, re.findall(r"\d+", version)[:3])) >= (0, 0, 35):
        return None
    return Client(
        name=f"xformers {version}",
        gets="its other kernels",
        ours=False,
        problem="it wants eight results of flash_attn_3::bwd, and since upstream's 3.0.0 there are five",
        fix=f"{pip_command()} install -U 'xformers>=0.0.35'",
    )


def _torch_hook() -> Client:
    title = "torch's own hook (F.scaled_dot_product_attention)"
    answer = probes.ask("torch_hook")
    if "error" in answer:
        return Client(name=title, gets="nothing", ours=False, problem=str(answer["error"]))
    if answer["available"]:
        return Client(name=title, gets="on request: flash_attn3_sm121.activate()", ours=True)
    return Client(name=title, gets="torch's own kernels", ours=False, problem=str(answer["why"]))


def _get_kernel() -> tuple[Client, ...]:
    """What `get_kernel` returns for each known repository, in a new process of this Python."""
    version = _installed("kernels")
    answer = probes.ask("override")
    clients = []
    for repository in sorted(KNOWN_REPOS):
        title = f"get_kernel('{repository}')"
        if "error" in answer:
            clients.append(Client(name=title, gets="nothing", ours=False, problem=str(answer["error"])))
        elif repository in answer["repos"]:
            origin = answer["hub"] or "the installed package"
            clients.append(Client(name=title, gets=f"ours, from {origin}: the override is on", ours=True))
        elif version is None:
            clients.append(Client(name=title, gets="`kernels` is not installed; flash-attn3 run serves it", ours=False))
        else:
            gets = f"the hub's own build (kernels {version}); flash-attn3 override enable hands out ours"
            clients.append(Client(name=title, gets=gets, ours=False))
    return tuple(clients)


def look_at_clients(*, torch_works: bool) -> tuple[Client, ...]:
    """What every client gets. Clients that import torch are left out where torch does not import."""
    clients: list[Client] = [_module("flash_attn_interface"), _module("flash_attn_3"), fa2_names()]
    if torch_works:
        clients += [client for client in (_transformers(), _xformers()) if client is not None]
        clients.append(_torch_hook())
        clients += [
            Client(name=f"{name} {version}", gets=gets, ours=True)
            for name, gets in KNOWN_CLIENTS.items()
            if (version := _installed(name)) is not None
        ]
    return (*clients, *_get_kernel())


TYPICAL: dict[str, dict[str, object]] = {
    "training, bf16, d 128, causal": {"features": frozenset({"causal"})},
    "training, bf16, d 128, sliding window": {"features": frozenset({"causal", "local"})},
    "its backward": {"features": frozenset({"causal"}), "direction": "backward"},
    "packed sequences": {"features": frozenset({"causal", "varlen"})},
    "decode into a cache": {"features": frozenset({"causal", "varlen", "append"})},
    "paged decode": {"features": frozenset({"causal", "varlen", "paged"})},
    "fp32 on purpose": {"dtype": "fp32", "dtype_kv": "fp32", "features": frozenset({"causal"})},
}


def typical_calls(
    gpus: Sequence[Gpu], *, load_errors: Mapping[str, str] | None = None, turned_off: str | None = None
) -> tuple[Call, ...]:
    """Which backend would serve a few typical calls on torch's first GPU, or the CPU, by dispatch's own `decide`.

    Args:
        gpus: those that torch sees.
        load_errors: of the families whose library does not load.
        turned_off: what the canary found, if it failed.
    """
    from flash_attn3_sm121.arch import capability
    from flash_attn3_sm121.call.facts import CallFacts, DeviceFacts, Settings
    from flash_attn3_sm121.dispatch.decide import NativeState, decide
    from flash_attn3_sm121.errors import FactsError, UsageError
    from flash_attn3_sm121.native import library as native

    device = DeviceFacts(type="cpu", name="CPU")
    if gpus:
        gpu = gpus[0]
        row = capability(*gpu.capability)
        limit = row.smem_limit if row else None
        device = DeviceFacts(type="cuda", name=gpu.name, capability=gpu.capability, smem_limit=limit)
    try:
        builds = tuple(library.facts for library in native.installed())
    except FactsError:
        builds = ()  # `facts_errors` has a finding of its own
    try:
        allow_proxy = Settings.from_environ(os.environ).allow_proxy
    except UsageError:
        allow_proxy = False  # an unknown value; every call raises for it and says so
    calls = []
    for name, facts in TYPICAL.items():
        base: dict[str, object] = {"dtype": "bf16", "dtype_kv": "bf16", "head_dim": 128, "head_dim_v": 128}
        call = CallFacts(device_type=device.type, **{**base, **facts})  # type: ignore[arg-type]
        state = NativeState(builds=builds, load_errors=load_errors, turned_off=turned_off, allow_proxy=allow_proxy)
        decision = decide(device=device, native=state, call=call, flex_refusal="only on request")
        calls.append(Call(name=name, device=device.name, decision=str(decision), backend=decision.backend))
    return tuple(calls)
