"""Edits that let the mma.sync forward read K and V in e4m3 beside a Q in bf16 or fp16. Data.

A kernel whose element type is fa3::Kv8<T> has Q of type T. For every other type all types are what they were, and so
is the code.
"""

from __future__ import annotations

from ci.sources.patch import Change, Edit

_API = "hopper/flash_api_stable.cpp"
_E4M3 = "torch::headeronly::ScalarType::Float8_e4m3fn"
_CHECKS = (
    f"    bool const kv8 = k.scalar_type() == {_E4M3} && q_type != {_E4M3};\n"
    '    STD_TORCH_CHECK(kv8 || k.scalar_type() == q_type, "query and key must have the same dtype");\n'
    '    STD_TORCH_CHECK(v.scalar_type() == k.scalar_type(), "key and value must have the same dtype");\n'
    "    if (kv8) {\n"
    '        STD_TORCH_CHECK(::fa3::kArch < 90, "K and V in fp8 beside another Q are not in Hopper\'s library");\n'
    "        #ifdef FLASHATTENTION_DISABLE_KV8\n"
    '        STD_TORCH_CHECK(false, "This flash attention build does not support K and V in fp8 beside another Q.");\n'
    "        #endif\n"
    "        STD_TORCH_CHECK(::fa3::code_for(dprops->major, dprops->minor) >= 89, "
    '"K and V in fp8 take compute capability 8.9 or later, and code for it in this library: older code cannot convert '
    'them");\n'
    '        STD_TORCH_CHECK(!k_new_.has_value(), "kernels append nothing to K and V in fp8 beside another Q");\n'
    '        STD_TORCH_CHECK(v.size(-1) == q.size(-1), "K and V in fp8 beside another Q have one headdim");\n'
    "    }\n"
)
_DIMS = (64, 96, 128, 192, 256)
_LAUNCHER = (
    "template <int Arch, typename T, int Split, bool PagedKVNonTMA, bool PackGQA, bool Has_softcap>\n"
    "void run_mha_fwd_kv8(Flash_fwd_params &params, cudaStream_t stream) {\n"
    + "".join(
        f"    #ifndef FLASHATTENTION_DISABLE_HDIM{dim}\n"
        f"    if (params.d <= {dim}) {{ return run_mha_fwd_<Arch, ::fa3::Kv8<T>, {dim}, {dim}, Split, PagedKVNonTMA, "
        "Has_softcap, PackGQA>(params, stream); }\n"
        "    #endif\n"
        for dim in _DIMS
    )
    + "}\n\n"
)
_CHOICE = (
    "    #ifndef FLASHATTENTION_DISABLE_KV8\n"
    "    if constexpr (Arch < 90) {\n"
    "        if (params.is_kv8 && params.is_bf16) {\n"
    "            return run_mha_fwd_kv8<Arch, cutlass::bfloat16_t, Split, PagedKVNonTMA, PackGQA, Has_softcap>"
    "(params, stream);\n"
    "        }\n"
    "        #ifndef FLASHATTENTION_DISABLE_FP16\n"
    "        if (params.is_kv8) {\n"
    "            return run_mha_fwd_kv8<Arch, cutlass::half_t, Split, PagedKVNonTMA, PackGQA, Has_softcap>"
    "(params, stream);\n"
    "        }\n"
    "        #endif\n"
    "    }\n"
    "    #endif\n"
)
_HEAD = "template <int Arch, int Split, bool PagedKVNonTMA, bool PackGQA, bool Has_softcap>\n"
_STAGE = (
    "::fa3::Stage<kBlockN, kHeadDim, NumMmaThreads> const stage{shared_storage.tensors.mainloop.staged, thread_idx};\n"
)

KV8_PATCHES: tuple[Edit, ...] = (
    Edit(
        name="kv8-mainloop",
        file="hopper/mainloop_fwd_sm80.hpp",
        why="K and V in e4m3 beside a 16-bit Q: their bytes are copied, and widened where the MMAs read",
        changes=(
            Change(anchor='#include "fa3_values.h"', replacement='#include "fa3_values.h"\n#include "fa3_widen.h"'),
            Change(
                anchor="    using Element = Element_;\n",
                replacement="    using Element = typename ::fa3::Stored<Element_>::Q;\n"
                "    using ElementKV = typename ::fa3::Stored<Element_>::KV;\n"
                "    static constexpr bool Is_kv8 = ::fa3::Stored<Element_>::kWidened;\n"
                "    static_assert(!Is_kv8 || "
                "(kStages == 1 && !AppendKV_ && kHeadDimV == get<2>(TileShape_MNK_{})));\n",
            ),
            Change(anchor="Element* const ptr_K;", replacement="ElementKV* const ptr_K;", count=2),
            Change(anchor="Element* const ptr_V;", replacement="ElementKV* const ptr_V;", count=2),
            Change(
                anchor="using TensorStorage = std::conditional_t<Share_QV_Smem, "
                "TensorStorageSharedQV, TensorStorageSeparateQV>;",
                replacement="using TensorStoragePlain = std::conditional_t<Share_QV_Smem, "
                "TensorStorageSharedQV, TensorStorageSeparateQV>;\n"
                "    using TensorStorage = std::conditional_t<Is_kv8, "
                "::fa3::Staged<TensorStoragePlain, 2 * kBlockN * kHeadDim>, TensorStoragePlain>;",
            ),
            Change(
                anchor="NumMmaThreads, Element, true /*KV_Same_Iter*/>;",
                replacement="NumMmaThreads, ElementKV, true /*KV_Same_Iter*/>;",
            ),
            Change(
                anchor="auto load_K = [&]",
                until="if constexpr (!PagedKV) {",
                replacement="auto load_K = [&] "
                "(int const n_block, int const smem_pipe_write, auto need_seqlenk_masking_type) {\n"
                "            static constexpr bool Seqlenk_mask = decltype(need_seqlenk_masking_type)::value;\n"
                "            if constexpr (Is_kv8) {  // K and V\n"
                f"                {_STAGE}"
                "                if constexpr (PagedKV) {\n"
                "                    paged_kv_manager.template load_page_table<Seqlenk_mask>(n_block);\n"
                "                    paged_kv_manager.template load_K<Seqlenk_mask>(n_block, stage.keys());\n"
                "                    paged_kv_manager.template load_V<Seqlenk_mask>(n_block, stage.values());\n"
                "                } else {\n"
                "                    stage.template load<Seqlenk_mask>(gK(_, _, n_block), gV(_, _, n_block), "
                "seqlen_info.seqlen_k - n_block * kBlockN, get<1>(params.shape_K));\n"
                "                }\n"
                "            } else if constexpr (!PagedKV) {",
            ),
            Change(
                anchor="auto load_V = [&]",
                until="if constexpr (!PagedKV) {",
                replacement="auto load_V = [&] "
                "(int const n_block, int const smem_pipe_write, auto need_seqlenk_masking_type) {\n"
                "            static constexpr bool Seqlenk_mask = decltype(need_seqlenk_masking_type)::value;\n"
                "            if constexpr (Is_kv8) {  // it came with K\n"
                "            } else if constexpr (!PagedKV) {",
            ),
            Change(
                anchor="clear(tSrS);\n            sync();\n",
                replacement="clear(tSrS);\n            sync();\n"
                "            if constexpr (Is_kv8) {\n"
                f"                {_STAGE}"
                "                stage.widen(sK(_, _, _0{}), sV(_, _, _0{}));\n"
                "                load_K_next();\n"
                "                __syncthreads();\n"
                "            }\n",
            ),
            Change(
                anchor="if constexpr (kStages == 1) { sync(); load_K_next(); }",
                replacement="if constexpr (kStages == 1 && !Is_kv8) { sync(); load_K_next(); }",
            ),
            Change(
                anchor="if constexpr (Has_softcap && Is_FP8) {",
                replacement="if constexpr (Has_softcap && (Is_FP8 || Is_kv8)) {",
            ),
            Change(
                anchor="!Is_FP8 || params.ptr_v_descale == nullptr",
                replacement="!(Is_FP8 || Is_kv8) || params.ptr_v_descale == nullptr",
            ),
        ),
    ),
    Edit(
        name="kv8-kernel",
        file="hopper/flash_fwd_kernel_sm80.h",
        why="the same: the scales of Q and K go into that of the scores",
        changes=(
            Change(
                anchor="if constexpr (Is_FP8 && !Has_softcap) {",
                replacement="if constexpr ((Is_FP8 || CollectiveMainloop::Is_kv8) && !Has_softcap) {",
            ),
        ),
    ),
    Edit(
        name="kv8-tiles",
        file="hopper/tile_size.h",
        why="the same: the bytes take shared memory, too",
        changes=(
            Change(
                anchor="bool softcap=false, bool append_kv=false) {\n    if (element_size == 2 && ::fa3::has_own_tile(",
                replacement="bool softcap=false, bool append_kv=false, bool kv8=false) {\n"
                "    if (element_size == 2 && (kv8 || ::fa3::has_own_tile(",
            ),
            Change(anchor="has_own_tile(sm86_or_89, headdim)) {", replacement="has_own_tile(sm86_or_89, headdim))) {"),
            Change(
                anchor="varlen_and_split, softcap, append_kv});",
                replacement="varlen_and_split, softcap, append_kv, kv8});",
            ),
        ),
    ),
    Edit(
        name="kv8-launch",
        file="hopper/flash_fwd_launch_template.h",
        why="the same: pointers of K and V have their own type; nothing is appended",
        changes=(
            Change(anchor='#include "flash.h"', replacement='#include "fa3_kv8.h"\n#include "flash.h"'),
            Change(
                anchor="int ClusterM, typename Element, typename ElementOut,",
                replacement="int ClusterM, typename KernelElement, typename ElementOut,",
            ),
            Change(
                anchor="void run_flash_fwd(Flash_fwd_params &params, cudaStream_t stream) {\n",
                replacement="void run_flash_fwd(Flash_fwd_params &params, cudaStream_t stream) {\n"
                "    using Element = typename ::fa3::Stored<KernelElement>::Q;\n"
                "    using ElementKV = typename ::fa3::Stored<KernelElement>::KV;\n",
            ),
            Change(
                anchor="Varlen && Split, Has_softcap, AppendKV);",
                replacement="Varlen && Split, Has_softcap, AppendKV, ::fa3::Stored<KernelElement>::kWidened);",
            ),
            Change(
                anchor="Q_in_regs, TileShape_MNK, kHeadDimV, Element, float, cutlass::arch::Sm80,",
                replacement="Q_in_regs, TileShape_MNK, kHeadDimV, KernelElement, float, cutlass::arch::Sm80,",
            ),
            Change(anchor="static_cast<Element*>(params.k_ptr)", replacement="static_cast<ElementKV*>(params.k_ptr)"),
            Change(anchor="static_cast<Element*>(params.v_ptr)", replacement="static_cast<ElementKV*>(params.v_ptr)"),
            Change(anchor="params.dv, sizeof(Element),", replacement="params.dv, sizeof(ElementKV),"),
            Change(
                anchor="using T_out = std::conditional_t<!Is_FP8, T, cutlass::bfloat16_t>;",
                replacement="using T_out = "
                "std::conditional_t<!Is_FP8, typename ::fa3::Stored<T>::Q, cutlass::bfloat16_t>;",
            ),
            Change(
                anchor="AppendKV && Varlen, HasQv,",
                replacement="AppendKV && Varlen && !::fa3::Stored<T>::kWidened, HasQv,",
            ),
        ),
    ),
    Edit(
        name="kv8-pointers",
        file="hopper/flash.h",
        why="the same: what a call is",
        changes=(Change(anchor="    bool is_e4m3;\n", replacement="    bool is_e4m3;\n    bool is_kv8;\n"),),
    ),
    Edit(
        name="kv8-prepare",
        file="hopper/flash_prepare_scheduler.cu",
        why="the same: how much of K and V the L2 cache holds",
        changes=(Change(anchor="params.is_e4m3 ? 1 : 2", replacement="params.is_e4m3 || params.is_kv8 ? 1 : 2"),),
    ),
    Edit(
        name="kv8-host",
        file=_API,
        why="the same: what such a call may be, and its kernel",
        changes=(
            Change(anchor='#include "flash.h"', replacement='#include "fa3_kv8.h"\n#include "flash.h"'),
            Change(
                anchor='cards only supports fp16 and bf16 data type");',
                until='"query and value must have the same dtype");\n',
                replacement=f'cards only supports fp16 and bf16 data type");\n    }}\n{_CHECKS}',
            ),
            Change(
                anchor=f"    params.is_e4m3 = q.scalar_type() == {_E4M3};\n",
                replacement=f"    params.is_e4m3 = q.scalar_type() == {_E4M3};\n"
                f"    params.is_kv8 = !params.is_e4m3 && k.scalar_type() == {_E4M3};\n",
            ),
            Change(
                anchor=f"    params.is_e4m3 = qkv_dtype == {_E4M3};\n",
                replacement=f"    params.is_e4m3 = ::fa3::kArch == 90 && qkv_dtype == {_E4M3};\n"
                f"    params.is_kv8 = ::fa3::kArch < 90 && qkv_dtype == {_E4M3};\n",
            ),
            Change(
                anchor=_HEAD,
                until="cudaStream_t stream) {\n",
                replacement=f"{_LAUNCHER}{_HEAD}void run_mha_fwd_constexpr(Flash_fwd_params &params, "
                f"cudaStream_t stream) {{\n{_CHOICE}",
            ),
            Change(
                anchor="params.softcap > 0.f, params.knew_ptr);",
                replacement="params.softcap > 0.f, params.knew_ptr, params.is_kv8);",
                count=2,
            ),
            Change(
                anchor="(params.d + params.dv) * (params.is_e4m3 ? 1 : 2);",
                replacement="(params.d + params.dv) * (params.is_e4m3 || params.is_kv8 ? 1 : 2);",
            ),
            Change(
                anchor=f"int const alignment = q_type == {_E4M3} ? 16 : 8;",
                replacement=f"int const alignment = k.scalar_type() == {_E4M3} ? 16 : 8;",
            ),
            Change(
                anchor=f"    if (q_type == {_E4M3}) {{\n        if (q_descale_.has_value()) {{",
                replacement=f"    if (k.scalar_type() == {_E4M3}) {{\n        if (q_descale_.has_value()) {{",
            ),
        ),
    ),
)
