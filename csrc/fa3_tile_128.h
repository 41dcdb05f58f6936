// Forward tiles of head dim 128 where shared memory is small. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// 128: a row's sums are 128 floats; 8 warps hold them with 16 rows each. Q lies in registers, so that its 32 KB are V's
// later, and 128 columns of K fit beside.
constexpr Tile tile_128(Variant const& v) {
    // 128 columns leave no register for page pointers under a causal mask, or for what a split over lengths keeps.
    bool const busy =
        v.varlen_split || (v.causal && v.paged && !v.append) || (v.causal && v.softcap && v.append && !v.paged);
    int const full = busy ? 112 : 128;
    // A window beside tanh, or beside appending (as fp16: 36 bytes too many at 96 columns), takes 80.
    int const window = v.softcap || (v.append && !v.paged && !v.varlen_split) ? 80 : 96;
    return {128, v.local ? window : full, 8, 1, true};
}

}  // namespace fa3
