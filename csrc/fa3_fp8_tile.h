// Forward tiles of kernels whose Q, K and V are e4m3. BSD-3-Clause, see LICENSE.
#pragma once

#include <tuple>

#include "fa3_tile.h"

namespace fa3 {

// A tile is legal as the 16-bit ones are (fa3_tile.h), and block_n is a multiple of 32: what one MMA takes of the
// keys. block_m is the one of K and V in e4m3 beside another Q: get_scheduler_metadata() is told of e4m3 and no more.
//
// Two stages of K and V take the bytes that one stage of 16-bit numbers takes, and make one barrier a step enough: the
// copies of the next tile travel during the whole step. Q stays in shared memory: 16 rows of it are one LDSM for 32
// columns, beside block_n / 16 for K. So a thread holds a row's scores and sums as the 16-bit tiles of 128 (192, 256)
// do, and neither Q nor as many registers of P.
constexpr Tile fp8_tile(int head_dim, Variant const& variant) {
    // At 64 columns too: 4 warps of 32 rows would read K and V half as often, and take 254 registers without a window.
    if (head_dim <= 96) {
        return {128, 128, 8, 2, false};
    }
    if (head_dim <= 128) {  // 128 columns spilled up to 224 bytes, 96 in these variants up to 64
        bool const tight = variant.causal || (variant.local && variant.softcap && variant.varlen_split);
        return {128, tight ? 64 : 96, 8, 2, false};
    }
    if (head_dim <= 192) {
        return {128, 64, 8, 2, false};
    }
    return {64, 32, 4, 2, false};  // 49 KB, so that two blocks share an SM
}

constexpr std::tuple<int, int, int, int, bool> fp8_tile_size(int head_dim, Variant const& variant) {
    Tile const tile = fp8_tile(head_dim, variant);
    return {tile.block_m, tile.block_n, tile.warps, tile.stages, tile.q_in_regs};
}

}  // namespace fa3
