"""Edits that mend faults of upstream's, found by executing compiled kernels. Data; ci/sources/patch.py applies them.

csrc/README.md says what each could do, and what else was looked at; tests/prove/test_faults.py shows every one of them.
"""

from __future__ import annotations

from ci.sources.patch import Change, Edit

_V_ROUNDED = (
    "int const head_size_v_rounded = head_size_v == head_size ? head_size_rounded : round_up_headdimv(head_size_v);"
)

FAULT_PATCHES: tuple[Edit, ...] = (
    Edit(
        name="append-barrier",
        file="hopper/mainloop_fwd_sm80.hpp",
        why="a block's next tile loads new keys over output that other warps of the block still read: the barrier that "
        "guards it comes before the first load, not behind it",
        changes=(
            Change(
                anchor="int n_block = n_block_new_max - 1;",
                replacement="int n_block = n_block_new_max - 1;\n        __syncthreads();",
            ),
            Change(anchor="if constexpr (Is_first_stage) { __syncthreads(); }", replacement=""),
        ),
    ),
    Edit(
        name="rotary-bound",
        file="hopper/rotary.h",
        why="rotated keys are written past the head where the head dim is below the kernel's: only the right half of a "
        "pair was checked against it",
        changes=(
            Change(
                anchor="cute::copy(tiled_copy_k, rK_left, gK_cur_copy(_, col_idx_left));",
                replacement="if (col_idx_left * kGmemElemsPerLoad < max_k) {\n"
                "                            cute::copy(tiled_copy_k, rK_left, gK_cur_copy(_, col_idx_left));\n"
                "                        }",
            ),
        ),
    ),
    Edit(
        name="combine-batch",
        file="hopper/flash_fwd_combine_kernel.h",
        why="with seqused_q alone, Q is not packed: partial results have a batch index, which combine dropped",
        changes=(
            Change(anchor="!Varlen ? batch : 0", replacement="!(Varlen && params.cu_seqlens) ? batch : 0", count=4),
        ),
    ),
    Edit(
        name="combine-shapes",
        file="hopper/flash_fwd_combine_launch_template.h",
        why="the same: shapes and strides of a packed Q only where it is packed",
        changes=(Change(anchor="!Varlen ? ", replacement="!params.cu_seqlens_q ? ", count=9),),
    ),
    Edit(
        name="backward-lengths",
        file="hopper/flash_bwd_launch_template.h",
        why="seqused_q and seqused_k without cu_seqlens were ignored by the backward, unlike by the forward",
        changes=(
            Change(
                anchor="params.cu_seqlens_q != nullptr || params.cu_seqlens_k != nullptr",
                replacement="params.cu_seqlens_q || params.cu_seqlens_k || params.seqused_q || params.seqused_k",
            ),
        ),
    ),
    Edit(
        name="backward-key-batches",
        file="hopper/flash_api_stable.cpp",
        why="with a packed Q and a K that is not, nothing set the batch strides of dK and dV: they were written "
        "wherever what was on the stack led",
        changes=(
            Change(anchor="Flash_bwd_params params;", replacement="Flash_bwd_params params{};"),
            Change(
                anchor="        params.dk_batch_stride = dk.stride(0);",
                replacement="    }\n    if (cu_seqlens_k_d == nullptr) {\n"
                "        params.dk_batch_stride = dk.stride(0);",
            ),
        ),
    ),
    Edit(
        name="bounds",
        file="hopper/flash_api_stable.cpp",
        why="what kernels read by a bound of another tensor must be as large as that: the LSE of a backward, "
        "the batch index of a cache; rotary tables and partial results are read 16 bytes at a time; a kernel must have "
        "room for V's heads",
        changes=(
            Change(
                anchor="    Tensor dq, dk, dv;\n",
                replacement="    STD_TORCH_CHECK(softmax_lse.scalar_type() == torch::headeronly::ScalarType::Float, "
                '"softmax_lse must have dtype float32");\n'
                "    CHECK_CONTIGUOUS(softmax_lse);\n"
                "    if (is_varlen_q) {\n        CHECK_SHAPE(softmax_lse, num_heads, total_q);\n"
                "    } else {\n        CHECK_SHAPE(softmax_lse, batch_size, num_heads, seqlen_q);\n    }\n"
                "    Tensor dq, dk, dv;\n",
            ),
            Change(
                anchor=_V_ROUNDED,
                replacement=f"{_V_ROUNDED}\n"
                "    #if defined(FLASHATTENTION_DISABLE_HDIM64) || defined(FLASHATTENTION_DISABLE_HDIMDIFF64)\n"
                "    bool const wide_v = false;\n"
                "    #else\n"
                "    bool const wide_v = head_size <= 64 && q_type != torch::headeronly::ScalarType::Float8_e4m3fn;\n"
                "    #endif\n"
                "    STD_TORCH_CHECK(wide_v || head_size_v <= head_size_rounded, "
                '"head_size_v ", head_size_v, " is more than the kernel for head_size ", head_size, " has room for: ", '
                "head_size_rounded);",
            ),
            Change(
                anchor="CHECK_CONTIGUOUS(kv_batch_idx);",
                replacement="CHECK_CONTIGUOUS(kv_batch_idx); CHECK_SHAPE(kv_batch_idx, batch_size);",
            ),
            Change(
                anchor="CHECK_CONTIGUOUS(rotary_cos);",
                replacement="CHECK_CONTIGUOUS(rotary_cos); FA3_CHECK_ALIGNED(rotary_cos);",
            ),
            Change(
                anchor="CHECK_CONTIGUOUS(rotary_sin);",
                replacement="CHECK_CONTIGUOUS(rotary_sin); FA3_CHECK_ALIGNED(rotary_sin);",
            ),
            Change(
                anchor="out_partial_padded = pad(out_partial, alignment);",
                replacement="out_partial_padded = pad(out_partial, alignment); FA3_CHECK_ALIGNED(out_partial_padded);",
            ),
        ),
    ),
    Edit(
        name="many-rows",
        file="hopper/flash_api_stable.cpp",
        why="batch times length, in 32 bits, said that there are no rows or no keys: 2048 sequences sharing 2^20 keys "
        "got zeros, and an LSE of infinity",
        changes=(
            Change(
                anchor="if (total_q > 0 && (total_k + params.total_knew) > 0 && num_heads_k > 0) {",
                replacement="if (q.numel() > 0 && (k.size(is_varlen_k ? 0 : 1) > 0 || params.total_knew > 0) && "
                "num_heads_k > 0) {",
            ),
            Change(
                anchor="} else if (total_q > 0 && num_heads_k > 0) {\n        // If seqlen_k == 0",
                replacement="} else if (q.numel() > 0 && num_heads_k > 0) {\n        // If seqlen_k == 0",
            ),
        ),
    ),
)
