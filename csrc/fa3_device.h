// What the host code asks of the device. BSD-3-Clause, see LICENSE.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "fa3_check.h"

namespace fa3 {

// Upstream's schedules hold parts of the L2 cache as constants, in megabytes of an H100's 50. This is the same part of
// the L2 that the current device has (GB10: 24 MB), and at least a megabyte.
inline int l2_share(int megabytes_of_50) {
    int device = 0;
    int bytes = 0;
    CHECK_CUDA(cudaGetDevice(&device));
    CHECK_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device));
    return static_cast<int>(std::max<int64_t>(int64_t{bytes} * megabytes_of_50 / 50, 1 << 20));
}

}  // namespace fa3
