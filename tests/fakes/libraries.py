"""Devices, build facts and family libraries that exist on paper, and an engine over them.

`Kernels` stands for a loaded library: it counts its calls and answers with the fallback's numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.arch import FAMILIES, Family
from flash_attn3_sm121.builds import Profile
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.facts import DeviceFacts, Settings
from flash_attn3_sm121.dispatch.engine import Engine
from flash_attn3_sm121.native import library as native
from flash_attn3_sm121.native.buildfacts import BuildFacts
from tests.fakes.shapes import dense


def build(family: str, *images: str, proxy: bool = False, **change: Any) -> BuildFacts:
    spec = FAMILIES[Family(family)]
    facts = BuildFacts(
        family=family,
        effective_arch=spec.effective_arch,
        library=f"flash_attn3_{family}.so",
        sha256="0" * 64,
        namespace=f"flash_attn3_{family}",
        images=images,
        ptx=(),
        dtypes=spec.dtypes,
        head_dims=(64, 128),
        backward_head_dims=(64, 128),
        features=tuple(sorted(spec.features)),
        smem_limit=spec.smem_limit,
        profile="test",
        platform="linux_aarch64",
        cuda="13.0",
        upstream="3effce8",
        proxy=proxy,
    )
    return replace(facts, **change)


GB10 = DeviceFacts(type="cuda", name="GB10", capability=(12, 1), smem_limit=101376)
H100 = DeviceFacts(type="cuda", name="H100", capability=(9, 0), smem_limit=232448)
RTX5090 = DeviceFacts(type="cuda", name="RTX 5090", capability=(12, 0), smem_limit=101376)
TURING = DeviceFacts(type="cuda", name="T4", capability=(7, 5), smem_limit=65536)
CPU = DeviceFacts(type="cpu", name="cpu")
SM8X = build("sm8x", "sm_121")
SM90 = build("sm90", "sm_90a")

CAUSAL: dict[str, Any] = {"softmax_scale": 0.25, "causal": True, "window_right": 0}


# A library's error where torch had no memory to give it, as the real host code raised it when an allocation failed.
FULL = RuntimeError("aoti_torch_aten_new_empty( self.get(), ...) API call failed at torch/csrc/stable/ops.h, line 79")
# What a library's host code wants contiguous as a whole, and in the last dimension.
WHOLE = (
    *("cu_seqlens_q", "cu_seqlens_k", "cu_seqlens_k_new", "seqused_q", "seqused_k", "leftpad_k", "kv_batch_idx"),
    *("rotary_cos", "rotary_sin", "seqlens_rotary", "s_aux"),
)
ROWS = ("q", "k", "v", "k_new", "v_new", "qv", "out", "page_table")


def refuse_what_libraries_refuse(args: ForwardArgs) -> None:
    for name in (*WHOLE, *ROWS):
        tensor = getattr(args, name)
        if tensor is not None and name in WHOLE and not tensor.is_contiguous():
            raise RuntimeError(f"mha_fwd, {name} must be contiguous")
        if tensor is not None and name in ROWS and tensor.stride(-1) != 1:
            raise RuntimeError(f"mha_fwd, {name} must have contiguous last dimension")
    if args.s_aux is not None and args.s_aux.dtype != torch.float32:
        raise RuntimeError("mha_fwd, s_aux must have dtype float32")


class Kernels:
    """Counts its calls and answers with the fallback's numbers, or spoils them."""

    def __init__(self, spoil: Callable[[Tensor], object] = lambda _: None) -> None:
        self.calls: list[ForwardArgs] = []
        self.backward_calls = 0
        self.spoil = spoil

    def fwd(self, *values: Any) -> tuple[Tensor, ...]:
        args = ForwardArgs(**dict(zip(schemas.NATIVE_FWD_FIELDS, values, strict=True)))
        refuse_what_libraries_refuse(args)
        self.calls.append(args)
        out, lse = fallback.forward(args)
        self.spoil(out)
        return out, lse, torch.empty(0), torch.empty(0)

    def bwd(self, *values: Any) -> tuple[Tensor, ...]:
        self.backward_calls += 1
        given = dict(zip(schemas.NATIVE_BWD_FIELDS, values, strict=True))
        into = [given.pop(name) for name in ("dq", "dk", "dv")]
        args = BackwardArgs(**{**given, "window_right": 0 if given["causal"] else given["window_right"]})
        for mine, found in zip(into, fallback.backward(args), strict=False):
            assert found is not None
            mine.copy_(found)
        self.spoil(into[0])
        softmax_d = (args.dout.float() * args.out.float()).sum(-1).transpose(-1, -2)
        softmax_d = softmax_d if args.dlse is None else softmax_d - args.dlse
        softmax_d = functional.pad(softmax_d, (0, -softmax_d.shape[-1] % 128), value=torch.nan)  # as a library's are
        return (*into, softmax_d, *(torch.empty(0) for _ in range(4)))

    def metadata(self, *values: Any) -> Tensor:
        return torch.ones(native.metadata_length(values, major=12), dtype=torch.int32)

    def open(self, path: Path, facts: BuildFacts) -> native.LoadedOps:
        return native.LoadedOps(fwd=self.fwd, bwd=self.bwd, fwd_combine=None, get_scheduler_metadata=self.metadata)


def engine(
    opener: Callable[[Path, BuildFacts], native.LoadedOps],
    *,
    facts: BuildFacts = SM8X,
    device: DeviceFacts = GB10,
    **settings: Any,
) -> Engine:
    """An engine that takes the CPU for a GB10 with one library."""
    library = native.Library(facts=facts, path=Path(facts.library), opener=opener)
    return Engine(
        settings=Settings(**{"canary": False, **settings}), libraries=lambda: (library,), gather=lambda _: device
    )


def executed(gpu: Any, profile: Profile, **settings: Any) -> Engine:
    """An engine that finds one library, the one that `gpu` executes, with the facts that a build of it would have."""

    def opened(_: Path, __: BuildFacts) -> native.LoadedOps:
        def op(name: str) -> Any:
            names = schemas.argument_names(schemas.NATIVE[name])
            return lambda *values: gpu.call(name, **dict(zip(names, values, strict=True)))

        return native.LoadedOps(
            fwd=op("fwd"), bwd=op("bwd"), fwd_combine=None, get_scheduler_metadata=op("get_scheduler_metadata")
        )

    dtypes, dims, features = profile.share(FAMILIES[Family.SM8X])
    facts = build(
        "sm8x", "sm_121", dtypes=dtypes, head_dims=dims, backward_head_dims=dims if "backward" in features else (),
        features=tuple(sorted(features)),
    )  # fmt: skip
    return engine(opened, facts=facts, **settings)


def install(monkeypatch: pytest.MonkeyPatch, serving: Engine) -> None:
    """Let every public function ask this engine."""
    for name in ("activation", "attend", "eager", "fast", "interface", "kvcache", "ops", "private"):
        monkeypatch.setattr(f"flash_attn3_sm121.api.{name}.engine", lambda: serving)


def half(**sizes: int) -> tuple[Tensor, Tensor, Tensor]:
    return dense(dtype=torch.bfloat16, **sizes)
