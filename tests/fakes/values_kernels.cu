// Very few forward kernels whose V has a head dim of its own (bf16). BSD-3-Clause, see LICENSE.
//
// The host code that calls them is the real one. A kernel that it asks for and that is not here is an error.
#include <stdexcept>

#include "fa3_tiles.h"

#include "flash_fwd_launch_template.h"

using T = cutlass::bfloat16_t;

[[noreturn]] static void absent() {
    throw std::runtime_error("this kernel is not among the few");
}

#define FORWARD(DIM, DIM_V, PAGED) \
    template <>                    \
    void run_mha_fwd_<86, T, DIM, DIM_V, false, PAGED, false, true>(Flash_fwd_params & params, cudaStream_t stream)
// Causal, local, lengths, new keys.
#define RUN(DIM, DIM_V, PAGED, CAUSAL, LOCAL, LENGTHS, APPEND)                                                       \
    run_flash_fwd<86, DIM, DIM_V, 1, T, T, CAUSAL, LOCAL, false, LENGTHS, PAGED, APPEND, false, true, false, false>( \
        params, stream)
#define ABSENT(DIM, DIM_V, PAGED) \
    FORWARD(DIM, DIM_V, PAGED) {  \
        absent();                 \
    }

FORWARD(192, 128, false) {
    if (params.is_causal && !params.seqused_k) return RUN(192, 128, false, true, false, false, false);
    if (!params.is_causal && !params.is_local && params.knew_ptr) return RUN(192, 128, false, false, false, true, true);
    absent();
}
FORWARD(64, 256, true) {
    if (params.is_causal || params.is_local || params.knew_ptr) absent();
    RUN(64, 256, true, false, false, true, false);
}
ABSENT(192, 128, true)
ABSENT(64, 128, false)
ABSENT(64, 128, true)
ABSENT(64, 256, false)
ABSENT(64, 64, false)
ABSENT(64, 64, true)
ABSENT(192, 192, false)
ABSENT(192, 192, true)

// What it writes is read where keys are split, and no kernel here splits them.
void prepare_varlen_num_blocks(Flash_fwd_params&, cudaStream_t, bool, int, int, bool) {}
