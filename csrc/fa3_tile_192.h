// Forward tiles of head dim 192 where shared memory is small. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// 192: 48 KB of Q. In registers it makes room for more columns of K and V: 96 fit, but a causal mask, tanh or lengths
// then spill up to 144 bytes, so 80. Where something else needs the registers, Q stays in shared memory beside 64. With
// bytes of e4m3 there is room for 48, and none for Q beside them.
constexpr Tile tile_192(Variant const& v) {
    if (v.kv8) {
        return {128, 48, 8, 1, true};
    }
    bool const busy = v.append || v.local || v.varlen_split || v.paged;
    return {128, busy ? 64 : 80, 8, 1, !busy};
}

// V of 128 columns: 64 sums of the output a thread instead of 96 leave room for 96 columns of K where 192 has 80. Under
// a causal mask 96 spill 52 bytes where keys are split, and 64 spill 24 where keys are appended and split over lengths.
constexpr Tile tile_192(int dim_v, Variant const& v) {
    Tile tile = tile_192(v);
    if (dim_v <= 128 && tile.q_in_regs && !v.causal) {
        tile.block_n = 96;
    } else if (dim_v <= 128 && v.append && v.causal && v.varlen_split && !v.paged) {
        tile.block_n = 48;
    }
    return tile;
}

}  // namespace fa3
