"""A library of very few kernels whose K and V are e4m3, beside a 16-bit Q or one in e4m3.

The host code that calls them is the real one. A kernel that it asks for and that is not here says that it is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ci.plan.plan import FamilyPlan
from ci.plan.profiles import Profile, select
from ci.plan.units import CXX_TYPES, FP8, KV8, Forward, forwards
from flash_attn3_sm121.arch import Family
from tests.fakes import fault_kernels

HEAD = """#include <stdexcept>

#include "flash_fwd_combine_launch_template.h"

[[noreturn]] static void absent() { throw std::runtime_error("this kernel is not among the few"); }
"""
# What the kernels of a type of Q are made from.
KV8_HEAD = '#include "fa3_tiles.h"\n#include "flash_fwd_launch_template.h"\n'
FP8_HEAD = '#include "fa3_fp8.h"\n'
# Type, output, causal and local, tanh, lengths, pages, new keys, qv, packed groups, split, V's order.
RUN = (
    "run_flash_fwd<86, {dim}, {dim}, 1, {kind}, {out}, {flags}, {softcap}, {varlen}, {paged}, "
    "false, false, true, {split}, false>(params, stream)"
)
COMBINE = "run_flash_fwd_combine<86, 16, 64, 4, false, false, cutlass::bfloat16_t, float>(params, stream, pdl);"
FLAGS = {"full": ("false", "false"), "causal": ("true", "false"), "local": ("false", "true")}

# The types, head dim, mask, and what else the kernel is for.
Few = Sequence[tuple[str, int, str, str]]
FEW: Few = (
    (f"bf16{KV8}", 64, "local", "softcap"),
    (f"bf16{KV8}", 64, "causal", "varlen"),
    (f"bf16{KV8}", 64, "full", "varlen paged split"),
)
FEW_FP8: Few = ((FP8, 64, "causal", "varlen"), (FP8, 64, "full", "varlen paged split softcap"))
FEATURES = frozenset({"causal", "local", "varlen", "paged", "split", "softcap", "packgqa", "sinks", "append"})
PROFILE = Profile(
    name="kv8",
    dtypes=("bf16", "fp16"),
    head_dims=(64, 128, 256),
    features=FEATURES | {"kv8"},
    about="what the host code may ask of the few kernels",
)
PROFILE_FP8 = replace(PROFILE, name="fp8", features=FEATURES | {"fp8"})


def _body(entry: Forward, few: Few) -> str:
    """What an entry does: it runs one of the few kernels where it has one for the call."""
    calls = []
    for dtype, dim, mask, words in few:
        switches = ("split" in words, "paged" in words, "softcap" in words)
        if (entry.dtype, entry.head_dim, entry.split, entry.paged, entry.softcap) == (dtype, dim, *switches):
            given = {word: str(word in words).lower() for word in ("softcap", "varlen", "paged", "split")}
            kind = "::fa3::Fp8" if dtype == FP8 else CXX_TYPES[dtype]
            kinds = {"kind": kind, "out": CXX_TYPES["bf16"], "flags": ", ".join(FLAGS[mask])}
            causal, local = FLAGS[mask]
            asked = f"params.is_causal == {causal} && params.is_local == {local}"
            asked += f" && (params.cu_seqlens_q || params.seqused_k) == {given['varlen']}"
            calls.append(f"if ({asked}) return {RUN.format(dim=dim, **kinds, **given)};")
    return " ".join((*calls, "absent();"))


def text(few: Few = FEW, profile: Profile = PROFILE) -> str:
    """The file of the kernels, and of an entry for each that the host code refers to."""
    lines = [FP8_HEAD if "fp8" in profile.features else KV8_HEAD, HEAD]
    for entry in forwards(select(profile, Family.SM8X)):
        name = entry.text[entry.text.index("void ") :].partition("(")[0]
        lines.append(f"template <> {name}(Flash_fwd_params& params, cudaStream_t stream) {{ {_body(entry, few)} }}\n")
    for kind in ("cutlass::bfloat16_t", "cutlass::half_t", "float"):
        for dim in (64, 128):
            body = COMBINE if (kind, dim) == ("cutlass::bfloat16_t", 64) else "absent();"
            lines.append(
                f"template <> void run_mha_fwd_combine_<{kind}, float, {dim}>"
                f"(Flash_fwd_params& params, cudaStream_t stream, bool pdl) {{ {body} }}\n"
            )
    return "".join(lines)


def family(few: Few = FEW, profile: Profile = PROFILE) -> FamilyPlan:
    return fault_kernels.plan(profile, {"fwd": text(few, profile), "prepare": fault_kernels.text("fault_prepare.cu")})
