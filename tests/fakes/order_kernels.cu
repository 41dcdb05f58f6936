// Very few deterministic kernels (bf16, head dim 64), and one of them without an order. BSD-3-Clause, see LICENSE.
//
// The host code that calls them is the real one. A kernel that it asks for and that is not here is an error.
#include <stdexcept>

#include "flash_bwd_launch_template.h"

using T = cutlass::bfloat16_t;

[[noreturn]] static void absent() {
    throw std::runtime_error("this kernel is not among the few");
}

#define BACKWARD(CAUSAL, LOCAL, LENGTHS, ORDERED, GROUPED)                                                           \
    run_flash_bwd<86, 64, 64, 128, T, CAUSAL, LOCAL, false, LENGTHS, ORDERED, GROUPED, 2, 2, false, false, false, 2, \
                  2, 4, 2, true>(params, stream)

template <>
void run_mha_bwd_<86, T, 64, false, true>(Flash_bwd_params& params, cudaStream_t stream) {
    bool const lengths = params.cu_seqlens_q || params.seqused_q, grouped = params.h != params.h_k;
    if (params.is_causal && lengths && grouped) return BACKWARD(true, false, true, true, true);
    if (params.is_local && lengths && !grouped) return BACKWARD(false, true, true, true, false);
    if (!params.is_causal && !params.is_local && !lengths && grouped) return BACKWARD(false, false, false, true, true);
    absent();
}
template <>
void run_mha_bwd_<86, T, 64, false, false>(Flash_bwd_params& params, cudaStream_t stream) {
    if (params.is_causal || params.is_local || params.cu_seqlens_q || params.seqused_q || params.h == params.h_k)
        absent();
    BACKWARD(false, false, false, false, true);
}

template <>
void run_mha_fwd_<86, T, 64, 64, false, false, false, true>(Flash_fwd_params&, cudaStream_t) {
    absent();
}
void prepare_varlen_num_blocks(Flash_fwd_params&, cudaStream_t, bool, int, int, bool) {
    absent();
}
