// Forward tiles of head dim 256 where shared memory is small. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// 256: 64 rows each of Q, K and V are 96 KB. 128 rows of Q fit only in registers, which spills: 4 warps hold 16 rows
// each with the same 128 sums a thread, and nothing else. Bytes of e4m3 beside them leave room for 32 columns.
// Appending under a window with softcap to a cache without pages, split over lengths: 64 columns spill 52 bytes.
constexpr Tile tile_256(Variant const& v) {
    if (v.kv8) {
        return {64, 32, 4, 1, false};
    }
    bool const busy = v.append && v.local && v.softcap && v.varlen_split && !v.paged;
    return {64, busy ? 48 : 64, 4, 1, false};
}

}  // namespace fa3
