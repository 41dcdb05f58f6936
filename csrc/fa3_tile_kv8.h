// Forward tiles of head dims 64 and 128 for K and V in e4m3 beside softcap. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// With the tiles of 16-bit K and V, tanh beside the bytes of e4m3 spills where there are no pages: 92 bytes without a
// mask at head dim 64, 136 under a causal one at 128. 16 columns fewer leave the registers.
constexpr Tile tile_kv8(int head_dim, Tile tile, Variant const& v) {
    int const most = head_dim == 64 ? 48 : 112;
    if (v.kv8 && v.softcap && !v.paged && tile.block_n > most) {
        tile.block_n = most;
    }
    return tile;
}

}  // namespace fa3
