// 16-bit numbers between shared memory and registers, for a main loop of our own. BSD-3-Clause, see LICENSE.
#pragma once

#include <cstdint>

#include "cutlass/cutlass.h"
#include "cutlass/numeric_conversion.h"

namespace fa3 {

// A tile of 16-bit numbers in shared memory, as upstream's layouts have it. Rows of 64 numbers lie one after another,
// and further columns behind them; 16-byte chunks of a row change places with the row.
template <int kRows>
struct Numbers {
    uint32_t base;  // address in shared memory
    uint32_t lane;  // where this thread's row and chunk lie, of the tile's first rows and columns

    // `row` and `chunk` (0 or 1): which this thread reads of what an instruction reads.
    CUTLASS_DEVICE Numbers(uint32_t base_, int row, int chunk)
        : base(base_), lane(row * 128 + ((chunk ^ row % 8) << 4)) {}

    // Four 8 x 8 matrices. Their first row is a multiple of 8, their first column one of 16.
    template <bool kTransposed = false>
    CUTLASS_DEVICE void read(uint32_t (&to)[4], int row, int column) const {
        uint32_t const at = base + (lane ^ column % 64 * 2) + (column / 64 * kRows + row) * 128;
        if constexpr (kTransposed) {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                         : "r"(at));
        } else {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                         : "r"(at));
        }
    }
};

// The same number below kCount, which the compiler does not know to be the same: what is computed from it is computed
// there anew, and is not kept in registers that the main loop needs.
template <int kCount>
CUTLASS_DEVICE int afresh(int number) {
    static_assert((kCount & (kCount - 1)) == 0);
    asm volatile("" : "+r"(number));
    return number & (kCount - 1);
}

// Two numbers as T, the first in the lower half.
template <typename T>
CUTLASS_DEVICE uint32_t rounded(float a, float b) {
    cutlass::Array<float, 2> const both{a, b};
    auto const pair = cutlass::NumericArrayConverter<T, float, 2>{}(both);
    return reinterpret_cast<uint32_t const&>(pair);
}

}  // namespace fa3
