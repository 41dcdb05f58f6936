// K and V in e4m3 beside a Q in bf16 or fp16: what such kernels are called, and which one serves a call.
// BSD-3-Clause, see LICENSE.
#pragma once

#include <cuda_runtime.h>

#include "cutlass/numeric_types.h"

namespace fa3 {

// In the place of a kernel's element type: Q and the output are of type T, K and V lie in memory as e4m3.
template <typename T>
struct Kv8 {
    T element;
};

// What a kernel's element type says of Q, and of K and V in memory.
template <typename T>
struct Stored {
    using Q = T;
    using KV = T;
    static constexpr bool kWidened = false;  // K and V are widened to Q's type on the way to the MMAs
};

template <typename T>
struct Stored<Kv8<T>> {
    using Q = T;
    using KV = cutlass::float_e4m3_t;
    static constexpr bool kWidened = true;
};

}  // namespace fa3
