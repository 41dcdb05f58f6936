// Forward tiles of head dim 96 where shared memory is small. BSD-3-Clause, see LICENSE.
#pragma once

#include "fa3_tile.h"

namespace fa3 {

// 96: upstream's 4 warps with 32 rows each spill in most variants, at 64 columns (up to 200 bytes) and at 48. 8 warps
// with 16 rows each hold half as many sums and scores, and Q in registers; K and V are read from shared memory twice as
// often: one LDSM for two HMMA, as at head dim 128.
constexpr Tile tile_96(Variant const& v) {
    return {128, v.local ? 96 : 128, 8, 1, true};
}

}  // namespace fa3
