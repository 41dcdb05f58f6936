"""Edits that let the host code of the mma.sync families call kernels whose Q, K and V are e4m3. Data.

The kernels are ours (`csrc/fa3_fp8.h`). Nothing here is in a file that other kernels include.
"""

from __future__ import annotations

from ci.sources.patch import Change, Edit

_E4M3 = "torch::headeronly::ScalarType::Float8_e4m3fn"
_SAME = 'STD_TORCH_CHECK(v.scalar_type() == k.scalar_type(), "key and value must have the same dtype");\n'
_CHECKS = (
    "    if (fp8 && ::fa3::kArch < 90) {\n"
    "        STD_TORCH_CHECK(dprops->major * 10 + dprops->minor >= 89, "
    '"fp8 takes a device of compute capability 8.9 or later: older ones do not multiply it");\n'
    '        STD_TORCH_CHECK(!k_new_.has_value(), "kernels append nothing to K and V in fp8");\n'
    '        STD_TORCH_CHECK(v.size(-1) == q.size(-1), "Q, K and V in fp8 have one headdim");\n'
    "    }\n"
)


_BOUND = "because we might just underestimate kBlockN a bit\n"
# get_scheduler_metadata() is told of e4m3 and not whose, and must come to the call's number of splits. So both count
# the blocks of K and V in e4m3 beside another Q.
_ASKED = (
    "    auto kBlockMN_kernel_args_sm8x = tile_size_fwd_sm8x(params.arch == 86 || params.arch == 89, params.d_rounded, "
    "params.dv_rounded, params.is_causal, params.is_local, 2 /*element_size*/, params.page_table, varlen, "
    "params.softcap > 0.f, params.knew_ptr, params.is_kv8 || params.is_e4m3);\n"
)


FP8_PATCHES: tuple[Edit, ...] = (
    Edit(
        name="fp8-host",
        file="hopper/flash_api_stable.cpp",
        why="Q, K and V in e4m3 below Hopper: what such a call may be, its splits, and its kernel",
        changes=(
            Change(
                anchor="    if (::fa3::kArch < 90) {\n        STD_TORCH_CHECK(q_type == ",
                until='cards only supports fp16 and bf16 data type");\n    }\n',
                replacement=f"    bool const fp8 = q_type == {_E4M3};\n"
                "    #ifdef FLASHATTENTION_DISABLE_FP8\n"
                '    STD_TORCH_CHECK(!fp8, "This flash attention build does not support FP8.");\n'
                "    #endif\n",
            ),
            Change(anchor=_SAME, replacement=_SAME + _CHECKS),
            Change(
                anchor="run_mha_fwd_<90, cutlass::float_e4m3_t",
                replacement="run_mha_fwd_<Arch, cutlass::float_e4m3_t",
                count=6,
            ),
            Change(anchor=_BOUND, until="params.is_kv8);\n", replacement=_BOUND + _ASKED),
        ),
    ),
)
