// Forward tiles of head dim 96 where shared memory is small. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// 96: 128 rows of Q are 24 KB, 64 of K and V 12 KB each; two blocks an SM. Masks and splits that keep more registers
// alive take 48 columns.
constexpr Tile tile_96(Variant const& v) {
    return {128, v.local || v.varlen_split ? 48 : 64, 4, 1, false};
}

}  // namespace fa3
