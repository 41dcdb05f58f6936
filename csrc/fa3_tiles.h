// Forward tiles of the mma.sync families: ours where upstream's do not fit or spill. BSD-3-Clause, see LICENSE.
//
// The budget of a block on 12.x (and 8.6, 8.9) is 99 KB of shared memory and 255 registers a thread. Every tile fits
// the first in all variants (tests/build/test_tiles.py proves it without a compiler for CUDA; a static_assert in the
// launch templates does at compile time), and the second without a spill, at head dim 256 because ptxas is told to save
// registers (ci/plan/flags.py). The pages docs/kernels-12.1*.md list what the compiled kernels really take. Speed is a
// prediction from arithmetic: none of this has run on a GB10.
//
// A kernel's file includes the header of its own head dim alone, so that a change of one head dim's tiles compiles that
// one anew. This one is the host code's, which asks for any.
#pragma once

#include "fa3_qv_tile.h"
#include "fa3_tile_128.h"
#include "fa3_tile_192.h"
#include "fa3_tile_256.h"
#include "fa3_tile_64.h"
#include "fa3_tile_96.h"
#include "fa3_tile_kv8.h"
#include "fa3_tile_values.h"

namespace fa3 {

// Head dims (`dim_v`: of V) are rounded up to built ones.
constexpr Tile forward_tile(int head_dim, int dim_v, Variant const& variant) {
    if (dim_v > 256) {
        return qv_tile();
    }
    if (head_dim <= 64) {
        Tile const tile = tile_values(dim_v, tile_64(dim_v, variant), variant);
        return tile_kv8(64, tile, variant);
    }
    if (head_dim <= 96) {
        return tile_96(variant);
    }
    if (head_dim <= 128) {
        return tile_kv8(128, tile_128(variant), variant);
    }
    return head_dim <= 192 ? tile_192(dim_v, variant) : tile_256(variant);
}

}  // namespace fa3
