// Where the library meets torch. BSD-3-Clause, see LICENSE. To be included after torch's stable headers.
#pragma once

#include <stdexcept>

// In libtorch_cuda only: weak, so that the library also loads where torch has no CUDA (and registers its ops there).
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace fa3 {

inline AOTITorchError current_stream(int32_t device_index, void** stream) {
    if (aoti_torch_get_current_cuda_stream == nullptr) {
        throw std::runtime_error("FlashAttention-3: this build of torch has no CUDA");
    }
    return aoti_torch_get_current_cuda_stream(device_index, stream);
}

}  // namespace fa3

// The op namespace is a macro, which torch's own macros would take for the name itself.
#define FA3_TORCH_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define FA3_TORCH_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
