// Launching a kernel so that a failure is an exception. BSD-3-Clause, see LICENSE.
//
// CUTLASS's launcher takes the error from the runtime and returns a status that upstream drops: the check that follows
// finds nothing, and a launch that never happened looks like a success.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cutlass/cutlass.h"
#include "cutlass/device_kernel.h"
#include "fa3_check.h"

namespace fa3 {

// `dependent`: the kernel may start before the one before it has ended (Hopper's programmatic dependent launch).
template <typename Kernel>
void kernel_launch(dim3 grid, dim3 block, size_t smem, cudaStream_t stream, typename Kernel::Params const& params,
                   bool dependent) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = dependent ? 1 : 0;
    check_cuda(cudaLaunchKernelEx(&config, cutlass::device_kernel<Kernel>, params), "kernel launch");
}

// For CUTLASS's cluster launcher, which Hopper's kernels still go through.
inline void check_status(cutlass::Status status) {
    if (status != cutlass::Status::kSuccess) {
        throw std::runtime_error(std::string("FlashAttention-3: kernel launch: ") +
                                 cutlass::cutlassGetStatusString(status));
    }
}

}  // namespace fa3
