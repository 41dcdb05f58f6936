// A forward tile of head dim 64 whose V is wider. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// Appending under a window to a cache without pages, split over lengths: as fp16, 64 columns beside a V of 256 spill 28
// bytes.
constexpr Tile tile_values(int dim_v, Tile tile, Variant const& v) {
    if (dim_v > 128 && v.append && v.local && v.varlen_split && !v.paged) {
        tile.block_n = 48;
    }
    return tile;
}

}  // namespace fa3
