"""Edits that let the host code of the mma.sync families call kernels with a second query for V (q_v). Data.

The kernels are ours (`csrc/fa3_qv.h`). Nothing here is in a file that other kernels include.
"""

from __future__ import annotations

from ci.sources.patch import Change, Edit

_CHOOSE = "void run_mha_fwd_constexpr(Flash_fwd_params &params, cudaStream_t stream) {\n"
_VALUES = 'STD_TORCH_CHECK(::fa3::kArch == 90 || softcap == 0.0, "below Hopper, different V headdim with softcap'
_APPEND = "    if (k_new_.has_value()) {  // This needs to be set before get_pagedkv_tma\n"
_ROUNDED = "    params.dv_rounded = head_size_v_rounded;\n    if (leftpad_k_"


def _kernel(dtype: str) -> str:
    arguments = f"Arch, ::fa3::Qv<cutlass::{dtype}>, 64, 512, Split, PagedKVNonTMA, Has_softcap, PackGQA"
    return f"return run_mha_fwd_<{arguments}>(params, stream);"


QV_PATCHES: tuple[Edit, ...] = (
    Edit(
        name="qv-host",
        file="hopper/flash_api_stable.cpp",
        why="q_v, and V of more than 256 columns, below Hopper: what such a call may be, its tile, and its kernel",
        changes=(
            Change(
                anchor=_CHOOSE,
                replacement=f"{_CHOOSE}"
                "    #ifndef FLASHATTENTION_DISABLE_QV\n"
                "    if constexpr (Arch < 90 && !Has_softcap) {\n"
                "        if (params.qv_ptr || params.dv > 256) {\n"
                f"            if (params.is_bf16) {{ {_kernel('bfloat16_t')} }}\n"
                "            #ifndef FLASHATTENTION_DISABLE_FP16\n"
                f"            {_kernel('half_t')}\n"
                "            #endif\n"
                "        }\n"
                "    }\n"
                "    #endif\n",
            ),
            Change(
                anchor=_VALUES,
                replacement="#ifdef FLASHATTENTION_DISABLE_QV\n"
                '        STD_TORCH_CHECK(::fa3::kArch == 90 || head_size_v <= 256, "V headdim ", head_size_v, '
                '" takes the kernels for q_v, which this flash attention build does not have");\n'
                f"        #endif\n        {_VALUES}",
            ),
            Change(
                anchor=_ROUNDED,
                replacement="    bool const qv_kernel = ::fa3::kArch < 90 && (q_v_.has_value() || head_size_v > 256);\n"
                "    params.dv_rounded = qv_kernel ? 512 : head_size_v_rounded;\n"
                "    // Whoever made the metadata was not told of q_v, and counted the rows of another tile.\n"
                "    if (qv_kernel && head_size_v <= 256) { scheduler_metadata_.reset(); }\n    if (leftpad_k_",
            ),
            Change(
                anchor=_APPEND,
                replacement='    STD_TORCH_CHECK(!qv_kernel || !k_new_.has_value(), "kernels append nothing beside q_v '
                f'or a V headdim above 256");\n{_APPEND}',
            ),
            Change(
                anchor='STD_TORCH_CHECK(params.arch == 90, "q_v is only supported for Hopper GPUs");',
                replacement="#ifdef FLASHATTENTION_DISABLE_QV\n"
                '        STD_TORCH_CHECK(params.arch == 90, "This flash attention build does not support q_v.");\n'
                "        #endif",
            ),
        ),
    ),
)
