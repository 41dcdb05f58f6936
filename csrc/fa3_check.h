// CUDA errors as exceptions, where upstream prints and ends the process. BSD-3-Clause, see LICENSE.
//
// std::runtime_error passes through torch's dispatcher and becomes Python's RuntimeError. The text holds no path of the
// machine that built the library.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fa3 {

inline void check_cuda(cudaError_t status, char const* what) {
    if (status == cudaSuccess) {
        return;
    }
    // Take the error back, where that is possible: it is reported here, not by some later innocent call.
    static_cast<void>(cudaGetLastError());
    throw std::runtime_error(std::string("FlashAttention-3: CUDA error: ") + cudaGetErrorName(status) + ": " +
                             cudaGetErrorString(status) + " (" + what + ")");
}

// For the driver's answer to a request for a tensor's descriptor (Hopper's bulk copies). CUTLASS prints and goes on
// with an empty one: the kernel would then read nothing, or fault.
inline void check_descriptor(int status) {
    if (status != 0) {
        throw std::runtime_error("FlashAttention-3: CUDA driver error " + std::to_string(status) +
                                 " for a TMA descriptor");
    }
}

}  // namespace fa3

#define CHECK_CUDA(call) ::fa3::check_cuda((call), #call)
