"""Edits that make a deterministic backward of the mma.sync families: sums in an order that is always the same. Data.

Its kernels are instantiations of their own, in files of their own (`bwd_ordered_*`); no other kernel changes.
"""

from __future__ import annotations

from ci.sources.patch import Change, Edit

_API = "hopper/flash_api_stable.cpp"
_BACKWARD = "hopper/flash_bwd_launch_template.h"
_TURNS = '#include "utils.h"\n#include "fa3_turns.h"'
_COUNTED = "n_block * num_batch * num_head_kv"  # Hopper's place among the counters

ORDER_PATCHES: tuple[Edit, ...] = (
    Edit(
        name="order-rows",
        file="hopper/mainloop_bwd_sm80.hpp",
        why="dQ is the sum of what blocks of keys add: each waits for its neighbour, as upstream's Hopper kernels do; "
        "from the last keys on under a causal mask, as the grid has it then",
        changes=(
            Change(anchor='#include "utils.h"', replacement=_TURNS),
            Change(
                anchor="Tensor tdQgdQaccum_atomic = tdQgdQaccum(_, _, m_block);",
                replacement="Tensor tdQgdQaccum_atomic = tdQgdQaccum(_, _, m_block);\n"
                "                [[maybe_unused]] int const num_head = get<2>(params.shape_Q);\n"
                "                [[maybe_unused]] int const place = ::fa3::turn_place<kBlockM>("
                "is_varlen_q, seqlen_info.offset_q, m_block, params.num_batch, num_head);\n"
                "                if constexpr (Deterministic) {\n"
                "                    auto const adding = BlockMN_t::get_n_block_min_max(\n"
                "                        seqlen_info, m_block, bidb, 0 /*split_idx*/, 1 /*num_splits*/, "
                "params.window_size_left, params.window_size_right,\n"
                "                        params.attention_chunk_divmod, params.qhead_per_khead_divmod);\n"
                "                    ::fa3::Turns::wait_eq(params.dq_semaphore + bidb * num_head + bidh, thread_idx, "
                "place,\n"
                "                        Is_causal ? get<1>(adding) - 1 - n_block : n_block - get<0>(adding));\n"
                "                }",
            ),
            Change(
                anchor="{ atomicAdd(&tdQgdQaccum_atomic(i), tdQrdQ_atomic(i)); }",
                replacement="{ atomicAdd(&tdQgdQaccum_atomic(i), tdQrdQ_atomic(i)); }\n"
                "                if constexpr (Deterministic) {\n"
                "                    ::fa3::Turns::arrive_inc("
                "params.dq_semaphore + bidb * num_head + bidh, thread_idx, place);\n"
                "                }",
            ),
        ),
    ),
    Edit(
        name="order-heads",
        file="hopper/epilogue_bwd.hpp",
        why="dK and dV of grouped heads are sums over the group: all warps wait, where one was enough for Hopper",
        changes=(
            Change(anchor='#include "utils.h"', replacement=_TURNS),
            Change(anchor=_COUNTED, replacement="place", count=4),
            Change(
                anchor="using Barrier = cutlass::GenericBarrier<cutlass::detail::SyncwarpSync>;",
                replacement="using Barrier = std::conditional_t<"
                "Use_TMA, cutlass::GenericBarrier<cutlass::detail::SyncwarpSync>, ::fa3::Turns>;\n"
                f"        [[maybe_unused]] int const place = Use_TMA ? {_COUNTED} : ::fa3::turn_place<kBlockN>("
                "is_varlen, seqlen_info.offset, n_block, num_batch, num_head_kv);",
            ),
        ),
    ),
    Edit(
        name="order-launch",
        file=_BACKWARD,
        why="the ordered kernels are asked for by an argument of their own, so that a file has these or the others; "
        "their counters are set to zero by the host code",
        changes=(
            Change(
                anchor="Deterministic = Deterministic_ && kHeadDim < 256;",
                replacement="Deterministic = Arch >= 90 ? Deterministic_ && kHeadDim < 256 : Ordered;",
            ),
            Change(
                anchor="template<int Arch, typename T, int kBlockM,",
                replacement="template<bool Ordered, int Arch, typename T, int kBlockM,",
            ),
            Change(
                anchor="template<int Arch, typename T, bool Has_softcap>\nvoid run_mha_bwd_hdim",
                replacement="template<int Arch, typename T, bool Has_softcap, bool Ordered = false>\n"
                "void run_mha_bwd_hdim",
                count=5,
            ),
            Change(anchor="run_mha_bwd_dispatch<Arch,", replacement="run_mha_bwd_dispatch<Ordered, Arch,", count=21),
            Change(
                anchor="params.dq_semaphore,\n        params.cu_seqlens_q,\n        params.seqused_q,",
                replacement="Deterministic && Arch < 90 ? nullptr : params.dq_semaphore,\n"
                "        params.cu_seqlens_q,\n        params.seqused_q,",
            ),
        ),
    ),
    Edit(
        name="order-declared",
        file="hopper/flash.h",
        why="the same: the entry point's argument",
        changes=(
            Change(
                anchor="template <int Arch, typename T, int kHeadDim, bool Has_softcap>\nvoid run_mha_bwd_(",
                replacement="template <int Arch, typename T, int kHeadDim, bool Has_softcap, bool Ordered = false>\n"
                "void run_mha_bwd_(",
            ),
        ),
    ),
    Edit(
        name="order-host",
        file=_API,
        why="the same: counters for every block of rows and keys, and the choice; a library without refuses",
        changes=(
            Change(
                anchor="STD_TORCH_CHECK(!deterministic || head_size_rounded < 256,",
                replacement="#ifdef FLASHATTENTION_DISABLE_DETERMINISTIC\n"
                "    STD_TORCH_CHECK(!deterministic || ::fa3::kArch >= 90, "
                '"This flash attention build does not support a deterministic backward.");\n    #endif\n'
                "    STD_TORCH_CHECK(!deterministic || head_size_rounded < 256 || ::fa3::kArch < 90,",
            ),
            Change(
                anchor="template <int Arch, bool Has_softcap>\nvoid run_mha_bwd_constexpr",
                replacement="template <int Arch, bool Has_softcap, bool Ordered>\nvoid run_mha_bwd_constexpr",
            ),
            Change(
                anchor="Has_softcap>(params, stream); }",
                replacement="Has_softcap, Ordered>(params, stream); }",
                count=10,
            ),
            Change(
                anchor="run_mha_bwd_constexpr<Arch, Has_softcap>(params, stream);",
                replacement="#ifndef FLASHATTENTION_DISABLE_DETERMINISTIC\n"
                "            if constexpr (Arch < 90) {\n"
                "                if (params.deterministic) "
                "{ return run_mha_bwd_constexpr<Arch, Has_softcap, true>(params, stream); }\n"
                "            }\n            #endif\n"
                "            run_mha_bwd_constexpr<Arch, Has_softcap, false>(params, stream);",
            ),
            Change(
                anchor="Tensor dk_semaphore, dv_semaphore;",
                replacement="Tensor dk_semaphore, dv_semaphore;\n"
                "    // A sequence: as many as the longest has blocks, and as packed ones need on the average.\n"
                "    int const sequences = std::max(batch_size, 1);\n"
                "    int const num_m_turns = std::max(seqlen_q_rounded / kBlockM, total_q / kBlockM / sequences + 2);\n"
                "    int const num_n_turns = std::max(seqlen_k_rounded / kBlockN, total_k / kBlockN / sequences + 2);\n"
                "    if (params.deterministic && arch < 90) {\n"
                "        dq_semaphore = torch::stable::new_zeros(q, {num_m_turns, batch_size, num_heads}, "
                "std::make_optional(torch::headeronly::ScalarType::Int));\n"
                "        params.dq_semaphore = static_cast<int*>(dq_semaphore.data_ptr());\n    }",
            ),
            Change(
                anchor="{(seqlen_k + kBlockN - 1) / kBlockN, batch_size, num_heads_k}",
                replacement="{num_n_turns, batch_size, num_heads_k}",
                count=2,
            ),
        ),
    ),
)
