"""Edits that give the kernels what upstream's lack: attention sinks, and the gradient of the LSE. Data.

Both are a pointer that may be null and is read at a tile's end or by a helper, so that no kernel is added.
"""

from __future__ import annotations

from ci.sources.patch import Change, Edit

_API = "hopper/flash_api_stable.cpp"
_SINKS = '#include "utils.h"\n#include "fa3_sinks.h"'
_NO_SINK_LSE = "::fa3::empty_lse(is_split ? nullptr : params.ptr_sinks, {head})"


def _added(anchor: str, more: str, *, count: int = 1) -> Change:
    """`more` after the anchor."""
    return Change(anchor=anchor, replacement=f"{anchor}{more}", count=count)


def _tensor(name: str) -> str:
    """Checks of an optional fp32 tensor `name_`, without its shape; it is left open."""
    return (
        f"\n    if ({name}_.has_value()) {{\n        Tensor {name} = {name}_.value();\n"
        f"        CHECK_DEVICE({name}); CHECK_CONTIGUOUS({name});\n"
        f"        STD_TORCH_CHECK({name}.scalar_type() == torch::headeronly::ScalarType::Float, "
        f'"{name} must have dtype float32");\n'
    )


FEATURE_PATCHES: tuple[Edit, ...] = (
    Edit(
        name="pointers",
        file="hopper/flash.h",
        why="what sinks and the LSE's gradient are given by",
        changes=(
            _added("void * __restrict__ softmax_lseaccum_ptr;", "\n    float * __restrict__ sinks_ptr;"),
            _added("void *__restrict__ softmax_lse_log2_ptr;", "\n    float *__restrict__ dlse_ptr;"),
        ),
    ),
    Edit(
        name="sinks-mainloop",
        file="hopper/mainloop_fwd_sm80.hpp",
        why="attention sinks: counted where a block has all keys of its rows",
        changes=(
            Change(anchor='#include "utils.h"', replacement=_SINKS),
            Change(
                anchor="block_coord,\n        SharedStorage& shared_storage\n",
                replacement="block_coord,\n        SharedStorage& shared_storage,\n        float const* sinks\n",
            ),
            _added(
                "Tensor scores_scale = softmax.finalize(v_descale);",
                "\n        if (sinks != nullptr && !::fa3::is_part<Split, Varlen>(split_idx, params.num_splits)) {\n"
                "            ::fa3::include_sinks<PackGQA, TileShape_MNK_PV>(sinks, softmax.row_sum, scores_scale, "
                "thr_mma, m_block, bidh, params.qhead_per_khead_divmod);\n        }",
            ),
        ),
    ),
    Edit(
        name="sinks-kernel",
        file="hopper/flash_fwd_kernel_sm80.h",
        why="the same: the pointer from the epilogue's parameters to the main loop",
        changes=(
            Change(
                anchor="seqlen_info, block_coord,\n                shared_storage);",
                replacement="seqlen_info, block_coord,\n                shared_storage, params.epilogue.ptr_sinks);",
            ),
        ),
    ),
    Edit(
        name="sinks-epilogue",
        file="hopper/epilogue_fwd.hpp",
        why="the same: a tile without a key",
        changes=(
            Change(anchor='#include "utils.h"', replacement=_SINKS),
            _added("int const* seqused = nullptr;", "\n        float const* ptr_sinks = nullptr;", count=2),
            Change(
                anchor="args.cu_seqlens, args.seqused}", replacement="args.cu_seqlens, args.seqused, args.ptr_sinks}"
            ),
            Change(
                anchor="mLSE(row) = -INFINITY;",
                replacement=f"mLSE(row) = {_NO_SINK_LSE.format(head='bidh')};",
            ),
            Change(
                anchor="(h_idx, m_idx))) = -INFINITY;",
                replacement=f"(h_idx, m_idx))) = {_NO_SINK_LSE.format(head='bidh * qhead_per_khead + h_idx')};",
            ),
        ),
    ),
    Edit(
        name="sinks-launch",
        file="hopper/flash_fwd_launch_template.h",
        why="the same: the pointer to the kernel",
        changes=(
            Change(
                anchor="params.cu_seqlens_q, params.seqused_q\n",
                replacement="params.cu_seqlens_q, params.seqused_q, params.sinks_ptr\n",
            ),
        ),
    ),
    Edit(
        name="sinks-combine",
        file="hopper/flash_fwd_combine_kernel.h",
        why="the same: once for all splits, when they are put together",
        changes=(
            Change(anchor='#include "utils.h"', replacement=_SINKS),
            _added(
                "int* const semaphore_to_reset = nullptr;", "\n        float const* const ptr_sinks = nullptr;", count=2
            ),
            _added("args.semaphore_to_reset", ",\n            args.ptr_sinks"),
            _added(
                "? 0.f : 1.f / lse_sum_cur;",
                "\n            int const sink_idx = m_block * kBlockM + int(get<1>(ts2rcLSE(_0{}, _0{}, m)));\n"
                "            if (params.ptr_sinks != nullptr && sink_idx < max_idx) {\n"
                "                int sink_row;\n"
                "                int const head = !Varlen ? params.seqlen_divmod.divmod(sink_row, sink_idx) : "
                "seqlen_divmod_dynamic.divmod(sink_row, sink_idx);\n"
                "                ::fa3::include_sink(params.ptr_sinks[head], lse_sum(m), inv_sum);\n"
                "            }",
            ),
        ),
    ),
    Edit(
        name="sinks-combine-launch",
        file="hopper/flash_fwd_combine_launch_template.h",
        why="the same: the pointer to the kernel",
        changes=(_added("params.varlen_batch_idx_ptr, params.tile_count_semaphore", ", params.sinks_ptr"),),
    ),
    Edit(
        name="lse-gradient-kernel",
        file="hopper/flash_bwd_preprocess_kernel.h",
        why="the gradient of the LSE: dS = P (dP - delta + dLSE), so it is taken off delta once a row",
        changes=(
            _added("int const* seqused = nullptr;", "\n        float const* ptr_dLSE = nullptr;", count=2),
            Change(anchor="args.seqused\n", replacement="args.seqused,\n            args.ptr_dLSE\n"),
            Change(
                anchor="gdPsum(row) = row < seqlen_o - m_block * kBlockM ? dP_sum(mi) : 0;",
                replacement="bool const inside = row < seqlen_o - m_block * kBlockM;\n"
                "                // A row without a key has no gradient, whatever its LSE's is.\n"
                "                bool const more = params.ptr_dLSE != nullptr && inside && gLSE(row) != -INFINITY;\n"
                "                gdPsum(row) = !inside ? 0 : more ? dP_sum(mi) - gdLSE(row) : dP_sum(mi);",
            ),
            _added(
                "make_coord(seqlen_info.offset), mLSE), Shape<Int<kBlockM>>{}, make_coord(m_block));",
                "\n        Tensor mdLSE = make_tensor(make_gmem_ptr(params.ptr_dLSE), shape_LSE, params.stride_LSE)"
                "(_, bidh, !is_varlen ? bidb : 0);\n"
                "        Tensor gdLSE = local_tile(cute::domain_offset(make_coord(seqlen_info.offset), mdLSE), "
                "Shape<Int<kBlockM>>{}, make_coord(m_block));",
            ),
        ),
    ),
    Edit(
        name="lse-gradient-launch",
        file="hopper/flash_bwd_launch_template.h",
        why="the same: the pointer to the kernel",
        changes=(
            Change(
                anchor="params.dq_semaphore,\n        params.cu_seqlens_q,\n        params.seqused_q\n",
                replacement="params.dq_semaphore,\n        params.cu_seqlens_q,\n        params.seqused_q,\n"
                "        params.dlse_ptr\n",
            ),
        ),
    ),
    Edit(
        name="feature-arguments",
        file=_API,
        why="the ops take sinks and the LSE's gradient, as a last argument",
        changes=(
            Change(
                anchor="        int64_t sm_margin\n        ) {",
                replacement="        int64_t sm_margin,\n        std::optional<Tensor> s_aux_\n        ) {",
            ),
            _added(
                "    params.num_pages = num_pages;",
                f"{_tensor('s_aux')}        CHECK_SHAPE(s_aux, num_heads);\n"
                '        STD_TORCH_CHECK(::fa3::kArch < 90, "attention sinks (s_aux) are not in Hopper\'s library");\n'
                "        params.sinks_ptr = static_cast<float*>(s_aux.data_ptr());\n    }",
            ),
            Change(
                anchor="    int64_t sm_margin\n) {",
                replacement="    int64_t sm_margin,\n    std::optional<Tensor> dlse_\n) {",
            ),
            _added(
                "    params.softmax_lse_log2_ptr = softmax_lse_log2.data_ptr();",
                f"{_tensor('dlse')}        if (is_varlen_q) {{\n            CHECK_SHAPE(dlse, num_heads, total_q);\n"
                "        } else {\n            CHECK_SHAPE(dlse, batch_size, num_heads, seqlen_q);\n        }\n"
                '        STD_TORCH_CHECK(::fa3::kArch < 90, "the gradient of the LSE is not in Hopper\'s library");\n'
                "        params.dlse_ptr = static_cast<float*>(dlse.data_ptr());\n    }",
            ),
            _added(
                "    auto sm_margin = to<int64_t>(stack[33]);",
                "\n    auto s_aux = to<std::optional<Tensor>>(stack[34]);",
            ),
            Change(
                anchor="scheduler_metadata, num_splits, pack_gqa, sm_margin)",
                replacement="scheduler_metadata, num_splits, pack_gqa, sm_margin, s_aux)",
            ),
            _added(
                "    auto sm_margin = to<int64_t>(stack[21]);",
                "\n    auto dlse = to<std::optional<Tensor>>(stack[22]);",
            ),
            Change(anchor="softcap, deterministic, sm_margin)", replacement="softcap, deterministic, sm_margin, dlse)"),
            Change(
                anchor='"int sm_margin = 0) -> (Tensor(out!), Tensor, Tensor, Tensor)"',
                replacement='"int sm_margin = 0,"\n'
                '        "Tensor? s_aux = None) -> (Tensor(out!), Tensor, Tensor, Tensor)"',
            ),
            Change(
                anchor='"bool deterministic = False,"\n        "int sm_margin = 0)',
                replacement='"bool deterministic = False,"\n        "int sm_margin = 0,"\n'
                '        "Tensor? dlse = None)',
            ),
        ),
    ),
)
