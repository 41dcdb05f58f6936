// Forward tiles of head dim 96 where shared memory is small. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// Upstream's tile, 4 warps with 32 rows each: by the count of docs/tiles-12.1.md 9 % ahead of 8 warps with 16 rows
// where no unit's work overlaps, since K and V are read from shared memory half as often, and two blocks fit an SM. It
// spills up to 200 bytes in most other variants. Those take 8 warps: half as many sums and scores a thread, and Q in
// registers.
constexpr Tile tile_96(Variant const& v) {
    if (!(v.local || v.paged || v.varlen_split || v.softcap || v.append || v.kv8)) {
        return {128, 64, 4, 1, false};
    }
    return {128, v.local ? 96 : 128, 8, 1, true};
}

}  // namespace fa3
