// Where the library meets torch. BSD-3-Clause, see LICENSE. To be included after torch's stable headers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

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

// Kernels read and write 16 bytes at a time. A tensor that starts or steps elsewhere must not get there: the device
// would report a misaligned address, after which the process can use it no more. The first dimensions' strides count
// where there is more than one step to take. Python's side knows the error by the words "multiple of 16 bytes".
template <typename Tensor>
void check_aligned(Tensor const& tensor, char const* name) {
    using torch::headeronly::ScalarType;
    ScalarType const type = tensor.scalar_type();
    int64_t const bytes = type == ScalarType::Float8_e4m3fn ? 1 : type == ScalarType::Float ? 4 : 2;
    if (reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 != 0) {
        throw std::runtime_error(std::string("FlashAttention-3: ") + name + " starts at no multiple of 16 bytes");
    }
    for (int64_t i = 0; i + 1 < tensor.dim(); ++i) {
        if (tensor.size(i) > 1 && tensor.stride(i) * bytes % 16 != 0) {
            throw std::runtime_error(std::string("FlashAttention-3: ") + name + " has stride " +
                                     std::to_string(tensor.stride(i)) + " in dimension " + std::to_string(i) +
                                     ", no multiple of 16 bytes");
        }
    }
}

}  // namespace fa3

#define FA3_CHECK_ALIGNED(x) ::fa3::check_aligned(x, #x)

// The op namespace is a macro, which torch's own macros would take for the name itself.
#define FA3_TORCH_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define FA3_TORCH_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
