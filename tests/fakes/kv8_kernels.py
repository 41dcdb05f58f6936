"""A library of very few kernels of types of ours: K and V in e4m3, beside a 16-bit Q or one in e4m3; a second query.

The host code that calls them is the real one. A kernel that it asks for and that is not here says that it is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ci.build.family import Builder
from ci.plan.plan import FamilyPlan
from ci.plan.profiles import Profile, select
from ci.plan.units import CXX_TYPES, FP8, KV8, QV, Forward, forwards
from ci.prove.standin import library
from ci.prove.standin.calls import DEVICES, calls
from ci.verify import kernels
from flash_attn3_sm121.arch import Family
from tests.fakes import fault_kernels

ABSENT = "this kernel is not among the few"
HEAD = f"""#include <stdexcept>

#include "flash_fwd_combine_launch_template.h"

[[noreturn]] static void absent() {{ throw std::runtime_error("{ABSENT}"); }}
"""
# What the kernels of a profile with a feature are made from.
HEADERS = {
    "kv8": '#include "fa3_tiles.h"\n#include "flash_fwd_launch_template.h"\n',
    "fp8": '#include "fa3_fp8.h"\n',
    "qv": '#include "fa3_qv.h"\n',
}
# Type, output, causal and local, tanh, lengths, pages, new keys, qv, packed groups, split, V's order.
RUN = (
    "run_flash_fwd<86, {dim}, {dim_v}, 1, {kind}, {out}, {flags}, {softcap}, {varlen}, {paged}, "
    "false, false, true, {split}, false>(params, stream)"
)
# Rows and columns of a block, and the logarithm of the most splits, by the columns that an entry is called for.
COMBINE = "run_flash_fwd_combine<86, {tile}, false, false, cutlass::bfloat16_t, float>(params, stream, pdl);"
COMBINED = {64: "16, 64, 4", 128: "8, 128, 5"}
FLAGS = {"full": ("false", "false"), "causal": ("true", "false"), "local": ("false", "true")}

# The types, head dim, mask, and what else the kernel is for.
Few = Sequence[tuple[str, int, str, str]]
FEW: Few = (
    (f"bf16{KV8}", 64, "local", "softcap"),
    (f"bf16{KV8}", 64, "causal", "varlen"),
    (f"bf16{KV8}", 64, "full", "varlen paged split"),
)
FEW_FP8: Few = ((FP8, 64, "causal", "varlen"), (FP8, 64, "full", "varlen paged split softcap"))
FEW_QV: Few = (
    (f"bf16{QV}", 64, "causal", "varlen"),
    (f"fp16{QV}", 64, "local", ""),
    (f"bf16{QV}", 64, "full", "varlen paged split"),
)
FEATURES = frozenset({"causal", "local", "varlen", "paged", "split", "softcap", "packgqa", "sinks", "append"})
PROFILE = Profile(
    name="kv8",
    dtypes=("bf16", "fp16"),
    head_dims=(64, 128, 256),
    features=FEATURES | {"kv8"},
    about="what the host code may ask of the few kernels",
)
PROFILE_FP8 = replace(PROFILE, name="fp8", features=FEATURES | {"fp8"})
PROFILE_QV = replace(PROFILE, name="qv", head_dims=(64,), features=FEATURES | {"qv", "diff_headdim"})


def _body(entry: Forward, few: Few) -> str:
    """What an entry does: it runs one of the few kernels where it has one for the call."""
    calls = []
    for dtype, dim, mask, words in few:
        switches = ("split" in words, "paged" in words, "softcap" in words)
        if (entry.dtype, entry.head_dim, entry.split, entry.paged, entry.softcap) == (dtype, dim, *switches):
            given = {word: str(word in words).lower() for word in ("softcap", "varlen", "paged", "split")}
            kind = "::fa3::Fp8" if dtype == FP8 else CXX_TYPES[dtype]
            out = CXX_TYPES["fp16" if "fp16" in dtype else "bf16"]
            kinds = {"kind": kind, "out": out, "flags": ", ".join(FLAGS[mask]), "dim_v": entry.head_dim_v}
            causal, local = FLAGS[mask]
            asked = f"params.is_causal == {causal} && params.is_local == {local}"
            asked += f" && (params.cu_seqlens_q || params.seqused_k) == {given['varlen']}"
            calls.append(f"if ({asked}) return {RUN.format(dim=dim, **kinds, **given)};")
    return " ".join((*calls, "absent();"))


def text(few: Few = FEW, profile: Profile = PROFILE) -> str:
    """The file of the kernels, and of an entry for each that the host code refers to."""
    lines = [HEADERS[profile.name], HEAD]
    for entry in forwards(select(profile, Family.SM8X)):
        name = entry.text[entry.text.index("void ") :].partition("(")[0]
        lines.append(f"template <> {name}(Flash_fwd_params& params, cudaStream_t stream) {{ {_body(entry, few)} }}\n")
    for kind in ("cutlass::bfloat16_t", "cutlass::half_t", "float"):
        for dim in (64, 128):
            mine = (kind, dim) == ("cutlass::bfloat16_t", 128 if few is FEW_QV else 64)
            body = COMBINE.format(tile=COMBINED[dim]) if mine else "absent();"
            lines.append(
                f"template <> void run_mha_fwd_combine_<{kind}, float, {dim}>"
                f"(Flash_fwd_params& params, cudaStream_t stream, bool pdl) {{ {body} }}\n"
            )
    return "".join(lines)


def family(few: Few = FEW, profile: Profile = PROFILE) -> FamilyPlan:
    return fault_kernels.plan(profile, {"fwd": text(few, profile), "prepare": fault_kernels.text("fault_prepare.cu")})


def driven(builder: Builder, few: Few, profile: Profile, *, output: Path) -> tuple[set[str], set[str]]:
    """What the calls of `ci kernels` that have scales come to.

    Returns:
        The attention kernels that they launched, in words, and the errors that said something else than that one is
        absent.
    """
    made = library.make(builder, family(few, profile), output=output)
    asked = [call for call in calls(select(profile, Family.SM8X)) if "k_descale" in call.arguments]
    answers = made.ask(DEVICES["GB10"], asked)
    launched = {launch.kernel for answer in answers for launch in answer.launches}
    found = {str(kernels.variant(name)) for name in launched if kernels.kind(name) == "forward"}
    return found, {answer.error for answer in answers if answer.error and ABSENT not in answer.error}
