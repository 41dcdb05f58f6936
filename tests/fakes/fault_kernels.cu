// Very few kernels (bf16, head dim 64), enough to run every mended fault. BSD-3-Clause, see LICENSE.
//
// The host code that calls them is the real one. A kernel that it asks for and that is not here is an error that says
// so. FEW_MORE: the backward's kernels are here, and not their names alone, and one for decoding from pages.
#include <stdexcept>
#include <string>

#include "fa3_tile_64.h"

namespace fa3 {
constexpr Tile forward_tile(int, int, Variant const& variant) {
    return tile_64(variant);
}
}  // namespace fa3

#include "flash_fwd_combine_launch_template.h"
#include "flash_fwd_launch_template.h"

// Of the backward's switches, only the one in question stays one: upstream's choice of kernels that know lengths.
#undef BOOL_SWITCH
#define BOOL_SWITCH(CONDITION, NAME, ...)   \
    [&] {                                   \
        constexpr static bool NAME = false; \
        return __VA_ARGS__();               \
    }()
#undef VARLEN_SWITCH
#define VARLEN_SWITCH(CONDITION, NAME, ...)     \
    [&] {                                       \
        if (CONDITION) {                        \
            constexpr static bool NAME = true;  \
            return __VA_ARGS__();               \
        } else {                                \
            constexpr static bool NAME = false; \
            return __VA_ARGS__();               \
        }                                       \
    }()
#include "flash_bwd_launch_template.h"

using T = cutlass::bfloat16_t;

[[noreturn]] static void absent() {
    throw std::runtime_error("this kernel is not among the few");
}

// Forward: no mask; lengths, new keys, split.
template <>
void run_mha_fwd_<86, T, 64, 64, true, false, false, true>(Flash_fwd_params& params, cudaStream_t stream) {
    if (params.is_causal || !params.knew_ptr) absent();
    run_flash_fwd<86, 64, 64, 1, T, T, false, false, false, true, false, true, false, true, true, false>(params,
                                                                                                         stream);
}
// Unsplit, no lengths: a window, and causal (for tests/prove/test_sinks.py and tests/clients/test_gpt_oss.py).
#define FORWARD(CAUSAL, LOCAL) \
    run_flash_fwd<86, 64, 64, 1, T, T, CAUSAL, LOCAL, false, false, false, false, false, true, false, false>
template <>
void run_mha_fwd_<86, T, 64, 64, false, false, false, true>(Flash_fwd_params& params, cudaStream_t stream) {
#ifdef FEW_MORE
    if (params.cu_seqlens_q || params.seqused_q || params.seqused_k) absent();
    if (params.is_local) return FORWARD(false, true)(params, stream);
    if (params.is_causal) return FORWARD(true, false)(params, stream);
    absent();
#else
    absent();
#endif
}

// Split, from pages, without new keys.
template <>
void run_mha_fwd_<86, T, 64, 64, true, true, false, true>(Flash_fwd_params& params, cudaStream_t stream) {
#ifdef FEW_MORE
    if (params.is_causal || params.knew_ptr) absent();
    run_flash_fwd<86, 64, 64, 1, T, T, false, false, false, true, true, false, false, true, true, false>(params,
                                                                                                         stream);
#else
    absent();
#endif
}
template <>
void run_mha_fwd_<86, T, 64, 64, false, true, false, true>(Flash_fwd_params&, cudaStream_t) {
    absent();
}

// Combine: lengths, at most 16 splits.
template <>
void run_mha_fwd_combine_<T, float, 64>(Flash_fwd_params& params, cudaStream_t stream, bool pdl) {
    if (params.num_splits > 16 || !(params.cu_seqlens_q || params.seqused_q)) absent();
    run_flash_fwd_combine<86, 16, 64, 4, false, true, T, float>(params, stream, pdl);
}
#define NO_COMBINE(TYPE, DIM)                                                            \
    template <>                                                                          \
    void run_mha_fwd_combine_<TYPE, float, DIM>(Flash_fwd_params&, cudaStream_t, bool) { \
        absent();                                                                        \
    }
NO_COMBINE(T, 128)
NO_COMBINE(float, 64)
NO_COMBINE(float, 128)
NO_COMBINE(cutlass::half_t, 64)
NO_COMBINE(cutlass::half_t, 128)

// Backward: no mask, no grouped heads; or grouped heads without lengths, causal or in a window. Where no kernel is, the
// error tells what the host code settled.
#define BACKWARD_OF(CAUSAL, LOCAL, LENGTHS, GROUPED)                                                                  \
    run_flash_bwd<86, 64, 64, 128, T, CAUSAL, LOCAL, false, LENGTHS, false, GROUPED, 2, 2, false, false, false, 2, 2, \
                  4, 2, true>
#define BACKWARD(LENGTHS) BACKWARD_OF(false, false, LENGTHS, false)

static void tell(char const* kernel, Flash_bwd_params const& params) {
    throw std::runtime_error(std::string(kernel) + ", dk_batch_stride " + std::to_string(params.dk_batch_stride));
}
template <>
void BACKWARD(false)(Flash_bwd_params& params, cudaStream_t) {
    tell("no lengths", params);
}
#ifndef FEW_MORE
template <>
void BACKWARD(true)(Flash_bwd_params& params, cudaStream_t) {
    tell("lengths", params);
}
#endif
template <>
void run_mha_bwd_<86, T, 64, false>(Flash_bwd_params& params, cudaStream_t stream) {
#ifdef FEW_MORE
    if (params.h != params.h_k && !params.cu_seqlens_q && !params.seqused_q && !params.seqused_k) {
        if (params.is_causal) return BACKWARD_OF(true, false, false, true)(params, stream);
        if (params.is_local) return BACKWARD_OF(false, true, false, true)(params, stream);
    }
#endif
    if (params.is_causal || params.h != params.h_k) absent();
    run_mha_bwd_dispatch<false, 86, T, 64, 128, 64, false, false, false, 2, 2, false, false, false, 2, 2, 4, 2, true>(
        params, stream);
}
